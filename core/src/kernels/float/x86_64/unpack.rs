//! Weights of 3, 4 and 5 bits as tiles of bytes.

use core::arch::x86_64::*;

use super::float::{Ymm, halves, op};
use crate::numbers::{TILE, TILES};

/// The same integer in every lane of both halves.
#[inline(always)]
pub(super) fn splat_bits<S: Ymm>(s: S, x: i32) -> [__m256i; 2] {
    [op!(s, _mm256_set1_epi32(x)); 2]
}

/// The two halves of a tile.
#[inline(always)]
pub(super) fn load_tile<S: Ymm>(s: S, tile: &[u8; TILE]) -> [__m256i; 2] {
    let tile: *const __m256i = tile.as_ptr().cast();
    op!(s, [_mm256_loadu_si256(tile), _mm256_loadu_si256(tile.add(1))])
}

/// The other way round.
#[inline(always)]
pub(super) fn store_tile<S: Ymm>(s: S, halves: [__m256i; 2], tile: &mut [u8; TILE]) {
    let tile: *mut __m256i = tile.as_mut_ptr().cast();
    op!(s, {
        _mm256_storeu_si256(tile, halves[0]);
        _mm256_storeu_si256(tile.add(1), halves[1]);
    })
}

/// A pair of tiles of nibbles as two tiles of bytes: the low halves, and the high ones.
#[inline(always)]
pub(super) fn nibbles<S: Ymm>(s: S, pair: &[u8; TILE]) -> [[__m256i; 2]; 2] {
    let bytes = load_tile(s, pair);
    [
        halves!(s, |bytes| _mm256_and_si256(bytes, _mm256_set1_epi8(15))),
        halves!(s, |bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15))),
    ]
}

/// A group of 3-bit weights as eight tiles of bytes.
#[inline(always)]
pub(super) fn three_bits<S: Ymm>(s: S, w: &[[u8; TILE]; 3]) -> [[__m256i; 2]; TILES] {
    let (first, second, high) = (load_tile(s, &w[0]), load_tile(s, &w[1]), load_tile(s, &w[2]));
    macro_rules! tile {
        ($low:ident >> $shift:literal, $place:ident::<$to:literal>) => {
            halves!(s, |$low, high| _mm256_or_si256(
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
pub(super) fn five_bits<S: Ymm>(s: S, w: &[[u8; TILE]; 5]) -> [[__m256i; 2]; TILES] {
    let [first, second, third, fourth, high] = w;
    let high = load_tile(s, high);
    macro_rules! tile {
        ($low:expr, $place:ident::<$to:literal>) => {{
            let low = $low;
            halves!(s, |low, high| _mm256_or_si256(
                low,
                _mm256_and_si256($place::<$to>(high), _mm256_set1_epi8(16))
            ))
        }};
    }
    let [a, b] = nibbles(s, first);
    let [c, d] = nibbles(s, second);
    let [e, f] = nibbles(s, third);
    let [g, h] = nibbles(s, fourth);
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
