//! GGUF files: the architecture `mamba`, in one file or split into several.
//!
//! The weights are used as they are stored; `ssm_a` is A itself, and not its logarithm. Tokenizer, special tokens and chat template
//! become what a Hugging Face folder would have in their place.

mod metadata;
mod names;
mod reader;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::collections::BTreeSet;
use std::path::Path;

use super::entry::{Dtype, Shard, Shards, TensorEntry};
use super::faults::Faults;
use super::place::{Folder, Place};
use super::{Arch, GenerationDefaults, LayerTensor, ModelConfig, TensorKind};
use crate::PackError;
use metadata::Metadata;
use reader::Header;
pub(super) use tokenizer::Texts;

/// Files that a model may be split into.
const SPLITS: u64 = 512;
/// Epsilon of the norms of dt, B and C, which no key gives: that of the published models.
const MIXER_RMS_EPS: f32 = 1e-6;

/// What a GGUF file holds.
#[derive(Debug)]
pub(super) struct Gguf {
    pub(super) config: ModelConfig,
    pub(super) generation: GenerationDefaults,
    pub(super) shards: Shards,
    pub(super) texts: Texts,
}

impl Gguf {
    /// Opens a file, and with it those that it is split into.
    pub(super) fn open(place: &dyn Place, name: &str, faults: &mut Faults) -> Result<Self, PackError> {
        let mut shards = Shards::default();
        let (shard, header) = open(place, name)?;
        let count = header.metadata.whole("split.count")?.unwrap_or(1);
        let metadata = if count <= 1 {
            add(&mut shards, shard, header)?.0
        } else {
            open_splits(place, name, &header.metadata, count, &mut shards)?
        };
        shards.entries.iter().for_each(|entry| faults.count(entry.dtype.name(), &entry.shape));
        let (config, mut notes) = config(&metadata, &shards.entries)?;
        let mut texts = Texts::read(&metadata)?;
        let generation = generation(&metadata, config.vocab_size, &mut notes)?;
        texts.notes.append(&mut notes);
        Ok(Self { config, generation, shards, texts })
    }
}

/// The tokenizer.json that the metadata of a GGUF file stand for, which may have no weights; `None` if it has no tokenizer.
///
/// # Errors
/// What is wrong with the file, and a tokenizer of a kind that is not read.
pub fn gguf_tokenizer(path: &Path) -> Result<Option<Vec<u8>>, PackError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (_, header) = open(&Folder::of(path), name)?;
    Ok(Texts::read(&header.metadata)?.tokenizer)
}

fn open(place: &dyn Place, name: &str) -> Result<(Shard, Header), PackError> {
    let path = place.path(name);
    let file = place.open(name)?.ok_or_else(|| {
        let source = std::io::ErrorKind::NotFound.into();
        PackError::Io { path: path.clone(), source }
    })?;
    let shard = Shard { path, file };
    let header = reader::read(&shard)?;
    Ok((shard, header))
}

/// Adds a file's tensors. Returns its metadata and how many tensors it had.
fn add(shards: &mut Shards, shard: Shard, header: Header) -> Result<(Metadata, usize), PackError> {
    let count = header.tensors.len();
    for info in header.tensors {
        let kind = names::parse(&info.name);
        let mut entry =
            TensorEntry::new(info.name, kind, info.dtype, info.shape, shards.files.len(), info.offset);
        if matches!(kind, Some(TensorKind::Layer(_, LayerTensor::Conv))) && entry.shape.len() < 3 {
            // One tap is left out of the shape, as is the 1 for a depthwise convolution.
            let taps = if entry.shape.len() == 2 { entry.columns } else { 1 };
            entry.columns = taps;
            entry.shape = vec![entry.rows, 1, taps];
        }
        if let (Dtype::Block(block), 1) = (entry.dtype, entry.columns) {
            let (path, dtype) =
                (shard.path.clone(), format!("{}, which only matrices may have", block.name()));
            return Err(PackError::UnsupportedBlock { path, name: entry.name, dtype });
        }
        shards.entries.push(entry);
    }
    shards.files.push(shard);
    Ok((header.metadata, count))
}

/// Opens all files that a model is split into, and returns the first one's metadata.
fn open_splits(
    place: &dyn Place,
    name: &str,
    given: &Metadata,
    count: u64,
    shards: &mut Shards,
) -> Result<Metadata, PackError> {
    if count > SPLITS {
        return Err(given.invalid("split.count", format!("is {count}; at most {SPLITS} files are read")));
    }
    let Some(stem) = split_stem(name, count) else {
        let reason = format!(
            "is {count}, but the file's name does not end with -00001-of-{count:05}.gguf: give it the name that it had"
        );
        return Err(given.invalid("split.count", reason));
    };
    let (mut first, mut names, mut tensors) = (None, BTreeSet::new(), 0);
    for index in 0..count {
        let name = format!("{stem}-{:05}-of-{count:05}.gguf", index + 1);
        if !place.has(&name)? {
            return Err(PackError::MissingSplit { path: place.path(&name), count });
        }
        let (shard, header) = open(place, &name)?;
        for (key, expected) in [("split.count", count), ("split.no", index)] {
            let found = header.metadata.whole(key)?;
            if found != Some(expected) {
                let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
                let reason =
                    format!("is {found} where the file's name says {expected}: the files are mixed up");
                return Err(header.metadata.invalid(key, reason));
            }
        }
        for info in &header.tensors {
            if !names.insert(info.name.clone()) {
                let (path, name) = (shard.path, info.name.clone());
                return Err(PackError::UnexpectedTensor {
                    path,
                    name,
                    reason: "another file of the model has it too".into(),
                });
            }
        }
        let (metadata, found) = add(shards, shard, header)?;
        tensors += found as u64;
        first.get_or_insert(metadata);
    }
    let first = first.ok_or_else(|| given.invalid("split.count", "is 0".into()))?;
    match first.whole("split.tensors.count")? {
        Some(expected) if expected != tensors => {
            let reason = format!("is {expected}, but the {count} files have {tensors} tensors");
            Err(first.invalid("split.tensors.count", reason))
        }
        _ => Ok(first),
    }
}

/// What a name has before `-00001-of-00003.gguf`.
pub(super) fn split_stem(name: &str, count: u64) -> Option<&str> {
    let (stem, number) = name.strip_suffix(&format!("-of-{count:05}.gguf"))?.rsplit_once('-')?;
    (number.len() == 5 && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(stem)
}

/// The model's configuration, and what to say about it.
fn config(metadata: &Metadata, entries: &[TensorEntry]) -> Result<(ModelConfig, Vec<String>), PackError> {
    let unsupported = |found: &str| {
        Err(PackError::UnsupportedArch { path: metadata.path.clone(), found: found.to_owned() })
    };
    match metadata.text("general.type")? {
        None | Some("model") => {}
        Some("adapter") => return Err(PackError::Adapter { path: metadata.path.clone(), base: None }),
        Some(other) => return unsupported(&format!("general.type {other}")),
    }
    match metadata.text("general.architecture")? {
        Some("mamba") => {}
        Some(other) => return unsupported(other),
        None => return Err(metadata.invalid("general.architecture", "is missing; it must be `mamba`".into())),
    }
    let dimension = |key: &str, default: Option<usize>, limit: usize| {
        let found = metadata.whole(key)?;
        let value = match found {
            Some(value) => usize::try_from(value).ok(),
            None => Some(default.ok_or_else(|| metadata.invalid(key, "is missing".into()))?),
        };
        value.filter(|value| (1..=limit).contains(value)).ok_or_else(|| {
            let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
            metadata.invalid(key, format!("is {found}; it must be from 1 to {limit}"))
        })
    };
    let has = |kind: TensorKind| entries.iter().any(|entry| entry.kind == Some(kind));
    let of = |kind: TensorKind| entries.iter().find(|entry| entry.kind == Some(kind)).map(|entry| entry.rows);
    let first = |tensor| TensorKind::Layer(0, tensor);
    let d_model = dimension("mamba.embedding_length", None, 65_536)?;
    let falcon = metadata.boolean("mamba.ssm.dt_b_c_rms")?.unwrap_or(false);
    let epsilon = "mamba.attention.layer_norm_rms_epsilon";
    let norm_eps =
        metadata.float(epsilon)?.ok_or_else(|| metadata.invalid(epsilon, "is missing".into()))? as f32;
    if !(norm_eps >= 0.0 && norm_eps.is_finite()) {
        return Err(
            metadata.invalid(epsilon, format!("is {norm_eps}; it must be a number from 0, such as 1e-5"))
        );
    }
    let mut notes = Vec::new();
    if falcon {
        notes.push(format!("a GGUF file does not give the epsilon of the norms of dt, B and C; packed with {MIXER_RMS_EPS:e}, that of the published Falcon Mamba models"));
    }
    // What the tensors say: the key may count the tokens, and the rows be padded.
    let vocab_size = match of(TensorKind::Embedding) {
        Some(rows) => rows,
        None => dimension("mamba.vocab_size", None, 1 << 20)?,
    };
    if !(1..=1 << 20).contains(&vocab_size) {
        return Err(metadata.invalid(
            "mamba.vocab_size",
            format!("is {vocab_size} by the embedding; at most {} is possible", 1 << 20),
        ));
    }
    let config = ModelConfig {
        arch: if falcon { Arch::FalconMamba } else { Arch::Mamba },
        d_model,
        n_layer: dimension("mamba.block_count", None, 4096)?,
        d_inner: dimension("mamba.ssm.inner_size", of(first(LayerTensor::D)), 131_072)?,
        d_state: dimension("mamba.ssm.state_size", None, 256)?,
        d_conv: dimension("mamba.ssm.conv_kernel", None, 8)?,
        dt_rank: dimension("mamba.ssm.time_step_rank", None, 65_536)?,
        vocab_size,
        norm_eps,
        mixer_rms_eps: falcon.then_some(MIXER_RMS_EPS),
        use_bias: has(first(LayerTensor::InProjBias)),
        use_conv_bias: has(first(LayerTensor::ConvBias)),
        tied: !has(TensorKind::Head),
    };
    Ok((config, notes))
}

/// The tokens that end, start and pad a text.
fn generation(
    metadata: &Metadata,
    vocab_size: usize,
    notes: &mut Vec<String>,
) -> Result<GenerationDefaults, PackError> {
    let mut id =
        |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            // 2^32 - 1 stands for none.
            let found = metadata.whole(&key)?.filter(|&id| id != u64::from(u32::MAX));
            let (within, beyond) = match found {
                Some(id) if id < vocab_size as u64 => (Some(id as u32), None),
                other => (None, other),
            };
            notes.extend(beyond.map(|id| {
                format!("`{key}` is {id}, beyond the {vocab_size} rows of the embedding: left out")
            }));
            Ok::<_, PackError>(within)
        };
    let mut eos = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let found = id(name)?;
        eos.extend(found.filter(|id| !eos.contains(id)));
    }
    Ok(GenerationDefaults { eos, bos: id("bos")?, pad: id("padding")? })
}
