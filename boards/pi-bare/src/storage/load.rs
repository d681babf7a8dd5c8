//! A model file opened: its header and data checked, and as much of its weights read as memory holds.

use core::fmt;

use elapid_core::format::{Block, FormatError, Header, Layout, Section, checksum};

use super::fat::{BLOCK, Disk, File};
use super::plan::{Plan, is_weights};
use super::source::place_of;
use crate::arena::{Arena, OutOfMemory, Size};

/// Why a model can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError<F> {
    /// The card failed.
    Card(F),
    /// The file system says that the file ends before its size.
    Cut,
    /// It is not a packed model, or one that this program does not know.
    Format(FormatError),
    /// A block's checksum does not match.
    Damaged {
        /// Its section.
        section: Section,
        /// Which block.
        block: u32,
        /// Where in the file.
        offset: u64,
    },
    /// Something does not fit.
    Memory(OutOfMemory),
    /// The weights don't fit, not even a few blocks at a time.
    TooLarge {
        /// Bytes that are needed at least.
        need: u64,
        /// Bytes that there are.
        have: u64,
    },
}

impl<F: fmt::Display> fmt::Display for LoadError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Card(fault) => fault.fmt(f),
            Self::Cut => f.write_str("the file ends before its size: the card's file system is damaged"),
            Self::Format(error) => error.fmt(f),
            Self::Damaged { section, block, offset } => write!(
                f,
                "block {block} of section {section} (offset {offset}) is damaged (its checksum does not match): copy the \
                 file again, or pack it again"
            ),
            Self::Memory(error) => error.fmt(f),
            Self::TooLarge { need, have } => write!(
                f,
                "the model is too large for the memory: beside state and working memory its weights need {} at least, \
                 and {} are left",
                Size(*need),
                Size(*have)
            ),
        }
    }
}

impl<F> From<OutOfMemory> for LoadError<F> {
    fn from(error: OutOfMemory) -> Self {
        Self::Memory(error)
    }
}

impl<F> From<FormatError> for LoadError<F> {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

/// A model without its weights.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// The header.
    pub header: Header,
    /// Where the file lies.
    pub file: File<'a>,
    /// The table of checksums.
    pub checksums: &'a [u8],
    /// The compiled tokenizer; empty if the model has none, as all of these.
    pub tokenizer: &'a [u8],
    /// The chat template as a role table.
    pub roles: &'a [u8],
    /// The generation defaults.
    pub generation: &'a [u8],
}

/// The weights that are held, and memory for the others.
pub struct Weights<'a> {
    /// What is held and what is streamed.
    pub plan: Plan,
    /// Held sections; see [`super::WeightSource`].
    pub held: &'a [Option<&'a [u8]>],
    /// Buffers for blocks that are read ahead, one after the other.
    pub buffers: &'a mut [u8],
    /// A buffer for a block that can't be foreseen.
    pub urgent: Option<&'a mut [u8]>,
}

fn read<D: Disk>(
    file: &File<'_>,
    disk: &mut D,
    offset: u64,
    into: &mut [u8],
) -> Result<(), LoadError<D::Fault>> {
    file.read(disk, offset, into).map_err(|fault| fault.map_or(LoadError::Cut, LoadError::Card))
}

/// Bytes of the blocks of the card that `bytes` bytes are on.
const fn on_card(bytes: u64) -> usize {
    (bytes as usize).next_multiple_of(BLOCK)
}

impl<'a> Model<'a> {
    /// Opens a model file: everything but its weights is read and checked.
    ///
    /// # Errors
    /// What is wrong with the file, the card, or the size of memory.
    pub fn open<D: Disk>(
        disk: &mut D,
        file: File<'a>,
        arena: &mut Arena<'a>,
    ) -> Result<Self, LoadError<D::Fault>> {
        let mut first = [0; BLOCK];
        let size = u64::from(file.size);
        if size < Header::BYTES as u64 {
            return Err(FormatError::Short { have: size, need: Header::BYTES as u64 }.into());
        }
        read(&file, disk, 0, &mut first)?;
        let header = Header::parse(&first[..Header::BYTES])?;
        let layout = header.layout();
        if size != layout.file_bytes() {
            return Err(FormatError::Length { have: size, need: layout.file_bytes() }.into());
        }
        let table = arena.take("the section table", on_card(layout.header_bytes()), 0u8)?;
        read(&file, disk, 0, table)?;
        header.check_table(&table[..layout.header_bytes() as usize])?;

        let place = layout.section(Section::Checksums);
        let checksums = arena.take("the checksums", on_card(place.length), 0u8)?;
        read(&file, disk, place.offset, checksums)?;
        let checksums = &checksums[..place.length as usize];
        header.check_checksums(checksums)?;

        let mut model = Self { header, file, checksums, tokenizer: &[], roles: &[], generation: &[] };
        model.tokenizer = model.section(disk, Section::Tokenizer, "the tokenizer", arena)?;
        model.roles = model.section(disk, Section::RoleTable, "the role table", arena)?;
        model.generation = model.section(disk, Section::Generation, "the generation defaults", arena)?;
        Ok(model)
    }

    /// Where everything lies.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        self.header.layout()
    }

    /// Reads a section whole and checks its blocks.
    fn section<D: Disk>(
        &self,
        disk: &mut D,
        section: Section,
        what: &'static str,
        arena: &mut Arena<'a>,
    ) -> Result<&'a [u8], LoadError<D::Fault>> {
        let place = self.layout().section(section);
        let bytes = arena.take(what, on_card(place.length), 0u8)?;
        for index in 0..place.blocks {
            let Some(block) = self.layout().block(section, index) else { continue };
            let at = (block.offset - place.offset) as usize;
            self.read_block(disk, (section, index), &block, &mut bytes[at..at + on_card(block.length)])?;
        }
        Ok(&bytes[..place.length as usize])
    }

    /// Reads a block and checks it; one that does not match is read once more.
    fn read_block<D: Disk>(
        &self,
        disk: &mut D,
        (section, index): (Section, u32),
        block: &Block,
        into: &mut [u8],
    ) -> Result<(), LoadError<D::Fault>> {
        let stored = self.checksums.as_chunks::<4>().0.get(block.checksum as usize);
        for _ in 0..2 {
            read(&self.file, disk, block.offset, into)?;
            let found = checksum(&into[..block.length as usize]);
            if stored.is_some_and(|stored| u32::from_le_bytes(*stored) == found) {
                return Ok(());
            }
        }
        Err(LoadError::Damaged { section, block: index, offset: block.offset })
    }

    /// Reads as much of the weights as fits what is left of memory, and sets buffers for the rest aside. `progress` is told
    /// the bytes read so far, and all that will be.
    ///
    /// # Errors
    /// The card's, damage, or [`LoadError::TooLarge`].
    pub fn weights<D: Disk>(
        &self,
        disk: &mut D,
        arena: &mut Arena<'a>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Weights<'a>, LoadError<D::Fault>> {
        let layout = self.layout();
        let sections = layout.config().n_layer as usize + 3;
        let held = arena.take("the list of weights", sections, None::<&'a [u8]>)?;
        let largest = layout.sections().filter(|s| is_weights(*s)).map(|s| layout.section(s).length).max();
        let have = arena.usable_for(largest.unwrap_or(0));
        let plan = Plan::new(layout, have).map_err(|need| LoadError::TooLarge { need, have })?;
        let buffers = arena.take("reading ahead", plan.reading as usize, 0u8)?;
        let urgent = match plan.urgent {
            0 => None,
            bytes => Some(arena.take("reading the embedding", bytes as usize, 0u8)?),
        };
        let mut done = 0;
        progress(done, plan.held);
        for section in
            layout.sections().filter(|section| is_weights(*section) && plan.holds(layout, *section))
        {
            let bytes = self.section(disk, section, "weights", arena)?;
            done += bytes.len() as u64;
            progress(done, plan.held);
            if let Some(held) = place_of(layout, section).and_then(|place| held.get_mut(place)) {
                *held = Some(bytes);
            }
        }
        Ok(Weights { plan, held, buffers, urgent })
    }
}
