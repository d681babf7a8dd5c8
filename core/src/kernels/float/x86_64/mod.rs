//! x86-64: AVX2 with FMA and F16C, the same with AVX-VNNI, and AVX-512 with VNNI.

mod dot;
mod float;
mod matmul;
mod unpack;

pub use float::{Avx2, Avx512, AvxVnni};

use super::isa::Isa;
use super::set::{Kernels, instantiate};

instantiate!(Avx2, [#[target_feature(enable = "avx2,fma,f16c")]], x86_64::matmul::matmul, scan::scan);
instantiate!(AvxVnni, #[target_feature(enable = "avx2,fma,f16c,avxvnni")]);
instantiate!(Avx512, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]);

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
