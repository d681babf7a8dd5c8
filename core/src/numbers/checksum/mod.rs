//! CRC-32 (IEEE 802.3), at memory bandwidth where the CPU has instructions for it.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86_64;

/// The checksum of bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub struct Crc32(crc32fast::Hasher);

impl Crc32 {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn value(self) -> u32 {
        self.0.finalize()
    }
}

/// The checksum of some bytes.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(crc) = x86_64::crc32(bytes) {
        return crc;
    }
    crc32fast::hash(bytes)
}
