//! What the steps of both paths promise alike: resumed after a failure, and refused out of order.

use std::ops::Range;

use elapid_core::format::Section;
use elapid_core::model::{Model, Numbers, Rows, Session, StepError};
use elapid_core::source::{Fault, LayerSource, SourceError};

/// A model of either path with a session.
pub trait Steps {
    /// As the models' own.
    ///
    /// # Errors
    /// As theirs.
    fn begin(&mut self, source: &mut dyn LayerSource, tokens: &[u32]) -> Result<(), StepError>;
    /// As the models' own.
    ///
    /// # Errors
    /// As theirs.
    fn advance(&mut self, source: &mut dyn LayerSource) -> Result<bool, StepError>;
    /// As the models' own.
    ///
    /// # Errors
    /// As theirs.
    fn resume(&mut self, source: &mut dyn LayerSource) -> Result<(), StepError>;
    /// As the models' own.
    ///
    /// # Errors
    /// As theirs.
    fn forward(&mut self, source: &mut dyn LayerSource, tokens: &[u32]) -> Result<(), StepError>;
    /// The bits of the logits after the last token.
    ///
    /// # Errors
    /// As the models' own.
    fn logits(&mut self, source: &mut dyn LayerSource) -> Result<Vec<u32>, StepError>;
    /// Whether a step is suspended.
    fn suspended(&self) -> bool;
}

/// A logit's bits.
pub trait Bits {
    /// All of them.
    fn bits(self) -> u32;
}

impl Bits for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Bits for i32 {
    fn bits(self) -> u32 {
        self.cast_unsigned()
    }
}

impl<N: Numbers> Steps for (&Model<'_, N>, &mut Session<'_, N>)
where
    N::Logit: Bits,
{
    fn begin(&mut self, source: &mut dyn LayerSource, tokens: &[u32]) -> Result<(), StepError> {
        self.0.begin(self.1, source, tokens)
    }
    fn advance(&mut self, source: &mut dyn LayerSource) -> Result<bool, StepError> {
        self.0.advance(self.1, source)
    }
    fn resume(&mut self, source: &mut dyn LayerSource) -> Result<(), StepError> {
        self.0.resume(self.1, source)
    }
    fn forward(&mut self, source: &mut dyn LayerSource, tokens: &[u32]) -> Result<(), StepError> {
        self.0.forward(self.1, source, tokens)
    }
    fn logits(&mut self, source: &mut dyn LayerSource) -> Result<Vec<u32>, StepError> {
        let mut out = vec![N::Logit::default(); self.0.config().padded_vocab() as usize];
        self.0.logits(self.1, source, Rows::Last, &mut out)?;
        Ok(out.into_iter().map(Bits::bits).collect())
    }
    fn suspended(&self) -> bool {
        self.1.suspended_at().is_some()
    }
}

/// Gives one block at a time, and fails once, at the `fail_at`-th call.
struct FailsOnce<'a> {
    inner: &'a mut dyn LayerSource,
    calls: usize,
    fail_at: usize,
}

impl LayerSource for FailsOnce<'_> {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        self.calls += 1;
        if self.calls == self.fail_at {
            return Err(SourceError { section, block: blocks.start, offset: 0, fault: Fault::Storage(5) });
        }
        self.inner.borrow(section, blocks.start..blocks.start + 1)
    }
}

fn assert_injected(error: &StepError) {
    let injected = matches!(error, StepError::Source(SourceError { fault: Fault::Storage(5), .. }));
    assert!(injected, "{error}");
}

/// What came of two chunks with a source that failed once.
#[derive(Debug, PartialEq, Eq)]
pub struct Fed {
    bits: Vec<u32>,
    failures: usize,
    calls: usize,
}

/// Feeds two chunks from a source that fails at the `fail_at`-th call, if there is one; resumes or begins again.
pub fn feed(mut steps: impl Steps, inner: &mut dyn LayerSource, fail_at: usize) -> Fed {
    let mut source = FailsOnce { inner, calls: 0, fail_at };
    let mut failures = 0;
    for tokens in [&[1u32, 2, 3, 4, 5][..], &[6, 7]] {
        let mut done = steps.forward(&mut source, tokens);
        while let Err(error) = done {
            assert_injected(&error);
            failures += 1;
            done = if steps.suspended() {
                assert_eq!(steps.begin(&mut source, tokens), Err(StepError::Suspended));
                steps.resume(&mut source)
            } else {
                steps.forward(&mut source, tokens)
            };
        }
    }
    let bits = loop {
        match steps.logits(&mut source) {
            Ok(bits) => break bits,
            Err(error) => assert_injected(&error),
        }
        failures += 1;
    };
    Fed { bits, failures, calls: source.calls }
}

/// A failure at any call that `run` makes is seen, and changes no bit. `run` is told at which call to fail; 0 is none.
pub fn failures_change_nothing(name: &str, mut run: impl FnMut(usize) -> Fed) {
    let wanted = run(0);
    assert_eq!(wanted.failures, 0);
    assert!(wanted.calls > 60, "{name}: only {} blocks were borrowed", wanted.calls);
    for fail_at in 1..=wanted.calls {
        let fed = run(fail_at);
        assert_eq!(fed.failures, 1, "{name}: the failure at call {fail_at} was not seen");
        assert!(fed.bits == wanted.bits, "{name}: failed at call {fail_at}");
    }
}

/// Steps out of order are refused: for a session of a model with 101 tokens, and room for chunks of 4.
pub fn out_of_order(mut steps: impl Steps, source: &mut dyn LayerSource) {
    assert_eq!(steps.logits(source), Err(StepError::NotReady));
    assert_eq!(steps.advance(source), Err(StepError::NotReady));
    assert_eq!(steps.forward(source, &[]), Err(StepError::NoTokens));
    let unknown = StepError::Token { position: 1, token: 101, vocab: 101 };
    assert_eq!(steps.forward(source, &[1, 101]), Err(unknown));
    assert!(matches!(steps.forward(source, &[0; 5]), Err(StepError::Buffer { .. })));
    assert_eq!(steps.begin(source, &[1]), Ok(()));
    assert_eq!(steps.logits(source), Err(StepError::Suspended));
    assert_eq!(steps.resume(source), Ok(()));
    assert!(steps.logits(source).is_ok());
}
