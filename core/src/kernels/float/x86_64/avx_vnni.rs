//! AVX-VNNI: `vpdpbusd` on 256 bits, for small machines (Alder Lake-N and its kin) that have no AVX-512.

use core::arch::x86_64::*;

use super::ymm::{five_bits, halves, lanes, load_tile, nibbles, op, splat_bits, three_bits};
use crate::cpu::x86_64::has;
use crate::kernels::float::isa::{Isa, word};
use crate::kernels::float::{Scale, instantiate};
use crate::numbers::float::Float;
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// AVX2, FMA, F16C and AVX-VNNI.
#[derive(Clone, Copy, Debug)]
pub struct AvxVnni(());

impl AvxVnni {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        has!("avx2", "fma", "f16c", "avxvnni").then_some(&Self(()))
    }
}

instantiate!(AvxVnni, #[target_feature(enable = "avx2,fma,f16c,avxvnni")]);
lanes!(AvxVnni, "AVX-VNNI", 4, dot_i8, dot_u4, dot_u3, dot_u5, dot);

/// `acc[r] + sum over j of w[4 r + j] x[j]` for unsigned `w` and signed `x`.
#[inline(always)]
fn dot(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    op!(_mm256_dpbusd_avx_epi32(acc, w, x))
}

/// `vpdpbusd` wants unsigned weights: w + 128, from which 128 times the sum of the activations is taken. Nothing
/// saturates, unlike in `vpmaddubsw`.
#[inline(always)]
fn dot_i8<const T: usize>(
    w: &[[u8; TILE]; TILES],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[__m256i; 2]; T] {
    let mut acc = [splat_bits(0); T];
    for t in 0..T {
        acc[t] = splat_bits(sums[t].sum.wrapping_mul(-128));
    }
    for (k, tile) in w.iter().enumerate() {
        let w = load_tile(tile);
        let w = halves!(|w| _mm256_xor_si256(w, _mm256_set1_epi8(-128)));
        for t in 0..T {
            let (x, sums) = (op!(_mm256_set1_epi32(word(&x[t], k))), acc[t]);
            acc[t] = [dot(sums[0], w[0], x), dot(sums[1], w[1], x)];
        }
    }
    acc
}

/// Nibbles are unsigned as they are; 8 times the sum of the activations is taken from the start.
#[inline(always)]
fn dot_u4<const T: usize>(
    w: &[[u8; TILE]; TILES / 2],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[__m256i; 2]; T] {
    let mut acc = [splat_bits(0); T];
    for t in 0..T {
        acc[t] = splat_bits(sums[t].sum.wrapping_mul(-8));
    }
    for (k, pair) in w.iter().enumerate() {
        let [low, high] = nibbles(pair);
        for (k, w) in [(2 * k, low), (2 * k + 1, high)] {
            for t in 0..T {
                let (x, sums) = (op!(_mm256_set1_epi32(word(&x[t], k))), acc[t]);
                acc[t] = [dot(sums[0], w[0], x), dot(sums[1], w[1], x)];
            }
        }
    }
    acc
}

/// 3 bits are unsigned as they are; 4 times the sum of the activations is taken from the start.
#[inline(always)]
fn dot_u3<const T: usize>(w: &[[u8; TILE]; 3], x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [[__m256i; 2]; T] {
    less(4, three_bits(w), x, sums)
}

/// 5 bits are unsigned as they are; 16 times the sum of the activations is taken from the start.
#[inline(always)]
fn dot_u5<const T: usize>(w: &[[u8; TILE]; 5], x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [[__m256i; 2]; T] {
    less(16, five_bits(w), x, sums)
}

/// Dot products of tiles of unsigned bytes, each less `offset`.
#[inline(always)]
fn less<const T: usize>(
    offset: i32,
    w: [[__m256i; 2]; TILES],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[__m256i; 2]; T] {
    let mut acc = [splat_bits(0); T];
    for t in 0..T {
        acc[t] = splat_bits(sums[t].sum.wrapping_mul(-offset));
    }
    for (k, w) in w.into_iter().enumerate() {
        for t in 0..T {
            let x = op!(_mm256_set1_epi32(word(&x[t], k)));
            acc[t] = [dot(acc[t][0], w[0], x), dot(acc[t][1], w[1], x)];
        }
    }
    acc
}
