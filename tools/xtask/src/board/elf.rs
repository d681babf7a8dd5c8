//! What a program takes of its board's memories, and what of it is stored, from what its linker wrote.

use std::fs;
use std::path::Path;

use elapid_boards::Memory;

use crate::error::{Context, Error, Result};

/// Bytes of a program's instructions: its executable sections.
pub fn code(file: &Path) -> Result<u64> {
    read(file, |elf| elf.code())
}

/// Bytes of `memory` that the program in `file` takes: what is stored there and what is used there.
pub fn taken(file: &Path, memory: &Memory) -> Result<u64> {
    let inside = |at: u64| at >= memory.start && at < memory.start + memory.bytes;
    let segments = read(file, |elf| elf.segments())?;
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

/// The bytes of a program that are stored, and where, in order of their addresses.
pub fn stored(file: &Path) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut parts = read(file, |elf| {
        let segments = elf.segments()?;
        let part = |s: &Segment| {
            let end = s.offset.checked_add(s.stored)?;
            elf.bytes.get(s.offset as usize..end as usize).map(|bytes| (s.stored_at, bytes.to_vec()))
        };
        segments.iter().filter(|s| s.stored > 0).map(part).collect::<Option<Vec<_>>>()
    })?;
    parts.sort_by_key(|(at, _)| *at);
    Ok(parts)
}

fn read<T>(file: &Path, look: impl FnOnce(&Elf<'_>) -> Option<T>) -> Result<T> {
    let bytes = fs::read(file).context(|| format!("cannot read {}", file.display()))?;
    Elf::parse(&bytes)
        .and_then(|elf| look(&elf))
        .ok_or_else(|| Error::new(format!("{} is no little-endian ELF file, or cut short", file.display())))
}

/// A part of a program as it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Where it lies in the file.
    offset: u64,
    /// Where it is used, with what is zero.
    at: u64,
    bytes: u64,
    /// Where it is stored, without that.
    stored_at: u64,
    stored: u64,
}

/// A little-endian ELF file, of 32 or of 64 bits.
struct Elf<'a> {
    bytes: &'a [u8],
    wide: bool,
}

impl<'a> Elf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let wide = match bytes.get(..6)? {
            b"\x7fELF\x01\x01" => false,
            b"\x7fELF\x02\x01" => true,
            _ => return None,
        };
        Some(Self { bytes, wide })
    }

    fn half(&self, at: usize) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?)))
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }

    /// An address or a size: at `narrow` from `base` in a file of 32 bits, at `wide` in one of 64.
    fn long(&self, base: usize, narrow: usize, wide: usize) -> Option<u64> {
        if self.wide {
            Some(u64::from_le_bytes(*self.bytes.get(base + wide..)?.first_chunk()?))
        } else {
            self.word(base + narrow).map(u64::from)
        }
    }

    /// Where the entries of a table begin: its address, then the size and the number of its entries, each at a place for
    /// 32 and one for 64 bits.
    fn table(&self, at: [usize; 2], size: [usize; 2]) -> Option<impl Iterator<Item = usize> + use<>> {
        let size_at = size[usize::from(self.wide)];
        let (start, size, count) =
            (self.long(0, at[0], at[1])?, self.half(size_at)?, self.half(size_at + 2)?);
        let start = usize::try_from(start).ok().filter(|start| *start < self.bytes.len())?;
        Some((0..count).map(move |i| start + i * size))
    }

    /// The segments that are loaded.
    fn segments(&self) -> Option<Vec<Segment>> {
        const LOAD: u32 = 1;
        let mut segments = Vec::new();
        for at in self.table([28, 32], [42, 54])? {
            if self.word(at)? == LOAD {
                segments.push(Segment {
                    offset: self.long(at, 4, 8)?,
                    at: self.long(at, 8, 16)?,
                    bytes: self.long(at, 20, 40)?,
                    stored_at: self.long(at, 12, 24)?,
                    stored: self.long(at, 16, 32)?,
                });
            }
        }
        Some(segments)
    }

    fn code(&self) -> Option<u64> {
        const EXECUTABLE: u64 = 4;
        let mut sum = 0;
        for at in self.table([32, 40], [46, 58])? {
            if self.long(at, 8, 8)? & EXECUTABLE != 0 {
                sum += self.long(at, 20, 32)?;
            }
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part of a program: address, stored at, bytes to store, bytes that are zero behind them.
    type Part<'a> = (u64, u64, &'a [u8], u64);

    /// A file with these parts.
    fn elf(wide: bool, parts: &[Part<'_>]) -> Vec<u8> {
        let (header, entry) = if wide { (64, 56) } else { (52, 32) };
        let mut file = vec![0; header];
        file[..6].copy_from_slice(if wide { b"\x7fELF\x02\x01" } else { b"\x7fELF\x01\x01" });
        let (table, size) = if wide { (32, 54) } else { (28, 42) };
        file[table] = header as u8;
        file[size] = entry as u8;
        file[size + 2] = parts.len() as u8;
        let mut offset = (header + parts.len() * entry) as u64;
        for (at, stored_at, bytes, zeros) in parts {
            let stored = bytes.len() as u64;
            let fields = [offset, *at, *stored_at, stored, stored + zeros, 0];
            file.extend(1u32.to_le_bytes());
            if wide {
                file.extend([0; 4]);
                file.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
            } else {
                file.extend(fields.iter().flat_map(|field| (*field as u32).to_le_bytes()));
                file.extend([0; 4]);
            }
            offset += stored;
        }
        parts.iter().for_each(|(_, _, bytes, _)| file.extend(*bytes));
        file
    }

    #[test]
    fn code_data_and_zeros_are_told_apart() {
        let path = std::env::temp_dir().join(format!("elapid-elf-{}", std::process::id()));
        let flash = Memory { name: "flash", start: 0, bytes: 4096 };
        let ram = Memory { name: "RAM", start: 0x2000_0000, bytes: 4096 };
        let (code, data) = ([1; 1000], [2; 50]);
        let parts: [Part<'_>; 3] =
            [(0, 0, &code, 0), (0x2000_0000, 1000, &data, 0), (0x2000_0040, 1064, &[], 300)];
        for wide in [false, true] {
            let file = elf(wide, &parts);
            fs::write(&path, &file).unwrap();
            assert_eq!((taken(&path, &flash).unwrap(), taken(&path, &ram).unwrap()), (1050, 350));
            assert_eq!(stored(&path).unwrap(), [(0, code.to_vec()), (1000, data.to_vec())]);
            fs::write(&path, &file[..file.len() - 1]).unwrap();
            assert!(stored(&path).is_err());
        }
        fs::write(&path, "no program").unwrap();
        assert!(taken(&path, &flash).is_err());
        fs::remove_file(&path).unwrap();
    }
}
