//! The tokens of Thumb-2 and of the DSP instructions.

/// The instructions of ARMv7-M and ARMv8-M Mainline. The feature `thumb2` of this crate promises the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Thumb2(());

impl Thumb2 {
    /// The token. That it can be had is decided by the crate's features.
    #[must_use]
    pub const fn new() -> &'static Self {
        &Self(())
    }
}

/// The DSP instructions of ARMv7E-M and ARMv8-M. The feature `dsp` of this crate promises the CPU.
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
#[derive(Clone, Copy, Debug)]
pub struct Dsp(());

#[cfg(any(target_feature = "dsp", feature = "dsp"))]
impl Dsp {
    /// The token. That it can be had is decided by the crate's features.
    #[must_use]
    pub const fn new() -> &'static Self {
        &Self(())
    }
}

/// A token of Thumb-2, with or without the DSP instructions.
///
/// # Safety
/// A value of the type exists only where the CPU has Thumb-2.
pub(in crate::kernels::fixed) unsafe trait Thumb:
    Copy + Send + Sync + 'static
{
}

// SAFETY: the compiler, or the feature `thumb2` of this crate, promises the CPU.
unsafe impl Thumb for Thumb2 {}

// SAFETY: a CPU with the DSP instructions has Thumb-2.
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
unsafe impl Thumb for Dsp {}
