//! Which tokens start, end and pad a text.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::config::CONFIG_LIMIT;
use super::json;
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
    /// Reads them; every id must be below `vocab_size`. A negative id means none.
    pub(super) fn read(
        place: &dyn Place,
        config: &Map<String, Value>,
        vocab_size: usize,
    ) -> Result<Self, PackError> {
        let name = "generation_config.json";
        let generation = json::read_object(place, name, CONFIG_LIMIT)?;
        let sources = [(place.path(name), generation.as_ref()), (place.path("config.json"), Some(config))];
        Ok(Self {
            eos: ids(&sources, "eos_token_id", vocab_size)?,
            bos: ids(&sources, "bos_token_id", vocab_size)?.first().copied(),
            pad: ids(&sources, "pad_token_id", vocab_size)?.first().copied(),
        })
    }
}

/// The ids under `key` in the first file that has it: a number or a list of numbers.
fn ids(
    sources: &[(PathBuf, Option<&Map<String, Value>>)],
    key: &str,
    vocab_size: usize,
) -> Result<Vec<u32>, PackError> {
    let found = sources.iter().find_map(|(path, values)| {
        let value = values.as_ref()?.get(key).filter(|value| !value.is_null())?;
        Some((path, value))
    });
    let Some((path, value)) = found else { return Ok(Vec::new()) };
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut ids = Vec::new();
    for value in list {
        if value.as_i64().is_some_and(|id| id < 0) {
            continue;
        }
        let id = value.as_u64().filter(|&id| id < vocab_size as u64).and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| PackError::InvalidConfig {
            path: path.clone(),
            key: key.to_owned(),
            reason: format!("is {value}; token ids are whole numbers below the vocabulary's {vocab_size}"),
        })?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}
