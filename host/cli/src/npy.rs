//! Arrays of f32 in NumPy's format, version 1.0.

use std::io::{self, BufWriter, Stdout, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;
use elapid_files::{Output, same_file};

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

/// Where an array goes.
enum Sink {
    Standard(Stdout),
    File(Output),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Standard(out) => out.write(bytes),
            Self::File(out) => out.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Standard(out) => out.flush(),
            Self::File(out) => out.flush(),
        }
    }
}

/// An array on its way to a file, which gets its name when it is complete; or to standard output, for `-`.
pub(super) struct Writer {
    path: PathBuf,
    sink: BufWriter<Sink>,
}

impl Writer {
    /// Begins an array of `shape`.
    pub(super) fn create(path: &Path, shape: &[usize]) -> Result<Self, Error> {
        // /dev/stdout, for example, or the file that the shell opened.
        let sink = if path.as_os_str() == "-" || same_file(path, "/dev/stdout".as_ref()) {
            Sink::Standard(io::stdout())
        } else {
            Sink::File(Output::create(path).map_err(|cause| error(path, cause))?)
        };
        let mut writer = Self { path: path.into(), sink: BufWriter::new(sink) };
        writer.write(&header(shape))?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.sink.write_all(bytes).map_err(|cause| error(&self.path, cause))
    }

    /// Adds elements.
    pub(super) fn extend(&mut self, values: &[f32]) -> Result<(), Error> {
        values.iter().try_for_each(|value| self.write(&value.to_le_bytes()))
    }

    /// Completes the file.
    pub(super) fn finish(self) -> Result<(), Error> {
        let sink = self.sink.into_inner().map_err(io::IntoInnerError::into_error);
        let done = sink.and_then(|sink| match sink {
            Sink::Standard(mut out) => out.flush(),
            Sink::File(out) => out.finish(),
        });
        done.map_err(|cause| error(&self.path, cause))
    }
}

fn error(path: &Path, cause: io::Error) -> Error {
    match cause.kind() {
        io::ErrorKind::BrokenPipe => Error::ClosedOutput,
        _ => Error::file(path, "write", cause),
    }
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
