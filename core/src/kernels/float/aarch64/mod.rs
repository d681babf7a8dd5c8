//! AArch64: NEON, and NEON with the dot product instructions (ARMv8.2).

mod dot;
mod float;
mod matmul;
mod scan;
mod unpack;

pub use float::{Neon, NeonDot};

use super::isa::Isa;
use super::set::{Kernels, instantiate};

instantiate!(Neon, [#[target_feature(enable = "neon")]], aarch64::matmul::matmul, aarch64::scan::scan);
instantiate!(NeonDot, [#[target_feature(enable = "neon,dotprod")]], aarch64::matmul::matmul, aarch64::scan::scan);

/// The names of all kernels here, from slowest to fastest.
pub(super) const NAMES: &[&str] = &[Neon::NAME, NeonDot::NAME];

/// Hands out the kernels that this CPU has, from slowest to fastest.
pub(super) fn for_each_available(visit: &mut dyn FnMut(&'static dyn Kernels)) {
    if let Some(isa) = Neon::detect() {
        visit(isa);
    }
    if let Some(isa) = NeonDot::detect() {
        visit(isa);
    }
}
