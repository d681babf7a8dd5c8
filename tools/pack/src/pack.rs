//! From a checkpoint to a packed file.

use std::path::Path;

use elapid_core::format::data::DataError;
use elapid_core::format::{
    Arch as FormatArch, Config, DataSizes, Fields, FormatError, Layout, PerMatrix, Quant, Quants,
};

use crate::PackError;
use crate::checkpoint::{Arch, Checkpoint, Faults, ModelConfig};
use crate::contents::Contents;
use crate::random::RandomWeights;
use crate::sections::{Sections, data_sections};
use crate::write::{DataSections, Partial, Progress, write_file};

/// How a model is to be packed.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Type of the large matrices. x_proj and dt_proj take it too, but at least q8.
    pub quant: Quant,
    /// Type of the head and the embedding, where it is not `quant`.
    pub head: Option<Quant>,
    /// Bytes of a block at most, a multiple of 16 KiB.
    pub block_bytes: u32,
    /// Whether blocks and sections are aligned to 512 bytes rather than to pages.
    pub compact: bool,
    /// Threads that quantize.
    pub threads: usize,
}

/// All types of weights, from the largest to the smallest.
pub const FINEST_FIRST: [Quant; 6] = [Quant::F32, Quant::F16, Quant::Q8, Quant::Q5, Quant::Q4, Quant::Q3];
const _: () = assert!(FINEST_FIRST.len() == Quant::ALL.len());

/// The type of this name, for an argument.
///
/// # Errors
/// The names that there are.
pub fn parse_quant(text: &str) -> Result<Quant, String> {
    let known = Quant::ALL.into_iter().find(|quant| quant.name() == text);
    known.ok_or_else(|| "choose f32, f16, q8, q5, q4 or q3".into())
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { quant: Quant::Q8, head: None, block_bytes: 1 << 20, compact: false, threads }
    }
}

/// Threads that pack a source far away at least.
const REMOTE_THREADS: usize = 8;

impl Options {
    /// For a source far away: threads that wait for it don't compute, so there are more of them.
    #[must_use]
    pub fn remote(mut self) -> Self {
        self.threads = self.threads.max(REMOTE_THREADS);
        self
    }

    /// The packed file's configuration for a model.
    ///
    /// # Errors
    /// [`PackError::Format`] if it is out of the format's limits.
    pub fn config(&self, model: &ModelConfig, data: &DataSections) -> Result<Config, PackError> {
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let small = if self.quant.is_coarse() { Quant::Q8 } else { self.quant };
        let head = self.head.unwrap_or(self.quant);
        let fields = Fields {
            arch: match model.arch {
                Arch::Mamba => FormatArch::Mamba,
                Arch::FalconMamba => FormatArch::FalconMamba,
            },
            d_model: number(model.d_model),
            d_inner: number(model.d_inner),
            d_state: number(model.d_state),
            d_conv: number(model.d_conv),
            dt_rank: number(model.dt_rank),
            n_layer: number(model.n_layer),
            vocab: number(model.vocab_size),
            norm_eps: model.norm_eps,
            bcdt_eps: model.mixer_rms_eps,
            tied: model.tied,
            bias: model.use_bias,
            conv_bias: model.use_conv_bias,
            compact: self.compact,
            quants: Quants {
                embedding: head,
                in_proj: self.quant,
                x_proj: small,
                dt_proj: small,
                out_proj: self.quant,
                head,
            },
            exponents: PerMatrix::default(),
            logit_exponent: 0,
            block_bytes: self.block_bytes,
            data: DataSizes {
                tokenizer: size(&data.tokenizer),
                chat_template: size(&data.chat_template),
                role_table: size(&data.role_table),
                generation: size(&data.generation),
            },
        };
        Ok(Config::new(fields)?)
    }
}

impl From<FormatError> for PackError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

impl From<DataError> for PackError {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

/// Something that can be packed: its configuration and sections are settled, nothing has been written.
#[derive(Debug)]
pub struct Plan<W> {
    weights: W,
    config: Config,
    data: DataSections,
    layout: Layout,
    notes: Vec<String>,
    without_tokenizer: Option<String>,
    /// Pieces of text for calibration, as tokens.
    pieces: Vec<Vec<u32>>,
}

impl Plan<Checkpoint> {
    /// Has the file calibrated on `tokens` tokens of a text.
    ///
    /// # Errors
    /// If the text can't be read or is too short, the checkpoint has no tokenizer, or nothing is stored in few bits.
    pub fn calibrate(&mut self, text: &Path, tokens: usize) -> Result<(), PackError> {
        let quants = self.config.quants;
        if ![quants.in_proj, quants.out_proj, quants.head].into_iter().any(Quant::is_coarse) {
            let reason =
                "nothing is packed in so few bits that a text could help: choose q5, q4 or q3".into();
            return Err(PackError::Calibration { path: text.to_owned(), reason });
        }
        self.pieces = crate::calibrate::pieces(&self.data.tokenizer, text, tokens)?;
        Ok(())
    }

    /// Reads a checkpoint's configuration, tokenizer and templates, and checks its tensors' shapes.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn checkpoint(source: &Path, options: &Options) -> Result<Self, PackError> {
        Self::open(Checkpoint::open(source)?, options)
    }

    /// As [`Plan::checkpoint`], of a checkpoint that is open.
    ///
    /// # Errors
    /// What is wrong with what lies beside the weights.
    pub fn open(checkpoint: Checkpoint, options: &Options) -> Result<Self, PackError> {
        let Sections { data, notes, without_tokenizer } = data_sections(&checkpoint, &mut Faults::First)?;
        let config = options.config(checkpoint.config(), &data)?;
        Ok(Self {
            layout: Layout::new(config)?,
            weights: checkpoint,
            config,
            data,
            notes,
            without_tokenizer,
            pieces: Vec::new(),
        })
    }
}

impl Plan<RandomWeights> {
    /// A model of random weights, without a tokenizer.
    ///
    /// # Errors
    /// [`PackError::Format`] if it is out of the format's limits.
    pub fn random(model: &ModelConfig, seed: u64, options: &Options) -> Result<Self, PackError> {
        let data = DataSections::default();
        let config = options.config(model, &data)?;
        let weights = RandomWeights::new(model.clone(), seed);
        let (layout, notes) = (Layout::new(config)?, Vec::new());
        Ok(Self { layout, weights, config, data, notes, without_tokenizer: None, pieces: Vec::new() })
    }
}

impl<W: crate::weights::Weights> Plan<W> {
    /// How the file will be laid out, unless rows need exponents, which takes a little more.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the user should know about the tokenizer, in sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What the file will hold beside weights.
    #[must_use]
    pub fn contents(&self) -> Contents {
        Contents::of(&self.data)
    }

    /// The ids of which the head's rows are -inf, and which are never drawn; known when the file is written.
    #[must_use]
    pub fn never_drawn(&self) -> Vec<u32> {
        self.weights.never_drawn()
    }

    /// Why the packed file has no tokenizer, in a sentence, where a checkpoint has none.
    pub fn without_tokenizer(&self) -> Option<&str> {
        self.without_tokenizer.as_deref()
    }

    /// Writes the file. Returns how it is laid out.
    ///
    /// # Errors
    /// What could not be read, stored or written. No file is left behind.
    pub fn write(
        &self,
        target: &Path,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Layout, PackError> {
        self.write_by(target, None, options, progress)
    }

    /// [`Plan::write`] that goes on where an earlier attempt ended: finished blocks are kept, if their checksums are right. A plan
    /// with a text for calibration begins anew each time.
    ///
    /// # Errors
    /// What could not be read, stored or written. What is finished stays at `partial` for the next attempt, unless that would fail,
    /// too.
    pub fn resume(
        &self,
        target: &Path,
        partial: Partial<'_>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Layout, PackError> {
        self.write_by(target, Some(partial), options, progress)
    }

    fn write_by(
        &self,
        target: &Path,
        partial: Option<Partial<'_>>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Layout, PackError> {
        let (weights, pieces) = (&self.weights, &self.pieces);
        write_file(self.config, weights, &self.data, pieces, target, partial, options.threads, progress)
    }
}
