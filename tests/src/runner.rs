//! Runs a packed file through the core alone, with any kernels and team.

use std::path::{Path, PathBuf};

use elapid_core::format::{Config, Header, Quant};
use elapid_core::kernels::{Kernels, Scale, Solo, SsmState, Team};
use elapid_core::model::{
    Model, Rows, Scratch, ScratchSize, Session, State, StateKind, StateSize, StepError,
};
use elapid_core::source::{LayerSource, SliceSource};
use elapid_core::tokenizer::EncodeOptions;
use elapid_pack::{Options, Plan};

/// Packs a checkpoint into `folder` and returns the file's path.
pub fn pack(checkpoint: &Path, folder: &Path, options: &Options) -> PathBuf {
    let name = format!(
        "{}-{}.elp",
        checkpoint.file_name().unwrap_or_default().to_string_lossy(),
        options.quant.name()
    );
    let path = folder.join(name);
    let plan =
        Plan::checkpoint(checkpoint, options).unwrap_or_else(|e| panic!("{}: {e}", checkpoint.display()));
    plan.write(&path, options, &()).unwrap_or_else(|e| panic!("{}: {e}", checkpoint.display()));
    path
}

/// Options for packing as `quant`.
pub fn quant(quant: Quant) -> Options {
    Options { quant, ..Options::default() }
}

/// A packed file in memory and all buffers of a session.
pub struct Runner {
    file: Vec<u8>,
    header: Header,
    kind: StateKind,
    conv: Vec<f32>,
    ssm: Vec<f32>,
    ssm_f16: Vec<u16>,
    checked: Vec<u32>,
    chunk: usize,
    slots: usize,
}

impl Runner {
    /// Opens a packed file for chunks of up to `chunk` tokens.
    pub fn open(path: &Path, kind: StateKind, chunk: usize) -> Self {
        Self::with_slots(path, kind, chunk, 1)
    }

    /// As [`Runner::open`], for `slots` sequences.
    pub fn with_slots(path: &Path, kind: StateKind, chunk: usize, slots: usize) -> Self {
        let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let header = Header::parse(&file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::new(file, header, kind, chunk, slots)
    }

    /// The same with a file in memory, which must be whole.
    pub fn new(file: Vec<u8>, header: Header, kind: StateKind, chunk: usize, slots: usize) -> Self {
        let layout = header.layout();
        let size = StateSize::of(layout.config(), slots * layout.config().n_layer as usize);
        let (f32s, f16s) = if kind == StateKind::F32 { (size.ssm, 0) } else { (0, size.ssm) };
        Self {
            kind,
            conv: vec![0.0; size.conv],
            ssm: vec![0.0; f32s],
            ssm_f16: vec![0; f16s],
            checked: vec![0; SliceSource::checked_words(layout)],
            chunk,
            slots,
            file,
            header,
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        self.header.layout().config()
    }

    /// The state's bits, all NaNs alike: their payloads are no part of the results.
    pub fn state_bits(&self) -> Vec<u32> {
        let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
        let halves = self.ssm_f16.iter().map(|x| u32::from(*x));
        self.conv.iter().chain(&self.ssm).map(bits).chain(halves).collect()
    }

    /// Runs `work` in a session that starts from this runner's state and leaves its state here.
    pub fn with<R>(
        &mut self,
        kernels: &(dyn Kernels + 'static),
        team: &dyn Team,
        work: impl FnOnce(&Model<'_>, &mut Session<'_>, &mut dyn LayerSource) -> R,
    ) -> R {
        let config = self.header.layout().config();
        let model = Model::float(self.header.layout(), kernels, team);
        let one = StateSize::of(config, self.slots);
        let (mut conv, mut ssm, mut ssm_f16) = (vec![0.0; one.conv], vec![0.0; one.ssm], vec![0; one.ssm]);
        let (state, undo) = match self.kind {
            StateKind::F32 => (SsmState::F32(&mut self.ssm), SsmState::F32(&mut ssm)),
            StateKind::F16 => (SsmState::F16(&mut self.ssm_f16), SsmState::F16(&mut ssm_f16)),
        };
        let size = ScratchSize::of(config, self.chunk);
        let (mut floats, mut ints) = (vec![f32::NAN; size.floats], vec![0; size.ints]);
        let mut scales = vec![Scale::default(); size.scales];
        let scratch = Scratch { floats: &mut floats, ints: &mut ints, scales: &mut scales };
        let state = State { conv: &mut self.conv, ssm: state };
        let undo = State { conv: &mut conv, ssm: undo };
        let mut session = Session::with_slots(&model, self.slots, state, undo, scratch).expect("buffers fit");
        let mut source =
            SliceSource::new(&self.file, &self.header, &mut self.checked).expect("the file is whole");
        work(&model, &mut session, &mut source)
    }

    /// Logits `[tokens][vocab]` after each of `tokens`, fed in chunks of up to `self.chunk`.
    pub fn all_logits(
        &mut self,
        kernels: &(dyn Kernels + 'static),
        team: &dyn Team,
        tokens: &[u32],
    ) -> Result<Vec<f32>, StepError> {
        let (vocab, padded) = (self.config().vocab as usize, self.config().padded_vocab() as usize);
        let chunk = self.chunk;
        self.with(kernels, team, |model, session, source| {
            let mut all = Vec::new();
            for tokens in tokens.chunks(chunk) {
                model.forward(session, source, tokens)?;
                let mut out = vec![0.0; padded * tokens.len()];
                model.logits(session, source, Rows::All, &mut out)?;
                for t in 0..tokens.len() {
                    all.extend((0..vocab).map(|v| out[(v / 16 * tokens.len() + t) * 16 + v % 16]));
                }
            }
            Ok(all)
        })
    }

    /// The `n` tokens that follow `prompt`, each the largest logit.
    pub fn greedy(
        &mut self,
        kernels: &(dyn Kernels + 'static),
        prompt: &[u32],
        n: usize,
    ) -> Result<Vec<u32>, StepError> {
        let (vocab, padded) = (self.config().vocab as usize, self.config().padded_vocab() as usize);
        let chunk = self.chunk;
        self.with(kernels, &Solo, |model, session, source| {
            let mut logits = vec![0.0; padded];
            for tokens in prompt.chunks(chunk) {
                model.forward(session, source, tokens)?;
            }
            let mut generated = Vec::new();
            while generated.len() < n {
                model.logits(session, source, Rows::Last, &mut logits)?;
                let best = (0..vocab).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)));
                let token = best.unwrap_or(0) as u32;
                generated.push(token);
                model.forward(session, source, &[token])?;
            }
            Ok(generated)
        })
    }
}

/// The tokens of a text, by the tokenizer in a packed file.
pub fn tokens_of(path: &Path, text: &str) -> Vec<u32> {
    let options = elapid::ModelOptions::default().threads(1);
    let model = elapid::Model::open(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tokenizer = model.tokenizer().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    elapid::encode(&tokenizer, text, EncodeOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// exp of the mean of -ln p(token) over all tokens but the first, the sum in f64.
pub fn perplexity(path: &Path, kind: StateKind, tokens: &[u32]) -> f64 {
    let mut runner = Runner::open(path, kind, 128);
    let vocab = runner.config().vocab as usize;
    let team = elapid::Pool::new(elapid::default_threads()).expect("threads");
    let logits = runner.all_logits(elapid_core::kernels::detect(), &team, tokens).expect("the step succeeds");
    perplexity_of(&logits, vocab, tokens)
}

/// The same from the logits `[tokens][vocab]` after each token.
pub fn perplexity_of(logits: &[f32], vocab: usize, tokens: &[u32]) -> f64 {
    let losses = logits.chunks_exact(vocab).zip(&tokens[1..]).map(|(row, &next)| {
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
        sum.ln() - f64::from(row[next as usize] - largest)
    });
    (losses.sum::<f64>() / (tokens.len() - 1) as f64).exp()
}
