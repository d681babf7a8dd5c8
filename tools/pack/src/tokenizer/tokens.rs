//! Tokens as the files describe them, and what may be wrong with a description.

use super::CompileError;

/// One token.
#[derive(Default)]
pub struct Token {
    pub bytes: Vec<u8>,
    /// It is in the vocabulary, spelt in the letters that stand for bytes: a text's word may be this token.
    pub word: bool,
    /// It stands for its one byte, under the name `<0x..>`.
    pub byte: bool,
    pub added: Option<Added>,
}

/// What is particular to an added token.
#[derive(Clone, Copy)]
pub struct Added {
    pub special: bool,
    /// Matched in the normalised text.
    pub normalized: bool,
    /// White space before it belongs to it.
    pub lstrip: bool,
    /// White space behind it belongs to it.
    pub rstrip: bool,
    /// It is not matched beside a character of a word.
    pub single_word: bool,
}

impl Added {
    /// Whether it is matched by more than its text.
    pub fn has_rules(&self) -> bool {
        self.lstrip || self.rstrip || self.single_word
    }
}

pub fn unsupported<T>(what: impl Into<String>) -> Result<T, CompileError> {
    Err(CompileError::Unsupported(what.into()))
}

pub fn invalid<T>(what: impl Into<String>) -> Result<T, CompileError> {
    Err(CompileError::Invalid(what.into()))
}
