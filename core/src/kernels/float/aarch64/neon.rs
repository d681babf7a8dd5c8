//! NEON: sixteen lanes are four registers.

use core::arch::aarch64::*;
use core::arch::asm;

use super::order::{Bytes, Dots, Nibbles, OneToken, Tokens, group_by_group};
use super::{pairs, panels, sdot};
use crate::kernels::float::isa::Isa;
use crate::kernels::float::{Scale, instantiate};
use crate::numbers::float::Float;
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// NEON, as every 64-bit ARM has it.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

/// NEON with the dot product instructions.
#[derive(Clone, Copy, Debug)]
pub struct NeonDot(());

impl Neon {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        cfg!(target_feature = "neon").then_some(&Self(()))
    }
}

impl NeonDot {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        #[cfg(feature = "std")]
        let has = std::arch::is_aarch64_feature_detected!("dotprod");
        #[cfg(not(feature = "std"))]
        let has = cfg!(target_feature = "dotprod");
        has.then_some(&Self(()))
    }
}

instantiate!(Neon, [#[target_feature(enable = "neon")]], aarch64::matmul, aarch64::scan);
instantiate!(NeonDot, [#[target_feature(enable = "neon,dotprod")]], aarch64::matmul, aarch64::scan);

/// Calls intrinsics that need only the token's features.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read.
        unsafe { $e }
    };
}

/// Applies an intrinsic to the four quarters.
macro_rules! quarters {
    (|$($x:ident),+| $e:expr) => {{
        let first = { $(let $x = $x[0];)+ op!($e) };
        let second = { $(let $x = $x[1];)+ op!($e) };
        let third = { $(let $x = $x[2];)+ op!($e) };
        let fourth = { $(let $x = $x[3];)+ op!($e) };
        [first, second, third, fourth]
    }};
}

/// Four f16 (as bits) widened exactly. The intrinsic is unstable, the instruction is in every ARMv8.
#[inline(always)]
fn widen(x: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: reads and writes only the named registers.
    unsafe {
        asm!("fcvtl {w:v}.4s, {x:v}.4h", w = out(vreg) wide, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// The upper four of eight.
#[inline(always)]
fn widen_high(x: uint16x8_t) -> float32x4_t {
    let wide;
    // SAFETY: reads and writes only the named registers.
    unsafe {
        asm!("fcvtl2 {w:v}.4s, {x:v}.8h", w = out(vreg) wide, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// Four floats rounded to f16, ties to even.
#[inline(always)]
fn narrow(x: float32x4_t) -> uint16x4_t {
    let narrow;
    // SAFETY: reads and writes only the named registers.
    unsafe {
        asm!("fcvtn {n:v}.4h, {x:v}.4s", n = out(vreg) narrow, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    narrow
}

/// Implements the lanes for a token; only the dot product differs.
macro_rules! neon {
    ($token:ty, $name:literal, $block:literal, $dot:ident) => {
        impl Float for $token {
            type F = [float32x4_t; 4];
            type I = [uint32x4_t; 4];

            #[inline(always)]
            fn splat(self, x: f32) -> Self::F {
                [op!(vdupq_n_f32(x)); 4]
            }
            #[inline(always)]
            fn add(self, a: Self::F, b: Self::F) -> Self::F {
                quarters!(|a, b| vaddq_f32(a, b))
            }
            #[inline(always)]
            fn sub(self, a: Self::F, b: Self::F) -> Self::F {
                quarters!(|a, b| vsubq_f32(a, b))
            }
            #[inline(always)]
            fn mul(self, a: Self::F, b: Self::F) -> Self::F {
                quarters!(|a, b| vmulq_f32(a, b))
            }
            #[inline(always)]
            fn div(self, a: Self::F, b: Self::F) -> Self::F {
                quarters!(|a, b| vdivq_f32(a, b))
            }
            #[inline(always)]
            fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
                quarters!(|a, b, c| vfmaq_f32(c, a, b))
            }
            #[inline(always)]
            fn sqrt(self, a: Self::F) -> Self::F {
                quarters!(|a| vsqrtq_f32(a))
            }
            #[inline(always)]
            fn neg_abs(self, a: Self::F) -> Self::F {
                quarters!(|a| vreinterpretq_f32_u32(vorrq_u32(
                    vreinterpretq_u32_f32(a),
                    vdupq_n_u32(0x8000_0000)
                )))
            }
            #[inline(always)]
            fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
                quarters!(|a, b, x, y| vbslq_f32(vcltq_f32(a, b), x, y))
            }
            #[inline(always)]
            fn at_least(self, a: Self::F, floor: f32) -> Self::F {
                quarters!(|a| vmaxnmq_f32(a, vdupq_n_f32(floor)))
            }
            #[inline(always)]
            fn to_bits(self, a: Self::F) -> Self::I {
                quarters!(|a| vreinterpretq_u32_f32(a))
            }
            #[inline(always)]
            fn of_bits(self, a: Self::I) -> Self::F {
                quarters!(|a| vreinterpretq_f32_u32(a))
            }
            #[inline(always)]
            fn add_bits(self, a: Self::I, b: Self::I) -> Self::I {
                quarters!(|a, b| vaddq_u32(a, b))
            }
            #[inline(always)]
            fn shl_bits<const N: i32>(self, a: Self::I) -> Self::I {
                quarters!(|a| vshlq_n_u32::<N>(a))
            }
        }

        impl Isa for $token {
            const NAME: &'static str = $name;
            const BLOCK: usize = $block;
            const LOCKSTEP: usize = 1;

            #[inline(always)]
            fn load(self, from: &[f32; LANES]) -> Self::F {
                let from = from.as_ptr();
                op!([
                    vld1q_f32(from),
                    vld1q_f32(from.add(4)),
                    vld1q_f32(from.add(8)),
                    vld1q_f32(from.add(12))
                ])
            }
            #[inline(always)]
            fn store(self, x: Self::F, to: &mut [f32; LANES]) {
                let to = to.as_mut_ptr();
                op!({
                    vst1q_f32(to, x[0]);
                    vst1q_f32(to.add(4), x[1]);
                    vst1q_f32(to.add(8), x[2]);
                    vst1q_f32(to.add(12), x[3]);
                })
            }
            #[inline(always)]
            fn load_f16(self, from: &[u16; LANES]) -> Self::F {
                let from = from.as_ptr();
                op!([
                    widen(vld1_u16(from)),
                    widen(vld1_u16(from.add(4))),
                    widen(vld1_u16(from.add(8))),
                    widen(vld1_u16(from.add(12))),
                ])
            }
            #[inline(always)]
            fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
                let to = to.as_mut_ptr();
                op!({
                    vst1_u16(to, narrow(x[0]));
                    vst1_u16(to.add(4), narrow(x[1]));
                    vst1_u16(to.add(8), narrow(x[2]));
                    vst1_u16(to.add(12), narrow(x[3]));
                })
            }
            #[inline(always)]
            fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> Self::F {
                let from: *const f32 = from.as_ptr().cast();
                op!([
                    from.cast::<float32x4_t>().read_unaligned(),
                    from.add(4).cast::<float32x4_t>().read_unaligned(),
                    from.add(8).cast::<float32x4_t>().read_unaligned(),
                    from.add(12).cast::<float32x4_t>().read_unaligned(),
                ])
            }
            #[inline(always)]
            fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
                let from: *const uint16x8_t = from.as_ptr().cast();
                let (low, high) = op!((from.read_unaligned(), from.add(1).read_unaligned()));
                [
                    widen(op!(vget_low_u16(low))),
                    widen_high(low),
                    widen(op!(vget_low_u16(high))),
                    widen_high(high),
                ]
            }
            #[inline(always)]
            fn int_to_float(self, x: Self::I) -> Self::F {
                quarters!(|x| vcvtq_f32_s32(vreinterpretq_s32_u32(x)))
            }
            #[inline(always)]
            fn store_rounded_i8(self, x: Self::F, to: &mut [i8; LANES]) {
                op!({
                    let low = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x[0])), vmovn_s32(vcvtnq_s32_f32(x[1])));
                    let high = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x[2])), vmovn_s32(vcvtnq_s32_f32(x[3])));
                    vst1q_s8(to.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
                })
            }
            #[inline(always)]
            fn accumulate_abs_bits(self, acc: Self::I, x: Self::F) -> Self::I {
                quarters!(|acc, x| vmaxq_u32(
                    acc,
                    vbicq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x8000_0000))
                ))
            }
            #[inline(always)]
            fn max_bits(self, x: Self::I) -> u32 {
                op!(vmaxvq_u32(vmaxq_u32(vmaxq_u32(x[0], x[1]), vmaxq_u32(x[2], x[3]))))
            }
            #[inline(always)]
            fn zero_bits(self) -> Self::I {
                [op!(vdupq_n_u32(0)); 4]
            }
            #[inline(always)]
            fn dot_i8<const T: usize>(
                self,
                w: &[[u8; TILE]; TILES],
                x: &[[i8; GROUP]; T],
                _sums: &[Scale; T],
            ) -> [Self::I; T] {
                $dot::i8(w, x)
            }
            #[inline(always)]
            fn dot_u4<const T: usize>(
                self,
                w: &[[u8; TILE]; TILES / 2],
                x: &[[i8; GROUP]; T],
                sums: &[Scale; T],
            ) -> [Self::I; T] {
                $dot::u4(w, x, sums)
            }
            #[inline(always)]
            fn bare_dot(self, acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
                quarters!(|acc, w, x| $dot::bare(acc, vreinterpretq_s8_u32(w), vreinterpretq_s8_u32(x)))
            }
            #[inline(always)]
            fn dot_u3<const T: usize>(
                self,
                w: &[[u8; TILE]; 3],
                x: &[[i8; GROUP]; T],
                sums: &[Scale; T],
            ) -> [Self::I; T] {
                $dot::u3(w, x, sums)
            }
            #[inline(always)]
            fn dot_u5<const T: usize>(
                self,
                w: &[[u8; TILE]; 5],
                x: &[[i8; GROUP]; T],
                sums: &[Scale; T],
            ) -> [Self::I; T] {
                $dot::u5(w, x, sums)
            }
        }
    };
}

neon!(Neon, "NEON", 2, pairs);
neon!(NeonDot, "NEON with dot product", 3, sdot);

impl Dots for Neon {
    #[inline(always)]
    fn panel_i8(self, panel: &OneToken<'_, Bytes>, sums: Self::F) -> Self::F {
        panels::panel_i8(panel, sums)
    }
    #[inline(always)]
    fn panel_u4(self, panel: &OneToken<'_, Nibbles>, sums: Self::F) -> Self::F {
        panels::panel_u4(panel, sums)
    }
    #[inline(always)]
    fn dot_small<const T: usize>(self, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Self::I; T] {
        pairs::small(w, x)
    }
    #[inline(always)]
    fn strip<const SMALL: bool, const T: usize>(
        self,
        strip: &Tokens<'_>,
        mut sums: [Self::F; T],
    ) -> [Self::F; T] {
        match sums.as_chunks_mut() {
            ([two], []) if SMALL => *two = panels::two_small(strip, *two),
            ([two], []) => *two = panels::two_i8(strip, *two),
            _ => return group_by_group::<Self, SMALL, T>(self, strip, sums),
        }
        sums
    }
}

impl Dots for NeonDot {
    #[inline(always)]
    fn pair_i8(self, pair: &[OneToken<'_, Bytes>; 2], sums: [Self::F; 2]) -> [Self::F; 2] {
        sdot::pair_i8(pair, sums)
    }
    #[inline(always)]
    fn pair_u4(self, pair: &[OneToken<'_, Nibbles>; 2], sums: [Self::F; 2]) -> [Self::F; 2] {
        sdot::pair_u4(pair, sums)
    }
    /// Small weights are no different here.
    #[inline(always)]
    fn dot_small<const T: usize>(self, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Self::I; T] {
        sdot::i8(w, x)
    }
}
