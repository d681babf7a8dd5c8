//! Weights behind a flash driver: read block by block into a buffer that the caller gives, such as a static one.

use core::fmt;
use core::ops::Range;

use crc32fast::Hasher;
use embedded_storage::ReadStorage;

use super::{Fault, LayerSource, SourceError};
use crate::format::{FormatError, Header, Layout, Section, checksum};

/// A packed file in storage that a driver reads, from `start` on.
///
/// Every block is checked at every read. More than one block is read at once where the buffer holds them.
#[derive(Debug)]
pub struct FlashSource<'a, S: ReadStorage> {
    storage: S,
    start: u32,
    layout: &'a Layout,
    buffer: &'a mut [u8],
    code: fn(&S::Error) -> i32,
}

/// Why storage can't be used as a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlashError<E> {
    /// It does not hold the file that the header is of.
    Format(FormatError),
    /// It could not be read.
    Storage(E),
    /// The buffer is too small for a block, or for the section table.
    Buffer {
        /// Bytes it has.
        have: usize,
        /// Bytes it needs.
        need: u64,
    },
    /// The file is larger than the storage, or than a driver's addresses reach.
    Capacity {
        /// Bytes from the start of the file.
        have: u64,
        /// Bytes of the file.
        need: u64,
    },
}

impl<E: fmt::Debug> fmt::Display for FlashError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(error) => error.fmt(f),
            Self::Storage(error) => write!(f, "the storage failed: {error:?}"),
            Self::Buffer { have, need } => {
                write!(f, "the buffer has {have} bytes and needs {need}: pack with a smaller --block")
            }
            Self::Capacity { have, need } => {
                write!(f, "the file has {need} bytes and the storage {have}: pack with a smaller type")
            }
        }
    }
}

impl<E: fmt::Debug> core::error::Error for FlashError<E> {}

/// Reads the header of a file that lies in `storage` from `start` on.
///
/// # Errors
/// [`FlashError::Storage`] or [`FlashError::Format`].
pub fn read_header<S: ReadStorage>(storage: &mut S, start: u32) -> Result<Header, FlashError<S::Error>> {
    let mut bytes = [0; Header::BYTES];
    storage.read(start, &mut bytes).map_err(FlashError::Storage)?;
    Header::parse(&bytes).map_err(FlashError::Format)
}

impl<'a, S: ReadStorage> FlashSource<'a, S> {
    /// A source over the file whose header is `header`. `buffer` holds the largest block at least
    /// ([`block_bytes`](crate::format::Fields::block_bytes)); `code` makes a number of a driver's errors, for [`Fault::Storage`].
    ///
    /// # Errors
    /// If the file does not fit the storage or the buffer, can't be read, or its tables are damaged.
    pub fn new(
        mut storage: S,
        start: u32,
        header: &'a Header,
        buffer: &'a mut [u8],
        code: fn(&S::Error) -> i32,
    ) -> Result<Self, FlashError<S::Error>> {
        let layout = header.layout();
        let have = (storage.capacity() as u64).min(1 << 32).saturating_sub(u64::from(start));
        if have < layout.file_bytes() {
            return Err(FlashError::Capacity { have, need: layout.file_bytes() });
        }
        let need = layout.header_bytes().max(u64::from(layout.config().block_bytes));
        if (buffer.len() as u64) < need {
            return Err(FlashError::Buffer { have: buffer.len(), need });
        }
        let table = &mut buffer[..layout.header_bytes() as usize];
        storage.read(start, table).map_err(FlashError::Storage)?;
        header.check_table(table).map_err(FlashError::Format)?;

        let place = layout.section(Section::Checksums);
        let mut hasher = Hasher::new();
        let mut at = 0;
        while at < place.length {
            let part = &mut buffer[..(place.length - at).min(need) as usize];
            storage.read(start + (place.offset + at) as u32, part).map_err(FlashError::Storage)?;
            hasher.update(part);
            at += part.len() as u64;
        }
        if hasher.finalize() != header.checksums_checksum() {
            return Err(FlashError::Format(FormatError::ChecksumTable));
        }
        Ok(Self { storage, start, layout, buffer, code })
    }

    /// Gives the storage back.
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// The stored checksum of a block.
    fn stored(&mut self, number: u32) -> Result<u32, Fault> {
        let table = self.layout.section(Section::Checksums).offset;
        let mut bytes = [0; 4];
        let place = self.start + (table + 4 * u64::from(number)) as u32;
        self.storage.read(place, &mut bytes).map_err(|error| Fault::Storage((self.code)(&error)))?;
        Ok(u32::from_le_bytes(bytes))
    }
}

impl<S: ReadStorage> LayerSource for FlashSource<'_, S> {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        let error = |block, offset, fault| SourceError { section, block, offset, fault };
        let missing = error(blocks.start, 0, Fault::NoSuchBlock);
        let first = self.layout.block(section, blocks.start).ok_or(missing)?;
        // As many as the buffer holds: blocks of a section lie one after the other.
        let (mut end, mut length) = (blocks.start, 0);
        while let Some(block) = self.layout.block(section, end).filter(|_| end < blocks.end) {
            let with = (block.offset + block.length - first.offset) as usize;
            if with > self.buffer.len() {
                break;
            }
            (end, length) = (end + 1, with);
        }
        if length == 0 {
            return Err(missing);
        }
        let read = self.storage.read(self.start + first.offset as u32, &mut self.buffer[..length]);
        read.map_err(|e| error(blocks.start, first.offset, Fault::Storage((self.code)(&e))))?;
        for block in blocks.start..end {
            let place = self.layout.block(section, block).ok_or(missing)?;
            let stored = self.stored(place.checksum).map_err(|fault| error(block, place.offset, fault))?;
            let from = (place.offset - first.offset) as usize;
            if checksum(&self.buffer[from..from + place.length as usize]) != stored {
                return Err(error(block, place.offset, Fault::Checksum));
            }
        }
        Ok(&self.buffer[..length])
    }
}
