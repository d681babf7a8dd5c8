//! Panels of a part as a source lends them.

use core::ops::Range;

use crate::format::{Layout, Part, PartGeometry, Section};
use crate::kernels::LANES;
use crate::source::{Fault, LayerSource, SourceError};

/// Consecutive panels of a part, lent together.
pub(crate) struct Run<'a> {
    geometry: &'a PartGeometry,
    bytes: &'a [u8],
    /// The first panel, counted within the part.
    pub first: usize,
    /// How many panels.
    pub panels: usize,
}

impl<'a> Run<'a> {
    /// The whole blocks in `bytes`, which start at `block`, and how many there are.
    fn new(geometry: &'a PartGeometry, block: u32, bytes: &'a [u8]) -> (Self, u32) {
        let stride = u64::from(geometry.block_stride);
        let (mut blocks, mut panels) = (0, 0);
        while block + blocks < geometry.block_range().end
            && u64::from(blocks) * stride + geometry.block_len(block + blocks) <= bytes.len() as u64
        {
            panels += geometry.panels_in(block + blocks) as usize;
            blocks += 1;
        }
        let first = geometry.first_panel(block) as usize;
        (Self { geometry, bytes, first, panels }, blocks)
    }

    /// The bytes of some panels, counted within the run: stretches of panels that lie together, each with the range it
    /// covers counted from `panels.start`.
    pub fn pieces(&self, panels: Range<usize>) -> impl Iterator<Item = (Range<usize>, &'a [u8])> + use<'a> {
        let per_block = (self.geometry.panels_per_block as usize).max(1);
        let (stride, size) = (self.geometry.block_stride as usize, self.geometry.panel_bytes as usize);
        let (bytes, start) = (self.bytes, panels.start);
        let mut at = start;
        core::iter::from_fn(move || {
            if at >= panels.end {
                return None;
            }
            let (block, within) = (at / per_block, at % per_block);
            let count = (per_block - within).min(panels.end - at);
            let from = block * stride + within * size;
            let piece = bytes.get(from..from + count * size)?;
            let covered = at - start..at - start + count;
            at += count;
            Some((covered, piece))
        })
    }
}

/// The panel of the embedding that holds a token's row.
pub(crate) fn embedding_panel<'s>(
    layout: &Layout,
    source: &'s mut dyn LayerSource,
    token: u32,
) -> Result<&'s [u8], SourceError> {
    let geometry = layout.part(Part::Embedding);
    let panel = token / LANES as u32;
    let per_block = geometry.panels_per_block.max(1);
    let (block, within) = (panel / per_block, panel % per_block);
    let start = (within * geometry.panel_bytes) as usize;
    source.lend_within(Section::Embedding, block, start..start + geometry.panel_bytes as usize)
}

/// Calls `work` with all panels of a part, in as many runs as the source needs.
pub(crate) fn for_each_run(
    layout: &Layout,
    source: &mut dyn LayerSource,
    section: Section,
    part: Part,
    mut work: impl FnMut(&Run<'_>),
) -> Result<(), SourceError> {
    let geometry = layout.part(part);
    let mut blocks = geometry.block_range();
    while blocks.start < blocks.end {
        let (run, count) = Run::new(geometry, blocks.start, source.lend(section, blocks.clone())?);
        if count == 0 {
            let offset = layout.block(section, blocks.start).map_or(0, |b| b.offset);
            return Err(SourceError { section, block: blocks.start, offset, fault: Fault::NoSuchBlock });
        }
        work(&run);
        blocks.start += count;
    }
    Ok(())
}
