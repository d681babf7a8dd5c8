//! Panels of a part, borrowed from a source.

use core::ops::Range;

use super::operations::{Operations, Pass};
use crate::format::{Layout, Part, PartGeometry, Section};
use crate::kernels::LANES;
use crate::source::{Borrowed, Fault, SourceError};

/// Consecutive panels of a part, borrowed together.
pub struct Span<'a> {
    geometry: &'a PartGeometry,
    borrowed: Borrowed<'a>,
    /// The first block, counted within the section.
    block: u32,
    /// The first panel, counted within the part.
    pub first: usize,
    /// How many panels.
    pub panels: usize,
    /// How many blocks.
    pub blocks: usize,
}

impl<'a> Span<'a> {
    /// The span of the whole blocks that were borrowed, the first of which is `block`, and their number.
    fn new(geometry: &'a PartGeometry, block: u32, borrowed: Borrowed<'a>) -> (Self, u32) {
        let stride = u64::from(geometry.block_stride);
        let (mut blocks, mut panels) = (0, 0);
        while block + blocks < geometry.block_range().end
            && u64::from(blocks) * stride + geometry.block_len(block + blocks) <= borrowed.bytes.len() as u64
        {
            panels += geometry.panels_in(block + blocks) as usize;
            blocks += 1;
        }
        let first = geometry.first_panel(block) as usize;
        (Self { geometry, borrowed, block, first, panels, blocks: blocks as usize }, blocks)
    }

    /// The number of panels in a whole block if the borrower must check blocks before it keeps results; otherwise `None`.
    pub fn block_to_check(&self) -> Option<usize> {
        self.borrowed.checksums.map(|_| self.geometry.panels_per_block as usize)
    }

    /// Whether a block, counted within the span, has the right checksum.
    pub fn is_sound(&self, block: usize) -> bool {
        let start = block.saturating_mul(self.geometry.block_stride as usize);
        let length = self.geometry.block_len(self.block.saturating_add(block as u32)) as usize;
        let bytes = self.borrowed.bytes.get(start..start.saturating_add(length));
        bytes.is_some_and(|bytes| self.borrowed.is_sound(block, bytes))
    }

    /// The bytes of some panels, counted within the span: contiguous pieces, each with its range of panels, counted
    /// from `panels.start`.
    pub fn pieces(&self, panels: Range<usize>) -> impl Iterator<Item = (Range<usize>, &'a [u8])> + use<'a> {
        let per_block = (self.geometry.panels_per_block as usize).max(1);
        let (stride, size) = (self.geometry.block_stride as usize, self.geometry.panel_bytes as usize);
        let (bytes, start) = (self.borrowed.bytes, panels.start);
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

impl<N: Operations> Pass<'_, N> {
    /// The panel of the embedding that holds a token's row.
    pub fn embedding_panel(&mut self, token: u32) -> Result<&[u8], SourceError> {
        let geometry = self.model.layout.part(Part::Embedding);
        let panel = token / LANES as u32;
        let per_block = geometry.panels_per_block.max(1);
        let (block, within) = (panel / per_block, panel % per_block);
        let start = (within * geometry.panel_bytes) as usize;
        self.source.borrow_within(Section::Embedding, block, start..start + geometry.panel_bytes as usize)
    }
}

/// Calls `work` with all panels of a part, in as many spans as the source needs.
pub fn for_each_span<N: Operations>(
    p: &mut Pass<'_, N>,
    part: Part,
    mut work: impl FnMut(&Span<'_>),
) -> Result<(), SourceError> {
    spans(p, part, false, |span| {
        work(span);
        None
    })
}

/// As [`for_each_span`]. With `to_check`, `work` may have to check the blocks itself ([`Span::block_to_check`]). It returns the
/// first block that it found damaged, counted within the span.
#[inline(always)]
pub fn spans<N: Operations>(
    p: &mut Pass<'_, N>,
    part: Part,
    to_check: bool,
    mut work: impl FnMut(&Span<'_>) -> Option<u32>,
) -> Result<(), SourceError> {
    let (layout, section) = (p.model.layout, p.section);
    let geometry = layout.part(part);
    let mut blocks = geometry.block_range();
    while blocks.start < blocks.end {
        let borrowed = if to_check {
            p.source.borrow_unverified(section, blocks.clone())?
        } else {
            Borrowed { bytes: p.source.borrow(section, blocks.clone())?, checksums: None }
        };
        let (span, count) = Span::new(geometry, blocks.start, borrowed);
        if count == 0 {
            return Err(failed(layout, section, blocks.start, Fault::NoSuchBlock));
        }
        let (left_to_check, damaged) = (span.block_to_check().is_some(), work(&span));
        if left_to_check {
            p.source.mark_verified(section, blocks.start..blocks.start + damaged.unwrap_or(count).min(count));
        }
        if let Some(damaged) = damaged {
            return Err(failed(layout, section, blocks.start.saturating_add(damaged), Fault::Checksum));
        }
        blocks.start += count;
    }
    Ok(())
}

/// The error of a block.
fn failed(layout: &Layout, section: Section, block: u32, fault: Fault) -> SourceError {
    SourceError { section, block, offset: layout.block(section, block).map_or(0, |b| b.offset), fault }
}
