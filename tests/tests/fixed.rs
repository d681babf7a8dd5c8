//! The fixed path: against the `f64` reference with the same weights, the same bits everywhere, and what it refuses.
//!
//! `snapshots/fixed.txt` holds a checksum of the logits of every packed file; the same file is compared on x86-64 and under
//! emulation on AArch64. `ELAPID_OVERWRITE=1` renews it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use elapid::Pool;
use elapid_core::fixed::StateKind;
use elapid_core::format::{Header, Part, Quant, Section, checksum};
use elapid_core::kernels::fixed::{self as kernels, Kernels, Scalar};
use elapid_core::kernels::{Solo, Team};
use elapid_core::model::{StateKind as FloatState, StepError};
use elapid_core::numbers::fixed::saturated;
use elapid_pack::Options;
use elapid_test_support::effort::emulated;
use elapid_tests::fixed::{FixedRunner, numbers, oracle, panel_place};
use elapid_tests::fixture::{Fixture, fixture, fixtures};
use elapid_tests::forge::forge;
use elapid_tests::runner::{Runner, pack, quant};
use elapid_tests::sets::available_fixed;
use elapid_tests::steps::{failures_change_nothing, feed, out_of_order};
use elapid_tests::streamed::packed;

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/fixed.txt");
const KINDS: [StateKind; 2] = [StateKind::I16, StateKind::I32];
const QUANTS: [Quant; 2] = [Quant::Q8, Quant::Q4];

/// Those that run under emulation: both architectures, odd sizes and states, a convolution of one tap, a real layer's ranges.
const EMULATED: [&str; 5] = ["address-300k", "falcon-odd", "falcon-state24", "mamba-conv1", "mamba-harsh"];

fn compared() -> impl Iterator<Item = Fixture> {
    fixtures().into_iter().filter(|fixture| !emulated() || EMULATED.contains(&fixture.name.as_str()))
}

fn pack_as(fixture: &Fixture, folder: &Path, quant: Quant, block_bytes: u32) -> PathBuf {
    pack(&fixture.checkpoint, folder, &Options { quant, block_bytes, ..Options::default() })
}

/// Tokens to feed: those of the fixture, four times over.
fn tokens(fixture: &Fixture) -> Vec<u32> {
    fixture.tokens.iter().copied().cycle().take(256).collect()
}

/// The largest distance from `wanted`, as a share of its largest.
fn error(logits: &[f64], wanted: &[f64]) -> f64 {
    let scale = wanted.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert_eq!(logits.len(), wanted.len());
    logits.iter().zip(wanted).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// How far the logits may be from the reference over 64 tokens. Random models, which have no reason to be tame, double an
/// error with every few tokens; the float path is 20 to 100 times as far from the reference in each.
fn bound(fixture: &str) -> f64 {
    match fixture {
        "address-4m" | "address-300k" => 4e-4,
        "mamba-harsh" => 0.1,
        "mamba-conv1" => 0.01,
        _ => 4e-3,
    }
}

#[test]
fn logits_agree_with_the_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut ran = 0;
    for fixture in compared() {
        for quant_as in QUANTS {
            let path = pack(&fixture.checkpoint, folder.path(), &quant(quant_as));
            let mut reference = oracle(&path);
            let wanted: Vec<f64> = fixture.tokens.iter().flat_map(|token| reference.step(*token)).collect();
            let [i16s, i32s] = KINDS.map(|kind| {
                let mut runner = FixedRunner::open(&path, kind, 7);
                let logits = runner.all_logits(kernels::detect(), &Solo, &fixture.tokens);
                error(&numbers(&logits.expect("the step succeeds")), &wanted)
            });
            let mut float = Runner::open(&path, FloatState::F32, 7);
            let float = float.all_logits(elapid_core::kernels::detect(), &Solo, &fixture.tokens);
            let float: Vec<f64> = float.expect("the step succeeds").iter().map(|x| f64::from(*x)).collect();
            let name = format!("{} {}", fixture.name, quant_as.name());
            println!(
                "{name}: i16 {i16s:.1e}, i32 {i32s:.1e}, float path {:.1e} of the largest logit",
                error(&float, &wanted)
            );
            assert!(i16s.max(i32s) < bound(&fixture.name), "{name}: {i16s:e}, {i32s:e}");
            ran += 1;
        }
    }
    assert!(ran >= 24, "only {ran} files");
    assert_eq!(saturated::count(), 0, "values were saturated");
    // Without debug assertions nothing would be counted.
    const { assert!(cfg!(debug_assertions)) };
}

#[test]
fn every_way_gives_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let small = tempfile::tempdir().expect("a temporary folder");
    let sets = available_fixed();
    println!("instruction sets: {}", sets.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "));
    assert!(sets.len() > 1 || cfg!(not(target_arch = "aarch64")), "NEON is missing");
    let pool = Pool::new(3).expect("threads");
    for fixture in compared() {
        let mut tokens = tokens(&fixture);
        if emulated() {
            tokens.truncate(if fixture.name.starts_with("address") { 8 } else { 40 });
        } else if fixture.name.starts_with("address") {
            tokens.truncate(40);
        }
        for quant in QUANTS {
            let path = pack_as(&fixture, folder.path(), quant, 1 << 20);
            let blocks = pack_as(&fixture, small.path(), quant, 16 << 10);
            for kind in KINDS {
                let run = |path: &Path, kernels: &(dyn Kernels + 'static), team: &dyn Team, chunk: usize| {
                    let mut runner = FixedRunner::open(path, kind, chunk);
                    runner.all_logits(kernels, team, &tokens).expect("the step succeeds")
                };
                let wanted = run(&path, &Scalar, &Solo, 1);
                let name = format!("{} {} {kind:?}", fixture.name, quant.name());
                for kernels in &sets {
                    let chunks: &[usize] = if emulated() { &[13] } else { &[1, 5, 64] };
                    for &chunk in chunks {
                        let same = run(&path, *kernels, &Solo, chunk) == wanted;
                        assert!(same, "{name} {} in chunks of {chunk}", kernels.name());
                    }
                }
                assert!(run(&blocks, kernels::detect(), &Solo, 17) == wanted, "{name} in small blocks");
                assert!(run(&path, kernels::detect(), &pool, 17) == wanted, "{name} on 3 threads");
            }
        }
    }
}

#[test]
fn every_machine_gives_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut found = BTreeMap::new();
    for fixture in compared() {
        for quant in QUANTS {
            let path = pack_as(&fixture, folder.path(), quant, 64 << 10);
            for kind in KINDS {
                let mut runner = FixedRunner::open(&path, kind, 64);
                let logits = runner.all_logits(kernels::detect(), &Solo, &tokens(&fixture));
                let bytes: Vec<u8> =
                    logits.expect("the step succeeds").iter().flat_map(|x| x.to_le_bytes()).collect();
                let name = format!("{} {} {kind:?}", fixture.name, quant.name());
                found.insert(name, format!("{:08x}", checksum(&bytes)));
            }
        }
    }
    if std::env::var_os("ELAPID_OVERWRITE").is_some() {
        let mut text = String::new();
        for (name, sum) in &found {
            writeln!(text, "{name}: {sum}").expect("a string takes everything");
        }
        std::fs::write(SNAPSHOT, text).expect("the snapshot");
        return;
    }
    let stored =
        std::fs::read_to_string(SNAPSHOT).expect("tests/snapshots/fixed.txt; ELAPID_OVERWRITE=1 makes it");
    let stored: BTreeMap<&str, &str> = stored.lines().filter_map(|line| line.split_once(": ")).collect();
    for (name, sum) in &found {
        assert_eq!(stored.get(name.as_str()).copied(), Some(sum.as_str()), "{name}: checksum of the logits");
    }
    println!("the logits of {} runs are the stored ones", found.len());
}

#[test]
fn a_failed_step_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture("falcon-odd");
    let path = pack_as(&fixture, folder.path(), Quant::Q8, 16 << 10);
    for kind in KINDS {
        failures_change_nothing(&format!("{kind:?}"), |fail_at| {
            let mut runner = FixedRunner::open(&path, kind, 5);
            let fed = runner.with(kernels::detect(), &Solo, |model, session, source| {
                feed((model, session), source, fail_at)
            });
            fed.expect("buffers fit")
        });
    }
}

#[test]
fn damaged_states_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture("mamba-odd");
    let path = pack_as(&fixture, folder.path(), Quant::Q8, 1 << 20);
    for kind in KINDS {
        let mut runner = FixedRunner::open(&path, kind, 4);
        let run = |runner: &mut FixedRunner| {
            runner.with(kernels::detect(), &Solo, |model, session, source| {
                model.forward(session, source, &[1, 2])
            })
        };
        run(&mut runner).expect("a whole state").expect("the step succeeds");
        let fails = |runner: &mut FixedRunner, name: &str| match run(runner) {
            Err(StepError::Exponent { name: have, .. }) => assert_eq!(have, name),
            other => panic!("{kind:?}: {other:?}"),
        };
        // Each time one thing is broken and mended.
        let whole = runner.state.conv[5];
        runner.state.conv[5] = i32::MAX;
        fails(&mut runner, "the convolution state");
        runner.state.conv[5] = whole;
        let whole = runner.state.conv_exponents[1];
        // Kept above the lowest there is, 2^-8192; the second is 2^1100 and more, which no file can lead to.
        for exponent in [u16::MAX, (1 << 13) + 1100] {
            runner.state.conv_exponents[1] = exponent;
            fails(&mut runner, "the convolution state");
        }
        runner.state.conv_exponents[1] = whole;
        // A channel whose states lie beyond what its range says.
        let whole = std::mem::take(&mut runner.state.ranges[3]);
        match kind {
            StateKind::I16 => runner.state.i16s[3] = 300,
            StateKind::I32 => runner.state.i32s[3] = 1 << 30,
        }
        fails(&mut runner, "the recurrent state");
        runner.state.ranges[3] = whole;
        match kind {
            StateKind::I16 => runner.state.i16s[3] = 0,
            StateKind::I32 => runner.state.i32s[3] = 0,
        }
        run(&mut runner).expect("a whole state").expect("the step succeeds");
        runner.state.ranges.pop();
        assert!(matches!(
            run(&mut runner),
            Err(StepError::Buffer { name: "the ranges of the recurrent state", .. })
        ));
    }
}

/// A model whose in_proj has biases just below `2^exponent`. Sums that come to a little more round up to the largest mantissa that
/// the convolution's state may have.
fn at_the_bound(exponent: i32) -> Vec<u8> {
    let mut file = packed(true, Quant::Q8, false);
    let header = Header::parse(&file).expect("a model");
    let layout = header.layout();
    let bias = f32::from_bits(2f32.powi(exponent).to_bits() - 1).to_le_bytes();
    for layer in 0..layout.config().n_layer {
        for panel in 0..layout.part(Part::InProj).panels {
            let place = panel_place(layout, Section::Layer(layer), Part::InProj, panel);
            for to in file[place.end - 64..place.end].as_chunks_mut().0 {
                *to = bias;
            }
        }
    }
    forge(&mut file, &header);
    file
}

#[test]
fn what_a_step_leaves_is_taken() {
    const MOST: i32 = 1 << 30;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("bound.elp");
    let mut seen = 0;
    for exponent in [22, 24, 26] {
        std::fs::write(&path, at_the_bound(exponent)).expect("a file");
        for kind in KINDS {
            let mut runner = FixedRunner::open(&path, kind, 4);
            for token in 0..40 {
                let fed = runner.with(kernels::detect(), &Solo, |model, session, source| {
                    model.forward(session, source, &[token])
                });
                fed.expect("the state that a step left").expect("the step succeeds");
                seen += runner.state.conv.iter().filter(|m| **m == MOST).count();
            }
            runner.state.conv[5] = -MOST;
            runner.with(kernels::detect(), &Solo, |_, _, _| ()).expect("as far on the other side");
            for beyond in [MOST + 1, -MOST - 1] {
                runner.state.conv[5] = beyond;
                let refused = runner.with(kernels::detect(), &Solo, |_, _, _| ()).expect_err("beyond");
                assert!(matches!(refused, StepError::Exponent { .. }), "{refused}");
            }
        }
    }
    assert!(seen > 0, "no state reached the bound");
}

#[test]
fn a_new_sequence_begins_whatever_the_last_one_left() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("bound.elp");
    std::fs::write(&path, at_the_bound(24)).expect("a file");
    let model = elapid::Model::open(&path, &elapid::ModelOptions::default()).expect("a model");
    for kind in KINDS {
        let options = elapid::SessionOptions::default().numbers(elapid::Numbers::Fixed(kind));
        let mut session = model.session(&options).expect("a session");
        for token in 0..40 {
            session.clear();
            session.feed(&[token, 7]).expect("it can be fed");
        }
    }
}

#[test]
fn other_types_and_models_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let open = |name: &str, options: &Options| {
        let fixture = fixture(name);
        FixedRunner::open(&pack(&fixture.checkpoint, folder.path(), options), StateKind::I16, 4)
    };
    let mut f16 = open("mamba-odd", &quant(Quant::F16));
    let refused = f16.with(kernels::detect(), &Solo, |_, _, _| ()).expect_err("f16 is not of the fixed path");
    assert_eq!(refused, StepError::Type { matrix: "the embedding", quant: Quant::F16 });
    assert!(refused.to_string().contains("the embedding is f16"), "{refused}");
    let mut head = open("falcon-odd", &Options { head: Some(Quant::F32), ..quant(Quant::Q4) });
    let refused = head.with(kernels::detect(), &Solo, |_, _, _| ()).expect_err("nor is f32");
    assert!(matches!(refused, StepError::Type { quant: Quant::F32, .. }), "{refused}");

    let (mut one, mut other) = (open("falcon-even", &quant(Quant::Q8)), open("mamba-odd", &quant(Quant::Q8)));
    let tried = one.with(kernels::detect(), &Solo, |_, session, source| {
        other.with(kernels::detect(), &Solo, |model, _, _| {
            assert_eq!(model.forward(session, source, &[1]), Err(StepError::OtherModel));
        })
    });
    tried.expect("buffers fit").expect("buffers fit");
}

#[test]
fn steps_out_of_order_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture("mamba-odd");
    let path = pack(&fixture.checkpoint, folder.path(), &quant(Quant::Q8));
    let ran = FixedRunner::open(&path, StateKind::I16, 4).with(
        kernels::detect(),
        &Solo,
        |model, session, source| out_of_order((model, session), source),
    );
    ran.expect("buffers fit");
}
