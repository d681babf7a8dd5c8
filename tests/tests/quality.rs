//! What packing costs in perplexity, on the bundled default model's held-out text.

use elapid_core::format::Quant;
use elapid_core::model::StateKind;
use elapid_tests::fixed::fixed_perplexity;
use elapid_tests::fixture::{fixture, golden_perplexity, held_out_text};
use elapid_tests::runner::{pack, perplexity, quant, tokens_of};

/// Tokens measured: all 66,673 take a minute of two cores in f32.
const TOKENS: usize = 16_384;

#[test]
fn packing_costs_little_perplexity() {
    let (Some(text), Some(model)) = (held_out_text(), fixture("address-4m")) else {
        println!("skipped: the held-out text or the model is not there");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let measure = |quant_as: Quant, kind: StateKind, tokens: usize| {
        let path = pack(&model.checkpoint, folder.path(), &quant(quant_as));
        perplexity(&path, kind, &tokens_of(&path, &text)[..tokens])
    };

    let golden = golden_perplexity("address-4m");
    let found = measure(Quant::F32, StateKind::F32, golden.tokens);
    let apart = (found / golden.perplexity - 1.0).abs();
    println!("transformers {:.9}, f32 {found:.9}: {:.7}% apart", golden.perplexity, 100.0 * apart);
    assert!(apart < 1e-4, "{found} beside {}", golden.perplexity);

    let reference = measure(Quant::F32, StateKind::F32, TOKENS);
    let limits = [
        ("f16", Quant::F16, StateKind::F32, 0.0005),
        ("q8", Quant::Q8, StateKind::F32, 0.002),
        ("q4", Quant::Q4, StateKind::F32, 0.015),
        ("f32 with an f16 state", Quant::F32, StateKind::F16, 0.0005),
    ];
    for (name, quant, kind, limit) in limits {
        let found = measure(quant, kind, TOKENS);
        let change = found / reference - 1.0;
        println!("{name}: {found:.4}, {:+.4}% over f32's {reference:.4}", 100.0 * change);
        assert!(change.abs() < limit, "{name}: {found} beside {reference}");
    }
}

/// How far the fixed path's perplexity may be from the float path's on the same file.
const FIXED_LIMIT: f64 = 0.003;

#[test]
fn the_fixed_path_costs_no_perplexity() {
    let Some(text) = held_out_text() else {
        println!("skipped: the held-out text is not there");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    // The documentation has them over 16,384 tokens.
    for (name, count) in [("address-300k", 8192), ("address-4m", 2048)] {
        let Some(model) = fixture(name) else {
            println!("skipped: {name} is not there");
            continue;
        };
        for quant_as in [Quant::Q8, Quant::Q4] {
            let path = pack(&model.checkpoint, folder.path(), &quant(quant_as));
            let tokens = &tokens_of(&path, &text)[..count];
            let float = perplexity(&path, StateKind::F32, tokens);
            let fixed = fixed_perplexity(&path, elapid_core::fixed::StateKind::I16, tokens);
            let change = fixed / float - 1.0;
            println!(
                "{name} {}: fixed {fixed:.4}, {:+.4}% over float's {float:.4}",
                quant_as.name(),
                100.0 * change
            );
            assert!(change.abs() < FIXED_LIMIT, "{name} {}: {fixed} beside {float}", quant_as.name());
        }
    }
}
