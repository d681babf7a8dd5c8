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
/// What memory gives in the time of one access to it, and a little more. On a Zen 3 the product of one token reads 1.4 times
/// as fast as without (18 GB/s, where plain reads reach 14); half or twice the distance costs some percent, 4 KiB and more
/// nearly all of the gain, into whichever cache.
const AHEAD: usize = 1792;

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
