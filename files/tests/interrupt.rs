//! Signals to a program: this test itself, started again.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use elapid_files::{Output, interrupt};

const TARGET: &str = "ELAPID_TEST_TARGET";
const LISTENS: &str = "ELAPID_TEST_LISTENS";
/// What the program says when it is ready. The test harness says something, too.
const READY: &str = "<ready>";

/// Does nothing in a test: it is the program that the tests start.
#[test]
fn program() {
    let Some(target) = std::env::var_os(TARGET) else { return };
    interrupt::handle().unwrap();
    let mut output = Output::create(target.as_ref()).unwrap();
    output.write_all(b"new").unwrap();
    if std::env::var_os(LISTENS).is_some() {
        interrupt::listen();
    }
    println!("{READY}");
    while interrupt::check().is_continue() {
        std::thread::yield_now();
    }
    println!("{READY}");
    // Nothing more comes of it.
    std::thread::park();
}

fn start(target: &Path, listens: bool, shell: &str) -> Child {
    // Whoever runs the tests may ignore signals, and children inherit that.
    let mut program = Command::new("env");
    program.args(["--default-signal=HUP,INT,TERM", "sh", "-c"]);
    program.arg(format!("{shell} exec \"$0\" --exact program --nocapture"));
    program.arg(std::env::current_exe().unwrap()).env(TARGET, target).stdout(Stdio::piped());
    if listens {
        program.env(LISTENS, "");
    }
    program.spawn().unwrap()
}

fn wait_for_ready(stdout: &mut ChildStdout) {
    let mut said = String::new();
    while !said.ends_with(READY) {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
    }
}

fn send(signal: &str, child: &Child) {
    let kill = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
    assert!(kill.unwrap().success());
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

#[test]
fn a_signal_ends_the_program_and_its_unfinished_file() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    fs::write(&target, "old").unwrap();
    let files = || fs::read_dir(&folder).unwrap().count();
    for listens in [false, true] {
        for (signal, expected) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
            let mut child = start(&target, listens, "");
            let mut stdout = child.stdout.take().unwrap();
            wait_for_ready(&mut stdout);
            assert_eq!(files(), 2);
            send(signal, &child);
            if listens {
                // The first one is seen, and that is all.
                wait_for_ready(&mut stdout);
                assert_eq!((child.try_wait().unwrap(), files()), (None, 2));
                send(signal, &child);
            }
            assert_eq!(code(child.wait().unwrap()), expected, "{signal} {listens}");
            assert_eq!((files(), fs::read(&target).unwrap()), (1, b"old".into()), "{signal} {listens}");
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_program_under_nohup_outlives_its_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = start(&folder.path().join("x"), true, "trap '' HUP;");
    let mut stdout = child.stdout.take().unwrap();
    wait_for_ready(&mut stdout);
    send("HUP", &child);
    send("INT", &child);
    wait_for_ready(&mut stdout);
    send("TERM", &child);
    assert_eq!(code(child.wait().unwrap()), 143);
}
