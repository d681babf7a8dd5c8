//! Reads checkpoints: a Hugging Face folder, an original Mamba folder, both in safetensors or in files of torch.save, or GGUF
//! files.
//!
//! [`Checkpoint::open`] checks everything but the values: the configuration, that each tensor
//! it demands is there in the right shape and a known type, and that nothing is there which the model has no place for.
//! Values are checked as they are read. So a packer that got past `open` fails later only for a
//! damaged value or a failing disk.

mod beside;
mod config;
mod entry;
#[cfg(test)]
pub(crate) mod fixture;
mod folder;
mod generation;
mod ggml;
mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
mod json;
mod names;
mod pickle;
pub mod place;
mod rows;
mod shards;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};

use elapid_core::format::Quant;

pub use config::{Arch, ModelConfig};
pub use entry::{Dtype, TensorEntry};
pub use generation::GenerationDefaults;
pub use ggml::{Block, StoredGroup};
pub use names::{LayerTensor, TensorKind};

use crate::PackError;
use beside::{BesideWeights, GivenTokenizer};
use config::ConfigFile;
use entry::{Shard, Shards};
use folder::{Format, Given};
use gguf::Gguf;
use place::{Folder, Place};

/// An open checkpoint. Holds its files open; several threads may read from it at once.
#[derive(Debug)]
pub struct Checkpoint {
    /// How messages call it.
    path: PathBuf,
    config: ModelConfig,
    beside: BesideWeights,
    /// A tokenizer from elsewhere.
    tokenizer: Option<GivenTokenizer>,
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
    /// Opens a model of the Hub (`hf:ORG/NAME`, if compiled with the feature `hub`), a folder, a file of safetensors or of torch.save beside its config.json, or a GGUF file (of a split model, any of them), and checks
    /// its configuration and the names, types, shapes and extent of its tensors.
    ///
    /// A bias in the file that config.json says is not there is an error, as is one missing that it asks for:
    /// one of the two files is wrong, and which cannot be known here.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn open(path: &Path) -> Result<Self, PackError> {
        #[cfg(feature = "hub")]
        if let Some(name) = hub::Name::text(path) {
            return hub::Source::find(&hub::Name::parse(name)?, hub::Settings::from_env()?)?.open();
        }
        match folder::given(path)? {
            Given::Folder => Self::open_in(Box::new(Folder(path.to_path_buf())), None),
            Given::File(name, format) => Self::open_as(Box::new(Folder::of(path)), Some((&name, format))),
        }
    }

    /// [`Checkpoint::open`] in a place of any kind; `name` is the file of weights, where one is given.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_in(place: Box<dyn Place>, name: Option<&str>) -> Result<Self, PackError> {
        Self::open_as(place, name.map(|name| (name, Format::of(name))))
    }

    fn open_as(place: Box<dyn Place>, file: Option<(&str, Format)>) -> Result<Self, PackError> {
        let gguf = match file {
            Some((name, Format::Gguf)) => Some(name.to_owned()),
            Some(_) => None,
            None => folder::only_gguf(&*place)?,
        };
        let name = file.map(|(name, _)| name);
        if let Some(name) = gguf {
            let Gguf { config, generation, shards, texts } = Gguf::open(&*place, &name)?;
            let path = place.path(&name);
            return Self::check(path, config, generation, shards, BesideWeights::Gguf(Box::new(texts)));
        }
        let config_file = ConfigFile::read(&*place)?;
        let is_hugging_face = config_file.is_hugging_face;
        let shards = match name {
            Some(name) => Shards::open_file(&*place, name)?,
            None => Shards::open(&*place)?,
        };
        let config = config_file.finish(&shards.entries)?;
        let generation = GenerationDefaults::read(&*place, &config_file.values, config.vocab_size)?;
        let path = place.path("");
        let tokenizer_class = config_file.values.get("tokenizer_class").cloned();
        let beside = BesideWeights::Files { place, tokenizer_class, is_hugging_face };
        Self::check(path, config, generation, shards, beside)
    }

    /// Gives the tensors their roles and checks that all are there.
    fn check(
        path: PathBuf,
        config: ModelConfig,
        generation: GenerationDefaults,
        shards: Shards,
        beside: BesideWeights,
    ) -> Result<Self, PackError> {
        let Shards { files, entries } = shards;
        let roles = Roles::default();
        let tokenizer = None;
        let mut checkpoint = Self { path, config, beside, tokenizer, generation, files, entries, roles };
        checkpoint.roles = checkpoint.place_tensors()?;
        checkpoint.settle_head()?;
        checkpoint.check_presence()?;
        Ok(checkpoint)
    }

    /// The folder, or the file that is more than weights.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
        self.files.get(entry.shard).map_or(&self.path, |shard| &shard.path)
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
                path: self.path.clone(),
                name: entry.name.clone(),
                reason: "it is of another checkpoint".into(),
            }),
        }
    }

    /// Reads the groups of whole rows, of a tensor that is stored in groups which a packed file can keep.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows`], and for a tensor of another kind.
    pub fn read_groups(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
        out: &mut Vec<StoredGroup>,
    ) -> Result<(), PackError> {
        match self.files.get(entry.shard) {
            Some(shard) => rows::read_groups(shard, entry, rows, out),
            None => Err(PackError::NoGroups { name: entry.name.clone() }),
        }
    }

    /// The type that keeps most of the weights as they are stored, and one for head and embedding where that is another;
    /// `None` where nothing is stored in groups.
    #[must_use]
    pub fn kept_as(&self) -> Option<(Quant, Option<Quant>)> {
        let mut weights = [(Quant::Q4, 0), (Quant::Q5, 0), (Quant::Q8, 0)];
        let mut other = 0;
        for entry in &self.entries {
            let Some(TensorKind::Layer(_, LayerTensor::InProj | LayerTensor::OutProj)) = entry.kind else {
                continue;
            };
            let count = entry.rows.saturating_mul(entry.columns);
            let finest = entry.kept_as().first();
            match weights.iter_mut().find(|(quant, _)| Some(quant) == finest) {
                Some((_, sum)) => *sum += count,
                None => other += count,
            }
        }
        let (quant, most) = weights.into_iter().max_by_key(|(_, count)| *count)?;
        if most <= other {
            return None;
        }
        let head = [TensorKind::Head, TensorKind::Embedding].map(|kind| self.tensor(kind));
        let kept = head.into_iter().flatten().all(|entry| entry.kept_as().contains(&quant));
        Some((quant, (!kept && quant != Quant::Q8).then_some(Quant::Q8)))
    }

    /// Lets the system read rows ahead of [`Checkpoint::read_rows`]; only a hint.
    pub fn expect_rows(&self, entry: &TensorEntry, rows: Range<usize>) {
        let Some(shard) = self.files.get(entry.shard) else { return };
        if entry.strides.is_some() {
            return;
        }
        let bytes = |rows: usize| entry.dtype.bytes(rows.saturating_mul(entry.columns)).unwrap_or_default();
        shard.file.expect(entry.offset + bytes(rows.start), bytes(rows.len()));
    }

    /// Reads a whole tensor as f32: for vectors and small matrices.
    pub fn read_all(&self, entry: &TensorEntry, out: &mut [f32]) -> Result<(), PackError> {
        self.read_rows(entry, 0..entry.rows, out)
    }

    /// What tells the files of weights from any others that may be in their place later, where that is known.
    #[must_use]
    pub fn version(&self) -> String {
        let versions = self.files.iter().map(|shard| shard.file.version().unwrap_or_default());
        versions.collect::<Vec<_>>().join(" ")
    }

    /// Whether it is a GGUF file.
    #[must_use]
    pub fn is_gguf(&self) -> bool {
        matches!(self.beside, BesideWeights::Gguf(_))
    }

    /// Whether the tensors [`LayerTensor::ALog`] hold A itself, and not ln(-A).
    #[must_use]
    pub fn holds_a(&self) -> bool {
        self.is_gguf()
    }

    /// What says how large the model is.
    fn described_by(&self) -> &'static str {
        match self.beside {
            BesideWeights::Files { .. } => "config.json",
            BesideWeights::Gguf(_) => "the file's metadata",
        }
    }

    /// Gives each tensor its role and checks its shape.
    fn place_tensors(&self) -> Result<Roles, PackError> {
        let (n_layer, by) = (self.config.n_layer, self.described_by());
        let mut roles = Roles { layers: vec![Default::default(); n_layer], ..Roles::default() };
        for (index, entry) in self.entries.iter().enumerate() {
            let unexpected = |reason: String| PackError::UnexpectedTensor {
                path: self.path_of(entry).to_path_buf(),
                name: entry.name.clone(),
                reason,
            };
            let Some(kind) = entry.kind else {
                return Err(unexpected("Mamba and Falcon Mamba have no such tensor".into()));
            };
            // A head that duplicates a tied embedding is common, and looked at later.
            if !kind.is_demanded(&self.config) && kind != TensorKind::Head {
                return Err(unexpected(format!(
                    "{by} says that there is no such bias (`use_bias`, `use_conv_bias`); correct it or remove the tensor"
                )));
            }
            let (expected, meaning) = kind.shape(&self.config);
            if entry.shape != expected {
                return Err(PackError::WrongShape {
                    path: self.path_of(entry).to_path_buf(),
                    name: entry.name.clone(),
                    expected: expected.into(),
                    meaning,
                    by,
                    found: entry.shape.clone().into(),
                });
            }
            match roles.slot(kind) {
                Some(place @ None) => *place = Some(index),
                Some(Some(_)) => return Err(unexpected("it is there twice".into())),
                None => return Err(unexpected(format!("{by} says that there are {n_layer} layers"))),
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
        // torch.save stores tied weights once.
        let place = |entry: &TensorEntry| (entry.shard, entry.offset, entry.dtype, entry.strides.clone());
        if place(head) == place(embedding) {
            self.roles.head = None;
            return Ok(());
        }
        [head, embedding].into_iter().for_each(|entry| self.expect_rows(entry, 0..entry.rows));
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
                        "every layer has one; are the number of layers and the files right?"
                    }
                    _ => "every model has one; download the checkpoint again",
                };
                let (path, name) = (self.path.clone(), kind.to_string());
                return Err(PackError::MissingTensor { path, name, reason: reason.to_owned() });
            }
        }
        Ok(())
    }
}
