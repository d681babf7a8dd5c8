//! The convolution for CPUs without vectors: one channel after the other, with all that it needs in registers.

use super::Dot;
use super::elementwise::{ROOM, join};
use crate::numbers::fixed::{LOW, Num, Row};

/// The most taps that a convolution has.
const TAPS: usize = 8;

/// The f32 of channel `i` in a row of weights.
#[inline(always)]
fn weight(w: &[u8; 64], i: usize) -> u32 {
    u32::from_le_bytes(w.as_chunks().0[i & 15])
}

/// One tap of the convolution: the inputs of sixteen channels, and their exponent.
#[derive(Clone, Copy)]
pub(crate) struct Tap<'a> {
    pub x: &'a Row,
    pub e: i32,
}

/// `silu(bias + sum of w[k] x[k])` for sixteen channels; returns the exponent. `e` is room for theirs.
#[inline(always)]
pub(super) fn convolve<'a, S: Dot>(
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
fn convolved<S: Dot>(s: S, i: usize, bias: u32, weights: &[[u8; 64]], taps: &[Tap<'_>]) -> Num {
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
