//! Sequences that step together give the bits that each gives alone.

use std::ops::Range;

use elapid::Pool;
use elapid_core::format::{Quant, Section};
use elapid_core::kernels::{self, LANES};
use elapid_core::model::{Model, Rows, Session, StateKind, StepError};
use elapid_core::source::{Fault, LayerSource, SourceError};
use elapid_tests::fixture::fixture;
use elapid_tests::runner::{Runner, pack};

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
    fn lend(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        if blocks.start > 2 && !self.failed.contains(&section) {
            self.failed.push(section);
            self.failures += 1;
            return Err(SourceError { section, block: blocks.start, offset: 0, fault: Fault::Storage(5) });
        }
        self.inner.lend(section, blocks.start..blocks.start + 1)
    }
}

/// Finishes a step, again and again where the source fails.
fn finish(model: &Model<'_>, session: &mut Session<'_>, source: &mut dyn LayerSource) {
    while let Err(error) = model.resume(session, source) {
        assert!(matches!(error, StepError::Source(_)), "{error}");
    }
}

/// The bits of row `t` of logits `[vocab/16][T][16]`.
fn row(logits: &[f32], tokens: usize, t: usize) -> Vec<u32> {
    let panels = logits.chunks_exact(tokens * LANES);
    panels.flat_map(|panel| &panel[t * LANES..][..LANES]).map(|x| x.to_bits()).collect()
}

/// Rounds that are decoded, and which slots take part in each: all, some, one, and one that begins anew.
const ROUNDS: [&[usize]; 5] = [&[0, 1, 2, 3, 4], &[1, 3, 4], &[2], &[0, 1, 2, 3, 4], &[0, 4]];
/// The slot that is cleared before the last round but one.
const CLEARED: usize = 3;

/// The logits of a sequence alone, after its prompt and in each round in which its slot takes part.
fn alone(runner: &mut Runner, slot: usize) -> Vec<Vec<u32>> {
    let padded = runner.config().padded_vocab() as usize;
    runner.with(kernels::detect(), &kernels::Solo, |model, session, source| {
        let mut out = vec![0.0; padded];
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
    })
}

#[test]
fn sequences_that_step_together_have_the_bits_of_each_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let team = Pool::new(3).expect("threads");
    for (name, quant, kind) in [
        ("falcon-odd", Quant::Q8, StateKind::F32),
        ("mamba-odd", Quant::Q4, StateKind::F16),
        ("mamba-conv1", Quant::F32, StateKind::F32),
    ] {
        let fixture = fixture(name);
        let options = elapid_pack::Options { quant, block_bytes: 16 << 10, ..Default::default() };
        let path = pack(&fixture.checkpoint, folder.path(), &options);
        let slots = ROUNDS[0].len();
        let wanted: Vec<_> = (0..slots).map(|slot| alone(&mut Runner::open(&path, kind, 4), slot)).collect();
        assert!(wanted[0] != wanted[1], "sequences differ");

        let mut runner = Runner::with_slots(&path, kind, 5, slots);
        let padded = runner.config().padded_vocab() as usize;
        let got = runner.with(kernels::detect(), &team, |model, session, source| {
            let mut source = Flaky { inner: source, failed: Vec::new(), failures: 0 };
            let mut got = vec![Vec::new(); slots];
            for slot in 0..slots {
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
                let mut out = vec![0.0; padded * tokens.len()];
                while model.logits(session, &mut source, Rows::All, &mut out).is_err() {}
                for (t, (slot, _)) in tokens.iter().enumerate() {
                    got[*slot].push(row(&out, tokens.len(), t));
                }
            }
            assert!(source.failures > 4, "only {} failures", source.failures);
            got
        });
        for slot in 0..slots {
            assert!(got[slot] == wanted[slot], "{name}, slot {slot}");
        }
    }
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
