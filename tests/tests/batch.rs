//! Sequences that step together give the bits that each gives alone.

use std::ops::Range;
use std::path::{Path, PathBuf};

use elapid::Pool;
use elapid_core::fixed::StateKind as FixedState;
use elapid_core::format::{Quant, Section};
use elapid_core::kernels::{self, LANES};
use elapid_core::model::{Model, Numbers, Rows, Session, StateKind, StepError};
use elapid_core::source::{Fault, LayerSource, SourceError};
use elapid_tests::fixed::FixedRunner;
use elapid_tests::fixture::fixture;
use elapid_tests::runner::{Runner, pack};
use elapid_tests::steps::Bits;

/// Token `i` of the sequence in `slot`.
fn token(slot: usize, i: usize) -> u32 {
    ((slot * 37 + i * 11 + 3) % 59) as u32
}

/// Tokens of each sequence's prompt: of different lengths, one longer than a chunk.
fn prompt(slot: usize) -> Vec<u32> {
    (0..1 + slot * 7 % 12).map(|i| token(slot, i)).collect()
}

/// Fails each section once, when one of its later blocks is asked for.
struct Flaky<'a> {
    inner: &'a mut dyn LayerSource,
    failed: Vec<Section>,
    failures: usize,
}

impl LayerSource for Flaky<'_> {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        if blocks.start > 2 && !self.failed.contains(&section) {
            self.failed.push(section);
            self.failures += 1;
            return Err(SourceError { section, block: blocks.start, offset: 0, fault: Fault::Storage(5) });
        }
        self.inner.borrow(section, blocks.start..blocks.start + 1)
    }
}

/// Finishes a step, again and again where the source fails.
fn finish<N: Numbers>(model: &Model<'_, N>, session: &mut Session<'_, N>, source: &mut dyn LayerSource) {
    while let Err(error) = model.resume(session, source) {
        assert!(matches!(error, StepError::Source(_)), "{error}");
    }
}

/// The bits of row `t` of logits `[vocab/16][T][16]`.
fn row<L: Bits + Copy>(logits: &[L], tokens: usize, t: usize) -> Vec<u32> {
    let panels = logits.chunks_exact(tokens * LANES);
    panels.flat_map(|panel| &panel[t * LANES..][..LANES]).map(|x| x.bits()).collect()
}

/// Rounds that are decoded, and which slots take part in each: all, some, one, and one that begins anew.
const ROUNDS: [&[usize]; 5] = [&[0, 1, 2, 3, 4], &[1, 3, 4], &[2], &[0, 1, 2, 3, 4], &[0, 4]];
/// The slot that is cleared before the last round but one.
const CLEARED: usize = 3;

/// The logits of a sequence alone, after its prompt and in each round in which its slot takes part.
fn alone<N: Numbers<Logit: Bits>>(
    model: &Model<'_, N>,
    session: &mut Session<'_, N>,
    source: &mut dyn LayerSource,
    slot: usize,
) -> Vec<Vec<u32>> {
    let mut out = vec![N::Logit::default(); model.config().padded_vocab() as usize];
    for tokens in prompt(slot).chunks(4) {
        model.forward(session, source, tokens).expect("a step");
    }
    let mut rows = Vec::new();
    for (i, _) in ROUNDS.iter().enumerate().filter(|(_, slots)| slots.contains(&slot)) {
        if slot == CLEARED && i == ROUNDS.len() - 2 {
            session.clear();
        }
        model.forward(session, source, &[token(slot, 100 + i)]).expect("a step");
        model.logits(session, source, Rows::Last, &mut out).expect("logits");
        rows.push(row(&out, 1, 0));
    }
    rows
}

/// The logits of each sequence, of steps together with weights that fail now and then.
fn together<N: Numbers<Logit: Bits>>(
    model: &Model<'_, N>,
    session: &mut Session<'_, N>,
    source: &mut dyn LayerSource,
) -> Vec<Vec<Vec<u32>>> {
    let padded = model.config().padded_vocab() as usize;
    let mut source = Flaky { inner: source, failed: Vec::new(), failures: 0 };
    let mut got = vec![Vec::new(); session.slots()];
    for slot in 0..session.slots() {
        for tokens in prompt(slot).chunks(5) {
            while model.begin_slot(session, &mut source, slot, tokens).is_err() {}
            finish(model, session, &mut source);
        }
    }
    for (i, round) in ROUNDS.iter().enumerate() {
        if i == ROUNDS.len() - 2 {
            session.clear_slot(CLEARED).expect("it is there");
        }
        source.failed.clear();
        let tokens: Vec<_> = round.iter().map(|&slot| (slot, token(slot, 100 + i))).collect();
        while model.begin_each(session, &mut source, &tokens).is_err() {}
        finish(model, session, &mut source);
        let mut out = vec![N::Logit::default(); padded * tokens.len()];
        while model.logits(session, &mut source, Rows::All, &mut out).is_err() {}
        for (t, (slot, _)) in tokens.iter().enumerate() {
            got[*slot].push(row(&out, tokens.len(), t));
        }
    }
    assert!(source.failures > 4, "only {} failures", source.failures);
    got
}

#[test]
fn sequences_that_step_together_have_the_bits_of_each_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let team = Pool::new(3).expect("threads");
    let (kernels, solo, slots) = (kernels::detect(), &kernels::Solo, ROUNDS[0].len());
    for (name, quant, kind) in [
        ("falcon-odd", Quant::Q8, StateKind::F32),
        ("mamba-odd", Quant::Q4, StateKind::F16),
        ("mamba-conv1", Quant::F32, StateKind::F32),
    ] {
        let path = packed(name, quant, folder.path());
        let got = Runner::with_slots(&path, kind, 5, slots).with(kernels, &team, together);
        for (slot, got) in got.iter().enumerate() {
            let mut runner = Runner::open(&path, kind, 4);
            let wanted =
                runner.with(kernels, solo, |model, session, source| alone(model, session, source, slot));
            assert!(*got == wanted, "{name}, slot {slot}");
        }
        assert!(got[0] != got[1], "sequences differ");
    }
}

#[test]
fn sequences_of_the_fixed_path_that_step_together_have_the_bits_of_each_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let team = Pool::new(3).expect("threads");
    let (kernels, solo, slots) = (kernels::fixed::detect(), &kernels::Solo, ROUNDS[0].len());
    for (name, quant, kind) in [
        ("falcon-odd", Quant::Q8, FixedState::I16),
        ("falcon-state24", Quant::Q8, FixedState::I32),
        ("mamba-odd", Quant::Q4, FixedState::I16),
        ("mamba-conv1", Quant::Q8, FixedState::I32),
    ] {
        let path = packed(name, quant, folder.path());
        let mut runner = FixedRunner::open(&path, kind, 5).with_slots(slots);
        let got = runner.with(kernels, &team, together).expect("a model of integers");
        for (slot, got) in got.iter().enumerate() {
            let mut runner = FixedRunner::open(&path, kind, 4);
            let wanted =
                runner.with(kernels, solo, |model, session, source| alone(model, session, source, slot));
            assert!(*got == wanted.expect("a model of integers"), "{name}, slot {slot}");
        }
        assert!(got[0] != got[1], "sequences differ");
    }
}

/// A fixture's checkpoint, packed in small blocks.
fn packed(name: &str, quant: Quant, folder: &Path) -> PathBuf {
    let options = elapid_pack::Options { quant, block_bytes: 16 << 10, ..Default::default() };
    pack(&fixture(name).checkpoint, folder, &options)
}

#[test]
fn slots_that_are_not_there_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture("mamba-odd");
    let path = pack(&fixture.checkpoint, folder.path(), &Default::default());
    let mut runner = Runner::with_slots(&path, StateKind::F32, 4, 3);
    runner.with(kernels::detect(), &kernels::Solo, |model, session, source| {
        let slot = |slot| Err(StepError::Slot { slot, slots: 3 });
        assert_eq!(model.begin_slot(session, source, 3, &[1]), slot(3));
        assert_eq!(model.begin_each(session, source, &[(0, 1), (7, 1)]), slot(7));
        assert_eq!(model.begin_each(session, source, &[(1, 1), (1, 2)]), slot(1));
        assert_eq!(model.begin_each(session, source, &[(2, 1), (0, 2)]), slot(0));
        assert_eq!(model.begin_each(session, source, &[]), Err(StepError::NoTokens));
        assert_eq!(session.clear_slot(3), slot(3));
        assert_eq!(model.begin_each(session, source, &[(0, 1), (2, 1)]), Ok(()));
        assert_eq!(model.begin_slot(session, source, 1, &[1]), Err(StepError::Suspended));
    });
}
