//! The functions of the float path, each one fixed sequence of IEEE-754 operations.
//!
//! Every function is written once over [`Float`], whose operations are exactly rounded and therefore equal on
//! every instruction set. A result is the same bits whether it is computed in one lane ([`One`]) or sixteen.
//! Error bounds are measured over every `f32` of the domain by `tests/tests/functions.rs` and listed in
//! `docs/numerics.md`.

mod arithmetic;

pub use arithmetic::{Float, One};

/// `log2(e)`, rounded to nearest.
pub(crate) const LOG2_E: f32 = core::f32::consts::LOG2_E;
/// `ln(2)` cut to 16 bits, so that a product with any exponent of an `f32` is exact.
pub(crate) const LN2_HI: f32 = 0.693_145_75;
/// `ln(2) - LN2_HI`, rounded to nearest.
pub(crate) const LN2_LO: f32 = 1.428_606_8e-6;
/// `1.5 * 2^23`: adding it rounds to an integer (ties to even) in the low bits of the sum.
pub(crate) const ROUND_MAGIC: f32 = 12_582_912.0;
/// The polynomial of `exp`, from its constant on.
pub(crate) const EXP_P: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_717, 0.001_381_459_9];
/// Below this `exp` stays at 2^-126: the smallest `x` with `exp(x) >= 2^-126` is a little above it.
pub const EXP_FLOOR: f32 = -87.336_54;

/// `e^x` for `x <= 88`; 2^-126 (and a bit) below [`EXP_FLOOR`] and for NaN.
///
/// `n = round(x log2 e)`, `r = x - n ln 2` in two steps, `1 + (r + r^2 P(r))` with a minimax `P` of degree 4 (relative
/// error 3.1e-9 on |r| <= ln 2 / 2) by Estrin's scheme, then `n` is added to the exponent. The step needs no `x > 0`.
#[inline(always)]
pub fn exp<S: Float>(s: S, x: S::F) -> S::F {
    let [e] = exp_each(s, [x]);
    e
}

/// [`exp`] of each, in lockstep: operations that don't wait for each other stand side by side, because what a CPU can look
/// ahead is shorter than the polynomial's chain.
#[inline(always)]
pub fn exp_each<S: Float, const K: usize>(s: S, mut x: [S::F; K]) -> [S::F; K] {
    // Loops and not closures, which would not be compiled with the instruction set's features.
    macro_rules! each {
        (|$i:ident| $e:expr) => {{
            let mut out = x;
            for $i in 0..K {
                out[$i] = $e;
            }
            out
        }};
    }
    x = each!(|i| s.at_least(x[i], EXP_FLOOR));
    let shifted = each!(|i| s.fma(x[i], s.splat(LOG2_E), s.splat(ROUND_MAGIC)));
    let n = each!(|i| s.sub(shifted[i], s.splat(ROUND_MAGIC)));
    let r = each!(|i| s.fma(n[i], s.splat(-LN2_HI), x[i]));
    let r = each!(|i| s.fma(n[i], s.splat(-LN2_LO), r[i]));
    let r2 = each!(|i| s.mul(r[i], r[i]));
    let p01 = each!(|i| s.fma(s.splat(EXP_P[1]), r[i], s.splat(EXP_P[0])));
    let p23 = each!(|i| s.fma(s.splat(EXP_P[3]), r[i], s.splat(EXP_P[2])));
    let p234 = each!(|i| s.fma(s.splat(EXP_P[4]), r2[i], p23[i]));
    let p = each!(|i| s.fma(p234[i], r2[i], p01[i]));
    let e = each!(|i| s.fma(p[i], r2[i], r[i]));
    let e = each!(|i| s.add(s.splat(1.0), e[i]));
    each!(|i| s.of_bits(s.add_bits(s.to_bits(e[i]), s.shl_bits::<23>(s.to_bits(shifted[i])))))
}

/// `ln(1 + e)` for `0 <= e <= 1`.
///
/// `s = e / (2 + e)`, `2 atanh(s) = 2s + s^3 R(s^2)` with a minimax `R` of degree 3 (relative error 4.6e-9).
#[inline(always)]
pub fn log1p_unit<S: Float>(s: S, e: S::F) -> S::F {
    let u = s.div(e, s.add(s.splat(2.0), e));
    let t = s.mul(u, u);
    let mut r = s.splat(0.280_251_4);
    r = s.fma(r, t, s.splat(0.279_990_14));
    r = s.fma(r, t, s.splat(0.400_217_06));
    r = s.fma(r, t, s.splat(0.666_664_1));
    s.fma(s.mul(u, t), r, s.add(u, u))
}

/// `softplus(x) = ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|)`.
///
/// PyTorch returns `x` above its threshold of 20; here the second term is below half an ulp there, so the two agree.
#[inline(always)]
pub fn softplus<S: Float>(s: S, x: S::F) -> S::F {
    let zero = s.splat(0.0);
    let tail = log1p_unit(s, exp(s, s.neg_abs(x)));
    s.add(s.select_lt(x, zero, zero, x), tail)
}

/// `silu(x) = x / (1 + e^-x)`, with only negative arguments given to [`exp`]: `x e^x / (1 + e^x)` for `x < 0`, and -0
/// below [`EXP_FLOOR`].
#[inline(always)]
pub fn silu<S: Float>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let e = exp(s, s.neg_abs(x));
    let factor = s.select_lt(x, s.splat(0.0), e, one);
    let factor = s.select_lt(x, s.splat(EXP_FLOOR), s.splat(0.0), factor);
    s.div(s.mul(x, factor), s.add(one, e))
}

/// `1 / sqrt(x)` by an exact square root and an exact division.
#[inline(always)]
pub fn inv_sqrt<S: Float>(s: S, x: S::F) -> S::F {
    s.div(s.splat(1.0), s.sqrt(x))
}
