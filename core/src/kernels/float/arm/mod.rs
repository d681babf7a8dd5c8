//! Cortex-M with FPU and DSP instructions (M4F, M7, M33).

mod dot;
mod float;

pub use float::CortexM;

use super::set::instantiate;

instantiate!(CortexM);
