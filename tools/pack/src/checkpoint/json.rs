//! Small files of a checkpoint, read whole, within a limit.

use std::fs::Metadata;
use std::io::{self, Read};
use std::path::Path;

use elapid_files::open_regular;
use serde_json::{Map, Value};

use crate::PackError;

/// What a file of Git LFS begins with that has not been fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/";

/// What is at a path; `None` if nothing is. A link that leads nowhere is an error: the file is meant to be there.
pub(super) fn find(path: &Path) -> Result<Option<Metadata>, PackError> {
    match std::fs::metadata(path) {
        Ok(about) => Ok(Some(about)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => match std::fs::read_link(path) {
            Ok(target) => Err(PackError::DanglingLink { path: path.to_path_buf(), target }),
            Err(_) => Ok(None),
        },
        Err(source) => Err(PackError::Io { path: path.to_path_buf(), source }),
    }
}

/// Reads a whole file of at most `limit` bytes; `None` if there is none.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, PackError> {
    if find(path)?.is_none() {
        return Ok(None);
    }
    let file = open_regular(path).map_err(PackError::io(path))?;
    let about = file.metadata().map_err(PackError::io(path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(PackError::io(path))?;
    if bytes.len() as u64 > limit {
        let size = about.len().max(bytes.len() as u64);
        return Err(PackError::FileTooLarge { path: path.to_path_buf(), size, limit });
    }
    if bytes.starts_with(LFS_POINTER) {
        return Err(PackError::LfsPointer { path: path.to_path_buf() });
    }
    Ok(Some(bytes))
}

/// Reads a JSON object from a file of at most `limit` bytes; `None` if there is none.
pub(super) fn read_object(path: &Path, limit: u64) -> Result<Option<Map<String, Value>>, PackError> {
    let Some(mut bytes) = read_file(path, limit)? else { return Ok(None) };
    blank_non_finite(&mut bytes);
    let invalid = |reason: String| PackError::InvalidJson { path: path.to_path_buf(), reason };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(invalid("the top level must be an object".into())),
        Err(e) => Err(invalid(e.to_string())),
    }
}

/// Python writes `Infinity` and `NaN`, which JSON does not have (Mamba-2's
/// `time_step_limit` has one). They become `null`, padded with spaces so that
/// a parser's line and column stay true.
fn blank_non_finite(bytes: &mut [u8]) {
    let mut in_string = false;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'-' | b'I' | b'N' => {
                for word in [&b"-Infinity"[..], b"Infinity", b"NaN"] {
                    let Some(found) = bytes.get_mut(at..at + word.len()) else { continue };
                    if found == word {
                        found.fill(b' ');
                        // `NaN` is too short for `null`; any number does as well.
                        let value: &[u8] = if word.len() >= 4 { b"null" } else { b"0" };
                        for (to, from) in found.iter_mut().zip(value) {
                            *to = *from;
                        }
                        break;
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_numbers_become_null() {
        let mut text = *br#"{"a": [0.0, Infinity], "b": -Infinity, "c\"": "NaN Infinity", "d": -1}"#;
        blank_non_finite(&mut text);
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["a"][1], Value::Null);
        assert_eq!(value["b"], Value::Null);
        assert_eq!(value["c\""], "NaN Infinity");
        assert_eq!(value["d"], -1);
    }
}
