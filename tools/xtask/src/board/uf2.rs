//! UF2, the format of files that a board's boot ROM takes as a USB drive (github.com/microsoft/uf2).

/// Arm programs for the RP2350 in the secure state.
pub const RP2350_ARM_S: u32 = 0xe48b_ff59;

const BLOCK: usize = 512;
/// Bytes in a block: a page of flash.
const PAYLOAD: usize = 256;
/// Bytes that flash erases at once. What is touched of them is written whole: the boot ROM erases them.
const SECTOR: u64 = 4096;
const MAGIC: [u32; 2] = [0x0a32_4655, 0x9e5d_5157];
const MAGIC_END: u32 = 0x0ab1_6f30;
/// The block names a family of chips.
const FAMILY_PRESENT: u32 = 0x2000;
/// What flash reads as after it was erased.
pub const ERASED: u8 = 0xff;

/// Makes a file of some bytes and the addresses at which they are to be written. Parts are in order of their addresses and
/// don't overlap, but may share a sector.
pub fn file(parts: &[(u64, Vec<u8>)], family: u32) -> Vec<u8> {
    let mut sectors: Vec<(u64, Vec<u8>)> = Vec::new();
    for (at, bytes) in parts {
        for (address, byte) in (*at..).zip(bytes) {
            let start = address - address % SECTOR;
            if sectors.last().is_none_or(|(last, _)| *last != start) {
                sectors.push((start, vec![ERASED; SECTOR as usize]));
            }
            if let Some((_, sector)) = sectors.last_mut() {
                sector[(address - start) as usize] = *byte;
            }
        }
    }
    let pages = sectors
        .iter()
        .flat_map(|(start, sector)| (*start..).step_by(PAYLOAD).zip(sector.chunks_exact(PAYLOAD)));
    let count = (sectors.len() * SECTOR as usize / PAYLOAD) as u32;
    let mut file = Vec::with_capacity(count as usize * BLOCK);
    for (number, (page, payload)) in (0u32..).zip(pages) {
        let head = [FAMILY_PRESENT, page as u32, PAYLOAD as u32, number, count, family];
        for word in MAGIC.iter().chain(&head) {
            file.extend(word.to_le_bytes());
        }
        file.extend(payload);
        file.resize((number as usize + 1) * BLOCK - 4, 0);
        file.extend(MAGIC_END.to_le_bytes());
    }
    file
}

/// Reading by the specification alone: none of the writer's constants is used here.
#[cfg(test)]
pub mod independent {
    use std::collections::BTreeMap;

    /// What a file writes, by address, and the family that it is for. The error says what a boot ROM would stumble over.
    pub fn read(file: &[u8]) -> Result<(BTreeMap<u32, u8>, u32), String> {
        if file.is_empty() || !file.len().is_multiple_of(512) {
            return Err(format!("{} bytes are no whole blocks", file.len()));
        }
        let (mut memory, mut family) = (BTreeMap::new(), None);
        for (i, block) in file.chunks(512).enumerate() {
            let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
            // "UF2\n", then two numbers of the specification.
            if &block[..4] != b"UF2\n" || word(4) != 0x9E5D5157 || word(508) != 0x0AB16F30 {
                return Err(format!("block {i} lacks a magic number"));
            }
            let (flags, address, size) = (word(8), word(12), word(16));
            if flags & 0x1 != 0 || flags & 0x2000 == 0 {
                return Err(format!("block {i} is not for flash, or names no family: flags {flags:#x}"));
            }
            if word(20) as usize != i || word(24) as usize != file.len() / 512 {
                return Err(format!("block {i} says that it is {} of {}", word(20), word(24)));
            }
            if size > 476 || !address.is_multiple_of(size) {
                return Err(format!("block {i}: {size} bytes for {address:#x}"));
            }
            if *family.get_or_insert(word(28)) != word(28) {
                return Err(format!("block {i} is for another family"));
            }
            for (at, byte) in (address..).zip(&block[32..32 + size as usize]) {
                if memory.insert(at, *byte).is_some() {
                    return Err(format!("{at:#x} is written twice"));
                }
            }
        }
        Ok((memory, family.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_by_the_specification() {
        // Parts that share a sector, leave gaps, and end within a page.
        let parts = vec![
            (0x1000_0000, (0..5000).map(|i| i as u8).collect::<Vec<_>>()),
            (0x1000_1400, vec![7; 300]),
            (0x1010_0000, vec![9; 4097]),
        ];
        let (memory, family) = independent::read(&file(&parts, RP2350_ARM_S)).unwrap();
        assert_eq!(family, 0xE48BFF59);
        // Sectors, whole: two of the first parts, two of the last.
        assert_eq!(memory.len(), 4 * 4096);
        for (at, bytes) in &parts {
            for (address, byte) in (*at as u32..).zip(bytes) {
                assert_eq!(memory.get(&address), Some(byte), "{address:#x}");
            }
        }
        let untouched = |at: &u32| {
            !parts
                .iter()
                .any(|(start, bytes)| (*start as u32..*start as u32 + bytes.len() as u32).contains(at))
        };
        assert!(memory.iter().filter(|(at, _)| untouched(at)).all(|(_, byte)| *byte == 0xff));
    }

    #[test]
    fn the_reading_sees_what_is_wrong() {
        let good = file(&[(0x1000_0000, vec![1; 600])], RP2350_ARM_S);
        assert!(independent::read(&good).is_ok());
        assert!(independent::read(&good[..good.len() - 1]).is_err());
        assert!(independent::read(&good[512..]).is_err(), "a block is missing");
        for at in [0, 4, 8, 12, 16, 20, 24, 508, 512 + 28] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(independent::read(&bad).is_err(), "byte {at}");
        }
    }
}
