//! NEON: four rows of a tile in a register, as eight words of two columns each.

use core::arch::aarch64::*;

use crate::kernels::fixed::isa::Isa;
use crate::kernels::fixed::operands::{Activations, Group};
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

/// Takes a token as the proof that [`op!`] needs.
#[inline(always)]
const fn proves(_: Neon) {}

/// Evaluates an expression of intrinsics that need only NEON.
macro_rules! op {
    ($token:expr, $e:expr) => {{
        proves($token);
        // SAFETY: the token proves NEON; memory operands are references to arrays of the size read or written.
        unsafe { $e }
    }};
}

/// Sums of sixteen rows, of two columns each: the first two rows of every four, and the last two.
type Sums = [[int32x4_t; 2]; 4];

/// Two activations, as [`crate::kernels::fixed::operands::place`] puts them, in every lane.
#[inline(always)]
fn pair(s: Neon, x: &Activations, i: usize) -> int16x8_t {
    let (words, _) = x.as_chunks::<2>();
    let [low, high] = words[i & 15];
    op!(s, vreinterpretq_s16_s32(vdupq_n_s32(i32::from(high) << 16 | i32::from(low as u16))))
}

/// Four rows of a tile.
#[inline(always)]
fn quarter(s: Neon, tile: &[u8; TILE], quarter: usize) -> int16x8_t {
    op!(s, vreinterpretq_s16_u8(vld1q_u8(tile.as_chunks::<16>().0[quarter & 3].as_ptr())))
}

/// `sums + w x`.
#[inline(always)]
fn madd(s: Neon, sums: &mut [int32x4_t; 2], w: int16x8_t, x: int16x8_t) {
    op!(s, {
        sums[0] = vmlal_s16(sums[0], vget_low_s16(w), vget_low_s16(x));
        sums[1] = vmlal_high_s16(sums[1], w, x);
    });
}

/// Joins the two columns of each row.
#[inline(always)]
fn store(s: Neon, sums: Sums, start: i32) -> Row {
    let mut row = [0; 16];
    for (sums, to) in sums.into_iter().zip(row.as_chunks_mut::<4>().0) {
        op!(s, vst1q_s32(to.as_mut_ptr(), vaddq_s32(vpaddq_s32(sums[0], sums[1]), vdupq_n_s32(start))));
    }
    row
}

// SAFETY: `detect` alone gives the token.
unsafe impl Isa for Neon {
    const NAME: &'static str = "NEON";
    const VECTORS: bool = true;

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        let mut sums: [Sums; T] = [[[op!(self, vdupq_n_s32(0)); 2]; 4]; T];
        for (k, tile) in w.iter().enumerate() {
            for q in 0..4 {
                let w = quarter(self, tile, q);
                // Columns 0 and 2, then 1 and 3, widened to 16 bits.
                let even = op!(self, vshrq_n_s16::<8>(vshlq_n_s16::<8>(w)));
                let odd = op!(self, vshrq_n_s16::<8>(w));
                for t in 0..T {
                    madd(self, &mut sums[t][q], even, pair(self, &x[t], 2 * k));
                    madd(self, &mut sums[t][q], odd, pair(self, &x[t], 2 * k + 1));
                }
            }
        }
        let mut rows = [[0; 16]; T];
        for t in 0..T {
            rows[t] = store(self, sums[t], 0);
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
        let mut sums: [Sums; T] = [[[op!(self, vdupq_n_s32(0)); 2]; 4]; T];
        let nibble = op!(self, vdupq_n_s16(15));
        for (k, pairs) in w.iter().enumerate() {
            for q in 0..4 {
                let w = quarter(self, pairs, q);
                let right = op!(self, vreinterpretq_u16_s16(w));
                let columns = op!(
                    self,
                    [
                        vandq_s16(w, nibble),
                        vandq_s16(vreinterpretq_s16_u16(vshrq_n_u16::<8>(right)), nibble),
                        vandq_s16(vreinterpretq_s16_u16(vshrq_n_u16::<4>(right)), nibble),
                        vreinterpretq_s16_u16(vshrq_n_u16::<12>(right)),
                    ]
                );
                for (i, w) in columns.into_iter().enumerate() {
                    for t in 0..T {
                        madd(self, &mut sums[t][q], w, pair(self, &x[t], 4 * k + i));
                    }
                }
            }
        }
        let mut rows = [[0; 16]; T];
        for t in 0..T {
            rows[t] = store(self, sums[t], -8 * groups[t].sum);
        }
        rows
    }
}
