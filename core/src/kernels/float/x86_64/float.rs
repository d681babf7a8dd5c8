//! Sixteen lanes of floating point: two registers of 256 bits with AVX2, one with AVX-512.

use core::arch::x86_64::*;

use crate::cpu::x86_64::has;
use crate::kernels::float::isa::Isa;
use crate::numbers::float::Float;
use crate::numbers::{GROUP, LANES};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        has!("avx2", "fma", "f16c").then_some(&Self(()))
    }
}

/// AVX2, FMA, F16C and AVX-VNNI: `vpdpbusd` on 256 bits, for small machines (Alder Lake-N and its kin) without AVX-512.
#[derive(Clone, Copy, Debug)]
pub struct AvxVnni(());

impl AvxVnni {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        has!("avx2", "fma", "f16c", "avxvnni").then_some(&Self(()))
    }
}

/// AVX-512 F, BW, DQ, VL and VNNI, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        has!("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "fma", "f16c").then_some(&Self(()))
    }
}

/// A token whose sixteen lanes are two registers of 256 bits.
///
/// # Safety
/// A value of the type exists only where the CPU has AVX2, FMA and F16C.
pub(in crate::kernels::float) unsafe trait Ymm:
    Copy + Send + Sync + 'static
{
    /// [`Isa::NAME`].
    const TOKEN_NAME: &'static str;
}

// SAFETY: `detect` alone gives the token.
unsafe impl Ymm for Avx2 {
    const TOKEN_NAME: &'static str = "AVX2";
}

// SAFETY: as above.
unsafe impl Ymm for AvxVnni {
    const TOKEN_NAME: &'static str = "AVX-VNNI";
}

/// A token of an instruction set of this folder.
///
/// # Safety
/// A value of the type exists only where the CPU has the features that its name says.
pub(super) unsafe trait Token: Copy {}

// SAFETY: that of `Ymm`.
unsafe impl<S: Ymm> Token for S {}

// SAFETY: `detect` alone gives the token.
unsafe impl Token for Avx512 {}

/// Takes a token as the proof that [`op!`] needs.
#[inline(always)]
pub(super) const fn proves<S: Token>(_: S) {}

/// Evaluates an expression of intrinsics that need only the token's features.
macro_rules! op {
    ($token:expr, $e:expr) => {{
        $crate::kernels::float::x86_64::float::proves($token);
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read.
        unsafe { $e }
    }};
}
pub(super) use op;

/// Evaluates an expression of intrinsics for both halves.
macro_rules! halves {
    ($token:expr, |$($x:ident),+| $e:expr) => {{
        let low = { $(let $x = $x[0];)+ op!($token, $e) };
        let high = { $(let $x = $x[1];)+ op!($token, $e) };
        [low, high]
    }};
}
pub(super) use halves;

impl<S: Ymm> Float for S {
    type F = [__m256; 2];
    type I = [__m256i; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [op!(self, _mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(self, |a, b| _mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(self, |a, b| _mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(self, |a, b| _mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(self, |a, b| _mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(self, |a, b, c| _mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        halves!(self, |a| _mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn neg_abs(self, a: Self::F) -> Self::F {
        halves!(self, |a| _mm256_or_ps(a, _mm256_set1_ps(-0.0)))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        halves!(self, |a, b, x, y| _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn at_least(self, a: Self::F, floor: f32) -> Self::F {
        // The second operand is what comes of a NaN.
        halves!(self, |a| _mm256_max_ps(a, _mm256_set1_ps(floor)))
    }
    #[inline(always)]
    fn to_bits(self, a: Self::F) -> Self::I {
        halves!(self, |a| _mm256_castps_si256(a))
    }
    #[inline(always)]
    fn of_bits(self, a: Self::I) -> Self::F {
        halves!(self, |a| _mm256_castsi256_ps(a))
    }
    #[inline(always)]
    fn add_bits(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(self, |a, b| _mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn shl_bits<const N: i32>(self, a: Self::I) -> Self::I {
        halves!(self, |a| _mm256_slli_epi32::<N>(a))
    }
}

// SAFETY: that of `Ymm`.
unsafe impl<S: Ymm> Isa for S {
    const NAME: &'static str = S::TOKEN_NAME;
    const LOCKSTEP: usize = 2;

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        let from = from.as_ptr();
        op!(self, [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))])
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        op!(self, {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        let from: *const __m128i = from.as_ptr().cast();
        op!(self, [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))])
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        let to: *mut __m128i = to.as_mut_ptr().cast();
        op!(self, {
            _mm_storeu_si128(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(to.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        })
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> Self::F {
        let from: *const f32 = from.as_ptr().cast();
        op!(self, [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))])
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        let from: *const __m128i = from.as_ptr().cast();
        op!(self, [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))])
    }
    #[inline(always)]
    fn int_to_float(self, x: Self::I) -> Self::F {
        halves!(self, |x| _mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn store_rounded_i8(self, x: Self::F, to: &mut [i8; LANES]) {
        op!(self, {
            // Packing works within 128-bit halves, so the order of the four quarters is mended at the end.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        })
    }
    #[inline(always)]
    fn store_rounded_group(self, low: Self::F, high: Self::F, to: &mut [i8; GROUP]) -> i32 {
        store_rounded_group(self, low, high, to)
    }
    #[inline(always)]
    fn accumulate_abs_bits(self, acc: Self::I, x: Self::F) -> Self::I {
        halves!(self, |acc, x| _mm256_max_epu32(
            acc,
            _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff))
        ))
    }
    #[inline(always)]
    fn max_bits(self, x: Self::I) -> u32 {
        op!(self, {
            let m = _mm256_max_epu32(x[0], x[1]);
            let m = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
            let m = _mm_max_epu32(m, _mm_shuffle_epi32::<0b01_00_11_10>(m));
            let m = _mm_max_epu32(m, _mm_shuffle_epi32::<0b10_11_00_01>(m));
            _mm_cvtsi128_si32(m) as u32
        })
    }
    #[inline(always)]
    fn zero_bits(self) -> Self::I {
        [op!(self, _mm256_setzero_si256()); 2]
    }
}

/// See [`Isa::store_rounded_group`].
#[inline(always)]
fn store_rounded_group<S: Ymm>(s: S, low: [__m256; 2], high: [__m256; 2], to: &mut [i8; GROUP]) -> i32 {
    op!(s, {
        let low = _mm256_packs_epi32(_mm256_cvtps_epi32(low[0]), _mm256_cvtps_epi32(low[1]));
        let high = _mm256_packs_epi32(_mm256_cvtps_epi32(high[0]), _mm256_cvtps_epi32(high[1]));
        // Packing works within 128-bit halves, so the order of the eight fours is mended at the end.
        let bytes = _mm256_packs_epi16(low, high);
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes);
        // `vpsadbw` adds unsigned bytes: each is 128 larger.
        let unsigned = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
        let sums = _mm256_sad_epu8(unsigned, _mm256_setzero_si256());
        let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let sum = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
        _mm_cvtsi128_si32(sum) - 128 * GROUP as i32
    })
}

impl Float for Avx512 {
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(self, _mm512_set1_ps(x))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(self, _mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(self, _mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        op!(self, _mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn neg_abs(self, a: __m512) -> __m512 {
        op!(self, _mm512_or_ps(a, _mm512_set1_ps(-0.0)))
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        op!(self, _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }
    #[inline(always)]
    fn at_least(self, a: __m512, floor: f32) -> __m512 {
        // The second operand is what comes of a NaN.
        op!(self, _mm512_max_ps(a, _mm512_set1_ps(floor)))
    }
    #[inline(always)]
    fn to_bits(self, a: __m512) -> __m512i {
        op!(self, _mm512_castps_si512(a))
    }
    #[inline(always)]
    fn of_bits(self, a: __m512i) -> __m512 {
        op!(self, _mm512_castsi512_ps(a))
    }
    #[inline(always)]
    fn add_bits(self, a: __m512i, b: __m512i) -> __m512i {
        op!(self, _mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn shl_bits<const N: i32>(self, a: __m512i) -> __m512i {
        op!(self, _mm512_sll_epi32(a, _mm_cvtsi32_si128(N)))
    }
}

// SAFETY: `detect` alone gives the token.
unsafe impl Isa for Avx512 {
    const NAME: &'static str = "AVX-512 VNNI";
    const LOCKSTEP: usize = 4;

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        op!(self, _mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        op!(self, _mm512_storeu_ps(to.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        op!(self, _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn store_f16(self, x: __m512, to: &mut [u16; LANES]) {
        op!(
            self,
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x))
        )
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> __m512 {
        op!(self, _mm512_loadu_ps(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> __m512 {
        op!(self, _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn int_to_float(self, x: __m512i) -> __m512 {
        op!(self, _mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn store_rounded_i8(self, x: __m512, to: &mut [i8; LANES]) {
        op!(self, _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))))
    }
    #[inline(always)]
    fn accumulate_abs_bits(self, acc: __m512i, x: __m512) -> __m512i {
        op!(self, {
            let bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff));
            _mm512_max_epu32(acc, bits)
        })
    }
    #[inline(always)]
    fn max_bits(self, x: __m512i) -> u32 {
        op!(self, _mm512_reduce_max_epu32(x))
    }
    #[inline(always)]
    fn zero_bits(self) -> __m512i {
        op!(self, _mm512_setzero_si512())
    }
}
