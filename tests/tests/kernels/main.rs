//! The kernels: every instruction set has the bits of the portable one, which is near `f64` within proven bounds.
//!
//! A case ([`case::Case`]) is random data of a random shape for one kernel. `every_instruction_set_…` runs each case
//! on all kernels that this CPU has, in one chunk of tokens and in several; `the_portable_kernels_…` compares it with
//! what the definition gives in `f64`. Both must notice kernels that are wrong in one bit ([`perturbed`]).

mod case;
#[cfg(unix)]
mod guarded;
mod perturbed;
mod random;
mod scan;
mod vectors;

use std::collections::BTreeMap;

use case::{Bound, Case};
use elapid_core::format::{MatrixShape, Quant};
use elapid_core::kernels::{Input, Kernels, Scalar, Scale, ScanInput, SsmState};
use elapid_test_support::effort::emulated;
use elapid_tests::sets::available;
use perturbed::Perturbed;
use random::{Kind, Random};

/// Makes case number `index` of a kernel.
type Make = fn(&mut Random, Kind, usize) -> Box<dyn Case>;

const KERNELS: [(&str, Make); 8] = [
    ("rms_inv", vectors::rms_inv),
    ("normalize", vectors::normalize),
    ("rescale", vectors::rescale),
    ("quantize", vectors::quantize),
    ("matmul", case::matmul),
    ("conv_silu", vectors::conv_silu),
    ("scan", scan::scan),
    ("add", vectors::add),
];

/// Enough for every number of tokens from 1 to 29 with every quantization, with and without bias.
const CASES: usize = 29 * Quant::ALL.len() * 2;

fn cases(make: Make, kind: Kind) -> impl Iterator<Item = (usize, Box<dyn Case>)> {
    let fewer = if emulated() { 7 } else { 1 };
    (0..CASES).step_by(fewer).map(move |index| {
        let mut random = Random::new(index as u64 + 1);
        (index, make(&mut random, kind, index))
    })
}

/// Which result differs, if any. NaN equals NaN: its bits are not part of the definition.
fn difference(expected: &[f32], got: &[f32]) -> Option<String> {
    if expected.len() != got.len() {
        return Some(format!("{} results, not {}", got.len(), expected.len()));
    }
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    let at = expected.iter().zip(got).position(|pair| !same(pair))?;
    Some(format!("result {at} is {:e}, not {:e}", got[at], expected[at]))
}

/// The largest error as a part of its bound, or which result is out of its bound.
fn within(bounds: &[Bound], got: &[f32]) -> Result<f64, String> {
    if bounds.len() != got.len() {
        return Err(format!("{} results, not {}", got.len(), bounds.len()));
    }
    let mut largest = 0.0f64;
    for (at, (&Bound { exact, error }, &got)) in bounds.iter().zip(got).enumerate() {
        let found = (f64::from(got) - exact).abs();
        if found.is_nan() || found > error {
            return Err(format!("result {at} is {got:e}, not {exact:e} with an error of {error:e}"));
        }
        if found > 0.0 {
            largest = largest.max(found / error);
        }
    }
    Ok(largest)
}

#[test]
fn every_instruction_set_has_the_bits_of_the_portable_kernels() {
    let (mut compared, sets) = (BTreeMap::new(), available());
    for (name, make) in KERNELS {
        for kind in Kind::ALL {
            for (index, case) in cases(make, kind) {
                let expected = case.run(&Scalar, usize::MAX);
                for &kernels in &sets {
                    // In one chunk, in chunks that no block size divides, and token by token.
                    for chunk in [usize::MAX, 1 + index % 7, 1] {
                        if let Some(difference) = difference(&expected, &case.run(kernels, chunk)) {
                            panic!(
                                "{} {name}, {kind:?} case {index}, chunk {chunk}: {difference}",
                                kernels.name()
                            );
                        }
                    }
                    *compared.entry(kernels.name()).or_insert(0) += 3 * expected.len();
                }
            }
        }
    }
    println!("results compared: {compared:?}");
    assert!(compared.values().all(|&results| results > 100_000));
}

/// More tokens than a kernel keeps near at a time, and more columns than a stretch of them has, of several panels.
#[test]
fn long_chunks_have_the_bits_of_the_portable_kernels() {
    let emulated = emulated();
    let sets = available();
    for quant in Quant::ALL {
        // With the lowest weights, with the highest ones, and with random ones.
        for (index, kind) in [(0, Kind::Wild), (1, Kind::Wild), (2, Kind::Tame)] {
            if emulated && index != 1 {
                continue;
            }
            let mut random = Random::new(index as u64 + 1);
            let shape = MatrixShape::new(48, 1100, quant, true).unwrap();
            let case = case::matmul_of(&mut random, kind, index, shape, 290);
            let expected = case.run(&Scalar, 7);
            for &kernels in &sets {
                if let Some(difference) = difference(&expected, &case.run(kernels, usize::MAX)) {
                    panic!("{} {}, {kind:?} {index}: {difference}", kernels.name(), quant.name());
                }
            }
        }
    }
}

#[test]
fn the_portable_kernels_are_within_bounds_of_f64() {
    for (name, make) in KERNELS {
        let (mut results, mut largest) = (0, 0.0f64);
        for (index, case) in cases(make, Kind::Tame) {
            let bounds = case.bounds();
            match within(&bounds, &case.run(&Scalar, usize::MAX)) {
                Ok(part) => largest = largest.max(part),
                Err(e) => panic!("{name}, case {index}: {e}"),
            }
            results += bounds.len();
        }
        println!("{name}: {results} results, the largest error is {largest:.3} of its bound");
        // A bound that nothing comes near would guard nothing. Sums of flags and copies have no error.
        assert!(name == "add" || largest > 0.01, "{name}: the bound is too wide");
    }
}

#[test]
fn whether_all_is_finite() {
    let mut ran = Vec::new();
    for kernels in available() {
        ran.push(kernels.name());
        let mut x = vec![f32::MAX; 16 * 21];
        x[5] = f32::from_bits(1);
        assert!(kernels.is_finite(&x));
        for at in 0..x.len() {
            for broken in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
                let mut x = x.clone();
                x[at] = broken;
                assert!(!kernels.is_finite(&x), "{}: {broken} at {at}", kernels.name());
                let mut sums = vec![0.0; x.len()];
                assert!(!kernels.add(&mut sums, &x), "{}: {broken} at {at}", kernels.name());
            }
        }
        // A sum that overflows.
        let mut sums = x.clone();
        assert!(!kernels.add(&mut sums, &x), "{}", kernels.name());
    }
    println!("ran on {}", ran.join(", "));
}

/// Slices of the wrong lengths are worked on as far as they go; nothing panics, and all kernels do the same.
#[test]
fn slices_that_do_not_fit() {
    let mut random = Random::new(5);
    let data = random.floats(1024, Kind::Tame);
    let bytes = case::bytes_of(&data);
    let rounds = if emulated() { 500 } else { 5000 };
    let sets = available();
    for round in 0..rounds {
        let mut cut = |longest: usize| {
            if random.bits().is_multiple_of(2) { longest } else { random.between(0, longest) }
        };
        let (tokens, d_state, d_conv) = (cut(14), cut(17), cut(4));
        let [x, b, c, dt, z, y] =
            [cut(256), cut(256), cut(256), cut(256), cut(256), cut(256)].map(|n| &data[..n]);
        let some = cut(2)..cut(5);
        let (weights, scales, inv) = (&bytes[..cut(4096)], cut(45), &data[..cut(5)]);
        let (state, q) = (cut(17 * 16 * 2), vec![1; cut(1400)]);
        let cols = if round % 24 < 12 { 32 } else { 96 };
        let shape = MatrixShape::new(16, cols, Quant::ALL[round % 6], round % 12 < 6).unwrap();
        let run = |kernels: &dyn Kernels| {
            let (mut u, mut state, mut narrow) = (y.to_vec(), data[..state].to_vec(), vec![1; state]);
            let (mut new_q, mut new_scales) = (q.clone(), vec![Scale { scale: 0.5, sum: 32 }; scales]);
            let mut norms = inv.to_vec();
            kernels.rms_inv(x, tokens, d_conv, 64, 1e-5, &mut norms);
            kernels.normalize(x, weights, inv, &mut u);
            kernels.rescale(&mut u, inv);
            kernels.add(&mut u, z);
            kernels.matmul(&shape, weights, &Input { tokens, x, q: &q, scales: &new_scales }, &mut u);
            kernels.quantize(tokens, d_conv..tokens, x, &mut new_q, &mut new_scales);
            kernels.conv_silu(d_conv, tokens, some.clone(), weights, &mut state, x, &mut u);
            let input = ScanInput { tokens, range: some.clone(), d_state, b, c };
            kernels.scan(weights, SsmState::F32(&mut state), &input, dt, z, &mut u);
            kernels.scan(weights, SsmState::F16(&mut narrow), &input, dt, z, &mut u);
            u.extend(state.into_iter().chain(norms).chain(narrow.into_iter().map(f32::from)));
            u.extend(new_q.into_iter().map(f32::from).chain(new_scales.iter().map(|s| s.scale)));
            u
        };
        let expected = run(&Scalar);
        for &kernels in &sets {
            let difference = difference(&expected, &run(kernels));
            assert_eq!(difference, None, "{}, round {round}", kernels.name());
        }
    }
}

/// The comparisons fail where a kernel's last result is wrong: in one bit, or by a thousandth.
#[test]
fn wrong_kernels_are_noticed() {
    for (name, make) in KERNELS {
        let mut random = Random::new(1);
        let case = make(&mut random, Kind::Tame, 28);
        let expected = case.run(&Scalar, usize::MAX);
        assert_eq!(difference(&expected, &case.run(&Perturbed::none(), usize::MAX)), None);
        let got = case.run(&Perturbed::one_bit(), usize::MAX);
        assert!(difference(&expected, &got).is_some(), "{name}: a wrong bit passed");
        let got = case.run(&Perturbed::a_thousandth(), usize::MAX);
        assert!(within(&case.bounds(), &got).is_err(), "{name}: an error of a thousandth passed");
    }
}
