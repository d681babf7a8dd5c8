//! Cortex-M with the DSP instructions (M4, M7, M33): two products an instruction.

use core::arch::asm;

use super::{Activations, Dot, Group, TILE, TILES, instantiate};
use crate::fixed::num::Row;

/// The DSP instructions of ARMv7E-M and ARMv8-M.
#[derive(Clone, Copy, Debug)]
pub struct Dsp;

instantiate!(Dsp);

/// Bytes 0 and 2 as two signed 16-bit numbers.
#[inline(always)]
fn even(word: u32) -> u32 {
    let pair;
    // SAFETY: reads and writes only the named registers.
    unsafe {
        asm!("sxtb16 {}, {}", out(reg) pair, in(reg) word, options(pure, nomem, nostack, preserves_flags))
    };
    pair
}

/// Bytes 1 and 3.
#[inline(always)]
fn odd(word: u32) -> u32 {
    let pair;
    // SAFETY: reads and writes only the named registers.
    unsafe {
        asm!("sxtb16 {}, {}, ror #8", out(reg) pair, in(reg) word, options(pure, nomem, nostack, preserves_flags))
    };
    pair
}

/// `sum + a.low b.low + a.high b.high`. No sum here overflows, so the flag that tells of it stays as it is.
#[inline(always)]
fn smlad(a: u32, b: u32, sum: i32) -> i32 {
    let result;
    // SAFETY: reads and writes only the named registers.
    unsafe {
        asm!("smlad {}, {}, {}, {}", out(reg) result, in(reg) a, in(reg) b, in(reg) sum,
            options(pure, nomem, nostack, preserves_flags));
    }
    result
}

/// Two activations, as [`super::place`] puts them.
#[inline(always)]
fn pair(x: &Activations, i: usize) -> u32 {
    let (words, _) = x.as_chunks::<2>();
    let [low, high] = words[i & 15];
    (high as u32) << 16 | u32::from(low as u16)
}

/// Rows that are summed side by side: what fits the registers.
const ROWS: usize = 4;

/// Calls `add` for every tile with its words of four rows, and stores their sums.
#[inline(always)]
fn by_rows<const N: usize>(
    w: &[[u8; TILE]; N],
    start: i32,
    add: impl Fn(usize, &[u32; ROWS], &mut [i32; ROWS]),
) -> Row {
    let mut row = [0; 16];
    for (first, sums) in row.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        let mut four = [start; ROWS];
        for (k, tile) in w.iter().enumerate() {
            let (words, _) = tile.as_chunks::<4>();
            let words = core::array::from_fn(|r| u32::from_le_bytes(words[(ROWS * first + r) & 15]));
            add(k, &words, &mut four);
        }
        *sums = four;
    }
    row
}

impl Dot for Dsp {
    const NAME: &'static str = "Cortex-M DSP";
    const VECTORS: bool = false;

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        core::array::from_fn(|t| {
            by_rows(w, 0, |k, words, sums| {
                let (x02, x13) = (pair(&x[t], 2 * k), pair(&x[t], 2 * k + 1));
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = smlad(odd(*word), x13, smlad(even(*word), x02, *sum));
                }
            })
        })
    }

    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        groups: &[Group; T],
    ) -> [Row; T] {
        const NIBBLES: u32 = 0x000f_000f;
        core::array::from_fn(|t| {
            by_rows(w, -8 * groups[t].sum, |k, words, sums| {
                let x: [u32; 4] = core::array::from_fn(|i| pair(&x[t], 4 * k + i));
                for (sum, word) in sums.iter_mut().zip(words) {
                    let parts =
                        [word & NIBBLES, word >> 8 & NIBBLES, word >> 4 & NIBBLES, word >> 12 & NIBBLES];
                    for (w, x) in parts.into_iter().zip(x) {
                        *sum = smlad(w, x, *sum);
                    }
                }
            })
        })
    }
}
