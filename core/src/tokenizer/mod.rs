//! BPE over bytes or characters, read in place from a packed file: text to tokens and back, without an allocator.
//!
//! The packer compiles a Hugging Face `tokenizer.json` into one table (`docs/tokenizer.md` has its layout, [`table`]
//! its definition). [`Tokenizer::parse`] checks the table once; after that nothing that it holds, and no text, can
//! make encoding or decoding panic or run without end.
//!
//! The stages of encoding, each in its own module:
//!
//! 1. [`added`]: tokens that are matched in the raw text (special tokens mostly) cut it into segments.
//! 2. [`nfc`]: where the tokenizer asks for it, the segments are normalised. Text that is in NFC already, which is
//!    almost all text, is used where it lies; the rest passes through a window in the caller's scratch.
//! 3. [`added`] again: tokens that are matched in the normalised text.
//! 4. [`split`]: the pre-tokenizer cuts what remains into words. One that is not built in consists of [`pattern`]s.
//! 5. [`bpe`]: a word is one token, found by hash, or is merged from its bytes, or from its characters ([`chars`]).
//!
//! [`encode`] joins them and [`decode`] goes back.

pub mod added;
pub mod bpe;
pub mod chars;
pub mod decode;
pub mod encode;
mod error;
pub mod nfc;
pub mod pattern;
pub mod split;
mod stages;
pub mod table;
pub mod unicode;
mod view;

pub use decode::Decoder;
pub use encode::{EncodeOptions, Encoder};
pub use error::TokenizerError;
pub use view::Tokenizer;
