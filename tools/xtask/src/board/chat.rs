//! A model that chats, made from one that does not.

use elapid_core::format::data::RoleTable;
use elapid_core::format::{
    Config, DataSizes, Fields, Header, Layout, Section, checksum, emit_header, emit_table_entry,
};

use crate::error::{Error, Result};

/// A packed model with a role table.
pub fn with_roles(file: &[u8], roles: &RoleTable<'_>) -> Result<Vec<u8>> {
    let told = |error: &dyn std::fmt::Display| Error::new(error.to_string());
    let header = Header::parse(file).map_err(|error| told(&error))?;
    let old = header.layout();
    let mut table = Vec::new();
    roles.emit(&mut |part| table.extend_from_slice(part)).map_err(|error| told(&error))?;
    let fields = *old.config().fields();
    let data = DataSizes { role_table: table.len() as u32, ..fields.data };
    let new = Config::new(Fields { data, ..fields }).and_then(Layout::new).map_err(|error| told(&error))?;

    let place = |layout: &Layout, section| {
        let place = layout.section(section);
        place.offset as usize..(place.offset + place.length) as usize
    };
    let mut out = vec![0; new.file_bytes() as usize];
    for section in new.sections().filter(|section| *section != Section::Checksums) {
        let bytes = if section == Section::RoleTable { &table } else { &file[place(old, section)] };
        out[place(&new, section)].copy_from_slice(bytes);
    }
    let sums = place(&new, Section::Checksums);
    for section in new.sections() {
        for block in (0..).map_while(|block| new.block(section, block)) {
            let sum = checksum(&out[block.offset as usize..][..block.length as usize]);
            let at = sums.start + 4 * block.checksum as usize;
            out[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }
    let entries: Vec<u8> = new.sections().flat_map(|section| emit_table_entry(&new, section)).collect();
    let header = emit_header(&new, checksum(&entries), checksum(&out[sums]));
    out[..header.len()].copy_from_slice(&header);
    out[header.len()..][..entries.len()].copy_from_slice(&entries);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elapid_core::format::data::Wrapping;
    use elapid_core::source::{LayerSource, SliceSource};

    #[test]
    fn the_file_is_whole_and_has_the_roles() {
        let file = std::fs::read(crate::toolchain::models().join("address-300k.elp")).unwrap();
        let user = Wrapping { prefix: "A: ", suffix: "\n" };
        let roles = RoleTable { user, generation: "B:", ..RoleTable::default() };
        let made = with_roles(&file, &roles).unwrap();
        let header = Header::parse(&made).unwrap();
        let mut checked = vec![0; SliceSource::checked_words(header.layout())];
        let mut source = SliceSource::new(&made, &header, &mut checked).unwrap();
        for section in header.layout().sections() {
            let blocks = header.layout().section(section).blocks;
            assert!(blocks == 0 || source.borrow(section, 0..blocks).is_ok(), "{section}");
        }
        assert_eq!(RoleTable::parse(source.borrow(Section::RoleTable, 0..1).unwrap()), Ok(roles));
    }
}
