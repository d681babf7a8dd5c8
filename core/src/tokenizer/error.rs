//! What can go wrong between text and tokens.

use core::fmt;

/// Why a table can't be read, or a text or a token can't be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The bytes are not a tokenizer table.
    NotATable,
    /// The table is of a version that this reader does not know.
    Version {
        /// The version that the table states.
        found: u16,
    },
    /// The table asks for something that this reader does not know.
    Unsupported {
        /// The name of the field.
        what: &'static str,
        /// Its value.
        value: u32,
    },
    /// The table ends before its contents do.
    Truncated {
        /// The size that the header asks for, in bytes.
        needed: u64,
        /// The size of the slice, in bytes.
        given: u64,
    },
    /// An entry of the table contradicts the rest.
    Damaged {
        /// Which part.
        what: &'static str,
        /// The index of the entry in that part.
        index: u32,
    },
    /// The scratch slice is too small for a word of the text.
    ///
    /// Nothing is lost: [`super::Encoder::run`] goes on at this word when it is called again with a larger slice.
    ScratchTooSmall {
        /// The size to try next, in bytes. Without NFC it is what the word takes; in the window that NFC uses it may take
        /// more than one try, each at least half as large again.
        needed: usize,
        /// The size of the slice, in bytes.
        given: usize,
    },
    /// The expressions of the pre-tokenizer look at too many characters: those of a table that no packer made.
    TooManySteps {
        /// The size of the text, in bytes.
        bytes: usize,
    },
    /// No token has this id. A model's padded vocabulary may be larger than its tokenizer's.
    UnknownId {
        /// The id.
        id: u32,
        /// Ids of tokens are below this.
        vocab_size: u32,
    },
}

impl fmt::Display for TokenizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotATable => {
                f.write_str("the tokenizer section is not a tokenizer table: pack the model again")
            }
            Self::Version { found } => {
                write!(f, "the tokenizer table has version {found}, this reader knows versions up to ")?;
                write!(f, "{}: pack the model again with the packer of this release", super::table::VERSION)
            }
            Self::Unsupported { what, value } => {
                write!(f, "the tokenizer table asks for {what} {value}, which this release does not know: ")?;
                f.write_str("use a newer release, or pack the model again")
            }
            Self::Truncated { needed, given } => {
                write!(f, "the tokenizer table needs {needed} bytes and only {given} are there: ")?;
                f.write_str("copy the file again")
            }
            Self::Damaged { what, index } => {
                write!(f, "the tokenizer table is damaged: {what} {index} contradicts the rest: ")?;
                f.write_str("copy the file again, or pack the model again")
            }
            Self::ScratchTooSmall { needed, given } => {
                write!(f, "the tokenizer's scratch has {given} bytes and a word of this text needs {needed}")
            }
            Self::TooManySteps { bytes } => {
                write!(
                    f,
                    "the tokenizer's expressions take too long to cut this text of {bytes} bytes into words: "
                )?;
                f.write_str("shorten it, or pack the model again")
            }
            Self::UnknownId { id, vocab_size } => {
                write!(f, "no token has the id {id}: the tokenizer has ids below {vocab_size}")
            }
        }
    }
}

impl core::error::Error for TokenizerError {}
