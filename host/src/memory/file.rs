//! Model files, opened.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::Error;

/// Opens a regular file.
pub(super) fn open_regular(path: &Path) -> Result<File, Error> {
    elapid_files::open_regular(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::IsADirectory => Error::Folder { path: path.into() },
        _ => Error::File { path: path.into(), action: "open", cause },
    })
}
