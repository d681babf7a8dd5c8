//! Copies of states in a folder: session files, named by the model, the numbers, the tokens that they are of, and their owner.
//!
//! Any number of processes may use a folder. What is in it is untrusted: a file serves only if it is whole and of exactly the
//! tokens that are wanted.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, FileTimes, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use elapid_core::format::Fingerprint;
use elapid_files::open_regular;

use super::Key;
use super::tree::{Eviction, Found, Tree};
use crate::error::SessionFault;
use crate::session_file::Opened;
use crate::{Error, Numbers};

/// How the names of files end.
const SUFFIX: &str = ".prefix";
/// Files of a folder at most: all of them are looked at when it is opened.
const MOST_FILES: usize = 1024;
/// Tokens of a file at most.
const MOST_TOKENS: usize = 1 << 17;
/// Bytes of memory for what is remembered of the files, at most: the same for all processes, so that none removes what others keep.
pub(super) const MEMORY: usize = 4 << 20;
/// The file that is locked while others are written.
const LOCK: &str = ".lock";
/// A copy that an earlier process left is worth half of what a new one is after this time without use.
const HALF_LIFE: Duration = Duration::from_secs(3600);
/// How long a copy waits for other processes that write. After that it is not kept.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nothing is written after that failed.
const PAUSE: Duration = Duration::from_secs(60);
/// Warnings that are kept at most.
const MOST_WARNINGS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    budget: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The files' names by their tokens.
    tree: Tree<Key, Arc<str>>,
    /// When the folder had been changed last as it was looked at.
    seen: Option<SystemTime>,
    /// When writing failed.
    failed: Option<Instant>,
    warnings: Vec<Error>,
}

/// The name of the file for these tokens.
fn name_of(key: &Key, tokens: &[u32]) -> String {
    file_name(key, hash(tokens))
}

fn file_name(key: &Key, hash: u64) -> String {
    let Key { fingerprint, numbers, owner } = key;
    let owner = if *owner == 0 { String::new() } else { format!("-{owner:016x}") };
    format!("{fingerprint}-{}-{hash:016x}{owner}{SUFFIX}", numbers.state_name())
}

/// What a file's name says: its key, and the hash of its tokens.
fn parse_name(name: &str) -> Option<(Key, u64)> {
    let mut parts = name.strip_suffix(SUFFIX)?.split('-');
    let (fingerprint, state, hash) = (parts.next()?, parts.next()?, parts.next()?);
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(fingerprint.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    let numbers = Numbers::ALL.into_iter().find(|numbers| numbers.state_name() == state)?;
    let hash = u64::from_str_radix(hash, 16).ok()?;
    let owner = parts.next().map_or(Ok(0), |owner| u64::from_str_radix(owner, 16)).ok()?;
    let key = Key { fingerprint: Fingerprint(bytes), numbers, owner };
    // Only one spelling of a name.
    (file_name(&key, hash) == name).then_some((key, hash))
}

/// FNV-1a of the tokens' bytes. It need not be safe against collisions: tokens are compared.
fn hash(tokens: &[u32]) -> u64 {
    let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl Disk {
    /// Looks at a folder, which is made where it is missing. Its files take at most `budget` bytes.
    pub(super) fn open(folder: &Path, budget: u64, eviction: Eviction) -> Result<Self, Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(Error::file(folder, "make"))?;
        lock_file(folder).map_err(Error::file(folder, "write"))?;
        let bytes = usize::try_from(budget).unwrap_or(usize::MAX);
        let inner = Inner {
            tree: Tree::with_limit(bytes, MEMORY, eviction),
            seen: None,
            failed: None,
            warnings: Vec::new(),
        };
        let disk = Self { folder: folder.into(), budget, inner: Mutex::new(inner) };
        disk.look(&mut disk.inner());
        Ok(disk)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of memory for what is remembered of the files.
    pub(super) fn memory(&self) -> usize {
        self.inner().tree.bytes_beside()
    }

    /// Files that are known, and what they are counted as.
    pub(super) fn count(&self) -> (usize, u64) {
        let inner = self.inner();
        (inner.tree.len(), (inner.tree.bytes() - inner.tree.bytes_beside()) as u64)
    }

    pub(super) fn take_warnings(&self) -> Vec<Error> {
        std::mem::take(&mut self.inner().warnings)
    }

    /// The longest prefix that a file has, and what the tokens share with any file.
    pub(super) fn find(&self, key: &Key, tokens: &[u32]) -> Found<Arc<str>> {
        let mut inner = self.inner();
        self.look(&mut inner);
        inner.tree.find(key, tokens)
    }

    /// Lets `load` read a file. False if it can't: then the file is forgotten, and removed if it is damaged.
    pub(super) fn load(
        &self,
        key: &Key,
        tokens: &[u32],
        name: &str,
        load: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let path = self.folder.join(name);
        let fault = match load(&path) {
            Ok(()) => {
                // It is the file's last use by which other processes know what is worth keeping.
                let times = FileTimes::new().set_modified(SystemTime::now());
                let _ = open_regular(&path).and_then(|file| file.set_times(times));
                return Ok(true);
            }
            Err(error @ (Error::SessionFile { .. } | Error::File { .. })) => error,
            Err(error) => return Err(error),
        };
        let mut inner = self.inner();
        inner.tree.take_out(key, tokens);
        self.refuse(&mut inner, &path, fault);
        Ok(false)
    }

    /// Removes a file that can't be used, and warns of it.
    fn refuse(&self, inner: &mut Inner, path: &Path, fault: Error) {
        match &fault {
            // Another process removed it.
            Error::File { cause, .. } if cause.kind() == io::ErrorKind::NotFound => return,
            // A later program knows it.
            Error::SessionFile { cause: SessionFault::Version { .. }, .. } => return,
            Error::SessionFile { .. } => drop(fs::remove_file(path)),
            _ => {}
        }
        inner.warn(fault);
    }

    /// Brings what is known of the folder up to date, if it was changed.
    fn look(&self, inner: &mut Inner) {
        let Ok(changed) = fs::metadata(&self.folder).and_then(|about| about.modified()) else { return };
        if inner.seen == Some(changed) {
            return;
        }
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().ok();
            if let Some((name, (key, hash))) = name.and_then(|name| parse_name(&name).map(|it| (name, it)))
                && let Ok(about) = entry.metadata()
                && about.is_file()
            {
                let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.insert(name, (used, about.len(), key, hash));
            }
        }
        inner.tree.retain(|name| files.contains_key(&**name));
        for name in inner.tree.values() {
            files.remove(&**name);
        }
        let mut new: Vec<_> = files.into_iter().collect();
        new.sort_by_key(|(_, (used, ..))| *used);
        let mut gone = Vec::new();
        for (name, (used, bytes, key, hash)) in new {
            let path = self.folder.join(&name);
            let tokens = open_regular(&path)
                .map_err(SessionFault::Io)
                .and_then(Opened::new)
                .and_then(|opened| opened.tokens_unverified(MOST_TOKENS))
                .and_then(|tokens| {
                    let same = self::hash(&tokens) == hash;
                    same.then_some(tokens).ok_or(SessionFault::Contents("it is not what its name says"))
                });
            match tokens {
                // Being written by another thread.
                Ok(tokens) if inner.tree.has(&key, &tokens) => {}
                Ok(tokens) => {
                    let name: Arc<str> = name.into();
                    let idle = used.elapsed().unwrap_or_default().div_duration_f64(HALF_LIFE);
                    if inner.tree.admit_used(key, &tokens, self.charge(bytes), (-idle).exp2(), &mut gone) {
                        inner.tree.fill(&key, &tokens, name);
                    } else {
                        gone.push(name);
                    }
                }
                Err(SessionFault::Io(_)) => {}
                Err(cause) => {
                    let fault = Error::SessionFile { path: path.clone(), cause };
                    self.refuse(inner, &path, fault);
                }
            }
        }
        self.remove(gone);
        inner.seen = Some(changed);
    }

    /// What a file of so many bytes is counted as, so that there are not more than [`MOST_FILES`].
    fn charge(&self, bytes: u64) -> usize {
        let charge = bytes.max(self.budget / MOST_FILES as u64);
        usize::try_from(charge).unwrap_or(usize::MAX)
    }

    fn remove(&self, names: Vec<Arc<str>>) {
        for name in names {
            // Another process may have been quicker.
            let _ = fs::remove_file(self.folder.join(&*name));
        }
    }

    /// Lets `save` write a copy of the state after these tokens, a file of `bytes` bytes, if it is not there and worth it. That it can't be
    /// written is a warning.
    pub(super) fn keep(
        &self,
        key: &Key,
        tokens: &[u32],
        bytes: u64,
        save: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        {
            let mut inner = self.inner();
            let paused = inner.failed.is_some_and(|failed| failed.elapsed() < PAUSE);
            if paused || !(1..=MOST_TOKENS).contains(&tokens.len()) || inner.tree.has(key, tokens) {
                return Ok(());
            }
            inner.failed = None;
        }
        // Held until the entry has its file's name: if it were evicted before, its file would stay.
        let Some(_locked) = lock(&self.folder) else { return Ok(()) };
        let mut gone = Vec::new();
        let admitted = {
            let mut inner = self.inner();
            // The others' files count, too.
            inner.seen = None;
            self.look(&mut inner);
            inner.tree.admit(*key, tokens, self.charge(bytes), &mut gone)
        };
        self.remove(gone);
        if !admitted {
            return Ok(());
        }
        let name = name_of(key, tokens);
        let saved = save(&self.folder.join(&name));
        let mut inner = self.inner();
        let Err(error) = saved else {
            inner.tree.fill(key, tokens, name.into());
            return Ok(());
        };
        inner.tree.take_out(key, tokens);
        match error {
            Error::File { .. } => {
                inner.failed = Some(Instant::now());
                inner.warn(error);
                Ok(())
            }
            error => Err(error),
        }
    }
}

impl Inner {
    fn warn(&mut self, warning: Error) {
        if self.warnings.len() < MOST_WARNINGS {
            self.warnings.push(warning);
        }
    }
}

fn lock_file(folder: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(folder.join(LOCK))
}

/// Keeps others from writing to the folder as long as the result lives. `None` if one of them does not end.
fn lock(folder: &Path) -> Option<File> {
    let file = lock_file(folder).ok()?;
    let start = Instant::now();
    while let Err(TryLockError::WouldBlock) = file.try_lock() {
        if start.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // A file system without locks has no such guard: then the folder may be larger for a moment.
    Some(file)
}
