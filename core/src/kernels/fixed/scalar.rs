//! Portable code: the reference that every instruction set equals.

use super::isa::Isa;
use super::operands::{Activations, Group, place};
use crate::numbers::fixed::Row;
use crate::numbers::{TILE, TILES};

/// Portable code; runs everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

// SAFETY: portable code needs no feature.
unsafe impl Isa for Scalar {
    const NAME: &'static str = "scalar";
    const VECTORS: bool = false;

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        let mut rows = [[0; 16]; T];
        for (row, x) in rows.iter_mut().zip(x) {
            *row = by_rows(w, 0, |k, tile, sums| add(sums, x, 4 * k, |i| i32::from(tile[i & 15] as i8)));
        }
        rows
    }

    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T] {
        let mut rows = [[0; 16]; T];
        for ((row, x), group) in rows.iter_mut().zip(x).zip(sums) {
            *row = by_rows(w, -8 * group.sum, |k, pair, sums| {
                add(sums, x, 8 * k, |i| i32::from(pair[i & 15] & 15));
                add(sums, x, 8 * k + 4, |i| i32::from(pair[i & 15] >> 4));
            });
        }
        rows
    }
}

/// Rows that are summed side by side: what fits the registers of a Cortex-M.
const ROWS: usize = 4;

/// Calls `add` for the four rows of every tile, from `start` on.
#[inline(always)]
fn by_rows<const N: usize>(
    w: &[[u8; TILE]; N],
    start: i32,
    add: impl Fn(usize, &[u8; 4 * ROWS], &mut [i32; ROWS]),
) -> Row {
    let mut row = [0; 16];
    for (quarter, four) in row.as_chunks_mut().0.iter_mut().enumerate() {
        let mut sums = [start; ROWS];
        for (k, tile) in w.iter().enumerate() {
            add(k, &tile.as_chunks().0[quarter & 3], &mut sums);
        }
        *four = sums;
    }
    row
}

/// `sums[r] += sum over j of w(4 r + j) x[first + j]`.
#[inline(always)]
fn add(sums: &mut [i32; ROWS], x: &Activations, first: usize, w: impl Fn(usize) -> i32) {
    let mut four = [0; 4];
    for (j, x4) in four.iter_mut().enumerate() {
        *x4 = i32::from(x[place(first + j) & 31]);
    }
    for (r, sum) in sums.iter_mut().enumerate() {
        for (j, x) in four.iter().enumerate() {
            *sum += w(4 * r + j) * x;
        }
    }
}
