//! Text to the tokens of a prompt, in a buffer.

use core::fmt;

use crate::format::data::RoleTable;
use crate::tokenizer::{EncodeOptions, Tokenizer, TokenizerError};

/// Why a prompt can't be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromptError {
    /// It has more tokens than there is room for.
    Long {
        /// Tokens that there is room for.
        most: usize,
    },
    /// A word needs more memory than the tokenizer was given.
    Tokenizer(TokenizerError),
}

impl fmt::Display for PromptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long { most } => write!(f, "the text has more than {most} tokens: give a shorter one"),
            Self::Tokenizer(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PromptError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Long { .. } => None,
            Self::Tokenizer(error) => Some(error),
        }
    }
}

impl From<TokenizerError> for PromptError {
    fn from(error: TokenizerError) -> Self {
        Self::Tokenizer(error)
    }
}

/// A prompt that is encoded into a buffer, text by text.
#[derive(Debug)]
pub struct Prompt<'b> {
    tokens: &'b mut [u32],
    len: usize,
    scratch: &'b mut [u8],
}

impl<'b> Prompt<'b> {
    /// An empty prompt with room for `tokens`. The tokenizer works in `scratch`, see [`Tokenizer::scratch_for`].
    #[must_use]
    pub const fn new(tokens: &'b mut [u32], scratch: &'b mut [u8]) -> Self {
        Self { tokens, len: 0, scratch }
    }

    /// Adds a text's tokens.
    ///
    /// # Errors
    /// If there is not enough room or scratch; the tokens before are added.
    pub fn add(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        text: &str,
        options: EncodeOptions,
    ) -> Result<(), PromptError> {
        let Self { tokens, len, scratch } = self;
        let mut long = false;
        tokenizer.encode(text, options, scratch, &mut |token| match tokens.get_mut(*len) {
            Some(place) => {
                *place = token;
                *len += 1;
            }
            None => long = true,
        })?;
        if long { Err(PromptError::Long { most: self.tokens.len() }) } else { Ok(()) }
    }

    /// Adds a user's message and the start of the answer to it, as the model's role table has them. `first` says whether the chat
    /// begins with it; otherwise the answer before is ended first: the token that ended it was not fed.
    ///
    /// What the template says may be special tokens; what the user typed is text.
    ///
    /// # Errors
    /// As [`Prompt::add`].
    pub fn add_message(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        roles: &RoleTable<'_>,
        first: bool,
        message: &str,
    ) -> Result<(), PromptError> {
        let template = EncodeOptions { add_special: false, parse_special: true };
        let typed = EncodeOptions { add_special: false, parse_special: false };
        let before = if first { roles.start } else { roles.assistant.suffix };
        for (text, options) in [
            (before, template),
            (roles.user.prefix, template),
            (message, typed),
            (roles.user.suffix, template),
            (roles.generation, template),
        ] {
            self.add(tokenizer, text, options)?;
        }
        Ok(())
    }

    /// The tokens.
    #[must_use]
    pub fn finish(self) -> &'b [u32] {
        self.tokens.get(..self.len).unwrap_or_default()
    }
}
