//! What the pre-tokenizers and NFC ask about a character, from tables of two levels.
//!
//! `tables` is generated from the `tokenizers` crate by the test `tables_are_current` in
//! `tests/tokenizer/tests/unicode.rs`, so that the answers are those of the implementation that models were trained
//! with, whatever Unicode version each of its parts follows (`docs/tokenizer.md` lists them).

#[rustfmt::skip]
mod tables;

use tables::{
    ASCII_KINDS, COMPOSE, DECOMPOSE, HIGH_KINDS, HIGH_ORDERS, KIND_BLOCKS, KIND_INDEX, ORDER_BLOCKS,
    ORDER_INDEX,
};

/// What a character is to the pre-tokenizers.
pub type Kind = u8;
/// Anything else: `[^\s\p{L}\p{N}]` without punctuation.
pub const OTHER: Kind = 0;
/// A letter: `\p{L}`.
pub const LETTER: Kind = 1;
/// A number: `\p{N}`.
pub const NUMBER: Kind = 2;
/// White space: `\s`.
pub const SPACE: Kind = 3;
/// Punctuation: `\p{P}`, and all ASCII punctuation. To GPT-2's pre-tokenizer it is like [`OTHER`].
pub const PUNCTUATION: Kind = 4;

/// Set in an order where a character may change under NFC: itself, or by joining one before it.
pub const UNSTABLE: u8 = 0x80;

/// Characters from here on are in short lists of ranges.
const HIGH: u32 = 0x2_0000;

/// The kind of an ASCII byte, or of the character with this code point.
#[inline]
#[must_use]
pub fn kind(c: u32) -> Kind {
    if c < 0x80 {
        return ASCII_KINDS.get(c as usize).copied().unwrap_or(OTHER);
    }
    if c >= HIGH {
        return in_ranges(&HIGH_KINDS, c);
    }
    // 128 characters a block, two to a byte.
    let block = KIND_INDEX.get((c >> 7) as usize).map_or(0, |&block| usize::from(block));
    let pair = KIND_BLOCKS.get(block * 64 + (c as usize & 127) / 2).copied().unwrap_or(OTHER);
    if c & 1 == 0 { pair & 15 } else { pair >> 4 }
}

/// A character's place in canonical order: the rank of its combining class, 0 for a starter, and [`UNSTABLE`].
///
/// Where this is 0, NFC never changes or reorders anything across the place before the character.
#[inline]
#[must_use]
pub fn order(c: u32) -> u8 {
    if c < 0x300 {
        return 0;
    }
    if c >= HIGH {
        return in_ranges(&HIGH_ORDERS, c);
    }
    let block = ORDER_INDEX.get((c >> 6) as usize).map_or(0, |&block| usize::from(block));
    ORDER_BLOCKS.get(block * 64 + (c as usize & 63)).copied().unwrap_or(0)
}

fn in_ranges(ranges: &[(u32, u32, u8)], c: u32) -> u8 {
    let at = ranges.partition_point(|range| range.0 <= c);
    match at.checked_sub(1).and_then(|i| ranges.get(i)) {
        Some(&(_, last, value)) if c <= last => value,
        _ => 0,
    }
}

/// The first of the 11,172 Hangul syllables, and the three kinds of letters that they are made of.
const S: u32 = 0xac00;
const L: u32 = 0x1100;
const V: u32 = 0x1161;
/// One before the first: index 0 is no final letter.
const T: u32 = 0x11a7;
const L_COUNT: u32 = 19;
const V_COUNT: u32 = 21;
const T_COUNT: u32 = 28;

/// One step of a character's canonical decomposition: a first part, which may decompose further, and a second one, which
/// is 0 where there is only one.
#[must_use]
pub fn decompose(c: u32) -> Option<(u32, u32)> {
    if let Some(s) = c.checked_sub(S).filter(|&s| s < L_COUNT * V_COUNT * T_COUNT) {
        return Some(match s % T_COUNT {
            0 => (L + s / (V_COUNT * T_COUNT), V + s / T_COUNT % V_COUNT),
            t => (c - t, T + t),
        });
    }
    let at = DECOMPOSE.binary_search_by_key(&c, |&entry| (entry >> 42) as u32).ok()?;
    DECOMPOSE.get(at).map(|&entry| parts(entry))
}

/// The character that two others compose to.
#[must_use]
pub fn compose(first: u32, second: u32) -> Option<u32> {
    let index = |c: u32, from: u32, count: u32| c.checked_sub(from).filter(|&i| i < count);
    if let (Some(l), Some(v)) = (index(first, L, L_COUNT), index(second, V, V_COUNT)) {
        return Some(S + (l * V_COUNT + v) * T_COUNT);
    }
    if let (Some(s), Some(t)) = (index(first, S, L_COUNT * V_COUNT * T_COUNT), index(second, T, T_COUNT))
        && s % T_COUNT == 0
        && t > 0
    {
        return Some(first + t);
    }
    let entry = |&at: &u16| DECOMPOSE.get(usize::from(at)).copied().unwrap_or(0);
    let found = COMPOSE.binary_search_by_key(&(first, second), |at| parts(entry(at))).ok()?;
    COMPOSE.get(found).map(|at| (entry(at) >> 42) as u32)
}

/// The parts of an entry of the table: a character in the high 22 bits, then 21 for each part.
const fn parts(entry: u64) -> (u32, u32) {
    ((entry >> 21) as u32 & 0x1f_ffff, entry as u32 & 0x1f_ffff)
}

/// The character at `at`, as its code point and its length in bytes, or `None` at the end. Bytes that are not UTF-8 give
/// some code point, never a panic.
#[inline]
#[must_use]
pub fn char_at(text: &[u8], at: usize) -> Option<(u32, usize)> {
    let tail = |byte: u8| u32::from(byte & 0x3f);
    Some(match *text.get(at..)? {
        [] => return None,
        [a, ..] if a < 0x80 => (a.into(), 1),
        [a, b, ..] if a < 0xe0 => (u32::from(a & 0x1f) << 6 | tail(b), 2),
        [a, b, c, ..] if a < 0xf0 => (u32::from(a & 0x0f) << 12 | tail(b) << 6 | tail(c), 3),
        [a, b, c, d, ..] => (u32::from(a & 7) << 18 | tail(b) << 12 | tail(c) << 6 | tail(d), 4),
        _ => (0xfffd, 1),
    })
}
