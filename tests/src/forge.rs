//! Packed files changed after the fact, with checksums that fit.

use elapid_core::format::{Header, Section, checksum};

/// Renews all checksums, as a forger would.
pub fn forge(file: &mut [u8], header: &Header) {
    let layout = header.layout();
    let table = layout.section(Section::Checksums);
    for section in layout.sections() {
        for index in 0.. {
            let Some(block) = layout.block(section, index) else { break };
            let bytes = &file[block.offset as usize..][..block.length as usize];
            let sum = checksum(bytes).to_le_bytes();
            file[table.offset as usize + 4 * block.checksum as usize..][..4].copy_from_slice(&sum);
        }
    }
    let sums = checksum(&file[table.offset as usize..][..table.length as usize]);
    file[248..252].copy_from_slice(&sums.to_le_bytes());
    forge_header(file);
}

/// Renews the header's own checksum.
pub fn forge_header(file: &mut [u8]) {
    let sum = checksum(&file[..252]);
    file[252..256].copy_from_slice(&sum.to_le_bytes());
}
