//! The inner loops, for each instruction set: those of the float path, those of the fixed path, and how they are shared out
//! among cores.

pub mod fixed;
pub mod float;
mod share;

#[cfg(all(target_arch = "arm", feature = "dsp", feature = "fpu"))]
pub use float::CortexM;
#[cfg(target_arch = "x86_64")]
pub use float::{Avx2, Avx512, AvxVnni};
pub use float::{
    Input, Isa, Kernels, NAMES, Scalar, Scale, ScanInput, SsmState, TOKEN_BLOCK, detect, for_each_available,
};
#[cfg(target_arch = "aarch64")]
pub use float::{Neon, NeonDot};
pub(crate) use share::MAX_TEAM;
pub use share::{Share, Solo, Split, Team, share, split, split_rows};

pub use crate::numbers::{GROUP, LANES};
