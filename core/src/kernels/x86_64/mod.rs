//! x86-64: AVX2 with FMA and F16C, the same with AVX-VNNI, and AVX-512 with VNNI.

mod avx2;
mod avx512;
mod avx_vnni;
mod cpuid;
mod crc32;
mod strips;
mod ymm;

pub use avx_vnni::AvxVnni;
pub use avx2::Avx2;
pub use avx512::Avx512;
pub(super) use cpuid::missing_feature;
pub(super) use crc32::crc32;
pub(super) use strips::matmul as avx2_matmul;

use super::{Isa, Kernels};

/// The names of all kernels here, from slowest to fastest.
pub(super) const NAMES: &[&str] = &[Avx2::NAME, AvxVnni::NAME, Avx512::NAME];

/// See [`Isa::AHEAD`](super::Isa::AHEAD): less than what memory gives in the time of one access to it.
///
/// On a Zen 3 the product of one token reads 1.3 to 1.4 times as fast as without asking (18 GB/s, where plain reads reach
/// 14). What is asked for must be contiguous and in order; 4 KiB more lose nearly all of the gain, into whichever cache.
pub(crate) const AHEAD: usize = 1024;

/// Whether the CPU has all the features: detected at run time with feature `std`, else known at compile time.
macro_rules! has {
    ($($feature:tt),+) => {{
        #[cfg(feature = "std")]
        { $(std::arch::is_x86_feature_detected!($feature))&&+ }
        #[cfg(not(feature = "std"))]
        { $(cfg!(target_feature = $feature))&&+ }
    }};
}
use has;

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
