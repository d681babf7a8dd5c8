//! Dot products of int8 by `smlad`, four rows at a time: compiled once and called, as the functions of
//! [`float`](super::float) are.

use core::arch::asm;

use super::float::{CortexM, fma, widen};
use crate::kernels::float::isa::{Dot, four};
use crate::kernels::float::operands::Scale;
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// Bytes 0 and 2 of `x`, sign-extended to halves.
#[inline(always)]
fn even(_: CortexM, x: u32) -> u32 {
    let halves: u32;
    // SAFETY: the token proves the instruction; it reads and writes registers only.
    unsafe {
        asm!("sxtb16 {h}, {x}", x = in(reg) x, h = lateout(reg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    halves
}

/// Bytes 1 and 3 of `x`, sign-extended to halves.
#[inline(always)]
fn odd(_: CortexM, x: u32) -> u32 {
    let halves: u32;
    // SAFETY: as above.
    unsafe {
        asm!("sxtb16 {h}, {x}, ror #8", x = in(reg) x, h = lateout(reg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    halves
}

/// `acc + a.low b.low + a.high b.high`.
#[inline(always)]
fn smlad(_: CortexM, a: u32, b: u32, acc: i32) -> i32 {
    let sum: i32;
    // SAFETY: as above. It may set the flag Q, which nobody reads.
    unsafe {
        asm!("smlad {sum}, {a}, {b}, {acc}", a = in(reg) a, b = in(reg) b, acc = in(reg) acc,
            sum = lateout(reg) sum, options(pure, nomem, nostack));
    }
    sum
}

/// Rows whose sums stay in registers.
const ROWS: usize = 4;

/// The four bytes of a row in a tile.
#[inline(always)]
fn row(tile: &[u8; TILE], row: usize) -> u32 {
    u32::from_le_bytes(tile.as_chunks::<4>().0[row & (LANES - 1)])
}

/// Columns `4 k .. 4 k + 4` of a group of activations, as halves: the even ones, the odd ones.
#[inline(always)]
fn halves(s: CortexM, x: &[i8; GROUP]) -> [(u32, u32); TILES] {
    core::array::from_fn(|k| {
        let word = u32::from_le_bytes(four(x, k).map(|x| x as u8));
        (even(s, word), odd(s, word))
    })
}

/// Four rows at a time: their sums stay in registers.
#[inline(always)]
fn all_rows(mut four_rows: impl FnMut(usize) -> [i32; ROWS]) -> [u32; LANES] {
    let mut all = [0; LANES];
    for (block, sums) in all.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        *sums = four_rows(ROWS * block).map(|sum| sum as u32);
    }
    all
}

/// `start` and the dot products of sixteen rows of int8 with one token.
#[inline(never)]
fn dot_i8(s: CortexM, w: &[[u8; TILE]; TILES], x: &[i8; GROUP], start: i32) -> [u32; LANES] {
    let x = halves(s, x);
    all_rows(|first| {
        let mut acc = [start; ROWS];
        for (tile, (x_even, x_odd)) in w.iter().zip(x) {
            for (i, acc) in acc.iter_mut().enumerate() {
                let w = row(tile, first + i);
                *acc = smlad(s, odd(s, w), x_odd, smlad(s, even(s, w), x_even, *acc));
            }
        }
        acc
    })
}

/// The same for weights of 4 bits, none less 8.
#[inline(never)]
fn dot_u4(s: CortexM, w: &[[u8; TILE]; TILES / 2], x: &[i8; GROUP], start: i32) -> [u32; LANES] {
    /// The low halves of bytes 0 and 2.
    const LOW: u32 = 0x000f_000f;
    let x = halves(s, x);
    all_rows(|first| {
        let mut acc = [start; ROWS];
        for (pair, x) in w.iter().zip(x.as_chunks::<2>().0) {
            let [(low_even, low_odd), (high_even, high_odd)] = *x;
            for (i, acc) in acc.iter_mut().enumerate() {
                let w = row(pair, first + i);
                let low = smlad(s, w >> 8 & LOW, low_odd, smlad(s, w & LOW, low_even, *acc));
                *acc = smlad(s, w >> 12 & LOW, high_odd, smlad(s, w >> 4 & LOW, high_even, low));
            }
        }
        acc
    })
}

/// `acc + dot ws scale`, sixteen rows one after the other.
#[inline(never)]
fn add_scaled(s: CortexM, acc: &mut [f32; LANES], dot: &[u32; LANES], ws: &[u8; 2 * LANES], scale: f32) {
    let (ws, _) = ws.as_chunks();
    for ((acc, dot), ws) in acc.iter_mut().zip(dot).zip(ws) {
        *acc = fma(s, *dot as i32 as f32, widen(s, u16::from_le_bytes(*ws)) * scale, *acc);
    }
}

/// Tiles of int8 from weights in fewer bits: `word(k, r)` is the four bytes of row `r` in tile `k`.
#[inline(always)]
fn unpack(word: impl Fn(usize, usize) -> u32) -> [[u8; TILE]; TILES] {
    let mut tiles = [[0; TILE]; TILES];
    for (k, tile) in tiles.iter_mut().enumerate() {
        for (r, bytes) in tile.as_chunks_mut().0.iter_mut().enumerate() {
            *bytes = word(k, r).to_le_bytes();
        }
    }
    tiles
}

/// Weights of 3 bits as bytes, none less 4.
#[inline(never)]
fn unpack_u3([first, second, high]: &[[u8; TILE]; 3]) -> [[u8; TILE]; TILES] {
    unpack(|k, r| {
        let low = if k < TILES / 2 { first } else { second };
        row(low, r) >> (2 * (k % 4)) & 0x0303_0303 | (row(high, r) >> k & 0x0101_0101) << 2
    })
}

/// Weights of 5 bits as bytes, none less 16.
#[inline(never)]
fn unpack_u5(w: &[[u8; TILE]; 5]) -> [[u8; TILE]; TILES] {
    unpack(|k, r| {
        row(&w[k / 2 & 3], r) >> (4 * (k % 2)) & 0x0f0f_0f0f | (row(&w[4], r) >> k & 0x0101_0101) << 4
    })
}

// SAFETY: the features of this crate that give the token promise the CPU.
unsafe impl Dot for CortexM {
    const BLOCK: usize = 1;

    #[inline(always)]
    fn add_scaled<const T: usize>(
        self,
        acc: &mut [Self::F; T],
        dot: [Self::I; T],
        ws: &[u8; 2 * LANES],
        xs: &[Scale; T],
    ) {
        for t in 0..T {
            add_scaled(self, &mut acc[t], &dot[t], ws, xs[t].scale);
        }
    }
    #[inline(always)]
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        _sums: &[Scale; T],
    ) -> [Self::I; T] {
        core::array::from_fn(|t| dot_i8(self, w, &x[t], 0))
    }
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        core::array::from_fn(|t| dot_u4(self, w, &x[t], -8 * sums[t].sum))
    }
    #[inline(always)]
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let w = unpack_u3(w);
        core::array::from_fn(|t| dot_i8(self, &w, &x[t], -4 * sums[t].sum))
    }
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let w = unpack_u5(w);
        core::array::from_fn(|t| dot_i8(self, &w, &x[t], -16 * sums[t].sum))
    }
}
