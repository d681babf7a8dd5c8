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
mod faults;
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
mod quantized;
mod rows;
mod shapes;
mod shards;
#[cfg(test)]
mod tests;
mod version;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use elapid_core::format::Quant;

pub use config::{Arch, ModelConfig};
pub use entry::{Dtype, TensorEntry};
pub(crate) use faults::Faults;
pub use generation::GenerationDefaults;
pub use ggml::{Block, StoredGroup};
pub use gguf::gguf_tokenizer;
pub use names::{LayerTensor, TensorKind};
pub use version::version_of;

use crate::PackError;
use beside::{BesideWeights, GivenTokenizer};
use config::ConfigFile;
use entry::{Shard, Shards};
pub use folder::is_source;
pub(crate) use folder::{Format, Given, given};
use gguf::Gguf;
use place::Place;

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
    /// What the user should know of how it was read, in sentences.
    notes: Vec<String>,
    /// Rows of the head with -inf in them, as far as they were read.
    never: Mutex<BTreeSet<u32>>,
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
        if let Some(source) = hub::Source::named(path)? {
            return source.open();
        }
        let (folder, file) = given(path)?;
        Self::open_as(Box::new(folder), file, &mut Faults::First)
    }

    /// [`Checkpoint::open`] in a place of any kind; `name` is the file of weights, where one is given.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_in(place: Box<dyn Place>, name: Option<&str>) -> Result<Self, PackError> {
        Self::open_as(place, name.map(Format::with_name), &mut Faults::First)
    }

    /// Where faults are listed, no weight is read, and what comes of a checkpoint with faults can't be packed.
    pub(crate) fn open_as(
        place: Box<dyn Place>,
        file: Given,
        faults: &mut Faults,
    ) -> Result<Self, PackError> {
        let mut notes = Vec::new();
        let gguf = folder::gguf_in(&*place, file.as_ref())?;
        let (path, config, generation, shards, beside) = if let Some(name) = gguf {
            let Gguf { config, generation, shards, mut texts } = Gguf::open(&*place, &name, faults)?;
            notes.append(&mut texts.notes);
            (place.path(&name), config, generation, shards, BesideWeights::Gguf(Box::new(texts)))
        } else {
            let config_file = ConfigFile::read(&*place, faults);
            let shards = match file {
                _ if config_file.is_err() && !faults.are_listed() => Ok(Shards::default()),
                Some((name, _)) => Shards::open_file(&*place, &name, faults),
                None => Shards::open(&*place, faults),
            };
            let (config_file, shards) = (config_file?, shards?);
            let is_hugging_face = config_file.is_hugging_face;
            let config = config_file.finish(&shards.entries, faults)?;
            let (values, vocab) = (&config_file.values, config.vocab_size);
            let generation = GenerationDefaults::read(&*place, values, vocab, &mut notes, faults)?;
            let path = place.path("");
            let tokenizer_class = values.get("tokenizer_class").cloned();
            let beside = BesideWeights::Files { place, tokenizer_class, is_hugging_face };
            (path, config, generation, shards, beside)
        };
        let Shards { files, entries } = shards;
        let (roles, tokenizer, never) = (Roles::default(), None, Mutex::default());
        let mut checkpoint =
            Self { path, config, beside, tokenizer, generation, files, entries, roles, notes, never };
        checkpoint.roles = checkpoint.place_tensors(faults)?;
        checkpoint.settle_head(faults.are_listed())?;
        checkpoint.check_presence(faults)?;
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
        let first = rows.start;
        match self.files.get(entry.shard) {
            Some(shard) => {
                rows::read(shard, entry, rows, out)?;
                if entry.kind == Some(TensorKind::Head) {
                    self.note_never(first, entry.columns, out);
                }
                Ok(())
            }
            // An entry of another checkpoint.
            None => Err(PackError::MissingTensor {
                path: self.path.clone(),
                name: entry.name.clone(),
                reason: "it is of another checkpoint".into(),
            }),
        }
    }

    /// Replaces rows of the head that are -inf by zeros: no logit of theirs is a number, so their tokens must never be drawn.
    fn note_never(&self, first: usize, columns: usize, rows: &mut [f32]) {
        for (row, values) in rows.chunks_exact_mut(columns.max(1)).enumerate() {
            if values.iter().any(|value| value.is_infinite()) {
                values.fill(0.0);
                let mut never = self.never.lock().unwrap_or_else(PoisonError::into_inner);
                never.insert((first + row) as u32);
            }
        }
    }

    /// The ids whose rows of the head are -inf, as far as the head was read.
    #[must_use]
    pub fn never_drawn(&self) -> Vec<u32> {
        self.never.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
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
                Some((_, sum)) => *sum = count.saturating_add(*sum),
                None => other = count.saturating_add(other),
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

    /// How its weights are stored.
    #[must_use]
    pub fn format(&self) -> &'static str {
        let name = self.files.first().map(|shard| shard.path.to_string_lossy());
        match Format::of(name.as_deref().unwrap_or_default()) {
            Format::Safetensors => "safetensors",
            Format::Pickle => "torch.save",
            Format::Gguf => "gguf",
        }
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
    fn place_tensors(&self, faults: &mut Faults) -> Result<Roles, PackError> {
        let (n_layer, by) = (self.config.n_layer, self.described_by());
        let mut roles = Roles { layers: vec![Default::default(); n_layer], ..Roles::default() };
        for (index, entry) in self.entries.iter().enumerate() {
            let path = || self.path_of(entry).to_path_buf();
            let mut unexpected = |reason: String| {
                faults.meet(PackError::UnexpectedTensor { path: path(), name: entry.name.clone(), reason })
            };
            let Some(kind) = entry.kind else {
                unexpected("Mamba and Falcon Mamba have no such tensor: is it of another model?".into())?;
                continue;
            };
            // A head that duplicates a tied embedding is common, and looked at later.
            if !kind.is_demanded(&self.config) && kind != TensorKind::Head {
                unexpected(format!(
                    "{by} says that there is no such bias (`use_bias`, `use_conv_bias`); correct it or remove the tensor"
                ))?;
                continue;
            }
            match roles.slot(kind) {
                Some(place @ None) => *place = Some(index),
                Some(Some(other)) => {
                    let other = &self.entries[*other];
                    unexpected(format!(
                        "it is there twice, also as `{}` in {}: remove one of them",
                        other.name,
                        self.path_of(other).display()
                    ))?;
                }
                None => unexpected(format!("{by} says that there are {n_layer} layers: correct it"))?,
            }
            let (expected, meaning) = kind.shape(&self.config);
            if entry.shape != expected {
                faults.meet(PackError::WrongShape {
                    path: path(),
                    name: entry.name.clone(),
                    expected: expected.into(),
                    meaning,
                    by,
                    found: entry.shape.clone().into(),
                })?;
            }
        }
        Ok(roles)
    }

    /// Settles what a head beside a tied embedding, or in its place, is. If it is not a copy of the embedding, it is used:
    /// transformers does not tie them either. Where only headers are read, it is taken for a copy.
    fn settle_head(&mut self, only_headers: bool) -> Result<(), PackError> {
        let (true, Some(head)) = (self.config.tied, self.tensor(TensorKind::Head)) else { return Ok(()) };
        let Some(embedding) = self.tensor(TensorKind::Embedding) else {
            self.roles.embedding = self.roles.head.take();
            return Ok(());
        };
        // torch.save stores tied weights once.
        let place = |entry: &TensorEntry| (entry.shard, entry.offset, entry.dtype, entry.strides.clone());
        if place(head) == place(embedding) {
            self.roles.head = None;
            return Ok(());
        }
        if only_headers {
            let note = format!(
                "`{}` is stored although the head is tied to the embedding: taken for a copy of it; if it is another, it is packed too",
                head.name
            );
            self.notes.push(note);
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
    fn check_presence(&self, faults: &mut Faults) -> Result<(), PackError> {
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
                faults.meet(PackError::MissingTensor { path, name, reason: reason.to_owned() })?;
            }
        }
        Ok(())
    }
}
