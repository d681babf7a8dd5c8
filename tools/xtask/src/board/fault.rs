//! Packed models with a fault in them, for showing that it is found.

use elapid_core::format::{Config, Fields, Header, Layout, Part, Section, checksum, emit_header};

use crate::error::{Error, Result};

/// Changes one weight of the last layer's out_proj, as if the model had been trained otherwise: all checksums fit.
pub fn another_weight(file: &mut [u8]) -> Result<()> {
    let layout = damaged_weight(file)?;
    let section = Section::Layer(layout.config().n_layer - 1);
    let first = layout.part(Part::OutProj).first_block;
    let block = layout.block(section, first).ok_or_else(none)?;
    let sum = checksum(bytes(file, block.offset..block.offset + block.length)?);
    let sums = layout.section(Section::Checksums);
    let at = sums.offset + 4 * u64::from(block.checksum);
    bytes(file, at..at + 4)?.copy_from_slice(&sum.to_le_bytes());
    let all = checksum(bytes(file, sums.offset..sums.offset + sums.length)?);
    let table = checksum(bytes(file, Header::BYTES as u64..layout.header_bytes())?);
    let header = emit_header(&layout, table, all);
    bytes(file, 0..header.len() as u64)?.copy_from_slice(&header);
    Ok(())
}

/// Changes the same weight, as a storage that lies would: the block's checksum finds it.
pub fn damaged_weight(file: &mut [u8]) -> Result<Layout> {
    let header = Header::parse(file).map_err(|error| Error::new(error.to_string()))?;
    let layout = *header.layout();
    let section = Section::Layer(layout.config().n_layer - 1);
    let block = layout.block(section, layout.part(Part::OutProj).first_block).ok_or_else(none)?;
    let shape = layout.config().out_proj();
    // The largest change that an int8 weight can make: the top bit of the first panel's first weight.
    let at = block.offset + u64::from(shape.scale_bytes());
    bytes(file, at..at + 1)?[0] ^= 0x80;
    Ok(layout)
}

/// Says that the file is of a newer version.
pub fn newer_version(file: &mut [u8]) -> Result<()> {
    bytes(file, 8..10)?.copy_from_slice(&2u16.to_le_bytes());
    Ok(())
}

/// Leaves the header of a model whose file is larger than any board's memory.
pub fn too_large(file: &mut Vec<u8>) -> Result<()> {
    let header = Header::parse(file).map_err(|error| Error::new(error.to_string()))?;
    let fields = Fields { vocab: 1 << 20, ..*header.layout().config().fields() };
    let layout = Config::new(fields).and_then(Layout::new).map_err(|error| Error::new(error.to_string()))?;
    *file = emit_header(&layout, 0, 0).to_vec();
    Ok(())
}

fn none() -> Error {
    Error::new("the model has no such block")
}

fn bytes(file: &mut [u8], range: std::ops::Range<u64>) -> Result<&mut [u8]> {
    file.get_mut(range.start as usize..range.end as usize).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elapid_core::source::{LayerSource, SliceSource};

    fn model() -> Vec<u8> {
        std::fs::read(crate::toolchain::models().join("address-300k.elp")).unwrap()
    }

    /// Whether every block of the last layer is as its checksum says.
    fn intact(file: &[u8]) -> bool {
        let header = Header::parse(file).unwrap();
        let layout = header.layout();
        let mut checked = vec![0; SliceSource::checked_words(layout)];
        let section = Section::Layer(layout.config().n_layer - 1);
        let mut blocks = 0..layout.section(section).blocks;
        SliceSource::new(file, &header, &mut checked)
            .is_ok_and(|mut s| blocks.all(|block| s.borrow(section, block..block + 1).is_ok()))
    }

    #[test]
    fn another_weight_is_no_damage_and_a_damaged_one_is() {
        let (good, mut other, mut bad) = (model(), model(), model());
        another_weight(&mut other).unwrap();
        damaged_weight(&mut bad).unwrap();
        assert!(intact(&good) && intact(&other) && !intact(&bad));
        assert!(good != other);
    }

    #[test]
    fn a_header_of_a_large_model_is_a_good_header() {
        let mut file = model();
        too_large(&mut file).unwrap();
        assert!(Header::parse(&file).unwrap().layout().file_bytes() > 64 << 20);
    }

    #[test]
    fn a_newer_version_is_one() {
        let mut file = model();
        newer_version(&mut file).unwrap();
        assert!(Header::parse(&file).is_err_and(|error| error.to_string().contains("version 2")));
    }
}
