//! Cortex-M from the M3 on: what the instructions of Thumb-2 do better by hand than the compiler, which runs out of registers.
//!
//! What both kinds of Cortex-M share is here too, some of it as macros with the lines that differ.

pub(super) mod functions;
pub(super) mod products;
pub(super) mod states;

use super::channels::Pairs;
use super::lanes::Quarters;
use super::matmul::Panel;
use super::scan::Channel;
use super::{Activations, Dot, Group, Input, Scalar, TILE, TILES, instantiate};
use crate::fixed::num::{Num, Row, mul_high};
use functions::silu;
use products::{sums_i8, sums_u4};
use states::states;

/// The instructions of ARMv7-M and ARMv8-M Mainline.
#[derive(Clone, Copy, Debug)]
pub struct Thumb2;

instantiate!(Thumb2);

/// [`Dot`] by functions for the sums of a panel, products, silu, and the states.
macro_rules! dot_by_hand {
    ($isa:ident, $name:literal, $sums_i8:path, $sums_u4:path, $mul_high:path, $silu:path, $states:path) => {
        impl Dot for $isa {
            const NAME: &'static str = $name;
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
                $sums_i8(panel, x, t, sums)
            }

            #[inline(always)]
            fn sums_u4(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool {
                $sums_u4(panel, x, t, sums)
            }

            #[inline(always)]
            fn bits(self, sums: &Quarters) -> i32 {
                $crate::fixed::kernels::thumb2::products::bits(sums)
            }

            #[inline(always)]
            fn shifted(self, sums: &Quarters, up: i32, y: &mut Row) {
                $crate::fixed::kernels::thumb2::products::shifted(sums, up, y);
            }

            #[inline(always)]
            fn mul_high(self, a: i32, b: i32) -> i32 {
                $mul_high(a, b)
            }

            #[inline(always)]
            fn shift_right(self, m: i32, by: i32) -> i32 {
                $crate::fixed::kernels::thumb2::functions::shift_right(m, by)
            }

            #[inline(always)]
            fn normal(self, v: Num) -> Num {
                $crate::fixed::kernels::thumb2::functions::normal(v)
            }

            #[inline(always)]
            fn softplus_log2(self, v: Num) -> (u32, i32) {
                $crate::fixed::kernels::thumb2::functions::softplus_log2(v)
            }

            #[inline(always)]
            fn silu(self, v: Num) -> Num {
                $silu(v)
            }

            #[inline(always)]
            fn states(
                self,
                channel: &Channel,
                lane: usize,
                a: &[[u8; 64]; 16],
                h: &mut [[i16; 16]; 16],
                pairs: &mut Pairs,
            ) -> Option<(i32, u32)> {
                Some($states(channel, lane, a, h, pairs))
            }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use dot_by_hand;

dot_by_hand!(Thumb2, "Thumb-2", sums_i8, sums_u4, mul_high, silu, states);
