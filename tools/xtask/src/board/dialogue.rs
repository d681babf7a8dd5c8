//! Talking to a program under an emulator: wait for what it says, then answer.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::exec::shown;

/// An emulator with a program whose console is its standard input and output.
pub struct Dialogue {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    received: Receiver<Vec<u8>>,
    /// What was written and not waited for yet, without carriage returns.
    rest: String,
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
        Ok(Self { what, child, stdin, received, rest: String::new(), patience })
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let what = &self.what;
        let stdin = self.stdin.as_mut().ok_or_else(|| Error::new("the console is closed"))?;
        let sent = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
        sent.context(|| format!("cannot type on the console of `{what}`"))
    }

    /// Waits until `text` was written, and returns what was written before and including it. Wrong where another one of
    /// `wrong` comes first.
    pub fn until(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + self.patience;
        loop {
            if let Some(at) = self.rest.find(text) {
                let after = self.rest.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.rest, after));
            }
            if !self.receive(end)? {
                return Err(self.disappointed(&format!("ended before it wrote {text:?}")));
            }
        }
    }

    /// Waits for the emulator's end and returns what was written since the last wait.
    pub fn end(mut self) -> Result<String> {
        let end = Instant::now() + self.patience;
        while self.receive(end)? {}
        let status = self.child.wait().context(|| format!("cannot wait for `{}`", self.what))?;
        if status.success() {
            Ok(std::mem::take(&mut self.rest))
        } else {
            Err(self.disappointed(&format!("failed ({status})")))
        }
    }

    /// Takes what comes next. False at the end.
    fn receive(&mut self, end: Instant) -> Result<bool> {
        match self.received.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                // Characters that are cut between two reads are rare enough, and only shown or compared by parts.
                let text = String::from_utf8_lossy(&bytes).replace('\r', "");
                print!("{text}");
                let _ = std::io::stdout().flush();
                self.rest.push_str(&text);
                Ok(true)
            }
            Err(RecvTimeoutError::Disconnected) => Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.disappointed(&format!("said nothing more for {} s", self.patience.as_secs())))
            }
        }
    }

    fn disappointed(&self, why: &str) -> Error {
        Error::new(format!("`{}` {why}; the last it wrote:\n{}", self.what, self.rest))
    }
}

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

    fn shell(script: &str) -> Dialogue {
        Dialogue::start(Command::new("sh").args(["-c", script]), Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn both_sides_are_heard() {
        let mut dialogue = shell("printf 'name? '; read name; printf 'hello %s\\r\\nand goodbye\\n' $name");
        assert_eq!(dialogue.until("? ").unwrap(), "name? ");
        dialogue.send("you\n").unwrap();
        assert_eq!(dialogue.until("hello you\n").unwrap(), "hello you\n");
        assert_eq!(dialogue.end().unwrap(), "and goodbye\n");
    }

    #[test]
    fn silence_an_early_end_and_failure_are_errors() {
        let mut dialogue = shell("echo something else");
        assert!(dialogue.until("hello").unwrap_err().to_string().contains("something else"));
        let hang =
            Dialogue::start(Command::new("sh").args(["-c", "exec sleep 60"]), Duration::from_millis(300));
        assert!(hang.unwrap().until("hello").unwrap_err().to_string().contains("said nothing more"));
        assert!(shell("exit 3").end().is_err());
    }
}
