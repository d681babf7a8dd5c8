//! Sources of layers for calibration: a checkpoint as it is, and the packed file as far as it is written.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use elapid_core::format::{Layout, Part, Section};
use elapid_core::source::{Fault, LayerSource, SourceError};

use crate::PackError;
use crate::block::{Job, Scratch, make_block};
use crate::weights::Weights;

/// Packs a checkpoint's blocks when they are asked for, one at a time.
pub(super) struct CheckpointSource<'a> {
    layout: &'a Layout,
    weights: &'a dyn Weights,
    scratch: Scratch,
    /// Why a block could not be borrowed.
    pub(super) failure: Option<PackError>,
}

impl<'a> CheckpointSource<'a> {
    pub(super) fn new(layout: &'a Layout, weights: &'a dyn Weights) -> Self {
        Self { layout, weights, scratch: Scratch::default(), failure: None }
    }

    /// A block of a part.
    pub(super) fn block(&mut self, section: Section, part: Part, block: u32) -> Result<&[u8], PackError> {
        make_block(
            self.layout,
            self.weights,
            &Job { section, part, block },
            None,
            &|_| true,
            &mut self.scratch,
        )?;
        Ok(&self.scratch.block)
    }
}

impl LayerSource for CheckpointSource<'_> {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        let error = SourceError { section, block: blocks.start, offset: 0, fault: Fault::NoSuchBlock };
        let holds = |part: &&Part| self.layout.part(**part).block_range().contains(&blocks.start);
        let part = *Part::LAYER.iter().find(holds).ok_or(error)?;
        if let Err(failure) = self.block(section, part, blocks.start) {
            self.failure = Some(failure);
            return Err(SourceError { fault: Fault::Storage(0), ..error });
        }
        Ok(&self.scratch.block)
    }
}

/// Reads back what was written, a block at a time.
pub(super) struct FileSource<'a> {
    pub(super) layout: &'a Layout,
    pub(super) file: &'a File,
    pub(super) block: Vec<u8>,
}

impl LayerSource for FileSource<'_> {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        let error = SourceError { section, block: blocks.start, offset: 0, fault: Fault::NoSuchBlock };
        let place = self.layout.block(section, blocks.start).ok_or(error)?;
        self.block.resize(place.length as usize, 0);
        let read = self.file.read_exact_at(&mut self.block, place.offset);
        read.map_err(|e| {
            let code = e.raw_os_error().unwrap_or(0);
            SourceError { offset: place.offset, fault: Fault::Storage(code), ..error }
        })?;
        Ok(&self.block)
    }
}
