//! A session's past: saved, read, copied and undone.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use elapid_core::model::snapshot::{About, Saved, SnapshotError};
use elapid_files::{Output, open_regular};

use crate::Error;
use crate::error::SessionFault;
use crate::message::Message;
use crate::model::Model;
use crate::past::{Past, Snapshot};
use crate::session::{Sequence, Session, Watch};
use crate::session_file::{self, Contents, Opened, Writer};
use crate::state::Logits;

/// How a session is saved.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SaveOptions {
    /// The messages of a chat, which are kept as they are.
    pub messages: Vec<Message>,
    /// Store a recurrent state in f32 as f16. The file is smaller; a text that continues from it differs, because bits are lost.
    pub half: bool,
}

impl SaveOptions {
    /// Sets [`SaveOptions::messages`].
    #[must_use]
    pub fn messages(self, messages: impl Into<Vec<Message>>) -> Self {
        Self { messages: messages.into(), ..self }
    }
    /// Sets [`SaveOptions::half`].
    #[must_use]
    pub fn half(self, half: bool) -> Self {
        Self { half, ..self }
    }
}

/// What a session file held beside the session's own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The messages of the chat.
    pub messages: Vec<Message>,
    /// Bits were lost when it was saved: see [`SaveOptions::half`].
    pub half: bool,
}

/// How the tokens of [`Session::feed_to`] came to be in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reused {
    /// Tokens that were there.
    pub cached: usize,
    /// Tokens that were computed, replayed ones among them.
    pub computed: usize,
}

impl Reused {
    pub(crate) fn new(cached: usize, computed: usize) -> Self {
        Self { cached, computed }
    }
}

impl Session {
    /// All tokens that the session was fed, those of a step that was interrupted too.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.past.tokens
    }

    /// What the last generation did not feed: the token that it chose last, where a limit or a stop text ended the text, or the rest of a
    /// prompt that was interrupted. It is saved with the session, and [`GenerateOptions::go_on`](crate::GenerateOptions::go_on) feeds it.
    #[must_use]
    pub fn pending(&self) -> &[u32] {
        &self.past.pending
    }

    /// The seed and the sampler's settings of the last generation.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.past.sampler.as_ref().map(|(_, seed)| *seed)
    }

    /// The points that are marked, as tokens before them.
    pub fn marks(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.past.marks.points()
    }

    /// Marks this point: [`Session::undo`] and [`Session::truncate`] return to it without computing anything. Does nothing if
    /// [`SessionOptions::marks`](crate::SessionOptions::marks) has no room for a copy of the state.
    ///
    /// # Errors
    /// [`Error::Memory`], what [`Session::logits`] returns, and [`Error::Step`] while a step is suspended.
    pub fn mark(&mut self) -> Result<(), Error> {
        let at = self.past.tokens.len();
        if at > 0 && self.past.marks.wanted() && self.past.marks.points().next_back() != Some(at) {
            let snapshot = self.snapshot()?;
            self.past.marks.set(at, snapshot);
        }
        Ok(())
    }

    /// A copy of the state and of the logits after the last token.
    pub(crate) fn snapshot(&mut self) -> Result<Snapshot, Error> {
        let logits = self.last_logits()?;
        Ok(Snapshot::new(self.sequence.memory.keep(0)?, logits))
    }

    /// The logits after the last token, if there is one.
    pub(crate) fn last_logits(&mut self) -> Result<Option<Logits>, Error> {
        last_logits(self.lease.model(), &mut self.sequence, &self.past)
    }

    /// Goes back to the last mark before this point, or to the beginning, and returns how many tokens are left.
    ///
    /// # Errors
    /// [`Error::Step`] if marks are of another session.
    pub fn undo(&mut self) -> Result<usize, Error> {
        let here = self.past.tokens.len();
        let to = self.marks().rev().find(|at| *at < here).unwrap_or(0);
        self.truncate(to)?;
        Ok(to)
    }

    /// Forgets all but the first `tokens` tokens, and returns how many were computed again: none if the point is marked, and those since
    /// the last mark before it otherwise.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn truncate(&mut self, tokens: usize) -> Result<usize, Error> {
        self.truncate_watched(tokens, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Session::truncate`], telling `watch` how far it is.
    ///
    /// # Errors
    /// As [`Session::feed_watched`]. After an interruption the session has fewer tokens than were asked for.
    pub fn truncate_watched(&mut self, tokens: usize, watch: &mut Watch<'_>) -> Result<usize, Error> {
        let suspended = self.sequence.memory.suspended();
        if tokens >= self.past.tokens.len() && !suspended {
            return Ok(0);
        }
        let tokens = tokens.min(self.past.tokens.len());
        // A mark without logits is good only for what is before the point.
        let mark = self.past.marks.last_before(tokens, |at, mark| at < tokens || mark.logits().is_some());
        let again = self.past.tokens.split_off(mark.as_ref().map_or(0, |(at, _)| *at));
        let again = again[..tokens - self.past.tokens.len()].to_vec();
        match mark {
            None => self.clear(),
            Some((at, mark)) => {
                self.past.marks.forget_after(at);
                self.sequence.restore(self.lease.model(), 0, &mark)?;
            }
        }
        self.past.pending.clear();
        self.past.before = 0;
        if !again.is_empty() {
            self.feed_watched(&again, watch)?;
        }
        Ok(again.len())
    }

    /// Makes `tokens` the tokens that the session was fed: keeps the prefix that it has already, and computes only the rest. The logits are
    /// those after the last token, even if nothing was computed.
    ///
    /// # Errors
    /// As [`Session::feed_watched`].
    pub fn feed_to(&mut self, tokens: &[u32], watch: &mut Watch<'_>) -> Result<Reused, Error> {
        crate::session::check_tokens(self.lease.model(), tokens)?;
        let same = self.shared_with(tokens);
        self.feed_after(same, &tokens[same..], watch)
    }

    /// Keeps the first `keep` tokens that the session was fed, and feeds it `rest` after them.
    pub(crate) fn feed_after(
        &mut self,
        keep: usize,
        rest: &[u32],
        watch: &mut Watch<'_>,
    ) -> Result<Reused, Error> {
        if self.sequence.memory.suspended() {
            self.resume(watch)?;
        }
        let replayed = self.truncate_watched(keep, watch)?;
        if !rest.is_empty() {
            self.feed_watched(rest, watch)?;
        }
        Ok(Reused::new(keep - replayed, rest.len() + replayed))
    }

    /// How many of the first of `tokens` are those that the session was fed.
    pub(crate) fn shared_with(&self, tokens: &[u32]) -> usize {
        // Most often all of them, which is quicker to find out.
        if tokens.starts_with(&self.past.tokens) {
            return self.past.tokens.len();
        }
        self.past.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// How many of the first of `tokens` the session can stand at without computing anything.
    pub(crate) fn reaches(&self, tokens: &[u32]) -> usize {
        let same = self.shared_with(tokens);
        if same == self.past.tokens.len() {
            return same;
        }
        self.past.marks.last_before(same, |_, mark| mark.logits().is_some()).map_or(0, |(at, _)| at)
    }

    /// Goes on from a copy of another session's state, after these tokens.
    pub(crate) fn stand(&mut self, tokens: &[u32], snapshot: Snapshot) -> Result<(), Error> {
        self.sequence.restore(self.lease.model(), 0, &snapshot)?;
        // Where a text goes on from makes no difference to how its tokens are chosen.
        let sampler = self.past.sampler.take();
        self.past.clear();
        self.past.sampler = sampler;
        self.past.tokens.extend(tokens);
        self.past.marks.set(tokens.len(), snapshot);
        Ok(())
    }

    /// A copy of the session. Both share the marks.
    ///
    /// # Errors
    /// As [`Model::session`](crate::Model::session), and [`Error::Step`] while a step is suspended.
    pub fn fork(&mut self) -> Result<Self, Error> {
        let snapshot = self.snapshot()?;
        let mut other = self.model().session(&self.options)?;
        other.sequence.restore(other.lease.model(), 0, &snapshot)?;
        other.sequence.memory.checked.clone_from(&self.sequence.memory.checked);
        other.past = self.past.clone();
        Ok(other)
    }

    /// Saves the session to a file, which replaces the one at `path` when it is complete: state and last logits, tokens, sampler, and
    /// the messages given. `docs/session.md` has the format.
    ///
    /// # Errors
    /// [`Error::File`], and [`Error::Step`] while a step is suspended ([`Session::resume`] finishes it). What was at `path` is as it was.
    pub fn save(&mut self, path: &Path, options: &SaveOptions) -> Result<(), Error> {
        let Self { sequence, past, lease, .. } = self;
        save(lease.model(), sequence, past, path, options).map(|_| ())
    }

    /// Continues from a file that [`Session::save`] wrote on any machine, with this model and these numbers. The whole file is checked
    /// before the session is changed.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::SessionFile`], and [`Error::Step`] while a step is suspended; the session is then as it was, unless
    /// the file could be read once and not again: then it is cleared.
    pub fn load(&mut self, path: &Path) -> Result<Loaded, Error> {
        self.load_if(path, |_, _| true)
    }

    /// Continues from a file that [`save_prefix`] wrote, of exactly these tokens.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub(crate) fn load_prefix(&mut self, path: &Path, tokens: &[u32]) -> Result<(), Error> {
        let sampler = self.past.sampler.clone();
        self.load_if(path, |contents, half| is_prefix(contents, half, tokens))?;
        self.past.sampler = sampler;
        Ok(())
    }

    /// Loads a file if `wanted` says so of what it holds beside the state, and of whether the state lost bits.
    fn load_if(
        &mut self,
        path: &Path,
        wanted: impl FnOnce(&Contents, bool) -> bool,
    ) -> Result<Loaded, Error> {
        let file = open_regular(path).map_err(Error::file(path, "read"))?;
        self.load_file(file, wanted).map_err(|fault| fault.at(path))
    }

    fn load_file(
        &mut self,
        file: File,
        wanted: impl FnOnce(&Contents, bool) -> bool,
    ) -> Result<Loaded, Fault> {
        let opened = Opened::new(file)?;
        let contents = check_state(self.lease.model(), &mut self.sequence, &opened, wanted)?;
        let read = read_state(self.lease.model(), &mut self.sequence, 0, &opened);
        let saved = read.inspect_err(|_| self.clear())?;
        let Contents { tokens, pending, sampler, messages } = contents;
        self.past.clear();
        (self.past.tokens, self.past.pending, self.past.sampler) = (tokens, pending, sampler);
        self.mark().map_err(Fault::Other)?;
        Ok(Loaded { messages, half: saved.about.half })
    }
}

/// Why a file could not be loaded, without its path.
enum Fault {
    Session(SessionFault),
    Other(Error),
}

impl Fault {
    fn at(self, path: &Path) -> Error {
        match self {
            Self::Session(SessionFault::Io(cause)) => Error::file(path, "read")(cause),
            Self::Session(cause) => Error::SessionFile { path: path.into(), cause },
            Self::Other(error) => error,
        }
    }
}

impl From<SessionFault> for Fault {
    fn from(fault: SessionFault) -> Self {
        Self::Session(fault)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<SnapshotError<SessionFault>> for Fault {
    fn from(error: SnapshotError<SessionFault>) -> Self {
        Self::Session(match error {
            SnapshotError::Stream(fault) => fault,
            other => SessionFault::State(other.without_stream()),
        })
    }
}

/// Checks the whole of a file, and whether `wanted` says so of what it holds beside the state and of whether the state lost bits.
fn check_state(
    model: &Model,
    sequence: &mut Sequence,
    opened: &Opened,
    wanted: impl FnOnce(&Contents, bool) -> bool,
) -> Result<Contents, Fault> {
    let (contents, mut reader) = opened.contents(model.config().vocab)?;
    let (mut steps, _) = sequence.memory.take_up(model)?;
    let saved = steps.check_saved(&model.header().fingerprint(), &mut reader)?;
    // All bytes are used, and the state is of these tokens.
    if saved.about.tokens != contents.tokens.len() as u64 || !reader.is_at_end() {
        return Err(SessionFault::Contents("its state is of other tokens than it has").into());
    }
    if !wanted(&contents, saved.about.half) {
        return Err(SessionFault::Contents("it is not what its name says").into());
    }
    Ok(contents)
}

/// Reads the state of a file that was checked into one of the sequences.
fn read_state(model: &Model, sequence: &mut Sequence, slot: usize, opened: &Opened) -> Result<Saved, Fault> {
    let mut reader = opened.snapshot()?;
    let (mut steps, _) = sequence.memory.take_up(model)?;
    let (saved, logits) = steps.load(slot, &model.header().fingerprint(), model.config(), &mut reader)?;
    sequence.stand_at(saved.logits.then_some(logits));
    Ok(saved)
}

/// Whether a file is one that [`save_prefix`] wrote of these tokens, with all bits of the state.
fn is_prefix(contents: &Contents, half: bool, tokens: &[u32]) -> bool {
    let Contents { tokens: found, pending, sampler, messages } = contents;
    found == tokens && pending.is_empty() && sampler.is_none() && messages.is_empty() && !half
}

/// Reads a file that [`save_prefix`] wrote of exactly these tokens into one of several sequences. After an error the sequence is as it was, or
/// cleared.
pub(crate) fn load_prefix(
    model: &Model,
    sequence: &mut Sequence,
    slot: usize,
    path: &Path,
    tokens: &[u32],
) -> Result<(), Error> {
    let file = open_regular(path).map_err(Error::file(path, "read"))?;
    let load = || {
        let opened = Opened::new(file)?;
        check_state(model, sequence, &opened, |contents, half| is_prefix(contents, half, tokens))?;
        read_state(model, sequence, slot, &opened)
    };
    load().map(drop).map_err(|fault: Fault| fault.at(path))
}

/// Bytes of the file that [`save_prefix`] writes.
pub(crate) fn prefix_bytes(model: &Model, sequence: &mut Sequence, tokens: &[u32]) -> Result<u64, Error> {
    let about = about(model, tokens, false);
    let snapshot = sequence.memory.take_up(model)?.0.saved_bytes(&about);
    Ok(session_file::bytes_of(about.tokens, snapshot))
}

/// Saves the tokens that the first sequence was fed, its state and these logits of it. The file may be damaged after a power failure, which
/// loading finds.
pub(crate) fn save_prefix(
    model: &Model,
    sequence: &mut Sequence,
    tokens: &[u32],
    logits: Option<&Logits>,
    path: &Path,
) -> Result<(), Error> {
    let contents = Contents { tokens: tokens.to_vec(), ..Contents::default() };
    let output = write(model, sequence, &contents, logits, path, false)?;
    output.finish_unsynced().map_err(Error::file(path, "write"))
}

/// The logits after the last token; `None` before the first.
fn last_logits(model: &Model, sequence: &mut Sequence, past: &Past) -> Result<Option<Logits>, Error> {
    if past.tokens.is_empty() { Ok(None) } else { sequence.own_logits(model).map(Some) }
}

/// See [`Session::save`]. The file is locked as long as the result lives.
pub(crate) fn save(
    model: &Model,
    sequence: &mut Sequence,
    past: &Past,
    path: &Path,
    options: &SaveOptions,
) -> Result<Option<File>, Error> {
    sequence.memory.check_ready(model)?;
    let logits = last_logits(model, sequence, past)?;
    let contents = Contents {
        tokens: past.tokens.clone(),
        pending: past.pending.clone(),
        sampler: past.sampler.clone(),
        messages: options.messages.clone(),
    };
    let output = write(model, sequence, &contents, logits.as_ref(), path, options.half)?;
    let file = output.file().try_clone();
    output.finish().map_err(Error::file(path, "write"))?;
    Ok(file.ok())
}

/// Writes a session file that has no name yet.
fn write(
    model: &Model,
    sequence: &mut Sequence,
    contents: &Contents,
    logits: Option<&Logits>,
    path: &Path,
    half: bool,
) -> Result<Output, Error> {
    let about = about(model, &contents.tokens, half);
    let (mut steps, _) = sequence.memory.take_up(model)?;
    let bytes = steps.saved_bytes(&about);
    let output = Output::create(path).map_err(Error::file(path, "write"))?;
    let written = session_file::write(output.file(), contents, bytes, |out: &mut Writer<'_>| {
        steps.save(&about, logits, out).map_err(|error| match error {
            SnapshotError::Stream(error) => error,
            other => io::Error::other(other.to_string()),
        })
    });
    written.map_err(Error::file(path, "write")).map(|()| output)
}

fn about(model: &Model, tokens: &[u32], half: bool) -> About {
    About { fingerprint: model.header().fingerprint(), tokens: tokens.len() as u64, half }
}
