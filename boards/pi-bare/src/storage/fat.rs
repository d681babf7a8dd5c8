//! A FAT file system: files found through `embedded-sdmmc`, and where they lie.
//!
//! `embedded-sdmmc` reads a file block by block, with two calls for each. Here it finds the file, and the chain of its
//! clusters is read once, into extents that can be read with one command each.

use core::cell::RefCell;
use core::fmt;

use embedded_sdmmc::{
    Block, BlockCount, BlockDevice, BlockIdx, LfnBuffer, TimeSource, Timestamp, VolumeIdx, VolumeManager,
};

use crate::arena::{Arena, OutOfMemory};

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;
/// Pieces that a file may be in.
const MOST_EXTENTS: usize = 4096;
/// Blocks of the table that are read at once.
const TABLE_BLOCKS: usize = 8;
/// Bytes of a file's name that are kept.
pub const MAX_NAME: usize = 64;

/// A card, or what stands in for one: blocks of 512 bytes.
pub trait Disk {
    /// Why blocks could not be read.
    type Fault: Copy + fmt::Debug + fmt::Display;

    /// Reads whole blocks from block `first` on.
    ///
    /// # Errors
    /// If they can't be read, or are not all there.
    fn read(&mut self, first: u32, into: &mut [u8]) -> Result<(), Self::Fault>;

    /// Writes whole blocks from block `first` on, and waits until they are on the card.
    ///
    /// # Errors
    /// If they can't be written; some of them may be there then.
    fn write(&mut self, first: u32, from: &[u8]) -> Result<(), Self::Fault>;

    /// Blocks that there are.
    fn blocks(&self) -> u32;
}

/// Why a file could not be found or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError<F> {
    /// The card failed.
    Card(F),
    /// The first partition has no FAT file system, or one that is damaged.
    NoFileSystem(&'static str),
    /// The chain of a file's clusters is damaged.
    Chain {
        /// Where: the cluster that can't be one.
        cluster: u32,
    },
    /// The file is in more pieces than can be remembered.
    Fragmented,
    /// No memory for the list of pieces.
    Memory(OutOfMemory),
}

impl<F> From<OutOfMemory> for DiskError<F> {
    fn from(error: OutOfMemory) -> Self {
        Self::Memory(error)
    }
}

impl<F: fmt::Display> fmt::Display for DiskError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Card(fault) => fault.fmt(f),
            Self::NoFileSystem(why) => {
                write!(f, "the card has no FAT file system in its first partition ({why}): write it again")
            }
            Self::Chain { cluster } => {
                write!(
                    f,
                    "the card's file system is damaged (cluster {cluster:#x}): format it and copy again"
                )
            }
            Self::Fragmented => {
                f.write_str("the file is in too many pieces: format the card and copy the file first")
            }
            Self::Memory(error) => error.fmt(f),
        }
    }
}

/// A file of the root folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    name: [u8; MAX_NAME],
    name_len: usize,
    /// Bytes.
    pub size: u32,
    cluster: u32,
}

impl Entry {
    /// Its name, cut short where it is longer than [`MAX_NAME`].
    #[must_use]
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name[..self.name_len]).unwrap_or("?")
    }
}

/// Consecutive blocks of a file that are consecutive on the card too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first one's place in the file.
    at: u32,
    /// Its place on the card.
    first: u32,
    blocks: u32,
}

/// Where a file lies.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Bytes.
    pub size: u32,
    extents: &'a [Extent],
}

impl File<'_> {
    /// In how many pieces the file is.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.extents.len()
    }

    /// Reads whole blocks from `offset` on, a multiple of 512; past the file's end too, up to its last block.
    ///
    /// # Errors
    /// The card's; `None` where the file has no such blocks.
    pub fn read<D: Disk>(&self, disk: &mut D, offset: u64, into: &mut [u8]) -> Result<(), Option<D::Fault>> {
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let (first, bytes) = self.piece(at, rest.len()).ok_or(None)?;
            let (piece, others) = rest.split_at_mut(bytes);
            disk.read(first, piece)?;
            at += bytes as u64;
            rest = others;
        }
        Ok(())
    }

    /// Writes whole blocks from `offset` on, a multiple of 512, within the blocks that the file has.
    ///
    /// # Errors
    /// As [`File::read`].
    pub fn write<D: Disk>(&self, disk: &mut D, offset: u64, from: &[u8]) -> Result<(), Option<D::Fault>> {
        let mut at = offset;
        let mut rest = from;
        while !rest.is_empty() {
            let (first, bytes) = self.piece(at, rest.len()).ok_or(None)?;
            let (piece, others) = rest.split_at(bytes);
            disk.write(first, piece)?;
            at += bytes as u64;
            rest = others;
        }
        Ok(())
    }

    /// Where the blocks from `offset` on lie that lie together, and how many of `bytes` bytes they are.
    fn piece(&self, offset: u64, bytes: usize) -> Option<(u32, usize)> {
        let at = u32::try_from(offset / BLOCK as u64).ok()?;
        let after = self.extents.partition_point(|extent| extent.at <= at);
        let extent = self.extents.get(after.checked_sub(1)?)?;
        let within = at - extent.at;
        let blocks = extent.blocks.saturating_sub(within).min((bytes / BLOCK) as u32);
        (blocks > 0).then_some((extent.first + within, blocks as usize * BLOCK))
    }
}

#[cfg(test)]
impl File<'_> {
    /// Extents of a file that consists of these pieces: their first blocks and how many.
    pub(super) fn extents(pieces: &[(u32, u32)]) -> Vec<Extent> {
        let mut at = 0;
        let mut extent = |(first, blocks): &(u32, u32)| {
            at += blocks;
            Extent { at: at - blocks, first: *first, blocks: *blocks }
        };
        pieces.iter().map(&mut extent).collect()
    }

    pub(super) fn of(size: u32, extents: &[Extent]) -> File<'_> {
        File { size, extents }
    }
}

/// The numbers that a FAT file system follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    /// Where the table begins.
    table: u32,
    table_blocks: u32,
    /// Where cluster 2 begins.
    data: u32,
    cluster_blocks: u32,
    clusters: u32,
    /// An entry has 4 bytes, else 2.
    wide: bool,
}

impl Geometry {
    /// Checks the boot record and the first block of its first partition: `embedded-sdmmc` takes what they say as given.
    fn read<D: Disk>(disk: &mut D) -> Result<Self, DiskError<D::Fault>> {
        let mut block = [0; BLOCK];
        let none = DiskError::NoFileSystem;
        let u16_at =
            |block: &[u8; BLOCK], at: usize| u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
        let u32_at = |block: &[u8; BLOCK], at: usize| u16_at(block, at) | u16_at(block, at + 2) << 16;

        disk.read(0, &mut block).map_err(DiskError::Card)?;
        if u16_at(&block, 510) != 0xaa55 {
            return Err(none("there is no partition table"));
        }
        let (start, size) = (u32_at(&block, 446 + 8), u32_at(&block, 446 + 12));
        if start == 0 || start.checked_add(size).is_none_or(|end| end > disk.blocks()) || size == 0 {
            return Err(none("the partition is empty, or past the card's end"));
        }
        disk.read(start, &mut block).map_err(DiskError::Card)?;
        if u16_at(&block, 510) != 0xaa55 || u16_at(&block, 11) != BLOCK as u32 {
            return Err(none("it is not formatted"));
        }
        let cluster_blocks = u32::from(block[13]);
        let (reserved, tables) = (u16_at(&block, 14), u32::from(block[16]));
        let root_blocks = (u16_at(&block, 17) * 32).div_ceil(BLOCK as u32);
        let or = |short: u32, long: u32| if short == 0 { long } else { short };
        let table_blocks = or(u16_at(&block, 22), u32_at(&block, 36));
        let total = or(u16_at(&block, 19), u32_at(&block, 32));
        let before =
            u64::from(reserved) + u64::from(tables) * u64::from(table_blocks) + u64::from(root_blocks);
        if !cluster_blocks.is_power_of_two()
            || reserved == 0
            || tables == 0
            || before >= u64::from(total)
            || total > size
        {
            return Err(none("its sizes make no sense"));
        }
        let before = before as u32;
        let clusters = (total - before) / cluster_blocks;
        let wide = clusters >= 65_525;
        let entries = u64::from(table_blocks) * (BLOCK / if wide { 4 } else { 2 }) as u64;
        if clusters < 4085 || entries < u64::from(clusters) + 2 {
            return Err(none("FAT16 and FAT32 are known, and it is neither"));
        }
        Ok(Self {
            table: start + reserved,
            table_blocks,
            data: start + before,
            cluster_blocks,
            clusters,
            wide,
        })
    }
}

/// What `embedded-sdmmc` reads.
struct Blocks<'d, D>(RefCell<&'d mut D>);

impl<D: Disk> BlockDevice for Blocks<'_, D> {
    type Error = Option<D::Fault>;

    fn read(&self, blocks: &mut [Block], start: BlockIdx) -> Result<(), Self::Error> {
        let mut disk = self.0.borrow_mut();
        for (block, at) in blocks.iter_mut().zip(start.0..) {
            disk.read(at, &mut block.contents)?;
        }
        Ok(())
    }

    fn write(&self, _: &[Block], _: BlockIdx) -> Result<(), Self::Error> {
        // Nothing here opens a file for writing.
        Err(None)
    }

    fn num_blocks(&self) -> Result<BlockCount, Self::Error> {
        Ok(BlockCount(self.0.borrow().blocks()))
    }
}

/// There is no clock, and nothing is written.
struct NoTime;

impl TimeSource for NoTime {
    fn get_timestamp(&self) -> Timestamp {
        Timestamp {
            year_since_1970: 0,
            zero_indexed_month: 0,
            zero_indexed_day: 0,
            hours: 0,
            minutes: 0,
            seconds: 0,
        }
    }
}

/// The root folder of a card's first partition.
#[derive(Clone, Copy, Debug)]
pub struct Directory {
    geometry: Geometry,
}

impl Directory {
    /// Opens it.
    ///
    /// # Errors
    /// If the card fails or has no FAT file system.
    pub fn open<D: Disk>(disk: &mut D) -> Result<Self, DiskError<D::Fault>> {
        Ok(Self { geometry: Geometry::read(disk)? })
    }

    /// Calls `visit` with every file.
    ///
    /// # Errors
    /// If the card fails or the file system is damaged.
    pub fn for_each<D: Disk>(
        &self,
        disk: &mut D,
        mut visit: impl FnMut(&Entry),
    ) -> Result<(), DiskError<D::Fault>> {
        let fault = |error: embedded_sdmmc::Error<Option<D::Fault>>| match error {
            embedded_sdmmc::Error::DeviceError(Some(fault)) => DiskError::Card(fault),
            embedded_sdmmc::Error::FormatError(why) => DiskError::NoFileSystem(why),
            _ => DiskError::NoFileSystem("its root folder is damaged"),
        };
        // Places of entries are kept until the folder has been read: the entry's first cluster is read there.
        let mut next = 0;
        loop {
            let (mut seen, mut found) = (0, None);
            {
                let manager = VolumeManager::new(Blocks(RefCell::new(&mut *disk)), NoTime);
                let volume = manager.open_volume(VolumeIdx(0)).map_err(fault)?;
                let root = volume.open_root_dir().map_err(fault)?;
                let mut storage = [0; 256];
                let mut buffer = LfnBuffer::new(&mut storage);
                root.iterate_dir_lfn(&mut buffer, |entry, long| {
                    if !entry.attributes.is_directory() && !entry.attributes.is_volume() {
                        if seen == next {
                            found =
                                Some((named(entry, long), entry.entry_block.0, entry.entry_offset as usize));
                        }
                        seen += 1;
                    }
                })
                .map_err(fault)?;
            }
            let Some((mut entry, block, offset)) = found else { return Ok(()) };
            let mut bytes = [0; BLOCK];
            disk.read(block, &mut bytes).map_err(DiskError::Card)?;
            if let Some(raw) = bytes.get(offset..offset + 32) {
                let half = |at: usize| u32::from(u16::from_le_bytes([raw[at], raw[at + 1]]));
                entry.cluster = half(26) | if self.geometry.wide { half(20) << 16 } else { 0 };
            }
            visit(&entry);
            next += 1;
        }
    }

    /// Where a file lies.
    ///
    /// # Errors
    /// If the card fails, the chain of clusters is damaged, or the file is in too many pieces.
    pub fn locate<'a, D: Disk>(
        &self,
        disk: &mut D,
        entry: &Entry,
        arena: &mut Arena<'a>,
    ) -> Result<File<'a>, DiskError<D::Fault>> {
        let g = &self.geometry;
        let wanted = entry.size.div_ceil(BLOCK as u32).div_ceil(g.cluster_blocks);
        // As many as fit where memory is little.
        let fit = arena.largest() as usize / size_of::<Extent>();
        let pieces = (wanted as usize).min(MOST_EXTENTS).min(fit.max(1));
        let extents =
            arena.take("the list of a file's pieces", pieces, Extent { at: 0, first: 0, blocks: 0 })?;
        let (mut count, mut cluster) = (0, entry.cluster);
        let mut window = Window { bytes: [0; TABLE_BLOCKS * BLOCK], first: None };
        for i in 0..wanted {
            if cluster < 2 || cluster - 2 >= g.clusters {
                return Err(DiskError::Chain { cluster });
            }
            let (at, first) = (i * g.cluster_blocks, g.data + (cluster - 2) * g.cluster_blocks);
            match extents[..count].last_mut() {
                Some(last) if last.first + last.blocks == first => last.blocks += g.cluster_blocks,
                _ => {
                    *extents.get_mut(count).ok_or(DiskError::Fragmented)? =
                        Extent { at, first, blocks: g.cluster_blocks };
                    count += 1;
                }
            }
            cluster = window.next(disk, g, cluster).map_err(DiskError::Card)?;
        }
        Ok(File { size: entry.size, extents: &extents[..count] })
    }
}

/// An entry with its name; its cluster is not known yet.
fn named(entry: &embedded_sdmmc::DirEntry, long: Option<&str>) -> Entry {
    let mut name = Name { bytes: [0; MAX_NAME], len: 0 };
    // What does not fit is left out.
    let _ = match long {
        Some(long) => fmt::Write::write_str(&mut name, long),
        None => fmt::Write::write_fmt(&mut name, format_args!("{}", entry.name)),
    };
    Entry { name: name.bytes, name_len: name.len, size: entry.size, cluster: 0 }
}

struct Name {
    bytes: [u8; MAX_NAME],
    len: usize,
}

impl fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let to = self.bytes.get_mut(self.len..self.len + c.len_utf8()).ok_or(fmt::Error)?;
            c.encode_utf8(to);
            self.len += c.len_utf8();
        }
        Ok(())
    }
}

/// A part of the table, read together.
struct Window {
    bytes: [u8; TABLE_BLOCKS * BLOCK],
    first: Option<u32>,
}

impl Window {
    /// The cluster after `cluster`.
    fn next<D: Disk>(&mut self, disk: &mut D, g: &Geometry, cluster: u32) -> Result<u32, D::Fault> {
        let per_block = (BLOCK / if g.wide { 4 } else { 2 }) as u32;
        let block = cluster / per_block;
        let start = block - block % TABLE_BLOCKS as u32;
        if self.first != Some(start) {
            self.first = None;
            let blocks = (g.table_blocks - start).min(TABLE_BLOCKS as u32) as usize;
            disk.read(g.table + start, &mut self.bytes[..blocks * BLOCK])?;
            self.first = Some(start);
        }
        let at = (cluster - start * per_block) as usize;
        Ok(if g.wide {
            // The upper four bits mean nothing.
            self.bytes.as_chunks().0.get(at).map_or(0, |word| u32::from_le_bytes(*word) & 0x0fff_ffff)
        } else {
            self.bytes.as_chunks().0.get(at).map_or(0, |half| u32::from(u16::from_le_bytes(*half)))
        })
    }
}
