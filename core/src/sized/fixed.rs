//! The same for the fixed path: [`crate::fixed`].

use super::{Dimensions, SizeError};
use crate::fixed::{self, Model, ScratchSize, Session, StateSize};
use crate::kernels::LANES;
use crate::kernels::fixed::{Group, Inverse, Range, SsmState};
use crate::model::StepError;

mod sealed {
    pub trait Sealed {}
    impl Sealed for i16 {}
    impl Sealed for i32 {}
}

/// A mantissa of the recurrent state: `i16` for 15 bits and sign, `i32` for 29.
pub trait Mantissa: Copy + sealed::Sealed {
    /// Zero.
    const ZERO: Self;
    /// The mantissas as the step takes them.
    fn borrow(mantissas: &mut [Self]) -> SsmState<'_>;
}

impl Mantissa for i16 {
    const ZERO: Self = 0;
    fn borrow(mantissas: &mut [Self]) -> SsmState<'_> {
        SsmState::I16(mantissas)
    }
}

impl Mantissa for i32 {
    const ZERO: Self = 0;
    fn borrow(mantissas: &mut [Self]) -> SsmState<'_> {
        SsmState::I32(mantissas)
    }
}

/// The state of some layers.
#[derive(Debug)]
struct Layers<
    const LAYERS: usize,
    const INNER: usize,
    const PANELS: usize,
    const STATE: usize,
    const CONV: usize,
    T,
> {
    conv: [[[i32; CONV]; INNER]; LAYERS],
    conv_exponents: [[[u16; CONV]; PANELS]; LAYERS],
    ssm: [[[T; STATE]; INNER]; LAYERS],
    ranges: [[Range; INNER]; LAYERS],
}

impl<
    const LAYERS: usize,
    const INNER: usize,
    const PANELS: usize,
    const STATE: usize,
    const CONV: usize,
    T: Mantissa,
> Layers<LAYERS, INNER, PANELS, STATE, CONV, T>
{
    const fn new() -> Self {
        Self {
            conv: [[[0; CONV]; INNER]; LAYERS],
            conv_exponents: [[[0; CONV]; PANELS]; LAYERS],
            ssm: [[[T::ZERO; STATE]; INNER]; LAYERS],
            ranges: [[Range::ZERO; INNER]; LAYERS],
        }
    }

    fn borrow(&mut self) -> fixed::State<'_> {
        fixed::State {
            conv: self.conv.as_flattened_mut().as_flattened_mut(),
            conv_exponents: self.conv_exponents.as_flattened_mut().as_flattened_mut(),
            ssm: T::borrow(self.ssm.as_flattened_mut().as_flattened_mut()),
            ranges: self.ranges.as_flattened_mut(),
        }
    }
}

/// The state of a sequence in the fixed path, with the undo copy of one layer. As [`super::State`], with `PANELS` for
/// `INNER / 16`: the convolution has an exponent for each sixteen channels.
#[derive(Debug)]
pub struct FixedState<
    const LAYERS: usize,
    const INNER: usize,
    const PANELS: usize,
    const STATE: usize,
    const CONV: usize,
    T,
> {
    all: Layers<LAYERS, INNER, PANELS, STATE, CONV, T>,
    undo: Layers<1, INNER, PANELS, STATE, CONV, T>,
}

impl<
    const LAYERS: usize,
    const INNER: usize,
    const PANELS: usize,
    const STATE: usize,
    const CONV: usize,
    T: Mantissa,
> FixedState<LAYERS, INNER, PANELS, STATE, CONV, T>
{
    /// What it is for.
    pub const DIMENSIONS: Dimensions = {
        assert!(PANELS * LANES == INNER, "a panel has sixteen channels");
        super::State::<LAYERS, INNER, STATE, CONV, f32>::DIMENSIONS
    };

    /// A state that remembers nothing.
    #[must_use]
    pub const fn new() -> Self {
        let _ = Self::DIMENSIONS;
        Self { all: Layers::new(), undo: Layers::new() }
    }

    /// A session in this memory, of a new sequence.
    ///
    /// # Errors
    /// [`SizeError`] with both sizes if it is for another model.
    pub fn session<'s, const WORDS: usize, const HALVES: usize, const GROUPS: usize>(
        &'s mut self,
        model: &Model<'_>,
        scratch: &'s mut FixedScratch<WORDS, HALVES, GROUPS>,
    ) -> Result<Session<'s>, SizeError> {
        let (have, need) = (Self::DIMENSIONS, Dimensions::of(model.config()));
        if have != need {
            return Err(SizeError::State { have, need });
        }
        let mut state = self.all.borrow();
        state.clear();
        debug_assert_eq!(state.size(), StateSize::of(model.config(), LAYERS));
        let (have, need) = (scratch.size().bytes(), ScratchSize::of(model.config(), 1).bytes());
        // The state fits and is clear: what can still be refused is the working memory.
        Session::new(model, state, self.undo.borrow(), scratch.borrow())
            .map_err(|_: StepError| SizeError::Scratch { have, need })
    }
}

impl<
    const LAYERS: usize,
    const INNER: usize,
    const PANELS: usize,
    const STATE: usize,
    const CONV: usize,
    T: Mantissa,
> Default for FixedState<LAYERS, INNER, PANELS, STATE, CONV, T>
{
    fn default() -> Self {
        Self::new()
    }
}

/// The working memory of a step of one token in the fixed path, sized by [`ScratchSize`].
#[derive(Debug)]
pub struct FixedScratch<const WORDS: usize, const HALVES: usize, const GROUPS: usize> {
    words: [i32; WORDS],
    halves: [i16; HALVES],
    groups: [Group; GROUPS],
    inverses: [Inverse; 1],
}

impl<const WORDS: usize, const HALVES: usize, const GROUPS: usize> FixedScratch<WORDS, HALVES, GROUPS> {
    /// All zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            words: [0; WORDS],
            halves: [0; HALVES],
            groups: [const { Group { exponent: 0, sum: 0 } }; GROUPS],
            inverses: [const { Inverse { m: 0, e: 0, top: 0 } }; 1],
        }
    }

    /// Elements.
    #[must_use]
    pub const fn size(&self) -> ScratchSize {
        ScratchSize { words: WORDS, halves: HALVES, groups: GROUPS, tokens: 1 }
    }

    /// As the step takes it.
    pub fn borrow(&mut self) -> fixed::Scratch<'_> {
        let Self { words, halves, groups, inverses } = self;
        fixed::Scratch { words, halves, groups, inverses }
    }
}

impl<const WORDS: usize, const HALVES: usize, const GROUPS: usize> Default
    for FixedScratch<WORDS, HALVES, GROUPS>
{
    fn default() -> Self {
        Self::new()
    }
}
