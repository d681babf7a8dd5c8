//! A file mapped into memory.
#![allow(unsafe_code)]

use std::ops::Deref;
use std::path::Path;

use memmap2::{Advice, Mmap};

use crate::Error;

/// A file mapped for reading. Its pages are shared with all programs that map it, and the system may drop them.
///
/// The file must not be cut short or written in place while it is mapped: reading a page that is no longer there ends
/// the program (SIGBUS), and bytes may change after they were checked. Replace a model by renaming a new file over it,
/// as elapid-pack does: what is mapped then stays as it was.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps all of a regular file. An empty one is [`None`]: there is nothing to map.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, Error> {
        let fail = |action| Error::file(path, action);
        let file = super::file::open_regular(path)?;
        let kind = file.metadata().map_err(fail("read"))?;
        if kind.len() == 0 {
            return Ok(None);
        }
        // SAFETY: the mapping is private to this program and only read. That nobody cuts the file short or writes to it
        // meanwhile can't be enforced; it is what the type's documentation asks for, and what every packed file's writer
        // here keeps to. All lengths are taken from the mapping, which does not change.
        let map = unsafe { Mmap::map(&file) }.map_err(fail("map"))?;
        Ok(Some(Self(map)))
    }

    /// Makes the system read ahead far, in pages of 2 MiB where the file system can: then a step over a large model meets
    /// thousands of page faults instead of a million, and few misses of the translation buffer. It is only advice: where
    /// the system does not take it, everything works as well.
    pub(crate) fn expect_reads(&self) {
        let _ = self.0.advise(Advice::Sequential);
        #[cfg(target_os = "linux")]
        let _ = self.0.advise(Advice::HugePage);
    }

    /// Gives its pages back to the system: the next use reads them from the file again.
    pub(crate) fn release(&self) {
        // SAFETY: the mapping is only read, so what a page is read as again is what it was, as the file stays as it is.
        #[cfg(unix)]
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
