//! A server that runs as a process of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};

use elapid_test_support::process::{command, send};

/// `elapid serve` on a free port. It is killed when this is dropped.
pub struct Serving {
    pub child: Child,
    /// Such as `http://127.0.0.1:1234`.
    pub address: String,
    /// What it says after its address.
    #[allow(dead_code, reason = "not every test reads it")]
    pub says: BufReader<ChildStderr>,
}

impl Serving {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = command(env!("CARGO_BIN_EXE_elapid"));
        command.args(["serve", "--port", "0"]).args(arguments);
        Self::of(command)
    }

    pub fn of(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut says = BufReader::new(child.stderr.take().expect("its standard error is a pipe"));
        let mut lines = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(says.read_line(&mut line).unwrap() > 0, "it ended: {lines}");
            if let Some((_, rest)) = line.split_once("serving at ") {
                break rest.split(' ').next().unwrap_or_default().to_owned();
            }
            lines.push_str(&line);
        };
        Self { child, address, says }
    }

    /// Ends it by a signal.
    #[allow(dead_code, reason = "not every test does")]
    pub fn signal(&self, signal: &str) {
        send(signal, &self.child);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
