//! AVX2 with FMA and F16C: sixteen lanes are two registers.

use core::arch::x86_64::*;

use super::{AHEAD, has};
use crate::kernels::isa::{GROUP, Isa, LANES, TILE, TILES, word};
use crate::kernels::{Scale, instantiate};
use crate::num::Float;

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

instantiate!(Avx2, #[target_feature(enable = "avx2,fma,f16c")]);

/// Calls intrinsics that need only the token's features.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read.
        unsafe { $e }
    };
}

/// Applies an intrinsic to both halves.
macro_rules! halves {
    (|$($x:ident),+| $e:expr) => {{
        let low = { $(let $x = $x[0];)+ op!($e) };
        let high = { $(let $x = $x[1];)+ op!($e) };
        [low, high]
    }};
}

/// `acc[r] + sum over j of w[4 r + j] x[j]` for unsigned `w` and signed `x` whose pairs of products fit an i16.
macro_rules! dot {
    ($acc:expr, $w:expr, $x:expr) => {
        _mm256_add_epi32($acc, _mm256_madd_epi16(_mm256_maddubs_epi16($w, $x), _mm256_set1_epi16(1)))
    };
}

impl Float for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [op!(_mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(|a, b, c| _mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        halves!(|a| _mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn neg_abs(self, a: Self::F) -> Self::F {
        halves!(|a| _mm256_or_ps(a, _mm256_set1_ps(-0.0)))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        halves!(|a, b, x, y| _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn at_least(self, a: Self::F, floor: f32) -> Self::F {
        // The second operand is what comes of a NaN.
        halves!(|a| _mm256_max_ps(a, _mm256_set1_ps(floor)))
    }
    #[inline(always)]
    fn to_bits(self, a: Self::F) -> Self::I {
        halves!(|a| _mm256_castps_si256(a))
    }
    #[inline(always)]
    fn of_bits(self, a: Self::I) -> Self::F {
        halves!(|a| _mm256_castsi256_ps(a))
    }
    #[inline(always)]
    fn add_bits(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(|a, b| _mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn shl_bits<const N: i32>(self, a: Self::I) -> Self::I {
        halves!(|a| _mm256_slli_epi32::<N>(a))
    }
}

impl Isa for Avx2 {
    const NAME: &'static str = "AVX2";
    const BLOCK: usize = 2;

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        let from = from.as_ptr();
        op!([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))])
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        op!({
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        let from: *const __m128i = from.as_ptr().cast();
        op!([_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))])
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        let to: *mut __m128i = to.as_mut_ptr().cast();
        op!({
            _mm_storeu_si128(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(to.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        })
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> Self::F {
        let from: *const f32 = from.as_ptr().cast();
        op!([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))])
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        let from: *const __m128i = from.as_ptr().cast();
        op!([_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))])
    }
    #[inline(always)]
    fn int_to_float(self, x: Self::I) -> Self::F {
        halves!(|x| _mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn store_rounded_i8(self, x: Self::F, to: &mut [i8; LANES]) {
        op!({
            // Packing works within 128-bit halves, so the order of the four quarters is mended at the end.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        })
    }
    #[inline(always)]
    fn accumulate_abs_bits(self, acc: Self::I, x: Self::F) -> Self::I {
        halves!(|acc, x| _mm256_max_epu32(
            acc,
            _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff))
        ))
    }
    #[inline(always)]
    fn max_bits(self, x: Self::I) -> u32 {
        op!({
            let m = _mm256_max_epu32(x[0], x[1]);
            let m = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
            let m = _mm_max_epu32(m, _mm_shuffle_epi32::<0b01_00_11_10>(m));
            let m = _mm_max_epu32(m, _mm_shuffle_epi32::<0b10_11_00_01>(m));
            _mm_cvtsi128_si32(m) as u32
        })
    }
    #[inline(always)]
    fn zero_bits(self) -> Self::I {
        [op!(_mm256_setzero_si256()); 2]
    }
    #[inline(always)]
    fn prefetch(self, from: &[u8], ahead: usize) {
        op!(_mm_prefetch::<_MM_HINT_T2>(from.as_ptr().wrapping_add(ahead).cast()))
    }
    /// `|w|` times `x` with the sign of `w`: `x` is within +-127, so two products reach 2 * 128 * 127 = 32,512 at most
    /// and `vpmaddubsw` never saturates.
    #[inline(always)]
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        _sums: &[Scale; T],
    ) -> [Self::I; T] {
        let mut acc = [self.zero_bits(); T];
        for (k, tile) in w.iter().enumerate() {
            if T == 1 {
                self.prefetch(tile, AHEAD);
            }
            let w = load_tile(tile);
            let magnitude = halves!(|w| _mm256_abs_epi8(w));
            for t in 0..T {
                let (x, sums) = (op!(_mm256_set1_epi32(word(&x[t], k))), acc[t]);
                acc[t] = halves!(|sums, magnitude, w| dot!(sums, magnitude, _mm256_sign_epi8(x, w)));
            }
        }
        acc
    }
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let mut acc = [self.zero_bits(); T];
        for t in 0..T {
            acc[t] = [op!(_mm256_set1_epi32(sums[t].sum.wrapping_mul(-8))); 2];
        }
        for (k, pair) in w.iter().enumerate() {
            if T == 1 {
                self.prefetch(pair, AHEAD);
            }
            let bytes = load_tile(pair);
            let low = halves!(|bytes| _mm256_and_si256(bytes, _mm256_set1_epi8(15)));
            let high = halves!(|bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15)));
            for (k, w) in [(2 * k, low), (2 * k + 1, high)] {
                for t in 0..T {
                    let (x, sums) = (op!(_mm256_set1_epi32(word(&x[t], k))), acc[t]);
                    acc[t] = halves!(|sums, w| dot!(sums, w, x));
                }
            }
        }
        acc
    }
}

/// The two halves of a tile.
#[inline(always)]
fn load_tile(tile: &[u8; TILE]) -> [__m256i; 2] {
    let tile: *const __m256i = tile.as_ptr().cast();
    op!([_mm256_loadu_si256(tile), _mm256_loadu_si256(tile.add(1))])
}
