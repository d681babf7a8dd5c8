//! Convolution and scan for CPUs without vectors: one channel after the other, with all that it needs in registers.

use super::scan::{Channel, FINE, Hold, SUMMED, Token, gate, rows_of, step};
use super::{Dot, Range, ScanInput};
use crate::fixed::num::{LOW, Num, Row, bits};

/// The most taps that a convolution has.
const TAPS: usize = 8;

/// The f32 of channel `i` in a row of weights.
#[inline(always)]
fn weight(w: &[u8; 64], i: usize) -> u32 {
    u32::from_le_bytes(w.as_chunks().0[i & 15])
}

/// Brings sixteen normal numbers to one exponent, that of 30 bits for the largest, and returns it.
#[inline(always)]
fn align<S: Dot>(s: S, m: &mut Row, e: &Row, top: i32) -> i32 {
    // Normal numbers have 31 bits.
    let to = top + 1;
    for (m, e) in m.iter_mut().zip(e) {
        *m = s.shift_right(*m, to - e);
    }
    to
}

/// One tap of the convolution.
#[derive(Clone, Copy)]
struct Tap<'a> {
    x: &'a Row,
    e: i32,
}

/// `silu(bias + sum of w[k] x[k])` for sixteen channels; returns the exponent.
#[inline(always)]
pub(super) fn convolve<'a, S: Dot>(
    s: S,
    weights: &[[u8; 64]],
    tap: impl Fn(usize) -> (&'a Row, i32),
    u: &mut Row,
) -> i32 {
    let Some((bias, weights)) = weights.split_last() else { return LOW };
    let mut taps = [Tap { x: &[0; 16], e: LOW }; TAPS];
    for (k, to) in taps.iter_mut().take(weights.len()).enumerate() {
        let (x, e) = tap(k);
        *to = Tap { x, e };
    }
    let taps = taps.get(..weights.len()).unwrap_or_default();
    let (mut e, mut largest) = ([0; 16], LOW);
    for i in 0..16 {
        let y = convolved(s, i, weight(bias, i), weights, taps);
        (u[i], e[i]) = (y.m, y.e);
        largest = largest.max(y.e);
    }
    align(s, u, &e, largest)
}

/// Channel `i` of these, normal.
#[inline(never)]
fn convolved<S: Dot>(s: S, i: usize, bias: u32, weights: &[[u8; 64]], taps: &[Tap<'_>]) -> Num {
    let i = i & 15;
    let bias = Num::from_f32_bits(bias);
    // A product's exponent, and 4 bits more for the sum of 9.
    let mut top = if bias.m == 0 { LOW } else { bias.e };
    let mut products = [Num { m: 0, e: LOW }; TAPS];
    for (to, (tap, w)) in products.iter_mut().zip(taps.iter().zip(weights)) {
        let (x, w) = (tap.x[i], Num::from_f32_bits(weight(w, i)));
        if x != 0 {
            let e = tap.e + w.e + 32;
            *to = Num { m: s.mul_high(x, w.m), e };
            top = top.max(e);
        }
    }
    let mut sum = s.shift_right(bias.m, (top + 4 - bias.e).max(1));
    for product in products.iter().take(taps.len()) {
        sum += s.shift_right(product.m, top + 4 - product.e);
    }
    s.normal(s.silu(Num { m: sum, e: top + 4 }))
}

/// A token of a panel of the scan; returns the exponent of `u`.
#[inline(always)]
pub(super) fn scan<S: Dot, H: Hold>(
    s: S,
    io: &Token<'_>,
    h: &mut [[H; 16]],
    ranges: &mut [Range; 16],
    u: &mut Row,
    ue: i32,
) -> i32 {
    let mut pairs = pairs(io.input, io.t);
    let (mut e, mut largest) = ([0; 16], LOW);
    for i in 0..16 {
        let y = channel(s, io, i, Num { m: u[i], e: ue }, &mut ranges[i], h, &mut pairs);
        (u[i], e[i]) = (y.m, y.e);
        largest = largest.max(y.e);
    }
    align(s, u, &e, largest)
}

/// Channel `i`, apart from the loop, so that it has the registers: `(y + D u) silu(z)`, normal.
#[inline(never)]
fn channel<S: Dot, H: Hold>(
    s: S,
    io: &Token<'_>,
    i: usize,
    u: Num,
    range: &mut Range,
    h: &mut [[H; 16]],
    pairs: &mut Pairs,
) -> Num {
    let i = i & 15;
    let (channel, unit) = step(s, Num { m: io.dt.0[i], e: io.dt.1 }, u, io.exponents.0, *range);
    let by_hand = match (io.a.try_into(), H::narrow(h)) {
        (Ok(a), Some(h)) => s.states(&channel, i, a, h, pairs),
        _ => None,
    };
    let (y, largest) = match by_hand {
        Some(done) => done,
        None => portable(&channel, i, io, h),
    };
    let kept = unit + H::CUT;
    *range = Range::new(kept, kept + bits(largest));
    let y = Num { m: y, e: unit + FINE + io.exponents.1 + SUMMED };
    s.normal(gate(s, y, weight(io.d, i), u, Num { m: io.z.0[i], e: io.z.1 }))
}

/// For two states each what is left of them, and their B and C as two halves of a word.
pub(super) type Pairs = [[u32; 4]; 8];

/// B and C of the first sixteen states of token `t`.
#[inline(always)]
fn pairs(input: &ScanInput<'_>, t: usize) -> Pairs {
    let word = |[low, high]: [i16; 2]| u32::from(high as u16) << 16 | u32::from(low as u16);
    let mut pairs = [[0; 4]; 8];
    if let (Some(b), Some(c)) = (rows_of(input.b).get(t), rows_of(input.c).get(t)) {
        for (pair, (b, c)) in pairs.iter_mut().zip(b.as_chunks().0.iter().zip(c.as_chunks().0)) {
            *pair = [0, 0, word(*b), word(*c)];
        }
    }
    pairs
}

/// All states of channel `i` by portable code: the sum of their products with C, and their magnitudes joined.
#[inline(never)]
fn portable<H: Hold>(channel: &Channel, i: usize, io: &Token<'_>, h: &mut [[H; 16]]) -> (i32, u32) {
    let (mut y, mut largest) = (0, 0);
    let mut at = io.t;
    for (a, h) in io.a.chunks(16).zip(h.chunks_mut(16)) {
        let (Some(b), Some(c)) = (rows_of(io.input.b).get(at), rows_of(io.input.c).get(at)) else { break };
        let (sum, all) = channel.states(i, a, h, b, c);
        y += sum;
        largest |= all;
        at += io.input.tokens;
    }
    (y, largest)
}
