//! A step that a source failed is resumed where it stood, and gives the same bits.

use std::ops::Range;

use elapid_core::format::{Quant, Section};
use elapid_core::kernels::{self, Solo};
use elapid_core::model::{Model, Rows, Session, StateKind, StepError};
use elapid_core::source::{Fault, LayerSource, SourceError};
use elapid_tests::fixture::fixture;
use elapid_tests::runner::{Runner, pack};

/// Lends one block at a time, and fails once, at the `fail_at`-th call.
struct FailsOnce<'a> {
    inner: &'a mut dyn LayerSource,
    calls: usize,
    fail_at: usize,
}

impl LayerSource for FailsOnce<'_> {
    fn lend(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        self.calls += 1;
        if self.calls == self.fail_at {
            return Err(SourceError { section, block: blocks.start, offset: 0, fault: Fault::Storage(5) });
        }
        self.inner.lend(section, blocks.start..blocks.start + 1)
    }
}

/// Feeds two chunks, resuming or beginning again after a failure. Returns the logits' bits and how often it failed.
fn feed(
    model: &Model<'_>,
    session: &mut Session<'_>,
    source: &mut dyn LayerSource,
    logits: usize,
) -> (Vec<u32>, usize) {
    let mut failures = 0;
    for tokens in [&[1u32, 2, 3, 4, 5][..], &[6, 7]] {
        let mut done = model.forward(session, source, tokens);
        while let Err(error) = done {
            assert!(
                matches!(error, StepError::Source(SourceError { fault: Fault::Storage(5), .. })),
                "{error}"
            );
            failures += 1;
            done = if session.suspended_at().is_some() {
                assert_eq!(model.begin(session, source, tokens), Err(StepError::Suspended));
                model.resume(session, source)
            } else {
                model.forward(session, source, tokens)
            };
        }
    }
    let mut out = vec![0.0; logits];
    while model.logits(session, source, Rows::Last, &mut out).is_err() {
        failures += 1;
    }
    (out.iter().map(|x| x.to_bits()).collect(), failures)
}

#[test]
fn a_failed_step_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture("falcon-odd").expect("a committed fixture");
    for quant in [Quant::F32, Quant::Q8] {
        let options = elapid_pack::Options { quant, block_bytes: 16 << 10, ..Default::default() };
        let path = pack(&fixture.checkpoint, folder.path(), &options);
        for kind in [StateKind::F32, StateKind::F16] {
            let run = |fail_at: usize| {
                let mut runner = Runner::open(&path, kind, 5);
                let logits = runner.config().padded_vocab() as usize;
                runner.with(kernels::detect(), &Solo, |model, session, inner| {
                    let mut source = FailsOnce { inner, calls: 0, fail_at };
                    let (bits, failures) = feed(model, session, &mut source, logits);
                    (bits, failures, source.calls)
                })
            };
            let (wanted, failures, calls) = run(0);
            assert_eq!(failures, 0);
            assert!(calls > 60, "only {calls} blocks were lent");
            for fail_at in 1..=calls {
                let (bits, failures, _) = run(fail_at);
                assert_eq!(failures, 1, "the failure at call {fail_at} was not seen");
                assert!(bits == wanted, "{} {kind:?}, failed at call {fail_at}", quant.name());
            }
        }
    }
}

#[test]
fn a_session_of_another_model_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let open = |name: &str| {
        let fixture = fixture(name).expect("a committed fixture");
        Runner::open(&pack(&fixture.checkpoint, folder.path(), &Default::default()), StateKind::F32, 4)
    };
    let (mut one, mut other) = (open("falcon-odd"), open("mamba-odd"));
    one.with(kernels::detect(), &Solo, |_, session, source| {
        other.with(kernels::detect(), &Solo, |model, _, _| {
            assert_eq!(model.forward(session, source, &[1]), Err(StepError::OtherModel));
            assert_eq!(
                model.logits(session, source, Rows::Last, &mut [0.0; 4096]),
                Err(StepError::OtherModel)
            );
        });
    });
}

#[test]
fn steps_out_of_order_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture("mamba-odd").expect("a committed fixture");
    let path = pack(&fixture.checkpoint, folder.path(), &Default::default());
    Runner::open(&path, StateKind::F32, 4).with(kernels::detect(), &Solo, |model, session, source| {
        let mut out = [0.0; 4096];
        assert_eq!(model.logits(session, source, Rows::Last, &mut out), Err(StepError::NotReady));
        assert_eq!(model.advance(session, source), Err(StepError::NotReady));
        assert_eq!(model.forward(session, source, &[]), Err(StepError::NoTokens));
        let unknown = StepError::Token { position: 1, token: 101, vocab: 101 };
        assert_eq!(model.forward(session, source, &[1, 101]), Err(unknown));
        assert!(matches!(model.forward(session, source, &[0; 5]), Err(StepError::Buffer { .. })));
        assert_eq!(model.begin(session, source, &[1]), Ok(()));
        assert_eq!(model.logits(session, source, Rows::Last, &mut out), Err(StepError::Suspended));
        assert_eq!(model.resume(session, source), Ok(()));
        assert_eq!(model.logits(session, source, Rows::Last, &mut out), Ok(()));
    });
}
