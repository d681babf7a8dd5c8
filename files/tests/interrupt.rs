//! Signals to a program: this test itself, started again.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use elapid_files::{Output, interrupt};
use elapid_test_support::process::{command, exit_code, send};

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
    let mut program = command("sh");
    program.arg("-c").arg(format!("{shell} exec \"$0\" --exact program --nocapture"));
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
            assert_eq!(exit_code(child.wait().unwrap()), expected, "{signal} {listens}");
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
    assert_eq!(exit_code(child.wait().unwrap()), 143);
}
