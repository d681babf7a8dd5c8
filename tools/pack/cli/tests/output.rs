//! What the program writes: whole or not at all, and never over what it reads.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use elapid_test_support::process::{command, exit_code, send};

const PROGRAM: &str = env!("CARGO_BIN_EXE_elapid-pack");

/// A configuration of which a packed file has 6 MB.
const CONFIG: &str = r#"{"model_type": "mamba", "hidden_size": 256, "intermediate_size": 512, "state_size": 16,
    "conv_kernel": 4, "time_step_rank": 16, "num_hidden_layers": 8, "vocab_size": 4096, "tie_word_embeddings": true}"#;

struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder with `config.json` in a folder of its own.
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        fs::create_dir(this.path("in")).unwrap();
        fs::write(this.path("in/config.json"), CONFIG).unwrap();
        this
    }

    /// One with a checkpoint in that folder.
    fn with_checkpoint() -> Self {
        let this = Self::new();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/mamba-conv1");
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixture.join(name), this.path("in").join(name)).unwrap();
        }
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn pack(&self, args: &[&str]) -> Command {
        let mut command = command(PROGRAM);
        command.current_dir(&self.0).args(args).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// What is in the folder beside `in`.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "in");
        names.sort();
        names
    }
}

fn random(seed: &str) -> [&str; 4] {
    ["--random", "in/config.json", "--seed", seed]
}

#[track_caller]
fn good(output: Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Asserts that a command ended with `code` and one line that holds `says`.
#[track_caller]
fn bad(output: Output, code: i32, says: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    // Notes on the checkpoint may come before.
    let lines: Vec<_> = error.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert!(matches!(lines[..], [line] if line.starts_with("error: ") && line.contains(says)), "{error}");
}

fn is_packed(path: &Path) -> bool {
    fs::read(path).unwrap().starts_with(b"ELAPID")
}

/// `unshare` with what it needs here to start programs in process namespaces of their own, where each is process 1.
fn unshare() -> Option<Vec<&'static str>> {
    let ways = [vec!["--pid", "--fork"], vec!["--user", "--map-root-user", "--pid", "--fork"]];
    ways.into_iter().find(|way| {
        let output = Command::new("unshare").args(way).args(["sh", "-c", "echo $$"]).output();
        output.is_ok_and(|output| output.stdout == b"1\n")
    })
}

/// As in two containers: the processes have the same number. `ELAPID_ROUNDS=100` has them try that often.
#[test]
fn two_packers_with_one_target_keep_apart() {
    let Some(unshare) = unshare() else {
        println!("skipped: process namespaces can't be made here");
        return;
    };
    let folder = Folder::new();
    let seeds = ["1", "2"];
    let results = seeds.map(|seed| {
        good(folder.pack(&[&random(seed)[..], &["-o", "in/x.elp"]].concat()).output().unwrap());
        fs::read(folder.path("in/x.elp")).unwrap()
    });
    assert!(results[0] != results[1]);
    let rounds = std::env::var("ELAPID_ROUNDS").map_or(5, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let packers = seeds.map(|seed| {
            let mut command = Command::new("unshare");
            command.args(&unshare).arg(PROGRAM).args(random(seed)).args(["-o", "x.elp"]);
            command.current_dir(&folder.0).stderr(Stdio::piped()).spawn().unwrap()
        });
        for packer in packers {
            good(packer.wait_with_output().unwrap());
        }
        let packed = fs::read(folder.path("x.elp")).unwrap();
        assert!(results.contains(&packed), "round {round}: neither result");
        assert_eq!(folder.names(), ["x.elp"], "round {round}");
    }
}

#[test]
fn standard_output_is_refused() {
    let folder = Folder::with_checkpoint();
    bad(folder.pack(&["in", "-o", "-"]).output().unwrap(), 2, "give a file, such as model.elp");
    assert!(folder.names().is_empty());
}

#[test]
fn an_input_is_never_written_over() {
    let folder = Folder::with_checkpoint();
    fs::write(folder.path("in/tokenizer_config.json"), "{}").unwrap();
    fs::write(folder.path("text"), "text").unwrap();
    symlink("in/config.json", folder.path("link.elp")).unwrap();
    fs::hard_link(folder.path("in/model.safetensors"), folder.path("hard.elp")).unwrap();
    let inputs = ["in/config.json", "in/model.safetensors", "in/tokenizer_config.json", "text"];
    let bytes = || inputs.map(|name| fs::read(folder.path(name)).unwrap());
    let before = bytes();
    let calibrated = ["in", "--quant", "q4", "--calibrate", "text", "-o", "text"];
    for (args, says) in [
        (&["in", "-o", "in/config.json"][..], "a file of the checkpoint"),
        (&["in", "-o", "in/model.safetensors"], "a file of the checkpoint"),
        (&["in", "-o", "in/tokenizer_config.json"], "a file of the checkpoint"),
        (&["in", "-o", "link.elp"], "a file of the checkpoint"),
        (&["in", "-o", "hard.elp"], "a file of the checkpoint"),
        (&calibrated, "the text to calibrate on"),
        (&["--random", "in/config.json", "-o", "link.elp"], "the configuration"),
    ] {
        bad(folder.pack(args).output().unwrap(), 2, says);
        assert!(bytes() == before, "{args:?}");
    }
    // Beside the checkpoint there is room for packed files, also a second time.
    for _ in 0..2 {
        good(folder.pack(&["in", "-o", "in/x.elp"]).output().unwrap());
    }
}

#[test]
fn links_are_followed_and_permissions_kept() {
    let folder = Folder::with_checkpoint();
    fs::create_dir(folder.path("disk")).unwrap();
    fs::write(folder.path("disk/x.elp"), "old").unwrap();
    fs::set_permissions(folder.path("disk/x.elp"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("disk/x.elp", folder.path("x.elp")).unwrap();
    good(folder.pack(&["in", "-o", "x.elp"]).output().unwrap());
    assert!(folder.path("x.elp").is_symlink() && is_packed(&folder.path("disk/x.elp")));
    let permissions =
        |mode| fs::set_permissions(folder.path("disk/x.elp"), fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(fs::metadata(folder.path("disk/x.elp")).unwrap().permissions().mode() & 0o777, 0o640);
    permissions(0o400);
    bad(folder.pack(&["in", "-o", "x.elp"]).output().unwrap(), 1, "write-protected");
    assert_eq!(fs::read_dir(folder.path("disk")).unwrap().count(), 1);
}

#[test]
fn devices_stay_devices() {
    let folder = Folder::with_checkpoint();
    good(folder.pack(&["in", "-o", "/dev/null"]).output().unwrap());
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    bad(folder.pack(&["in", "-o", "/dev/full"]).output().unwrap(), 1, "No space left");
    assert!(Command::new("mkfifo").arg(folder.path("fifo")).status().unwrap().success());
    bad(folder.pack(&["in", "-o", "fifo"]).output().unwrap(), 1, "FIFO");
    assert_eq!(folder.names(), ["fifo"]);
}

#[test]
fn a_fifo_for_a_checkpoints_file_is_refused() {
    for (name, code) in [("config.json", 1), ("model.safetensors", 3), ("tokenizer.json", 1)] {
        let folder = Folder::with_checkpoint();
        let _ = fs::remove_file(folder.path("in").join(name));
        assert!(Command::new("mkfifo").arg(folder.path("in").join(name)).status().unwrap().success());
        bad(folder.pack(&["in", "-o", "x.elp"]).output().unwrap(), code, "not a regular file");
        assert!(folder.names().is_empty());
    }
}

/// Runs the program under limits of the shell's.
fn limited(folder: &Folder, limits: &str, args: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits} && exec \"$0\" \"$@\""), PROGRAM]).args(args);
    command.current_dir(&folder.0).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_limit_of_file_sizes_leaves_the_old_file() {
    let folder = Folder::new();
    fs::write(folder.path("x.elp"), "old").unwrap();
    let args = [&random("1")[..], &["-o", "x.elp"]].concat();
    bad(limited(&folder, "ulimit -f 100", &args), 1, "File too large");
    assert_eq!(
        (folder.names(), fs::read(folder.path("x.elp")).unwrap()),
        (vec!["x.elp".into()], b"old".into())
    );
}

#[test]
#[cfg(target_os = "linux")]
fn threads_that_cannot_be_started_are_done_without() {
    let folder = Folder::new();
    let args = |output| [&random("1")[..], &["-t", "8", "-o", output]].concat();
    good(folder.pack(&args("x.elp")).output().unwrap());
    // Two stacks of 1 GiB fit, and seven don't.
    let limits = "export RUST_MIN_STACK=1073741824 && ulimit -v 3000000";
    good(limited(&folder, limits, &args("y.elp")));
    assert!(fs::read(folder.path("x.elp")).unwrap() == fs::read(folder.path("y.elp")).unwrap());
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_standard_error_fails_nothing() {
    let folder = Folder::new();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = folder.pack(&random("1"));
    let status = command.args(["-o", "x.elp"]).stderr(full()).status().unwrap();
    assert!(status.success() && is_packed(&folder.path("x.elp")), "{status}");
    let status = folder.pack(&["nowhere", "-o", "x.elp"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

/// Starts to pack a large model over `x.elp` and returns when it is being written.
fn start_long(folder: &Folder) -> Child {
    let args = ["--random", "mamba-1.4b", "-t", "1", "-o", "x.elp"];
    let mut child = folder.pack(&args).spawn().unwrap();
    while folder.names().len() < 2 {
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn signals_leave_the_old_file_alone() {
    let folder = Folder::new();
    fs::write(folder.path("x.elp"), "old").unwrap();
    for (signal, expected) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let child = start_long(&folder);
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(exit_code(output.status), expected, "{signal}");
        let error = String::from_utf8(output.stderr).unwrap();
        // Before it listens, nothing is said.
        assert!(error.is_empty() || error == "error: interrupted; the file was not written\n", "{error}");
        assert_eq!(
            (folder.names(), fs::read(folder.path("x.elp")).unwrap()),
            (vec!["x.elp".into()], b"old".into())
        );
    }
}

#[test]
fn what_a_killed_packer_leaves_is_removed_by_the_next_one() {
    let folder = Folder::new();
    fs::write(folder.path("x.elp"), "old").unwrap();
    let mut child = start_long(&folder);
    // One that runs is left alone.
    good(folder.pack(&[&random("1")[..], &["-o", "y.elp"]].concat()).output().unwrap());
    assert_eq!(folder.names().len(), 3);
    send("KILL", &child);
    child.wait().unwrap();
    assert_eq!(folder.names().len(), 3);
    good(folder.pack(&[&random("1")[..], &["-o", "y.elp"]].concat()).output().unwrap());
    assert_eq!(folder.names(), ["x.elp", "y.elp"]);
    assert_eq!(fs::read(folder.path("x.elp")).unwrap(), b"old");
}
