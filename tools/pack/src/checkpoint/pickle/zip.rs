//! The directory of a zip file, as torch.save writes it: where the stored files in it lie.
//!
//! Only stored files can be read: torch.save compresses nothing, so a small file can't stand for a large one.

use std::collections::BTreeMap;

use super::invalid;
use crate::PackError;
use crate::checkpoint::entry::Shard;

/// The largest directory accepted, in bytes: some hundred for each tensor.
const DIRECTORY_LIMIT: u64 = 32 << 20;
/// What a directory may be followed by: the end record with the longest comment.
const TAIL: u64 = 22 + 0xffff;

/// A file in the zip file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// The offset of its header; its data lies behind.
    header: u64,
    /// Its size.
    pub(super) size: u64,
    compressed_size: u64,
    /// How it is compressed.
    method: u16,
}

/// The files by name.
pub(super) type Members = BTreeMap<String, Member>;

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_le_bytes(*bytes).into())
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes).into())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Reads the directory.
pub(super) fn directory(shard: &Shard) -> Result<Members, PackError> {
    let size = shard.size()?;
    let start = size.saturating_sub(TAIL);
    let mut tail = vec![0; (size - start) as usize];
    shard.read_at(&mut tail, start, size)?;
    let end = tail.windows(4).rposition(|bytes| bytes == b"PK\x05\x06").filter(|at| at + 22 <= tail.len());
    let Some(end) = end else {
        let path = shard.path.clone();
        return Err(PackError::CutZip { path, size });
    };
    let at = start + end as u64;
    let record = &tail[end..];
    let (mut count, mut length, mut place) = (u16_at(record, 10), u32_at(record, 12), u32_at(record, 16));
    // The zip64 end record, where one says where it is.
    let locator =
        end.checked_sub(20).and_then(|at| tail.get(at..end)).filter(|bytes| bytes.starts_with(b"PK\x06\x07"));
    if let Some(locator) = locator {
        let at = u64_at(locator, 8);
        let mut record = [0; 56];
        if at.checked_add(56).is_none_or(|end| end > size) {
            return Err(invalid(shard, at, "the zip file's end record is not there: is it damaged?"));
        }
        shard.read_at(&mut record, at, size)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(invalid(shard, at, "there is no end record of a zip file: is it damaged?"));
        }
        (count, length, place) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    }
    if length > DIRECTORY_LIMIT {
        let reason = format!("its directory claims {length} bytes, at most {DIRECTORY_LIMIT} are read");
        return Err(invalid(shard, at, reason));
    }
    if place.checked_add(length).is_none_or(|end| end > size) {
        return Err(invalid(shard, at, "its directory leaves the file: is it damaged?"));
    }
    let mut directory = vec![0; length as usize];
    shard.read_at(&mut directory, place, size)?;
    members(shard, &directory, place, count)
}

fn members(shard: &Shard, mut directory: &[u8], mut at: u64, count: u64) -> Result<Members, PackError> {
    let mut members = Members::new();
    for _ in 0..count {
        let damaged =
            |reason: &str| invalid(shard, at, format!("the zip file's directory {reason}: is it damaged?"));
        if directory.len() < 46 || !directory.starts_with(b"PK\x01\x02") {
            return Err(damaged("ends before its last file"));
        }
        let (name_length, extra_length) = (u16_at(directory, 28) as usize, u16_at(directory, 30) as usize);
        let whole = 46 + name_length + extra_length + u16_at(directory, 32) as usize;
        let (Some(name), Some(extra), Some(rest)) = (
            directory.get(46..46 + name_length),
            directory.get(46 + name_length..46 + name_length + extra_length),
            directory.get(whole..),
        ) else {
            return Err(damaged("ends within a file's record"));
        };
        let Ok(name) = str::from_utf8(name) else { return Err(damaged("has a name that is not UTF-8")) };
        if u16_at(directory, 8) & 1 != 0 {
            return Err(invalid(shard, at, format!("`{name}` is encrypted; torch.save does not do that")));
        }
        let mut sizes = [u32_at(directory, 24), u32_at(directory, 20), u32_at(directory, 42)];
        long_sizes(extra, &mut sizes);
        let [size, compressed_size, header] = sizes;
        let member = Member { header, size, compressed_size, method: u16_at(directory, 10) as u16 };
        if members.insert(name.to_owned(), member).is_some() {
            return Err(damaged(&format!("has `{name}` twice")));
        }
        (directory, at) = (rest, at + whole as u64);
    }
    Ok(members)
}

/// Replaces what is too long for 32 bits by what the zip64 field says.
fn long_sizes(mut extra: &[u8], sizes: &mut [u64; 3]) {
    while let Some(rest) = extra.get(4..) {
        let length = u16_at(extra, 2) as usize;
        if u16_at(extra, 0) == 1 {
            let mut fields = rest.get(..length).unwrap_or(rest).chunks_exact(8);
            for size in sizes.iter_mut().filter(|size| **size == u64::from(u32::MAX)) {
                if let Some(field) = fields.next() {
                    *size = u64_at(field, 0);
                }
            }
            return;
        }
        extra = rest.get(length..).unwrap_or_default();
    }
}

impl Member {
    /// Where its data starts.
    pub(super) fn data(&self, shard: &Shard, name: &str) -> Result<u64, PackError> {
        if self.method != 0 || self.size != self.compressed_size {
            return Err(invalid(
                shard,
                self.header,
                format!(
                    "`{name}` is compressed, which torch.save does not do: unpack it and save it again with torch.save, or as safetensors"
                ),
            ));
        }
        let size = shard.size()?;
        let damaged = || invalid(shard, self.header, format!("`{name}` leaves the file: is it damaged?"));
        let header_end = self.header.checked_add(30).filter(|end| *end <= size).ok_or_else(damaged)?;
        let mut header = [0; 30];
        shard.read_at(&mut header, self.header, size)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(invalid(
                shard,
                self.header,
                format!("there is no `{name}` here: is the file damaged?"),
            ));
        }
        let start = header_end + u16_at(&header, 26) + u16_at(&header, 28);
        match start.checked_add(self.size) {
            Some(end) if end <= size => Ok(start),
            _ => Err(damaged()),
        }
    }
}
