//! The functions of the fixed path over every argument, against `f64`.
//!
//! `cargo test -p elapid-tests --test fixed_functions -- --nocapture` prints the errors that `docs/numerics.md` lists. One argument
//! in 61 is taken, all with `ELAPID_FULL=1` (`cargo xtask test --full`).

use std::ops::Range;

use elapid_core::numbers::fixed::Num;
use elapid_core::numbers::fixed::functions::{
    exp2, exp2_fraction, inverse_sqrt, log2_1p_ratio, reciprocal_1p, rsqrt, silu, softplus_log2,
};

const Q24: f64 = (1 << 24) as f64;
const Q30: f64 = (1 << 30) as f64;

/// One argument in so many.
fn stride() -> usize {
    elapid_test_support::effort::stride(61, 4099)
}

/// The largest of `error` over all arguments, and the first argument that has it.
fn largest(arguments: Range<u32>, error: impl Fn(u32) -> f64 + Sync) -> (f64, u32) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let all = u64::from(arguments.end - arguments.start);
    let start = |i: u64| arguments.start + (all * i / threads) as u32;
    let worst = |range: Range<u32>| {
        range.step_by(stride()).fold((0.0, 0), |worst, x| {
            let error = error(x);
            // What is not a number is worse than any.
            if error > worst.0 || error.is_nan() { (error, x) } else { worst }
        })
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> =
            (0..threads).map(|i| scope.spawn(move || worst(start(i)..start(i + 1)))).collect();
        let parts = parts.into_iter().map(|part| part.join().expect("no panic"));
        parts.reduce(|a, b| if b.0 > a.0 { b } else { a }).expect("a thread")
    })
}

fn check(name: &str, (error, at): (f64, u32), bound: f64) {
    println!("{name}: {error:.3e} at {at:#x}");
    assert!(error <= bound, "{name}: {error:e} at {at:#x}, allowed {bound:e}");
    assert!(stride() > 1 || error > 0.8 * bound, "{name}: the bound {bound:e} is loose: {error:e}");
}

#[test]
fn exp2_is_right() {
    let relative = |t| (f64::from(exp2_fraction(t)) / Q30 / (-f64::from(t) / Q24).exp2() - 1.0).abs();
    check("exp2, fraction, relative", largest(0..1 << 24, relative), 2.99e-6);
    assert_eq!(exp2(0), 1 << 30);
    // Near 0, where it tells how slowly a state decays: the error of 1 - 2^-t as a share of it.
    let slow = |t| {
        let (have, want) =
            (Q30 - f64::from(exp2(t)), Q30 * -(-f64::from(t) / Q24 * std::f64::consts::LN_2).exp_m1());
        ((have - want).abs() - 1.0).max(0.0) / want
    };
    check("1 - exp2 below 2^-7, but for a unit, relative", largest(1..1 << 17, slow), 1.2e-4);
    // Integer parts only shift, and cut.
    let absolute = |t| (f64::from(exp2(t)) - Q30 * (-f64::from(t) / Q24).exp2()).abs();
    check("exp2 below 32, units of 2^-30", largest(0..32 << 24, absolute), 3040.0);
    assert!((31 << 24..=u32::MAX).step_by(997).all(|t| exp2(t) == 0));
}

#[test]
fn logarithm_and_reciprocal_are_right() {
    let ratio = |x| {
        let real = f64::from(x) / Q30;
        let want =
            if x == 0 { std::f64::consts::LOG2_E } else { real.ln_1p() * std::f64::consts::LOG2_E / real };
        (f64::from(log2_1p_ratio(x)) / Q30 / want - 1.0).abs()
    };
    check("log2(1 + x) / x, relative", largest(0..(1 << 30) + 1, ratio), 1.28e-6);
    let reciprocal = |x| (f64::from(reciprocal_1p(x)) / Q30 * (1.0 + f64::from(x) / Q30) - 1.0).abs();
    check("1 / (1 + x), relative", largest(0..(1 << 30) + 1, reciprocal), 3.01e-6);
}

#[test]
fn square_root_is_right() {
    let root = |x| (f64::from(rsqrt(x)) / Q30 * (f64::from(x) / Q24).sqrt() - 1.0).abs();
    check("1 / sqrt(x), relative", largest(1 << 22..1 << 24, root), 9.4e-10);
    // With an argument of 32 bits, cut to 24: every 16th of them, of both parities.
    let whole = |x: u32| {
        let (m, e) = (x << 4 | 1 << 31, (x & 1) as i32 - 31);
        let y = inverse_sqrt(m, e);
        (f64::from(y.m) * f64::from(y.e).exp2() * (f64::from(m) * f64::from(e).exp2()).sqrt() - 1.0).abs()
    };
    check("1 / sqrt(m 2^e), relative", largest(0..1 << 27, whole), 1.13e-7);
}

/// Every mantissa of 16 bits with every exponent from where the result is a shift of another's up to 128 in magnitude: from 178
/// on `e^-|x|` stays at 2^-256.
fn numbers() -> Range<u32> {
    0..(2 * 51) << 15
}

fn number(i: u32) -> (Num, f64) {
    let (mantissa, exponent) = ((i & 0x7fff | 0x8000) as i32, (i >> 16) as i32 - 44);
    let m = if i & 0x8000 == 0 { mantissa } else { -mantissa };
    (Num { m, e: exponent - 15 }, f64::from(m) * f64::from(exponent - 15).exp2())
}

#[test]
fn softplus_and_silu_are_right() {
    let softplus = |i| {
        let (v, x) = number(i);
        let (m, e) = softplus_log2(v);
        let want = (x.max(0.0) + (-x.abs()).exp().ln_1p()) * std::f64::consts::LOG2_E;
        (f64::from(m) * f64::from(e).exp2() / want - 1.0).abs()
    };
    check("softplus(x) log2(e), relative", largest(numbers(), softplus), 4.3e-6);
    let silu = |i| {
        let (v, x) = number(i);
        let y = silu(v);
        let want = x / (1.0 + (-x).exp());
        (f64::from(y.m) * f64::from(y.e).exp2() / want - 1.0).abs()
    };
    check("silu(x), relative", largest(numbers(), silu), 6.0e-6);
    assert_eq!(silu2(0), 0);
    // Far out: a softplus is its argument, a silu too or nothing.
    let (m, e) = softplus_log2(Num { m: 1 << 30, e: 0 });
    assert!((f64::from(m) * f64::from(e).exp2() / (Q30 * std::f64::consts::LOG2_E) - 1.0).abs() < 1e-9);
}

fn silu2(m: i32) -> i32 {
    silu(Num { m, e: 0 }).m
}

/// The checks above must be able to fail.
#[test]
fn a_wrong_result_is_seen() {
    let wrong =
        |t: u32| (f64::from(exp2_fraction(t ^ 1 << 10)) / Q30 / (-f64::from(t) / Q24).exp2() - 1.0).abs();
    assert!(largest(0..1 << 24, wrong).0 > 2.99e-6);
    assert!(std::panic::catch_unwind(|| check("too large", (2.0, 0), 1.0)).is_err());
}
