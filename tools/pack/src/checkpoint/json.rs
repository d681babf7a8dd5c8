//! Small files of a checkpoint, read whole, within a limit.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::place::Place;
use crate::PackError;

/// The largest JSON file accepted besides the tokenizer, in bytes.
pub(super) const CONFIG_LIMIT: u64 = 4 << 20;

/// Refuses what downloads leave in place of a file, by its first bytes, eight at least: a pointer of Git LFS, or an HTML page.
pub(super) fn refuse_stand_in(path: &Path, start: &[u8]) -> Result<(), PackError> {
    let path = || path.to_path_buf();
    if start.starts_with(b"version ") {
        return Err(PackError::LfsPointer { path: path() });
    }
    let text = start.trim_ascii_start();
    let is = |tag: &[u8]| {
        text.get(..tag.len().min(text.len()))
            .is_some_and(|text| text.len() >= 5 && tag[..text.len()].eq_ignore_ascii_case(text))
    };
    if is(b"<!doctype html") || is(b"<html") {
        return Err(PackError::WebPage { path: path() });
    }
    Ok(())
}

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
    refuse_stand_in(&path(), &bytes)?;
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
    match serde_json::from_slice::<Unique>(&bytes).map(|Unique(value)| value) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(invalid("the top level must be an object".into())),
        Err(e) => Err(invalid(e.to_string())),
    }
}

/// A value whose objects have each key once, or with the same value each time: which of two would count is anyone's guess.
pub(super) struct Unique(pub(super) Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Unique(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(list.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Map::new();
                while let Some((key, Unique(value))) = entries.next_entry::<String, _>()? {
                    match map.get(&key) {
                        Some(other) if *other != value => {
                            let reason = format!("the key {key:?} is there twice, with different values");
                            return Err(A::Error::custom(reason));
                        }
                        _ => map.insert(key, value),
                    };
                }
                Ok(map.into())
            }
        }
        deserializer.deserialize_any(Any).map(Self)
    }
}

/// The keys of an object, each of which is there once; values are skipped.
pub(super) struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<UniqueKeys, A::Error> {
                let mut keys = BTreeSet::new();
                while let Some((key, IgnoredAny)) = entries.next_entry::<String, _>()? {
                    if keys.contains(&key) {
                        return Err(A::Error::custom(format!("{key:?} is there twice")));
                    }
                    keys.insert(key);
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_map(Keys)
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
