//! NEON: four rows of a tile in a register, as eight words of two columns each.

use core::arch::aarch64::*;

use crate::kernels::fixed::{Activations, Dot, Group, instantiate};
use crate::numbers::fixed::Row;
use crate::numbers::{TILE, TILES};

/// NEON, as every 64-bit ARM has it. The instructions for dot products of bytes are of no use to words.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        cfg!(target_feature = "neon").then_some(&Self(()))
    }
}

instantiate!(Neon, #[target_feature(enable = "neon")]);

/// Calls intrinsics that need only the token's features.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read.
        unsafe { $e }
    };
}

/// Sums of sixteen rows, of two columns each: the first two rows of every four, and the last two.
type Sums = [[int32x4_t; 2]; 4];

/// Two activations, as [`crate::kernels::fixed::place`] puts them, in every lane.
#[inline(always)]
fn pair(x: &Activations, i: usize) -> int16x8_t {
    let (words, _) = x.as_chunks::<2>();
    let [low, high] = words[i & 15];
    op!(vreinterpretq_s16_s32(vdupq_n_s32(i32::from(high) << 16 | i32::from(low as u16))))
}

/// Four rows of a tile.
#[inline(always)]
fn quarter(tile: &[u8; TILE], quarter: usize) -> int16x8_t {
    op!(vreinterpretq_s16_u8(vld1q_u8(tile.as_chunks::<16>().0[quarter & 3].as_ptr())))
}

/// `sums + w x`.
#[inline(always)]
fn madd(sums: &mut [int32x4_t; 2], w: int16x8_t, x: int16x8_t) {
    op!({
        sums[0] = vmlal_s16(sums[0], vget_low_s16(w), vget_low_s16(x));
        sums[1] = vmlal_high_s16(sums[1], w, x);
    });
}

/// Joins the two columns of each row.
#[inline(always)]
fn store(sums: Sums, start: i32) -> Row {
    let mut row = [0; 16];
    for (sums, to) in sums.into_iter().zip(row.as_chunks_mut::<4>().0) {
        op!(vst1q_s32(to.as_mut_ptr(), vaddq_s32(vpaddq_s32(sums[0], sums[1]), vdupq_n_s32(start))));
    }
    row
}

impl Dot for Neon {
    const NAME: &'static str = "NEON";
    const VECTORS: bool = true;

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        let mut sums: [Sums; T] = [[[op!(vdupq_n_s32(0)); 2]; 4]; T];
        for (k, tile) in w.iter().enumerate() {
            for q in 0..4 {
                let w = quarter(tile, q);
                // Columns 0 and 2, then 1 and 3, widened to 16 bits.
                let even = op!(vshrq_n_s16::<8>(vshlq_n_s16::<8>(w)));
                let odd = op!(vshrq_n_s16::<8>(w));
                for t in 0..T {
                    madd(&mut sums[t][q], even, pair(&x[t], 2 * k));
                    madd(&mut sums[t][q], odd, pair(&x[t], 2 * k + 1));
                }
            }
        }
        let mut rows = [[0; 16]; T];
        for t in 0..T {
            rows[t] = store(sums[t], 0);
        }
        rows
    }

    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        groups: &[Group; T],
    ) -> [Row; T] {
        let mut sums: [Sums; T] = [[[op!(vdupq_n_s32(0)); 2]; 4]; T];
        let nibble = op!(vdupq_n_s16(15));
        for (k, pairs) in w.iter().enumerate() {
            for q in 0..4 {
                let w = quarter(pairs, q);
                let right = op!(vreinterpretq_u16_s16(w));
                let columns = op!([
                    vandq_s16(w, nibble),
                    vandq_s16(vreinterpretq_s16_u16(vshrq_n_u16::<8>(right)), nibble),
                    vandq_s16(vreinterpretq_s16_u16(vshrq_n_u16::<4>(right)), nibble),
                    vreinterpretq_s16_u16(vshrq_n_u16::<12>(right)),
                ]);
                for (i, w) in columns.into_iter().enumerate() {
                    for t in 0..T {
                        madd(&mut sums[t][q], w, pair(&x[t], 4 * k + i));
                    }
                }
            }
        }
        let mut rows = [[0; 16]; T];
        for t in 0..T {
            rows[t] = store(sums[t], -8 * groups[t].sum);
        }
        rows
    }
}
