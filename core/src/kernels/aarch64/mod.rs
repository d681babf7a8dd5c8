//! AArch64: NEON, and NEON with the dot product instructions (ARMv8.2).

mod neon;

pub use neon::{Neon, NeonDot};

use super::Kernels;

/// Hands out the kernels that this CPU has, from slowest to fastest.
pub(super) fn for_each_available(visit: &mut dyn FnMut(&'static dyn Kernels)) {
    if let Some(isa) = Neon::detect() {
        visit(isa);
    }
    if let Some(isa) = NeonDot::detect() {
        visit(isa);
    }
}
