//! A program under an emulator: its console fed and read, its exit code, and an end to hangs.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::exec::shown;

/// What an emulated program did.
#[derive(Debug)]
pub struct Emulated {
    /// What it wrote to its console; in a dialogue, since the last wait.
    pub console: String,
    /// The emulator's exit code, which semihosting passes on from the program.
    pub code: i32,
}

/// Runs `command` with `input` on its console, all at once. The console is passed on to ours.
///
/// # Errors
/// If it can't be started, or has not ended after `limit`; what it wrote until then is part of the error.
pub fn emulate(command: &mut Command, input: &str, limit: Duration) -> Result<Emulated> {
    let mut dialogue = Dialogue::start(command, limit)?;
    // A program that ends early reads no more: that shows in what it wrote.
    let _ = dialogue.send(input);
    dialogue.end()
}

/// A conversation with a program whose console is its emulator's standard input and output: wait for what it says, then
/// answer.
pub struct Dialogue {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    received: Receiver<Vec<u8>>,
    /// What was written and not waited for yet, without carriage returns.
    rest: Vec<u8>,
    /// How long one answer may take.
    patience: Duration,
}

impl Dialogue {
    /// Starts `command`. What it writes is passed on to our standard output.
    pub fn start(command: &mut Command, patience: Duration) -> Result<Self> {
        let what = shown(command);
        println!("$ {what}");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.context(|| format!("cannot start `{what}`"))?;
        let stdin = child.stdin.take();
        let mut stdout = child.stdout.take();
        let (send, received) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Some(n) = stdout.as_mut().and_then(|out| out.read(&mut buffer).ok()).filter(|n| *n > 0)
            {
                if send.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { what, child, stdin, received, rest: Vec::new(), patience })
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let what = &self.what;
        let stdin = self.stdin.as_mut().ok_or_else(|| Error::new("the console is closed"))?;
        let sent = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
        sent.context(|| format!("cannot type on the console of `{what}`"))
    }

    /// Waits until `text` was written, and returns what was written before and including it.
    pub fn until(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + self.patience;
        loop {
            let found = self.rest.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                let after = self.rest.split_off(at + text.len());
                let before = std::mem::replace(&mut self.rest, after);
                return Ok(String::from_utf8_lossy(&before).into_owned());
            }
            if !self.receive(end)? {
                return Err(self.disappointed(&format!("ended before it wrote {text:?}")));
            }
        }
    }

    /// Waits for the emulator's end.
    pub fn end(mut self) -> Result<Emulated> {
        let end = Instant::now() + self.patience;
        while self.receive(end)? {}
        let status = self.child.wait().context(|| format!("cannot wait for `{}`", self.what))?;
        match status.code() {
            Some(code) => Ok(Emulated { console: String::from_utf8_lossy(&self.rest).into_owned(), code }),
            None => Err(self.disappointed(&format!("was ended by a signal ({status})"))),
        }
    }

    /// Takes what comes next. False at the end.
    fn receive(&mut self, end: Instant) -> Result<bool> {
        match self.received.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(&bytes).and_then(|()| out.flush());
                self.rest.extend(bytes.into_iter().filter(|byte| *byte != b'\r'));
                Ok(true)
            }
            Err(RecvTimeoutError::Disconnected) => Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                Err(self
                    .disappointed(&format!("has not ended or answered after {} s", self.patience.as_secs())))
            }
        }
    }

    fn disappointed(&self, why: &str) -> Error {
        let rest = String::from_utf8_lossy(&self.rest);
        Error::new(format!("`{}` {why}; the last it wrote:\n{rest}", self.what))
    }
}

/// Ends the emulator whatever happens to us.
impl Drop for Dialogue {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_console_goes_both_ways_and_the_code_comes_back() {
        let mut command = shell("read line; printf 'heard %s\\r\\n' $line; exit 3");
        let done = emulate(&mut command, "you\n", PATIENCE).unwrap();
        assert_eq!((done.console.as_str(), done.code), ("heard you\n", 3));
    }

    #[test]
    fn a_hang_ends_in_an_error_with_what_was_written() {
        let mut command = shell("echo so far; exec sleep 60");
        let error = emulate(&mut command, "", Duration::from_millis(500)).unwrap_err().to_string();
        assert!(error.contains("so far") && error.contains("has not ended"), "{error}");
    }

    #[test]
    fn both_sides_are_heard_in_turn() {
        let mut command = shell("printf 'name? '; read name; printf 'hello %s\\r\\nand goodbye\\n' $name");
        let mut dialogue = Dialogue::start(&mut command, PATIENCE).unwrap();
        assert_eq!(dialogue.until("? ").unwrap(), "name? ");
        dialogue.send("you\n").unwrap();
        assert_eq!(dialogue.until("hello you\n").unwrap(), "hello you\n");
        assert_eq!(dialogue.end().unwrap().console, "and goodbye\n");
    }

    #[test]
    fn an_end_before_the_words_is_an_error_with_what_was_written() {
        let mut dialogue = Dialogue::start(&mut shell("echo something else"), PATIENCE).unwrap();
        assert!(dialogue.until("hello").unwrap_err().to_string().contains("something else"));
    }
}
