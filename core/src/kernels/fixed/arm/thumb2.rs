//! Cortex-M without the DSP instructions (M3).

use super::by_hand::ByHand;
use super::dot::{sums_i8, sums_u4};
use super::functions::{silu, softplus_log2};
use super::scan::sixteen;
use super::token::Thumb2;
use crate::kernels::fixed::operands::Input;
use crate::kernels::fixed::panel::{Panel, Quarters};
use crate::kernels::fixed::set::instantiate;
use crate::kernels::fixed::steps::{Steps, Stored};
use crate::numbers::fixed::{Num, mul_high};

instantiate!(Thumb2);

// SAFETY: the compiler, or the feature `thumb2` of this crate, promises the CPU.
unsafe impl ByHand for Thumb2 {
    const TOKEN_NAME: &'static str = "Thumb-2";

    #[inline(always)]
    fn sums_of_i8(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, out: &mut Quarters) -> bool {
        sums_i8(self, panel, x, t, out)
    }
    #[inline(always)]
    fn sums_of_u4(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, out: &mut Quarters) -> bool {
        sums_u4(self, panel, x, t, out)
    }
    #[inline(always)]
    fn product_high(self, a: i32, b: i32) -> i32 {
        mul_high(a, b)
    }
    #[inline(always)]
    fn softplus(self, v: Num) -> (u32, i32) {
        softplus_log2(self, v)
    }
    #[inline(always)]
    fn gate(self, v: Num) -> Num {
        silu(self, v)
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
        sixteen(self, steps, a, h, b, c)
    }
}
