//! Images of SD cards: a partition table and one FAT32 partition.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use elapid_files::Output;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use fscommon::{BufStream, StreamSlice};

use crate::error::{Context, Result};

const SECTOR: u64 = 512;
/// Where the partition begins, as partitioning programs have it.
const START: u64 = 1 << 20;
/// The least that FAT32 is fond of, and what QEMU takes: a card's size is a power of two.
const LEAST: u64 = 64 << 20;
/// What FAT32 can't do with less.
const LEAST_CLUSTERS: u64 = 65_525;

/// Something to put on the card.
pub struct Item<'a> {
    /// A path within the card; folders are made.
    pub name: &'a str,
    pub bytes: &'a [u8],
}

/// Writes an image with `items` to `file`.
pub fn write(file: &Path, items: &[Item<'_>]) -> Result<()> {
    let cannot = || format!("cannot write {}", file.display());
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).context(|| format!("cannot make {}", folder.display()))?;
    }
    fill(file, items).context(cannot)
}

/// Bytes of a card that holds `items`, with room to spare.
fn card_size(items: &[Item<'_>]) -> u64 {
    let all: u64 = items.iter().map(|item| item.bytes.len() as u64).sum();
    (START + all + all / 16).next_power_of_two().max(LEAST)
}

fn fill(file: &Path, items: &[Item<'_>]) -> io::Result<()> {
    let size = card_size(items);
    let mut image = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(file)?;
    image.set_len(size)?;
    image.write_all(&boot_record(size))?;

    let mut partition = BufStream::new(StreamSlice::new(image, START, size)?);
    // As large as there are clusters enough; up to 32 KiB, which everything reads.
    let mut cluster = SECTOR;
    while cluster < 32 << 10 && (size - START) / (2 * cluster) > LEAST_CLUSTERS + 1024 {
        cluster *= 2;
    }
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(cluster as u32)
        .volume_label(*b"ELAPID     ");
    fatfs::format_volume(&mut partition, options)?;
    partition.seek(SeekFrom::Start(0))?;
    let card = FileSystem::new(partition, FsOptions::new())?;
    for item in items {
        if let Some((folder, _)) = item.name.rsplit_once('/') {
            card.root_dir().create_dir(folder)?;
        }
        let mut to = card.root_dir().create_file(item.name)?;
        to.write_all(item.bytes)?;
        to.flush()?;
    }
    card.unmount()
}

/// The first block: one partition of type 0x0c (FAT32, addressed in blocks).
fn boot_record(size: u64) -> [u8; SECTOR as usize] {
    let mut block = [0; SECTOR as usize];
    let entry = &mut block[446..462];
    // Cylinders and heads that say nothing.
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = 0x0c;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&((START / SECTOR) as u32).to_le_bytes());
    entry[12..16].copy_from_slice(&(((size - START) / SECTOR) as u32).to_le_bytes());
    block[510..].copy_from_slice(&[0x55, 0xaa]);
    block
}

/// Copies an image to `device` (or another file), and waits until it is there.
pub fn copy(image: &Path, device: &Path) -> Result<()> {
    let copied = || -> io::Result<()> {
        let mut from = File::open(image)?;
        let to = Output::create(device)?;
        io::copy(&mut from, &mut to.file())?;
        to.finish()
    };
    copied().context(|| format!("cannot write {} to {}", image.display(), device.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn an_image_holds_what_was_put_in() {
        let file = std::env::temp_dir().join(format!("elapid-sd-{}.img", std::process::id()));
        let large = vec![7; 300_000];
        let items =
            [Item { name: "a long name.elp", bytes: &large }, Item { name: "overlays/x.dtbo", bytes: b"x" }];
        write(&file, &items).unwrap();
        let image = File::open(&file).unwrap();
        assert!(image.metadata().unwrap().len().is_power_of_two());
        let size = image.metadata().unwrap().len();
        let card = FileSystem::new(StreamSlice::new(image, START, size).unwrap(), FsOptions::new()).unwrap();
        assert_eq!(card.fat_type(), FatType::Fat32);
        for item in &items {
            let mut bytes = Vec::new();
            card.root_dir().open_file(item.name).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == item.bytes, "{}", item.name);
        }
        drop(card);
        let copy_of_it = file.with_extension("copy");
        copy(&file, &copy_of_it).unwrap();
        assert!(fs::read(&file).unwrap() == fs::read(&copy_of_it).unwrap());
        fs::remove_file(&file).unwrap();
        fs::remove_file(&copy_of_it).unwrap();
    }
}
