//! The primitive operations: exactly rounded, so the same bits everywhere.

/// Exactly rounded arithmetic on one or more `f32` lanes.
///
/// Implementors are zero-sized tokens; one for an instruction set that needs detection can only be had where the
/// CPU was seen to have it. `core` never uses `f32::mul_add` or `f32::sqrt`: whether those become an instruction or
/// a library call depends on the build.
pub trait Float: Copy {
    /// The lanes as floating point.
    type F: Copy;
    /// The bits of the lanes.
    type I: Copy;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The square root.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// `-|a|`: sets the sign bit.
    fn neg_abs(self, a: Self::F) -> Self::F;
    /// `if a < b { x } else { y }`, lane by lane; `y` where either is NaN.
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// The larger of `a` and `floor`, a number that is not 0; `floor` where `a` is a quiet NaN.
    fn at_least(self, a: Self::F, floor: f32) -> Self::F;
    /// The bits of `a`.
    fn to_bits(self, a: Self::F) -> Self::I;
    /// The number with the bits of `a`.
    fn of_bits(self, a: Self::I) -> Self::F;
    /// Integer `a + b`, wrapping.
    fn add_bits(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << N`.
    fn shl_bits<const N: i32>(self, a: Self::I) -> Self::I;
}

/// One lane, in portable code: the definition that everything else equals.
///
/// fma and sqrt are `libm`'s, which are exact on every target.
#[derive(Clone, Copy, Debug)]
pub struct One;

impl Float for One {
    type F = f32;
    type I = u32;

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        libm::fmaf(a, b, c)
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        libm::sqrtf(a)
    }
    #[inline(always)]
    fn neg_abs(self, a: f32) -> f32 {
        f32::from_bits(a.to_bits() | 0x8000_0000)
    }
    #[inline(always)]
    fn select_lt(self, a: f32, b: f32, x: f32, y: f32) -> f32 {
        if a < b { x } else { y }
    }
    #[inline(always)]
    fn at_least(self, a: f32, floor: f32) -> f32 {
        if a > floor { a } else { floor }
    }
    #[inline(always)]
    fn to_bits(self, a: f32) -> u32 {
        a.to_bits()
    }
    #[inline(always)]
    fn of_bits(self, a: u32) -> f32 {
        f32::from_bits(a)
    }
    #[inline(always)]
    fn add_bits(self, a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn shl_bits<const N: i32>(self, a: u32) -> u32 {
        a << N
    }
}
