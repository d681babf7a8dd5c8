//! Sixteen lanes of floating point: four registers of NEON.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::kernels::float::isa::Isa;
use crate::numbers::LANES;
use crate::numbers::float::Float;

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

/// A token whose sixteen lanes are four registers.
///
/// # Safety
/// A value of the type exists only where the CPU has NEON.
pub(super) unsafe trait Quads: Copy + Send + Sync + 'static {
    /// [`Isa::NAME`].
    const TOKEN_NAME: &'static str;
}

// SAFETY: `detect` alone gives the token.
unsafe impl Quads for Neon {
    const TOKEN_NAME: &'static str = "NEON";
}

// SAFETY: as above; a CPU with the dot product instructions has NEON.
unsafe impl Quads for NeonDot {
    const TOKEN_NAME: &'static str = "NEON with dot product";
}

/// Takes a token as the proof that [`op!`] needs.
#[inline(always)]
pub(super) const fn proves<S: Quads>(_: S) {}

/// Evaluates an expression of intrinsics that need only NEON.
macro_rules! op {
    ($token:expr, $e:expr) => {{
        $crate::kernels::float::aarch64::float::proves($token);
        // SAFETY: the token proves NEON; memory operands are references to arrays of the size read or written.
        unsafe { $e }
    }};
}
pub(super) use op;

/// Evaluates an expression of intrinsics for the four quarters.
macro_rules! quarters {
    ($token:expr, |$($x:ident),+| $e:expr) => {{
        let first = { $(let $x = $x[0];)+ op!($token, $e) };
        let second = { $(let $x = $x[1];)+ op!($token, $e) };
        let third = { $(let $x = $x[2];)+ op!($token, $e) };
        let fourth = { $(let $x = $x[3];)+ op!($token, $e) };
        [first, second, third, fourth]
    }};
}

/// Four f16 (as bits) widened exactly. The intrinsic is unstable, the instruction is in every ARMv8.
#[inline(always)]
fn widen<S: Quads>(_: S, x: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: the token proves NEON; only the named registers are read and written.
    unsafe {
        asm!("fcvtl {w:v}.4s, {x:v}.4h", w = out(vreg) wide, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// The upper four of eight.
#[inline(always)]
fn widen_high<S: Quads>(_: S, x: uint16x8_t) -> float32x4_t {
    let wide;
    // SAFETY: the token proves NEON; only the named registers are read and written.
    unsafe {
        asm!("fcvtl2 {w:v}.4s, {x:v}.8h", w = out(vreg) wide, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// Four floats rounded to f16, ties to even.
#[inline(always)]
fn narrow<S: Quads>(_: S, x: float32x4_t) -> uint16x4_t {
    let narrow;
    // SAFETY: the token proves NEON; only the named registers are read and written.
    unsafe {
        asm!("fcvtn {n:v}.4h, {x:v}.4s", n = out(vreg) narrow, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    narrow
}

impl<S: Quads> Float for S {
    type F = [float32x4_t; 4];
    type I = [uint32x4_t; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [op!(self, vdupq_n_f32(x)); 4]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(self, |a, b| vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(self, |a, b| vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(self, |a, b| vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(self, |a, b| vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        quarters!(self, |a, b, c| vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        quarters!(self, |a| vsqrtq_f32(a))
    }
    #[inline(always)]
    fn neg_abs(self, a: Self::F) -> Self::F {
        quarters!(self, |a| vreinterpretq_f32_u32(vorrq_u32(
            vreinterpretq_u32_f32(a),
            vdupq_n_u32(0x8000_0000)
        )))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        quarters!(self, |a, b, x, y| vbslq_f32(vcltq_f32(a, b), x, y))
    }
    #[inline(always)]
    fn at_least(self, a: Self::F, floor: f32) -> Self::F {
        quarters!(self, |a| vmaxnmq_f32(a, vdupq_n_f32(floor)))
    }
    #[inline(always)]
    fn to_bits(self, a: Self::F) -> Self::I {
        quarters!(self, |a| vreinterpretq_u32_f32(a))
    }
    #[inline(always)]
    fn of_bits(self, a: Self::I) -> Self::F {
        quarters!(self, |a| vreinterpretq_f32_u32(a))
    }
    #[inline(always)]
    fn add_bits(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(self, |a, b| vaddq_u32(a, b))
    }
    #[inline(always)]
    fn shl_bits<const N: i32>(self, a: Self::I) -> Self::I {
        quarters!(self, |a| vshlq_n_u32::<N>(a))
    }
}

// SAFETY: that of `Quads`.
unsafe impl<S: Quads> Isa for S {
    const NAME: &'static str = S::TOKEN_NAME;
    const LOCKSTEP: usize = 1;

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        let from = from.as_ptr();
        op!(self, [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))])
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        op!(self, {
            vst1q_f32(to, x[0]);
            vst1q_f32(to.add(4), x[1]);
            vst1q_f32(to.add(8), x[2]);
            vst1q_f32(to.add(12), x[3]);
        })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        let from = from.as_ptr();
        op!(
            self,
            [
                widen(self, vld1_u16(from)),
                widen(self, vld1_u16(from.add(4))),
                widen(self, vld1_u16(from.add(8))),
                widen(self, vld1_u16(from.add(12))),
            ]
        )
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        let to = to.as_mut_ptr();
        op!(self, {
            vst1_u16(to, narrow(self, x[0]));
            vst1_u16(to.add(4), narrow(self, x[1]));
            vst1_u16(to.add(8), narrow(self, x[2]));
            vst1_u16(to.add(12), narrow(self, x[3]));
        })
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> Self::F {
        let from: *const f32 = from.as_ptr().cast();
        op!(
            self,
            [
                from.cast::<float32x4_t>().read_unaligned(),
                from.add(4).cast::<float32x4_t>().read_unaligned(),
                from.add(8).cast::<float32x4_t>().read_unaligned(),
                from.add(12).cast::<float32x4_t>().read_unaligned(),
            ]
        )
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        let from: *const uint16x8_t = from.as_ptr().cast();
        let (low, high) = op!(self, (from.read_unaligned(), from.add(1).read_unaligned()));
        [
            widen(self, op!(self, vget_low_u16(low))),
            widen_high(self, low),
            widen(self, op!(self, vget_low_u16(high))),
            widen_high(self, high),
        ]
    }
    #[inline(always)]
    fn int_to_float(self, x: Self::I) -> Self::F {
        quarters!(self, |x| vcvtq_f32_s32(vreinterpretq_s32_u32(x)))
    }
    #[inline(always)]
    fn store_rounded_i8(self, x: Self::F, to: &mut [i8; LANES]) {
        op!(self, {
            let low = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x[0])), vmovn_s32(vcvtnq_s32_f32(x[1])));
            let high = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x[2])), vmovn_s32(vcvtnq_s32_f32(x[3])));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        })
    }
    #[inline(always)]
    fn accumulate_abs_bits(self, acc: Self::I, x: Self::F) -> Self::I {
        quarters!(self, |acc, x| vmaxq_u32(
            acc,
            vbicq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x8000_0000))
        ))
    }
    #[inline(always)]
    fn max_bits(self, x: Self::I) -> u32 {
        op!(self, vmaxvq_u32(vmaxq_u32(vmaxq_u32(x[0], x[1]), vmaxq_u32(x[2], x[3]))))
    }
    #[inline(always)]
    fn zero_bits(self) -> Self::I {
        [op!(self, vdupq_n_u32(0)); 4]
    }
}
