//! Where a checkpoint's files lie: a folder here, or anything else that lists files and reads ranges of them.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use elapid_files::open_regular;

use crate::PackError;

/// Files by name, which may be a path below the place.
pub trait Place: Debug + Send + Sync {
    /// How messages call a file; the empty name is the place itself.
    fn path(&self, name: &str) -> PathBuf;

    /// The names of the files directly in the place, sorted.
    ///
    /// # Errors
    /// If they can't be listed.
    fn list(&self) -> Result<Vec<String>, PackError>;

    /// Whether there is something of this name.
    ///
    /// # Errors
    /// If that can't be told, or what should be there is not: a link that leads nowhere.
    fn has(&self, name: &str) -> Result<bool, PackError>;

    /// Opens a file; `None` if there is none.
    ///
    /// # Errors
    /// As [`Place::has`], and if it is no file or can't be opened.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Ranges>>, PackError>;
}

/// An open file that is read at positions, by several threads at once.
pub trait Ranges: Debug + Send + Sync {
    /// The size in bytes.
    ///
    /// # Errors
    /// If it can't be told.
    fn size(&self) -> io::Result<u64>;

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before, and whatever else keeps it from being read.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Says that this range will be read soon; only a hint.
    fn expect(&self, _offset: u64, _length: u64) {}

    /// What tells this content from any other that the file had or will have, if something does.
    fn version(&self) -> Option<String> {
        None
    }
}

/// When a file was changed last, in nanoseconds since 1970, if the system says so.
pub(super) fn changed(about: &fs::Metadata) -> Option<u128> {
    Some(about.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos())
}

impl Ranges for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    #[cfg(target_os = "linux")]
    fn expect(&self, offset: u64, length: u64) {
        let advice = rustix::fs::Advice::WillNeed;
        // A file system that takes no hints is no worse off.
        let _ = rustix::fs::fadvise(self, offset, std::num::NonZero::new(length), advice);
    }

    fn version(&self) -> Option<String> {
        let about = self.metadata().ok()?;
        Some(format!("{} {}", about.len(), changed(&about)?))
    }
}

/// A folder of the file system.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// The folder that a file lies in.
    #[must_use]
    pub fn of(file: &Path) -> Self {
        match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => Self(parent.to_path_buf()),
            _ => Self(PathBuf::from(".")),
        }
    }
}

impl Place for Folder {
    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.0.clone() } else { self.0.join(name) }
    }

    fn list(&self) -> Result<Vec<String>, PackError> {
        let entries = fs::read_dir(&self.0).map_err(PackError::io(&self.0))?;
        // What is not UTF-8 is none of a checkpoint's names.
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    fn has(&self, name: &str) -> Result<bool, PackError> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::read_link(&path) {
                Ok(target) => Err(PackError::DanglingLink { path, target }),
                Err(_) => Ok(false),
            },
            Err(source) => Err(PackError::Io { path, source }),
        }
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Ranges>>, PackError> {
        if !self.has(name)? {
            return Ok(None);
        }
        let path = self.path(name);
        let file = open_regular(&path).map_err(PackError::io(&path))?;
        Ok(Some(Box::new(file)))
    }
}
