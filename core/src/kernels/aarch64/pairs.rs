//! Dot products of groups without `sdot` (Cortex-A53, A72): products widen to i16, two of int8 or sixteen of a nibble fit.

use core::arch::aarch64::*;
use core::arch::asm;

use super::{five_bits, quarter, three_bits};
use crate::kernels::Scale;
use crate::kernels::isa::{GROUP, TILE, TILES, four};

/// Four columns of an activation, once for each of four rows.
#[inline(always)]
fn columns(x: &[i8; GROUP], k: usize) -> int8x16_t {
    let word = u32::from_le_bytes(four(x, k).map(|x| x as u8));
    // SAFETY: NEON is part of every AArch64 that this compiles for.
    unsafe { vreinterpretq_s8_u32(vdupq_n_u32(word)) }
}

/// Joins the sums of two rows and two rows, two partial sums each.
#[inline(always)]
fn join(low: int32x4_t, high: int32x4_t) -> uint32x4_t {
    // SAFETY: NEON is there.
    unsafe { vreinterpretq_u32_s32(vpaddq_s32(low, high)) }
}

/// Adds 8 columns of four rows: two products for each i16, which `sadalp` adds to partial sums of two rows each.
///
/// As one block, because the compiler would first compute all products of a group and then spill them.
#[inline(always)]
fn add_eight(
    (low, high): (&mut int32x4_t, &mut int32x4_t),
    (a, xa): (int8x16_t, int8x16_t),
    (b, xb): (int8x16_t, int8x16_t),
) {
    // SAFETY: NEON is there; only the named registers are touched.
    unsafe {
        asm!(
            "smull {p:v}.8h, {a:v}.8b, {xa:v}.8b",
            "smull2 {q:v}.8h, {a:v}.16b, {xa:v}.16b",
            "smlal {p:v}.8h, {b:v}.8b, {xb:v}.8b",
            "smlal2 {q:v}.8h, {b:v}.16b, {xb:v}.16b",
            "sadalp {low:v}.4s, {p:v}.8h",
            "sadalp {high:v}.4s, {q:v}.8h",
            p = out(vreg) _, q = out(vreg) _,
            a = in(vreg) a, xa = in(vreg) xa, b = in(vreg) b, xb = in(vreg) xb,
            low = inout(vreg) *low, high = inout(vreg) *high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// The same for 8 columns of nibbles, whose products the i16 themselves add up.
#[inline(always)]
fn add_nibbles(
    (low, high): (&mut int16x8_t, &mut int16x8_t),
    (a, xa): (int8x16_t, int8x16_t),
    (b, xb): (int8x16_t, int8x16_t),
) {
    // SAFETY: NEON is there; only the named registers are touched.
    unsafe {
        asm!(
            "smlal {low:v}.8h, {a:v}.8b, {xa:v}.8b",
            "smlal2 {high:v}.8h, {a:v}.16b, {xa:v}.16b",
            "smlal {low:v}.8h, {b:v}.8b, {xb:v}.8b",
            "smlal2 {high:v}.8h, {b:v}.16b, {xb:v}.16b",
            a = in(vreg) a, xa = in(vreg) xa, b = in(vreg) b, xb = in(vreg) xb,
            low = inout(vreg) *low, high = inout(vreg) *high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Nothing but the products, added in pairs.
#[inline(always)]
pub(super) fn bare(acc: uint32x4_t, w: int8x16_t, x: int8x16_t) -> uint32x4_t {
    // SAFETY: NEON is there.
    unsafe {
        let sums = vreinterpretq_s32_u32(acc);
        let low = vpadalq_s16(sums, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
        vreinterpretq_u32_s32(vpadalq_s16(low, vmull_high_s8(w, x)))
    }
}

/// Two products of int8 reach 2 * 128 * 127 = 32,512, which an i16 holds.
#[inline(always)]
pub(super) fn i8<const T: usize>(w: &[[u8; TILE]; TILES], x: &[[i8; GROUP]; T]) -> [[uint32x4_t; 4]; T] {
    // SAFETY: NEON is there.
    unsafe {
        let mut low = [[vdupq_n_s32(0); 4]; T];
        let mut high = low;
        for pair in 0..TILES / 2 {
            for t in 0..T {
                let (xa, xb) = (columns(&x[t], 2 * pair), columns(&x[t], 2 * pair + 1));
                for q in 0..4 {
                    let (a, b) = (quarter(&w[2 * pair], q), quarter(&w[2 * pair + 1], q));
                    add_eight((&mut low[t][q], &mut high[t][q]), (a, xa), (b, xb));
                }
            }
        }
        let mut acc = [[vdupq_n_u32(0); 4]; T];
        for t in 0..T {
            for q in 0..4 {
                acc[t][q] = join(low[t][q], high[t][q]);
            }
        }
        acc
    }
}

/// Eight products of a nibble and an int8 reach 8 * 15 * 128 = 15,360: a whole group fits an i16.
#[inline(always)]
pub(super) fn u4<const T: usize>(
    w: &[[u8; TILE]; TILES / 2],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[uint32x4_t; 4]; T] {
    // SAFETY: NEON is there.
    unsafe {
        let mut low = [[vdupq_n_s16(0); 4]; T];
        let mut high = low;
        for (k, pair) in w.iter().enumerate() {
            for t in 0..T {
                let (xa, xb) = (columns(&x[t], 2 * k), columns(&x[t], 2 * k + 1));
                for q in 0..4 {
                    let bytes = quarter(pair, q);
                    let a = vandq_s8(bytes, vdupq_n_s8(15));
                    let b = vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(bytes)));
                    add_nibbles((&mut low[t][q], &mut high[t][q]), (a, xa), (b, xb));
                }
            }
        }
        let mut acc = [[vdupq_n_u32(0); 4]; T];
        for t in 0..T {
            let start = vdupq_n_u32(sums[t].sum.wrapping_mul(-8) as u32);
            for q in 0..4 {
                let rows = join(vpaddlq_s16(low[t][q]), vpaddlq_s16(high[t][q]));
                acc[t][q] = vaddq_u32(rows, start);
            }
        }
        acc
    }
}

/// Eight products of 3 bits and an int8 reach 8 * 7 * 128 = 7,168: a whole group fits an i16.
#[inline(always)]
pub(super) fn u3<const T: usize>(
    w: &[[u8; TILE]; 3],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[uint32x4_t; 4]; T] {
    // SAFETY: NEON is there.
    unsafe {
        let mut low = [[vdupq_n_s16(0); 4]; T];
        let mut high = low;
        for pair in 0..TILES / 2 {
            for q in 0..4 {
                let (a, b) = (three_bits(w, 2 * pair, q), three_bits(w, 2 * pair + 1, q));
                for t in 0..T {
                    let (xa, xb) = (columns(&x[t], 2 * pair), columns(&x[t], 2 * pair + 1));
                    add_nibbles((&mut low[t][q], &mut high[t][q]), (a, xa), (b, xb));
                }
            }
        }
        let mut acc = [[vdupq_n_u32(0); 4]; T];
        for t in 0..T {
            let start = vdupq_n_u32(sums[t].sum.wrapping_mul(-4) as u32);
            for q in 0..4 {
                let rows = join(vpaddlq_s16(low[t][q]), vpaddlq_s16(high[t][q]));
                acc[t][q] = vaddq_u32(rows, start);
            }
        }
        acc
    }
}

/// Eight products of 5 bits and an int8 reach 8 * 31 * 128 = 31,744: a whole group fits an i16.
#[inline(always)]
pub(super) fn u5<const T: usize>(
    w: &[[u8; TILE]; 5],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [[uint32x4_t; 4]; T] {
    // SAFETY: NEON is there.
    unsafe {
        let mut low = [[vdupq_n_s16(0); 4]; T];
        let mut high = low;
        for pair in 0..TILES / 2 {
            for q in 0..4 {
                let (a, b) = (five_bits(w, 2 * pair, q), five_bits(w, 2 * pair + 1, q));
                for t in 0..T {
                    let (xa, xb) = (columns(&x[t], 2 * pair), columns(&x[t], 2 * pair + 1));
                    add_nibbles((&mut low[t][q], &mut high[t][q]), (a, xa), (b, xb));
                }
            }
        }
        let mut acc = [[vdupq_n_u32(0); 4]; T];
        for t in 0..T {
            let start = vdupq_n_u32(sums[t].sum.wrapping_mul(-16) as u32);
            for q in 0..4 {
                let rows = join(vpaddlq_s16(low[t][q]), vpaddlq_s16(high[t][q]));
                acc[t][q] = vaddq_u32(rows, start);
            }
        }
        acc
    }
}
