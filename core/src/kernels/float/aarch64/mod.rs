//! AArch64: NEON, and NEON with the dot product instructions (ARMv8.2).

mod neon;
mod order;
mod pairs;
mod panels;
mod products;
mod scan;
mod sdot;

pub use neon::{Neon, NeonDot};
pub(super) use order::matmul;
pub(super) use scan::scan;

use core::arch::aarch64::*;

use super::{Isa, Kernels, Scale};
use crate::numbers::{TILE, TILES};

/// The names of all kernels here, from slowest to fastest.
pub(super) const NAMES: &[&str] = &[Neon::NAME, NeonDot::NAME];

/// Hands out the kernels that this CPU has, from slowest to fastest.
pub(super) fn for_each_available(visit: &mut dyn FnMut(&'static dyn Kernels)) {
    if let Some(isa) = Neon::detect() {
        visit(isa);
    }
    if let Some(isa) = NeonDot::detect() {
        visit(isa);
    }
}

/// Sixteen bytes of weights of four rows, from a tile.
#[inline(always)]
fn quarter(tile: &[u8; TILE], quarter: usize) -> int8x16_t {
    // SAFETY: NEON is part of every AArch64 that this compiles for; the array has the 16 bytes read.
    unsafe { vld1q_s8(tile.as_chunks::<16>().0[quarter & 3].as_ptr().cast()) }
}

/// Four rows of tile `k` of a group of 3-bit weights, as bytes from 0 to 7.
#[inline(always)]
fn three_bits(w: &[[u8; TILE]; 3], k: usize, q: usize) -> int8x16_t {
    let low = quarter(if k < 4 { &w[0] } else { &w[1] }, q);
    let high = quarter(&w[2], q);
    // SAFETY: NEON is there. Shifts by a constant, once `k` is known: to the right where negative.
    unsafe {
        let low = vshlq_u8(vreinterpretq_u8_s8(low), vdupq_n_s8(-2 * (k as i8 % 4)));
        let high = vshlq_u8(vreinterpretq_u8_s8(high), vdupq_n_s8(2 - k as i8));
        let low = vandq_u8(low, vdupq_n_u8(3));
        vreinterpretq_s8_u8(vorrq_u8(low, vandq_u8(high, vdupq_n_u8(4))))
    }
}

/// The same of 5-bit weights, from 0 to 31.
#[inline(always)]
fn five_bits(w: &[[u8; TILE]; 5], k: usize, q: usize) -> int8x16_t {
    let (low, high) = (quarter(&w[(k / 2) & 3], q), quarter(&w[4], q));
    // SAFETY: NEON is there. Shifts as above.
    unsafe {
        let low = vshlq_u8(vreinterpretq_u8_s8(low), vdupq_n_s8(-4 * (k as i8 % 2)));
        let high = vshlq_u8(vreinterpretq_u8_s8(high), vdupq_n_s8(4 - k as i8));
        let low = vandq_u8(low, vdupq_n_u8(15));
        vreinterpretq_s8_u8(vorrq_u8(low, vandq_u8(high, vdupq_n_u8(16))))
    }
}

/// `x` in four lanes.
#[inline(always)]
fn four_of(x: u32) -> uint32x4_t {
    // SAFETY: NEON is part of every AArch64 that this compiles for.
    unsafe { vdupq_n_u32(x) }
}

/// The tiles of a group whose weights are unpacked by `quarter`, of a tile and four of its rows.
#[inline(always)]
fn unpacked(quarter: impl Fn(usize, usize) -> int8x16_t) -> order::Bytes {
    let mut tiles = [[0; TILE]; TILES];
    for (k, tile) in tiles.iter_mut().enumerate() {
        for (q, to) in tile.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // SAFETY: NEON is there; the array has the 16 bytes written.
            unsafe { vst1q_s8(to.as_mut_ptr().cast(), quarter(k, q)) }
        }
    }
    tiles
}

/// Dot products of weights that are `less` too large.
#[inline(always)]
fn less<const T: usize>(
    mut dots: [[uint32x4_t; 4]; T],
    sums: &[Scale; T],
    less: i32,
) -> [[uint32x4_t; 4]; T] {
    for (dots, x) in dots.iter_mut().zip(sums) {
        let start = four_of(x.sum.wrapping_mul(-less) as u32);
        for rows in dots {
            // SAFETY: NEON is there.
            *rows = unsafe { vaddq_u32(*rows, start) };
        }
    }
    dots
}
