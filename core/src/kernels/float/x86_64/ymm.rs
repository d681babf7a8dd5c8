//! Sixteen lanes as two registers of 256 bits: what AVX2 and AVX-VNNI have in common.

use core::arch::x86_64::*;

use crate::numbers::{GROUP, TILE, TILES};

/// Calls intrinsics that need only the token's features.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read.
        unsafe { $e }
    };
}
pub(super) use op;

/// Applies an intrinsic to both halves.
macro_rules! halves {
    (|$($x:ident),+| $e:expr) => {{
        let low = { $(let $x = $x[0];)+ op!($e) };
        let high = { $(let $x = $x[1];)+ op!($e) };
        [low, high]
    }};
}
pub(super) use halves;

/// Implements the lanes for a token with AVX2, FMA and F16C; only the dot product differs.
macro_rules! lanes {
    ($token:ty, $name:literal, $block:literal,
     $dot_i8:ident, $dot_u4:ident, $dot_u3:ident, $dot_u5:ident, $dot:ident) => {
        impl Float for $token {
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

        impl Isa for $token {
            const NAME: &'static str = $name;
            const BLOCK: usize = $block;
            const AHEAD: usize = $crate::cpu::x86_64::PREFETCH_DISTANCE;
            const LOCKSTEP: usize = 2;

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
                    let bytes =
                        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                    _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
                })
            }
            #[inline(always)]
            fn store_rounded_group(self, low: Self::F, high: Self::F, to: &mut [i8; GROUP]) -> i32 {
                super::ymm::store_rounded_group(low, high, to)
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
            fn prefetch(self, from: &u8, ahead: usize) {
                $crate::cpu::x86_64::prefetch(from, ahead);
            }
            #[inline(always)]
            fn dot_i8<const T: usize>(
                self,
                w: &[[u8; TILE]; TILES],
                x: &[[i8; GROUP]; T],
                sums: &[Scale; T],
            ) -> [Self::I; T] {
                $dot_i8(w, x, sums)
            }
            #[inline(always)]
            fn dot_u4<const T: usize>(
                self,
                w: &[[u8; TILE]; TILES / 2],
                x: &[[i8; GROUP]; T],
                sums: &[Scale; T],
            ) -> [Self::I; T] {
                $dot_u4(w, x, sums)
            }
            #[inline(always)]
            fn bare_dot(self, acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
                [$dot(acc[0], w[0], x[0]), $dot(acc[1], w[1], x[1])]
            }
            #[inline(always)]
            fn dot_u3<const T: usize>(
                self,
                w: &[[u8; TILE]; 3],
                x: &[[i8; GROUP]; T],
                sums: &[Scale; T],
            ) -> [Self::I; T] {
                $dot_u3(w, x, sums)
            }
            #[inline(always)]
            fn dot_u5<const T: usize>(
                self,
                w: &[[u8; TILE]; 5],
                x: &[[i8; GROUP]; T],
                sums: &[Scale; T],
            ) -> [Self::I; T] {
                $dot_u5(w, x, sums)
            }
        }
    };
}
pub(super) use lanes;

/// See [`Isa::store_rounded_group`](crate::kernels::float::Isa::store_rounded_group).
#[inline(always)]
pub(super) fn store_rounded_group(low: [__m256; 2], high: [__m256; 2], to: &mut [i8; GROUP]) -> i32 {
    op!({
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

/// The same integer in every lane of both halves.
#[inline(always)]
pub(super) fn splat_bits(x: i32) -> [__m256i; 2] {
    [op!(_mm256_set1_epi32(x)); 2]
}

/// The two halves of a tile.
#[inline(always)]
pub(super) fn load_tile(tile: &[u8; TILE]) -> [__m256i; 2] {
    let tile: *const __m256i = tile.as_ptr().cast();
    op!([_mm256_loadu_si256(tile), _mm256_loadu_si256(tile.add(1))])
}

/// The other way round.
#[inline(always)]
pub(super) fn store_tile(halves: [__m256i; 2], tile: &mut [u8; TILE]) {
    let tile: *mut __m256i = tile.as_mut_ptr().cast();
    op!({
        _mm256_storeu_si256(tile, halves[0]);
        _mm256_storeu_si256(tile.add(1), halves[1]);
    })
}

/// A pair of tiles of nibbles as two tiles of bytes: the low halves, and the high ones.
#[inline(always)]
pub(super) fn nibbles(pair: &[u8; TILE]) -> [[__m256i; 2]; 2] {
    let bytes = load_tile(pair);
    [
        halves!(|bytes| _mm256_and_si256(bytes, _mm256_set1_epi8(15))),
        halves!(|bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15))),
    ]
}

/// A group of 3-bit weights as eight tiles of bytes.
#[inline(always)]
pub(super) fn three_bits(w: &[[u8; TILE]; 3]) -> [[__m256i; 2]; TILES] {
    let (first, second, high) = (load_tile(&w[0]), load_tile(&w[1]), load_tile(&w[2]));
    macro_rules! tile {
        ($low:ident >> $shift:literal, $place:ident::<$to:literal>) => {
            halves!(|$low, high| _mm256_or_si256(
                _mm256_and_si256(_mm256_srli_epi16::<$shift>($low), _mm256_set1_epi8(3)),
                _mm256_and_si256($place::<$to>(high), _mm256_set1_epi8(4)),
            ))
        };
    }
    [
        tile!(first >> 0, _mm256_slli_epi16::<2>),
        tile!(first >> 2, _mm256_slli_epi16::<1>),
        tile!(first >> 4, _mm256_srli_epi16::<0>),
        tile!(first >> 6, _mm256_srli_epi16::<1>),
        tile!(second >> 0, _mm256_srli_epi16::<2>),
        tile!(second >> 2, _mm256_srli_epi16::<3>),
        tile!(second >> 4, _mm256_srli_epi16::<4>),
        tile!(second >> 6, _mm256_srli_epi16::<5>),
    ]
}

/// A group of 5-bit weights as eight tiles of bytes.
#[inline(always)]
pub(super) fn five_bits(w: &[[u8; TILE]; 5]) -> [[__m256i; 2]; TILES] {
    let [first, second, third, fourth, high] = w;
    let high = load_tile(high);
    macro_rules! tile {
        ($low:expr, $place:ident::<$to:literal>) => {{
            let low = $low;
            halves!(|low, high| _mm256_or_si256(
                low,
                _mm256_and_si256($place::<$to>(high), _mm256_set1_epi8(16))
            ))
        }};
    }
    let [a, b] = nibbles(first);
    let [c, d] = nibbles(second);
    let [e, f] = nibbles(third);
    let [g, h] = nibbles(fourth);
    [
        tile!(a, _mm256_slli_epi16::<4>),
        tile!(b, _mm256_slli_epi16::<3>),
        tile!(c, _mm256_slli_epi16::<2>),
        tile!(d, _mm256_slli_epi16::<1>),
        tile!(e, _mm256_srli_epi16::<0>),
        tile!(f, _mm256_srli_epi16::<1>),
        tile!(g, _mm256_srli_epi16::<2>),
        tile!(h, _mm256_srli_epi16::<3>),
    ]
}
