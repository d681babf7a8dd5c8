//! What kernels compute with: activations, states, scales.

use core::ops::Range;

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
use crate::format::MatrixShape;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
use crate::numbers::GROUP;
use crate::numbers::LANES;

/// Tokens whose int8 activations lie together; see [`Input`]. Every [`Dot::BLOCK`](super::Dot::BLOCK) divides it.
pub const TOKEN_BLOCK: usize = 12;

/// Scale of a group of 32 activations, and the sum of its integers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Scale {
    /// What one step of the integers stands for.
    pub scale: f32,
    /// Sum of the group's 32 integers.
    pub sum: i32,
}

/// What a matrix is multiplied with: a chunk of tokens, as the matrix' quantization wants it.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Tokens in the chunk, `T`.
    pub tokens: usize,
    /// `[cols/16][T][16]`, read by f32 and f16 matrices.
    pub x: &'a [f32],
    /// Within +-127, read by matrices of integers: blocks of [`TOKEN_BLOCK`] tokens one after the other, the last one
    /// perhaps with fewer, each of `B` tokens as `[cols/32][B][32]`.
    pub q: &'a [i8],
    /// Blocks of `[cols/32][B]`, read by matrices of integers.
    pub scales: &'a [Scale],
}

impl Input<'_> {
    /// Whether the integers of all tokens are there, with their scales, for a matrix.
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    #[inline(always)]
    pub(crate) fn is_whole(&self, shape: &MatrixShape) -> bool {
        let groups = (shape.cols() as usize / GROUP).saturating_mul(self.tokens);
        self.q.len() / GROUP >= groups && self.scales.len() >= groups
    }
}

/// The recurrent state of some channels, `[channels/16][d_state][16]`.
#[derive(Debug)]
pub enum SsmState<'a> {
    /// Kept as f32.
    F32(&'a mut [f32]),
    /// Kept as f16 (its bits), rounded after every token and saturating.
    F16(&'a mut [u16]),
}

impl SsmState<'_> {
    /// Reborrows for a shorter lifetime.
    pub(crate) fn reborrow(&mut self) -> SsmState<'_> {
        match self {
            Self::F32(state) => SsmState::F32(state),
            Self::F16(state) => SsmState::F16(state),
        }
    }

    /// An empty state of the same kind.
    pub(crate) fn none(&self) -> SsmState<'static> {
        match self {
            Self::F32(_) => SsmState::F32(&mut []),
            Self::F16(_) => SsmState::F16(&mut []),
        }
    }
}

/// What all channels of a scan share.
#[derive(Clone, Debug)]
pub struct ScanInput<'a> {
    /// Tokens in the chunk, `T`.
    pub tokens: usize,
    /// The tokens of the sequence whose state is given.
    pub range: Range<usize>,
    /// States of a channel, `N`.
    pub d_state: usize,
    /// `[N/16][T][16]`, the last panel padded.
    pub b: &'a [f32],
    /// `[N/16][T][16]`, the last panel padded.
    pub c: &'a [f32],
}

impl ScanInput<'_> {
    /// The tokens of the range for which B and C are there, however many a kernel takes at a time.
    pub(crate) fn given(&self) -> Range<usize> {
        let before_last = self.d_state.div_ceil(LANES).saturating_sub(1).saturating_mul(self.tokens);
        let given = |x: &[f32]| (x.len() / LANES).saturating_sub(before_last);
        self.range.start..self.range.end.min(self.tokens).min(given(self.b)).min(given(self.c))
    }
}
