//! AVX2 with FMA and F16C.

use core::arch::x86_64::*;

use super::ymm::{five_bits, halves, lanes, load_tile, nibbles, op, splat_bits, three_bits};
use crate::cpu::x86_64::has;
use crate::kernels::float::isa::{Isa, word};
use crate::kernels::float::{Scale, instantiate};
use crate::numbers::float::Float;
use crate::numbers::{GROUP, LANES, TILE, TILES};

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

instantiate!(Avx2, [#[target_feature(enable = "avx2,fma,f16c")]], x86_64::avx2_matmul, elementwise::scan);
lanes!(Avx2, "AVX2", 4, dot_i8, dot_u4, dot_u3, dot_u5, dot);

/// `acc[r] + sum over j of w[4 r + j] x[j]` for unsigned `w` and signed `x` whose pairs of products fit an i16.
#[inline(always)]
fn dot(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    op!(_mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))))
}

/// `|w|` times `x` with the sign of `w`: `x` is within +-127, so two products reach 2 * 128 * 127 = 32,512 at most
/// and `vpmaddubsw` never saturates.
#[inline(always)]
fn dot_i8<const T: usize>(
    w: &[[u8; TILE]; TILES],
    x: &[[i8; GROUP]; T],
    _sums: &[Scale; T],
) -> [[__m256i; 2]; T] {
    let mut acc = [splat_bits(0); T];
    for (k, tile) in w.iter().enumerate() {
        let w = load_tile(tile);
        let magnitude = halves!(|w| _mm256_abs_epi8(w));
        for t in 0..T {
            let (x, sums) = (op!(_mm256_set1_epi32(word(&x[t], k))), acc[t]);
            acc[t] = halves!(|sums, magnitude, w| dot(sums, magnitude, _mm256_sign_epi8(x, w)));
        }
    }
    acc
}

/// Nibbles are unsigned as they are; 8 times the sum of the activations is taken from the start. A row's sixteen products
/// that meet in one i16 reach 16 * 15 * 127 = 30,480, so that a whole group is added up there.
#[inline(always)]
fn dot_u4<const T: usize>(
    w: &[[u8; TILE]; TILES / 2],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[__m256i; 2]; T] {
    let mut words = [splat_bits(0); T];
    for (k, pair) in w.iter().enumerate() {
        let [low, high] = nibbles(pair);
        for (k, w) in [(2 * k, low), (2 * k + 1, high)] {
            for t in 0..T {
                let (x, sums) = (op!(_mm256_set1_epi32(word(&x[t], k))), words[t]);
                words[t] = halves!(|sums, w| _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)));
            }
        }
    }
    let mut acc = words;
    for t in 0..T {
        let (start, words) = (op!(_mm256_set1_epi32(sums[t].sum.wrapping_mul(-8))), words[t]);
        acc[t] = halves!(|words| _mm256_add_epi32(start, _mm256_madd_epi16(words, _mm256_set1_epi16(1))));
    }
    acc
}

/// As nibbles: sixteen products of 3 bits and an int8 reach 16 * 7 * 127 = 14,224, so a whole group fits an i16.
#[inline(always)]
fn dot_u3<const T: usize>(w: &[[u8; TILE]; 3], x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [[__m256i; 2]; T] {
    let mut words = [splat_bits(0); T];
    for (k, w) in three_bits(w).into_iter().enumerate() {
        for t in 0..T {
            let (x, sums) = (op!(_mm256_set1_epi32(word(&x[t], k))), words[t]);
            words[t] = halves!(|sums, w| _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)));
        }
    }
    let mut acc = words;
    for t in 0..T {
        let (start, words) = (op!(_mm256_set1_epi32(sums[t].sum.wrapping_mul(-4))), words[t]);
        acc[t] = halves!(|words| _mm256_add_epi32(start, _mm256_madd_epi16(words, _mm256_set1_epi16(1))));
    }
    acc
}

/// Sixteen products of 5 bits would not fit an i16, two do; 16 times the sum of the activations is taken from the start.
#[inline(always)]
fn dot_u5<const T: usize>(w: &[[u8; TILE]; 5], x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [[__m256i; 2]; T] {
    let mut acc = [splat_bits(0); T];
    for t in 0..T {
        acc[t] = splat_bits(sums[t].sum.wrapping_mul(-16));
    }
    for (k, w) in five_bits(w).into_iter().enumerate() {
        for t in 0..T {
            let x = op!(_mm256_set1_epi32(word(&x[t], k)));
            acc[t] = [dot(acc[t][0], w[0], x), dot(acc[t][1], w[1], x)];
        }
    }
    acc
}
