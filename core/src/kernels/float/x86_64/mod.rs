//! x86-64: AVX2 with FMA and F16C, the same with AVX-VNNI, and AVX-512 with VNNI.

mod avx2;
mod avx512;
mod avx_vnni;
mod strips;
mod ymm;

pub use avx_vnni::AvxVnni;
pub use avx2::Avx2;
pub use avx512::Avx512;
pub(super) use strips::matmul as avx2_matmul;

use super::{Isa, Kernels};

/// The names of all kernels here, from slowest to fastest.
pub(super) const NAMES: &[&str] = &[Avx2::NAME, AvxVnni::NAME, Avx512::NAME];

/// Hands out the kernels that this CPU has, from slowest to fastest.
pub(super) fn for_each_available(visit: &mut dyn FnMut(&'static dyn Kernels)) {
    if let Some(isa) = Avx2::detect() {
        visit(isa);
    }
    if let Some(isa) = AvxVnni::detect() {
        visit(isa);
    }
    if let Some(isa) = Avx512::detect() {
        visit(isa);
    }
}
