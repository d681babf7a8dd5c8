//! The features of the CPU that the program runs on.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) mod x86_64;

/// The first instruction set extension that the program was compiled for (`-C target-cpu`, `-C target-feature`) and this
/// CPU lacks: going on would end in an illegal instruction. Known on x86-64; elsewhere always `None`.
#[must_use]
#[inline(never)]
pub fn missing_feature() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    return x86_64::missing_feature();
    #[cfg(not(target_arch = "x86_64"))]
    None
}
