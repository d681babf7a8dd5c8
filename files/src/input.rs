//! Opening files for reading.

use std::fs::{self, File, Metadata};
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Opens a regular file for reading.
///
/// # Errors
/// The system's, or [`io::ErrorKind::InvalidInput`] for a device, a FIFO or a socket and [`io::ErrorKind::IsADirectory`] for a
/// folder. Never waits for the other end of a FIFO.
pub fn open_regular(path: &Path) -> io::Result<File> {
    open_regular_with(path, OFlags::empty())
}

/// [`open_regular`] with more flags for the system.
///
/// # Errors
/// As [`open_regular`].
pub fn open_regular_with(path: &Path, flags: OFlags) -> io::Result<File> {
    // Some devices act on being opened: look first.
    check_regular(&fs::metadata(path)?)?;
    // Something else may have the name by now: opened this way, a FIFO does not wait for a writer.
    let flags = flags | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path)?;
    check_regular(&file.metadata()?)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

fn check_regular(about: &Metadata) -> io::Result<()> {
    if about.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !about.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file: copy what it gives to one",
        ));
    }
    Ok(())
}

/// Reads all of a file, a pipe or a terminal.
///
/// # Errors
/// The system's, or [`io::ErrorKind::InvalidInput`] for other devices, which may have no end.
pub fn read_stream(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_block_device() || kind.is_char_device() && !file.is_terminal() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a device that may have no end: give a file or a pipe",
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        for path in [&fifo, Path::new("/dev/null")] {
            let error = open_regular(path).unwrap_err();
            assert_eq!(
                (error.kind(), error.to_string().as_str()),
                (io::ErrorKind::InvalidInput, "not a regular file: copy what it gives to one")
            );
        }
        assert_eq!(open_regular(folder.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        let file = folder.path().join("file");
        assert_eq!(open_regular(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&file, "text").unwrap();
        let file = open_regular(&file).unwrap();
        assert_eq!(io::read_to_string(&file).unwrap(), "text");
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn streams_have_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| fs::write(&fifo, "text").unwrap());
            assert_eq!(read_stream(&fifo).unwrap(), b"text");
        });
        assert_eq!(read_stream(Path::new("/dev/zero")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
