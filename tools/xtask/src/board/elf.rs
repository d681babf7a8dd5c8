//! What a program takes of its board's memories, from what its linker wrote.

use std::fs;
use std::path::Path;

use elapid_boards::Memory;

use crate::error::{Context, Error, Result};

/// Bytes of a program's instructions: its executable sections.
pub fn code(file: &Path) -> Result<u64> {
    const EXECUTABLE: u32 = 4;
    let bytes = fs::read(file).context(|| format!("cannot read {}", file.display()))?;
    let sum = || {
        if bytes.get(..6)? != b"\x7fELF\x01\x01" {
            return None;
        }
        let (table, size, count) = (word(&bytes, 32)? as usize, half(&bytes, 46)?, half(&bytes, 48)?);
        let mut sum = 0;
        for at in (0..count).map(|i| table + i * size) {
            if word(&bytes, at + 8)? & EXECUTABLE != 0 {
                sum += u64::from(word(&bytes, at + 20)?);
            }
        }
        Some(sum)
    };
    sum().ok_or_else(|| not_elf(file))
}

fn word(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?))
}

fn half(file: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(*file.get(at..)?.first_chunk()?)))
}

/// The bytes of a program that are stored, and where, in order of their addresses.
pub fn stored(file: &Path) -> Result<Vec<(u64, Vec<u8>)>> {
    let bytes = fs::read(file).context(|| format!("cannot read {}", file.display()))?;
    let parts = segments(&bytes).and_then(|segments| {
        let part = |s: &Segment| {
            let end = s.offset.checked_add(s.stored)?;
            bytes.get(s.offset as usize..end as usize).map(|bytes| (s.stored_at, bytes.to_vec()))
        };
        segments.iter().filter(|s| s.stored > 0).map(part).collect::<Option<Vec<_>>>()
    });
    let mut parts = parts.ok_or_else(|| not_elf(file))?;
    parts.sort_by_key(|(at, _)| *at);
    Ok(parts)
}

fn not_elf(file: &Path) -> Error {
    Error::new(format!("{} is no ELF file of 32 bits, or cut short", file.display()))
}

/// A part of a program as it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Where it is used, with what is zero.
    at: u64,
    bytes: u64,
    /// Where it is stored, without that.
    stored_at: u64,
    stored: u64,
    /// Where it lies in the file.
    offset: u64,
}

/// Bytes of `memory` that the program in `file` takes: what is stored there and what is used there.
pub fn taken(file: &Path, memory: &Memory) -> Result<u64> {
    let bytes = fs::read(file).context(|| format!("cannot read {}", file.display()))?;
    let segments = segments(&bytes).ok_or_else(|| not_elf(file))?;
    let inside = |at: u64| at >= memory.start && at < memory.start + memory.bytes;
    Ok(segments
        .iter()
        .map(|s| {
            // What runs where it is stored counts once.
            let used = if inside(s.at) { s.bytes } else { 0 };
            let stored = if inside(s.stored_at) && s.stored_at != s.at { s.stored } else { 0 };
            used + stored
        })
        .sum())
}

/// The segments that are loaded, of a little-endian ELF file of 32 bits.
fn segments(file: &[u8]) -> Option<Vec<Segment>> {
    const LOAD: u32 = 1;
    if file.get(..6)? != b"\x7fELF\x01\x01" {
        return None;
    }
    let (table, size, count) = (word(file, 28)? as usize, half(file, 42)?, half(file, 44)?);
    let mut segments = Vec::new();
    for i in 0..count {
        let at = table + i * size;
        if word(file, at)? == LOAD {
            let field = |n: usize| word(file, at + 4 * n).map(u64::from);
            let [offset, at, stored_at] = [field(1)?, field(2)?, field(3)?];
            segments.push(Segment { at, bytes: field(5)?, stored_at, stored: field(4)?, offset });
        }
    }
    Some(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these segments: address, stored at, stored bytes, bytes.
    fn elf(segments: &[[u32; 4]]) -> Vec<u8> {
        let mut file = vec![0; 52];
        file[..6].copy_from_slice(b"\x7fELF\x01\x01");
        file[28..32].copy_from_slice(&52u32.to_le_bytes());
        file[42..44].copy_from_slice(&32u16.to_le_bytes());
        file[44..46].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for [at, stored_at, stored, bytes] in segments {
            let words = [1, 0, *at, *stored_at, *stored, *bytes, 0, 0];
            file.extend(words.map(u32::to_le_bytes).concat());
        }
        file
    }

    #[test]
    fn code_data_and_zeros_are_told_apart() {
        let file = elf(&[[0, 0, 100, 1000], [0x2000_0000, 1000, 50, 50], [0x2000_0040, 1064, 0, 300]]);
        let path = std::env::temp_dir().join(format!("elapid-elf-{}", std::process::id()));
        fs::write(&path, file).unwrap();
        let flash = Memory { name: "flash", start: 0, bytes: 4096 };
        let ram = Memory { name: "RAM", start: 0x2000_0000, bytes: 4096 };
        assert_eq!((taken(&path, &flash).unwrap(), taken(&path, &ram).unwrap()), (1050, 350));
        // The file has what the segments store at its start; the third stores nothing.
        let stored = stored(&path).unwrap();
        let lengths: Vec<_> = stored.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
        assert_eq!(lengths, [(0, 100), (1000, 50)]);
        fs::write(&path, "no program").unwrap();
        assert!(taken(&path, &flash).is_err());
        fs::remove_file(&path).unwrap();
    }
}
