//! Cortex-M: Thumb-2 from the M3 on, and the DSP instructions of the M4, M7 and M33.

mod by_hand;
mod dot;
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
mod dsp;
mod functions;
mod scan;
mod thumb2;
mod token;

#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub use token::Dsp;
pub use token::Thumb2;
