//! The calibration's text as tokens.

use std::path::Path;

use elapid_core::tokenizer::{EncodeOptions, Encoder, Tokenizer, TokenizerError};

use super::PIECE;
use crate::PackError;

/// About `tokens` tokens of a text, in pieces of [`PIECE`] spread over all of it.
///
/// # Errors
/// If the text can't be read or is shorter than one piece, or `tokenizer` is none.
pub(crate) fn pieces(tokenizer: &[u8], text: &Path, tokens: usize) -> Result<Vec<Vec<u32>>, PackError> {
    let invalid = |reason: String| PackError::Calibration { path: text.to_owned(), reason };
    if tokenizer.is_empty() {
        return Err(invalid(
            "the checkpoint has no tokenizer for it: put its tokenizer.json into the folder".into(),
        ));
    }
    let tokenizer = Tokenizer::parse(tokenizer).map_err(|e| invalid(e.to_string()))?;
    let bytes = elapid_files::read_stream(text).map_err(PackError::io(text))?;
    let whole = String::from_utf8(bytes).map_err(|e| {
        invalid(format!("not UTF-8 from byte {} on: give a plain text", e.utf8_error().valid_up_to()))
    })?;
    let all = encode(&tokenizer, &whole).map_err(|e| invalid(e.to_string()))?;
    let there = all.len() / PIECE;
    if there == 0 {
        return Err(invalid(format!("{} tokens: give a text of {PIECE} at least", all.len())));
    }
    let wanted = tokens.div_ceil(PIECE).clamp(1, there);
    let piece = |i: usize| i * there / wanted * PIECE;
    Ok((0..wanted).map(|i| all[piece(i)..][..PIECE].to_vec()).collect())
}

/// A whole text as tokens, however long its words are.
fn encode(tokenizer: &Tokenizer<'_>, text: &str) -> Result<Vec<u32>, TokenizerError> {
    let (mut tokens, mut scratch) = (Vec::new(), vec![0; 8 << 10]);
    let mut encoder = Encoder::new(text, EncodeOptions { add_special: false, ..EncodeOptions::default() });
    loop {
        match encoder.run(tokenizer, &mut scratch, &mut |token| tokens.push(token)) {
            Ok(()) => return Ok(tokens),
            Err(TokenizerError::ScratchTooSmall { needed, given }) if needed > given => {
                scratch.resize(needed.max(2 * given), 0);
            }
            Err(error) => return Err(error),
        }
    }
}
