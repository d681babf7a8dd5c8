//! Exact dot products of int8.

use core::arch::x86_64::*;

use super::float::{Avx2, Avx512, AvxVnni, halves, op};
use super::unpack::{five_bits, load_tile, nibbles, splat_bits, three_bits};
use crate::cpu::x86_64::{PREFETCH_DISTANCE, prefetch};
use crate::kernels::float::isa::{Dot, Isa, word};
use crate::kernels::float::operands::Scale;
use crate::numbers::{GROUP, TILE, TILES};

/// `acc[r] + sum over j of w[4 r + j] x[j]` for unsigned `w` and signed `x` whose pairs of products fit an i16.
#[inline(always)]
fn add_products(s: Avx2, acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    op!(s, _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))))
}

// SAFETY: `detect` alone gives the token.
unsafe impl Dot for Avx2 {
    const BLOCK: usize = 4;
    const PREFETCH_DISTANCE: usize = PREFETCH_DISTANCE;

    #[inline(always)]
    fn prefetch(self, from: &u8, distance: usize) {
        prefetch(from, distance);
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
        let mut acc = [splat_bits(self, 0); T];
        for (k, tile) in w.iter().enumerate() {
            let w = load_tile(self, tile);
            let magnitude = halves!(self, |w| _mm256_abs_epi8(w));
            for t in 0..T {
                let (x, sums) = (op!(self, _mm256_set1_epi32(word(&x[t], k))), acc[t]);
                acc[t] = halves!(self, |sums, magnitude, w| add_products(
                    self,
                    sums,
                    magnitude,
                    _mm256_sign_epi8(x, w)
                ));
            }
        }
        acc
    }

    /// Nibbles are unsigned as they are; 8 times the sum of the activations is taken from the start. A row's sixteen products
    /// that meet in one i16 reach 16 * 15 * 127 = 30,480, so that a whole group is added up there.
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let mut words = [splat_bits(self, 0); T];
        for (k, pair) in w.iter().enumerate() {
            let [low, high] = nibbles(self, pair);
            for (k, w) in [(2 * k, low), (2 * k + 1, high)] {
                for t in 0..T {
                    let (x, sums) = (op!(self, _mm256_set1_epi32(word(&x[t], k))), words[t]);
                    words[t] = halves!(self, |sums, w| _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)));
                }
            }
        }
        let mut acc = words;
        for t in 0..T {
            let (start, words) = (op!(self, _mm256_set1_epi32(sums[t].sum.wrapping_mul(-8))), words[t]);
            acc[t] = halves!(self, |words| _mm256_add_epi32(
                start,
                _mm256_madd_epi16(words, _mm256_set1_epi16(1))
            ));
        }
        acc
    }

    /// As nibbles: sixteen products of 3 bits and an int8 reach 16 * 7 * 127 = 14,224, so a whole group fits an i16.
    #[inline(always)]
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let mut words = [splat_bits(self, 0); T];
        for (k, w) in three_bits(self, w).into_iter().enumerate() {
            for t in 0..T {
                let (x, sums) = (op!(self, _mm256_set1_epi32(word(&x[t], k))), words[t]);
                words[t] = halves!(self, |sums, w| _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)));
            }
        }
        let mut acc = words;
        for t in 0..T {
            let (start, words) = (op!(self, _mm256_set1_epi32(sums[t].sum.wrapping_mul(-4))), words[t]);
            acc[t] = halves!(self, |words| _mm256_add_epi32(
                start,
                _mm256_madd_epi16(words, _mm256_set1_epi16(1))
            ));
        }
        acc
    }

    /// Sixteen products of 5 bits would not fit an i16, two do; 16 times the sum of the activations is taken from the start.
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let mut acc = [splat_bits(self, 0); T];
        for t in 0..T {
            acc[t] = splat_bits(self, sums[t].sum.wrapping_mul(-16));
        }
        for (k, w) in five_bits(self, w).into_iter().enumerate() {
            for t in 0..T {
                let x = op!(self, _mm256_set1_epi32(word(&x[t], k)));
                acc[t] = [add_products(self, acc[t][0], w[0], x), add_products(self, acc[t][1], w[1], x)];
            }
        }
        acc
    }
}

/// `acc[r] + sum over j of w[4 r + j] x[j]` for unsigned `w` and signed `x`.
#[inline(always)]
fn add_dots(s: AvxVnni, acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    op!(s, _mm256_dpbusd_avx_epi32(acc, w, x))
}

// SAFETY: as above.
unsafe impl Dot for AvxVnni {
    const BLOCK: usize = 4;
    const PREFETCH_DISTANCE: usize = PREFETCH_DISTANCE;

    #[inline(always)]
    fn prefetch(self, from: &u8, distance: usize) {
        prefetch(from, distance);
    }

    /// `vpdpbusd` wants unsigned weights: w + 128, from which 128 times the sum of the activations is taken. Nothing
    /// saturates, unlike in `vpmaddubsw`.
    #[inline(always)]
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let mut acc = [splat_bits(self, 0); T];
        for t in 0..T {
            acc[t] = splat_bits(self, sums[t].sum.wrapping_mul(-128));
        }
        for (k, tile) in w.iter().enumerate() {
            let w = load_tile(self, tile);
            let w = halves!(self, |w| _mm256_xor_si256(w, _mm256_set1_epi8(-128)));
            for t in 0..T {
                let (x, sums) = (op!(self, _mm256_set1_epi32(word(&x[t], k))), acc[t]);
                acc[t] = [add_dots(self, sums[0], w[0], x), add_dots(self, sums[1], w[1], x)];
            }
        }
        acc
    }

    /// Nibbles are unsigned as they are; 8 times the sum of the activations is taken from the start.
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let mut acc = [splat_bits(self, 0); T];
        for t in 0..T {
            acc[t] = splat_bits(self, sums[t].sum.wrapping_mul(-8));
        }
        for (k, pair) in w.iter().enumerate() {
            let [low, high] = nibbles(self, pair);
            for (k, w) in [(2 * k, low), (2 * k + 1, high)] {
                for t in 0..T {
                    let (x, sums) = (op!(self, _mm256_set1_epi32(word(&x[t], k))), acc[t]);
                    acc[t] = [add_dots(self, sums[0], w[0], x), add_dots(self, sums[1], w[1], x)];
                }
            }
        }
        acc
    }

    /// 3 bits are unsigned as they are; 4 times the sum of the activations is taken from the start.
    #[inline(always)]
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        less(self, 4, three_bits(self, w), x, sums)
    }

    /// 5 bits are unsigned as they are; 16 times the sum of the activations is taken from the start.
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        less(self, 16, five_bits(self, w), x, sums)
    }
}

/// Dot products of tiles of unsigned bytes, each less `offset`.
#[inline(always)]
fn less<const T: usize>(
    s: AvxVnni,
    offset: i32,
    w: [[__m256i; 2]; TILES],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[__m256i; 2]; T] {
    let mut acc = [splat_bits(s, 0); T];
    for t in 0..T {
        acc[t] = splat_bits(s, sums[t].sum.wrapping_mul(-offset));
    }
    for (k, w) in w.into_iter().enumerate() {
        for t in 0..T {
            let x = op!(s, _mm256_set1_epi32(word(&x[t], k)));
            acc[t] = [add_dots(s, acc[t][0], w[0], x), add_dots(s, acc[t][1], w[1], x)];
        }
    }
    acc
}

// SAFETY: as above.
unsafe impl Dot for Avx512 {
    const BLOCK: usize = 12;
    const PREFETCH_DISTANCE: usize = PREFETCH_DISTANCE;
    const TOUCHES: usize = 4;

    #[inline(always)]
    fn prefetch(self, from: &u8, distance: usize) {
        prefetch(from, distance);
    }
    #[inline(always)]
    fn touch(self, from: &u8) {
        // SAFETY: a reference can be read. Volatile, so that the load stays.
        unsafe {
            core::ptr::from_ref(from).read_volatile();
        }
    }
    /// `vpdpbusd` wants unsigned weights: w + 128, from which 128 times the sum of the activations is taken.
    #[inline(always)]
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [__m512i; T] {
        let mut acc = [self.zero_bits(); T];
        for t in 0..T {
            acc[t] = op!(self, _mm512_set1_epi32(sums[t].sum.wrapping_mul(-128)));
        }
        for (k, tile) in w.iter().enumerate() {
            let w =
                op!(self, _mm512_xor_si512(_mm512_loadu_si512(tile.as_ptr().cast()), _mm512_set1_epi8(-128)));
            for t in 0..T {
                acc[t] = op!(self, _mm512_dpbusd_epi32(acc[t], w, _mm512_set1_epi32(word(&x[t], k))));
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
    ) -> [__m512i; T] {
        let mut acc = [self.zero_bits(); T];
        for t in 0..T {
            acc[t] = op!(self, _mm512_set1_epi32(sums[t].sum.wrapping_mul(-8)));
        }
        for (k, pair) in w.iter().enumerate() {
            let (low, high) = op!(self, {
                let bytes = _mm512_loadu_si512(pair.as_ptr().cast());
                let mask = _mm512_set1_epi8(15);
                (_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask))
            });
            for t in 0..T {
                acc[t] = op!(self, _mm512_dpbusd_epi32(acc[t], low, _mm512_set1_epi32(word(&x[t], 2 * k))));
            }
            for t in 0..T {
                acc[t] =
                    op!(self, _mm512_dpbusd_epi32(acc[t], high, _mm512_set1_epi32(word(&x[t], 2 * k + 1))));
            }
        }
        acc
    }
    #[inline(always)]
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [__m512i; T] {
        wide_less(self, 4, wide_three_bits(self, w), x, sums)
    }
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [__m512i; T] {
        wide_less(self, 16, wide_five_bits(self, w), x, sums)
    }
}

/// Dot products of tiles of unsigned bytes, each less `offset`.
#[inline(always)]
fn wide_less<const T: usize>(
    s: Avx512,
    offset: i32,
    w: [__m512i; TILES],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [__m512i; T] {
    let mut acc = [op!(s, _mm512_setzero_si512()); T];
    for t in 0..T {
        acc[t] = op!(s, _mm512_set1_epi32(sums[t].sum.wrapping_mul(-offset)));
    }
    for (k, w) in w.into_iter().enumerate() {
        for t in 0..T {
            acc[t] = op!(s, _mm512_dpbusd_epi32(acc[t], w, _mm512_set1_epi32(word(&x[t], k))));
        }
    }
    acc
}

/// A group of 3-bit weights as eight tiles of bytes.
#[inline(always)]
fn wide_three_bits(s: Avx512, w: &[[u8; TILE]; 3]) -> [__m512i; TILES] {
    let line = |line: &[u8; TILE]| op!(s, _mm512_loadu_si512(line.as_ptr().cast()));
    let (first, second, high) = (line(&w[0]), line(&w[1]), line(&w[2]));
    macro_rules! tile {
        ($low:ident >> $shift:literal, $place:ident::<$to:literal>) => {
            op!(
                s,
                _mm512_or_si512(
                    _mm512_and_si512(_mm512_srli_epi16::<$shift>($low), _mm512_set1_epi8(3)),
                    _mm512_and_si512($place::<$to>(high), _mm512_set1_epi8(4)),
                )
            )
        };
    }
    [
        tile!(first >> 0, _mm512_slli_epi16::<2>),
        tile!(first >> 2, _mm512_slli_epi16::<1>),
        tile!(first >> 4, _mm512_srli_epi16::<0>),
        tile!(first >> 6, _mm512_srli_epi16::<1>),
        tile!(second >> 0, _mm512_srli_epi16::<2>),
        tile!(second >> 2, _mm512_srli_epi16::<3>),
        tile!(second >> 4, _mm512_srli_epi16::<4>),
        tile!(second >> 6, _mm512_srli_epi16::<5>),
    ]
}

/// A group of 5-bit weights as eight tiles of bytes.
#[inline(always)]
fn wide_five_bits(s: Avx512, w: &[[u8; TILE]; 5]) -> [__m512i; TILES] {
    let line = |line: &[u8; TILE]| op!(s, _mm512_loadu_si512(line.as_ptr().cast()));
    let pairs = [line(&w[0]), line(&w[1]), line(&w[2]), line(&w[3])];
    let high = line(&w[4]);
    macro_rules! tile {
        ($pair:literal >> $shift:literal, $place:ident::<$to:literal>) => {
            op!(
                s,
                _mm512_or_si512(
                    _mm512_and_si512(_mm512_srli_epi16::<$shift>(pairs[$pair]), _mm512_set1_epi8(15)),
                    _mm512_and_si512($place::<$to>(high), _mm512_set1_epi8(16)),
                )
            )
        };
    }
    [
        tile!(0 >> 0, _mm512_slli_epi16::<4>),
        tile!(0 >> 4, _mm512_slli_epi16::<3>),
        tile!(1 >> 0, _mm512_slli_epi16::<2>),
        tile!(1 >> 4, _mm512_slli_epi16::<1>),
        tile!(2 >> 0, _mm512_srli_epi16::<0>),
        tile!(2 >> 4, _mm512_srli_epi16::<1>),
        tile!(3 >> 0, _mm512_srli_epi16::<2>),
        tile!(3 >> 4, _mm512_srli_epi16::<3>),
    ]
}
