//! The inner loops of the float path, for each instruction set, behind one trait.
//!
//! [`Kernels`] is what the step calls: each method works on whole panels and is coarse enough for dynamic dispatch.
//! The bodies are written once, over [`Isa`] and [`Dot`]; `instantiate!` compiles them with an instruction set's features.
//! Every instance gives the bits of [`Scalar`].

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(all(target_arch = "arm", feature = "dsp", feature = "fpu"))]
mod arm;
mod elementwise;
mod isa;
mod matmul;
mod operands;
mod scalar;
mod scan;
mod set;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{Neon, NeonDot};
#[cfg(all(target_arch = "arm", feature = "dsp", feature = "fpu"))]
pub use arm::CortexM;
pub use isa::{Dot, Isa};
pub use operands::{Input, Scale, ScanInput, SsmState, TOKEN_BLOCK};
pub use scalar::Scalar;
pub use set::Kernels;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Avx2, Avx512, AvxVnni};

/// The names of the kernels for this architecture that are chosen at run time, whether this CPU has them or not: tests print
/// which did not run.
pub const NAMES: &[&str] = {
    #[cfg(target_arch = "x86_64")]
    let names = x86_64::NAMES;
    #[cfg(target_arch = "aarch64")]
    let names = aarch64::NAMES;
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
    x86_64::for_each_available(visit);
    #[cfg(target_arch = "aarch64")]
    aarch64::for_each_available(visit);
    #[cfg(all(target_arch = "arm", feature = "dsp", feature = "fpu"))]
    visit(CortexM::new());
}

/// The best kernels for the CPU that the program runs on: detected at run time with feature `std`, else at compile
/// time.
#[must_use]
pub fn detect() -> &'static dyn Kernels {
    let mut best: &'static dyn Kernels = &Scalar;
    for_each_available(&mut |kernels| best = kernels);
    best
}
