//! Kernels over vectors: norms, quantizing activations, convolution.
//!
//! Activations of a chunk of `T` tokens lie panel by panel, `[d/16][T][16]`: a range of channels of all tokens is one
//! contiguous slice, and for one token the layout is the plain vector.

use core::ops::Range;

use super::isa::Isa;
use super::operands::Scale;
use crate::numbers::float::{self, One};
use crate::numbers::{GROUP, LANES};

/// Bits of the smallest magnitude that a quantized group keeps: 2^-100.
const TINY_BITS: u32 = (127 - 100) << 23;
/// Bits of infinity: at or above it a magnitude is not finite.
const INFINITE_BITS: u32 = 0x7f80_0000;

/// Sixteen floats, one panel's lanes of one token.
pub(super) type Lanes = [f32; LANES];

/// `x` as rows of sixteen; a rest shorter than that is left out.
#[inline(always)]
pub(super) fn rows(x: &[f32]) -> &[Lanes] {
    x.as_chunks().0
}

#[inline(always)]
pub(super) fn rows_mut(x: &mut [f32]) -> &mut [Lanes] {
    x.as_chunks_mut().0
}

/// Joins sixteen lanes by a fixed tree: distance 8, 4, 2, 1.
#[inline(always)]
fn sum_lanes(mut v: Lanes) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            v[i] += v[i + half];
        }
        half /= 2;
    }
    v[0]
}

/// Tokens whose sums [`rms_inv`] keeps beside each other: what it reads of a row of panels is then contiguous.
const SUMS: usize = 16;

#[inline(always)]
pub(super) fn rms_inv<S: Isa>(
    s: S,
    x: &[f32],
    tokens: usize,
    first: usize,
    n: u32,
    eps: f32,
    inv: &mut [f32],
) {
    // A token alone needs no memory for sums: to clear and to copy it was most of the work.
    if inv.len() == 1 {
        rms_inv_of::<S, 1>(s, x, tokens, first, n, eps, inv);
    } else {
        rms_inv_of::<S, SUMS>(s, x, tokens, first, n, eps, inv);
    }
}

/// The same, `N` tokens at a time.
#[inline(always)]
fn rms_inv_of<S: Isa, const N: usize>(
    s: S,
    x: &[f32],
    tokens: usize,
    first: usize,
    n: u32,
    eps: f32,
    inv: &mut [f32],
) {
    let panels = rows(x).chunks_exact(tokens.max(1));
    for (block, inv) in inv.chunks_mut(N).enumerate() {
        let mut sums = [s.splat(0.0); N];
        for panel in panels.clone() {
            let Some(panel) = panel.get(first + block * N..) else { return };
            for ((sum, row), _) in sums.iter_mut().zip(panel).zip(&*inv) {
                let v = s.load(row);
                *sum = s.fma(v, v, *sum);
            }
        }
        for (sum, inv) in sums.iter().zip(inv) {
            let mut lanes = [0.0; LANES];
            s.store(*sum, &mut lanes);
            *inv = float::inv_sqrt(One, sum_lanes(lanes) / n as f32 + eps);
        }
    }
}

#[inline(always)]
pub(super) fn normalize<S: Isa>(s: S, x: &[f32], weight: &[u8], inv: &[f32], y: &mut [f32]) {
    let tokens = inv.len().max(1);
    let panels = rows(x).chunks_exact(tokens).zip(rows_mut(y).chunks_exact_mut(tokens));
    for ((x, y), w) in panels.zip(weight.as_chunks().0) {
        let w = s.load_f32_bytes(w);
        for ((x, y), &inv) in x.iter().zip(y).zip(inv) {
            s.store(s.mul(s.mul(s.load(x), s.splat(inv)), w), y);
        }
    }
}

#[inline(always)]
pub(super) fn rescale<S: Isa>(s: S, x: &mut [f32], inv: &[f32]) {
    for x in rows_mut(x).chunks_exact_mut(inv.len().max(1)) {
        for (x, &inv) in x.iter_mut().zip(inv) {
            s.store(s.mul(s.load(x), s.splat(inv)), x);
        }
    }
}

#[inline(always)]
pub(super) fn quantize<S: Isa>(
    s: S,
    tokens: usize,
    range: Range<usize>,
    x: &[f32],
    q: &mut [i8],
    scales: &mut [Scale],
) -> bool {
    if tokens == 0 || range.is_empty() {
        return true;
    }
    let mut finite = true;
    let outputs = q.as_chunks_mut::<GROUP>().0.chunks_exact_mut(range.len());
    let groups = rows(x).chunks_exact(2 * tokens).zip(outputs);
    for ((x, q), scales) in groups.zip(scales.chunks_exact_mut(range.len())) {
        let (low, high) = x.split_at(tokens);
        let (Some(low), Some(high)) = (low.get(range.clone()), high.get(range.clone())) else {
            return finite;
        };
        for (((low, high), q), scale) in low.iter().zip(high).zip(q).zip(scales) {
            let (low, high) = (s.load(low), s.load(high));
            let largest = s.max_bits(s.accumulate_abs_bits(s.accumulate_abs_bits(s.zero_bits(), low), high));
            finite &= largest < INFINITE_BITS;
            if largest < TINY_BITS {
                *q = [0; GROUP];
                *scale = Scale { scale: 0.0, sum: 0 };
                continue;
            }
            let amax = f32::from_bits(largest);
            let inv = s.splat(127.0 / amax);
            let sum = s.store_rounded_group(s.mul(low, inv), s.mul(high, inv), q);
            *scale = Scale { scale: amax / 127.0, sum };
        }
    }
    finite
}

#[inline(always)]
pub(super) fn conv_silu<S: Isa>(
    s: S,
    d_conv: usize,
    tokens: usize,
    range: Range<usize>,
    panels: &[u8],
    state: &mut [f32],
    x: &[f32],
    u: &mut [f32],
) {
    if d_conv == 0 || tokens == 0 {
        return;
    }
    let (kept, count) = (d_conv - 1, range.len());
    let weights = panels.as_chunks::<{ 4 * LANES }>().0.chunks_exact(d_conv + 1);
    let io = rows(x).chunks_exact(tokens).zip(rows_mut(u).chunks_exact_mut(tokens));
    for (p, (w, (x, u))) in weights.zip(io).enumerate() {
        let Some(state) = rows_mut(state).get_mut(p * kept..(p + 1) * kept) else { return };
        let (Some(x), Some(u)) = (x.get(range.clone()), u.get_mut(range.clone())) else { return };
        let (taps, bias) = w.split_at(d_conv);
        let bias = s.load_f32_bytes(&bias[0]);
        for (t, u) in u.iter_mut().enumerate() {
            let mut acc = bias;
            for (k, w) in taps.iter().enumerate() {
                let input = if t + k < kept { &state[t + k] } else { &x[t + k - kept] };
                acc = s.fma(s.load_f32_bytes(w), s.load(input), acc);
            }
            s.store(s.silu(acc), u);
        }
        for j in 0..kept {
            state[j] = if count + j < kept { state[count + j] } else { x[count + j - kept] };
        }
    }
}

#[inline(always)]
pub(super) fn add<S: Isa>(s: S, x: &mut [f32], y: &[f32]) -> bool {
    let mut largest = s.zero_bits();
    for (x, y) in rows_mut(x).iter_mut().zip(rows(y)) {
        let sum = s.add(s.load(x), s.load(y));
        largest = s.accumulate_abs_bits(largest, sum);
        s.store(sum, x);
    }
    s.max_bits(largest) < INFINITE_BITS
}

#[inline(always)]
pub(super) fn is_finite<S: Isa>(s: S, x: &[f32]) -> bool {
    let mut largest = s.zero_bits();
    for x in rows(x) {
        largest = s.accumulate_abs_bits(largest, s.load(x));
    }
    s.max_bits(largest) < INFINITE_BITS
}
