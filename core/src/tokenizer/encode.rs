//! Text to tokens: the stages joined, over a scratch slice of any size that holds the longest word.

use super::added::{AddedSet, Found, Search};
use super::bpe::SHORT_WORD;
use super::chars::{Chars, MARK, copy_with_marks};
use super::nfc::{normalize_segment, segment_end, stable_until};
use super::pattern::Patterns;
use super::split::{Cut, LOOK_AHEAD, cut, cut_digits};
use super::stages::{Next, Stages};
use super::table::PreTokenizer;
use super::{Tokenizer, TokenizerError};

/// How a text is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens before and after the text that the tokenizer's template asks for, if it does.
    pub add_special: bool,
    /// Take special tokens that the text spells out for what they mean. Without this they are plain text: what a user
    /// types can't end a turn. Added tokens that are not special are always recognised.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    /// As Hugging Face's `encode(text, add_special_tokens = true)`: both.
    fn default() -> Self {
        Self { add_special: true, parse_special: true }
    }
}

impl Tokenizer<'_> {
    /// Encodes a text.
    ///
    /// # Errors
    /// [`TokenizerError::ScratchTooSmall`]; the tokens before that word were given to `sink`. To go on from there, use
    /// an [`Encoder`].
    pub fn encode(
        &self,
        text: &str,
        options: EncodeOptions,
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<(), TokenizerError> {
        Encoder::new(text, options).run(self, scratch, sink)
    }

    /// Bytes of scratch that are enough for any text whose longest word has `longest_word` bytes, where a word is what
    /// the pre-tokenizer cuts (white space included), and whose longest run of combining characters is no longer.
    ///
    /// Without NFC: 16 bytes for each byte of the word, none up to 32 bytes. With NFC, where a text is not in that form
    /// already, it passes through a window: 21 bytes for each byte of the word, 2 for each of the longest added token,
    /// and 512. Where words consist of characters, all text does, with three bytes for a space.
    #[must_use]
    pub fn scratch_for(&self, longest_word: usize) -> usize {
        let word = Self::word_scratch(longest_word);
        if !self.header.nfc && self.header.chars.is_none() {
            return word;
        }
        let longest_word =
            if self.header.chars.is_some() { longest_word.saturating_mul(3) } else { longest_word };
        let margin = self.added_normalized.longest(self).saturating_mul(2).saturating_add(512);
        longest_word.saturating_mul(21).saturating_add(margin)
    }
}

/// An encoding under way.
///
/// It holds places in the text and nothing else: where the scratch was too small for a word, [`Self::run`] goes on at
/// that word with a larger one, and no token is lost or comes twice.
#[derive(Clone, Debug)]
pub struct Encoder<'t> {
    text: &'t [u8],
    options: EncodeOptions,
    started: bool,
    finished: bool,
    /// What is before is encoded.
    at: usize,
    /// Of the normalised form of what follows, this many bytes are encoded too.
    normalized: usize,
    /// The segment that `at` is in: up to the next added token of the raw text, or to the end.
    segment: Option<(usize, Option<Found>)>,
    /// Where that segment begins.
    begin: usize,
    /// As `segment`, in the segment, where normalised added tokens are looked for in the text as it is.
    piece: Option<(usize, Option<Found>)>,
    /// Where that piece begins, or the segment.
    piece_begin: usize,
    /// Where `at` is among the pieces of the pre-tokenizer's stages.
    stages: Stages,
}

impl<'t> Encoder<'t> {
    /// The start of an encoding of `text`.
    #[must_use]
    pub const fn new(text: &'t str, options: EncodeOptions) -> Self {
        Self {
            text: text.as_bytes(),
            options,
            started: false,
            finished: false,
            at: 0,
            normalized: 0,
            segment: None,
            begin: 0,
            piece: None,
            piece_begin: 0,
            stages: Stages::new(),
        }
    }

    /// Encodes what is left of the text.
    ///
    /// # Errors
    /// [`TokenizerError::ScratchTooSmall`] names the size to try next. Call again with that much, or with more.
    pub fn run(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<(), TokenizerError> {
        if self.options.add_special && !self.started {
            tokenizer.prefix.iter().for_each(|&id| sink(u32::from_le_bytes(id)));
        }
        self.started = true;
        let len = self.text.len();
        let mut search = Search { begin: 0, taken: self.at, starts: self.at..len, spaces: 0 };
        while self.at < len || search.starts.start < len {
            let (end, found) = match self.segment.take() {
                Some(segment) => segment,
                None => {
                    (self.begin, self.piece_begin, search.taken) = (self.at, self.at, self.at);
                    self.stages.restart();
                    self.piece(&tokenizer.added_raw, tokenizer, self.text, &mut search)
                }
            };
            if let Err(error) = self.segment(tokenizer, end, scratch, sink) {
                self.segment = Some((end, found));
                return Err(error);
            }
            self.at = end;
            search.pass(found, len, &mut self.at, sink);
        }
        if self.options.add_special && !self.finished {
            tokenizer.suffix.iter().for_each(|&id| sink(u32::from_le_bytes(id)));
        }
        self.finished = true;
        Ok(())
    }

    fn find(
        &self,
        set: &AddedSet<'_>,
        tokenizer: &Tokenizer<'_>,
        text: &[u8],
        search: &mut Search,
    ) -> Option<Found> {
        set.find(tokenizer, text, search, |id| !self.options.parse_special && tokenizer.is_special(id))
    }

    /// The end of the piece of `text` from `self.at` on in which no added token is, and the token behind it.
    fn piece(
        &self,
        set: &AddedSet<'_>,
        tokenizer: &Tokenizer<'_>,
        text: &[u8],
        search: &mut Search,
    ) -> (usize, Option<Found>) {
        let found = self.find(set, tokenizer, text, search);
        (found.as_ref().map_or(text.len(), |found| found.range.start.max(self.at)), found)
    }

    /// Encodes up to `end`: where it lies what is in NFC, or need not be, and through the window what is not.
    fn segment(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        end: usize,
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<(), TokenizerError> {
        if let Some(chars) = &tokenizer.header.chars {
            if chars.normalized_first {
                return if self.at < end { self.window(tokenizer, end, scratch, sink) } else { Ok(()) };
            }
            return self.pieces(tokenizer, end, scratch, sink);
        }
        while self.at < end {
            if self.normalized == 0 {
                let stable = if tokenizer.header.nfc { stable_until(self.text, self.at, end) } else { end };
                let piece = self.text.get(..stable).unwrap_or(self.text);
                let mut at = self.at;
                let result = self.words(tokenizer, piece, &mut at, stable == end, scratch, sink);
                self.at = at;
                result?;
            }
            if self.at < end {
                self.window(tokenizer, end, scratch, sink)?;
            }
        }
        Ok(())
    }

    /// Encodes up to `end` what is between the normalised added tokens, through a window.
    fn pieces(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        end: usize,
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<(), TokenizerError> {
        let text = self.text.get(..end).unwrap_or(self.text);
        let mut search = Search { begin: self.begin, taken: self.at, starts: self.at..end, spaces: 0 };
        while self.at < end || search.starts.start < end {
            let (piece_end, found) = match self.piece.take() {
                Some(piece) => piece,
                None => {
                    (self.piece_begin, search.taken) = (self.at, self.at);
                    self.piece(&tokenizer.added_normalized, tokenizer, text, &mut search)
                }
            };
            if self.at < piece_end
                && let Err(error) = self.window(tokenizer, piece_end, scratch, sink)
            {
                self.piece = Some((piece_end, found));
                return Err(error);
            }
            self.at = piece_end;
            search.pass(found, end, &mut self.at, sink);
        }
        Ok(())
    }

    /// Encodes from `self.at` on through a window of normalised text at the start of `scratch`, until the text is as it
    /// would lie in the window again, or ends.
    fn window(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        end: usize,
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<(), TokenizerError> {
        let mut window = Window { start: 0, len: 0, raw: self.at, changed: 0, changed_raw: self.at };
        let before = self.normalized;
        let mut want = 32;
        let chars = tokenizer.header.chars.as_ref();
        if let Some(chars) = chars {
            // The text does not become as it would lie in the window.
            window.changed = usize::MAX;
            let begins = self.at == self.piece_begin;
            if begins && chars.prepends(self.text.get(..end).unwrap_or(self.text), self.at) {
                let given = scratch.len();
                let mark = scratch.get_mut(..MARK.len()).ok_or(window_too_small(FILL, given))?;
                mark.copy_from_slice(MARK.as_bytes());
                window.len = MARK.len();
            }
        }
        loop {
            while window.raw < end && window.len <= want {
                let given = scratch.len();
                let filled = match chars {
                    Some(chars) => window.fill_with_marks(chars, self.text, end, scratch),
                    None => window.fill(self.text, end, scratch),
                };
                filled.map_err(|needed| window_too_small(needed, given))?;
                window.drop_until(self.normalized, scratch);
            }
            let last = window.raw >= end;
            let given = scratch.len();
            let too_small = TokenizerError::ScratchTooSmall { needed: window.len, given };
            let (text, rest) = scratch.split_at_mut_checked(window.len).ok_or(too_small)?;
            let mut at = self.normalized.saturating_sub(window.start);
            let result = self.words(tokenizer, text, &mut at, last, rest, sink);
            self.normalized = window.start + at;
            result.map_err(|error| match error {
                TokenizerError::ScratchTooSmall { needed, .. } => {
                    window_too_small(needed.saturating_add(window.len), given)
                }
                other => other,
            })?;
            if last && at >= window.len {
                (self.at, self.normalized) = (end, 0);
                return Ok(());
            }
            if self.normalized > before && self.normalized >= window.changed {
                (self.at, self.normalized) = (window.changed_raw + (self.normalized - window.changed), 0);
                return Ok(());
            }
            window.drop_until(self.normalized, scratch);
            // Growing by half, so that a word that does not end in the window is not read too often.
            want = window.len + window.len / 2 + 32;
        }
    }

    /// Encodes the words and added tokens of `text` from `at` on: all if the text is complete, or else those that do not
    /// depend on what comes after. `at` is then behind them.
    fn words(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        text: &[u8],
        at: &mut usize,
        complete: bool,
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<(), TokenizerError> {
        let set = &tokenizer.added_normalized;
        // A token that starts before this is seen whole, and so is a character.
        let sure = if complete {
            text.len()
        } else {
            text.len().saturating_sub(set.longest(tokenizer).max(LOOK_AHEAD))
        };
        // Of other texts of characters, normalised added tokens have been cut out before.
        let is_searched = tokenizer.header.chars.is_none_or(|chars| chars.normalized_first);
        let mut search = Search { begin: self.begin, taken: *at, starts: *at..sure, spaces: 0 };
        while *at < sure || search.starts.start < sure {
            search.taken = *at;
            let found = if is_searched { self.find(set, tokenizer, text, &mut search) } else { None };
            let piece = found.as_ref().and_then(|found| text.get(..found.range.start)).unwrap_or(text);
            let complete = complete || found.is_some();
            let sure_of_piece = if complete { usize::MAX } else { sure };
            let done = match &tokenizer.patterns {
                Some(patterns) if tokenizer.header.pre_tokenizer == PreTokenizer::Patterns => {
                    self.staged_words(tokenizer, patterns, piece, at, sure_of_piece, scratch, sink)?
                }
                _ => built_in_words(tokenizer, piece, at, sure_of_piece, scratch, sink)?,
            };
            if !done {
                return Ok(());
            }
            if search.pass(found, sure, at, sink) {
                self.stages.restart();
            }
        }
        Ok(())
    }

    /// Encodes the words of a piece of text from `at` on that the stages of the pre-tokenizer cut, and says whether it came
    /// to its end.
    #[expect(clippy::too_many_arguments, reason = "the same as of `words`, and what that found out")]
    #[inline(never)]
    fn staged_words(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        patterns: &Patterns<'_>,
        piece: &[u8],
        at: &mut usize,
        sure: usize,
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<bool, TokenizerError> {
        while *at < piece.len() {
            match self.stages.next(patterns, piece, *at, sure, self.text.len())? {
                Next::Word(len) => {
                    let word = piece.get(*at..*at + len).unwrap_or(&[]);
                    tokenizer.encode_word(word, scratch, sink)?;
                    self.stages.advance(len);
                    *at += len;
                }
                Next::Skip(len) => *at += len,
                Next::Undecided => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Encodes the words of a piece of text from `at` on that a built-in pre-tokenizer cuts, and says whether it came to its
/// end.
#[inline]
fn built_in_words(
    tokenizer: &Tokenizer<'_>,
    piece: &[u8],
    at: &mut usize,
    sure: usize,
    scratch: &mut [u8],
    sink: &mut dyn FnMut(u32),
) -> Result<bool, TokenizerError> {
    let (pre, chars) = (tokenizer.header.pre_tokenizer, tokenizer.header.chars);
    if let Some(chars) = chars {
        return char_words(tokenizer, &chars, piece, at, sure, scratch, sink);
    }
    let encode = |bytes: &[u8]| {
        if pre == PreTokenizer::Falcon {
            encode_falcon_word(tokenizer, bytes, scratch, sink)
        } else {
            tokenizer.encode_word(bytes, scratch, sink)
        }
    };
    each_word(piece, at, sure, |at| cut(pre, piece, at), encode)
}

/// As [`built_in_words`], where words consist of characters.
#[inline(never)]
fn char_words(
    tokenizer: &Tokenizer<'_>,
    chars: &Chars,
    piece: &[u8],
    at: &mut usize,
    sure: usize,
    scratch: &mut [u8],
    sink: &mut dyn FnMut(u32),
) -> Result<bool, TokenizerError> {
    let encode = |bytes: &[u8]| tokenizer.encode_word(bytes, scratch, sink);
    each_word(piece, at, sure, |at| chars.cut(piece, at), encode)
}

/// Cuts words from `at` on, as long as they are decided before `sure`, and encodes them: whether all of the piece was.
#[inline(always)]
fn each_word(
    piece: &[u8],
    at: &mut usize,
    sure: usize,
    cut: impl Fn(usize) -> Cut,
    mut encode: impl FnMut(&[u8]) -> Result<(), TokenizerError>,
) -> Result<bool, TokenizerError> {
    while *at < piece.len() {
        let word = cut(*at);
        if word.decided >= sure {
            return Ok(false);
        }
        encode(piece.get(*at..word.end).unwrap_or(&[]))?;
        *at = word.end;
    }
    Ok(true)
}

/// Encodes the pieces of a word between its digits. Either all of them are encoded or none.
#[inline]
fn encode_falcon_word(
    tokenizer: &Tokenizer<'_>,
    mut word: &[u8],
    scratch: &mut [u8],
    sink: &mut dyn FnMut(u32),
) -> Result<(), TokenizerError> {
    if word.len() > SHORT_WORD {
        let (mut longest, mut rest) = (0, word);
        while !rest.is_empty() {
            let (piece, after) = first_piece(rest);
            longest = longest.max(piece.len());
            rest = after;
        }
        let (needed, given) = (Tokenizer::word_scratch(longest), scratch.len());
        if given < needed {
            return Err(TokenizerError::ScratchTooSmall { needed, given });
        }
    }
    while !word.is_empty() {
        let (piece, rest) = first_piece(word);
        tokenizer.encode_word(piece, scratch, sink)?;
        word = rest;
    }
    Ok(())
}

fn first_piece(word: &[u8]) -> (&[u8], &[u8]) {
    word.split_at_checked(cut_digits(word)).unwrap_or((word, &[]))
}

/// Bytes of a text that are put into the window at a time where words consist of characters.
const FILL: usize = 64;

/// How far the window has to go is not known before it is there, so at least half as much again is asked for: what was
/// normalised in vain is then in proportion to what is needed.
fn window_too_small(needed: usize, given: usize) -> TokenizerError {
    TokenizerError::ScratchTooSmall { needed: needed.max(given.saturating_add(given / 2)), given }
}

/// Normalised text on its way from the text to the words. Places in it are counted from where it began.
struct Window {
    /// The place of the first byte in scratch.
    start: usize,
    /// How many bytes are there.
    len: usize,
    /// The end in the raw text of what was normalised.
    raw: usize,
    /// From this place on, raw and normalised text are the same.
    changed: usize,
    /// The same place in the raw text.
    changed_raw: usize,
}

impl Window {
    /// Normalises one more segment. The error is the size that scratch would need.
    fn fill(&mut self, text: &[u8], end: usize, scratch: &mut [u8]) -> Result<(), usize> {
        let next = segment_end(text, self.raw, end);
        let segment = text.get(self.raw..next).unwrap_or(&[]);
        let room = scratch.get_mut(self.len..).ok_or(self.len)?;
        if stable_until(text, self.raw, next) == next {
            let to = room.get_mut(..segment.len()).ok_or(self.len + segment.len())?;
            to.copy_from_slice(segment);
            self.len += segment.len();
        } else {
            let len = normalize_segment(segment, room).map_err(|needed| needed + self.len)?;
            self.len += len;
            (self.changed, self.changed_raw) = (self.start + self.len, next);
        }
        self.raw = next;
        Ok(())
    }

    /// Adds some more text, with spaces as `▁`. The error is the size that scratch would need.
    fn fill_with_marks(
        &mut self,
        chars: &Chars,
        text: &[u8],
        end: usize,
        scratch: &mut [u8],
    ) -> Result<(), usize> {
        let next = text.get(self.raw..end.min(self.raw + FILL)).unwrap_or(&[]);
        let room = scratch.get_mut(self.len..).unwrap_or(&mut []);
        let (len, taken) = copy_with_marks(next, chars.spaces, room);
        if taken == 0 {
            return Err(self.len + MARK.len() * FILL);
        }
        self.len += len;
        self.raw += taken;
        Ok(())
    }

    /// Moves what is not yet encoded to the start of the scratch.
    fn drop_until(&mut self, place: usize, scratch: &mut [u8]) {
        let count = place.saturating_sub(self.start).min(self.len);
        if count > 0 && self.len <= scratch.len() {
            scratch.copy_within(count..self.len, 0);
            self.start += count;
            self.len -= count;
        }
    }
}
