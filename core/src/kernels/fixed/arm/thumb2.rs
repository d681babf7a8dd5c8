//! Cortex-M from the M3 on: what the instructions of Thumb-2 do better by hand than the compiler, which runs out of registers.
//!
//! What both kinds of Cortex-M share is here too, some of it as macros with the lines that differ.

use super::functions::{silu, softplus_log2};
use super::matmul::{sums_i8, sums_u4};
use super::scan::sixteen;
use crate::kernels::fixed::channels::Tap;
use crate::kernels::fixed::lanes::Quarters;
use crate::kernels::fixed::matmul::Panel;
use crate::kernels::fixed::scan::{Hold, Steps};
use crate::kernels::fixed::{Activations, Dot, Group, Input, Scalar, instantiate};
use crate::numbers::fixed::{Num, Row, mul_high};
use crate::numbers::{TILE, TILES};

/// The instructions of ARMv7-M and ARMv8-M Mainline.
#[derive(Clone, Copy, Debug)]
pub struct Thumb2;

instantiate!(Thumb2);

/// [`Dot`] by functions for the sums of a panel, products, softplus and silu, and the states.
macro_rules! dot_by_hand {
    ($isa:ident, $name:literal, $sums_i8:path, $sums_u4:path, $mul_high:path, $softplus:path, $silu:path, $sixteen:path, $convolve:path) => {
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
                $crate::kernels::fixed::arm::matmul::bits(sums)
            }

            #[inline(always)]
            fn shifted(self, sums: &Quarters, up: i32, y: &mut Row) {
                $crate::kernels::fixed::arm::matmul::shifted(sums, up, y);
            }

            #[inline(always)]
            fn mul_high(self, a: i32, b: i32) -> i32 {
                $mul_high(a, b)
            }

            #[inline(always)]
            fn shift_right(self, m: i32, by: i32) -> i32 {
                $crate::kernels::fixed::arm::functions::shift_right(m, by)
            }

            #[inline(always)]
            fn cut(self, m: i32, by: i32) -> i32 {
                $crate::kernels::fixed::arm::functions::cut(m, by)
            }

            #[inline(always)]
            fn activations(self, rows: [&Row; 2], up: [i32; 2], q: &mut Activations) -> i32 {
                $crate::kernels::fixed::arm::functions::activations(rows, up, q)
            }

            #[inline(always)]
            fn convolve(self, weights: &[[u8; 64]], taps: &[Tap<'_>], u: &mut Row, e: &mut Row) -> bool {
                $convolve(weights, taps, u, e)
            }

            #[inline(always)]
            fn within_half(self, x: i32) -> i32 {
                $crate::kernels::fixed::arm::functions::within_half(x)
            }

            #[inline(always)]
            fn within_nibble(self, x: i32) -> i32 {
                $crate::kernels::fixed::arm::functions::within_nibble(x)
            }

            #[inline(always)]
            fn exponent(self, e: i32) -> i32 {
                $crate::kernels::fixed::arm::functions::exponent(e)
            }

            #[inline(always)]
            fn within_word(self, by: i32) -> i32 {
                $crate::kernels::fixed::arm::functions::within_word(by)
            }

            #[inline(always)]
            fn normal(self, v: Num) -> Num {
                $crate::kernels::fixed::arm::functions::normal(v)
            }

            #[inline(always)]
            fn softplus_log2(self, v: Num) -> (u32, i32) {
                $softplus(v)
            }

            #[inline(always)]
            fn silu(self, v: Num) -> Num {
                $silu(v)
            }

            #[inline(always)]
            fn sixteen<H: Hold>(
                self,
                steps: &mut Steps,
                a: &[[u8; 64]],
                h: &mut [[H; 16]],
                b: &[i16],
                c: &[i16],
            ) {
                if !$sixteen(steps, a, h, b, c) {
                    steps.sixteen(a, h, b, c);
                }
            }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use dot_by_hand;

/// [`Dot::convolve`]: by portable code.
#[inline(always)]
fn by_channel(_: &[[u8; 64]], _: &[Tap<'_>], _: &mut Row, _: &mut Row) -> bool {
    false
}

dot_by_hand!(Thumb2, "Thumb-2", sums_i8, sums_u4, mul_high, softplus_log2, silu, sixteen, by_channel);
