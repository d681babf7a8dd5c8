//! Portable code: the reference that every instruction set equals.

use super::{Activations, Dot, Group, TILE, TILES, instantiate, place};
use crate::fixed::num::Row;

/// Portable code; runs everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

instantiate!(Scalar);

impl Dot for Scalar {
    const NAME: &'static str = "scalar";
    const VECTORS: bool = cfg!(not(target_arch = "arm"));

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        core::array::from_fn(|t| {
            let mut sums = [0; 16];
            for (k, tile) in w.iter().enumerate() {
                add_tile(&mut sums, &x[t], 4 * k, |i| i32::from(tile[i] as i8));
            }
            sums
        })
    }

    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T] {
        core::array::from_fn(|t| {
            let mut all = [-8 * sums[t].sum; 16];
            for (k, pair) in w.iter().enumerate() {
                add_tile(&mut all, &x[t], 8 * k, |i| i32::from(pair[i] & 15));
                add_tile(&mut all, &x[t], 8 * k + 4, |i| i32::from(pair[i] >> 4));
            }
            all
        })
    }
}

/// `sums[r] += sum over j of w(4 r + j) x[first + j]`.
#[inline(always)]
fn add_tile(sums: &mut Row, x: &Activations, first: usize, w: impl Fn(usize) -> i32) {
    let x: [i32; 4] = core::array::from_fn(|j| i32::from(x[place(first + j) & 31]));
    for (r, sum) in sums.iter_mut().enumerate() {
        for (j, x) in x.iter().enumerate() {
            *sum += w(4 * r + j) * x;
        }
    }
}
