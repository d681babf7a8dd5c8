//! The depthwise convolution, with silu.

use core::ops::Range;

use super::elementwise::join;
use super::isa::Isa;
use super::operands::{Tap, Wide, WideMut, rows, rows_mut, words};
use crate::numbers::fixed::functions::silu;
use crate::numbers::fixed::{LOW, Num, Row, above_lowest, cut, mul_high};

#[inline(always)]
pub(super) fn conv_silu<S: Isa>(
    s: S,
    d_conv: usize,
    tokens: usize,
    range: Range<usize>,
    panels: &[u8],
    state: &mut [i32],
    exponents: &mut [u16],
    x: Wide<'_>,
    u: WideMut<'_>,
) {
    if d_conv == 0 || tokens == 0 {
        return;
    }
    let kept = d_conv - 1;
    let weights = panels.as_chunks::<64>().0.chunks_exact(d_conv.saturating_add(1));
    let input = rows(x.m).chunks_exact(tokens).zip(x.e.chunks_exact(tokens));
    let output = rows_mut(u.m).chunks_exact_mut(tokens).zip(u.e.chunks_exact_mut(tokens));
    let (mut state, mut exponents) = (rows_mut(state), exponents);
    let mut e = [0; 16];
    let taken = range.len();
    for (w, ((x, xe), (u, ue))) in weights.zip(input.zip(output)) {
        let (Some(x), Some(xe)) = (x.get(range.clone()), xe.get(range.clone())) else { return };
        let (Some(u), Some(ue)) = (u.get_mut(range.clone()), ue.get_mut(range.clone())) else { return };
        let (Some(past), Some(past_e)) = (state.split_off_mut(..kept), exponents.split_off_mut(..kept))
        else {
            return;
        };
        for (t, (u, ue)) in u.iter_mut().zip(ue).enumerate() {
            let tap = |k: usize| -> (&Row, i32) {
                match (past.get(t + k), past_e.get(t + k)) {
                    (Some(row), Some(e)) => (row, i32::from(*e) + LOW),
                    _ => match (t + k).checked_sub(kept).and_then(|i| Some((x.get(i)?, xe.get(i)?))) {
                        Some((row, e)) => (row, *e),
                        None => (&[0; 16], LOW),
                    },
                }
            };
            *ue = if S::VECTORS {
                convolve(s, w, tap, u, &mut e)
            } else {
                convolve_lanes(s, w, tap, u, &mut e)
            };
        }
        // The last inputs, oldest first.
        for j in 0..kept {
            let (row, e) = match (past.get(taken + j), past_e.get(taken + j)) {
                (Some(row), Some(e)) => (*row, *e),
                _ => match (taken + j).checked_sub(kept).and_then(|i| Some((x.get(i)?, xe.get(i)?))) {
                    Some((row, e)) => (*row, above_lowest(*e)),
                    None => continue,
                },
            };
            if let (Some(past), Some(past_e)) = (past.get_mut(j), past_e.get_mut(j)) {
                (*past, *past_e) = (row, e);
            }
        }
    }
}

/// Bits that the sum of a bias of 31 bits and eight products of 29 bits may have above the largest: below 2^30 then.
pub(super) const ROOM: i32 = 4;

/// `silu(bias + sum of w[k] x[k])` for sixteen channels; the bias comes after the taps. `e` is room for their exponents.
#[inline(always)]
fn convolve<'a, S: Isa>(
    s: S,
    weights: &[[u8; 64]],
    tap: impl Fn(usize) -> (&'a Row, i32),
    u: &mut Row,
    e: &mut Row,
) -> i32 {
    let Some((bias, taps)) = weights.split_last() else { return LOW };
    let bias = words(bias);
    let (mut top, mut sum) = ([0; 16], [0; 16]);
    for i in 0..16 {
        top[i] = Num::weight(bias[i]).e;
    }
    for (k, w) in taps.iter().enumerate() {
        let ((_, e), w) = (tap(k), words(w));
        for i in 0..16 {
            top[i] = top[i].max(e + Num::weight(w[i]).e + 32);
        }
    }
    for i in 0..16 {
        let bias = Num::weight(bias[i]);
        top[i] += ROOM;
        sum[i] = cut(bias.m, top[i] - bias.e);
    }
    for (k, w) in taps.iter().enumerate() {
        let ((x, e), w) = (tap(k), words(w));
        for i in 0..16 {
            let w = Num::weight(w[i]);
            sum[i] += cut(mul_high(x[i], w.m), top[i] - (e + w.e + 32));
        }
    }
    for i in 0..16 {
        let y = silu(Num { m: sum[i], e: top[i] });
        (u[i], e[i]) = (y.m, y.e);
    }
    join(s, u, e)
}

/// The most taps that a convolution has.
const TAPS: usize = 8;

/// The f32 of channel `i` in a row of weights.
#[inline(always)]
fn weight(w: &[u8; 64], i: usize) -> u32 {
    u32::from_le_bytes(w.as_chunks().0[i & 15])
}

/// The same for CPUs without vectors: one channel after the other, with all that it needs in registers. Returns the exponent. `e` is room for theirs.
#[inline(always)]
fn convolve_lanes<'a, S: Isa>(
    s: S,
    all: &[[u8; 64]],
    tap: impl Fn(usize) -> (&'a Row, i32),
    u: &mut Row,
    e: &mut Row,
) -> i32 {
    let Some((bias, weights)) = all.split_last() else { return LOW };
    let mut taps = [Tap { x: &[0; 16], e: LOW }; TAPS];
    for (k, to) in taps.iter_mut().take(weights.len()).enumerate() {
        let (x, e) = tap(k);
        *to = Tap { x, e };
    }
    let taps = taps.get(..weights.len()).unwrap_or_default();
    if !s.convolve(all, taps, u, e) {
        for i in 0..16 {
            let y = convolved(s, i, weight(bias, i), weights, taps);
            (u[i], e[i]) = (y.m, y.e);
        }
    }
    join(s, u, e)
}

/// Channel `i` of these.
#[inline(never)]
fn convolved<S: Isa>(s: S, i: usize, bias: u32, weights: &[[u8; 64]], taps: &[Tap<'_>]) -> Num {
    let i = i & 15;
    let bias = Num::weight(bias);
    let mut top = bias.e;
    let mut products = [Num { m: 0, e: 0 }; TAPS];
    for (to, (tap, w)) in products.iter_mut().zip(taps.iter().zip(weights)) {
        let w = Num::weight(weight(w, i));
        *to = Num { m: s.mul_high(tap.x[i], w.m), e: tap.e + w.e + 32 };
        top = top.max(to.e);
    }
    top += ROOM;
    let mut sum = s.cut(bias.m, top - bias.e);
    for product in products.iter().take(taps.len()) {
        sum += s.cut(product.m, top - product.e);
    }
    s.silu(Num { m: sum, e: top })
}
