//! Cortex-M with the DSP instructions (M4, M7, M33): two products an instruction.

mod conv;
mod dot;
mod functions;
mod scan;

use super::by_hand::ByHand;
use super::token::Dsp;
use crate::kernels::fixed::operands::{Input, Tap};
use crate::kernels::fixed::panel::{Panel, Quarters};
use crate::kernels::fixed::set::instantiate;
use crate::kernels::fixed::steps::{Steps, Stored};
use crate::numbers::fixed::{Num, Row};

instantiate!(Dsp);

// SAFETY: the compiler, or the feature `dsp` of this crate, promises the CPU.
unsafe impl ByHand for Dsp {
    const TOKEN_NAME: &'static str = "Cortex-M DSP";

    #[inline(always)]
    fn sums_of_i8(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, out: &mut Quarters) -> bool {
        dot::sums(self, panel, x, t, out)
    }
    #[inline(always)]
    fn sums_of_u4(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, out: &mut Quarters) -> bool {
        dot::sums_u4(self, panel, x, t, out)
    }
    #[inline(always)]
    fn product_high(self, a: i32, b: i32) -> i32 {
        functions::mul_high(self, a, b)
    }
    #[inline(always)]
    fn softplus(self, v: Num) -> (u32, i32) {
        functions::softplus_log2(self, v)
    }
    #[inline(always)]
    fn gate(self, v: Num) -> Num {
        functions::silu(self, v)
    }
    #[inline(always)]
    fn sixteen_narrow<H: Stored>(
        self,
        steps: &mut Steps,
        a: &[[u8; 64]],
        h: &mut [[H; 16]],
        b: &[i16],
        c: &[i16],
    ) -> bool {
        scan::sixteen(self, steps, a, h, b, c)
    }
    #[inline(always)]
    fn convolution(self, weights: &[[u8; 64]], taps: &[Tap<'_>], u: &mut Row, e: &mut Row) -> bool {
        conv::convolve(self, weights, taps, u, e)
    }
}
