//! Safetensors files: headers are checked when opened, data is only ever read
//! at a position and never mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use elapid_files::open_regular;
use safetensors::tensor::{Dtype as StDtype, Metadata};

use super::{folder, json};
use crate::PackError;

/// The largest header accepted: more than the largest model allowed (4096 layers)
/// needs. The format itself permits 100 MB.
const HEADER_LIMIT: u64 = 8 << 20;
/// The largest index accepted, in bytes.
const INDEX_LIMIT: u64 = 16 << 20;
/// More shards than this would exhaust the process's file descriptors.
const SHARD_LIMIT: usize = 512;

/// The type in which a checkpoint stores a tensor. Each converts to f32 exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE-754 binary32.
    F32,
    /// IEEE-754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes that one element takes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Where a tensor lies and how it is stored.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// The name in the file.
    pub name: String,
    /// The type of the elements.
    pub dtype: Dtype,
    /// The shape in the file.
    pub shape: Vec<usize>,
    /// Rows: the first dimension. An element of a vector is a row of length 1.
    pub rows: usize,
    /// Values in a row: the product of the other dimensions.
    pub columns: usize,
    /// Index of the file that holds it.
    pub(super) shard: usize,
    /// Where its data starts in that file, in bytes.
    pub(super) offset: u64,
}

/// An open safetensors file.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

/// The files of a checkpoint and every tensor in them.
#[derive(Debug)]
pub(super) struct Shards {
    pub(super) files: Vec<Shard>,
    pub(super) entries: Vec<TensorEntry>,
}

impl Shards {
    /// Opens `model.safetensors`, or the shards that the index lists. `is_hugging_face`
    /// picks the advice for a folder that has only PyTorch's files.
    pub(super) fn open(dir: &Path, is_hugging_face: bool) -> Result<Self, PackError> {
        let mut shards = Self { files: Vec::new(), entries: Vec::new() };
        let single = dir.join("model.safetensors");
        if json::find(&single)?.is_some() {
            shards.add(&single)?;
            return Ok(shards);
        }
        let index = dir.join("model.safetensors.index.json");
        if json::find(&index)?.is_none() {
            return Err(no_safetensors(dir, is_hugging_face));
        }
        let weight_map = read_index(&index)?;
        let mut tensors_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, file) in &weight_map {
            tensors_of.entry(file).or_default().insert(tensor);
        }
        if tensors_of.len() > SHARD_LIMIT {
            return Err(PackError::InvalidConfig {
                path: index,
                key: "weight_map".into(),
                reason: format!("names {} files; at most {SHARD_LIMIT} are read", tensors_of.len()),
            });
        }
        for (file, tensors) in tensors_of {
            let path = dir.join(file);
            if json::find(&path)?.is_none() {
                let tensor = tensors.first().copied().unwrap_or_default().to_owned();
                return Err(PackError::MissingShard { path, tensor });
            }
            let first = shards.entries.len();
            shards.add(&path)?;
            let found: BTreeSet<&str> =
                shards.entries.iter().skip(first).map(|entry| entry.name.as_str()).collect();
            if let Some(name) = tensors.difference(&found).next() {
                return Err(PackError::MissingTensor {
                    path,
                    name: (*name).to_owned(),
                    reason: "model.safetensors.index.json says it is in this shard; download both again"
                        .into(),
                });
            }
        }
        Ok(shards)
    }

    /// Opens a file and lists its tensors.
    fn add(&mut self, path: &Path) -> Result<(), PackError> {
        let file = open_regular(path).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => PackError::InvalidSafetensors {
                path: path.to_path_buf(),
                reason: "it is not a regular file".into(),
            },
            _ => PackError::Io { path: path.to_path_buf(), source },
        })?;
        let (data_start, metadata) = read_header(path, &file)?;
        let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        for (name, info) in tensors {
            let dtype = match info.dtype {
                StDtype::F32 => Dtype::F32,
                StDtype::F16 => Dtype::F16,
                StDtype::BF16 => Dtype::Bf16,
                other => {
                    let (path, dtype) = (path.to_path_buf(), other.to_string());
                    return Err(PackError::UnsupportedDtype { path, name, dtype });
                }
            };
            self.entries.push(TensorEntry {
                name,
                dtype,
                rows: info.shape.first().copied().unwrap_or(1),
                // The header's check multiplied all dimensions, but 0 * anything passes it.
                columns: info.shape.iter().skip(1).fold(1, |product: usize, &n| product.saturating_mul(n)),
                shape: info.shape.clone(),
                shard: self.files.len(),
                offset: data_start + info.data_offsets.0 as u64,
            });
        }
        self.files.push(Shard { path: path.to_path_buf(), file });
        Ok(())
    }
}

/// Reads and checks a header. Returns where the data starts and what it is.
fn read_header(path: &Path, file: &File) -> Result<(u64, Metadata), PackError> {
    let invalid = |reason: String| PackError::InvalidSafetensors { path: path.to_path_buf(), reason };
    let truncated = |needed, found| PackError::Truncated { path: path.to_path_buf(), needed, found };

    let size = file.metadata().map_err(PackError::io(path))?.len();
    let mut length = [0; 8];
    read_at(path, file, &mut length, 0, 8)?;
    if &length == b"version " {
        return Err(PackError::LfsPointer { path: path.to_path_buf() });
    }
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT {
        return Err(invalid(format!("its header claims {length} bytes, at most {HEADER_LIMIT} are read")));
    }
    let data_start = 8 + length;
    if data_start > size {
        return Err(truncated(data_start, size));
    }
    let mut header = vec![0; length as usize];
    read_at(path, file, &mut header, 8, data_start)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| invalid(format!("header: {e}")))?;

    let end = data_start.saturating_add(metadata.data_len() as u64);
    if end > size {
        return Err(truncated(end, size));
    }
    if end < size {
        return Err(invalid(format!("{} bytes follow the last tensor; download it again", size - end)));
    }
    Ok((data_start, metadata))
}

/// Fills `bytes` from `offset` on. A file that ends before is reported as truncated,
/// its tensors needing `needed` bytes.
pub(super) fn read_at(
    path: &Path,
    file: &File,
    bytes: &mut [u8],
    offset: u64,
    needed: u64,
) -> Result<(), PackError> {
    file.read_exact_at(bytes, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => PackError::Truncated {
            path: path.to_path_buf(),
            needed,
            found: file.metadata().map_or(offset, |about| about.len()),
        },
        _ => PackError::Io { path: path.to_path_buf(), source },
    })
}

/// Reads `weight_map`: tensor to file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, PackError> {
    let invalid = |reason: String| PackError::InvalidConfig {
        path: path.to_path_buf(),
        key: "weight_map".into(),
        reason,
    };
    let index = json::read_object(path, INDEX_LIMIT)?
        .ok_or_else(|| PackError::Io { path: path.to_path_buf(), source: io::ErrorKind::NotFound.into() })?;
    let map = index
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| invalid("must be an object from tensor names to file names".into()))?;
    map.iter()
        .map(|(tensor, file)| {
            let file = file.as_str().ok_or_else(|| invalid(format!("gives no file name for `{tensor}`")))?;
            // A name with a folder in it could point anywhere on this machine.
            if Path::new(file).file_name().is_none_or(|name| name != file) {
                return Err(invalid(format!("names `{file}`, which is not a plain file name")));
            }
            Ok((tensor.clone(), file.to_owned()))
        })
        .collect()
}

/// The most helpful error for a folder without safetensors.
fn no_safetensors(dir: &Path, is_hugging_face: bool) -> PackError {
    for found in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        if dir.join(found).exists() {
            let how = if is_hugging_face {
                format!(
                    "python3 -c \"from transformers import AutoModelForCausalLM as M; d = '{0}'; M.from_pretrained(d, dtype='auto').save_pretrained(d, safe_serialization=True)\"",
                    dir.display()
                )
            } else {
                // transformers does not read the original configuration.
                format!(
                    "python3 -c \"import torch, safetensors.torch as s; d = '{0}/'; w = torch.load(d + 'pytorch_model.bin', map_location='cpu', weights_only=True); s.save_file({{k: v.clone() for k, v in w.items()}}, d + 'model.safetensors')\"",
                    dir.display()
                )
            };
            return PackError::PickleOnly { path: dir.to_path_buf(), found, how };
        }
    }
    folder::lacks(dir, "model.safetensors")
}
