//! Which tokens start, end and pad a text.

use serde_json::{Map, Value};

use super::faults::Faults;
use super::json::{self, CONFIG_LIMIT};
use super::place::Place;
use crate::PackError;

/// Token ids from generation_config.json or, key by key where it has none, config.json.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerationDefaults {
    /// Tokens that end a generation, in the file's order; empty if neither file names one.
    pub eos: Vec<u32>,
    /// The token that starts a text.
    pub bos: Option<u32>,
    /// The token that fills a batch.
    pub pad: Option<u32>,
}

impl GenerationDefaults {
    /// Reads them. A negative id means none; one that is not below `vocab_size` is left out, with a note.
    pub(super) fn read(
        place: &dyn Place,
        config: &Map<String, Value>,
        vocab_size: usize,
        notes: &mut Vec<String>,
        faults: &mut Faults,
    ) -> Result<Self, PackError> {
        let name = "generation_config.json";
        let generation = faults.or(json::read_object(place, name, CONFIG_LIMIT), None)?;
        let sources = [(name, generation.as_ref()), ("config.json", Some(config))];
        let mut ids = |key| {
            let found = sources
                .iter()
                .find_map(|&(name, values)| Some((name, values?.get(key).filter(|value| !value.is_null())?)));
            let Some((name, value)) = found else { return Ok(Vec::new()) };
            let read = ids(name, key, value, vocab_size, notes);
            let invalid =
                |reason| PackError::InvalidConfig { path: place.path(name), key: key.into(), reason };
            faults.or(read.map_err(invalid), Vec::new())
        };
        Ok(Self {
            eos: ids("eos_token_id")?,
            bos: ids("bos_token_id")?.first().copied(),
            pad: ids("pad_token_id")?.first().copied(),
        })
    }
}

/// The ids in a value: a number or a list of numbers.
fn ids(
    file: &str,
    key: &str,
    value: &Value,
    vocab_size: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<u32>, String> {
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut ids = Vec::new();
    for value in list {
        if value.as_i64().is_some_and(|id| id < 0) || value.is_null() {
            continue;
        }
        let id = value.as_u64().ok_or_else(|| format!("is {value}; token ids are whole numbers"))?;
        match u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size) {
            Some(id) if ids.contains(&id) => {}
            Some(id) => ids.push(id),
            None => notes.push(format!(
                "{file}: `{key}` is {id}, beyond the {vocab_size} rows of the embedding: left out"
            )),
        }
    }
    Ok(ids)
}
