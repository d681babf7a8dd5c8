//! Tokens back to text, as they come.

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
}

const REPLACEMENT: &str = "\u{fffd}";

impl Decoder {
    /// A decoder at the start of a text that shows special tokens as their text.
    #[must_use]
    pub const fn new() -> Self {
        Self { held: [0; 4], held_len: 0, skip_special: false }
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
            self.push_bytes(bytes, sink);
        }
        Ok(())
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
                Err(_) => {
                    sink(REPLACEMENT);
                    self.held_len = 0;
                }
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
        if self.held_len > 0 {
            self.held_len = 0;
            sink(REPLACEMENT);
        }
    }
}
