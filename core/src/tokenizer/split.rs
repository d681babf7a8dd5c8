//! The pre-tokenizers: where a text is cut into words.

use super::table::PreTokenizer;
use super::unicode::{LETTER, NUMBER, OTHER, PUNCTUATION, SPACE, char_at, kind};

/// Bytes beyond the end of a word that may decide it, without those of added tokens: a character.
pub const LOOK_AHEAD: usize = 4;

/// A word, as far as it can be told from a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The end of the word.
    pub end: usize,
    /// The place that decided this: with more text, another answer is possible only where this is the end of the piece.
    pub decided: usize,
}

/// Cuts one word from `text[at..]`, which must not be empty.
///
/// GPT-2's expression is
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`: everything is matched by one of the
/// alternatives, and a match never depends on what is before it. Falcon's applies it to runs with and without
/// punctuation, each as a text of its own.
#[inline]
#[must_use]
pub fn cut(pre: PreTokenizer, text: &[u8], at: usize) -> Cut {
    let falcon = pre == PreTokenizer::Falcon;
    let kind_at = |at: usize| {
        let (c, len) = char_at(text, at)?;
        match kind(c) {
            PUNCTUATION if !falcon => Some((OTHER, len)),
            kind => Some((kind, len)),
        }
    };
    let run_end = |mut at: usize, kind: u8| {
        loop {
            match kind_at(at) {
                Some((next, len)) if next == kind => at += len,
                _ => return at,
            }
        }
    };
    let whole = |end: usize| Cut { end, decided: end };
    let Some((first, len)) = kind_at(at) else { return whole(text.len()) };
    if !falcon && let Some(len) = contraction(text.get(at..).unwrap_or(&[])) {
        return whole(at + len);
    }
    if first != SPACE {
        return whole(run_end(at + len, first));
    }
    if text.get(at) == Some(&b' ')
        && let Some((second @ (LETTER | NUMBER | OTHER), len)) = kind_at(at + 1)
    {
        return whole(run_end(at + 1 + len, second));
    }
    // A run of white space leaves its last character to what follows, if anything follows and the run has two or more.
    let (mut last, mut end) = (at, at + len);
    while let Some((SPACE, len)) = kind_at(end) {
        last = end;
        end += len;
    }
    let apart = kind_at(end).is_none_or(|(next, _)| falcon && next == PUNCTUATION);
    Cut { end: if apart || last == at { end } else { last }, decided: end }
}

/// The length of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at the start of `text`.
fn contraction(text: &[u8]) -> Option<usize> {
    match text {
        [b'\'', b's' | b't' | b'm' | b'd', ..] => Some(2),
        [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => Some(3),
        _ => None,
    }
}

/// Whether Falcon's `Digits`, which looks at the letters that stand for bytes, takes a byte for a number: ² ³ ¹ ¼ ½ ¾ are
/// among those letters, so that some continuation bytes of UTF-8 count.
const fn is_numeric_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | 0xb2 | 0xb3 | 0xb9 | 0xbc..=0xbe)
}

/// Where the first piece of a word ends that is left once `Digits` and the split at `[0-9][0-9][0-9]` have seen it, in
/// Falcon's pre-tokenizer: numeric bytes are apart from others, and three digits in a row from all else.
#[must_use]
pub fn cut_digits(word: &[u8]) -> usize {
    let numeric = word.first().is_some_and(|&byte| is_numeric_byte(byte));
    for (i, &byte) in word.iter().enumerate() {
        if is_numeric_byte(byte) != numeric {
            return i;
        }
        if numeric && word.get(i..i + 3).is_some_and(|three| three.iter().all(u8::is_ascii_digit)) {
            return if i == 0 { 3 } else { i };
        }
    }
    word.len()
}
