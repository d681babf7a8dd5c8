//! Compiles a Hugging Face `tokenizer.json` into the table that `elapid_core::tokenizer` reads in place.
//!
//! What the runtime would do otherwise than the `tokenizers` crate is refused here, by name. `truncation` and `padding`
//! are left out on purpose: a runtime encodes the whole text.

mod json;
mod table;

use elapid_core::tokenizer::TokenizerError;

/// Why a tokenizer can't be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The file is not the JSON of a tokenizer.
    #[error("the tokenizer is not a valid tokenizer.json: {0}; download the file again")]
    Json(#[from] serde_json::Error),
    /// The tokenizer asks for something that the runtime does not do.
    #[error(
        "the tokenizer asks for what is not supported: {0}; supported is byte-level BPE as of GPT-NeoX and Falcon"
    )]
    Unsupported(String),
    /// The tokenizer contradicts itself.
    #[error("the tokenizer contradicts itself: {0}; download the file again or correct it")]
    Invalid(String),
    /// The table that was made does not read back.
    #[error("the compiled tokenizer does not read back ({0}): please report this with the tokenizer.json")]
    Table(#[from] TokenizerError),
}

/// Compiles a `tokenizer.json`. The same input gives the same bytes.
///
/// # Errors
/// Where the file is damaged, or asks for something that the runtime does not support: the message names it.
pub fn compile(json: &[u8]) -> Result<Vec<u8>, CompileError> {
    table::build(&json::read(json)?)
}
