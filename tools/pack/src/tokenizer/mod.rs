//! Compiles a Hugging Face `tokenizer.json` into the table that `elapid_core::tokenizer` reads in place.
//!
//! What the runtime would do otherwise than the `tokenizers` crate, or than transformers' AutoTokenizer where there are
//! files beside it, is refused here, by name. `truncation` and `padding` are left out on purpose: a runtime encodes the
//! whole text.

mod added;
mod auto;
mod automaton;
mod expression;
mod json;
mod parts;
mod pre_tokenizer;
mod sentencepiece;
mod table;
mod tokens;

use elapid_core::tokenizer::{Tokenizer, TokenizerError};

pub use auto::Beside;

/// Why a tokenizer can't be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The file is not the JSON of a tokenizer.
    #[error("the tokenizer is not a valid tokenizer.json: {0}; download the file again")]
    Json(#[from] serde_json::Error),
    /// The tokenizer asks for something that the runtime does not do.
    #[error("the tokenizer asks for what is not supported: {0}; docs/tokenizer.md lists what is")]
    Unsupported(String),
    /// The tokenizer contradicts itself.
    #[error("the tokenizer contradicts itself: {0}; download the file again or correct it")]
    Invalid(String),
    /// A file beside the tokenizer.json asks for something that the runtime does not do, or contradicts it.
    #[error("{file}: `{key}` {reason}")]
    Beside {
        /// The file's name.
        file: &'static str,
        /// The key in it.
        key: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The table that was made does not read back.
    #[error("the compiled tokenizer does not read back ({0}): please report this with the tokenizer.json")]
    Table(#[from] TokenizerError),
}

/// Compiles a `tokenizer.json` alone, as the `tokenizers` crate reads it. The same input gives the same bytes.
///
/// # Errors
/// Where the file is damaged, or asks for something that the runtime does not support: the message names it.
pub fn compile(json: &[u8]) -> Result<Vec<u8>, CompileError> {
    table::build(&json::read(json, None)?.0)
}

/// A tokenizer, compiled with the files beside its tokenizer.json.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The table.
    pub table: Vec<u8>,
    /// What kind of tokenizer it is, in words.
    pub kind: &'static str,
    /// The tokens before and after every text.
    pub around: Vec<u32>,
    /// The special tokens by name, for chat templates.
    pub named: Vec<(String, String)>,
    /// The end token that a file beside tokenizer.json names.
    pub eos: Option<Eos>,
    /// What the user should know, in sentences.
    pub notes: Vec<String>,
}

/// An end token that is named by its text.
#[derive(Debug, Clone)]
pub struct Eos {
    /// The file that names it.
    pub file: &'static str,
    /// Its text.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// Compiles a `tokenizer.json` as transformers' AutoTokenizer reads it with the files beside it.
///
/// # Errors
/// As [`compile`], and where a file beside it asks for something that is not supported.
pub fn compile_beside(json: &[u8], beside: &Beside) -> Result<Compiled, CompileError> {
    let (description, auto) = json::read(json, Some(beside))?;
    let table = table::build(&description)?;
    let around = description.template.concat();
    let kind = Tokenizer::parse(&table)?.header().kind();
    let mut compiled = Compiled { table, kind, around, named: Vec::new(), eos: None, notes: Vec::new() };
    let Some(auto) = auto else { return Ok(compiled) };
    if !auto.overridden.is_empty() {
        compiled.notes.push(format!(
            "tokenizer.json's {} left out: as in transformers, the tokenizer is a {}; to use tokenizer.json as it is, make `tokenizer_class` of tokenizer_config.json PreTrainedTokenizerFast",
            auto.overridden.join(" and "),
            auto.class.name()
        ));
    }
    let tokenizer = Tokenizer::parse(&compiled.table)?;
    compiled.eos = auto.eos.and_then(|token| {
        let id = tokenizer.id_of(token.content.as_bytes())?;
        Some(Eos { file: token.origin.file, text: token.content, id })
    });
    compiled.named = auto.named;
    Ok(compiled)
}
