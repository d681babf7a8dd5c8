//! Implements [`Isa`] with hand-written Thumb-2 code where the compiler runs out of registers.

use super::token::Thumb;
use super::{dot, functions};
use crate::kernels::fixed::isa::Isa;
use crate::kernels::fixed::operands::{Activations, Group, Input, Tap};
use crate::kernels::fixed::panel::{Panel, Quarters};
use crate::kernels::fixed::scalar::Scalar;
use crate::kernels::fixed::steps::{Steps, Stored};
use crate::numbers::fixed::{Num, Row};
use crate::numbers::{TILE, TILES};

/// What differs between Thumb-2 alone and with the DSP instructions.
///
/// # Safety
/// A value of the type exists only where the CPU has the instructions that the methods use.
pub(in crate::kernels::fixed) unsafe trait ByHand: Thumb {
    /// [`Isa::NAME`].
    const TOKEN_NAME: &'static str;
    /// [`Isa::sums_i8`].
    fn sums_of_i8(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool;
    /// [`Isa::sums_u4`].
    fn sums_of_u4(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool;
    /// [`Isa::mul_high`].
    fn product_high(self, a: i32, b: i32) -> i32;
    /// [`Isa::softplus_log2`].
    fn softplus(self, v: Num) -> (u32, i32);
    /// [`Isa::silu`].
    fn gate(self, v: Num) -> Num;
    /// [`Isa::sixteen`] for sixteen states of 15 bits. False where states are others.
    fn sixteen_narrow<H: Stored>(
        self,
        steps: &mut Steps,
        a: &[[u8; 64]],
        h: &mut [[H; 16]],
        b: &[i16],
        c: &[i16],
    ) -> bool;
    /// [`Isa::convolve`].
    #[inline(always)]
    fn convolution(self, _weights: &[[u8; 64]], _taps: &[Tap<'_>], _u: &mut Row, _e: &mut Row) -> bool {
        false
    }
}

// SAFETY: that of `ByHand`.
unsafe impl<S: ByHand> Isa for S {
    const NAME: &'static str = S::TOKEN_NAME;
    const VECTORS: bool = false;

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        Scalar.dot_i8(w, x)
    }

    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        groups: &[Group; T],
    ) -> [Row; T] {
        Scalar.dot_u4(w, x, groups)
    }

    #[inline(always)]
    fn sums_i8(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool {
        self.sums_of_i8(panel, x, t, sums)
    }

    #[inline(always)]
    fn sums_u4(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool {
        self.sums_of_u4(panel, x, t, sums)
    }

    #[inline(always)]
    fn bits(self, sums: &Quarters) -> i32 {
        dot::bits(self, sums)
    }

    #[inline(always)]
    fn shifted(self, sums: &Quarters, up: i32, y: &mut Row) {
        dot::shifted(self, sums, up, y);
    }

    #[inline(always)]
    fn mul_high(self, a: i32, b: i32) -> i32 {
        self.product_high(a, b)
    }

    #[inline(always)]
    fn shift_right(self, m: i32, by: i32) -> i32 {
        functions::shift_right(self, m, by)
    }

    #[inline(always)]
    fn cut(self, m: i32, by: i32) -> i32 {
        functions::cut(self, m, by)
    }

    #[inline(always)]
    fn activations(self, rows: [&Row; 2], up: [i32; 2], q: &mut Activations) -> i32 {
        functions::activations(self, rows, up, q)
    }

    #[inline(always)]
    fn convolve(self, weights: &[[u8; 64]], taps: &[Tap<'_>], u: &mut Row, e: &mut Row) -> bool {
        self.convolution(weights, taps, u, e)
    }

    #[inline(always)]
    fn within_half(self, x: i32) -> i32 {
        functions::within_half(self, x)
    }

    #[inline(always)]
    fn within_nibble(self, x: i32) -> i32 {
        functions::within_nibble(self, x)
    }

    #[inline(always)]
    fn exponent(self, e: i32) -> i32 {
        functions::exponent(self, e)
    }

    #[inline(always)]
    fn within_word(self, by: i32) -> i32 {
        functions::within_word(self, by)
    }

    #[inline(always)]
    fn normal(self, v: Num) -> Num {
        functions::normal(self, v)
    }

    #[inline(always)]
    fn softplus_log2(self, v: Num) -> (u32, i32) {
        self.softplus(v)
    }

    #[inline(always)]
    fn silu(self, v: Num) -> Num {
        self.gate(v)
    }

    #[inline(always)]
    fn sixteen<H: Stored>(self, steps: &mut Steps, a: &[[u8; 64]], h: &mut [[H; 16]], b: &[i16], c: &[i16]) {
        if !self.sixteen_narrow(steps, a, h, b, c) {
            steps.sixteen(a, h, b, c);
        }
    }
}
