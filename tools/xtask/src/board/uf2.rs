//! UF2, the format of files that a board's boot ROM takes as a USB drive (github.com/microsoft/uf2).

/// Arm programs for the RP2350 in the secure state.
pub const RP2350_ARM_S: u32 = 0xe48b_ff59;

const BLOCK: usize = 512;
/// Bytes in a block: a page of flash.
pub const PAYLOAD: usize = 256;
const MAGIC: [u32; 2] = [0x0a32_4655, 0x9e5d_5157];
const MAGIC_END: u32 = 0x0ab1_6f30;
/// The block names a family of chips.
const FAMILY_PRESENT: u32 = 0x2000;

/// Makes a file of some bytes and the addresses at which they are to be written. Parts are in order and don't overlap,
/// but may share a page.
pub fn file(parts: &[(u64, Vec<u8>)], family: u32) -> Vec<u8> {
    let mut pages: Vec<(u64, [u8; PAYLOAD])> = Vec::new();
    for (at, bytes) in parts {
        for (address, byte) in (*at..).zip(bytes) {
            let page = address - address % PAYLOAD as u64;
            if pages.last().is_none_or(|(last, _)| *last != page) {
                pages.push((page, [0; PAYLOAD]));
            }
            if let Some((_, payload)) = pages.last_mut() {
                payload[(address - page) as usize] = *byte;
            }
        }
    }
    let count = pages.len() as u32;
    let mut file = Vec::with_capacity(pages.len() * BLOCK);
    for (number, (page, payload)) in (0u32..).zip(&pages) {
        let head = [FAMILY_PRESENT, *page as u32, PAYLOAD as u32, number, count, family];
        for word in MAGIC.iter().chain(&head) {
            file.extend(word.to_le_bytes());
        }
        file.extend(payload);
        file.resize((number as usize + 1) * BLOCK - 4, 0);
        file.extend(MAGIC_END.to_le_bytes());
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(file: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(*file[at..].first_chunk().unwrap())
    }

    #[test]
    fn blocks_are_as_the_format_says() {
        let parts = vec![(0x1000_0000, vec![7; 300]), (0x1000_0130, vec![9; 4]), (0x1010_0000, vec![1; 256])];
        let file = file(&parts, RP2350_ARM_S);
        assert_eq!(file.len(), 3 * BLOCK);
        for (i, address) in [0x1000_0000, 0x1000_0100, 0x1010_0000].into_iter().enumerate() {
            let block = &file[i * BLOCK..][..BLOCK];
            let head = [0, 4, 8, 12, 16, 20, 24, 28].map(|at| word(block, at));
            let wanted = [MAGIC[0], MAGIC[1], 0x2000, address, 256, i as u32, 3, 0xe48b_ff59];
            assert_eq!(head, wanted);
            assert_eq!(word(block, 508), MAGIC_END);
            assert!(block[32 + PAYLOAD..508].iter().all(|byte| *byte == 0));
        }
        // 300 bytes reach 44 into the second page; the next part shares it.
        let second = &file[BLOCK + 32..][..PAYLOAD];
        assert_eq!((second[43], second[44], second[48], second[51], second[52]), (7, 0, 9, 9, 0));
    }
}
