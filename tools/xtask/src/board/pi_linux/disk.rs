//! Disks of the emulated machine: an ext4 file system with models, whole, failing, or with a fault in a model.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::work;
use crate::board::fault;
use crate::error::{Context, Error, Result};
use crate::exec::{must, on_path};

/// A block of the file system, in bytes, and a sector of a drive.
const BLOCK: usize = 4096;
const SECTOR: u64 = 512;

/// An image.
pub(super) struct Disk {
    file: PathBuf,
}

impl Disk {
    /// Writes an image that holds `models` by their names.
    pub fn make(models: &[(&str, &Path)]) -> Result<Self> {
        let (file, content) = (work("model.ext4")?, work("content")?);
        for old in [&file, &content] {
            let _ = if old.is_dir() { fs::remove_dir_all(old) } else { fs::remove_file(old) };
        }
        fs::create_dir_all(&content).context(|| format!("cannot make {}", content.display()))?;
        let mut bytes = 64 << 20;
        for (name, model) in models {
            let to = content.join(name);
            // A second name where the file system allows, so that gigabytes are copied once, not twice.
            let put = fs::hard_link(model, &to).or_else(|_| fs::copy(model, &to).map(drop));
            put.context(|| format!("cannot put {} into {}", model.display(), content.display()))?;
            bytes += to.metadata().context(|| format!("cannot find {}", to.display()))?.len();
        }
        // What the file system keeps of its own grows with it.
        let kib = format!("{}k", (bytes + bytes / 64).div_ceil(1024));
        // Debian's path for users lacks its folder.
        let mut command = Command::new(on_path("mke2fs").unwrap_or_else(|| "/usr/sbin/mke2fs".into()));
        // A disk that nobody writes to needs no journal.
        command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-N", "64", "-m", "0"]);
        command.args(["-b", &BLOCK.to_string(), "-d"]);
        must(command.arg(&content).arg(&file).arg(kib))?;
        fs::remove_dir_all(&content).context(|| format!("cannot remove {}", content.display()))?;
        Ok(Self { file })
    }

    /// The emulator's options for a disk with this image, that nobody writes to.
    pub fn option(&self, name: &str) -> Vec<String> {
        let id = if name.is_empty() { "whole" } else { name };
        let file = self.file.display();
        options(id, &format!("driver=raw,file.driver=file,file.filename={file}"))
    }

    /// Those for one that has an error wherever `sector` is read, once or always.
    pub fn failing(&self, sector: u64, once: bool) -> Vec<String> {
        let (id, once) = if once { ("once", "on") } else { ("always", "off") };
        let error = format!(
            "file.inject-error.0.event=read_aio,file.inject-error.0.sector={sector},file.inject-error.0.once={once}"
        );
        let image = format!("file.image.driver=file,file.image.filename={}", self.file.display());
        options(id, &format!("driver=raw,file.driver=blkdebug,{image},{error}"))
    }

    /// A sector that holds weights of a model, in the last layers of it.
    pub fn sector_within(&self, model: &Path) -> Result<u64> {
        let bytes = fs::read(model).context(|| format!("cannot read {}", model.display()))?;
        let from = bytes.len() / 8 * 7 / BLOCK * BLOCK;
        let wanted = bytes.get(from..from + BLOCK).unwrap_or_default();
        let mut image = File::open(&self.file).context(|| format!("cannot open {}", self.file.display()))?;
        let (mut block, mut number) = (vec![0; BLOCK], 0);
        while image.read_exact(&mut block).is_ok() {
            if block == wanted {
                return Ok(number * BLOCK as u64 / SECTOR);
            }
            number += 1;
        }
        Err(Error::new(format!("{} does not hold {}", self.file.display(), model.display())))
    }
}

fn options(id: &str, image: &str) -> Vec<String> {
    let drive = format!("node-name={id},read-only=on,{image}");
    ["-blockdev", &drive, "-device", &format!("virtio-blk-pci,drive={id}")].map(str::to_owned).into()
}

/// A model with another weight, all checksums right, and one with a weight that is not as it was written.
pub(super) fn with_faults(model: &Path) -> Result<(PathBuf, PathBuf)> {
    let whole = fs::read(model).context(|| format!("cannot read {}", model.display()))?;
    let write = |name: &str, change: &dyn Fn(&mut [u8]) -> Result<()>| {
        let (mut bytes, file) = (whole.clone(), work(name)?);
        change(&mut bytes)?;
        fs::write(&file, bytes).context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    };
    let changed = write("changed.elp", &|bytes| fault::another_weight(bytes))?;
    let damaged = write("damaged.elp", &|bytes| fault::damaged_weight(bytes).map(drop))?;
    Ok((changed, damaged))
}
