//! The inner loops of the fixed path, for each instruction set, behind one trait.
//!
//! Sums of integers do not depend on their order, so every instance gives the same bits by construction. What pays is written
//! for each instruction set by hand; the rest is left to the compiler, which has one body for all and each time an
//! instruction set's features.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(all(target_arch = "arm", any(target_feature = "thumb2", feature = "thumb2")))]
mod arm;
mod conv;
mod elementwise;
mod isa;
mod lanes;
mod matmul;
mod narrow;
mod operands;
mod packed;
mod panel;
mod scalar;
mod scan;
mod set;
mod steps;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::Neon;
#[cfg(all(target_arch = "arm", any(target_feature = "dsp", feature = "dsp")))]
pub use arm::Dsp;
#[cfg(all(target_arch = "arm", any(target_feature = "thumb2", feature = "thumb2")))]
pub use arm::Thumb2;
pub(crate) use elementwise::{narrow_vectors, times_ln_2};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use isa::Isa;
pub use operands::{Exponents, Group, Input, Inverse, Range, ScanInput, SharedWide, SsmState, Wide, WideMut};
pub use panel::LOGIT_BITS;
pub(crate) use panel::scale;
pub use scalar::Scalar;
pub use set::Kernels;
use set::instantiate;
#[cfg(target_arch = "x86_64")]
pub use x86_64::Avx2;

instantiate!(Scalar);

/// The names of the kernels for this architecture that are chosen at run time, whether this CPU has them or not: tests print
/// which did not run.
pub const NAMES: &[&str] = {
    #[cfg(target_arch = "x86_64")]
    let names = &[Avx2::NAME];
    #[cfg(target_arch = "aarch64")]
    let names = &[Neon::NAME];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let names = &[];
    names
};

/// Every instruction set that this program was built with and this CPU has, from slowest to fastest.
///
/// The kernels are handed to `visit` one by one.
pub fn for_each_available(visit: &mut dyn FnMut(&'static dyn Kernels)) {
    visit(&Scalar);
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = Avx2::detect() {
        visit(isa);
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(isa) = Neon::detect() {
        visit(isa);
    }
    #[cfg(all(target_arch = "arm", any(target_feature = "thumb2", feature = "thumb2")))]
    visit(Thumb2::new());
    #[cfg(all(target_arch = "arm", any(target_feature = "dsp", feature = "dsp")))]
    visit(Dsp::new());
}

/// The best kernels for the CPU that the program runs on: detected at run time with feature `std`, else at compile time.
#[must_use]
pub fn detect() -> &'static dyn Kernels {
    let mut best: &'static dyn Kernels = &Scalar;
    for_each_available(&mut |kernels| best = kernels);
    best
}
