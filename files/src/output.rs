//! Files that get their name when they are complete.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use tempfile::TempPath;

/// How the names of unfinished files begin and end. Between them is a random word.
const PREFIX: &str = ".elapid-";
const SUFFIX: &str = ".part";
const RANDOM: usize = 12;
/// Links that may follow one another, as in Linux.
const MAX_LINKS: usize = 40;

/// A file that replaces another one, or appears, when it is complete.
///
/// Until then it lies beside its target under a name of its own. It is removed when it is dropped, and when
/// [`crate::interrupt`] ends the program. What a program leaves that was killed is removed by the next one that writes into the
/// same folder: an unfinished file is locked as long as its program runs, and only one that is not locked is removed.
///
/// A target that is a symbolic link stays one, and what it leads to is replaced. A device or a FIFO is written to as it is.
#[derive(Debug)]
pub struct Output {
    file: File,
    /// The unfinished file's name and its target; absent where the target is written to as it is.
    replaces: Option<(PathBuf, PathBuf)>,
    /// Whether the unfinished file stays if it is not finished.
    stays: bool,
}

/// Unfinished files of this process by their names. Whoever creates, finishes or removes one holds the lock.
static UNFINISHED: Mutex<BTreeMap<PathBuf, TempPath>> = Mutex::new(BTreeMap::new());

fn unfinished() -> MutexGuard<'static, BTreeMap<PathBuf, TempPath>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the unfinished files of this process, which must end before it releases the lock.
#[cfg(feature = "interrupt")]
pub(crate) fn remove_unfinished() -> impl Sized {
    let mut unfinished = unfinished();
    unfinished.clear();
    unfinished
}

impl Output {
    /// Begins a file. A new one gets the permissions of the process' mask, one that replaces another has the other's.
    ///
    /// # Errors
    /// Whatever would keep the target from being written, a folder or a write-protected file among them.
    pub fn create(target: &Path) -> io::Result<Self> {
        let known = match fs::metadata(target) {
            Ok(known) => Some(known),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        if known.as_ref().is_some_and(Metadata::is_dir) || target.as_os_str().as_bytes().ends_with(b"/") {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if known.as_ref().is_some_and(|known| !known.is_file()) {
            let file = File::options().write(true).open(target)?;
            return Ok(Self { file, replaces: None, stays: false });
        }
        let target = follow(target)?;
        if let Some(known) = &known {
            // The system lets root write to every file.
            if known.permissions().readonly() {
                let reason = "the file is write-protected: make it writable, or give another one";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
            }
            File::options().write(true).open(&target)?;
        }
        let folder = folder(&target);
        remove_leftovers(folder);
        let (file, part) = begin(folder, if known.is_some() { 0o600 } else { 0o666 })?;
        let output = Self { file, replaces: Some((part, target)), stays: false };
        if let Some(known) = known {
            output.become_like(&known)?;
        }
        Ok(output)
    }

    /// Goes on with a file that an earlier program left unfinished under the name `part`, or begins it. Unless it is finished, it
    /// stays there for the next one.
    ///
    /// # Errors
    /// As [`Output::create`], and [`io::ErrorKind::ResourceBusy`] if another program is writing it.
    pub fn resume(target: &Path, part: &Path) -> io::Result<Self> {
        if fs::metadata(target).is_ok_and(|known| known.is_dir()) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        loop {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o666);
            let file = options.custom_flags(flags.bits() as i32).open(part)?;
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                let reason = "another program is writing this file: wait until it has ended";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
            }
            let about = file.metadata()?;
            if !about.is_file() {
                let reason = "not a regular file: remove it";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
            // Before it was locked, another program may have finished it: then it has the target's name.
            let id = |about: &Metadata| (about.dev(), about.ino());
            if fs::symlink_metadata(part).is_ok_and(|named| id(&named) == id(&about)) {
                let replaces = Some((part.to_path_buf(), target.to_path_buf()));
                return Ok(Self { file, replaces, stays: true });
            }
        }
    }

    /// Takes over a file's owner, where that is allowed, and its permissions.
    fn become_like(&self, known: &Metadata) -> io::Result<()> {
        let own = self.file.metadata()?;
        if (own.uid(), own.gid()) != (known.uid(), known.gid()) {
            // Only root may give files away.
            let _ = fchown(&self.file, Some(known.uid()), Some(known.gid()));
        }
        let mode = known.mode() & 0o777;
        // Some file systems have one mode for all files and refuse to change it.
        if own.mode() & 0o777 != mode {
            self.file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// The file to write to. It can be read back unless [`Self::is_special`].
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether the target is a device or a FIFO, which is written to as it is.
    #[must_use]
    pub fn is_special(&self) -> bool {
        self.replaces.is_none()
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// The system's. The target is then as it was.
    pub fn finish(self) -> io::Result<()> {
        let synced = self.file.sync_all();
        let Some((part, target)) = &self.replaces else {
            // Pipes and most devices have nothing to make durable.
            return synced.or_else(|e| if e.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(e) });
        };
        synced?;
        if self.stays {
            fs::rename(part, target)?;
        } else {
            persist(part, target)?;
        }
        // The new name, too. It is there already: a folder that can't be opened, or a file system that does this in another
        // way, is no failure.
        match File::open(folder(target)).and_then(|folder| folder.sync_all()) {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Err(e),
            _ => Ok(()),
        }
    }

    /// Gives the file its name without waiting for the storage: for what can be made again. After a power failure the file may be
    /// there without its contents.
    ///
    /// # Errors
    /// The system's. The target is then as it was.
    pub fn finish_unsynced(self) -> io::Result<()> {
        self.replaces.as_ref().map_or(Ok(()), |(part, target)| persist(part, target))
    }
}

/// Gives an unfinished file its name.
fn persist(part: &Path, target: &Path) -> io::Result<()> {
    let part = unfinished().remove(part);
    part.map_or(Ok(()), |part| part.persist(target).map_err(|e| e.error))
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((part, _)) = &self.replaces {
            drop(unfinished().remove(part));
        }
    }
}

/// Whether two paths lead to the same file: by links of either kind, too.
#[must_use]
pub fn same_file(one: &Path, other: &Path) -> bool {
    let id = |path| fs::metadata(path).map(|about| (about.dev(), about.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// The path that symbolic links lead to. Nothing need be there.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(link) => path = folder(&path).join(link),
            // No link, or nothing there.
            Err(_) => return Ok(path),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// The folder that a file is in.
fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Creates and locks an unfinished file.
fn begin(folder: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    // Held from before the file exists: an interruption waits, and then finds it.
    let mut unfinished = unfinished();
    let mut name = tempfile::Builder::new();
    name.prefix(PREFIX).suffix(SUFFIX).rand_bytes(RANDOM);
    let begun = name.make_in(folder, |path| {
        let file = File::options().read(true).write(true).create_new(true).mode(mode).open(path)?;
        // Before it was locked, another program may have taken it for a leftover: then the next name is tried.
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::AlreadyExists.into()),
            _ if file.metadata()?.nlink() == 0 => Err(io::ErrorKind::AlreadyExists.into()),
            // A file system without locks: there, leftovers stay.
            _ => Ok(file),
        }
    })?;
    let (file, part) = begun.into_parts();
    let path = part.to_path_buf();
    unfinished.insert(path.clone(), part);
    Ok((file, path))
}

/// Removes unfinished files of programs that run no more.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_bytes();
        let ours = name.starts_with(PREFIX.as_bytes()) && name.ends_with(SUFFIX.as_bytes());
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        // Another user's may be protected; that user's next program removes it.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = File::options().write(true).custom_flags(flags.bits() as i32).open(entry.path());
        if let Ok(file) = opened
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
