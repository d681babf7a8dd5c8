//! Whether a file is as it was written.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use elapid_core::format::{Section, checksum};
use elapid_core::source::slice;

use crate::Error;
use crate::model::Model;

/// A place of a file that is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// A block does not have its checksum.
    Block {
        /// The section.
        section: Section,
        /// The block, counted within the section.
        block: u32,
        /// Bytes from the start of the file.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// A byte between two sections is not 0.
    Padding {
        /// The section after which it comes; `None` for the header.
        after: Option<Section>,
        /// Bytes from the start of the file.
        offset: u64,
    },
}

impl Damage {
    fn offset(&self) -> u64 {
        match self {
            Self::Block { offset, .. } | Self::Padding { offset, .. } => *offset,
        }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block { section, block, offset, length } => {
                write!(f, "damaged: block {block} of section {section} (offset {offset}, {length} bytes)")
            }
            Self::Padding { after: Some(section), offset } => {
                write!(f, "damaged: the padding after section {section} (offset {offset}) is not 0")
            }
            Self::Padding { after: None, offset } => {
                write!(f, "damaged: the padding after the header (offset {offset}) is not 0")
            }
        }
    }
}

/// Checks the checksum of every block, on all threads of the model, and that what lies between sections is 0. Header,
/// section table and the table of checksums were checked when the model was opened.
///
/// The model must have been opened without a cap: a file that is streamed is not there to be looked at as a whole.
///
/// Returns what is damaged, in the order of the file. `watch` is told of the bytes of every block, by any thread.
///
/// # Errors
/// [`Error::Interrupted`] if `watch` breaks.
pub fn verify(model: &Model, watch: &(dyn Fn(u64) -> ControlFlow<()> + Sync)) -> Result<Vec<Damage>, Error> {
    let (layout, file) = (model.layout(), model.bytes().unwrap_or_default());
    let table = layout.section(Section::Checksums);
    let sums = slice(file, table.offset..table.offset + table.length).unwrap_or_default().as_chunks::<4>().0;
    let blocks: Vec<(Section, u32)> =
        layout.sections().flat_map(|s| (0..layout.section(s).blocks).map(move |block| (s, block))).collect();

    let (next, interrupted) = (AtomicUsize::new(0), AtomicBool::new(false));
    let damaged = Mutex::new(paddings(model));
    model.team().run(&|_| {
        while !interrupted.load(Ordering::Relaxed) {
            let Some(&(section, block)) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let Some(place) = layout.block(section, block) else { continue };
            let sum = checksum(slice(file, place.offset..place.offset + place.length).unwrap_or_default());
            if sums.get(place.checksum as usize).copied().map(u32::from_le_bytes) != Some(sum) {
                let damage = Damage::Block { section, block, offset: place.offset, length: place.length };
                damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(damage);
            }
            if watch(place.length).is_break() {
                interrupted.store(true, Ordering::Relaxed);
            }
        }
    });
    if interrupted.into_inner() {
        return Err(Error::Interrupted);
    }
    let mut damaged = damaged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    damaged.sort_by_key(Damage::offset);
    Ok(damaged)
}

/// The first byte that is not 0 of each stretch between sections.
fn paddings(model: &Model) -> Vec<Damage> {
    let (layout, file) = (model.layout(), model.bytes().unwrap_or_default());
    let mut damaged = Vec::new();
    let mut check = |after, start, end| {
        if let Some(at) = slice(file, start..end).unwrap_or_default().iter().position(|byte| *byte != 0) {
            damaged.push(Damage::Padding { after, offset: start + at as u64 });
        }
    };
    let (mut last, mut end) = (None, layout.header_bytes());
    for section in layout.sections() {
        let place = layout.section(section);
        if place.length > 0 {
            check(last, end, place.offset);
            (last, end) = (Some(section), place.offset + place.length);
        }
    }
    check(last, end, layout.file_bytes());
    damaged
}
