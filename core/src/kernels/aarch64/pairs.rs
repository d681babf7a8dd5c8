//! Dot products of groups without `sdot` (Cortex-A53, A72): products widen to i16, two of int8 or sixteen of a nibble fit.

use core::arch::aarch64::*;
use core::arch::asm;

use super::{five_bits, less, quarter, three_bits, unpacked};
use crate::kernels::Scale;
use crate::kernels::isa::{GROUP, TILE, TILES};

/// The dot products of 16 rows.
type Rows = [uint32x4_t; 4];

/// Columns `4 k ..` of a token, once for each of four rows.
#[inline(always)]
fn columns(x: &[i8; GROUP], k: usize) -> int8x16_t {
    // SAFETY: NEON is part of every AArch64 that this compiles for; the array has the 16 bytes read.
    unsafe {
        let x = vreinterpretq_s32_s8(vld1q_s8(x.as_chunks::<16>().0[(k / 4) & 1].as_ptr()));
        vreinterpretq_s8_s32(match k % 4 {
            0 => vdupq_laneq_s32::<0>(x),
            1 => vdupq_laneq_s32::<1>(x),
            2 => vdupq_laneq_s32::<2>(x),
            _ => vdupq_laneq_s32::<3>(x),
        })
    }
}

/// Joins the sums of two rows and two rows, two partial sums each. The compiler would make three instructions of one.
#[inline(always)]
fn join(low: int32x4_t, high: int32x4_t) -> uint32x4_t {
    let rows;
    // SAFETY: NEON is there; only the named registers are touched.
    unsafe {
        asm!("addp {rows:v}.4s, {low:v}.4s, {high:v}.4s", rows = lateout(vreg) rows, low = in(vreg) low, high = in(vreg) high,
            options(pure, nomem, nostack, preserves_flags));
    }
    rows
}

/// Four rows and 8 columns, the weights of each four beside those of the token.
type Eight = [(int8x16_t, int8x16_t); 2];

/// The first 8 columns of four rows: two products for each i16, joined in partial sums of two rows each.
///
/// As one block, like the next, because the compiler would first compute all products of a group and then spill them.
#[inline(always)]
fn first_eight([(a, xa), (b, xb)]: Eight) -> (int32x4_t, int32x4_t) {
    let (low, high);
    // SAFETY: NEON is there; only the named registers are touched.
    unsafe {
        asm!(
            "smull {low:v}.8h, {a:v}.8b, {xa:v}.8b",
            "smull2 {high:v}.8h, {a:v}.16b, {xa:v}.16b",
            "smlal {low:v}.8h, {b:v}.8b, {xb:v}.8b",
            "smlal2 {high:v}.8h, {b:v}.16b, {xb:v}.16b",
            "saddlp {low:v}.4s, {low:v}.8h",
            "saddlp {high:v}.4s, {high:v}.8h",
            a = in(vreg) a, xa = in(vreg) xa, b = in(vreg) b, xb = in(vreg) xb,
            low = out(vreg) low, high = out(vreg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    (low, high)
}

/// Adds 8 more columns.
#[inline(always)]
fn add_eight((low, high): (&mut int32x4_t, &mut int32x4_t), [(a, xa), (b, xb)]: Eight) {
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

/// The first 8 columns of small weights, whose products the i16 themselves add up.
#[inline(always)]
fn first_small([(a, xa), (b, xb)]: Eight) -> (int16x8_t, int16x8_t) {
    let (low, high);
    // SAFETY: NEON is there; only the named registers are touched.
    unsafe {
        asm!(
            "smull {low:v}.8h, {a:v}.8b, {xa:v}.8b",
            "smull2 {high:v}.8h, {a:v}.16b, {xa:v}.16b",
            "smlal {low:v}.8h, {b:v}.8b, {xb:v}.8b",
            "smlal2 {high:v}.8h, {b:v}.16b, {xb:v}.16b",
            a = in(vreg) a, xa = in(vreg) xa, b = in(vreg) b, xb = in(vreg) xb,
            low = out(vreg) low, high = out(vreg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    (low, high)
}

/// Adds 8 more columns.
#[inline(always)]
fn add_small((low, high): (&mut int16x8_t, &mut int16x8_t), [(a, xa), (b, xb)]: Eight) {
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

/// A group of int8 with `T` tokens. Two products reach 2 * 128 * 127 = 32,512, which an i16 holds.
#[inline(always)]
pub(super) fn i8<const T: usize>(w: &[[u8; TILE]; TILES], x: &[[i8; GROUP]; T]) -> [Rows; T] {
    // SAFETY: NEON is there.
    let zero = unsafe { vdupq_n_s32(0) };
    let mut low = [[zero; 4]; T];
    let mut high = low;
    for (k, [a, b]) in w.as_chunks::<2>().0.iter().enumerate() {
        let x: [_; T] = core::array::from_fn(|t| (columns(&x[t], 2 * k), columns(&x[t], 2 * k + 1)));
        for q in 0..4 {
            let (a, b) = (quarter(a, q), quarter(b, q));
            for t in 0..T {
                let eight = [(a, x[t].0), (b, x[t].1)];
                if k == 0 {
                    (low[t][q], high[t][q]) = first_eight(eight);
                } else {
                    add_eight((&mut low[t][q], &mut high[t][q]), eight);
                }
            }
        }
    }
    core::array::from_fn(|t| core::array::from_fn(|q| join(low[t][q], high[t][q])))
}

/// A group of int8 within -8 and 7 with `T` tokens. Eight products reach 8 * 8 * 128 = 8,192: a whole group fits an i16.
#[inline(always)]
pub(super) fn small<const T: usize>(w: &[[u8; TILE]; TILES], x: &[[i8; GROUP]; T]) -> [Rows; T] {
    // SAFETY: NEON is there.
    let zero = unsafe { vdupq_n_s16(0) };
    let mut low = [[zero; 4]; T];
    let mut high = low;
    for (k, [a, b]) in w.as_chunks::<2>().0.iter().enumerate() {
        let x: [_; T] = core::array::from_fn(|t| (columns(&x[t], 2 * k), columns(&x[t], 2 * k + 1)));
        for q in 0..4 {
            let (a, b) = (quarter(a, q), quarter(b, q));
            for t in 0..T {
                let eight = [(a, x[t].0), (b, x[t].1)];
                if k == 0 {
                    (low[t][q], high[t][q]) = first_small(eight);
                } else {
                    add_small((&mut low[t][q], &mut high[t][q]), eight);
                }
            }
        }
    }
    core::array::from_fn(|t| core::array::from_fn(|q| join_small(low[t][q], high[t][q])))
}

#[inline(always)]
fn join_small(low: int16x8_t, high: int16x8_t) -> uint32x4_t {
    // SAFETY: NEON is there.
    unsafe { join(vpaddlq_s16(low), vpaddlq_s16(high)) }
}

/// A group of 4-bit weights with one token. Eight products of a nibble reach 8 * 15 * 128 = 15,360.
#[inline(always)]
pub(super) fn u4(w: &[[u8; TILE]; TILES / 2], x: &[i8; GROUP], sum: i32) -> Rows {
    // SAFETY: NEON is there.
    unsafe {
        let mut low = [vdupq_n_s16(0); 4];
        let mut high = low;
        for (k, pair) in w.iter().enumerate() {
            let (xa, xb) = (columns(x, 2 * k), columns(x, 2 * k + 1));
            for q in 0..4 {
                let bytes = quarter(pair, q);
                let a = vandq_s8(bytes, vdupq_n_s8(15));
                let b = vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(bytes)));
                if k == 0 {
                    (low[q], high[q]) = first_small([(a, xa), (b, xb)]);
                } else {
                    add_small((&mut low[q], &mut high[q]), [(a, xa), (b, xb)]);
                }
            }
        }
        let start = vdupq_n_u32(sum.wrapping_mul(-8) as u32);
        core::array::from_fn(|q| vaddq_u32(join_small(low[q], high[q]), start))
    }
}

/// A group of 3-bit weights with `T` tokens: 4 less in each is taken from the sums. Eight products reach 8 * 7 * 128 = 7,168.
#[inline(always)]
pub(super) fn u3<const T: usize>(w: &[[u8; TILE]; 3], x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [Rows; T] {
    less(small(&unpacked(|k, q| three_bits(w, k, q)), x), sums, 4)
}

/// A group of 5-bit weights with `T` tokens: 16 less in each is taken from the sums. Eight products reach 8 * 31 * 128 = 31,744, which an i16 holds.
#[inline(always)]
pub(super) fn u5<const T: usize>(w: &[[u8; TILE]; 5], x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [Rows; T] {
    less(small(&unpacked(|k, q| five_bits(w, k, q)), x), sums, 16)
}
