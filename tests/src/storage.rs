//! Storage that enforces the rules of direct I/O and fails as real storage does.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use elapid::Storage;

/// Address, offset and length of a read are multiples of this, or it is refused.
pub const ALIGN: usize = 4096;

/// A read as a fault sees it.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes wanted.
    pub len: usize,
    /// How often a read began at this offset before.
    pub again: u32,
}

impl Read {
    /// Whether the read covers a byte.
    pub fn covers(&self, byte: u64) -> bool {
        (self.offset..self.offset + self.len as u64).contains(&byte)
    }
}

/// What a read comes to.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// All bytes.
    Read,
    /// At most so many bytes.
    Short(usize),
    /// The system's error.
    Error(i32),
    /// All bytes, with a bit of this byte of the file flipped.
    Flip(u64),
    /// All bytes, after a while.
    Stall(Duration),
}

type Faults = dyn Fn(Read) -> Act + Send + Sync;

/// A file in memory, read by rules.
pub struct Fake {
    bytes: Mutex<Vec<u8>>,
    faults: Mutex<Box<Faults>>,
    again: Mutex<HashMap<u64, u32>>,
    broken: Mutex<Vec<String>>,
    reads: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    /// A file without faults.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            faults: Mutex::new(Box::new(|_| Act::Read)),
            again: Mutex::default(),
            broken: Mutex::default(),
            reads: AtomicU64::new(0),
        }
    }

    /// From now on, every read comes to what `faults` says.
    pub fn set_faults(&self, faults: impl Fn(Read) -> Act + Send + Sync + 'static) {
        *locked(&self.faults) = Box::new(faults);
        locked(&self.again).clear();
    }

    /// Changes the file, as another program would.
    pub fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut locked(&self.bytes));
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// The rules that reads broke.
    pub fn broken(&self) -> Vec<String> {
        locked(&self.broken).clone()
    }
}

impl Storage for Fake {
    fn size(&self) -> io::Result<u64> {
        Ok(locked(&self.bytes).len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let address = buffer.as_ptr().addr();
        let aligned = |n: u64| n.is_multiple_of(ALIGN as u64);
        if !(aligned(address as u64) && aligned(offset) && aligned(buffer.len() as u64)) || buffer.is_empty()
        {
            let broken = format!("{} bytes at {offset} to address {address:#x}", buffer.len());
            locked(&self.broken).push(broken);
            return Err(io::Error::from_raw_os_error(22));
        }
        let again = {
            let mut counts = locked(&self.again);
            let count = counts.entry(offset).or_default();
            *count += 1;
            *count - 1
        };
        let act = locked(&self.faults)(Read { offset, len: buffer.len(), again });
        if let Act::Stall(time) = act {
            std::thread::sleep(time);
        }
        let most = match act {
            Act::Error(code) => return Err(io::Error::from_raw_os_error(code)),
            Act::Short(bytes) => bytes,
            _ => usize::MAX,
        };
        let bytes = locked(&self.bytes);
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len()).min(most);
        buffer[..n].copy_from_slice(&rest[..n]);
        if let Act::Flip(byte) = act
            && let Some(at) = byte.checked_sub(offset).and_then(|at| buffer[..n].get_mut(at as usize))
        {
            *at ^= 0x10;
        }
        Ok(n)
    }
}

/// A drive of one rate, whatever the number of reads under way.
pub struct Throttled<S> {
    inner: S,
    bytes_per_second: f64,
    /// When the drive is free again.
    free: Mutex<Instant>,
}

impl<S: Storage> Throttled<S> {
    /// Lets `inner` read no faster than `bytes_per_second`.
    pub fn new(inner: S, bytes_per_second: f64) -> Self {
        Self { inner, bytes_per_second, free: Mutex::new(Instant::now()) }
    }
}

impl<S: Storage> Storage for Throttled<S> {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.inner.read_at(buffer, offset)?;
        let until = {
            let mut free = locked(&self.free);
            *free =
                (*free).max(Instant::now()) + Duration::from_secs_f64(read as f64 / self.bytes_per_second);
            *free
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        Ok(read)
    }
}
