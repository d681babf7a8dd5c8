//! The console of a board, typed at by a script: commands, a text with its report, and one that is interrupted.

use std::collections::VecDeque;
use std::fmt;

use elapid_console::Platform;

const PROMPT: &str = "elapid> ";

/// A board whose user types a line at every prompt, and Ctrl-C while the text after some of them is generated.
struct Scripted {
    /// Lines, and how often the board looks for Ctrl-C in the text after one until it is typed.
    lines: VecDeque<(&'static str, Option<u32>)>,
    typed: VecDeque<u8>,
    questions: Option<u32>,
    shown: String,
    ticks: u64,
    ended: Option<bool>,
}

impl fmt::Write for Scripted {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.shown += text;
        Ok(())
    }
}

impl Platform for Scripted {
    fn poll(&mut self) -> Option<u8> {
        self.ticks += 1000;
        if self.typed.is_empty() && self.shown.ends_with(PROMPT) {
            let (line, questions) = self.lines.pop_front().expect("the script ends with /exit");
            self.typed.extend(line.bytes().chain(*b"\r"));
            self.questions = questions;
        }
        let typed = self.typed.pop_front();
        if typed.is_none() {
            self.questions = self.questions.and_then(|left| left.checked_sub(1));
            return (self.questions == Some(0)).then_some(3);
        }
        typed
    }

    fn ticks(&mut self) -> u64 {
        self.ticks
    }

    fn ticks_a_second(&self) -> u32 {
        1_000_000
    }

    fn exit(&mut self, success: bool) {
        self.ended = Some(success);
    }
}

#[test]
fn a_script_is_followed() {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../../host/models/");
    let memory = std::fs::read(format!("{models}address-300k.elp")).expect("the bundled model");
    let prompt = "My fellow citizens";
    let script = [
        ("/speed 9", None),
        ("/n none", None),
        ("/seed 1", None),
        ("/n 2", None),
        (prompt, None),
        ("/n 64", None),
        // It is asked for 3 times in each of the prompt's 5 tokens, and 4 times for a token of the text.
        (prompt, Some(30)),
        (prompt, Some(5)),
        ("/check", None),
        (prompt, None),
        ("/exit", None),
    ];
    let mut board = Scripted {
        lines: script.into(),
        typed: VecDeque::new(),
        questions: None,
        shown: String::new(),
        ticks: 0,
        ended: None,
    };
    elapid_tiny::run(&mut board, memory.leak()).expect("the model that the program is built for");
    assert_eq!(board.ended, Some(true));
    let answers: Vec<&str> = board.shown.split(PROMPT).skip(1).collect();
    let said = |line: usize, what: &str| assert!(answers[line].contains(what), "{what}: {}", board.shown);
    said(0, "`speed 9` is no command; /help lists them");
    said(1, "`n none`: it takes a number, 1 at least");
    // One interval between two tokens has no spread.
    said(4, " to ext\n[prompt: 5 tokens, 333.3 tokens/s; text: 2 tokens, 250.0 tokens/s; seed 1]\n");
    said(6, "; text: 4 tokens, 250.0 ± 0.0 tokens/s; seed 1, interrupted]\n");
    said(7, "\nerror: interrupted\n");

    // With the report that the boards' tests read, the stored one.
    let stored = std::fs::read_to_string(format!("{models}../../tests/snapshots/boards/mps2-an385.txt"));
    let stored = stored.expect("the stored report");
    let lines = stored.lines().filter(|line| !line.starts_with("text "));
    lines.for_each(|line| said(9, &format!("\n--- {line}\n")));
    said(9, "\n--- ending\n--- end\n");
}
