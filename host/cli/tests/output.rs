//! Files that the program writes and reads, and how signals end it.
#![cfg(unix)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use elapid_test_support::process::{command, exit_code, send};

fn elapid(args: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_elapid"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn small() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/address-300k.elp").to_str().unwrap().into()
}

/// Ids of tokens that differ with `seed`.
fn tokens(seed: usize, count: usize) -> String {
    let ids: Vec<String> = (0..count).map(|i| ((seed + 7 * i) % 1024).to_string()).collect();
    ids.join(",")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn good(output: Output) -> Vec<u8> {
    assert_eq!((output.status.code(), &*String::from_utf8_lossy(&output.stderr)), (Some(0), ""));
    output.stdout
}

/// Asserts that a command ended with `code` and one line that holds `says`.
#[track_caller]
fn bad(output: Output, code: i32, says: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.starts_with("error: ") && error.contains(says) && error.lines().count() == 1, "{error}");
}

#[test]
fn two_runs_with_one_array_keep_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = |seed: usize, to: &str| {
        let (tokens, to) = (tokens(seed, 300 + 100 * seed), path(to));
        elapid(&["logits", &small(), "--tokens", &tokens, "--all", "-t", "1", "-o", &to]).spawn().unwrap()
    };
    let results = [0, 1].map(|seed| {
        good(run(seed, "alone.npy").wait_with_output().unwrap());
        fs::read(path("alone.npy")).unwrap()
    });
    for _ in 0..5 {
        for child in [0, 1].map(|seed| run(seed, "x.npy")) {
            good(child.wait_with_output().unwrap());
        }
        assert!(results.contains(&fs::read(path("x.npy")).unwrap()), "neither result");
        assert_eq!(names(folder.path()), ["alone.npy", "x.npy"]);
    }
}

#[test]
fn an_array_can_go_to_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.npy");
    let run = |to: &str| {
        let mut command = elapid(&["logits", &small(), "--tokens", "1,2", "-o", to]);
        command.current_dir(&folder);
        command
    };
    good(run("x.npy").output().unwrap());
    let expected = fs::read(&file).unwrap();
    for to in ["-", "/dev/stdout"] {
        assert!(good(run(to).output().unwrap()) == expected, "{to}");
        // What stands in the file is not lost.
        fs::write(&file, "before").unwrap();
        let append = fs::File::options().append(true).open(&file).unwrap();
        good(run(to).stdout(append).output().unwrap());
        assert!(fs::read(&file).unwrap() == [b"before", &expected[..]].concat(), "{to}");
        assert_eq!(names(folder.path()), ["x.npy"]);
        // Nobody reads it.
        let mut child = run(to).spawn().unwrap();
        drop(child.stdout.take());
        good(child.wait_with_output().unwrap());
    }
}

#[test]
fn links_are_followed_and_the_model_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::copy(small(), path("m.elp")).unwrap();
    fs::hard_link(path("m.elp"), path("hard.npy")).unwrap();
    symlink("m.elp", path("link.npy")).unwrap();
    fs::create_dir(path("disk")).unwrap();
    symlink("disk/x.npy", path("x.npy")).unwrap();
    let run =
        |to| elapid(&["logits", "m.elp", "--tokens", "1", "-o", to]).current_dir(&folder).output().unwrap();
    for to in ["m.elp", "hard.npy", "link.npy"] {
        bad(run(to), 2, "-o would replace the model");
        assert!(fs::read(path("m.elp")).unwrap() == fs::read(small()).unwrap());
    }
    for _ in 0..2 {
        good(run("x.npy"));
        assert!(
            path("x.npy").is_symlink() && fs::read(path("disk/x.npy")).unwrap().starts_with(b"\x93NUMPY")
        );
    }
    assert_eq!(names(&path("disk")), ["x.npy"]);
}

#[test]
fn a_limit_of_file_sizes_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.npy"), "old").unwrap();
    let tokens = tokens(0, 300);
    for to in ["-o x.npy", "> y.npy"] {
        let script = format!("ulimit -f 100 && exec \"$0\" logits \"$1\" --all --tokens {tokens} {to}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_elapid"), &small()]).current_dir(&folder);
        bad(command.output().unwrap(), 1, "File too large");
    }
    assert_eq!(fs::read(folder.path().join("x.npy")).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["x.npy", "y.npy"]);
}

#[test]
fn a_fifo_or_a_device_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("f.elp").to_str().unwrap().to_owned();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for model in [&fifo, "/dev/zero", "/dev/null"] {
        for args in [
            &["run", model, "hello"][..],
            &["run", model, "hello", "--ram", "64M"],
            &["logits", model, "--tokens", "1"],
            &["perplexity", model, "--file", "/dev/null"],
            &["tokenize", model, "hello"],
            &["info", model],
            &["verify", model],
            &["bench", model],
        ] {
            bad(elapid(args).output().unwrap(), 1, "not a regular file");
        }
    }
}

#[test]
fn a_text_may_come_through_a_fifo_and_not_from_an_endless_device() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("text").to_str().unwrap().to_owned();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let child = elapid(&["tokenize", &small(), "--file", &fifo]).spawn().unwrap();
    fs::write(&fifo, "My fellow").unwrap();
    let read = good(child.wait_with_output().unwrap());
    assert_eq!(read, good(elapid(&["tokenize", &small(), "My fellow"]).output().unwrap()));
    bad(
        elapid(&["tokenize", &small(), "--file", "/dev/zero"]).output().unwrap(),
        1,
        "/dev/zero: cannot read",
    );
}

const SIGNALS: [(&str, i32); 3] = [("INT", 130), ("TERM", 143), ("HUP", 129)];

#[test]
fn a_signal_ends_a_generation_with_its_code() {
    for (signal, expected) in SIGNALS {
        let mut child = elapid(&["run", &small(), "My fellow", "-n", "1000000"]).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 64]).unwrap();
        send(signal, &child);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(expected), Vec::new()), "{signal}");
    }
}

#[test]
fn a_signal_while_the_prompt_is_awaited_ends_the_program() {
    for (signal, expected) in SIGNALS {
        let mut child = elapid(&["run", &small()]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"My fellow").unwrap();
        send(signal, &child);
        assert_eq!(exit_code(child.wait().unwrap()), expected, "{signal}");
    }
}

#[test]
fn a_signal_ends_every_long_command_with_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "My fellow citizens of the Senate. ".repeat(20_000)).unwrap();
    let (tokens, text) = (tokens(0, 30_000), text.to_str().unwrap());
    let array = folder.path().join("x.npy");
    let array = array.to_str().unwrap();
    for args in [
        &["logits", &small(), "--all", "-t", "1", "--tokens", &tokens, "-o", array][..],
        &["perplexity", &small(), "-t", "1", "--file", text],
        &["bench", &small(), "-t", "1", "-p", "1", "-n", "1000000"],
        &["bench", &small(), "-t", "1", "--long", "100000000"],
    ] {
        let child = elapid(args).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        send("TERM", &child);
        let output = child.wait_with_output().unwrap();
        assert_eq!((exit_code(output.status), output.stdout), (143, Vec::new()), "{args:?}");
    }
    assert_eq!(names(folder.path()), ["text"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_standard_error_fails_nothing() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |args: &[&str]| elapid(args).stderr(full()).output().unwrap();
    let text = run(&["run", &small(), "My fellow", "-n", "5", "--seed", "1", "-v"]);
    assert!(text.status.success());
    assert_eq!(text.stdout, run(&["run", &small(), "My fellow", "-n", "5", "--seed", "1"]).stdout);
    assert_eq!(run(&["run", "nowhere.elp", "My fellow"]).status.code(), Some(1));
    assert_eq!(run(&["sing"]).status.code(), Some(2));
}
