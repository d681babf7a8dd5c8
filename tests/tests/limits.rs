//! Constants at their ends: epsilons of 0 and 1, and an A that f32 can't hold. Both paths give what the reference in f64 gives.

use std::fs;
use std::path::{Path, PathBuf};

use elapid_core::fixed::StateKind as FixedState;
use elapid_core::format::Quant;
use elapid_core::kernels::{self, Solo};
use elapid_core::model::StateKind;
use elapid_tests::fixed::{FixedRunner, numbers, oracle};
use elapid_tests::fixture::fixture;
use elapid_tests::oracle::Oracle;
use elapid_tests::runner::{Runner, pack, quant};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// A copy of a fixture with this epsilon, and with these logarithms of A in the first channel of each layer.
fn copy(name: &str, folder: &Path, epsilon: Option<f64>, a_log: &[f32]) -> PathBuf {
    let (source, target) = (fixture(name).checkpoint, folder.join(name));
    fs::create_dir(&target).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    if let Some(epsilon) = epsilon {
        config["layer_norm_epsilon"] = json!(epsilon);
    }
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    let mut bytes = fs::read(source.join("model.safetensors")).unwrap();
    let start = bytes.as_ptr() as usize;
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let places: Vec<usize> = tensors
        .iter()
        .filter(|(name, _)| name.ends_with(".A_log"))
        .map(|(_, view)| view.data().as_ptr() as usize - start)
        .collect();
    for place in places {
        for (i, value) in a_log.iter().enumerate() {
            bytes[place + 4 * i..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }
    fs::write(target.join("model.safetensors"), bytes).unwrap();
    target
}

/// Compares both paths with the reference, over 24 tokens.
#[track_caller]
fn compare(checkpoint: &Path, folder: &Path, what: &str) {
    let tokens: Vec<u32> = fixture("mamba-conv1").tokens[..24].to_vec();
    let largest = |values: &[f64]| values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let check = |found: Vec<f64>, mut oracle: Oracle, bound: f64, path: &str| {
        let expected: Vec<f64> = tokens.iter().flat_map(|token| oracle.step(*token)).collect();
        assert_eq!(found.len(), expected.len());
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(
            off <= bound * largest(&expected),
            "{what}, {path}: {} of the largest",
            off / largest(&expected)
        );
    };
    let file = pack(checkpoint, folder, &quant(Quant::F32));
    let logits =
        Runner::open(&file, StateKind::F32, 8).all_logits(kernels::detect(), &Solo, &tokens).unwrap();
    check(logits.into_iter().map(f64::from).collect(), Oracle::load(checkpoint), 2e-5, "float path");
    // With the weights as they are packed.
    let file = pack(checkpoint, folder, &quant(Quant::Q8));
    let mut runner = FixedRunner::open(&file, FixedState::I32, 8);
    let logits = runner.all_logits(kernels::fixed::detect(), &Solo, &tokens).unwrap();
    check(numbers(&logits), oracle(&file), 1e-2, "fixed path");
}

#[test]
fn epsilons_at_their_ends() {
    for epsilon in [0.0, 1.0] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = copy("mamba-conv1", folder.path(), Some(epsilon), &[]);
        compare(&checkpoint, folder.path(), &format!("epsilon {epsilon}"));
    }
}

#[test]
fn states_that_decay_at_once() {
    for a_log in [88.0, 89.0, 700.0] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = copy("mamba-conv1", folder.path(), None, &[a_log, a_log]);
        compare(&checkpoint, folder.path(), &format!("A_log {a_log}"));
    }
}
