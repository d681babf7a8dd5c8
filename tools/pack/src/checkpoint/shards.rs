//! Safetensors files: headers are checked when opened, data is only ever read
//! at a position and never mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

use safetensors::tensor::Metadata;

use super::entry::{Shard, Shards, TensorEntry};
use super::faults::Faults;
use super::folder::Format;
use super::place::Place;
use super::{folder, json, pickle};
use crate::PackError;

/// The largest header accepted: more than the largest model allowed (4096 layers)
/// needs. The format itself permits 100 MB.
const HEADER_LIMIT: u64 = 8 << 20;
/// The largest index accepted, in bytes.
const INDEX_LIMIT: u64 = 16 << 20;
/// More shards than this would exhaust the process's file descriptors.
const SHARD_LIMIT: usize = 512;

/// Files that checkpoints are in, and the indexes of those in several files.
const FILES: [(&str, &str); 2] = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];

/// The files that a folder's indexes name.
pub(super) fn indexed(place: &dyn Place) -> Result<Vec<String>, PackError> {
    let mut files = Vec::new();
    for (_, index) in FILES {
        files.extend(read_index(place, index)?.unwrap_or_default().into_values());
    }
    Ok(files)
}

impl Shards {
    /// Opens one file.
    pub(super) fn open_file(place: &dyn Place, name: &str, faults: &mut Faults) -> Result<Self, PackError> {
        let mut shards = Self::default();
        shards.add(place, name, faults)?;
        Ok(shards)
    }

    /// Opens `model.safetensors`, the shards that its index lists, or the same of torch.save.
    pub(super) fn open(place: &dyn Place, faults: &mut Faults) -> Result<Self, PackError> {
        for (single, index) in FILES {
            if place.has(single)? {
                return Self::open_file(place, single, faults);
            }
            if let Some(weight_map) = read_index(place, index)? {
                return Self::open_shards(place, index, &weight_map, faults);
            }
        }
        Err(folder::without_weights(place)?)
    }

    /// Opens the files that an index lists. Where several have a tensor, the index says which one counts.
    fn open_shards(
        place: &dyn Place,
        index: &'static str,
        weight_map: &BTreeMap<String, String>,
        faults: &mut Faults,
    ) -> Result<Self, PackError> {
        let mut shards = Self::default();
        let mut tensors_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, file) in weight_map {
            tensors_of.entry(file).or_default().insert(tensor);
        }
        if tensors_of.len() > SHARD_LIMIT {
            return Err(PackError::InvalidConfig {
                path: place.path(index),
                key: "weight_map".into(),
                reason: format!("names {} files; at most {SHARD_LIMIT} are read", tensors_of.len()),
            });
        }
        for (file, tensors) in tensors_of {
            if !place.has(file)? {
                let tensor = tensors.first().copied().unwrap_or_default().to_owned();
                faults.meet(PackError::MissingShard { path: place.path(file), index, tensor })?;
                continue;
            }
            let first = shards.entries.len();
            let names = shards.add(place, file, faults)?;
            if let Some(name) = tensors.iter().find(|name| !names.contains(**name)) {
                faults.meet(PackError::MissingTensor {
                    path: place.path(file),
                    name: (*name).to_owned(),
                    reason: format!("{index} says it is in this shard; download both again"),
                })?;
            }
            let counts = |entry: &TensorEntry| weight_map.get(&entry.name).is_none_or(|of| of == file);
            let of_file = shards.entries.split_off(first);
            shards.entries.extend(of_file.into_iter().filter(counts));
        }
        Ok(shards)
    }

    /// Opens a file and lists its tensors. Returns the names of all that it has.
    fn add(
        &mut self,
        place: &dyn Place,
        name: &str,
        faults: &mut Faults,
    ) -> Result<BTreeSet<String>, PackError> {
        let path = place.path(name);
        let file = match place.open(name) {
            Err(PackError::Io { path, source })
                if matches!(source.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory) =>
            {
                let reason = "it is not a regular file: give a file, or download it again".into();
                return Err(PackError::InvalidSafetensors { path, reason });
            }
            opened => opened?.ok_or_else(|| PackError::io(&path)(io::ErrorKind::NotFound.into()))?,
        };
        let shard = Shard { path, file };
        if Format::of(name) == Format::Pickle {
            return pickle::add(self, shard, faults);
        }
        let (data_start, metadata) = read_header(&shard)?;
        let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let mut names = BTreeSet::new();
        for (name, info) in tensors {
            let judged =
                TensorEntry::judge(&shard.path, &name, &info.dtype.to_string(), &info.shape, faults)?;
            names.insert(name.clone());
            if let Some((kind, dtype)) = judged {
                let (shape, offset) = (info.shape.clone(), data_start + info.data_offsets.0 as u64);
                self.entries.push(TensorEntry::new(name, kind, dtype, shape, self.files.len(), offset));
            }
        }
        self.files.push(shard);
        Ok(names)
    }
}

/// Reads and checks a header. Returns where the data starts and what it is.
fn read_header(shard: &Shard) -> Result<(u64, Metadata), PackError> {
    let path = &shard.path;
    let invalid = |reason: String| PackError::InvalidSafetensors { path: path.clone(), reason };
    let truncated = |needed, found| PackError::Truncated { path: path.clone(), needed, found };

    let size = shard.size()?;
    let mut length = [0; 8];
    shard.read_at(&mut length, 0, 8)?;
    json::refuse_stand_in(path, &length)?;
    if length.starts_with(b"PK\x03\x04") {
        return Err(invalid("it is a zip file: unpack it, or name it .bin if torch.save wrote it".into()));
    }
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT {
        let reason = format!(
            "its header claims {length} bytes, at most {HEADER_LIMIT} are read: is it damaged? Download it again"
        );
        return Err(invalid(reason));
    }
    let data_start = 8 + length;
    if data_start > size {
        return Err(truncated(data_start, size));
    }
    let mut header = vec![0; length as usize];
    shard.read_at(&mut header, 8, data_start)?;
    let damaged = |e| invalid(format!("header: {e}; download it again"));
    serde_json::from_slice::<json::UniqueKeys>(&header).map_err(damaged)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(damaged)?;

    let end = data_start.saturating_add(metadata.data_len() as u64);
    if end > size {
        return Err(truncated(end, size));
    }
    if end < size {
        return Err(invalid(format!("{} bytes follow the last tensor; download it again", size - end)));
    }
    Ok((data_start, metadata))
}

/// Reads `weight_map`: tensor to file name; `None` if there is no index.
fn read_index(place: &dyn Place, name: &str) -> Result<Option<BTreeMap<String, String>>, PackError> {
    let invalid = |reason: String| PackError::InvalidConfig {
        path: place.path(name),
        key: "weight_map".into(),
        reason,
    };
    let Some(index) = json::read_object(place, name, INDEX_LIMIT)? else { return Ok(None) };
    let map = index
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| invalid("must be an object from tensor names to file names".into()))?;
    map.iter()
        .map(|(tensor, file)| {
            let file = file.as_str().ok_or_else(|| invalid(format!("gives no file name for `{tensor}`")))?;
            let plain = file_below(file).ok_or_else(|| {
                invalid(format!("names `{file}`, which is not in the folder: download the index again"))
            })?;
            Ok((tensor.clone(), plain))
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// The plain form of the name of a file in the folder or below it; `None` for what leads out of it, or might.
fn file_below(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!parts.is_empty() && !name.ends_with('/')).then(|| parts.join("/"))
}
