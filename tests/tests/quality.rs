//! What packing costs in perplexity, on the bundled default model's held-out text.

use elapid_core::format::Quant;
use elapid_core::model::StateKind;
use elapid_pack::{Options, Plan};
use elapid_test_support::data::{held_out_text, training_text};
use elapid_tests::fixed::fixed_perplexity;
use elapid_tests::fixture::{fixture, golden_perplexity};
use elapid_tests::runner::{pack, perplexity, quant, tokens_of};

/// Tokens measured: all 66,673 take a minute of two cores in f32.
const TOKENS: usize = 16_384;

#[test]
fn packing_costs_little_perplexity() {
    let (text, model) = (held_out_text(), fixture("address-4m"));
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
        ("q5", Quant::Q5, StateKind::F32, 0.008),
        ("q4", Quant::Q4, StateKind::F32, 0.015),
        ("q3", Quant::Q3, StateKind::F32, 0.08),
        ("f32 with an f16 state", Quant::F32, StateKind::F16, 0.0005),
    ];
    for (name, quant, kind, limit) in limits {
        let found = measure(quant, kind, TOKENS);
        let change = found / reference - 1.0;
        println!("{name}: {found:.4}, {:+.4}% over f32's {reference:.4}", 100.0 * change);
        assert!(change.abs() < limit, "{name}: {found} beside {reference}");
    }

    // Calibrated on what the model was trained on, which the held-out text is no part of.
    let train = folder.path().join("train.txt");
    std::fs::write(&train, training_text()).expect("the text is written");
    for (quant_as, limit) in [(Quant::Q4, 0.013), (Quant::Q3, 0.04)] {
        let options = quant(quant_as);
        let mut plan = Plan::checkpoint(&model.checkpoint, &options).expect("the checkpoint is read");
        plan.calibrate(&train, 8 * 1024).expect("the text is read");
        let path = folder.path().join("calibrated.elp");
        plan.write(&path, &options, &()).expect("the file is written");
        let found = perplexity(&path, StateKind::F32, &tokens_of(&path, &text)[..TOKENS]);
        let change = found / reference - 1.0;
        println!(
            "{} calibrated: {found:.4}, {:+.4}% over f32's {reference:.4}",
            quant_as.name(),
            100.0 * change
        );
        assert!(change.abs() < limit, "{}: {found} beside {reference}", quant_as.name());
    }
}

/// A calibrated file has the same bytes for any number of threads.
#[test]
fn calibration_does_not_depend_on_threads() {
    let (text, model) = (training_text(), fixture("address-300k"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let train = folder.path().join("train.txt");
    std::fs::write(&train, &text).expect("the text is written");
    let pack = |threads: usize, tokens: Option<usize>| {
        let options = Options { quant: Quant::Q4, head: Some(Quant::Q5), threads, ..Options::default() };
        let mut plan = Plan::checkpoint(&model.checkpoint, &options).expect("the checkpoint is read");
        if let Some(tokens) = tokens {
            plan.calibrate(&train, tokens).expect("the text is read");
        }
        let path = folder.path().join("model.elp");
        plan.write(&path, &options, &()).expect("the file is written");
        std::fs::read(&path).expect("the file is read")
    };
    let one = pack(1, Some(2048));
    assert!(one == pack(3, Some(2048)), "3 threads write another file than 1");
    assert!(one != pack(1, None), "calibration changes nothing");
    assert!(one != pack(1, Some(4096)), "more text changes nothing");
}

/// What cannot be calibrated is refused with a line that says why.
#[test]
fn calibration_that_can_do_nothing() {
    let model = fixture("address-300k");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("the text is written");
        path
    };
    let calibrate = |quant_as, text: &std::path::Path| {
        let mut plan = Plan::checkpoint(&model.checkpoint, &quant(quant_as)).expect("the checkpoint is read");
        plan.calibrate(text, 1024).expect_err("nothing to calibrate on").to_string()
    };
    let short = file("short.txt", b"Fellow citizens");
    assert!(calibrate(Quant::Q4, &short).contains("give a text of 1024 at least"));
    assert!(calibrate(Quant::Q4, &file("binary.txt", b"ab\xff")).contains("not UTF-8 from byte 2"));
    assert!(calibrate(Quant::Q4, &folder.path().join("none.txt")).contains("none.txt"));
    assert!(calibrate(Quant::Q8, &short).contains("choose q5, q4 or q3"));
}

/// How far the fixed path's perplexity may be from the float path's on the same file.
const FIXED_LIMIT: f64 = 0.003;

#[test]
fn the_fixed_path_costs_no_perplexity() {
    let text = held_out_text();
    let folder = tempfile::tempdir().expect("a temporary folder");
    // The documentation has them over 16,384 tokens.
    for (name, count) in [("address-300k", 8192), ("address-4m", 2048)] {
        let model = fixture(name);
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
