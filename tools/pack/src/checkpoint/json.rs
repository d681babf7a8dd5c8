//! Small files of a checkpoint, read whole, within a limit.

use serde_json::{Map, Value};

use super::place::Place;
use crate::PackError;

/// What a file of Git LFS begins with that has not been fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/";

/// Reads a whole file of at most `limit` bytes; `None` if there is none.
pub(super) fn read_file(place: &dyn Place, name: &str, limit: u64) -> Result<Option<Vec<u8>>, PackError> {
    let Some(file) = place.open(name)? else { return Ok(None) };
    let path = || place.path(name);
    let size = file.size().map_err(PackError::io(&path()))?;
    if size > limit {
        return Err(PackError::FileTooLarge { path: path(), size, limit });
    }
    let mut bytes = vec![0; size as usize];
    file.read_at(&mut bytes, 0).map_err(PackError::io(&path()))?;
    if bytes.starts_with(LFS_POINTER) {
        return Err(PackError::LfsPointer { path: path() });
    }
    Ok(Some(bytes))
}

/// Reads a JSON object from a file of at most `limit` bytes; `None` if there is none.
pub(super) fn read_object(
    place: &dyn Place,
    name: &str,
    limit: u64,
) -> Result<Option<Map<String, Value>>, PackError> {
    let Some(mut bytes) = read_file(place, name, limit)? else { return Ok(None) };
    blank_non_finite(&mut bytes);
    let invalid = |reason: String| PackError::InvalidJson { path: place.path(name), reason };
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
