//! Arguments: what is refused, with which words, and what is taken.

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use super::{bad, elapid, good, json, small, utf8};

#[test]
fn help_is_no_error() {
    for args in [&["--help"][..], &["run", "--help"], &["--version"]] {
        assert!(good(args).contains("elapid"), "{args:?}");
    }
    bad(elapid(&["sing"]).output().unwrap(), 2, "sing");
    assert_eq!(elapid(&[]).output().unwrap().status.code(), Some(2));
}

/// A line for each command: its exit code and what it says. `M` stands for a model.
#[track_caller]
fn refused(lines: &[(&str, &str)]) {
    let small = small();
    for (line, says) in lines {
        let args: Vec<&str> = line.split('|').map(|arg| if arg == "M" { &small } else { arg }).collect();
        let output = elapid(&args).output().unwrap();
        let error = utf8(output.stderr).replace(&small, "M");
        assert_eq!(error, format!("error: {says} (see --help)\n"), "{line}");
        assert_eq!((output.status.code(), utf8(output.stdout).as_str()), (Some(2), ""), "{line}");
    }
}

#[test]
fn arguments_that_are_not_known_are_corrected() {
    refused(&[
        (
            "run|M|- buy milk|-n|3",
            "unexpected argument '- buy milk' found: put an argument that begins with a hyphen after `--`: `elapid run M -n 3 -- \
             \"- buy milk\"`",
        ),
        (
            "tokenize|M|-5",
            "unexpected argument '-5' found: put an argument that begins with a hyphen after `--`: `elapid tokenize M -- -5`",
        ),
        ("run|M|hi|--tmep|0", "unexpected argument '--tmep' found: a similar argument exists: '--temp'"),
        ("run|M|--|- a|-n|3", "unexpected argument '-n' found: put options before `--`"),
        ("run|M|My|fellow", "unexpected argument 'fellow' found: put an argument with spaces in quotes"),
        ("tokenise|M", "unrecognized subcommand 'tokenise': a similar subcommand exists: 'tokenize'"),
        (
            "run|M|hi|--verify|alway",
            "invalid value 'alway' for '--verify <VERIFY>' [possible values: auto, always, never]: a similar value exists: 'always'",
        ),
        ("run|M|hi|--temp", "a value is required for '--temp <T>' but none was supplied"),
        ("run|M|hi|--temp|0|--temp|1", "the argument '--temp <T>' cannot be used multiple times"),
    ]);
}

/// Every option that takes a number says what it takes, whatever it is given.
#[test]
fn numbers_that_cannot_be_are_refused_with_their_range() {
    let whole = |from: u64, to: u64| format!("give a whole number from {from} to {to}");
    let u32_max = u64::from(u32::MAX);
    let ram = "give a size from 1 to 8192T, such as 512M or 1.5G, or auto";
    let options = [
        ("run", "-n <N>", &["0", "4294967296"][..], whole(1, u32_max)),
        ("run", "--top-k <K>", &["4294967296"], whole(0, u32_max)),
        ("run", "--seed <S>", &["18446744073709551616"], whole(0, u64::MAX)),
        ("run", "--threads <THREADS>", &["0", "65", "70000"], whole(1, 64)),
        ("run", "--ram <SIZE>", &["0", "0.5", "1e30G", "1X"], ram.into()),
        ("run", "--temp <T>", &["1e40"], "give a number: 0 or more, and finite".into()),
        ("run", "--top-p <P>", &["0", "2"], "give a number: above 0, at most 1".into()),
        ("run", "--min-p <P>", &["2"], "give a number: 0 to 1".into()),
        ("run", "--repeat-penalty <R>", &["0", "1e40"], "give a number: above 0, and finite".into()),
        ("perplexity", "--max-tokens <N>", &["0", "1"], whole(2, u64::MAX)),
        ("bench", "-p <P>", &["0", "1000001"], whole(1, 1_000_000)),
        ("bench", "-n <N>", &["0", "1000001"], whole(1, 1_000_000)),
        ("bench", "--long <TOKENS>", &["0", "100000001"], whole(1000, 100_000_000)),
        (
            "logits",
            "--tokens <IDS>",
            &["", "1,,2", "[1,2", "1]", "1,x", "1 -2", "[1],[2]", "4294967296", "[]"],
            "give whole numbers from 0 to 4294967295, such as 1,2,3 or [1, 2, 3]".into(),
        ),
    ];
    for (command, option, values, says) in options {
        let name = option.split(' ').next().unwrap();
        for value in
            values.iter().chain(&["-1", "-1.5", "-inf", "nan", "inf", "two", "--json", "é", "-1e999"])
        {
            let line = format!("{command}|M|{name}|{value}");
            refused(&[(&line, &format!("invalid value '{value}' for '{option}': {says}"))]);
        }
    }
    // What is repeated of a long value is short, and nothing of it moves a terminal's cursor.
    let long = "1,\u{1b}[2J\n".repeat(100);
    let output = elapid(&["logits", &small(), "--tokens", &long]).output().unwrap();
    bad(output, 2, r"error: invalid value '1,\u{1b}[2J\n1,");
}

#[test]
fn texts_may_begin_with_a_hyphen() {
    let ids = good(&["tokenize", &small(), "--", "- item"]);
    assert_eq!(json(&good(&["logits", &small(), "--text", "- item"]))["tokens"], json(&ids));
    let run = ["run", &small(), "My fellow", "-n", "20", "--seed", "3"];
    assert_eq!(good(&[&run[..], &["--stop", "- item"]].concat()), good(&run));
}

#[test]
fn tokens_are_taken_as_they_are_printed() {
    let tokens = |ids: &str| json(&good(&["logits", &small(), "--tokens", ids]))["tokens"].clone();
    for ids in ["1,2,3", "[1,2,3]", " [1, 2, 3]\n", "1,\n2,\t3", "[\n  1,\n  2,\n  3\n]\n", "1 2\n3\n"] {
        assert_eq!(tokens(ids), json("[1,2,3]"), "{ids:?}");
    }
    let printed = good(&["tokenize", &small(), "My fellow"]);
    assert_eq!(tokens(&printed), json(&printed));
    let both = good(&["logits", &small(), "--tokens", "[1]", "--tokens", "2,3"]);
    assert_eq!(json(&both)["tokens"], json("[1,2,3]"));
}

fn piped(args: &[&str], input: &str) -> Output {
    let mut child =
        elapid(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_hyphen_stands_for_standard_input() {
    let args = ["run", &small(), "My fellow", "-n", "20", "--seed", "4"];
    let expected = good(&args);
    for input in ["My fellow", "My fellow\n"] {
        let output = piped(&["run", &small(), "-", "-n", "20", "--seed", "4"], input);
        assert_eq!((output.status.code(), utf8(output.stdout)), (Some(0), expected.clone()), "{input:?}");
    }
    // `tokenize` counts the newline, as it does with `--file -`.
    for args in [&["tokenize", &small(), "-"][..], &["tokenize", &small(), "--file", "-"]] {
        let output = piped(args, "My fellow\n");
        assert_eq!(utf8(output.stdout), good(&["tokenize", &small(), "My fellow\n"]), "{args:?}");
    }
    bad(piped(&["run", &small(), "-"], ""), 2, "the prompt is empty");
}

#[test]
#[cfg(feature = "bundled")]
fn a_hyphen_alone_is_no_model() {
    let args = ["run", "-", "-n", "20", "--seed", "4"];
    let output = piped(&args, "My fellow");
    let expected = good(&["run", &super::model("address-4m.elp"), "My fellow", "-n", "20", "--seed", "4"]);
    assert_eq!((output.status.code(), utf8(output.stdout)), (Some(0), expected));
}

#[test]
fn a_text_that_was_taken_for_the_model_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes"), "abc").unwrap();
    fs::create_dir(folder.path().join("drafts")).unwrap();
    let said = |args: &[&str], code| {
        let output = elapid(args).current_dir(&folder).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        utf8(output.stderr)
    };
    for (command, what) in [("run", "prompt"), ("tokenize", "text")] {
        // A folder is packed, by a command that computes.
        let path = folder.path().canonicalize().unwrap().join("drafts");
        let (code, says) = match (cfg!(feature = "hub"), command) {
            (true, "run") => (3, format!("error: {}: no config.json here", path.display())),
            (true, _) => (2, format!("error: {} is not in the store", path.display())),
            (false, _) => (2, "error: drafts: a folder".to_owned()),
        };
        let hint = format!(
            " (the only argument is the model if a file or folder of that name exists: to use it as the {what}, give a model \
             before it, or pipe it to `elapid {command} -`)\n"
        );
        for (name, code, says) in
            [("notes", 3, "error: notes: the file has 3 bytes"), ("drafts", code, &says)]
        {
            let error = said(&[command, name], code);
            assert!(error.starts_with(says) && error.ends_with(&hint), "{error}");
        }
        let error = said(&[command, "My", "fellow"], 1);
        let hint =
            format!(" (the first of two arguments is the model: put a {what} with spaces in quotes)\n");
        assert!(error.starts_with("error: My: cannot open") && error.ends_with(&hint), "{error}");
        // Whoever gives a model by its name is not told about texts.
        let error = said(&[command, "no-such.elp", "hi"], 1);
        assert!(error.ends_with(": check the path\n"), "{error}");
    }
}

#[test]
fn bad_prompts_are_refused() {
    let run = |args: &[&str]| elapid(&[&["run", &small()], args].concat()).output().unwrap();
    bad(run(&[""]), 2, "the prompt is empty");
    bad(run(&[]), 2, "the prompt is empty");
    for option in
        [["--temp", "-1"], ["--temp", "nan"], ["--top-p", "0"], ["--min-p", "2"], ["-n", "0"], ["-t", "0"]]
    {
        bad(run(&[&["hello"], &option[..]].concat()), 2, "");
    }
    bad(run(&["hello", "--ram", "1M"]), 4, "give --ram");
    bad(run(&["hello", "--kernels", "6502"]), 2, "scalar");
}

#[test]
fn more_threads_than_cores_are_warned_of() {
    let cores = elapid::default_threads();
    let run = |threads: usize| {
        let output =
            elapid(&["logits", &small(), "--tokens", "1", "--json", "-t", &threads.to_string()]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(0));
        (utf8(output.stdout), utf8(output.stderr))
    };
    let (logits, errors) = run(cores);
    assert_eq!(errors, "");
    if cores < elapid::MAX_THREADS {
        let (same, errors) = run(cores + 1);
        assert_eq!(same, logits);
        assert!(errors.starts_with(&format!("warning: {} threads on {cores} core", cores + 1)), "{errors}");
        assert_eq!(errors.matches('\n').count(), 1, "{errors}");
    }
}

/// Where the address space is limited, some threads find their stack and the next one does not. (A limit of processes
/// would not hold for root.)
#[test]
#[cfg(target_os = "linux")]
fn a_thread_that_cannot_be_started_is_named() {
    let run = |kilobytes: usize, threads: &str| {
        let script = format!("ulimit -v {kilobytes} && exec \"$0\" \"$@\"");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_elapid")]);
        command.args(["logits", &small(), "--tokens", "1", "--json", "-t", threads]).stdin(Stdio::null());
        command.output().unwrap()
    };
    // The canary: the limit itself leaves room for one thread.
    let enough = 80 << 10;
    let one = run(enough, "1");
    assert_eq!(one.status.code(), Some(0), "{}", utf8(one.stderr));

    // 63 stacks of 2 MiB don't fit.
    let output = run(enough, "64");
    let errors = utf8(output.stderr);
    let lines: Vec<&str> = errors.lines().filter(|line| !line.contains(" threads on ")).collect();
    let [line] = lines[..] else { panic!("{errors}") };
    assert!(line.starts_with("error: cannot start thread ") && line.contains(" of 64: "), "{line}");
    assert!(line.ends_with(": use fewer with -t"), "{line}");
    assert_eq!((output.status.code(), utf8(output.stdout).as_str()), (Some(1), ""), "{line}");
}

#[test]
#[cfg(unix)]
fn text_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let prompt = std::ffi::OsStr::from_bytes(b"ab\xff");
    bad(elapid(&["run", &small()]).arg(prompt).output().unwrap(), 2, "byte 2");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("latin1.txt");
    fs::write(&file, b"caf\xe9").unwrap();
    let file = file.to_str().unwrap();
    bad(elapid(&["perplexity", &small(), "--file", file]).output().unwrap(), 2, "byte 3");
    bad(elapid(&["tokenize", &small(), "--file", file]).output().unwrap(), 2, "latin1.txt is not UTF-8");
}

#[test]
fn bad_tokens_are_named_with_their_place() {
    let logits = |args: &[&str]| elapid(&[&["logits", &small()], args].concat()).output().unwrap();
    bad(logits(&["--tokens", "1,2,1024"]), 2, "token 1024 at position 2");
    bad(logits(&["--tokens", "1,2,1024", "--all"]), 2, "token 1024 at position 2");
    bad(logits(&["--tokens", "1,x"]), 2, "invalid");
    bad(logits(&["--tokens", "-1"]), 2, "");
    bad(logits(&["--text", ""]), 2, "the text is empty");
    bad(logits(&[]), 2, "--tokens");
    bad(logits(&["--tokens", "1", "--text", "x"]), 2, "cannot be used with");
    bad(logits(&["--tokens", "1", "-o", "/nowhere/x.npy"]), 1, "/nowhere/x.npy: cannot write");
}
