//! The functions of the fixed path, in integers.
//!
//! No tables but the coefficients, 4 bytes each. They are minimax (Remez, relative error) and rounded to the format in which
//! they are used. Errors are measured over every argument by `tests/tests/fixed_functions.rs` and listed in
//! `docs/numerics.md`. `Qn` means: in units of 2^-n.

use super::{LOW, Num, mul_high, mul_high_cut, mul_high_down, within_word};

/// 1 in Q30.
const ONE: u32 = 1 << 30;
/// `log2(e)`, Q31.
pub(crate) const LOG2_E: u32 = 3_098_164_009;
/// `ln(2)`, Q32.
pub(crate) const LN_2: u32 = 2_977_044_472;

/// The coefficients of [`exp2_fraction`], lowest first, Q30 to Q34: a product with a fraction in Q31 has a bit less.
pub(crate) const EXP2: [i32; 5] = [1 << 30, -1_488_342_682, 1_028_458_865, -457_186_996, 117_371_004];

/// The coefficients of [`log2_1p_ratio`], lowest first, Q30.
pub(crate) const LOG2: [i32; 7] =
    [1_256_197_209, -446_974_139, 205_450_651, -104_164_603, 56_151_456, -37_145_017, 21_905_606];

/// The coefficients of [`reciprocal_1p`]'s polynomial, lowest first, Q30.
pub(crate) const RECIPROCAL: [i32; 4] = [714_587_280, -476_391_520, 357_293_640, -238_195_760];

/// `2^-f` for the fraction `f` of `t`, in Q24: a result in (1/2, 1], Q30. The integer part of `t` is not looked at.
///
/// A polynomial of degree 4 by Horner's scheme: at `f = 0` exactly 1, so that what decays slowly does so at the right rate.
#[inline(always)]
#[must_use]
pub const fn exp2_fraction(t: u32) -> u32 {
    let f = (t << 8 >> 1) as i32;
    let [c0, c1, c2, c3, c4] = EXP2;
    let q = c3 + mul_high_down(f, c4);
    let q = c2 + mul_high_down(f, q);
    let q = c1 + mul_high_down(f, q);
    (c0 + mul_high_down(f, q)) as u32
}

/// `2^-t` for `t >= 0` in Q24, in Q30.
#[inline(always)]
#[must_use]
pub const fn exp2(t: u32) -> u32 {
    let whole = t >> 24;
    exp2_fraction(t) >> if whole < 31 { whole } else { 31 }
}

/// The largest number below 1, Q30: with 1 itself the functions below would leave 32 bits.
const BELOW_ONE: u32 = ONE - 1;

/// `x - 1/2` for `x` in [0, 1), Q30, in Q32: a factor that leaves a product's format as it is.
#[inline(always)]
const fn centered(x: u32) -> i32 {
    (x << 2 ^ 1 << 31) as i32
}

/// `log2(1 + x) / x` for `x` in [0, 1], Q30; the result in Q30.
///
/// A polynomial of degree 6 in `x - 1/2` by Horner's scheme.
#[inline(always)]
#[must_use]
pub const fn log2_1p_ratio(x: u32) -> u32 {
    let v = centered(if x < ONE { x } else { BELOW_ONE });
    let [c0, c1, c2, c3, c4, c5, c6] = LOG2;
    let q = c5 + mul_high_down(v, c6);
    let q = c4 + mul_high_down(v, q);
    let q = c3 + mul_high_down(v, q);
    let q = c2 + mul_high_down(v, q);
    let q = c1 + mul_high_down(v, q);
    (c0 + mul_high_down(v, q)) as u32
}

/// `1 / (1 + x)` for `x` in [0, 1], Q30; the result in Q30.
///
/// A polynomial of degree 3 in `x - 1/2` (error 0.0018), then a step of Newton's, which squares the error.
#[inline(always)]
#[must_use]
pub const fn reciprocal_1p(x: u32) -> u32 {
    let x = if x < ONE { x } else { BELOW_ONE };
    let v = centered(x);
    let [c0, c1, c2, c3] = RECIPROCAL;
    let r = c2 + mul_high_down(v, c3);
    let r = c1 + mul_high_down(v, r);
    let r = c0 + mul_high_down(v, r);
    // 1 - (1 + x) r, between -0.0018 and 0.0018, in Q28, then Q32.
    let rest = (ONE as i32 >> 2) + mul_high_down(-((ONE + x) as i32), r);
    (r + mul_high_down(r, rest << 4)) as u32
}

/// `1 / sqrt(x)` for `x` in [1/4, 1), Q24; the result in (1, 2], Q30.
///
/// A polynomial of degree 2 (error 0.024), then three steps of Newton's.
#[must_use]
pub const fn rsqrt(x: u32) -> u32 {
    let x = x as u64;
    let linear = 1_763_813_450 - ((x * 879_700_126) >> 24);
    let mut y = (1_433_894_133 - ((x * linear) >> 24)) << 1;
    let mut i = 0;
    while i < 3 {
        let square = (((y * y) >> 30) * x) >> 24;
        y = (y * ((3 << 30) - square)) >> 31;
        i += 1;
    }
    y as u32
}

/// `|v| log2(e)` of a normal `v` as a mantissa of `v`'s exponent, and in Q24. Where `|v|` is 128 or more, the latter is a number between
/// 92 and 185 instead: `2^-92` and less is nothing to all who ask.
#[inline(always)]
const fn scaled(v: Num) -> (u32, u32) {
    let product = mul_high_cut(v.m.unsigned_abs() << 1, LOG2_E);
    let s = -(v.e + 24);
    (product, product >> within_word(s))
}

/// `softplus(v) log2(e) = log2(1 + e^v)`, which is `max(v log2 e, 0) + log2(1 + 2^-(|v| log2 e))`, as a mantissa in
/// [2^31, 2^32) and its exponent. Never 0.
#[inline(always)]
#[must_use]
pub const fn softplus_log2(v: Num) -> (u32, i32) {
    let v = v.normal();
    let (product, z) = scaled(v);
    let (p, whole) = (exp2_fraction(z), (z >> 24) as i32);
    let power = p >> if whole < 31 { whole } else { 31 };
    let tail = mul_high_down(p as i32, log2_1p_ratio(power) as i32) as u32;
    let (linear, e) = if v.m > 0 { (product, v.e) } else { (0, LOW) };
    add((linear, e), (tail, -28 - whole))
}

/// The sum of two magnitudes, normal if it is not 0.
#[inline(always)]
#[must_use]
pub(crate) const fn add(a: (u32, i32), b: (u32, i32)) -> (u32, i32) {
    let e = if a.1 > b.1 { a.1 } else { b.1 } + 1;
    let (s, t) = (e - a.1, e - b.1);
    let sum = (a.0 >> if s < 31 { s } else { 31 }) + (b.0 >> if t < 31 { t } else { 31 });
    if sum == 0 {
        return (0, LOW);
    }
    let k = sum.leading_zeros();
    (sum << k, e - k as i32)
}

/// `silu(v) = v / (1 + e^-v)`, for `v < 0` as `v e^v / (1 + e^v)`: a mantissa within 2^30, of 26 bits or more unless `v` is 0.
#[inline(always)]
#[must_use]
pub const fn silu(v: Num) -> Num {
    let v = v.normal();
    let (_, z) = scaled(v);
    let (p, whole) = (exp2_fraction(z), (z >> 24) as i32);
    let power = p >> if whole < 31 { whole } else { 31 };
    let r = reciprocal_1p(power) as i32;
    let (factor, whole) = if v.m < 0 { (mul_high_down(p as i32, r) << 2, whole) } else { (r, 0) };
    Num { m: mul_high(v.m, factor), e: v.e + 2 - whole }
}

/// `1 / sqrt(m 2^e)` for `m` in [2^31, 2^32), as a mantissa in [2^29, 2^30] and its exponent.
#[must_use]
pub const fn inverse_sqrt(m: u32, e: i32) -> Num {
    // m 2^e = x 2^(2 half), x in [1/4, 1).
    let half = (e + 33) >> 1;
    let x = if (e + 33) & 1 == 0 { m >> 9 } else { m >> 8 };
    Num { m: (rsqrt(x) >> 1) as i32, e: -29 - half }
}
