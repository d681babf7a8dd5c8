//! Standard output.

use std::io::{self, BufWriter, StdoutLock, Write};

use crate::error::Error;
use serde::Serialize;

/// What a failed write to standard output means: if nobody reads any more, a quiet end.
pub(super) fn failed(cause: io::Error) -> Error {
    match cause.kind() {
        io::ErrorKind::BrokenPipe => Error::ClosedOutput,
        _ => Error::file("standard output", "write", cause),
    }
}

/// Standard output, buffered: call [`finish`] at the end.
pub(super) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Writes what is still buffered.
pub(super) fn finish(mut out: impl Write) -> Result<(), Error> {
    out.flush().map_err(failed)
}

/// Writes a value as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Error> {
    let mut out = stdout();
    serde_json::to_writer(&mut out, value).map_err(|e| failed(e.into()))?;
    out.write_all(b"\n").map_err(failed)?;
    finish(out)
}
