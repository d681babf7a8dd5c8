//! Storage that is read at positions, and reads that get through a bad moment.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use elapid_core::format::BLOCK_ALIGN;
use elapid_core::source::Fault;
use memmap2::MmapMut;

use crate::error::{Error, NO_CODE};

/// Where a model file is read from, when it is streamed.
///
/// Address, offset and length of every read are multiples of 4096, as direct I/O wants them; in a
/// compact file, offset and length are multiples of 512.
pub trait Storage: Send + Sync {
    /// Bytes that the file has.
    ///
    /// # Errors
    /// The system's reason.
    fn size(&self) -> io::Result<u64>;

    /// Reads from `offset` on, fewer bytes than `buffer` has if it must; 0 at the end.
    ///
    /// # Errors
    /// The system's reason. [`io::ErrorKind::Interrupted`] is tried again at once, anything else a moment later.
    ///
    /// # Panics
    /// It should not. If it does, the session gets [`Error::Storage`], and nothing more is read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The open file whose bytes these are, if it is one that the system can read by itself (io_uring).
    fn file(&self) -> Option<&File> {
        None
    }
}

/// What went wrong while weights were read, counted since the model was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incidents {
    /// Reads that the system interrupted, or that gave fewer bytes than asked for.
    pub partial: u64,
    /// Reads that failed and were tried again.
    pub retried: u64,
    /// Blocks whose checksum did not match, read again.
    pub reread: u64,
}

/// Counts [`Incidents`].
#[derive(Debug, Default)]
pub(crate) struct Log {
    partial: AtomicU64,
    retried: AtomicU64,
    reread: AtomicU64,
}

impl Log {
    pub(crate) fn partial(&self) {
        self.partial.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }
    /// A read of the kernel's queue failed, and is tried again.
    #[cfg(target_os = "linux")]
    pub(crate) fn failed(&self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => self.partial(),
            _ => self.retried(),
        }
    }
    pub(crate) fn reread(&self) {
        self.reread.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn incidents(&self) -> Incidents {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Incidents { partial: get(&self.partial), retried: get(&self.retried), reread: get(&self.reread) }
    }
}

/// Memory of whole pages, which go back to the system when it is dropped. The system gives a page when it is first
/// written.
#[derive(Debug)]
pub(crate) struct Buffer(MmapMut);

impl Buffer {
    pub(crate) fn new(what: &'static str, bytes: usize) -> Result<Self, Error> {
        // The shortest mapping has a byte.
        let map = MmapMut::map_anon(bytes.max(1));
        map.map(Self).map_err(|_| Error::Memory { what, bytes, smaller_state: None })
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// How often a read that failed is tried again.
const RETRIES: u32 = 4;
/// What lies between two tries at first; it doubles every time. All together 300 ms.
const PAUSE: Duration = Duration::from_millis(20);
/// How often a read may be interrupted, or give nothing useful, without getting on.
const IDLE: u32 = 1000;

/// How far a read of `len` bytes has come, and what its next failure means.
pub(crate) struct Attempt {
    /// Bytes that are there, a multiple of the alignment until all are.
    pub done: usize,
    len: usize,
    failures: u32,
    idle: u32,
}

/// What to do after a try.
pub(crate) enum Next {
    /// All bytes are there.
    Done,
    /// Read on, from [`Attempt::done`].
    On,
    /// Read on, after a pause.
    After(Duration),
    /// Give up.
    Fail(Fault),
}

impl Attempt {
    pub(crate) const fn new(len: usize) -> Self {
        Self { done: 0, len, failures: 0, idle: 0 }
    }

    /// Takes the outcome of a read from [`Attempt::done`] on.
    pub(crate) fn take(&mut self, outcome: io::Result<usize>, log: &Log) -> Next {
        match outcome {
            Ok(0) => return Next::Fail(Fault::Truncated),
            Ok(bytes) if self.done + bytes >= self.len => {
                self.done = self.len;
                return Next::Done;
            }
            Ok(bytes) => {
                log.partial();
                let whole = bytes - bytes % BLOCK_ALIGN as usize;
                self.done += whole;
                if whole > 0 {
                    self.idle = 0;
                    return Next::On;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => log.partial(),
            Err(error) => {
                if self.failures == RETRIES {
                    return Next::Fail(Fault::Storage(error.raw_os_error().unwrap_or(NO_CODE)));
                }
                log.retried();
                self.failures += 1;
                return Next::After(PAUSE * (1 << (self.failures - 1)));
            }
        }
        self.idle += 1;
        // What gives less than the alignment again and again is the end of a file that was cut there.
        if self.idle == IDLE { Next::Fail(Fault::Truncated) } else { Next::On }
    }
}

/// Fills `buffer` from `offset` on. Gives up early where `stop` is set. The error has how many bytes are there.
pub(crate) fn read_full(
    storage: &dyn Storage,
    buffer: &mut [u8],
    offset: u64,
    log: &Log,
    stop: &AtomicBool,
) -> Result<(), (u64, Fault)> {
    let mut attempt = Attempt::new(buffer.len());
    loop {
        let outcome = storage.read_at(&mut buffer[attempt.done..], offset + attempt.done as u64);
        match attempt.take(outcome, log) {
            Next::Done => return Ok(()),
            Next::Fail(fault) => return Err((attempt.done as u64, fault)),
            Next::On => {}
            Next::After(pause) => std::thread::sleep(pause),
        }
        if stop.load(Ordering::Relaxed) {
            return Err((attempt.done as u64, Fault::Storage(NO_CODE)));
        }
    }
}

/// Reads any range of a file, through a buffer that is dropped at the end.
///
/// # Errors
/// The fault, or [`Error::Memory`].
pub(crate) fn read_range(
    storage: &dyn Storage,
    range: Range<u64>,
    log: &Log,
) -> Result<Result<Vec<u8>, Fault>, Error> {
    const STEP: u64 = 256 << 10;
    let length = (range.end - range.start) as usize;
    let mut bytes = Vec::new();
    let memory = bytes.try_reserve_exact(length);
    memory.map_err(|_| Error::Memory { what: "the file's tables", bytes: length, smaller_state: None })?;
    let mut at = range.start - range.start % BLOCK_ALIGN;
    let mut buffer =
        Buffer::new("reading", STEP.min((range.end - at).next_multiple_of(BLOCK_ALIGN)) as usize)?;
    while at < range.end {
        let read = STEP.min((range.end - at).next_multiple_of(BLOCK_ALIGN));
        let part = &mut buffer[..read as usize];
        if let Err((_, fault)) = read_full(storage, part, at, log, &AtomicBool::new(false)) {
            return Ok(Err(fault));
        }
        let from = range.start.saturating_sub(at) as usize;
        let to = (range.end - at).min(read) as usize;
        bytes.extend_from_slice(&part[from..to]);
        at += read;
    }
    Ok(Ok(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A storage of a short file, without any alignment.
    struct Short(Vec<u8>);

    impl Storage for Short {
        fn size(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = self.0.get(offset as usize..).unwrap_or_default();
            let n = rest.len().min(buffer.len()).min(5000);
            buffer[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
    }

    #[test]
    fn ranges_are_cut_from_pieces() {
        let bytes: Vec<u8> = (0..(600u32 << 10)).map(|i| (i / 7) as u8).collect();
        let (storage, log) = (Short(bytes), Log::default());
        for range in [0..1, 5..4096, 4095..4097, 100..599_999, 614_399..614_400] {
            let read = read_range(&storage, range.clone(), &log).unwrap();
            assert_eq!(read.unwrap(), storage.0[range.start as usize..range.end as usize], "{range:?}");
        }
        assert!(log.incidents().partial > 0);
    }

    #[test]
    fn the_end_of_a_file_is_no_endless_loop() {
        let (storage, log) = (Short(vec![1; 6000]), Log::default());
        assert_eq!(read_range(&storage, 0..8192, &log).unwrap(), Err(Fault::Truncated));
        let (storage, log) = (Short(vec![1; 8192]), Log::default());
        assert_eq!(read_range(&storage, 0..8193, &log).unwrap(), Err(Fault::Truncated));
    }
}
