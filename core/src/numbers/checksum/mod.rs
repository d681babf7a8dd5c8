//! CRC-32 (IEEE 802.3), at memory bandwidth where the CPU has instructions for it.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86_64;

/// The checksum of some bytes.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(crc) = x86_64::crc32(bytes) {
        return crc;
    }
    crc32fast::hash(bytes)
}
