//! Reads checkpoints: a Hugging Face folder, or an original Mamba folder in safetensors.
//!
//! [`Checkpoint::open`] checks everything but the values: the configuration, that each tensor
//! it demands is there in the right shape and a known type, and that nothing is there which the model has no place for.
//! Values are checked as they are read. So a packer that got past `open` fails later only for a
//! damaged value or a failing disk.

mod config;
#[cfg(test)]
pub(crate) mod fixture;
mod folder;
mod generation;
mod json;
mod names;
mod rows;
mod shards;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use config::{Arch, ModelConfig};
pub use generation::GenerationDefaults;
pub use names::{LayerTensor, TensorKind};
pub use shards::{Dtype, TensorEntry};

use crate::PackError;
use crate::chat::ChatTemplate;
use crate::tokenizer::Beside;
use config::{CONFIG_LIMIT, ConfigFile};
use shards::{Shard, Shards};

/// The largest tokenizer.json accepted, in bytes; the largest known ones have some 35 MB.
const TOKENIZER_LIMIT: u64 = 128 << 20;

/// Files that together are a tokenizer, and what to call them.
const UNREAD_TOKENIZERS: &[(&[&str], &str)] = &[
    (&["vocab.json", "merges.txt"], "vocab.json and merges.txt"),
    (&["vocab.json"], "vocab.json"),
    (&["vocab.txt"], "vocab.txt"),
    (&["tokenizer.model"], "tokenizer.model (SentencePiece)"),
    (&["spiece.model"], "spiece.model (SentencePiece)"),
    (&["sentencepiece.bpe.model"], "sentencepiece.bpe.model (SentencePiece)"),
    (&["tiktoken.model"], "tiktoken.model"),
    (&["tekken.json"], "tekken.json"),
    (&["rwkv_vocab_v20230424.txt"], "rwkv_vocab_v20230424.txt"),
];

/// An open checkpoint. Holds its files open; several threads may read from it at once.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: ModelConfig,
    /// `tokenizer_class` of config.json.
    tokenizer_class: Option<Value>,
    is_hugging_face: bool,
    generation: GenerationDefaults,
    files: Vec<Shard>,
    entries: Vec<TensorEntry>,
    roles: Roles,
}

/// Which of the entries plays which role.
#[derive(Debug, Default)]
struct Roles {
    embedding: Option<usize>,
    final_norm: Option<usize>,
    head: Option<usize>,
    layers: Vec<[Option<usize>; LayerTensor::ALL.len()]>,
}

impl Roles {
    /// The place for a tensor of this kind; `None` beyond the last layer.
    fn slot(&mut self, kind: TensorKind) -> Option<&mut Option<usize>> {
        match kind {
            TensorKind::Embedding => Some(&mut self.embedding),
            TensorKind::FinalNorm => Some(&mut self.final_norm),
            TensorKind::Head => Some(&mut self.head),
            TensorKind::Layer(layer, tensor) => self.layers.get_mut(layer)?.get_mut(tensor as usize),
        }
    }

    fn get(&self, kind: TensorKind) -> Option<usize> {
        match kind {
            TensorKind::Embedding => self.embedding,
            TensorKind::FinalNorm => self.final_norm,
            TensorKind::Head => self.head,
            TensorKind::Layer(layer, tensor) => *self.layers.get(layer)?.get(tensor as usize)?,
        }
    }
}

impl Checkpoint {
    /// Opens a folder and checks its configuration and the names, types, shapes and extent of its tensors.
    ///
    /// A bias in the file that config.json says is not there is an error, as is one missing that it asks for:
    /// one of the two files is wrong, and which cannot be known here.
    pub fn open(dir: &Path) -> Result<Self, PackError> {
        let file = ConfigFile::read(dir)?;
        let Shards { files, entries } = Shards::open(dir, file.is_hugging_face)?;
        let config = file.finish(&entries)?;
        let generation = GenerationDefaults::read(dir, &file.values, config.vocab_size)?;
        let mut checkpoint = Self {
            dir: dir.to_path_buf(),
            config,
            tokenizer_class: file.values.get("tokenizer_class").cloned(),
            is_hugging_face: file.is_hugging_face,
            generation,
            files,
            entries,
            roles: Roles::default(),
        };
        checkpoint.roles = checkpoint.place_tensors()?;
        checkpoint.settle_head()?;
        checkpoint.check_presence()?;
        Ok(checkpoint)
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokens that start, end and pad a text.
    #[must_use]
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// The tensor in this role, or `None` if the model has none: a bias that it does without,
    /// a head tied to the embedding, a layer beyond the last.
    #[must_use]
    pub fn tensor(&self, kind: TensorKind) -> Option<&TensorEntry> {
        self.entries.get(self.roles.get(kind)?)
    }

    /// The path of the file that holds a tensor.
    #[must_use]
    pub fn path_of(&self, entry: &TensorEntry) -> &Path {
        self.files.get(entry.shard).map_or(&self.dir, |shard| &shard.path)
    }

    /// Reads whole rows as f32 into `out`, which must hold exactly `rows.len() * entry.columns` values.
    ///
    /// Needs no memory but `out` and a fixed buffer of each thread. Fails on a value that is NaN
    /// or infinite, naming it.
    pub fn read_rows(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), PackError> {
        match self.files.get(entry.shard) {
            Some(shard) => rows::read(shard, entry, rows, out),
            // An entry of another checkpoint.
            None => Err(PackError::MissingTensor {
                path: self.dir.clone(),
                name: entry.name.clone(),
                reason: "it is of another checkpoint".into(),
            }),
        }
    }

    /// Lets the system read rows ahead of [`Checkpoint::read_rows`]; only a hint.
    pub fn expect_rows(&self, entry: &TensorEntry, rows: Range<usize>) {
        let row = (entry.columns * entry.dtype.size()) as u64;
        if let Some(shard) = self.files.get(entry.shard) {
            let length = std::num::NonZero::new(rows.len() as u64 * row);
            let advice = rustix::fs::Advice::WillNeed;
            // A file system that takes no hints is no worse off.
            let _ = rustix::fs::fadvise(&shard.file, entry.offset + rows.start as u64 * row, length, advice);
        }
    }

    /// Reads a whole tensor as f32: for vectors and small matrices.
    pub fn read_all(&self, entry: &TensorEntry, out: &mut [f32]) -> Result<(), PackError> {
        self.read_rows(entry, 0..entry.rows, out)
    }

    /// The raw bytes of tokenizer.json, or `None` if there is none.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>, PackError> {
        json::read_file(&self.dir.join("tokenizer.json"), TOKENIZER_LIMIT)
    }

    /// Files of a tokenizer in a format that is not read, where there is no tokenizer.json.
    pub fn unread_tokenizer(&self) -> Result<Option<&'static str>, PackError> {
        for (files, name) in UNREAD_TOKENIZERS {
            let mut all = true;
            for file in *files {
                all &= json::find(&self.dir.join(file))?.is_some();
            }
            if all {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// The files beside tokenizer.json that change what it means.
    pub fn beside_tokenizer(&self) -> Result<Beside, PackError> {
        let object = |name: &str, limit| json::read_object(&self.dir.join(name), limit);
        Ok(Beside {
            config: self.tokenizer_config()?.unwrap_or_default(),
            special_tokens_map: object("special_tokens_map.json", CONFIG_LIMIT)?.unwrap_or_default(),
            added_tokens: object("added_tokens.json", CONFIG_LIMIT)?.unwrap_or_default(),
            model_class: self.tokenizer_class.clone(),
            hugging_face: self.is_hugging_face,
        })
    }

    /// The object in tokenizer_config.json, or `None` if there is none.
    pub fn tokenizer_config(&self) -> Result<Option<Map<String, Value>>, PackError> {
        json::read_object(&self.dir.join("tokenizer_config.json"), CONFIG_LIMIT)
    }

    /// The chat template, or `None` for a model without one. The file chat_template.jinja
    /// goes before the key in tokenizer_config.json, as in transformers. `tokens` are the special tokens that it can
    /// name.
    pub fn chat_template(&self, tokens: &[(String, String)]) -> Result<Option<ChatTemplate>, PackError> {
        let path = self.dir.join("chat_template.jinja");
        if let Some(bytes) = json::read_file(&path, CONFIG_LIMIT)? {
            return ChatTemplate::from_bytes(bytes, tokens, &path).map(Some);
        }
        let config = self.tokenizer_config()?.unwrap_or_default();
        ChatTemplate::from_tokenizer_config(&config, tokens, &self.dir.join("tokenizer_config.json"))
    }

    /// Gives each tensor its role and checks its shape.
    fn place_tensors(&self) -> Result<Roles, PackError> {
        let n_layer = self.config.n_layer;
        let mut roles = Roles { layers: vec![Default::default(); n_layer], ..Roles::default() };
        for (index, entry) in self.entries.iter().enumerate() {
            let unexpected = |reason: String| PackError::UnexpectedTensor {
                path: self.path_of(entry).to_path_buf(),
                name: entry.name.clone(),
                reason,
            };
            let Some(kind) = TensorKind::parse(&entry.name) else {
                return Err(unexpected("Mamba and Falcon Mamba have no such tensor".into()));
            };
            // A head that duplicates a tied embedding is common, and looked at later.
            if !kind.is_demanded(&self.config) && kind != TensorKind::Head {
                return Err(unexpected(
                    "config.json says that there is no such bias (`use_bias`, `use_conv_bias`); correct it or remove the tensor".into(),
                ));
            }
            let (expected, meaning) = kind.shape(&self.config);
            if entry.shape != expected {
                return Err(PackError::WrongShape {
                    path: self.path_of(entry).to_path_buf(),
                    name: entry.name.clone(),
                    expected,
                    meaning,
                    found: entry.shape.clone(),
                });
            }
            match roles.slot(kind) {
                Some(place @ None) => *place = Some(index),
                Some(Some(_)) => return Err(unexpected("it is there twice".into())),
                None => return Err(unexpected(format!("config.json says that there are {n_layer} layers"))),
            }
        }
        Ok(roles)
    }

    /// Settles whether a head beside a tied embedding is a copy of it. If it is not, it is used: transformers
    /// does not tie them either.
    fn settle_head(&mut self) -> Result<(), PackError> {
        let (true, Some(head), Some(embedding)) =
            (self.config.tied, self.tensor(TensorKind::Head), self.tensor(TensorKind::Embedding))
        else {
            return Ok(());
        };
        let at_once = ((1 << 18) / head.columns.max(1)).max(1);
        let mut of_head = vec![0.0; at_once * head.columns];
        let mut of_embedding = of_head.clone();
        for start in (0..head.rows).step_by(at_once) {
            let rows = start..head.rows.min(start + at_once);
            let count = rows.len() * head.columns;
            let (Some(a), Some(b)) = (of_head.get_mut(..count), of_embedding.get_mut(..count)) else { break };
            self.read_rows(head, rows.clone(), a)?;
            self.read_rows(embedding, rows, b)?;
            if a != b {
                self.config.tied = false;
                return Ok(());
            }
        }
        self.roles.head = None;
        Ok(())
    }

    /// Checks that every tensor which the configuration demands is there.
    fn check_presence(&self) -> Result<(), PackError> {
        let layers = (0..self.config.n_layer)
            .flat_map(|layer| LayerTensor::ALL.map(|tensor| TensorKind::Layer(layer, tensor)));
        let whole = [TensorKind::Embedding, TensorKind::FinalNorm, TensorKind::Head];
        for kind in whole.into_iter().chain(layers) {
            if kind.is_demanded(&self.config) && self.tensor(kind).is_none() {
                let reason = match kind {
                    TensorKind::Head => {
                        "config.json's `tie_word_embeddings` is false; it is true if the embedding is also the head"
                    }
                    TensorKind::Layer(_, LayerTensor::InProjBias | LayerTensor::OutProjBias) => {
                        "config.json's `use_bias` asks for it"
                    }
                    TensorKind::Layer(_, LayerTensor::ConvBias) => {
                        "config.json's `use_conv_bias` asks for it"
                    }
                    TensorKind::Layer(..) => {
                        "every layer has one; are `num_hidden_layers` and the files right?"
                    }
                    _ => "every model has one; download the checkpoint again",
                };
                let (path, name) = (self.dir.clone(), kind.to_string());
                return Err(PackError::MissingTensor { path, name, reason: reason.to_owned() });
            }
        }
        Ok(())
    }
}
