//! AVX2 and F16C, which every CPU with AVX2 has: eight rows of a tile in a register, as sixteen words of two columns each.

mod dot;
mod functions;
mod scan;

pub use functions::Avx2;

use super::isa::Isa;
use super::operands::{Activations, Group};
use super::panel::Sums;
use super::set::instantiate;
use super::steps::{Steps, Stored};
use crate::cpu::x86_64::{PREFETCH_DISTANCE, prefetch};
use crate::numbers::fixed::Row;
use crate::numbers::{TILE, TILES};

instantiate!(Avx2, #[target_feature(enable = "avx2,f16c")]);

// SAFETY: `detect` alone gives the token.
unsafe impl Isa for Avx2 {
    const NAME: &'static str = "AVX2";
    const VECTORS: bool = true;
    const PREFETCH_DISTANCE: usize = PREFETCH_DISTANCE;
    const SPLITS: bool = true;

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        dot::dot_i8(self, w, x)
    }
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T] {
        dot::dot_u4(self, w, x, sums)
    }
    #[inline(always)]
    fn activations(self, rows: [&Row; 2], up: [i32; 2], q: &mut Activations) -> i32 {
        functions::activations(self, rows, up, q)
    }
    #[inline(always)]
    fn split(self, x: &Activations) -> Activations {
        dot::split(self, x)
    }
    #[inline(always)]
    fn dot_split(self, w: &[[u8; TILE]; TILES / 2], x: &Activations, sums: &Group) -> Row {
        dot::dot_split(self, w, x, sums)
    }
    #[inline(always)]
    fn prefetch(self, from: &u8, distance: usize) {
        prefetch(from, distance);
    }
    #[inline(always)]
    fn scales(self, ws: &[u8; 32]) -> Row {
        dot::scales(self, ws)
    }
    #[inline(always)]
    fn add_scaled(self, dots: &Row, scales: &Row, down: u32, sums: &mut Sums) {
        dot::add_scaled(self, dots, scales, down, sums);
    }
    #[inline(always)]
    fn in_order(self, sums: &Sums) -> Sums {
        dot::in_order(self, sums)
    }
    #[inline(always)]
    fn sixteen<H: Stored>(self, steps: &mut Steps, a: &[[u8; 64]], h: &mut [[H; 16]], b: &[i16], c: &[i16]) {
        scan::sixteen(self, steps, a, h, b, c);
    }
}
