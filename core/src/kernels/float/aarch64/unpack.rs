//! Weights of 3 and 5 bits as tiles of bytes, and what belongs to dot products of unsigned weights.

use core::arch::aarch64::*;

use super::float::{Quads, op};
use crate::kernels::float::operands::Scale;
use crate::numbers::{TILE, TILES};

/// A group of 16 rows as int8.
pub(super) type Bytes = [[u8; TILE]; TILES];
/// The same in 4 bits.
pub(super) type Nibbles = [[u8; TILE]; TILES / 2];

/// Sixteen bytes of weights of four rows, from a tile.
#[inline(always)]
pub(super) fn quarter<S: Quads>(s: S, tile: &[u8; TILE], quarter: usize) -> int8x16_t {
    op!(s, vld1q_s8(tile.as_chunks::<16>().0[quarter & 3].as_ptr().cast()))
}

/// Four rows of tile `k` of a group of 3-bit weights, as bytes from 0 to 7.
#[inline(always)]
pub(super) fn three_bits<S: Quads>(s: S, w: &[[u8; TILE]; 3], k: usize, q: usize) -> int8x16_t {
    let low = quarter(s, if k < 4 { &w[0] } else { &w[1] }, q);
    let high = quarter(s, &w[2], q);
    // Shifts by a constant, once `k` is known: to the right where negative.
    op!(s, {
        let low = vshlq_u8(vreinterpretq_u8_s8(low), vdupq_n_s8(-2 * (k as i8 % 4)));
        let high = vshlq_u8(vreinterpretq_u8_s8(high), vdupq_n_s8(2 - k as i8));
        let low = vandq_u8(low, vdupq_n_u8(3));
        vreinterpretq_s8_u8(vorrq_u8(low, vandq_u8(high, vdupq_n_u8(4))))
    })
}

/// The same of 5-bit weights, from 0 to 31.
#[inline(always)]
pub(super) fn five_bits<S: Quads>(s: S, w: &[[u8; TILE]; 5], k: usize, q: usize) -> int8x16_t {
    let (low, high) = (quarter(s, &w[(k / 2) & 3], q), quarter(s, &w[4], q));
    // Shifts as above.
    op!(s, {
        let low = vshlq_u8(vreinterpretq_u8_s8(low), vdupq_n_s8(-4 * (k as i8 % 2)));
        let high = vshlq_u8(vreinterpretq_u8_s8(high), vdupq_n_s8(4 - k as i8));
        let low = vandq_u8(low, vdupq_n_u8(15));
        vreinterpretq_s8_u8(vorrq_u8(low, vandq_u8(high, vdupq_n_u8(16))))
    })
}

/// `x` in four lanes.
#[inline(always)]
pub(super) fn four_of<S: Quads>(s: S, x: u32) -> uint32x4_t {
    op!(s, vdupq_n_u32(x))
}

/// The tiles of a group whose weights are unpacked by `quarter`, of a tile and four of its rows.
#[inline(always)]
pub(super) fn unpacked<S: Quads>(s: S, quarter: impl Fn(usize, usize) -> int8x16_t) -> Bytes {
    let mut tiles = [[0; TILE]; TILES];
    for (k, tile) in tiles.iter_mut().enumerate() {
        for (q, to) in tile.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            op!(s, vst1q_s8(to.as_mut_ptr().cast(), quarter(k, q)));
        }
    }
    tiles
}

/// Dot products of weights that are `less` too large.
#[inline(always)]
pub(super) fn less<S: Quads, const T: usize>(
    s: S,
    mut dots: [[uint32x4_t; 4]; T],
    sums: &[Scale; T],
    less: i32,
) -> [[uint32x4_t; 4]; T] {
    for (dots, x) in dots.iter_mut().zip(sums) {
        let start = four_of(s, x.sum.wrapping_mul(-less) as u32);
        for rows in dots {
            *rows = op!(s, vaddq_u32(*rows, start));
        }
    }
    dots
}

/// The 4-bit weights of a group as int8.
#[inline(always)]
pub(super) fn widen(from: &Nibbles, to: &mut Bytes) {
    for (pair, tiles) in from.iter().zip(to.as_chunks_mut::<2>().0) {
        let [low, high] = tiles;
        for ((byte, low), high) in pair.iter().zip(low).zip(high) {
            *low = (byte & 15).wrapping_sub(8);
            *high = (byte >> 4).wrapping_sub(8);
        }
    }
}
