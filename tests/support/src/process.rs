//! Programs that tests start and signal.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};

/// A command that starts `program` with the usual effect of SIGHUP, SIGINT and SIGTERM: whoever runs the tests may ignore
/// signals, and children inherit that.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,TERM").arg(program);
    command
}

/// Sends a signal by its name, such as `INT`.
///
/// # Panics
/// If it can't be sent.
pub fn send(signal: &str, child: &Child) {
    // The shell's own `kill`: a program of that name is not everywhere.
    let kill = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
    assert!(kill.expect("a shell").success(), "SIG{signal}");
}

/// The exit code as a shell gives it: 128 and the signal's number for a program that died of one.
///
/// # Panics
/// If the program neither ended nor died.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().expect("it has ended"))
}
