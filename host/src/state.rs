//! The memory of a sequence's state, and copies of it.

use std::ops::Range;

use elapid_core::fixed;
use elapid_core::format::Config;
use elapid_core::kernels::SsmState;
use elapid_core::kernels::fixed::{Range as Exponents, SsmState as FixedSsm};
use elapid_core::model::{State, StateKind, StateSize};

use crate::Error;
use crate::heap::{Zeroable, zeros};

/// What zeros are wanted for.
const STATE: &str = "the state";
/// What copies are wanted for.
const COPY: &str = "a copy of the state";

/// The recurrent state's elements.
#[derive(Debug)]
enum Ssm {
    F32(Vec<f32>),
    F16(Vec<u16>),
}

/// A state of the float path.
#[derive(Debug)]
pub(crate) struct FloatState {
    conv: Vec<f32>,
    ssm: Ssm,
}

impl FloatState {
    pub(crate) fn new(config: &Config, layers: usize, kind: StateKind) -> Result<Self, Error> {
        let size = StateSize::of(config, layers);
        let ssm = match kind {
            StateKind::F32 => Ssm::F32(zeros(STATE, size.ssm)?),
            StateKind::F16 => Ssm::F16(zeros(STATE, size.ssm)?),
        };
        Ok(Self { conv: zeros(STATE, size.conv)?, ssm })
    }

    pub(crate) fn borrow(&mut self) -> State<'_> {
        let ssm = match &mut self.ssm {
            Ssm::F32(state) => SsmState::F32(state),
            Ssm::F16(state) => SsmState::F16(state),
        };
        State { conv: &mut self.conv, ssm }
    }
}

/// The recurrent state's elements.
#[derive(Debug)]
enum Ints {
    I16(Vec<i16>),
    I32(Vec<i32>),
}

/// A state of the fixed path.
#[derive(Debug)]
pub(crate) struct FixedState {
    conv: Vec<i32>,
    conv_exponents: Vec<u16>,
    ssm: Ints,
    ranges: Vec<Exponents>,
}

impl FixedState {
    pub(crate) fn new(config: &Config, layers: usize, kind: fixed::StateKind) -> Result<Self, Error> {
        let size = fixed::StateSize::of(config, layers);
        let ssm = match kind {
            fixed::StateKind::I16 => Ints::I16(zeros(STATE, size.ssm)?),
            fixed::StateKind::I32 => Ints::I32(zeros(STATE, size.ssm)?),
        };
        Ok(Self {
            conv: zeros(STATE, size.conv)?,
            conv_exponents: zeros(STATE, size.conv_exponents)?,
            ssm,
            ranges: zeros(STATE, size.ranges)?,
        })
    }

    pub(crate) fn borrow(&mut self) -> fixed::State<'_> {
        let ssm = match &mut self.ssm {
            Ints::I16(state) => FixedSsm::I16(state),
            Ints::I32(state) => FixedSsm::I32(state),
        };
        let Self { conv, conv_exponents, ranges, .. } = self;
        fixed::State { conv, conv_exponents, ssm, ranges }
    }
}

/// One of several sequences, which lie one behind the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub slot: usize,
    pub slots: usize,
}

impl Slot {
    /// Its part of what all sequences have.
    fn of(self, len: usize) -> Range<usize> {
        let each = len / self.slots;
        self.slot * each..(self.slot + 1) * each
    }

    /// A copy of its numbers, or an error where the system has no memory for it.
    fn copy<T: Zeroable + Copy>(self, all: &[T]) -> Result<Vec<T>, Error> {
        let from = &all[self.of(all.len())];
        let mut to = zeros(COPY, from.len())?;
        to.copy_from_slice(from);
        Ok(to)
    }

    /// Copies numbers to its place; false where there are not as many.
    fn put<T: Copy>(self, from: &[T], all: &mut [T]) -> bool {
        let to = self.of(all.len());
        let fits = from.len() == to.len();
        if fits {
            all[to].copy_from_slice(from);
        }
        fits
    }
}

impl FloatState {
    /// A copy of one sequence's state.
    pub(crate) fn copy(&self, slot: Slot) -> Result<Self, Error> {
        let ssm = match &self.ssm {
            Ssm::F32(state) => Ssm::F32(slot.copy(state)?),
            Ssm::F16(state) => Ssm::F16(slot.copy(state)?),
        };
        Ok(Self { conv: slot.copy(&self.conv)?, ssm })
    }

    /// Gives one sequence the state `from`; false where that is of another kind or model.
    pub(crate) fn put(&mut self, slot: Slot, from: &Self) -> bool {
        let ssm = match (&from.ssm, &mut self.ssm) {
            (Ssm::F32(from), Ssm::F32(to)) => slot.put(from, to),
            (Ssm::F16(from), Ssm::F16(to)) => slot.put(from, to),
            _ => false,
        };
        ssm && slot.put(&from.conv, &mut self.conv)
    }
}

impl FixedState {
    /// A copy of one sequence's state.
    pub(crate) fn copy(&self, slot: Slot) -> Result<Self, Error> {
        let ssm = match &self.ssm {
            Ints::I16(state) => Ints::I16(slot.copy(state)?),
            Ints::I32(state) => Ints::I32(slot.copy(state)?),
        };
        Ok(Self {
            conv: slot.copy(&self.conv)?,
            conv_exponents: slot.copy(&self.conv_exponents)?,
            ssm,
            ranges: slot.copy(&self.ranges)?,
        })
    }

    /// Gives one sequence the state `from`; false where that is of another kind or model.
    pub(crate) fn put(&mut self, slot: Slot, from: &Self) -> bool {
        let ssm = match (&from.ssm, &mut self.ssm) {
            (Ints::I16(from), Ints::I16(to)) => slot.put(from, to),
            (Ints::I32(from), Ints::I32(to)) => slot.put(from, to),
            _ => false,
        };
        ssm && slot.put(&from.conv, &mut self.conv)
            && slot.put(&from.conv_exponents, &mut self.conv_exponents)
            && slot.put(&from.ranges, &mut self.ranges)
    }
}

/// A copy of a state of either path.
#[derive(Debug)]
pub(crate) enum Kept {
    Float(FloatState),
    Fixed(FixedState),
}

/// Logits as the paths compute them, `[vocab]` or longer.
#[derive(Clone, Debug)]
pub(crate) enum Logits {
    Float(Vec<f32>),
    /// In units of [`Config::logit_unit`].
    Fixed(Vec<i32>),
}

impl Logits {
    /// As floats.
    pub(crate) fn write_to(&self, config: &Config, out: &mut [f32]) {
        match self {
            Self::Float(logits) => out.iter_mut().zip(logits).for_each(|(out, logit)| *out = *logit),
            Self::Fixed(logits) => to_floats(logits, config, out),
        }
    }
}

/// The fixed path's logits as floats, rounded to nearest where they have more than 24 bits.
pub(crate) fn to_floats(logits: &[i32], config: &Config, out: &mut [f32]) {
    let unit = config.logit_unit();
    out.iter_mut().zip(logits).for_each(|(out, logit)| *out = *logit as f32 * unit);
}
