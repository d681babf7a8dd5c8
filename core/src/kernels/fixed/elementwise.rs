//! Norms, narrowing to activations, the residual.

use super::isa::Isa;
use super::narrow::{NARROW, narrow_one};
use super::operands::{Activations, Exponents, Group, Inverse, WIDE, Wide, WideMut, rows, rows_mut, words};
use crate::numbers::GROUP;
use crate::numbers::fixed::functions::{LN_2, add as add_magnitudes, inverse_sqrt};
use crate::numbers::fixed::{LOW, Num, Row, bits, magnitude, mul_high, shift};

/// Bits to which elements are cut before they are squared: 2^16 squares of 2^46 fit.
const SQUARED: i32 = 23;

/// The bits of the largest of a row.
#[inline(always)]
fn row_bits(x: &Row) -> i32 {
    bits(x.iter().fold(0, |all, m| all | magnitude(*m)))
}

/// The exponent of a bound on a row.
#[inline(always)]
fn row_top(x: &Row, e: i32) -> i32 {
    let bits = row_bits(x);
    if bits == 0 { LOW } else { bits + e }
}

#[inline(always)]
pub(super) fn rms_inv<S: Isa>(
    _: S,
    x: &[i32],
    e: Exponents<'_>,
    tokens: usize,
    first: usize,
    n: u32,
    eps: u32,
    inv: &mut [Inverse],
) {
    for (i, inv) in inv.iter_mut().enumerate() {
        let t = first + i;
        let panels = || rows(x).iter().skip(t).step_by(tokens.max(1)).enumerate();
        let top = panels().fold(LOW, |top, (p, x)| top.max(row_top(x, e.of(p, tokens, t))));
        let unit = top - SQUARED;
        let mut sum = 0u64;
        for (p, x) in panels() {
            // Elements are cut, not rounded, to 23 bits of the largest.
            let s = e.of(p, tokens, t) - unit;
            let (left, right) = (s.clamp(0, 31) as u32, (-s).clamp(0, 31) as u32);
            for x in x {
                let x = i64::from((*x << left) >> right);
                sum += (x * x) as u64;
            }
        }
        let Num { m, e } = inverse_root_of_mean(sum, 2 * unit, n, eps);
        *inv = Inverse { m, e, top };
    }
}

/// `1 / sqrt(sum 2^e / n + eps)`.
#[inline(always)]
fn inverse_root_of_mean(sum: u64, e: i32, n: u32, eps: u32) -> Num {
    let mean = if sum == 0 {
        (0, LOW)
    } else {
        let k = sum.leading_zeros() as i32;
        // n is at most 2^16, so at least 47 bits are left.
        let mean =
            (sum << k) / core::num::NonZeroU64::new(u64::from(n)).unwrap_or(core::num::NonZeroU64::MIN);
        let j = mean.leading_zeros() as i32;
        (((mean << j) >> 32) as u32, e - k - j + 32)
    };
    let eps = Num::from_f32_bits(eps);
    let (m, e) = add_magnitudes(mean, ((eps.m.max(0) as u32) << 1, eps.e - 1));
    // Only zeros without an epsilon: whatever they are multiplied with.
    if m == 0 { Num { m: 0, e: 0 } } else { inverse_sqrt(m, e) }
}

/// Two rows as a group of activations.
#[inline(always)]
fn narrow_group<S: Isa>(s: S, low: &Row, low_e: i32, high: &Row, high_e: i32, q: &mut Activations) -> Group {
    let top = row_top(low, low_e).max(row_top(high, high_e));
    let exponent = (top - NARROW).max(LOW);
    let (rows, up) = ([low, high], [low_e - exponent, high_e - exponent]);
    Group { exponent, sum: s.activations(rows, up, q) }
}

#[inline(always)]
pub(super) fn narrow<S: Isa>(s: S, tokens: usize, x: Wide<'_>, q: &mut [i16], groups: &mut [Group]) {
    let tokens = tokens.max(1);
    let panels = rows(x.m)
        .chunks_exact(tokens.saturating_mul(2).max(1))
        .zip(x.e.chunks_exact(tokens.saturating_mul(2).max(1)));
    let out = q.as_chunks_mut::<GROUP>().0.chunks_exact_mut(tokens).zip(groups.chunks_exact_mut(tokens));
    for ((x, e), (q, groups)) in panels.zip(out) {
        let (low, high) = x.split_at_checked(tokens).unwrap_or_default();
        let (low_e, high_e) = e.split_at_checked(tokens).unwrap_or_default();
        let low = low.iter().zip(low_e).zip(high.iter().zip(high_e));
        for (((low, low_e), (high, high_e)), (q, group)) in low.zip(q.iter_mut().zip(groups)) {
            *group = narrow_group(s, low, *low_e, high, *high_e, q);
        }
    }
}

#[inline(always)]
pub(super) fn normalize<S: Isa>(
    s: S,
    x: &[i32],
    e: &[i32],
    weight: &[u8],
    inv: &[Inverse],
    q: &mut [i16],
    groups: &mut [Group],
) {
    let tokens = inv.len().max(1);
    let panels = rows(x)
        .chunks_exact(tokens.saturating_mul(2).max(1))
        .zip(weight.as_chunks::<64>().0.as_chunks::<2>().0);
    let out = q.as_chunks_mut::<GROUP>().0.chunks_exact_mut(tokens).zip(groups.chunks_exact_mut(tokens));
    let mut products = [[0; 16]; 2];
    for ((x, [low_w, high_w]), (q, groups)) in panels.zip(out) {
        let ((low_w, low_we), (high_w, high_we)) = (shared(s, low_w), shared(s, high_w));
        let (low, high) = x.split_at_checked(tokens).unwrap_or_default();
        let io = low.iter().zip(high).zip(q.iter_mut().zip(groups));
        for (((low, high), (q, group)), (e, inv)) in io.zip(e.iter().zip(inv)) {
            // x, as large as fits, times 1 / rms, times w: 2^30, 2^30 and 2^31 give 27 bits.
            let up = (e + WIDE - inv.top).clamp(0, WIDE);
            let e = e - up + inv.e + 64;
            for i in 0..16 {
                products[0][i] = s.mul_high(s.mul_high(low[i] << up, inv.m), low_w[i]);
                products[1][i] = s.mul_high(s.mul_high(high[i] << up, inv.m), high_w[i]);
            }
            let [low, high] = &products;
            *group = narrow_group(s, low, e + low_we, high, e + high_we, q);
        }
    }
}

/// Sixteen f32 from a model file with the exponent of the largest; of smaller ones what lies below 2^-31 of it is cut.
#[inline(always)]
fn shared<S: Isa>(s: S, w: &[u8; 64]) -> (Row, i32) {
    let w = words(w);
    let mut e = Num::weight(0).e;
    for i in 0..16 {
        e = e.max(Num::weight(w[i]).e);
    }
    let mut row = [0; 16];
    for i in 0..16 {
        let w = Num::weight(w[i]);
        row[i] = s.cut(w.m, e - w.e);
    }
    (row, e)
}

#[inline(always)]
pub(super) fn rescale<S: Isa>(_: S, x: WideMut<'_>, inv: &[Inverse]) {
    let tokens = inv.len().max(1);
    let panels = rows_mut(x.m).chunks_exact_mut(tokens).zip(x.e.chunks_exact_mut(tokens));
    for (x, e) in panels {
        for ((x, e), inv) in x.iter_mut().zip(e).zip(inv) {
            let up = WIDE - row_bits(x).min(WIDE);
            for x in x.iter_mut() {
                *x = mul_high(*x << up, inv.m);
            }
            *e += inv.e + 32 - up;
        }
    }
}

/// Brings sixteen numbers within 2^30 to the largest of their exponents, and returns it.
#[inline(always)]
pub(super) fn join<S: Isa>(s: S, m: &mut Row, e: &Row) -> i32 {
    let mut largest = e[0];
    for i in 1..16 {
        largest = largest.max(e[i]);
    }
    for i in 0..16 {
        m[i] = s.cut(m[i], largest - e[i]);
    }
    largest
}

#[inline(always)]
pub(super) fn add<S: Isa>(_: S, x: &mut [i32], from: &[i32], to: &[i32], y: Wide<'_>) {
    let tokens = to.len().max(1);
    let panels = rows_mut(x)
        .chunks_exact_mut(tokens)
        .zip(rows(y.m).chunks_exact(tokens).zip(y.e.chunks_exact(tokens)));
    for (x, (y, e)) in panels {
        for (((x, from), (y, e)), to) in x.iter_mut().zip(from).zip(y.iter().zip(e)).zip(to) {
            for (x, y) in x.iter_mut().zip(y) {
                *x = shift(*x, from - to) + shift(*y, e - to);
            }
        }
    }
}

/// `x ln(2)` for some panels.
pub(crate) fn times_ln_2(x: WideMut<'_>) {
    for x in x.m {
        *x = mul_high(*x, (LN_2 >> 1) as i32);
    }
    for e in x.e {
        *e += 1;
    }
}

/// Vectors of up to 256 elements, such as B and C, as mantissas within +-16383 with one exponent a token: with -16384 a state could
/// pass its bound by one.
pub(crate) fn narrow_vectors(tokens: usize, x: Wide<'_>, q: &mut [i16], exponents: &mut [i32]) {
    let tokens = tokens.max(1);
    for (t, exponent) in exponents.iter_mut().enumerate() {
        let panels = || rows(x.m).iter().zip(x.e).skip(t).step_by(tokens);
        let top = panels().fold(LOW, |top, (x, e)| top.max(row_top(x, *e)));
        *exponent = (top - NARROW).max(LOW);
        for ((x, e), q) in panels().zip(q.as_chunks_mut::<16>().0.iter_mut().skip(t).step_by(tokens)) {
            let most = (1 << NARROW) - 1;
            let s = e - *exponent;
            if s < 0 {
                let by = (-s - 1).min(31) as u32 & 31;
                for (q, x) in q.iter_mut().zip(x) {
                    *q = (((x >> by) + 1) >> 1).clamp(-most, most) as i16;
                }
            } else {
                for (q, x) in q.iter_mut().zip(x) {
                    *q = narrow_one(*x, s).max(-most as i16);
                }
            }
        }
    }
}
