//! The fixed path against the `f64` reference with the same weights.

use elapid_core::fixed::{StateKind, kernels, saturated};
use elapid_core::format::Quant;
use elapid_core::kernels::Solo;
use elapid_core::model::StateKind as FloatState;
use elapid_tests::fixed::{FixedRunner, numbers, oracle};
use elapid_tests::fixture::fixtures;
use elapid_tests::runner::{Runner, pack, quant};

#[test]
fn logits_agree_with_the_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for fixture in fixtures() {
        for quant_as in [Quant::Q8, Quant::Q4] {
            let path = pack(&fixture.checkpoint, folder.path(), &quant(quant_as));
            let mut reference = oracle(&path);
            let wanted: Vec<f64> = fixture.tokens.iter().flat_map(|token| reference.step(*token)).collect();
            let scale = wanted.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let error = |logits: &[f64]| logits.iter().zip(&wanted).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / scale;
            let before = saturated::count();
            let of = |kind: StateKind| {
                let mut runner = FixedRunner::open(&path, kind, 7);
                let logits = runner.all_logits(kernels::detect(), &Solo, &fixture.tokens).expect("the step succeeds");
                error(&numbers(&logits))
            };
            let (i16s, i32s) = (of(StateKind::I16), of(StateKind::I32));
            let mut float = Runner::open(&path, FloatState::F32, 7);
            let float = float.all_logits(elapid_core::kernels::detect(), &Solo, &fixture.tokens).expect("the step succeeds");
            let float = error(&float.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
            println!("{} {}: i16 {i16s:.2e}, i32 {i32s:.2e}, float path {float:.2e} of {scale:.1}; saturated {}", fixture.name, quant_as.name(), saturated::count() - before);
        }
    }
}
