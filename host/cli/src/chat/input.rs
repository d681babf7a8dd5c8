//! Where messages come from: a line editor on a terminal, lines of standard input otherwise.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal};

use elapid_files::interrupt;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Editor, Helper};

use crate::error::Error;

/// The prompt.
const PROMPT: &str = "> ";

/// What was read.
pub(super) enum Line {
    Message(String),
    /// It begins with a slash.
    Command(String),
    /// A line that is no message.
    Bad(String),
    End,
}

/// Where messages come from.
pub(super) enum Input {
    Terminal(Box<Terminal>),
    Lines { json: bool },
}

/// A line editor. There is one for the whole chat: lines that were typed ahead are in its buffer.
pub(super) struct Terminal(Editor<Help, MemHistory>);

/// Helps to edit a line: it continues after a backslash, and the prompt has a colour.
pub(super) struct Help {
    colour: bool,
}

impl Helper for Help {}
impl Completer for Help {
    type Candidate = String;
}
impl Hinter for Help {
    type Hint = String;
}

impl Highlighter for Help {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        if self.colour { format!("\x1b[1;32m{prompt}\x1b[0m").into() } else { prompt.into() }
    }
}

impl Validator for Help {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let goes_on = context.input().ends_with('\\');
        Ok(if goes_on { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Input {
    /// Call it before signals are handled: the editor takes SIGINT for itself, and answers are to be stopped by it.
    pub(super) fn new(json: bool) -> Result<Self, Error> {
        if json || !io::stdin().is_terminal() {
            return Ok(Self::Lines { json });
        }
        // Where standard output is a file, the prompt is no part of it.
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().auto_add_history(true).behavior(behavior).build();
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(failed)?;
        editor.set_helper(Some(Help { colour }));
        Ok(Self::Terminal(Box::new(Terminal(editor))))
    }

    /// Whether a line editor reads them.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next message or command that is not empty. On a terminal, the line begins with `prefilled`.
    pub(super) fn next(&mut self, prefilled: &str) -> Result<Line, Error> {
        loop {
            let (text, json) = match self {
                Self::Terminal(terminal) => match terminal.0.readline_with_initial(PROMPT, (prefilled, "")) {
                    Ok(text) => (text.replace("\\\n", "\n"), false),
                    // Ctrl-C leaves the line, not the chat.
                    Err(ReadlineError::Interrupted) => continue,
                    Err(ReadlineError::Eof) => return Ok(Line::End),
                    Err(error) => return Err(failed(error)),
                },
                Self::Lines { json } => match read_line()? {
                    Some(text) => (text, *json),
                    None => return Ok(Line::End),
                },
            };
            if text.trim().is_empty() {
                continue;
            }
            return Ok(if json { from_json(&text) } else { from_text(text) });
        }
    }
}

fn failed(error: ReadlineError) -> Error {
    let cause = match error {
        ReadlineError::Io(cause) => cause,
        other => io::Error::other(other.to_string()),
    };
    Error::file("the terminal", "read", cause)
}

/// A line of standard input without its end.
fn read_line() -> Result<Option<String>, Error> {
    let mut bytes = Vec::new();
    // While nothing is computed, a signal ends the program.
    interrupt::end_at_once();
    let count = io::stdin().lock().read_until(b'\n', &mut bytes);
    interrupt::listen();
    let count = count.map_err(|cause| Error::file("standard input", "read", cause))?;
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    let text = String::from_utf8(bytes).map_err(|bad| {
        Error::Usage(format!(
            "standard input is not UTF-8 text (byte {} of a line is not valid): convert it to UTF-8 first",
            bad.utf8_error().valid_up_to()
        ))
    })?;
    Ok((count > 0).then_some(text))
}

fn from_text(text: String) -> Line {
    match text.strip_prefix('/') {
        Some(message) if message.starts_with('/') => Line::Message(message.to_owned()),
        Some(_) => Line::Command(text),
        None => Line::Message(text),
    }
}

/// A JSON string, or an object with `content` or `command`.
fn from_json(text: &str) -> Line {
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return Line::Bad(format!("not a line of JSON: {error}")),
    };
    let field = |name| value.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    match (value.as_str(), field("content"), field("command")) {
        (Some(text), ..) => Line::Message(text.to_owned()),
        (_, Some(text), _) => Line::Message(text),
        (_, _, Some(text)) => Line::Command(text),
        _ => Line::Bad("give a JSON string, or an object with the string `content` or `command`".into()),
    }
}
