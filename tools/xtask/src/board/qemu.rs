//! Running a program under an emulator: its console fed and read, its exit code, and an end to hangs.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::exec::shown;

/// What an emulated program did.
#[derive(Debug)]
pub struct Emulated {
    /// What it wrote to its console.
    pub console: String,
    /// The emulator's exit code, which semihosting passes on from the program.
    pub code: i32,
}

/// Runs `command` with `input` on its console. The console is passed on to ours line by line.
///
/// # Errors
/// If it can't be started, or has not ended after `limit`; what it wrote until then is part of the error.
pub fn emulate(command: &mut Command, input: &[u8], limit: Duration) -> Result<Emulated> {
    let what = shown(command);
    println!("$ {what}");
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = Guard(child.context(|| format!("cannot start `{what}`"))?);
    let (mut stdin, stdout) = (child.0.stdin.take(), child.0.stdout.take());
    let input = input.to_vec();
    thread::spawn(move || {
        // A program that ends early reads no more: that shows in what it wrote.
        if let Some(stdin) = &mut stdin {
            let _ = stdin.write_all(&input).and_then(|()| stdin.flush());
        }
    });
    let (send, received) = mpsc::channel();
    thread::spawn(move || {
        let mut stdout = stdout;
        let mut buffer = [0; 4096];
        while let Some(n) = stdout.as_mut().and_then(|out| out.read(&mut buffer).ok()).filter(|n| *n > 0) {
            if send.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let (end, mut bytes) = (Instant::now() + limit, Vec::new());
    loop {
        match received.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(more) => {
                let _ = std::io::stdout().write_all(&more);
                bytes.extend(more);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let written = String::from_utf8_lossy(&bytes);
                return Err(Error::new(format!(
                    "`{what}` has not ended after {} s; it wrote:\n{written}",
                    limit.as_secs()
                )));
            }
        }
    }
    let status = child.0.wait().context(|| format!("cannot wait for `{what}`"))?;
    let code =
        status.code().ok_or_else(|| Error::new(format!("`{what}` was ended by a signal ({status})")))?;
    Ok(Emulated { console: String::from_utf8_lossy(&bytes).replace('\r', ""), code })
}

/// Ends the emulator whatever happens to us.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_console_goes_both_ways_and_the_code_comes_back() {
        let mut command = Command::new("sh");
        command.args(["-c", "read line; printf 'heard %s\\r\\n' $line; exit 3"]);
        let done = emulate(&mut command, b"you\n", Duration::from_secs(20)).unwrap();
        assert_eq!((done.console.as_str(), done.code), ("heard you\n", 3));
    }

    #[test]
    fn a_hang_ends_in_an_error_with_what_was_written() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo so far; exec sleep 60"]);
        let error = emulate(&mut command, b"", Duration::from_millis(500)).unwrap_err().to_string();
        assert!(error.contains("so far") && error.contains("has not ended"), "{error}");
    }
}
