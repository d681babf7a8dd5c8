//! Calibration: which errors of the weights matter, measured on text.
//!
//! The text passes the model layer by layer. Before a layer is packed, the products of what its matrices are multiplied with
//! are summed (`Gram`); the layer is packed so that errors cancel where these are large ([`Objective`]); and what the
//! packed layer makes of the text is what the next one gets, so that it can make up for what was lost before it.
//!
//! Only in_proj, out_proj and the head, where they have fewer than 8 bits: the others lose next to nothing.
//!
//! Memory: the residual stream of the text (d_model floats a token), a step's working memory for one piece, and for in_proj
//! and out_proj of one layer, or the head, `[cols, cols]` three times in floats and while it is factored once in doubles:
//! 1.5 GB for a 7B of d_inner 8192, beside 0.5 GB for 32,768 tokens. Files are the same bytes on every machine and with any
//! number of threads.

mod source;
mod tap;
mod text;

use std::fs::File;

use elapid_core::format::{Config, Fields, Layout, Part, PerMatrix, Quant, Quants, Section};
use elapid_core::kernels::{Kernels, LANES, Scale, SsmState, detect};
use elapid_core::model::{Model, Scratch, ScratchSize, State, StateSize};

use crate::PackError;
use crate::checkpoint::TensorKind;
use crate::progress::Progress;
use crate::quantize::{Gram, Objective};
use crate::threads::Threads;
use crate::weights::Weights;

use source::{CheckpointSource, FileSource};
use tap::{Tap, TapSource};
pub(crate) use text::pieces;

/// The objectives of the matrices of a layer, or of the head.
pub(crate) type Objectives = Vec<(Part, Objective)>;

/// Tokens of a piece of text; the state starts empty at each.
const PIECE: usize = 1024;
/// What is added to H's diagonal, as a part of its mean.
const DAMPING: f64 = 0.01;
/// The same for a tied head, whose rows are the embedding too: there each weight counts for itself.
const TIED_DAMPING: f64 = 0.1;

/// A text on its way through a model.
pub(crate) struct Walk<'w> {
    weights: &'w dyn Weights,
    /// How the model is packed.
    quants: Quants,
    progress: &'w dyn Progress,
    /// The model with its weights as floats.
    layout: Layout,
    team: Threads,
    kernels: &'static dyn Kernels,
    /// The residual stream of each piece of the text, `[d_model/16][T][16]`.
    pieces: Vec<Vec<f32>>,
    /// Tokens of each piece.
    tokens: usize,
    buffers: Buffers,
}

/// State of a sequence and working memory of a step.
struct Buffers {
    conv: Vec<f32>,
    ssm: Vec<f32>,
    floats: Vec<f32>,
    ints: Vec<i8>,
    scales: Vec<Scale>,
}

impl Buffers {
    fn new(config: &Config, tokens: usize) -> Self {
        let scratch = ScratchSize::of(config, tokens);
        let state = StateSize::of(config, config.n_layer as usize);
        Self {
            conv: vec![0.0; state.conv],
            ssm: vec![0.0; state.ssm],
            floats: vec![0.0; scratch.floats],
            ints: vec![0; scratch.ints],
            scales: vec![Scale::default(); scratch.scales],
        }
    }

    /// The state, forgotten, and the working memory.
    fn fresh(&mut self) -> (State<'_>, Scratch<'_>) {
        let mut state = State { conv: &mut self.conv, ssm: SsmState::F32(&mut self.ssm) };
        state.clear();
        (state, Scratch { floats: &mut self.floats, ints: &mut self.ints, scales: &mut self.scales })
    }
}

impl<'w> Walk<'w> {
    /// Looks up the tokens of pieces of text, all of one length, a multiple of 32.
    pub(crate) fn new(
        config: &Config,
        weights: &'w dyn Weights,
        pieces: &[Vec<u32>],
        threads: usize,
        progress: &'w dyn Progress,
    ) -> Result<Self, PackError> {
        let float = Quant::F32;
        let quants = Quants {
            embedding: float,
            in_proj: float,
            x_proj: float,
            dt_proj: float,
            out_proj: float,
            head: float,
        };
        let exponents = PerMatrix::default();
        let layout =
            Layout::new(Config::new(Fields { quants, exponents, block_bytes: 1 << 20, ..**config })?)?;
        let width = config.padded_model() as usize;
        let mut row = vec![0.0; config.d_model as usize];
        let mut embedded = Vec::new();
        for tokens in pieces {
            let mut x = vec![0.0; width * tokens.len()];
            for (t, &token) in tokens.iter().enumerate() {
                let token = token as usize;
                weights.read(TensorKind::Embedding, token..token + 1, row.len(), &mut row)?;
                for (i, w) in row.iter().enumerate() {
                    x[(i / LANES * tokens.len() + t) * LANES + i % LANES] = *w;
                }
            }
            embedded.push(x);
        }
        let tokens = pieces.first().map_or(0, Vec::len);
        Ok(Self {
            weights,
            quants: config.quants,
            progress,
            team: Threads(threads),
            kernels: detect(),
            pieces: embedded,
            tokens,
            buffers: Buffers::new(layout.config(), tokens),
            layout,
        })
    }

    /// The objectives of a layer's matrices of few bits, for the text as it comes to the layer.
    pub(crate) fn objectives(&mut self, layer: u32) -> Result<Objectives, PackError> {
        let config = *self.layout.config();
        let parts = [(Part::InProj, self.quants.in_proj), (Part::OutProj, self.quants.out_proj)];
        if !parts.iter().any(|(_, quant)| quant.is_coarse()) {
            return Ok(Vec::new());
        }
        let mut grams = [config.in_proj(), config.out_proj()].map(|shape| Gram::new(shape.cols() as usize));
        let tap = Tap::new(self.kernels);
        for piece in &self.pieces {
            let mut x = piece.clone();
            let source = CheckpointSource::new(&self.layout, self.weights);
            let mut source = TapSource { source, layout: &self.layout, tap: &tap };
            let (mut state, mut scratch) = self.buffers.fresh();
            let model = Model::float(&self.layout, &tap, &self.team);
            let passed = model.pass_layer(&mut source, layer, &mut x, &mut state, &mut scratch);
            passed.map_err(|cause| source.source.failure.take().unwrap_or(PackError::Step(cause)))?;
            for (gram, input) in grams.iter_mut().zip(tap.take()) {
                gram.add(self.kernels, &self.team, &input, self.tokens);
            }
            self.check_cancelled()?;
        }
        let objective = |gram| Objective::new(gram, DAMPING, &self.team);
        Ok(parts.iter().zip(&grams).map(|((part, _), gram)| (*part, objective(gram))).collect())
    }

    /// Lets the text pass a layer as it was packed.
    pub(crate) fn pass(&mut self, layout: &Layout, file: &File, layer: u32) -> Result<(), PackError> {
        let model = Model::float(layout, self.kernels, &self.team);
        for x in &mut self.pieces {
            let mut source = FileSource { layout, file, block: Vec::new() };
            let (mut state, mut scratch) = self.buffers.fresh();
            model.pass_layer(&mut source, layer, x, &mut state, &mut scratch).map_err(PackError::Step)?;
        }
        self.check_cancelled()
    }

    /// The objective of the head, after all layers.
    pub(crate) fn head(&mut self) -> Result<Objectives, PackError> {
        if !self.quants.head.is_coarse() {
            return Ok(Vec::new());
        }
        let config = self.layout.config();
        let mut gram = Gram::new(config.padded_model() as usize);
        let mut norm = CheckpointSource::new(&self.layout, self.weights);
        let weight = norm.block(Section::FinalNorm, Part::FinalNorm, 0)?;
        let mut inv = vec![0.0; self.tokens];
        for x in &self.pieces {
            let mut y = vec![0.0; x.len()];
            self.kernels.rms_inv(x, self.tokens, 0, config.d_model, config.norm_eps, &mut inv);
            self.kernels.normalize(x, weight, &inv, &mut y);
            gram.add(self.kernels, &self.team, &y, self.tokens);
        }
        let damping = if config.tied { TIED_DAMPING } else { DAMPING };
        Ok(vec![(self.layout.head().1, Objective::new(&gram, damping, &self.team))])
    }

    fn check_cancelled(&self) -> Result<(), PackError> {
        if self.progress.cancelled() { Err(PackError::Cancelled) } else { Ok(()) }
    }
}
