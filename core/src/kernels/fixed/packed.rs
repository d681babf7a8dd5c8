//! Weights of the types that the fixed path has, as groups that dot with activations.

use super::isa::Isa;
use super::operands::{Activations, Group};
use crate::numbers::fixed::Row;
use crate::numbers::{TILE, TILES};

/// Weights that dot with activations.
pub(super) trait Packed {
    /// The weights of 16 rows in a group of 32 columns.
    type Group;
    fn groups(bytes: &[u8]) -> &[Self::Group];
    fn dot<S: Isa, const T: usize>(
        s: S,
        w: &Self::Group,
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T];
}

pub(super) struct Q8;
impl Packed for Q8 {
    type Group = [[u8; TILE]; TILES];
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Self::Group] {
        bytes.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn dot<S: Isa, const T: usize>(s: S, w: &Self::Group, x: &[Activations; T], _: &[Group; T]) -> [Row; T] {
        s.dot_i8(w, x)
    }
}

pub(super) struct Q4;
impl Packed for Q4 {
    type Group = [[u8; TILE]; TILES / 2];
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Self::Group] {
        bytes.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn dot<S: Isa, const T: usize>(
        s: S,
        w: &Self::Group,
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T] {
        s.dot_u4(w, x, sums)
    }
}
