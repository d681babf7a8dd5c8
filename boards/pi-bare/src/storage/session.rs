//! A session in a file of the card that has room for two: each is written over the older one, its header last. If the power fails, the
//! newer one that is whole is there.
//!
//! The file is made beforehand, of any contents, because the file system is only read. Each half of it, in whole blocks, is a slot: a
//! block with the header, then the snapshot (`core::model::snapshot`).
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `ELAPSLOT` |
//! | 8..12 | version, u32: 1 |
//! | 12 | 1 if a chat has begun; the bytes up to 16 are 0 |
//! | 16..24 | sequence number, u64: the newer slot has the larger one |
//! | 24..32 | bytes of the snapshot, u64 |
//! | 32..36 | CRC-32 of the snapshot |
//! | 36..40 | CRC-32 of bytes 0..36 |

use core::fmt;

use elapid_core::format::checksum;
use elapid_core::model::snapshot::{Sink, SnapshotError, Source};
use elapid_core::numbers::checksum::Crc32;

use super::fat::{BLOCK, Disk, File};

/// The file's name.
pub const SESSION_FILE: &str = "ELAPID.SES";
const MAGIC: [u8; 8] = *b"ELAPSLOT";
const VERSION: u32 = 1;
/// Bytes of a header.
const HEAD: usize = 40;
/// Bytes that are read or written at once.
const BUFFER: usize = 8 * BLOCK;

/// Why a session could not be saved or loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError<F> {
    /// The card failed.
    Card(F),
    /// The file system says that the file ends before its size.
    Cut,
    /// The card has no such file.
    NoFile {
        /// Bytes that it needs.
        need: u64,
    },
    /// The file is too small.
    Small {
        /// Bytes that it has.
        have: u64,
        /// Bytes that it needs.
        need: u64,
    },
    /// No slot has a session that is whole.
    Empty,
    /// Nothing was said yet.
    Nothing,
    /// A snapshot that can't be used.
    Snapshot(SnapshotError<core::convert::Infallible>),
}

impl<F: fmt::Display> fmt::Display for SlotError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Card(fault) => fault.fmt(f),
            Self::Cut => write!(f, "{SESSION_FILE} ends before its size: the card's file system is damaged"),
            Self::NoFile { need } => write!(
                f,
                "the card has no file {SESSION_FILE}: put one of {need} bytes on it, whatever it contains"
            ),
            Self::Small { have, need } => write!(
                f,
                "{SESSION_FILE} has {have} bytes, and two sessions of this model need {need}: put a larger file on the card"
            ),
            Self::Empty => write!(f, "{SESSION_FILE} has no session: /save writes one"),
            Self::Nothing => f.write_str("there is no chat to save: say something first"),
            Self::Snapshot(error) => error.fmt(f),
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whether a chat has begun.
    pub begun: bool,
    sequence: u64,
    bytes: u64,
    sum: u32,
    /// Which of the two.
    index: u64,
}

impl Slot {
    fn emit(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[0..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12] = u8::from(self.begun);
        block[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        block[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        block[32..36].copy_from_slice(&self.sum.to_le_bytes());
        let sum = checksum(&block[..HEAD - 4]);
        block[HEAD - 4..HEAD].copy_from_slice(&sum.to_le_bytes());
        block
    }

    fn parse(block: &[u8; BLOCK], index: u64) -> Option<Self> {
        let word = |at: usize| {
            let bytes = block.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let slot =
            Self { begun: block[12] == 1, sequence: word(16), bytes: word(24), sum: word(32) as u32, index };
        (slot.emit() == *block).then_some(slot)
    }
}

/// The file with its two slots.
pub struct Slots<'f> {
    file: &'f File<'f>,
    /// Bytes of one.
    each: u64,
}

fn fault<F>(fault: Option<F>) -> SlotError<F> {
    fault.map_or(SlotError::Cut, SlotError::Card)
}

impl<'f> Slots<'f> {
    /// Bytes of a file for two snapshots of `bytes` bytes.
    #[must_use]
    pub const fn file_bytes(bytes: u64) -> u64 {
        2 * (BLOCK as u64 + bytes.next_multiple_of(BLOCK as u64))
    }

    /// The slots of a file, each for a snapshot of `bytes` bytes.
    ///
    /// # Errors
    /// [`SlotError::Small`].
    pub fn new<F>(file: &'f File<'f>, bytes: u64) -> Result<Self, SlotError<F>> {
        let (have, need) = (u64::from(file.size), Self::file_bytes(bytes));
        if have < need {
            return Err(SlotError::Small { have, need });
        }
        let blocks = have / 2 / BLOCK as u64;
        Ok(Self { file, each: blocks * BLOCK as u64 })
    }

    /// The newest session that is whole.
    ///
    /// # Errors
    /// The card's.
    pub fn newest<D: Disk>(&self, disk: &mut D) -> Result<Option<Slot>, SlotError<D::Fault>> {
        let mut slots = [None; 2];
        for (slot, index) in slots.iter_mut().zip(0..) {
            let mut block = [0; BLOCK];
            self.file.read(disk, index * self.each, &mut block).map_err(fault)?;
            *slot = Slot::parse(&block, index).filter(|slot| slot.bytes <= self.each - BLOCK as u64);
        }
        slots.sort_unstable_by_key(|slot| slot.map(|slot| core::cmp::Reverse(slot.sequence)));
        for slot in slots.into_iter().flatten() {
            let mut source = self.source(disk, &slot);
            let (mut sum, mut left) = (Crc32::default(), slot.bytes);
            while left > 0 {
                let mut bytes = [0; BLOCK];
                let bytes = &mut bytes[..left.min(BLOCK as u64) as usize];
                source.read(bytes)?;
                sum.update(bytes);
                left -= bytes.len() as u64;
            }
            if sum.value() == slot.sum {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// The bytes of a slot's snapshot.
    pub fn source<'d, D: Disk>(&'d self, disk: &'d mut D, slot: &Slot) -> Reader<'d, D> {
        let at = slot.index * self.each + BLOCK as u64;
        Reader { file: self.file, disk, at, left: slot.bytes, buffer: [0; BUFFER], given: BUFFER }
    }

    /// Writes a snapshot of `bytes` bytes over the older session. Until all of it is there, the newer one is.
    ///
    /// # Errors
    /// The card's, or what `snapshot` returns.
    pub fn save<D: Disk>(
        &self,
        disk: &mut D,
        bytes: u64,
        begun: bool,
        snapshot: impl FnOnce(&mut Writer<'_, D>) -> Result<(), SlotError<D::Fault>>,
    ) -> Result<(), SlotError<D::Fault>> {
        let newest = self.newest(disk)?;
        let index = newest.map_or(0, |slot| 1 - slot.index);
        let start = index * self.each;
        // What is overwritten is a session no more.
        self.file.write(disk, start, &[0; BLOCK]).map_err(fault)?;
        let mut writer = Writer {
            file: self.file,
            disk,
            at: start + BLOCK as u64,
            buffer: [0; BUFFER],
            filled: 0,
            sum: Crc32::default(),
        };
        snapshot(&mut writer)?;
        writer.flush()?;
        let sum = writer.sum.value();
        let sequence = newest.map_or(1, |slot| slot.sequence.wrapping_add(1));
        let slot = Slot { begun, sequence, bytes, sum, index };
        self.file.write(disk, start, &slot.emit()).map_err(fault)
    }
}

/// A snapshot on its way from the card.
pub struct Reader<'d, D> {
    file: &'d File<'d>,
    disk: &'d mut D,
    at: u64,
    /// Bytes that were not given, those in the buffer too.
    left: u64,
    buffer: [u8; BUFFER],
    /// Bytes of the buffer that were given.
    given: usize,
}

impl<D: Disk> Source for Reader<'_, D> {
    type Error = SlotError<D::Fault>;

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(SlotError::Empty)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.given == BUFFER {
                // The slot's last buffer may be the file's last blocks.
                let left = (self.left + rest.len() as u64).min(BUFFER as u64) as usize;
                let blocks = left.next_multiple_of(BLOCK);
                self.file.read(self.disk, self.at, &mut self.buffer[..blocks]).map_err(fault)?;
                (self.at, self.given) = (self.at + blocks as u64, 0);
            }
            let count = rest.len().min(BUFFER - self.given);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&self.buffer[self.given..self.given + count]);
            (self.given, rest) = (self.given + count, later);
        }
        Ok(())
    }
}

/// A snapshot on its way to the card.
pub struct Writer<'d, D> {
    file: &'d File<'d>,
    disk: &'d mut D,
    at: u64,
    buffer: [u8; BUFFER],
    filled: usize,
    sum: Crc32,
}

impl<D: Disk> Writer<'_, D> {
    fn flush(&mut self) -> Result<(), SlotError<D::Fault>> {
        let bytes = self.filled.next_multiple_of(BLOCK);
        self.buffer[self.filled..bytes].fill(0);
        self.file.write(self.disk, self.at, &self.buffer[..bytes]).map_err(fault)?;
        (self.at, self.filled) = (self.at + bytes as u64, 0);
        Ok(())
    }
}

impl<D: Disk> Sink for Writer<'_, D> {
    type Error = SlotError<D::Fault>;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.sum.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BUFFER - self.filled));
            self.buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            (self.filled, rest) = (self.filled + now.len(), later);
            if self.filled == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
