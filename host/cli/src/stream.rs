//! A text on its way to standard output, and what is reported of it.

use std::io::{self, StdoutLock, Write};
use std::ops::ControlFlow;

use elapid::{End, Event};
use elapid_files::interrupt;
use serde::Serialize;

use super::bar::{Bar, Status};
use super::output;
use crate::error::Error;

/// What a run was, as one line.
#[derive(Serialize)]
pub(super) struct Report {
    pub text: String,
    /// Generated.
    pub tokens: usize,
    /// All before the text, those of a session among them.
    pub prompt_tokens: usize,
    /// Those of them that were not computed.
    pub cached_tokens: usize,
    /// Tokens that the model computed, those of the text among them.
    pub computed_tokens: usize,
    pub seed: u64,
    pub end: &'static str,
}

/// Why a text ended, in JSON.
pub(super) fn end_name(end: Option<End>) -> &'static str {
    match end {
        Some(End::Eos) => "eos",
        Some(End::Stop) => "stop",
        Some(End::Interrupted) => "interrupted",
        _ => "length",
    }
}

/// Writes text to standard output at once, or keeps it, and shows on a terminal how far slow work has come.
pub(super) struct Stream {
    pub(super) out: StdoutLock<'static>,
    /// The text, if it is for the end.
    pub(super) kept: Option<String>,
    bar: Option<Bar>,
    status: Status,
    pub(super) newline: bool,
}

impl Stream {
    pub(super) fn new(kept: Option<String>, bar: Option<Bar>, status: Status) -> Self {
        Self { out: io::stdout().lock(), kept, bar, status, newline: false }
    }

    pub(super) fn take(&mut self, event: Event<'_>) -> Result<ControlFlow<()>, Error> {
        match event {
            Event::Text(text) => {
                self.bar = None;
                self.status.clear();
                self.newline = text.ends_with('\n');
                if let Some(kept) = &mut self.kept {
                    kept.push_str(text);
                    return Ok(interrupt::check());
                }
                self.out
                    .write_all(text.as_bytes())
                    .and_then(|()| self.out.flush())
                    .map_err(output::failed)?;
            }
            Event::Prompt(progress) => match &self.bar {
                Some(bar) if progress.done < progress.total => bar.set(progress.done, progress.total),
                _ => {
                    self.bar = None;
                    self.status.clear();
                }
            },
            Event::Layer(progress) => self.status.set(progress),
            _ => {}
        }
        Ok(interrupt::check())
    }
}
