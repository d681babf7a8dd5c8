//! Where weights come from: a memory map, memory-mapped flash, or a reader that streams blocks.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::format::{FormatError, Header, Layout, Section, checksum};
use crate::kernels::{MAX_TEAM, Solo, Team, share};

#[cfg(feature = "embedded-storage")]
mod flash;

#[cfg(feature = "embedded-storage")]
pub use flash::{FlashError, FlashSource, read_header};

/// Gives the blocks of a file, in order, as borrowed bytes.
///
/// The step doesn't know what kind of source it has. A source checks the blocks that it gives, or the borrower does, so that no
/// weight is used unverified.
pub trait LayerSource {
    /// Borrows blocks of a section, from `blocks.start` on: at least one, at most up to `blocks.end`.
    ///
    /// The bytes are those of the file: whole blocks with their padding. They stay valid until the next call.
    ///
    /// # Errors
    /// Says which block could not be read, and why. The call may be repeated.
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError>;

    /// Borrows blocks as [`LayerSource::borrow`] does, but the borrower may have to check each with [`Borrowed::is_sound`] before using it.
    /// So the core that uses a block checks it, and then has it in its caches. [`LayerSource::mark_verified`] reports sound blocks.
    ///
    /// # Errors
    /// As [`LayerSource::borrow`].
    fn borrow_unverified(
        &mut self,
        section: Section,
        blocks: Range<u32>,
    ) -> Result<Borrowed<'_>, SourceError> {
        Ok(Borrowed { bytes: self.borrow(section, blocks)?, checksums: None })
    }

    /// The borrower calls this when it has checked these blocks and found all of them sound.
    fn mark_verified(&mut self, _section: Section, _blocks: Range<u32>) {}

    /// Borrows some bytes of one block. A source that reads from storage may read less than the block.
    ///
    /// # Errors
    /// As [`LayerSource::borrow`]; [`Fault::NoSuchBlock`] if the block ends before the bytes do.
    fn borrow_within(
        &mut self,
        section: Section,
        block: u32,
        bytes: Range<usize>,
    ) -> Result<&[u8], SourceError> {
        let borrowed = self.borrow(section, block..block + 1)?;
        borrowed.get(bytes).ok_or(SourceError { section, block, offset: 0, fault: Fault::NoSuchBlock })
    }

    /// Whether no block of a section can fail any more. If so, a step keeps no copy of the state that it overwrites.
    fn is_verified(&self, _section: Section) -> bool {
        false
    }
}

/// Borrowed blocks.
#[derive(Clone, Copy, Debug)]
pub struct Borrowed<'a> {
    /// Whole blocks with their padding.
    pub bytes: &'a [u8],
    /// The stored checksums of these blocks, if the borrower must check them.
    pub checksums: Option<&'a [[u8; 4]]>,
}

impl Borrowed<'_> {
    /// Whether the bytes of a block, counted from the first borrowed one, have the right checksum.
    #[must_use]
    pub fn is_sound(&self, block: usize, bytes: &[u8]) -> bool {
        self.checksums.is_none_or(|stored| stored.get(block) == Some(&checksum(bytes).to_le_bytes()))
    }
}

/// A block that could not be borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// The section.
    pub section: Section,
    /// The block, counted within the section.
    pub block: u32,
    /// Its offset in the file.
    pub offset: u64,
    /// Why.
    pub fault: Fault,
}

/// Why a block could not be borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Its checksum does not match.
    Checksum,
    /// The section has no such block.
    NoSuchBlock,
    /// The storage failed, with its own code for the reason.
    Storage(i32),
    /// The storage ends before the block does.
    Truncated,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { section, block, offset, fault } = self;
        write!(f, "block {block} of section {section} (offset {offset}): ")?;
        match fault {
            Fault::Checksum => {
                f.write_str("damaged (its checksum does not match): copy the file again, or pack it again")
            }
            Fault::NoSuchBlock => f.write_str("there is no such block"),
            Fault::Storage(code) => write!(f, "the storage failed with code {code}"),
            Fault::Truncated => f.write_str("the file ends before it: it was cut short while in use"),
        }
    }
}

impl core::error::Error for SourceError {}

/// Bytes that each thread of a team checks before they are used: few enough to be still in a cache.
const CHECK_BYTES: u32 = 1 << 20;

/// A whole file in memory: a memory map, or memory-mapped flash.
///
/// Each block is checked when it is first borrowed, by the source or by the step ([`LayerSource::borrow_unverified`]), and marked in
/// `checked`, a bitmap that the caller gives.
pub struct SliceSource<'a> {
    file: &'a [u8],
    layout: &'a Layout,
    checksums: &'a [u8],
    checked: &'a mut [u32],
    team: &'a dyn Team,
}

impl fmt::Debug for SliceSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SliceSource").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl<'a> SliceSource<'a> {
    /// Words that `checked` must have for a file: one bit per block.
    #[must_use]
    pub const fn checked_words(layout: &Layout) -> usize {
        layout.block_count().div_ceil(32) as usize
    }

    /// A source over `file`, whose header is `header`. Blocks whose bit in `checked` is set, or that have no bit there, count as
    /// checked: with an empty bitmap the file is trusted.
    ///
    /// # Errors
    /// [`FormatError::Length`], or damage in the section table or the table of checksums.
    pub fn new(file: &'a [u8], header: &'a Header, checked: &'a mut [u32]) -> Result<Self, FormatError> {
        let source = Self::reopen(file, header, checked)?;
        header.check_table(file)?;
        header.check_checksums(source.checksums)?;
        Ok(source)
    }

    /// As [`SliceSource::new`], without checking the tables: for a file that [`SliceSource::new`] has accepted before.
    ///
    /// # Errors
    /// [`FormatError::Length`].
    pub fn reopen(file: &'a [u8], header: &'a Header, checked: &'a mut [u32]) -> Result<Self, FormatError> {
        let layout = header.layout();
        let have = file.len() as u64;
        if have != layout.file_bytes() {
            return Err(FormatError::Length { have, need: layout.file_bytes() });
        }
        let place = layout.section(Section::Checksums);
        let checksums =
            slice(file, place.offset..place.offset + place.length).ok_or(FormatError::ChecksumTable)?;
        Ok(Self { file, layout, checksums, checked, team: &Solo })
    }

    /// Lets a team check blocks. Unchecked blocks are given a few at a time, so that they are used while they are in the caches.
    #[must_use]
    pub fn checked_by(self, team: &'a dyn Team) -> Self {
        Self { team, ..self }
    }

    /// Forgets what was checked: every block is checked again when it is borrowed next.
    pub fn forget(&mut self) {
        self.checked.fill(0);
    }

    /// The place of a block's bit in the bitmap: a word, and its mask. `None` if the block needs no check: it was checked, or
    /// it is trusted.
    fn unchecked(&self, section: Section, block: u32) -> Option<(usize, u32)> {
        let place = self.layout.block(section, block)?;
        let (word, bit) = (place.checksum as usize / 32, 1 << (place.checksum % 32));
        (self.checked.get(word)? & bit == 0).then_some((word, bit))
    }

    /// The bytes of blocks, checked or not.
    fn bytes(&self, section: Section, blocks: Range<u32>) -> Result<&'a [u8], SourceError> {
        let missing = missing(section, blocks.start);
        self.layout.blocks(section, blocks).and_then(|range| slice(self.file, range)).ok_or(missing)
    }

    /// Checks one block.
    fn check(&self, section: Section, block: u32) -> Result<(), SourceError> {
        let error = |offset, fault| SourceError { section, block, offset, fault };
        let place = self.layout.block(section, block).ok_or(error(0, Fault::NoSuchBlock))?;
        let stored =
            self.checksums.as_chunks().0.get(place.checksum as usize).copied().map(u32::from_le_bytes);
        let bytes = slice(self.file, place.offset..place.offset + place.length);
        if bytes.map(checksum) == stored { Ok(()) } else { Err(error(place.offset, Fault::Checksum)) }
    }

    /// Checks those of some blocks that were not checked before.
    fn check_all(&mut self, section: Section, blocks: Range<u32>) -> Result<(), SourceError> {
        let damaged = AtomicU32::new(u32::MAX);
        let (this, len) = (&*self, blocks.len());
        share(self.team, len, self.layout.config().block_bytes as usize, (), |range, ()| {
            for block in range.map(|at| blocks.start + at as u32) {
                if this.unchecked(section, block).is_some() && this.check(section, block).is_err() {
                    damaged.fetch_min(block, Ordering::Relaxed);
                }
            }
        });
        let damaged = damaged.into_inner();
        self.mark_verified(section, blocks.start..blocks.end.min(damaged));
        if damaged == u32::MAX { Ok(()) } else { self.check(section, damaged) }
    }
}

impl LayerSource for SliceSource<'_> {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        let mut blocks = blocks;
        if blocks.clone().any(|block| self.unchecked(section, block).is_some()) {
            // Never 0 in a layout. `checked_div` keeps a panic out of the compiled code.
            let each = CHECK_BYTES.checked_div(self.layout.config().block_bytes).unwrap_or(1).max(1);
            let at_once = each.saturating_mul(self.team.size() as u32);
            blocks.end = blocks.end.min(blocks.start.saturating_add(at_once));
            self.check_all(section, blocks.clone())?;
        }
        self.bytes(section, blocks)
    }

    fn borrow_unverified(
        &mut self,
        section: Section,
        blocks: Range<u32>,
    ) -> Result<Borrowed<'_>, SourceError> {
        // Where a team can only have one thread, this code is left out.
        if MAX_TEAM == 1 {
            return Ok(Borrowed { bytes: self.borrow(section, blocks)?, checksums: None });
        }
        let bytes = self.bytes(section, blocks.clone())?;
        if blocks.clone().all(|block| self.unchecked(section, block).is_none()) {
            return Ok(Borrowed { bytes, checksums: None });
        }
        let first = self.layout.section(section).first_checksum;
        let numbers = blocks.start.saturating_add(first) as usize..blocks.end.saturating_add(first) as usize;
        let checksums = self.checksums.as_chunks().0.get(numbers).ok_or(missing(section, blocks.start))?;
        Ok(Borrowed { bytes, checksums: Some(checksums) })
    }

    fn mark_verified(&mut self, section: Section, blocks: Range<u32>) {
        for block in blocks {
            if let Some((word, bit)) = self.unchecked(section, block)
                && let Some(word) = self.checked.get_mut(word)
            {
                *word |= bit;
            }
        }
    }

    fn is_verified(&self, section: Section) -> bool {
        (0..self.layout.section(section).blocks).all(|block| self.unchecked(section, block).is_none())
    }
}

/// The error of a block that is not there.
fn missing(section: Section, block: u32) -> SourceError {
    SourceError { section, block, offset: 0, fault: Fault::NoSuchBlock }
}

/// A range of a file in memory, if both its ends exist.
#[must_use]
pub fn slice(file: &[u8], range: Range<u64>) -> Option<&[u8]> {
    file.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}
