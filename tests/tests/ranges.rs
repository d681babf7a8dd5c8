//! Weights far outside of f16: models whose tensors are scaled by powers of two that make up for each other, so that they are the same
//! function, give the same bits.

use std::path::Path;

use elapid_core::fixed::StateKind as FixedState;
use elapid_core::format::{PerMatrix, Quant};
use elapid_core::kernels::fixed as fixed_kernels;
use elapid_core::kernels::{self, Scalar, Solo};
use elapid_core::model::StateKind;
use elapid_core::numbers::fixed::saturated;
use elapid_pack::{Options, PackError, Plan};
use elapid_tests::fixed::{FixedRunner, oracle};
use elapid_tests::fixture::{Fixture, fixture, fixtures};
use elapid_tests::runner::{Runner, pack, quant};
use elapid_tests::scaled::scaled;

const HALVED: [Quant; 5] = [Quant::F16, Quant::Q8, Quant::Q5, Quant::Q4, Quant::Q3];

/// A way to scale a model: what is scaled by 2^-n, and what makes up for it.
struct Way {
    name: &'static str,
    /// The exponent of an element for n = 1: of a tensor of a shape, at a place.
    exponent: fn(&str, &[usize], usize) -> i32,
    /// The same of the norms' epsilon.
    epsilon: i32,
}

/// Of a Mamba with a head of its own.
const WAYS: [Way; 6] = [
    Way { name: "in_proj", exponent: in_proj, epsilon: 0 },
    Way { name: "in_proj of the first layer", exponent: first_in_proj, epsilon: 0 },
    Way { name: "dt_proj and dt of x_proj", exponent: dt_proj, epsilon: 0 },
    Way { name: "out_proj, C of x_proj and D", exponent: out_proj, epsilon: 0 },
    Way { name: "embedding and out_proj", exponent: residual, epsilon: -2 },
    Way { name: "head", exponent: head, epsilon: 0 },
];

fn in_proj(name: &str, _: &[usize], _: usize) -> i32 {
    match name {
        _ if name.ends_with("in_proj.weight") => -1,
        _ if name.contains("layers") && name.ends_with(".norm.weight") => 1,
        _ => 0,
    }
}

fn first_in_proj(name: &str, shape: &[usize], at: usize) -> i32 {
    if name.contains("layers.0.") { in_proj(name, shape, at) } else { 0 }
}

fn dt_proj(name: &str, shape: &[usize], at: usize) -> i32 {
    match name {
        _ if name.ends_with("dt_proj.weight") => -1,
        _ if name.ends_with("x_proj.weight") && at / shape[1] < dt_rank(shape) => 1,
        _ => 0,
    }
}

fn out_proj(name: &str, shape: &[usize], at: usize) -> i32 {
    match name {
        _ if name.ends_with("out_proj.weight") => 1,
        _ if name.ends_with("mixer.D") => -1,
        _ if name.ends_with("x_proj.weight") => {
            let states = (shape[0] - dt_rank(shape)) / 2;
            if at / shape[1] >= dt_rank(shape) + states { -1 } else { 0 }
        }
        _ => 0,
    }
}

fn residual(name: &str, _: &[usize], _: usize) -> i32 {
    let scaled = ["embeddings.weight", "out_proj.weight", "out_proj.bias"];
    if scaled.iter().any(|end| name.ends_with(end)) { -1 } else { 0 }
}

fn head(name: &str, _: &[usize], _: usize) -> i32 {
    match name {
        "lm_head.weight" => -1,
        _ if name.ends_with("norm_f.weight") => 1,
        _ => 0,
    }
}

/// The rank of dt of the fixture below, by x_proj's shape.
fn dt_rank(shape: &[usize]) -> usize {
    shape[0] - 2 * 24
}

/// A Mamba with 24 states and a head of its own.
fn untied() -> Fixture {
    fixture("mamba-state24")
}

fn pack_scaled(fixture: &Fixture, folder: &Path, way: &Way, n: i32, quant_as: Quant) -> std::path::PathBuf {
    let exponent = |name: &str, shape: &[usize], at: usize| n * (way.exponent)(name, shape, at);
    let checkpoint = scaled(&fixture.checkpoint, folder, &format!("by-{n}"), &exponent, n * way.epsilon);
    pack(&checkpoint, folder, &quant(quant_as))
}

fn logits(path: &Path, chunk: usize, kernels: &(dyn kernels::Kernels + 'static), tokens: &[u32]) -> Vec<u32> {
    let mut runner = Runner::open(path, StateKind::F32, chunk);
    let logits = runner.all_logits(kernels, &Solo, tokens).expect("the step succeeds");
    logits.into_iter().map(f32::to_bits).collect()
}

#[test]
fn models_that_are_the_same_function_give_the_same_bits() {
    let fixture = untied();
    let tokens = &fixture.tokens[..24];
    for quant_as in HALVED {
        for way in &WAYS {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let plain = logits(
                &pack(&fixture.checkpoint, folder.path(), &quant(quant_as)),
                7,
                kernels::detect(),
                tokens,
            );
            let mut first: Option<Vec<u32>> = None;
            // An epsilon must stay below 1.
            for n in [20, -24, 33, -30].map(|n| if way.epsilon == 0 { n } else { i32::abs(n) }) {
                let path = pack_scaled(&fixture, folder.path(), way, n, quant_as);
                let config = *Runner::open(&path, StateKind::F32, 1).config();
                let what = format!("{} by 2^{n} as {}", way.name, quant_as.name());
                assert_ne!(config.exponents, PerMatrix::default(), "{what}");
                let found = logits(&path, 7, kernels::detect(), tokens);
                // As f16 what has no exponent has subnormal weights, which are not as exact.
                if quant_as == Quant::F16 {
                    let first = first.get_or_insert_with(|| found.clone());
                    assert!(found == *first, "{what}: other bits than another power gives");
                    let far = |(a, b): (&u32, &u32)| (f32::from_bits(*a) - f32::from_bits(*b)).abs();
                    let error = found.iter().zip(&plain).map(far).fold(0.0, f32::max);
                    assert!(error < 1e-3 * fixture.scale(), "{what}: {error:e}");
                } else {
                    assert!(found == plain, "{what}: other bits");
                }
                assert!(logits(&path, 1, &Scalar, tokens) == found, "{what}: the way of computing shows");
            }
        }
    }
}

/// Biases, and columns and rows that are padded, of a model whose smallest weights are subnormal as f16 without an exponent.
#[test]
fn biases_take_part() {
    let fixture = fixture("mamba-bias");
    let tokens = &fixture.tokens[..24];
    for quant_as in HALVED {
        for way in WAYS.iter().filter(|way| ["in_proj", "embedding and out_proj"].contains(&way.name)) {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let plain = pack(&fixture.checkpoint, folder.path(), &quant(quant_as));
            let plain = logits(&plain, 7, kernels::detect(), tokens);
            let [a, b] = [20, 24].map(|n| {
                logits(&pack_scaled(&fixture, folder.path(), way, n, quant_as), 7, kernels::detect(), tokens)
            });
            assert!(a == b, "{} as {}: other bits", way.name, quant_as.name());
            let far = |(a, b): (&u32, &u32)| (f32::from_bits(*a) - f32::from_bits(*b)).abs();
            let error = a.iter().zip(&plain).map(far).fold(0.0, f32::max);
            assert!(error < 1e-2 * fixture.scale(), "{} as {}: {error:e}", way.name, quant_as.name());
        }
    }
}

/// The fixed path's largest error, as a share of the largest logit, and that all of its ways give the same bits.
fn fixed_error(path: &Path, tokens: &[u32]) -> f64 {
    let mut reference = oracle(path);
    let wanted: Vec<f64> = tokens.iter().flat_map(|token| reference.step(*token)).collect();
    let mut runner = FixedRunner::open(path, FixedState::I32, 7);
    let unit = f64::from(runner.config().logit_unit());
    let logits = runner.all_logits(fixed_kernels::detect(), &Solo, tokens).expect("the step succeeds");
    fixed_kernels::for_each_available(&mut |kernels| {
        let mut runner = FixedRunner::open(path, FixedState::I32, 1);
        let found = runner.all_logits(kernels, &Solo, tokens).expect("the step succeeds");
        assert!(found == logits, "{}: {} gives other bits", path.display(), kernels.name());
    });
    let scale = wanted.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let far = |(a, b): (&i32, &f64)| (f64::from(*a) * unit - b).abs() / scale;
    logits.iter().zip(&wanted).map(far).fold(0.0, f64::max)
}

#[test]
fn the_fixed_path_holds_them_too() {
    let ways = WAYS.iter().map(|way| (untied(), way));
    let biases = fixture("mamba-bias");
    let biased = WAYS.iter().filter(|way| way.name.contains("in_proj")).map(|way| (biases.clone(), way));
    for (fixture, way) in ways.chain(biased) {
        for quant_as in [Quant::Q8, Quant::Q4] {
            for n in [20, if way.epsilon == 0 { -24 } else { 24 }] {
                let folder = tempfile::tempdir().expect("a temporary folder");
                let path = pack_scaled(&fixture, folder.path(), way, n, quant_as);
                let error = fixed_error(&path, &fixture.tokens[..24]);
                let what = format!("{}, {} by 2^{n} as {}", fixture.name, way.name, quant_as.name());
                assert!(error < 4e-3, "{what}: {error:e} of the largest logit");
            }
        }
    }
    assert_eq!(saturated::count(), 0, "values were saturated");
}

/// Logits far beyond what a unit of 2^-16 holds in 32 bits, and far below it.
#[test]
fn logits_of_any_size_are_held() {
    for (name, tensor) in [("mamba-state24", "lm_head.weight"), ("mamba-odd", "norm_f.weight")] {
        let fixture = fixture(name);
        let tokens = &fixture.tokens[..24];
        for n in [20, -20] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let exponent = |name: &str, _: &[usize], _: usize| if name.ends_with(tensor) { n } else { 0 };
            let checkpoint = scaled(&fixture.checkpoint, folder.path(), "scaled", &exponent, 0);
            let path = pack(&checkpoint, folder.path(), &quant(Quant::Q8));
            let exponent = Runner::open(&path, StateKind::F32, 1).config().logit_exponent;
            assert!(if n > 0 { exponent > 0 } else { exponent < 0 }, "{name}: {exponent}");
            let error = fixed_error(&path, tokens);
            assert!(error < 4e-3, "{name} by 2^{n}: {error:e} of the largest logit");
        }
    }
    assert_eq!(saturated::count(), 0, "values were saturated");
}

/// No exponent that is not needed: a file of an ordinary model is what it was.
#[test]
fn ordinary_models_have_no_exponents() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for fixture in fixtures() {
        for quant_as in Quant::ALL {
            let path = pack(&fixture.checkpoint, folder.path(), &quant(quant_as));
            let config = *Runner::open(&path, StateKind::F32, 1).config();
            let what = format!("{} as {}", fixture.name, quant_as.name());
            assert_eq!((config.exponents, config.logit_exponent), (PerMatrix::default(), 0), "{what}");
        }
    }
}

/// Weights that are too large are refused by name, with a type that holds them.
#[test]
fn what_no_exponent_holds_is_refused() {
    let fixture = untied();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let exponent = |name: &str, _: &[usize], _: usize| if name.contains("1.mixer.in_proj") { 100 } else { 0 };
    let checkpoint = scaled(&fixture.checkpoint, folder.path(), "scaled", &exponent, 0);
    for quant_as in Quant::ALL {
        let options = Options { quant: quant_as, ..Options::default() };
        let target = folder.path().join("model.elp");
        let packed = Plan::checkpoint(&checkpoint, &options).expect("a plan").write(&target, &options, &());
        if quant_as == Quant::F32 {
            packed.expect("f32 holds them");
            std::fs::remove_file(&target).expect("a file");
            continue;
        }
        let error = packed.expect_err("too large");
        assert!(matches!(error, PackError::TooLarge { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("layers.1.mixer.in_proj.weight") && text.contains("pack it as f32"), "{text}");
        assert!(!target.exists());
    }
}
