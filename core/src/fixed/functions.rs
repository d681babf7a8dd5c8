//! The functions of the fixed path, in integers.
//!
//! No tables but the coefficients, 4 bytes each. They are minimax (Remez, relative error) and rounded to the format in which
//! they are used. Errors are measured over every argument by `tests/tests/fixed_functions.rs` and listed in
//! `docs/numerics.md`. `Qn` means: in units of 2^-n.

use super::num::{LOW, Num, mul_high, mul_high_cut, mul_high_down};

/// 1 in Q30.
const ONE: u32 = 1 << 30;
/// `log2(e)`, Q31.
pub(crate) const LOG2_E: u32 = 3_098_164_009;
/// `ln(2)`, Q32.
pub(crate) const LN_2: u32 = 2_977_044_472;

/// The coefficients of [`exp2_fraction`], lowest first, Q30 to Q34: a product with a fraction in Q31 has a bit less.
pub(crate) const EXP2: [i32; 5] = [1 << 30, -1_488_342_682, 1_028_458_865, -457_186_996, 117_371_004];

/// The coefficients of [`log2_1p_ratio`], lowest first, Q31 for arguments in Q32.
pub(crate) const LOG2: [u32; 7] =
    [3_098_160_079, 1_548_678_151, 1_025_784_735, 728_187_056, 462_318_237, 205_722_280, 43_810_807];

/// The coefficients of [`reciprocal_1p`]'s polynomial, lowest first, Q32.
pub(crate) const RECIPROCAL: [u32; 3] = [4_254_759_201, 3_465_670_468, 1_378_498_961];

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

/// `log2(1 + x) / x` for `x` in [0, 1], Q30; the result in Q31.
///
/// A polynomial of degree 6 by Horner's scheme.
#[inline(always)]
#[must_use]
pub const fn log2_1p_ratio(x: u32) -> u32 {
    // 1 itself does not fit Q32.
    let x = (if x < ONE { x } else { ONE - 1 }) << 2;
    let [c0, c1, c2, c3, c4, c5, c6] = LOG2;
    let q = c5 - mul_high_cut(x, c6);
    let q = c4 - mul_high_cut(x, q);
    let q = c3 - mul_high_cut(x, q);
    let q = c2 - mul_high_cut(x, q);
    let q = c1 - mul_high_cut(x, q);
    c0 - mul_high_cut(x, q)
}

/// `1 / (1 + x)` for `x` in [0, 1], Q30; the result in Q31.
///
/// A polynomial of degree 2 (error 0.011), then two steps of Newton's, each of which squares the error.
#[inline(always)]
#[must_use]
pub const fn reciprocal_1p(x: u32) -> u32 {
    let x = (if x < ONE { x } else { ONE - 1 }) << 2;
    let [c0, c1, c2] = RECIPROCAL;
    let mut r = (c0 - mul_high_cut(x, c1 - mul_high_cut(x, c2))) >> 1;
    let mut i = 0;
    while i < 2 {
        // 2 - (1 + x) r, between 0.98 and 1.02, in Q31.
        let rest = 0u32.wrapping_sub(r + mul_high_cut(x, r));
        r = mul_high_cut(r, rest) << 1;
        i += 1;
    }
    r
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

/// `|v| log2(e)` of a normal `v` as a mantissa of `v`'s exponent, and in Q24: saturating there, where 2^-128 and less are 0 to
/// all who ask.
#[inline(always)]
const fn scaled(v: Num) -> (u32, u32) {
    let product = mul_high_cut(v.m.unsigned_abs() << 1, LOG2_E);
    let s = -(v.e + 24);
    let q24 = if s < 0 {
        u32::MAX
    } else if s > 31 {
        0
    } else {
        product >> s
    };
    (product, q24)
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
    let tail = mul_high_cut(p << 1, log2_1p_ratio(power));
    let (linear, e) = if v.m > 0 { (product, v.e) } else { (0, LOW) };
    add((linear, e), (tail, -30 - whole))
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

/// `silu(v) = v / (1 + e^-v)`, for `v < 0` as `v e^v / (1 + e^v)`.
#[inline(always)]
#[must_use]
pub const fn silu(v: Num) -> Num {
    let v = v.normal();
    let (_, z) = scaled(v);
    let (p, whole) = (exp2_fraction(z), (z >> 24) as i32);
    let power = p >> if whole < 31 { whole } else { 31 };
    let r = reciprocal_1p(power);
    let (factor, whole) = if v.m < 0 { (mul_high_cut(p << 1, r), whole) } else { (r >> 1, 0) };
    Num { m: mul_high(v.m, factor as i32), e: v.e + 2 - whole }
}

/// `1 / sqrt(m 2^e)` for `m` in [2^31, 2^32), as a mantissa in [2^29, 2^30] and its exponent.
#[must_use]
pub const fn inverse_sqrt(m: u32, e: i32) -> Num {
    // m 2^e = x 2^(2 half), x in [1/4, 1).
    let half = (e + 33) >> 1;
    let x = if (e + 33) & 1 == 0 { m >> 9 } else { m >> 8 };
    Num { m: (rsqrt(x) >> 1) as i32, e: -29 - half }
}
