//! AArch64: NEON, and NEON with the dot product instructions (ARMv8.2).

mod neon;
mod pairs;
mod sdot;

pub use neon::{Neon, NeonDot};

use core::arch::aarch64::*;

use super::Kernels;
use super::isa::TILE;

/// Hands out the kernels that this CPU has, from slowest to fastest.
pub(super) fn for_each_available(visit: &mut dyn FnMut(&'static dyn Kernels)) {
    if let Some(isa) = Neon::detect() {
        visit(isa);
    }
    if let Some(isa) = NeonDot::detect() {
        visit(isa);
    }
}

/// Sixteen bytes of weights of four rows, from a tile.
#[inline(always)]
fn quarter(tile: &[u8; TILE], quarter: usize) -> int8x16_t {
    // SAFETY: NEON is part of every AArch64 that this compiles for; the array has the 16 bytes read.
    unsafe { vld1q_s8(tile.as_chunks::<16>().0[quarter & 3].as_ptr().cast()) }
}
