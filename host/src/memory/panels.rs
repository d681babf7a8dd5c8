//! Single panels of the embedding: of a token, only the 16 rows among which its own is are read.

use std::ops::Range;

use elapid_core::format::{Layout, Part, PartGeometry, Section, checksum};
use elapid_core::source::Fault;

use super::readers::{REREADS, Shared};
use super::storage::{Buffer, read_full};
use crate::Error;
use crate::options::Verify;

/// Reads panels of the embedding, each checked at every read.
///
/// The file has a checksum a block. When a block is needed first it is read whole and checked, and the checksum of each of
/// its panels is kept: from then on a panel is read and checked by itself.
pub(super) struct Panels {
    geometry: PartGeometry,
    buffer: Buffer,
    /// Checksums of panels, by panel.
    sums: Vec<u32>,
    /// Blocks whose panels have theirs.
    known: Vec<bool>,
}

/// What [`Panels`] takes for a model.
pub(super) fn panels_bytes(layout: &Layout) -> u64 {
    let geometry = layout.part(Part::Embedding);
    u64::from(geometry.block_stride) + 4 * u64::from(geometry.panels) + u64::from(geometry.blocks())
}

impl Panels {
    pub(super) fn new(layout: &Layout) -> Result<Self, Error> {
        let geometry = *layout.part(Part::Embedding);
        let buffer = Buffer::new("a block of the embedding", geometry.block_stride as usize)?;
        let sums = vec![0; geometry.panels as usize];
        let known = vec![false; geometry.blocks() as usize];
        Ok(Self { geometry, buffer, sums, known })
    }

    /// Reads one block of the embedding.
    pub(super) fn block(
        &mut self,
        shared: &Shared,
        section: Section,
        block: u32,
    ) -> Result<&[u8], (u32, Fault)> {
        let place = shared.layout.block(section, block).filter(|_| section == Section::Embedding);
        let place = place.ok_or((block, Fault::NoSuchBlock))?;
        let bytes = self.buffer.get_mut(..place.length as usize).ok_or((block, Fault::NoSuchBlock))?;
        shared.fetch(section, block..block + 1, bytes)?;
        if shared.verify != Verify::Never {
            let first = self.geometry.first_panel(block) as usize;
            let panels = bytes.chunks_exact(self.geometry.panel_bytes as usize);
            for (sum, panel) in self.sums[first..].iter_mut().zip(panels) {
                *sum = checksum(panel);
            }
            self.known[block as usize] = true;
        }
        Ok(bytes)
    }

    /// Reads a panel, `within` its block. Returns it, and how many bytes were read.
    pub(super) fn panel(
        &mut self,
        shared: &Shared,
        block: u32,
        within: Range<usize>,
    ) -> Result<(&[u8], u64), (u32, Fault)> {
        let (size, align) = (self.geometry.panel_bytes as usize, self.geometry.align as usize);
        let missing = (block, Fault::NoSuchBlock);
        let place = shared.layout.block(Section::Embedding, block).ok_or(missing)?;
        let whole = within.start.is_multiple_of(size) && within.len() == size;
        let checked = shared.verify == Verify::Never || self.known.get(block as usize) == Some(&true);
        if !(whole && checked) {
            let bytes = self.block(shared, Section::Embedding, block)?;
            return Ok((bytes.get(within).ok_or(missing)?, place.length));
        }
        let from = within.start - within.start % align;
        let to = within.end.next_multiple_of(align);
        let read = self.buffer.get_mut(..to - from).ok_or(missing)?;
        let sum = self.sums[self.geometry.first_panel(block) as usize + within.start / size];
        for _ in 0..=REREADS {
            let done =
                read_full(&*shared.storage, read, place.offset + from as u64, &shared.log, &shared.stop);
            done.map_err(|(_, fault)| (block, fault))?;
            let panel = &read[within.start - from..within.end - from];
            if shared.verify == Verify::Never || checksum(panel) == sum {
                return Ok((&self.buffer[within.start - from..within.end - from], (to - from) as u64));
            }
            shared.log.reread();
        }
        Err((block, Fault::Checksum))
    }
}
