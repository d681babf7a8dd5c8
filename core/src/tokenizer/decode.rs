//! Tokens back to text, as they come.

use super::chars::{MARK, Strip};
use super::{Tokenizer, TokenizerError};

/// Turns a stream of tokens into UTF-8, whatever the boundaries of the tokens.
///
/// Bytes that are not UTF-8 become U+FFFD, exactly as `String::from_utf8_lossy` would on the whole stream. A character
/// that a token leaves unfinished is held back until it is complete, or can't be any more.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// The start of a character, `held_len` bytes.
    held: [u8; 4],
    held_len: usize,
    skip_special: bool,
    /// What is held are byte tokens: each becomes U+FFFD by itself where they are not UTF-8.
    of_bytes: bool,
    /// Text has begun: no space is left out any more.
    begun: bool,
}

const REPLACEMENT: &str = "\u{fffd}";

impl Decoder {
    /// A decoder at the start of a text that shows special tokens as their text.
    #[must_use]
    pub const fn new() -> Self {
        Self { held: [0; 4], held_len: 0, skip_special: false, of_bytes: false, begun: false }
    }

    /// A decoder of tokens that continue a text: a space before the first word stays, where a tokenizer leaves it out at
    /// the start of a text.
    #[must_use]
    pub const fn within_text() -> Self {
        let mut decoder = Self::new();
        decoder.begun = true;
        decoder
    }

    /// Leaves special tokens out, or not.
    #[must_use]
    pub const fn skip_special(mut self, skip: bool) -> Self {
        self.skip_special = skip;
        self
    }

    /// Decodes one token. `sink` gets pieces of text, each of whole characters.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] where no token has this id; the decoder is as before, and may go on. A model whose
    /// vocabulary is padded can give such an id: leave it out, as Hugging Face's decoder does, or stop.
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        id: u32,
        sink: &mut dyn FnMut(&str),
    ) -> Result<(), TokenizerError> {
        let unknown = TokenizerError::UnknownId { id, vocab_size: tokenizer.vocab_size() };
        let bytes = tokenizer.token_bytes(id).ok_or(unknown)?;
        if !(self.skip_special && tokenizer.is_special(id)) {
            match tokenizer.header.chars {
                None => self.push_bytes(bytes, sink),
                Some(chars) => self.push_chars(bytes, tokenizer.is_byte(id), chars.strip, sink),
            }
        }
        Ok(())
    }

    /// Decodes a token of a tokenizer whose words consist of characters.
    fn push_chars(&mut self, bytes: &[u8], is_byte: bool, strip: Strip, sink: &mut dyn FnMut(&str)) {
        let strips = !self.begun;
        self.begun = true;
        if is_byte {
            self.of_bytes = true;
            let space = strip == Strip::Space && bytes == b" ";
            let bytes = if strips && space { &[] } else { bytes };
            return self.push_bytes(bytes, sink);
        }
        self.end_of_bytes(sink);
        let bytes = if strips && strip == Strip::Space {
            let rest = bytes.strip_prefix(MARK.as_bytes()).or_else(|| bytes.strip_prefix(b" "));
            rest.unwrap_or(bytes)
        } else {
            bytes
        };
        let spaces = !(strips && strip == Strip::FirstToken);
        for chunk in bytes.utf8_chunks() {
            for (i, piece) in chunk.valid().split(MARK).enumerate() {
                if i > 0 && spaces {
                    sink(" ");
                }
                if !piece.is_empty() {
                    sink(piece);
                }
            }
            if !chunk.invalid().is_empty() {
                sink(REPLACEMENT);
            }
        }
    }

    /// Ends a run of byte tokens: what is held of it is no character.
    fn end_of_bytes(&mut self, sink: &mut dyn FnMut(&str)) {
        if self.of_bytes {
            self.of_bytes = false;
            self.finish_held(true, sink);
        }
    }

    /// Gives U+FFFD for what is held: once, or for each byte.
    fn finish_held(&mut self, each: bool, sink: &mut dyn FnMut(&str)) {
        let count = if each { self.held_len } else { self.held_len.min(1) };
        (0..count).for_each(|_| sink(REPLACEMENT));
        self.held_len = 0;
    }

    /// Decodes bytes, as [`Self::push`] does those of a token.
    pub fn push_bytes(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&str)) {
        let mut rest = bytes;
        while self.held_len > 0 {
            let Some((&byte, after)) = rest.split_first() else { return };
            let mut trial = self.held;
            let Some(end) = trial.get_mut(self.held_len) else { break };
            *end = byte;
            let trial_len = self.held_len + 1;
            match core::str::from_utf8(&trial[..trial_len]) {
                Ok(text) => {
                    sink(text);
                    self.held_len = 0;
                    rest = after;
                }
                Err(error) if error.error_len().is_none() => {
                    self.held = trial;
                    self.held_len = trial_len;
                    rest = after;
                }
                // The byte does not continue what was held; it may start something itself.
                Err(_) => self.finish_held(self.of_bytes, sink),
            }
        }
        let mut chunks = rest.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            if !chunk.valid().is_empty() {
                sink(chunk.valid());
            }
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let start = core::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            match self.held.get_mut(..invalid.len()) {
                // The start of a character is held only where its rest may still come.
                Some(held) if start && chunks.peek().is_none() => {
                    held.copy_from_slice(invalid);
                    self.held_len = invalid.len();
                }
                _ => sink(REPLACEMENT),
            }
        }
    }

    /// Ends the text: what is held back becomes U+FFFD. The decoder is then as new.
    pub fn finish(&mut self, sink: &mut dyn FnMut(&str)) {
        self.finish_held(self.of_bytes, sink);
        (self.of_bytes, self.begun) = (false, false);
    }
}
