//! The functions of the float path over every `f32` of their domains, against `f64`, on every instruction set.
//!
//! `cargo test -p elapid-tests --test functions -- --nocapture` prints the errors that `docs/numerics.md` lists. One chunk in 16 is
//! swept, all with `ELAPID_FULL=1` (`cargo xtask test --full`).

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use elapid_core::kernels::{Isa, LANES, Scalar};
use elapid_core::numbers::float::{self, EXP_FLOOR, One};
use elapid_test_support::effort::{self, emulated};

/// Bit patterns swept at a time.
const CHUNK: u32 = 1 << 14;
/// The portable code is a hundred times slower than vectors: it takes one chunk in so many, of every binade.
const SCALAR_STRIDE: u32 = 32;

/// Functions of `numbers::float` by name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Exp,
    Log1pUnit,
    Softplus,
    Silu,
    InvSqrt,
}
use Function::{Exp, InvSqrt, Log1pUnit, Silu, Softplus};

impl Function {
    const ALL: [Self; 5] = [Exp, Log1pUnit, Softplus, Silu, InvSqrt];

    #[inline(always)]
    fn eval<S: float::Float>(self, s: S, x: S::F) -> S::F {
        match self {
            Exp => float::exp(s, x),
            Log1pUnit => float::log1p_unit(s, x),
            Softplus => float::softplus(s, x),
            Silu => float::silu(s, x),
            InvSqrt => float::inv_sqrt(s, x),
        }
    }

    /// The bit patterns of the domain: positive numbers, then negative ones.
    fn domain(self) -> [RangeInclusive<u32>; 2] {
        let to = |x: f32| x.to_bits();
        #[allow(clippy::reversed_empty_ranges)]
        match self {
            Exp => [0..=to(88.0), to(-0.0)..=to(f32::NEG_INFINITY)],
            Log1pUnit => [0..=to(1.0), 1..=0],
            Softplus => [0..=to(f32::INFINITY), to(-0.0)..=to(f32::NEG_INFINITY)],
            // At minus infinity it is NaN, as minus infinity times 0 is.
            Silu => [0..=to(f32::INFINITY), to(-0.0)..=to(f32::MIN)],
            InvSqrt => [1..=to(f32::MAX), 1..=0],
        }
    }

    /// Bound on the error in units in the last place, at and above [`EXP_FLOOR`].
    fn ulps(self) -> f64 {
        match self {
            Exp => 1.05,
            Log1pUnit => 2.0,
            Softplus => 2.9,
            Silu => 3.4,
            InvSqrt => 1.5,
        }
    }

    /// Bound on the absolute error below [`EXP_FLOOR`], where `e^x` stays at 2^-126.
    fn flushed(self) -> f64 {
        let smallest = f64::from(f32::MIN_POSITIVE);
        // e^x stays at 1.000005 times 2^-126.
        if self == Silu { 88.0 * smallest } else { 1.00001 * smallest }
    }
}

/// `2^-30`: below it, the first terms of a series are as good as `f64` is.
const SMALL: f64 = 1.0 / (1u64 << 30) as f64;
/// Below minus this, `e^x` counts as 0: it is 18 orders of magnitude under the bound on absolute errors.
const LARGE: f64 = 128.0;

fn exp(x: f64) -> f64 {
    if x.abs() < SMALL {
        1.0 + (x + x * x / 2.0)
    } else if x < -LARGE {
        0.0
    } else {
        x.exp()
    }
}

fn ln_1p(e: f64) -> f64 {
    if e < SMALL { e - e * e / 2.0 } else { e.ln_1p() }
}

fn softplus(x: f64) -> f64 {
    // Where e^-x is less than f64 resolves beside x.
    if x > LARGE { x } else { x.max(0.0) + ln_1p(exp(-x.abs())) }
}

fn silu(x: f64) -> f64 {
    if x.abs() > LARGE { x.max(0.0) } else { x / (1.0 + exp(-x)) }
}

/// A function on a slice whose length is a multiple of 16.
type OnSlice<'a> = dyn Fn(&[f32], &mut [f32]) + Sync + 'a;

/// One instruction set's functions.
struct Instance {
    name: &'static str,
    stride: u32,
    eval: fn(Function, &[f32], &mut [f32]),
}

#[inline(always)]
fn eval_all<S: Isa>(s: S, function: Function, x: &[f32], y: &mut [f32]) {
    for (x, y) in x.as_chunks::<LANES>().0.iter().zip(y.as_chunks_mut::<LANES>().0) {
        s.store(function.eval(s, s.load(x)), y);
    }
}

/// The loop compiled with an instruction set's features.
macro_rules! instance {
    ($isa:ty, $features:literal) => {
        <$isa>::detect().or_else(|| skipped(<$isa as Isa>::NAME)).map(|_| {
            fn eval(function: Function, x: &[f32], y: &mut [f32]) {
                #[target_feature(enable = $features)]
                fn with(isa: $isa, function: Function, x: &[f32], y: &mut [f32]) {
                    match function {
                        Exp => eval_all(isa, Exp, x, y),
                        Log1pUnit => eval_all(isa, Log1pUnit, x, y),
                        Softplus => eval_all(isa, Softplus, x, y),
                        Silu => eval_all(isa, Silu, x, y),
                        InvSqrt => eval_all(isa, InvSqrt, x, y),
                    }
                }
                let Some(isa) = <$isa>::detect() else { return };
                // SAFETY: the token exists only where the CPU has these features.
                unsafe { with(*isa, function, x, y) }
            }
            Instance { name: <$isa as Isa>::NAME, stride: 1, eval }
        })
    };
}

fn skipped<T>(name: &str) -> Option<T> {
    println!("skipped: this CPU has no {name}");
    None
}

/// What this CPU has: vectors first, the portable code last.
fn instances() -> Vec<Instance> {
    let scalar = Instance {
        name: Scalar::NAME,
        stride: SCALAR_STRIDE,
        eval: |function, x, y| eval_all(Scalar, function, x, y),
    };
    #[cfg(target_arch = "x86_64")]
    let vectors = {
        use elapid_core::kernels::{Avx2, Avx512, AvxVnni};
        [
            instance!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c"),
            instance!(AvxVnni, "avx2,fma,f16c,avxvnni"),
            instance!(Avx2, "avx2,fma,f16c"),
        ]
    };
    #[cfg(target_arch = "aarch64")]
    let vectors = [instance!(elapid_core::kernels::Neon, "neon")];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let vectors = [None];
    vectors.into_iter().flatten().chain([scalar]).collect()
}

/// One over the unit in the last place that an `f32` near `exact` has.
fn per_ulp(exact: f64) -> f64 {
    let exponent = (exact.to_bits() >> 52 & 0x7ff).clamp(1023 - 126, 1023 + 127);
    f64::from_bits((2 * 1023 + 23 - exponent) << 52)
}

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    /// The largest error in units in the last place, and where.
    ulps: f64,
    at: f32,
    /// The largest error below [`EXP_FLOOR`], absolute.
    flushed: f64,
    /// How many numbers were compared with `f64`.
    swept: u64,
}

impl Worst {
    fn of_chunk(x: &[f32], y: &[f32], exact: impl Fn(f64) -> f64) -> Self {
        let mut worst = Self { swept: x.len() as u64, ..Self::default() };
        for (&x, &y) in x.iter().zip(y) {
            let exact = exact(f64::from(x));
            // The same infinity has no difference.
            let error = if f64::from(y) == exact { 0.0 } else { (f64::from(y) - exact).abs() };
            let error = if error.is_nan() { f64::INFINITY } else { error };
            if x < EXP_FLOOR {
                worst.flushed = worst.flushed.max(error);
            } else if error * per_ulp(exact) > worst.ulps {
                (worst.ulps, worst.at) = (error * per_ulp(exact), x);
            }
        }
        worst
    }

    fn join(self, other: Self) -> Self {
        let larger = if other.ulps > self.ulps { other } else { self };
        Self {
            flushed: self.flushed.max(other.flushed),
            swept: self.swept + other.swept,
            ulps: larger.ulps,
            at: larger.at,
        }
    }
}

/// Compares `first` with `f64` and every other instance with `first`, over a function's domain, one chunk in `stride`.
fn sweep(
    function: Function,
    stride: u32,
    exact: impl Fn(f64) -> f64 + Sync,
    first: &OnSlice<'_>,
    others: &[Instance],
) -> Worst {
    let total = Mutex::new(Worst::default());
    let next = AtomicU32::new(0);
    let work = || {
        let (mut x, mut y, mut other) =
            (vec![0.0; CHUNK as usize], vec![0.0; CHUNK as usize], vec![0.0; CHUNK as usize]);
        let mut worst = Worst::default();
        loop {
            let chunk = next.fetch_add(stride, Ordering::Relaxed);
            if chunk > u32::MAX / CHUNK {
                break;
            }
            let (low, high) = (chunk * CHUNK, chunk * CHUNK + (CHUNK - 1));
            for domain in function.domain() {
                let (low, high) = (low.max(*domain.start()), high.min(*domain.end()));
                if low > high {
                    continue;
                }
                let count = (high - low + 1) as usize;
                // Past the domain's end its last number is repeated, up to whole vectors.
                let padded = count.next_multiple_of(LANES);
                for (x, bits) in x[..padded].iter_mut().zip(low..) {
                    *x = f32::from_bits(bits.min(high));
                }
                first(&x[..padded], &mut y[..padded]);
                for instance in others.iter().filter(|i| (chunk / stride).is_multiple_of(i.stride)) {
                    (instance.eval)(function, &x[..padded], &mut other[..padded]);
                    let differs = y[..count].iter().zip(&other).position(|(a, b)| a.to_bits() != b.to_bits());
                    if let Some(i) = differs {
                        panic!("{function:?}({:e}): {:e}, {}: {:e}", x[i], y[i], instance.name, other[i]);
                    }
                }
                worst = worst.join(Worst::of_chunk(&x[..count], &y[..count], &exact));
            }
        }
        let mut total = total.lock().expect("no thread failed");
        *total = total.join(worst);
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    total.into_inner().expect("no thread failed")
}

fn sweep_by_name(function: Function, stride: u32, first: &OnSlice<'_>, others: &[Instance]) -> Worst {
    match function {
        Exp => sweep(function, stride, exp, first, others),
        Log1pUnit => sweep(function, stride, ln_1p, first, others),
        Softplus => sweep(function, stride, softplus, first, others),
        Silu => sweep(function, stride, silu, first, others),
        InvSqrt => sweep(function, stride, |x| 1.0 / x.sqrt(), first, others),
    }
}

#[test]
fn errors_are_bounded_over_every_f32() {
    let instances = instances();
    let names: Vec<_> = instances.iter().map(|i| i.name).collect();
    let (first, others) = instances.split_first().expect("there is portable code");
    let stride = first.stride.max(effort::stride(16, 256) as u32);
    println!("ran on {}; compared with f64: {}, one chunk in {stride}", names.join(", "), first.name);
    let mut failed = Vec::new();
    for function in Function::ALL {
        let start = std::time::Instant::now();
        let worst = sweep_by_name(function, stride, &|x, y| (first.eval)(function, x, y), others);
        println!(
            "{function:?}: {} numbers, error at most {:.3} ulp (at {:e}){}, {:.1} s",
            worst.swept,
            worst.ulps,
            worst.at,
            if worst.flushed > 0.0 {
                format!(", {:.2e} below EXP_FLOOR", worst.flushed)
            } else {
                String::new()
            },
            start.elapsed().as_secs_f64()
        );
        let full: u64 = function.domain().into_iter().map(|d| d.count() as u64).sum();
        assert!(stride > 1 || worst.swept == full, "{} of {full} numbers were swept", worst.swept);
        if worst.ulps > function.ulps() || worst.flushed >= function.flushed() {
            failed.push(function);
        }
    }
    assert!(failed.is_empty(), "{failed:?} are outside their bounds");
}

/// Numbers at which something changes, and both neighbours of each.
fn special() -> Vec<f32> {
    let edges = [
        0.0,
        f32::from_bits(1),
        f32::MIN_POSITIVE,
        -EXP_FLOOR,
        std::f32::consts::LN_2 / 2.0,
        1.0,
        20.0,
        88.0,
        f32::MAX,
    ];
    let near = edges.iter().flat_map(|x| [x.next_down(), *x, x.next_up()]);
    near.flat_map(|x| [x, -x]).collect()
}

fn in_domain(function: Function, x: f32) -> bool {
    function.domain().iter().any(|range| range.contains(&x.to_bits()))
}

#[test]
fn every_instruction_set_has_the_bits_of_one_lane() {
    let step = if emulated() { 8191 } else { 127 };
    let samples = || (0..=u32::MAX).step_by(step).map(f32::from_bits).chain(special());
    for instance in instances() {
        let mut compared = 0u64;
        for function in Function::ALL {
            let x: Vec<f32> = samples().filter(|&x| in_domain(function, x)).collect();
            compared += x.len() as u64;
            for x in x.chunks(1 << 12) {
                let mut padded = x.to_vec();
                padded.resize(x.len().next_multiple_of(LANES), 1.0);
                let mut y = vec![0.0; padded.len()];
                (instance.eval)(function, &padded, &mut y);
                for (&x, y) in x.iter().zip(y) {
                    let one = function.eval(One, x);
                    assert_eq!(
                        one.to_bits(),
                        y.to_bits(),
                        "{function:?}({x:e}): {one:e} by one lane, {y:e} by {}",
                        instance.name
                    );
                }
            }
        }
        println!("{}: {compared} numbers", instance.name);
        assert!(emulated() || compared >= 1 << 24);
    }
}

#[test]
fn values_at_special_points() {
    for (function, x, expected) in [
        (Exp, 0.0, 1.0),
        (Exp, -0.0, 1.0),
        (Exp, f32::NEG_INFINITY, float::exp(One, EXP_FLOOR)),
        (Exp, EXP_FLOOR.next_down(), float::exp(One, EXP_FLOOR)),
        (Log1pUnit, 0.0, 0.0),
        (Log1pUnit, 1.0, std::f32::consts::LN_2),
        (Softplus, 0.0, std::f32::consts::LN_2),
        (Softplus, f32::INFINITY, f32::INFINITY),
        (Softplus, f32::NEG_INFINITY, float::exp(One, EXP_FLOOR)),
        (Softplus, 25.0, 25.0),
        (Silu, 0.0, 0.0),
        (Silu, -0.0, -0.0),
        (Silu, f32::INFINITY, f32::INFINITY),
        (Silu, f32::MIN, -0.0),
        (InvSqrt, 4.0, 0.5),
        (InvSqrt, 0.0, f32::INFINITY),
        (InvSqrt, f32::INFINITY, 0.0),
    ] {
        let y = function.eval(One, x);
        assert_eq!(y.to_bits(), expected.to_bits(), "{function:?}({x}) is {y}, not {expected}");
    }
    for function in [Softplus, Silu, InvSqrt] {
        assert!(function.eval(One, f32::NAN).is_nan(), "{function:?} loses a NaN");
    }
    assert!(float::exp(One, EXP_FLOOR) >= f32::MIN_POSITIVE);
}

/// A sweep notices one wrong value among the two billion, and a bit that differs between instances.
#[test]
fn a_wrong_value_is_noticed() {
    let wrong = |x: &[f32], y: &mut [f32]| {
        eval_all(Scalar, Exp, x, y);
        for (x, y) in x.iter().zip(y) {
            if *x == -1.5 {
                *y = f32::from_bits(y.to_bits() + 2);
            }
        }
    };
    let stride = 1 << 8;
    assert_eq!((-1.5f32).to_bits() / CHUNK % stride, 0, "the stride passes over the wrong value");
    let worst = sweep(Exp, stride, exp, &wrong, &[]);
    assert!(worst.ulps > Exp.ulps() && worst.at == -1.5, "{worst:?}");

    let scalar = Instance { name: "scalar", stride: 1, eval: |f, x, y| eval_all(Scalar, f, x, y) };
    let caught = std::panic::catch_unwind(|| sweep(Exp, stride, exp, &wrong, &[scalar]));
    assert!(caught.is_err(), "a difference between instances passed");
}
