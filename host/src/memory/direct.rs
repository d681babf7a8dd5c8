//! A file read past the page cache.

use std::fs::File;
use std::io;
use std::path::Path;

use elapid_core::format::BLOCK_ALIGN;

use super::storage::Storage;
use crate::Error;

/// A file whose reads leave nothing in the page cache: by direct I/O, or, on a file system without it, by dropping the
/// pages after every read. Either way the memory that streaming takes is that of its own buffers.
#[derive(Debug)]
pub(crate) struct DirectFile {
    /// Reads go through the page cache, and their pages are dropped.
    file: File,
    /// The same for reads past it, of what is aligned, where the file system has them.
    direct: Option<File>,
}

impl DirectFile {
    /// Opens a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let fail = |action| Error::file(path, action);
        #[cfg_attr(not(target_os = "linux"), allow(unused_mut))]
        let mut this = Self { file: super::file::open_regular(path)?, direct: None };
        this.advise_random().map_err(fail("read"))?;
        #[cfg(target_os = "linux")]
        {
            if let Ok(direct) = elapid_files::open_regular_with(path, rustix::fs::OFlags::DIRECT) {
                // Some file systems take the flag and refuse the reads.
                let mut page = super::storage::Buffer::new("reading", 4096)?;
                use std::os::unix::fs::FileExt;
                if direct.read_at(&mut page, 0).is_ok() {
                    this.direct = Some(direct);
                }
            }
        }
        Ok(this)
    }

    /// The system need not read ahead: the reader does.
    #[cfg(target_os = "linux")]
    fn advise_random(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Random)?)
    }
    #[cfg(not(target_os = "linux"))]
    fn advise_random(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn drop_pages(&self, offset: u64, length: usize) {
        // Only advice: where it is not taken, the system drops them when it wants the memory.
        let length = std::num::NonZero::new(length as u64);
        let _ = rustix::fs::fadvise(&self.file, offset, length, rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    fn drop_pages(&self, _: u64, _: usize) {}
}

impl Storage for DirectFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        // Blocks of compact files are not aligned.
        let aligned = [buffer.as_ptr().addr() as u64, buffer.len() as u64, offset];
        if let (Some(direct), true) = (&self.direct, aligned.iter().all(|n| n.is_multiple_of(BLOCK_ALIGN))) {
            return direct.read_at(buffer, offset);
        }
        let read = self.file.read_at(buffer, offset)?;
        self.drop_pages(offset, buffer.len());
        Ok(read)
    }
    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        use std::os::windows::fs::FileExt;
        self.file.seek_read(buffer, offset)
    }

    fn file(&self) -> Option<&File> {
        self.direct.as_ref()
    }
}
