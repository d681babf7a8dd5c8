//! x86-64: AVX2 with FMA and F16C, the same with AVX-VNNI, and AVX-512 with VNNI.

mod avx2;
mod avx512;
mod avx_vnni;
mod cpuid;
mod ymm;

pub use avx_vnni::AvxVnni;
pub use avx2::Avx2;
pub use avx512::Avx512;
pub(super) use cpuid::missing_feature;

use super::Kernels;

/// How far ahead of use weights are asked for, in bytes, where one token waits for memory.
///
/// They are asked into the second cache, which can wait for more lines at a time than the first: on a Zen 4 that gave
/// 1.4 times the decode of q4 that the same distance into the first cache did; 12 to 96 KiB are alike.
const AHEAD: usize = 24 << 10;

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
