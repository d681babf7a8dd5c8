//! Dot products of groups by `sdot`, which takes four columns of an activation by element.

use core::arch::aarch64::*;
use core::arch::asm;

use super::{five_bits, quarter, three_bits};
use crate::kernels::Scale;
use crate::kernels::isa::{GROUP, TILE, TILES};

/// `acc[r] += sum over j of w[4 r + j] x[4 LANE + j]`, four rows.
///
/// The caller's token proves the dot product instructions. The intrinsic is unstable.
#[inline(always)]
fn by_element<const LANE: usize>(mut acc: uint32x4_t, w: int8x16_t, x: int8x16_t) -> uint32x4_t {
    // SAFETY: the CPU has the instruction; only the named registers are touched.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Nothing but the dot product.
#[inline(always)]
pub(super) fn bare(acc: uint32x4_t, w: int8x16_t, x: int8x16_t) -> uint32x4_t {
    by_element::<0>(acc, w, x)
}

/// Adds a tile (four registers) times columns `4 LANE..` of each token's `x`.
#[inline(always)]
fn add_tile<const LANE: usize, const T: usize>(
    acc: &mut [[uint32x4_t; 4]; T],
    w: [int8x16_t; 4],
    x: &[int8x16_t; T],
) {
    for t in 0..T {
        for q in 0..4 {
            acc[t][q] = by_element::<LANE>(acc[t][q], w[q], x[t]);
        }
    }
}

/// Sixteen activations of each token.
#[inline(always)]
fn activations<const T: usize>(x: &[[i8; GROUP]; T], half: usize) -> [int8x16_t; T] {
    let mut loaded = [zero(); T];
    for t in 0..T {
        // SAFETY: NEON is there; the array has the 16 bytes read.
        loaded[t] = unsafe { vld1q_s8(x[t].as_chunks::<16>().0[half & 1].as_ptr()) };
    }
    loaded
}

#[inline(always)]
fn zero() -> int8x16_t {
    // SAFETY: NEON is there.
    unsafe { vdupq_n_s8(0) }
}

#[inline(always)]
fn tile(w: &[u8; TILE]) -> [int8x16_t; 4] {
    [quarter(w, 0), quarter(w, 1), quarter(w, 2), quarter(w, 3)]
}

#[inline(always)]
pub(super) fn i8<const T: usize>(w: &[[u8; TILE]; TILES], x: &[[i8; GROUP]; T]) -> [[uint32x4_t; 4]; T] {
    // SAFETY: NEON is there.
    let mut acc = [[unsafe { vdupq_n_u32(0) }; 4]; T];
    let [first, second] = [activations(x, 0), activations(x, 1)];
    add_tile::<0, T>(&mut acc, tile(&w[0]), &first);
    add_tile::<1, T>(&mut acc, tile(&w[1]), &first);
    add_tile::<2, T>(&mut acc, tile(&w[2]), &first);
    add_tile::<3, T>(&mut acc, tile(&w[3]), &first);
    add_tile::<0, T>(&mut acc, tile(&w[4]), &second);
    add_tile::<1, T>(&mut acc, tile(&w[5]), &second);
    add_tile::<2, T>(&mut acc, tile(&w[6]), &second);
    add_tile::<3, T>(&mut acc, tile(&w[7]), &second);
    acc
}

/// The low and the high nibbles of a pair of tiles.
#[inline(always)]
fn nibbles(pair: &[u8; TILE]) -> ([int8x16_t; 4], [int8x16_t; 4]) {
    let (mut low, mut high) = (tile(pair), tile(pair));
    for q in 0..4 {
        // SAFETY: NEON is there.
        unsafe {
            low[q] = vandq_s8(low[q], vdupq_n_s8(15));
            high[q] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(high[q])));
        }
    }
    (low, high)
}

#[inline(always)]
pub(super) fn u4<const T: usize>(
    w: &[[u8; TILE]; TILES / 2],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[uint32x4_t; 4]; T] {
    // SAFETY: NEON is there.
    let mut acc = [[unsafe { vdupq_n_u32(0) }; 4]; T];
    for t in 0..T {
        // SAFETY: NEON is there.
        acc[t] = [unsafe { vdupq_n_u32(sums[t].sum.wrapping_mul(-8) as u32) }; 4];
    }
    let [x0, x1] = [activations(x, 0), activations(x, 1)];
    let (low, high) = nibbles(&w[0]);
    add_tile::<0, T>(&mut acc, low, &x0);
    add_tile::<1, T>(&mut acc, high, &x0);
    let (low, high) = nibbles(&w[1]);
    add_tile::<2, T>(&mut acc, low, &x0);
    add_tile::<3, T>(&mut acc, high, &x0);
    let (low, high) = nibbles(&w[2]);
    add_tile::<0, T>(&mut acc, low, &x1);
    add_tile::<1, T>(&mut acc, high, &x1);
    let (low, high) = nibbles(&w[3]);
    add_tile::<2, T>(&mut acc, low, &x1);
    add_tile::<3, T>(&mut acc, high, &x1);
    acc
}

/// 3 bits are taken as they are; 4 times the sum of the activations is taken from the start.
#[inline(always)]
pub(super) fn u3<const T: usize>(
    w: &[[u8; TILE]; 3],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[uint32x4_t; 4]; T] {
    // SAFETY: NEON is there.
    let mut acc = [[unsafe { vdupq_n_u32(0) }; 4]; T];
    for t in 0..T {
        // SAFETY: NEON is there.
        acc[t] = [unsafe { vdupq_n_u32(sums[t].sum.wrapping_mul(-4) as u32) }; 4];
    }
    let tile = |k| core::array::from_fn(|q| three_bits(w, k, q));
    let [first, second] = [activations(x, 0), activations(x, 1)];
    add_tile::<0, T>(&mut acc, tile(0), &first);
    add_tile::<1, T>(&mut acc, tile(1), &first);
    add_tile::<2, T>(&mut acc, tile(2), &first);
    add_tile::<3, T>(&mut acc, tile(3), &first);
    add_tile::<0, T>(&mut acc, tile(4), &second);
    add_tile::<1, T>(&mut acc, tile(5), &second);
    add_tile::<2, T>(&mut acc, tile(6), &second);
    add_tile::<3, T>(&mut acc, tile(7), &second);
    acc
}

/// 5 bits are taken as they are; 16 times the sum of the activations is taken from the start.
#[inline(always)]
pub(super) fn u5<const T: usize>(
    w: &[[u8; TILE]; 5],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[uint32x4_t; 4]; T] {
    // SAFETY: NEON is there.
    let mut acc = [[unsafe { vdupq_n_u32(0) }; 4]; T];
    for t in 0..T {
        // SAFETY: NEON is there.
        acc[t] = [unsafe { vdupq_n_u32(sums[t].sum.wrapping_mul(-16) as u32) }; 4];
    }
    let tile = |k| core::array::from_fn(|q| five_bits(w, k, q));
    let [first, second] = [activations(x, 0), activations(x, 1)];
    add_tile::<0, T>(&mut acc, tile(0), &first);
    add_tile::<1, T>(&mut acc, tile(1), &first);
    add_tile::<2, T>(&mut acc, tile(2), &first);
    add_tile::<3, T>(&mut acc, tile(3), &first);
    add_tile::<0, T>(&mut acc, tile(4), &second);
    add_tile::<1, T>(&mut acc, tile(5), &second);
    add_tile::<2, T>(&mut acc, tile(6), &second);
    add_tile::<3, T>(&mut acc, tile(7), &second);
    acc
}
