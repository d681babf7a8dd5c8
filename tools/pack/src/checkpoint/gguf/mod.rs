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
use std::io::ErrorKind;
use std::path::Path;

use super::entry::{Dtype, Shard, Shards, TensorEntry};
use super::faults::Faults;
use super::place::{Folder, Place};
use super::shapes::Shapes;
use super::{Arch, GenerationDefaults, LayerTensor, ModelConfig, TensorKind};
use crate::PackError;
use metadata::Metadata;
use reader::{Header, TensorInfo};
pub(super) use tokenizer::Texts;

/// Rows of an embedding at most.
const VOCAB: usize = 1 << 20;
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
        let (shard, header) = open(place, name, faults)?;
        let count = faults.or(header.metadata.whole("split.count"), None)?.unwrap_or(1);
        let metadata = if count <= 1 {
            add(&mut shards, shard, header, faults)?
        } else {
            open_splits(place, name, (shard, header), count, &mut shards, faults)?
        };
        let (config, mut notes) = config(&metadata, &shards.entries, faults)?;
        let mut texts = Texts::read(&metadata, faults)?;
        let generation = generation(&metadata, config.vocab_size, &mut notes, faults)?;
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
    let (_, header) = open(&Folder::of(path), name, &mut Faults::First)?;
    Ok(Texts::read(&header.metadata, &mut Faults::First)?.tokenizer)
}

fn open(place: &dyn Place, name: &str, faults: &mut Faults) -> Result<(Shard, Header), PackError> {
    let path = place.path(name);
    let file = place.open(name)?.ok_or_else(|| PackError::io(&path)(ErrorKind::NotFound.into()))?;
    let shard = Shard { path, file };
    let header = reader::read(&shard, faults)?;
    Ok((shard, header))
}

/// Adds a file's tensors. Returns its metadata.
fn add(
    shards: &mut Shards,
    shard: Shard,
    header: Header,
    faults: &mut Faults,
) -> Result<Metadata, PackError> {
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
            faults.meet(PackError::UnsupportedBlock { path, name: entry.name.clone(), dtype })?;
        }
        shards.entries.push(entry);
    }
    shards.files.push(shard);
    Ok(header.metadata)
}

/// Opens all files that a model is split into, of which one is open, and returns the first one's metadata.
fn open_splits(
    place: &dyn Place,
    name: &str,
    given: (Shard, Header),
    count: u64,
    shards: &mut Shards,
    faults: &mut Faults,
) -> Result<Metadata, PackError> {
    let invalid = |reason| Err(given.1.metadata.invalid("split.count", reason));
    if count > SPLITS {
        return invalid(format!("is {count}; at most {SPLITS} files are read"));
    }
    let Some(stem) = split_stem(name, count) else {
        return invalid(format!(
            "is {count}, but the file's name does not end with -00001-of-{count:05}.gguf: give it the name that it had"
        ));
    };
    let (mut given, mut first, mut names, mut tensors) = (Some(given), None, BTreeSet::new(), 0);
    let mut all = true;
    for index in 0..count {
        let file = format!("{stem}-{:05}-of-{count:05}.gguf", index + 1);
        if !place.has(&file)? {
            faults.meet(PackError::MissingSplit { path: place.path(&file), count })?;
            all = false;
            continue;
        }
        let (shard, mut header) = match given.take_if(|_| file == name) {
            Some(given) => given,
            None => open(place, &file, faults)?,
        };
        for (key, expected) in [("split.count", count), ("split.no", index)] {
            let found = faults.or(header.metadata.whole(key), Some(expected))?;
            if found != Some(expected) {
                let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
                let reason =
                    format!("is {found} where the file's name says {expected}: the files are mixed up");
                faults.meet(header.metadata.invalid(key, reason))?;
            }
        }
        tensors += header.tensors.len() as u64;
        let twice: Vec<_> = header.tensors.extract_if(.., |info| !names.insert(info.name.clone())).collect();
        for TensorInfo { name, .. } in twice {
            let (path, reason) = (shard.path.clone(), "another file of the model has it too".into());
            faults.meet(PackError::UnexpectedTensor { path, name, reason })?;
        }
        let metadata = add(shards, shard, header, faults)?;
        first.get_or_insert(metadata);
    }
    // Only where faults are listed may the first one be another's, or there be none at all.
    let Some(first) = first else {
        return Err(PackError::MissingSplit { path: place.path(name), count });
    };
    match faults.or(first.whole("split.tensors.count"), None)? {
        Some(expected) if all && expected != tensors => {
            let reason = format!("is {expected}, but the {count} files have {tensors} tensors");
            faults.meet(first.invalid("split.tensors.count", reason))?;
        }
        _ => {}
    }
    Ok(first)
}

/// What a name has before `-00001-of-00003.gguf`.
pub(super) fn split_stem(name: &str, count: u64) -> Option<&str> {
    let (stem, number) = name.strip_suffix(&format!("-of-{count:05}.gguf"))?.rsplit_once('-')?;
    (number.len() == 5 && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(stem)
}

/// The model's configuration, and what to say about it.
fn config(
    metadata: &Metadata,
    entries: &[TensorEntry],
    faults: &mut Faults,
) -> Result<(ModelConfig, Vec<String>), PackError> {
    let unsupported = |found: &str| {
        Err(PackError::UnsupportedArch { path: metadata.path.clone(), found: found.to_owned() })
    };
    match faults.or(metadata.text("general.type"), None)? {
        None | Some("model") => {}
        Some("adapter") => return Err(PackError::Adapter { path: metadata.path.clone(), base: None }),
        Some(other) => return unsupported(&format!("general.type {other}")),
    }
    match metadata.text("general.architecture")? {
        Some("mamba") => {}
        Some(other) => return unsupported(other),
        None => return Err(metadata.invalid("general.architecture", "is missing; it must be `mamba`".into())),
    }
    let has = |kind: TensorKind| entries.iter().any(|entry| entry.kind == Some(kind));
    let first = |tensor| TensorKind::Layer(0, tensor);
    let falcon = faults.or(metadata.boolean("mamba.ssm.dt_b_c_rms"), None)?.unwrap_or(false);
    let epsilon = "mamba.attention.layer_norm_rms_epsilon";
    let norm_eps = metadata.float(epsilon).and_then(|found| {
        let found = found.ok_or_else(|| metadata.invalid(epsilon, "is missing".into()))? as f32;
        let wrong =
            || metadata.invalid(epsilon, format!("is {found}; it must be a number from 0, such as 1e-5"));
        Some(found).filter(|found| *found >= 0.0 && found.is_finite()).ok_or_else(wrong)
    });
    let norm_eps = faults.or(norm_eps, 1e-5)?;
    let mut notes = Vec::new();
    if falcon {
        notes.push(format!("a GGUF file does not give the epsilon of the norms of dt, B and C; packed with {MIXER_RMS_EPS:e}, that of the published Falcon Mamba models"));
    }
    let shapes = Shapes::of(entries);
    // What is missing or wrong is taken from the tensors, where faults are listed.
    let mut dimension = |name: &str, default: Option<usize>, shape: Option<usize>, limit: usize| {
        let key = format!("mamba.{name}");
        let value = metadata.whole(&key).and_then(|found| {
            let value = match found {
                Some(value) => usize::try_from(value).ok(),
                None => Some(default.ok_or_else(|| metadata.invalid(&key, "is missing".into()))?),
            };
            value.filter(|value| (1..=limit).contains(value)).ok_or_else(|| {
                let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
                metadata.invalid(&key, format!("is {found}; it must be from 1 to {limit}"))
            })
        });
        faults.or(value, shape.unwrap_or(1).clamp(1, limit))
    };
    let d_model = dimension("embedding_length", None, shapes.d_model, 65_536)?;
    let n_layer = dimension("block_count", None, shapes.n_layer, 4096)?;
    let d_inner = dimension("ssm.inner_size", shapes.d_inner, shapes.d_inner, 131_072)?;
    let d_state = dimension("ssm.state_size", None, shapes.d_state, 256)?;
    let d_conv = dimension("ssm.conv_kernel", None, shapes.d_conv, 8)?;
    let dt_rank = dimension("ssm.time_step_rank", None, shapes.dt_rank, 65_536)?;
    // What the tensors say: the key may count the tokens, and the rows be padded.
    let rows = entries.iter().find(|entry| entry.kind == Some(TensorKind::Embedding)).map(|entry| entry.rows);
    let vocab_size = match rows {
        Some(rows @ 1..=VOCAB) => rows,
        Some(rows) => {
            let reason = format!("is {rows} by the embedding; at most {VOCAB} is possible");
            faults.or(Err(metadata.invalid("mamba.vocab_size", reason)), 1)?
        }
        None => dimension("vocab_size", None, None, VOCAB)?,
    };
    let config = ModelConfig {
        arch: if falcon { Arch::FalconMamba } else { Arch::Mamba },
        d_model,
        n_layer,
        d_inner,
        d_state,
        d_conv,
        dt_rank,
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
    faults: &mut Faults,
) -> Result<GenerationDefaults, PackError> {
    let mut id =
        |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            // 2^32 - 1 stands for none.
            let found = faults.or(metadata.whole(&key), None)?.filter(|&id| id != u64::from(u32::MAX));
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
