//! Four lanes, one register: for kernels that keep more vectors at hand than sixteen lanes would let them.

use core::arch::aarch64::*;

use crate::num::Float;

/// NEON, which every AArch64 that this compiles for has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quad;

/// Applies intrinsics that every AArch64 has.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: NEON is part of every AArch64 that this compiles for.
        unsafe { $e }
    };
}

impl Float for Quad {
    type F = float32x4_t;
    type I = uint32x4_t;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!(vdupq_n_f32(x))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        op!(vsqrtq_f32(a))
    }
    #[inline(always)]
    fn neg_abs(self, a: Self::F) -> Self::F {
        op!(vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0x8000_0000))))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        op!(vbslq_f32(vcltq_f32(a, b), x, y))
    }
    #[inline(always)]
    fn at_least(self, a: Self::F, floor: f32) -> Self::F {
        op!(vmaxnmq_f32(a, vdupq_n_f32(floor)))
    }
    #[inline(always)]
    fn to_bits(self, a: Self::F) -> Self::I {
        op!(vreinterpretq_u32_f32(a))
    }
    #[inline(always)]
    fn of_bits(self, a: Self::I) -> Self::F {
        op!(vreinterpretq_f32_u32(a))
    }
    #[inline(always)]
    fn add_bits(self, a: Self::I, b: Self::I) -> Self::I {
        op!(vaddq_u32(a, b))
    }
    #[inline(always)]
    fn shl_bits<const N: i32>(self, a: Self::I) -> Self::I {
        op!(vshlq_n_u32::<N>(a))
    }
}
