//! The program, from outside: outputs, exit codes, signals and closed pipes.

mod arguments;
mod chat;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod local;
mod prompt_cache;
mod run;
mod session;
mod templates;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use elapid_test_support::process::{command, send};

fn elapid(args: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_elapid"));
    command.args(args).stdin(Stdio::null());
    command
}

fn model(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name).to_str().unwrap().into()
}

fn small() -> String {
    model("address-300k.elp")
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("whole characters")
}

/// What a command that must succeed, with nothing to say on standard error, writes. Tests use more threads than a small
/// machine has cores.
#[track_caller]
fn good(args: &[&str]) -> String {
    let output = elapid(args).output().unwrap();
    let errors = utf8(output.stderr);
    let said: Vec<&str> = errors.lines().filter(|line| !line.contains(" threads on ")).collect();
    assert!(said.is_empty(), "{args:?}: {said:?}");
    assert_eq!(output.status.code(), Some(0), "{args:?}");
    utf8(output.stdout)
}

/// Asserts that a command ends with `code` and one line that holds `says`, and writes nothing.
#[track_caller]
fn bad(output: Output, code: i32, says: &str) {
    let (out, error) = (utf8(output.stdout), utf8(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.starts_with("error: ") && error.contains(says), "{error}");
    assert_eq!((error.matches('\n').count(), out.as_str()), (1, ""), "{error}");
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn floats(value: &serde_json::Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn bad_models_have_their_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.elp");
    let path = file.to_str().unwrap();
    let info = || elapid(&["info", path]).output().unwrap();
    bad(info(), 1, "x.elp: cannot open");
    let whole = fs::read(small()).unwrap();
    for (bytes, says) in
        [(&whole[..0], "0 bytes"), (&whole[..200], "200 bytes"), (&whole[..9000], "cut short")]
    {
        fs::write(&file, bytes).unwrap();
        bad(info(), 3, says);
    }
    fs::write(&file, "Call me Ishmael.".repeat(99)).unwrap();
    bad(info(), 3, "not a packed model");
    let (code, says) = if cfg!(feature = "hub") { (3, "no config.json here") } else { (2, "a folder") };
    bad(elapid(&["run", folder.path().to_str().unwrap(), "x"]).output().unwrap(), code, says);
}

#[test]
fn verify_names_what_is_damaged() {
    assert!(good(&["verify", &small()]).contains("blocks are as they were written"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.elp");
    let mut bytes = fs::read(small()).unwrap();
    let sections = json(&good(&["info", &small(), "--json"]));
    let layer = sections["sections"].as_array().unwrap().iter().find(|s| s["name"] == "layer 2").unwrap();
    let offset = layer["offset"].as_u64().unwrap();
    bytes[offset as usize] ^= 1;
    fs::write(&file, bytes).unwrap();
    let output = elapid(&["verify", file.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let expected = format!("damaged: block 0 of section layer 2 (offset {offset}");
    assert!(utf8(output.stdout).starts_with(&expected));
    assert!(utf8(output.stderr).contains(&expected));
    let logits = elapid(&["logits", file.to_str().unwrap(), "--tokens", "1"]).output().unwrap();
    bad(logits, 3, "section layer 2");
}

#[test]
fn logits_are_the_same_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let last = json(&good(&["logits", &small(), "--tokens", "5,6,7"]));
    let all = json(&good(&["logits", &small(), "--tokens", "5,6,7", "--all", "--json", "-t", "2"]));
    assert_eq!(last["tokens"], json("[5,6,7]"));
    assert_eq!(all["logits"].as_array().unwrap().len(), 3);
    let rows: Vec<f32> = all["logits"].as_array().unwrap().iter().flat_map(floats).collect();
    assert_eq!(rows[2 * 1024..], floats(&last["logits"]));
    for (args, shape, expected) in [(&["--all"][..], "(3,1024,)", &rows[..]), (&[], "(1024,)", &rows[2048..])]
    {
        let file = folder.path().join("l.npy");
        let path = file.to_str().unwrap();
        assert_eq!(good(&[&["logits", &small(), "--tokens", "5,6,7", "-o", path], args].concat()), "");
        let bytes = fs::read(&file).unwrap();
        let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert!(utf8(bytes[10..start].to_vec()).contains(shape));
        let data: Vec<f32> = bytes[start..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(data, expected);
        let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["l.npy"], "no .part is left");
    }
    let ids = json(&good(&["tokenize", &small(), "My fellow"]));
    assert_eq!(json(&good(&["logits", &small(), "--text", "My fellow"]))["tokens"], ids);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_and_a_device_stays_one() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("full");
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    let args = ["logits", &small(), "--tokens", "1", "-o", link.to_str().unwrap()];
    bad(
        elapid(&args).output().unwrap(),
        1,
        "cannot write: No space left on device (os error 28): free some space",
    );
    assert!(link.is_symlink(), "it was replaced");
    let printed = elapid(&["logits", &small(), "--tokens", "1", "-o", "/dev/stdout"]).output().unwrap();
    assert!(printed.status.success() && printed.stdout.starts_with(b"\x93NUMPY"));
}

#[test]
fn perplexity_is_near_that_of_transformers() {
    let text = elapid_test_support::data::held_out_text();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/perplexity.json");
    let golden = json(&fs::read_to_string(golden).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("held-out.txt");
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    for name in ["address-300k", "address-4m"] {
        let path = model(&format!("{name}.elp"));
        let args = ["perplexity", &path, "--file", file, "--max-tokens", "4096"];
        let report = json(&good(&[&args[..], &["--json"]].concat()));
        assert_eq!(report["tokens"], 4096);
        let ours = report["perplexity"].as_f64().unwrap();
        let theirs = golden["models"][name]["perplexity"].as_f64().unwrap();
        // q8 against float32.
        assert!((ours / theirs - 1.0).abs() < 2e-3, "{name}: {ours}, transformers {theirs}");
        assert_eq!(good(&args), format!("perplexity {ours:.4} over 4096 tokens\n"));
    }
}

#[test]
fn perplexity_needs_two_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    let run = |text: &str| {
        fs::write(&file, text).unwrap();
        elapid(&["perplexity", &small(), "--file", file.to_str().unwrap()]).output().unwrap()
    };
    bad(run(""), 2, "the text is empty");
    bad(run("a"), 2, "only one token");
    assert_eq!(run("a b c").status.code(), Some(0));
}

#[test]
fn reports_have_their_names() {
    let info = json(&good(&["info", &small(), "--json"]));
    assert_eq!((&info["arch"], &info["quant"]), (&json("\"mamba\""), &json("\"q8\"")));
    assert_eq!(info["config"]["n_layer"], 4);
    assert_eq!(info["sections"][0]["name"], "checksums");
    for name in ["offset", "bytes", "blocks"] {
        assert!(info["sections"][0][name].is_u64(), "{name}");
    }
    assert!(good(&["info", &small()]).contains("layer 3"));
    let board = json(&good(&["info", &small(), "--json", "--board", "mps2-an385"]))["board"].clone();
    assert_eq!((&board["board"], &board["fits"]), (&json("\"mps2-an385\""), &json("true")));
    assert!(good(&["info", &small(), "--board", "mps2-an385"]).contains("of one token"));
    bad(elapid(&["info", &small(), "--board", "pdp-11"]).output().unwrap(), 2, "mps2-an500");
    let bench = json(&good(&["bench", &small(), "-p", "16", "-n", "4", "-t", "2", "--json"]));
    for name in ["prefill_tps", "decode_tps", "read_gbps", "machine_read_gbps", "ratio"] {
        assert!(bench[name].as_f64().is_some_and(|x| x > 0.0 && x.is_finite()), "{name}: {bench}");
    }
    assert_eq!(bench["threads"], 2);
    let bytes = bench["bytes_per_token"].as_u64().unwrap();
    let weights = info["sections"].as_array().unwrap().iter().filter(|s| {
        let name = s["name"].as_str().unwrap();
        name.starts_with("layer") || name == "embedding" || name == "final norm"
    });
    let weights: u64 = weights.map(|s| s["bytes"].as_u64().unwrap()).sum();
    assert!(bytes < weights && bytes > weights / 2, "{bytes} of {weights}");
    if cfg!(target_os = "linux") {
        assert!(bench["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    }
    assert!(good(&["bench", &small(), "-p", "16", "-n", "4"]).contains("tokens/s"));
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let ids = vec!["1"; 2000].join(",");
    for args in [
        &["run", &small(), "My fellow", "-n", "1000000"][..],
        &["logits", &small(), "--all", "--tokens", &ids],
    ] {
        let mut child = elapid(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 8];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), utf8(output.stderr)), (Some(0), String::new()), "{args:?}");
    }
    // Short output that is written at once, to nobody.
    let mut child =
        elapid(&["info", &small()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), utf8(output.stderr)), (Some(0), String::new()));
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_generation_whole() {
    let args = ["run", &small(), "My fellow", "-n", "1000000", "--seed", "1", "-v"];
    let mut child = elapid(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut text = vec![0; 64];
    stdout.read_exact(&mut text).unwrap();
    send("INT", &child);
    stdout.read_to_end(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let summary = utf8(output.stderr);
    assert!(summary.contains("interrupted") && summary.contains("seed 1"), "{summary}");
    // All that was made is there: the same number of tokens asked for gives the same text.
    let tokens = summary.split("text: ").nth(1).and_then(|s| s.split(' ').next()).unwrap();
    assert_eq!(utf8(text), good(&["run", &small(), "My fellow", "--seed", "1", "-n", tokens]));
}

#[test]
#[cfg(unix)]
fn a_second_ctrl_c_ends_the_program() {
    // Its output fills the pipe, and it waits for a reader that never reads.
    let ids = vec!["1"; 2000].join(",");
    let args = ["logits", &small(), "--all", "--tokens", &ids];
    let mut child = elapid(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 8]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    send("INT", &child);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(child.try_wait().unwrap(), None, "the first one lets it finish its line");
    send("INT", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// A folder with the parts of a system that `elapid board` looks at.
fn system(compatible: &[u8], model: &[u8]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("proc/device-tree");
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("compatible"), compatible).unwrap();
    fs::write(tree.join("model"), model).unwrap();
    let meminfo = "MemTotal:         436656 kB\nMemFree:   9 kB\nMemAvailable:     262144 kB\n";
    fs::write(root.path().join("proc/meminfo"), meminfo).unwrap();
    root
}

#[test]
fn the_board_and_what_suits_it() {
    let zero = system(b"raspberrypi,model-zero-2-w\0brcm,bcm2837\0", b"Raspberry Pi Zero 2 W Rev 1.0\0");
    let root = zero.path().to_str().unwrap();
    let said = json(&good(&["board", &small(), "--json", "--root", root]));
    assert_eq!(said["board"], "Raspberry Pi Zero 2 W");
    assert_eq!(said["model"], "Raspberry Pi Zero 2 W Rev 1.0");
    assert_eq!(said["memory_bytes"], 436_656 << 10);
    // 256 MiB are free: an eighth is left, and on this board 32 MiB more.
    assert_eq!(said["ram_auto_bytes"], (256 - 32 - 32) << 20);
    let text = good(&["board", &small(), "--root", root]);
    for line in ["board        Raspberry Pi Zero 2 W Rev 1.0", "memory       426 MiB", "--ram auto   192 MiB"]
    {
        assert!(text.lines().any(|said| said == line), "{text}");
    }

    // Another machine: the bytes of a device tree may be anything, and none of them may reach a terminal as they are.
    let odd = system(b"\xff\0\x1b[2J", b"\x1b[2Jboard\xff\0");
    let text = good(&["board", "--root", odd.path().to_str().unwrap()]);
    assert!(text.contains("another board") && !text.contains('\u{1b}'), "{text:?}");
    let nothing = tempfile::tempdir().unwrap();
    let said = json(&good(&["board", "--json", "--root", nothing.path().to_str().unwrap()]));
    assert_eq!((&said["board"], said["memory_bytes"].is_null()), (&"a computer".into(), true));

    // This one, and a file that is not there.
    let here = json(&good(&["board", "--json"]));
    assert!(here["threads"].as_u64().is_some_and(|n| n > 0) && here["reads"].as_u64().is_some_and(|n| n > 0));
    bad(elapid(&["board", "no-such-model.elp"]).output().unwrap(), 1, "no-such-model.elp");
}

#[test]
fn a_packages_files_come_from_the_programs_arguments() {
    let folder = tempfile::tempdir().unwrap();
    good(&["package", folder.path().to_str().unwrap()]);
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect(name);
    // Every command and option is in each, but what is hidden.
    for name in [
        "usr/share/bash-completion/completions/elapid",
        "usr/share/zsh/vendor-completions/_elapid",
        "usr/share/fish/vendor_completions.d/elapid.fish",
    ] {
        let text = read(name);
        for word in ["perplexity", "board", "repeat-penalty"] {
            assert!(text.contains(word), "{name} lacks {word}");
        }
        for word in ["package", "plain-reads"] {
            assert!(!text.contains(word), "{name} has {word}, which is hidden");
        }
    }
    for (name, word) in
        [("elapid.1", "elapid\\-run"), ("elapid-run.1", "repeat\\-penalty"), ("elapid-board.1", "json")]
    {
        let text = read(&format!("usr/share/man/man1/{name}"));
        assert!(text.contains(".TH") && text.contains(word), "{name}: {text}");
        assert!(!text.contains("plain"), "{name} has a hidden option");
    }
    assert!(!folder.path().join("usr/share/man/man1/elapid-package.1").exists());
    let file = folder.path().join("a-file");
    fs::write(&file, "").unwrap();
    bad(elapid(&["package", file.to_str().unwrap()]).output().unwrap(), 1, "a-file");
}
