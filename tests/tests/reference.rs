//! The packed model against Hugging Face transformers.

use elapid_core::format::Quant;
use elapid_core::kernels::{self, Solo};
use elapid_core::model::StateKind;
use elapid_tests::fixture::fixtures;
use elapid_tests::runner::{Runner, pack, quant};

#[test]
fn f32_logits_agree_with_transformers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut ran = 0;
    for fixture in fixtures() {
        let path = pack(&fixture.checkpoint, folder.path(), &quant(Quant::F32));
        let mut runner = Runner::open(&path, StateKind::F32, 7);
        let logits = runner.all_logits(kernels::detect(), &Solo, &fixture.tokens).expect("the step succeeds");
        let error = fixture.error(&logits);
        println!("{}: {error:.2e} of the largest logit over {} tokens", fixture.name, fixture.tokens.len());
        assert!(error < 2e-5, "{}: {error:e}", fixture.name);
        ran += 1;
    }
    assert!(ran >= 12, "only {ran} fixtures");
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for fixture in fixtures() {
        let path = pack(&fixture.checkpoint, folder.path(), &quant(Quant::F32));
        let mut runner = Runner::open(&path, StateKind::F32, 16);
        let n = fixture.greedy.len();
        assert_eq!(n, 200, "{}", fixture.name);
        let tokens = runner.greedy(kernels::detect(), &fixture.prompt, n).expect("the step succeeds");
        assert_eq!(tokens, fixture.greedy, "{}", fixture.name);
    }
}

/// The comparison above must be able to fail: one weight off by a quarter is seen.
#[test]
fn a_changed_weight_is_seen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = elapid_tests::fixture::fixture("mamba-odd");
    let changed = folder.path().join("changed");
    std::fs::create_dir(&changed).expect("a folder");
    for entry in std::fs::read_dir(&fixture.checkpoint).expect("the fixture's folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), changed.join(entry.file_name())).expect("a copy");
    }
    let weights = changed.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let at = (bytes.len() - 3000) & !3;
    let value = f32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    bytes[at..at + 4].copy_from_slice(&(value + 0.25).to_le_bytes());
    std::fs::write(&weights, bytes).expect("changed weights");
    let path = pack(&changed, folder.path(), &quant(Quant::F32));
    let logits = Runner::open(&path, StateKind::F32, 7).all_logits(kernels::detect(), &Solo, &fixture.tokens);
    assert!(fixture.error(&logits.expect("the step succeeds")) > 2e-5);
}
