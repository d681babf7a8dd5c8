//! Arrays of f32 in NumPy's format, version 1.0.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use elapid::Error;

/// The header of a little-endian C-ordered array; the data follows at a multiple of 64 bytes.
fn header(shape: &[usize]) -> Vec<u8> {
    let dims: String = shape.iter().map(|n| format!("{n},")).collect();
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}");
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(length - text.len() - 1));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    // At most two dimensions: some 100 bytes.
    bytes.extend_from_slice(&(length as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A file that gets its name when it is complete, and goes away if it never is. A device or a pipe, such as /dev/stdout, is
/// written to as it is.
pub(super) struct Writer {
    path: PathBuf,
    /// The name until then.
    part: Option<PathBuf>,
    file: Option<BufWriter<File>>,
}

impl Writer {
    /// Begins a file of `shape`.
    pub(super) fn create(path: &Path, shape: &[usize]) -> Result<Self, Error> {
        let special = fs::metadata(path).is_ok_and(|known| !known.is_file() && !known.is_dir());
        let part = (!special).then(|| {
            let mut part = path.as_os_str().to_owned();
            part.push(".part");
            PathBuf::from(part)
        });
        let file = match &part {
            Some(part) => File::create(part),
            None => File::options().write(true).open(path),
        };
        let file = file.map_err(|cause| error(path, cause))?;
        let mut writer = Self { path: path.into(), part, file: Some(BufWriter::new(file)) };
        writer.write(&header(shape))?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        written.map_err(|cause| error(&self.path, cause))
    }

    /// Adds elements.
    pub(super) fn extend(&mut self, values: &[f32]) -> Result<(), Error> {
        values.iter().try_for_each(|value| self.write(&value.to_le_bytes()))
    }

    /// Completes the file.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let done =
            file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| match &self.part {
                Some(part) => file.sync_all().and_then(|()| fs::rename(part, &self.path)),
                None => Ok(()),
            });
        if done.is_err() {
            self.remove();
        }
        done.map_err(|cause| error(&self.path, cause))
    }

    fn remove(&self) {
        if let Some(part) = &self.part {
            let _ = fs::remove_file(part);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            self.remove();
        }
    }
}

fn error(path: &Path, cause: io::Error) -> Error {
    Error::File { path: path.into(), action: "write", cause }
}

#[cfg(test)]
mod tests {
    use super::header;

    #[test]
    fn headers_are_those_of_numpy() {
        for (shape, dims) in
            [(&[5][..], "(5,)"), (&[3, 4096], "(3,4096,)"), (&[100_000, 65_024], "(100000,65024,)")]
        {
            let bytes = header(shape);
            assert_eq!(bytes.len() % 64, 0);
            assert_eq!(bytes[..8], *b"\x93NUMPY\x01\x00");
            assert_eq!(usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), bytes.len() - 10);
            let text = std::str::from_utf8(&bytes[10..]).unwrap();
            assert!(text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': "));
            assert!(text.contains(dims) && text.ends_with('\n'), "{text}");
        }
    }
}
