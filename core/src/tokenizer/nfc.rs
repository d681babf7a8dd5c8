//! Unicode normalisation form C, a segment at a time.
//!
//! A *segment* starts at a character that never interacts with what is before it ([`order`] is 0) and goes on to the
//! next such character, so that the form of a text is the forms of its segments, one after the other.

use super::unicode::{UNSTABLE, char_at, compose, decompose, order};

/// Bytes of scratch for each character of a decomposed segment: its key, and its UTF-8.
const SCRATCH_PER_CHAR: usize = 12;

/// Where the part of `text[from..to]` ends that is in NFC for certain: at `to`, or at the start of the first segment
/// that may not be.
#[must_use]
pub fn stable_until(text: &[u8], from: usize, to: usize) -> usize {
    let text = text.get(..to).unwrap_or(text);
    let (mut at, mut boundary, mut last) = (from, from, 0);
    loop {
        let ascii = ascii_until(text, at);
        if ascii > at {
            (at, boundary, last) = (ascii, ascii - 1, 0);
        }
        let Some((c, len)) = char_at(text, at) else { return text.len() };
        let order = order(c);
        if order == 0 {
            boundary = at;
        } else if order & UNSTABLE != 0 || order < last {
            return boundary;
        }
        last = order;
        at += len;
    }
}

/// Where the run of ASCII that starts at `from` ends.
fn ascii_until(text: &[u8], from: usize) -> usize {
    let rest = text.get(from..).unwrap_or(&[]);
    let high = |chunk: &[u8; 8]| u64::from_le_bytes(*chunk) & 0x8080_8080_8080_8080 != 0;
    let (chunks, _) = rest.as_chunks::<8>();
    let whole = 8 * chunks.iter().position(high).unwrap_or(chunks.len());
    let tail = rest.get(whole..).unwrap_or(&[]);
    from + whole + tail.iter().position(|&byte| byte >= 0x80).unwrap_or(tail.len())
}

/// Where the segment that starts at `from` ends.
#[must_use]
pub fn segment_end(text: &[u8], from: usize, to: usize) -> usize {
    let text = text.get(..to).unwrap_or(text);
    let mut at = from;
    while let Some((c, len)) = char_at(text, at) {
        if at > from && order(c) == 0 {
            break;
        }
        at += len;
    }
    at
}

/// Normalises one segment: writes its form to the start of `scratch` and gives its length.
///
/// # Errors
/// Where `scratch` is too small, the size that it takes: 12 bytes for each character of the decomposed segment.
pub fn normalize_segment(segment: &[u8], scratch: &mut [u8]) -> Result<usize, usize> {
    let mut count = 0;
    for_each_char(segment, |c| for_each_part(c, &mut |_| count += 1));
    let needed = SCRATCH_PER_CHAR * count;
    let (out, keys) = scratch.split_at_mut_checked(needed - 8 * count).ok_or(needed)?;
    let keys = keys.as_chunks_mut::<8>().0.get_mut(..count).ok_or(needed)?;

    let mut slots = keys.iter_mut();
    let mut index = 0;
    for_each_char(segment, |c| {
        for_each_part(c, &mut |part| {
            if let Some(slot) = slots.next() {
                *slot = Key::new(part, index).0;
                index += 1;
            }
        });
    });
    // Each run of marks is put in order. The index in the key makes the sort stable.
    for run in keys.chunk_by_mut(|a, b| Key(*a).order() != 0 && Key(*b).order() != 0) {
        if !run.is_sorted_by_key(|&key| Key(key).order()) {
            run.sort_unstable_by_key(|&key| u64::from_le_bytes(key));
        }
    }
    let kept = compose_all(keys);
    let mut len = 0;
    for &key in keys.iter().take(kept) {
        let c = char::from_u32(Key(key).char()).unwrap_or(char::REPLACEMENT_CHARACTER);
        if let Some(to) = out.get_mut(len..len + c.len_utf8()) {
            len += c.encode_utf8(to).len();
        }
    }
    Ok(len)
}

/// A decomposed character: its canonical order, its place in the segment and its code point, from high bits to low.
#[derive(Clone, Copy)]
struct Key([u8; 8]);

impl Key {
    fn new(c: u32, index: u64) -> Self {
        let order = order(c) & !UNSTABLE;
        Self((u64::from(order) << 56 | index << 21 | u64::from(c)).to_le_bytes())
    }

    const fn order(self) -> u8 {
        self.0[7]
    }

    const fn char(self) -> u32 {
        u64::from_le_bytes(self.0) as u32 & 0x1f_ffff
    }
}

/// Composes in place what is in canonical order, and gives how many characters remain.
fn compose_all(keys: &mut [[u8; 8]]) -> usize {
    let mut kept = 0;
    // The last starter, as its index and itself.
    let mut starter: Option<(usize, u32)> = None;
    let mut last_order = 0;
    for i in 0..keys.len() {
        let Some(&key) = keys.get(i) else { break };
        let (c, order) = (Key(key).char(), Key(key).order());
        if let Some((at, first)) = starter
            // What stands between blocks, unless it comes strictly before in canonical order.
            && (kept == at + 1 || last_order < order)
            && let Some(joined) = compose(first, c)
        {
            if let Some(slot) = keys.get_mut(at) {
                *slot = Key::new(joined, 0).0;
            }
            starter = Some((at, joined));
            continue;
        }
        if order == 0 {
            starter = Some((kept, c));
        }
        last_order = order;
        if let Some(slot) = keys.get_mut(kept) {
            *slot = key;
        }
        kept += 1;
    }
    kept
}

fn for_each_char(text: &[u8], mut f: impl FnMut(u32)) {
    let mut at = 0;
    while let Some((c, len)) = char_at(text, at) {
        f(c);
        at += len;
    }
}

/// The full canonical decomposition. No chain of the table is longer than four; a test goes through all of it.
fn for_each_part(c: u32, f: &mut impl FnMut(u32)) {
    let mut rest = [0; 4];
    let mut depth = 0;
    let mut first = c;
    while let Some((head, second)) = decompose(first) {
        first = head;
        if second != 0
            && let Some(slot) = rest.get_mut(depth)
        {
            *slot = second;
            depth += 1;
        }
    }
    f(first);
    for &second in rest.iter().take(depth).rev() {
        f(second);
    }
}
