//! The packed file, `.elp`: header, section table, and where everything lies. Specified in `docs/format.md`.
//!
//! Bytes are untrusted. [`Header::parse`] is the only way from bytes to sizes: it yields a checked [`Config`], and
//! every offset follows from that through [`Layout`], which the packer uses too.

mod config;
pub mod data;
mod error;
mod header;
mod layout;
mod matrix;

pub use config::{Arch, Config, DataSizes, Fields, Limit, PerMatrix, Quants};
pub use error::FormatError;
pub use header::{Fingerprint, Header, emit_header, emit_table_entry};
pub use layout::{
    BLOCK_ALIGN, Block, COMPACT_ALIGN, Layout, Part, PartGeometry, SECTION_ALIGN, Section, SectionGeometry,
};
pub(crate) use matrix::power_of_two;
pub use matrix::{MatrixShape, Quant};

/// The checksum of blocks, tables and headers: CRC-32 (IEEE 802.3), by instructions where the CPU has them.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crate::numbers::checksum::crc32(bytes)
}

/// `x` rounded up to a multiple of `to`.
#[must_use]
pub(crate) const fn round_up(x: u32, to: u32) -> u32 {
    x.div_ceil(to) * to
}

/// `x` rounded up to a multiple of `to`, a power of two: by no division, for whose divisor a panic would be compiled.
#[must_use]
pub(crate) const fn round_up_u64(x: u64, to: u64) -> u64 {
    debug_assert!(to.is_power_of_two());
    (x + (to - 1)) & !(to - 1)
}
