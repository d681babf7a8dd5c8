//! Runs a packed file through the fixed path, and through the `f64` reference with exactly the weights in the file.

use std::ops::Range;
use std::path::Path;

use elapid_core::fixed::{LOGIT_BITS, Model, Scratch, ScratchSize, Session, State, StateKind, StateSize};
use elapid_core::format::{Arch, Config, Header, Layout, MatrixShape, Part, Section};
use elapid_core::kernels::Team;
use elapid_core::kernels::fixed::{self as kernels, Group, Inverse, Kernels, Range as Kept, SsmState};
use elapid_core::model::{Rows, StepError};
use elapid_core::source::{LayerSource, SliceSource};

use crate::oracle::{Layer, Oracle};
use crate::runner::perplexity_of;

/// The elements of a state, owned.
pub struct OwnedState {
    kind: StateKind,
    /// See [`State::conv`].
    pub conv: Vec<i32>,
    /// See [`State::conv_exponents`].
    pub conv_exponents: Vec<u16>,
    /// The recurrent state, if it is of this kind.
    pub i16s: Vec<i16>,
    /// The recurrent state, if it is of this kind.
    pub i32s: Vec<i32>,
    /// See [`State::ranges`].
    pub ranges: Vec<Kept>,
}

impl OwnedState {
    /// The state before the first token, for `layers` layers.
    pub fn new(config: &Config, layers: usize, kind: StateKind) -> Self {
        let size = StateSize::of(config, layers);
        let (i16s, i32s) = if kind == StateKind::I16 { (size.ssm, 0) } else { (0, size.ssm) };
        Self {
            kind,
            conv: vec![0; size.conv],
            conv_exponents: vec![0; size.conv_exponents],
            i16s: vec![0; i16s],
            i32s: vec![0; i32s],
            ranges: vec![Kept::default(); size.ranges],
        }
    }

    /// All of it as words.
    pub fn bits(&self) -> Vec<u32> {
        let conv = self.conv.iter().chain(&self.i32s).map(|x| x.cast_unsigned());
        let halves = self.conv_exponents.iter().map(|x| u32::from(*x));
        let i16s = self.i16s.iter().map(|x| i32::from(*x).cast_unsigned());
        let ranges = self.ranges.iter().flat_map(|range| [range.unit(), range.top()]);
        conv.chain(halves).chain(i16s).chain(ranges.map(i32::cast_unsigned)).collect()
    }

    /// Borrows it.
    pub fn borrow(&mut self) -> State<'_> {
        State {
            conv: &mut self.conv,
            conv_exponents: &mut self.conv_exponents,
            ssm: match self.kind {
                StateKind::I16 => SsmState::I16(&mut self.i16s),
                StateKind::I32 => SsmState::I32(&mut self.i32s),
            },
            ranges: &mut self.ranges,
        }
    }
}

/// A packed file in memory and the state of a sequence.
pub struct FixedRunner {
    file: Vec<u8>,
    header: Header,
    kind: StateKind,
    /// The state.
    pub state: OwnedState,
    checked: Vec<u32>,
    chunk: usize,
    slots: usize,
}

impl FixedRunner {
    /// Opens a packed file for chunks of up to `chunk` tokens.
    pub fn open(path: &Path, kind: StateKind, chunk: usize) -> Self {
        let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let header = Header::parse(&file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::new(file, header, kind, chunk)
    }

    /// The same with a file in memory, which must be whole.
    pub fn new(file: Vec<u8>, header: Header, kind: StateKind, chunk: usize) -> Self {
        let (layout, config) = (header.layout(), header.layout().config());
        let state = OwnedState::new(config, config.n_layer as usize, kind);
        let checked = vec![0; SliceSource::checked_words(layout)];
        Self { kind, state, checked, chunk, slots: 1, file, header }
    }

    /// The same for `slots` new sequences.
    #[must_use]
    pub fn with_slots(self, slots: usize) -> Self {
        let config = self.config();
        let state = OwnedState::new(config, slots * config.n_layer as usize, self.kind);
        Self { slots, state, ..self }
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        self.header.layout().config()
    }

    /// Runs `work` in a session that starts from this runner's state and leaves its state here.
    ///
    /// # Errors
    /// If the model or the state can't be used.
    pub fn with<R>(
        &mut self,
        kernels: &(dyn Kernels + 'static),
        team: &dyn Team,
        work: impl FnOnce(&Model<'_>, &mut Session<'_>, &mut dyn LayerSource) -> R,
    ) -> Result<R, StepError> {
        let config = self.header.layout().config();
        let model = Model::fixed(self.header.layout(), kernels, team)?;
        let mut undo = OwnedState::new(config, self.slots, self.kind);
        let size = ScratchSize::of(config, self.chunk);
        // Nothing may depend on what the working memory holds.
        let (mut words, mut halves) = (vec![0x5a5a_5a5a; size.words], vec![0x5a5a; size.halves]);
        let mut groups = vec![Group { exponent: 77, sum: 7 }; size.groups];
        let mut inverses = vec![Inverse::default(); size.tokens];
        let scratch =
            Scratch { words: &mut words, halves: &mut halves, groups: &mut groups, inverses: &mut inverses };
        let mut session =
            Session::with_slots(&model, self.slots, self.state.borrow(), undo.borrow(), scratch)?;
        let mut source =
            SliceSource::new(&self.file, &self.header, &mut self.checked).expect("the file is whole");
        Ok(work(&model, &mut session, &mut source))
    }

    /// Logits `[tokens][vocab]` after each of `tokens` in units of 2^-16, fed in chunks of up to `self.chunk`.
    ///
    /// # Errors
    /// As the step's.
    pub fn all_logits(
        &mut self,
        kernels: &(dyn Kernels + 'static),
        team: &dyn Team,
        tokens: &[u32],
    ) -> Result<Vec<i32>, StepError> {
        let (vocab, padded) = (self.config().vocab as usize, self.config().padded_vocab() as usize);
        let chunk = self.chunk;
        self.with(kernels, team, |model, session, source| {
            let mut all = Vec::new();
            for tokens in tokens.chunks(chunk) {
                model.forward(session, source, tokens)?;
                let mut out = vec![0; padded * tokens.len()];
                model.logits(session, source, Rows::All, &mut out)?;
                for t in 0..tokens.len() {
                    all.extend((0..vocab).map(|v| out[(v / 16 * tokens.len() + t) * 16 + v % 16]));
                }
            }
            Ok(all)
        })?
    }
}

/// Logits as numbers.
pub fn numbers(logits: &[i32]) -> Vec<f64> {
    logits.iter().map(|x| f64::from(*x) / f64::from(1 << LOGIT_BITS)).collect()
}

/// [`perplexity`](crate::runner::perplexity) of the fixed path.
pub fn fixed_perplexity(path: &Path, kind: StateKind, tokens: &[u32]) -> f64 {
    let mut runner = FixedRunner::open(path, kind, 128);
    let vocab = runner.config().vocab as usize;
    let team = elapid::Pool::new(elapid::default_threads()).expect("threads");
    let logits = runner.all_logits(kernels::detect(), &team, tokens).expect("the step succeeds");
    let logits: Vec<f32> = numbers(&logits).into_iter().map(|x| x as f32).collect();
    perplexity_of(&logits, vocab, tokens)
}

/// The reference with the weights of a packed file, as they are after packing.
pub fn oracle(path: &Path) -> Oracle {
    let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let header = Header::parse(&file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let reader = Reader { file: &file, header: &header };
    let config = header.layout().config();
    let d_model = config.d_model;
    let layers = (0..config.n_layer).map(|i| reader.layer(i)).collect();
    let head = (!config.tied)
        .then(|| reader.matrix(Section::Head, Part::Head, &config.head(), rows(0, config.vocab), d_model).0);
    let mut oracle = Oracle {
        d_model: d_model as usize,
        d_state: config.d_state as usize,
        d_conv: config.d_conv as usize,
        norm_eps: f64::from(config.norm_eps),
        mixer_eps: (config.arch == Arch::FalconMamba).then(|| f64::from(config.bcdt_eps.unwrap_or(0.0))),
        embedding: reader
            .matrix(Section::Embedding, Part::Embedding, &config.embedding(), rows(0, config.vocab), d_model)
            .0,
        layers,
        norm_f: reader.columns(Section::FinalNorm, Part::FinalNorm, d_model, 1).remove(0),
        head,
        state: Vec::new(),
    };
    oracle.reset();
    oracle
}

fn rows(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).collect()
}

struct Reader<'a> {
    file: &'a [u8],
    header: &'a Header,
}

/// Where a panel lies in the file.
pub fn panel_place(layout: &Layout, section: Section, part: Part, panel: u32) -> Range<usize> {
    let geometry = layout.part(part);
    let (block, within) = (panel / geometry.panels_per_block, panel % geometry.panels_per_block);
    let start = layout.section(section).offset
        + geometry.offset
        + u64::from(block) * u64::from(geometry.block_stride)
        + u64::from(within * geometry.panel_bytes);
    start as usize..start as usize + geometry.panel_bytes as usize
}

impl Reader<'_> {
    fn panel(&self, section: Section, part: Part, panel: u32) -> &[u8] {
        &self.file[panel_place(self.header.layout(), section, part, panel)]
    }

    /// Rows of a matrix without padding, and its biases.
    fn matrix(
        &self,
        section: Section,
        part: Part,
        shape: &MatrixShape,
        rows: Vec<u32>,
        cols: u32,
    ) -> (Vec<f64>, Option<Vec<f64>>) {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for row in rows {
            let panel = self.panel(section, part, row / 16);
            weights.extend((0..cols).map(|c| f64::from(shape.element(panel, row, c))));
            if shape.has_bias() {
                let row = row as usize % 16;
                let bias = f64::from(f32::from_le_bytes(shape.biases(panel)[row]));
                biases.push(bias * f64::from(shape.exponent(panel, row as u32)).exp2());
            }
        }
        (weights, shape.has_bias().then_some(biases))
    }

    /// `n` vectors of `[width]` from panels `[n][16]` of f32.
    fn columns(&self, section: Section, part: Part, width: u32, n: usize) -> Vec<Vec<f64>> {
        let value = |j: usize, i: u32| {
            let at = (j * 16 + i as usize % 16) * 4;
            let bytes = &self.panel(section, part, i / 16)[at..at + 4];
            f64::from(f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        };
        (0..n).map(|j| (0..width).map(|i| value(j, i)).collect()).collect()
    }

    fn layer(&self, index: u32) -> Layer {
        let c = self.header.layout().config();
        let section = Section::Layer(index);
        let (d_model, d_inner, d_state) = (c.d_model, c.d_inner, c.d_state);
        let both = [rows(0, d_inner), rows(c.padded_inner(), d_inner)].concat();
        let (in_proj, in_proj_bias) = self.matrix(section, Part::InProj, &c.in_proj(), both, d_model);
        let b = c.padded_rank();
        let three = [rows(0, c.dt_rank), rows(b, d_state), rows(b + c.padded_state(), d_state)].concat();
        let (x_proj, _) = self.matrix(section, Part::XProj, &c.x_proj(), three, d_inner);
        let (dt_proj, dt_bias) =
            self.matrix(section, Part::DtProj, &c.dt_proj(), rows(0, d_inner), c.dt_rank);
        let (out_proj, out_proj_bias) =
            self.matrix(section, Part::OutProj, &c.out_proj(), rows(0, d_model), d_inner);
        // `[n][d_inner]` to `[d_inner][n]`.
        let turned = |columns: &[Vec<f64>]| -> Vec<f64> {
            (0..d_inner as usize).flat_map(|i| columns.iter().map(move |column| column[i])).collect()
        };
        let mut conv = self.columns(section, Part::Conv, d_inner, c.d_conv as usize + 1);
        let conv_bias = conv.pop();
        let mut scan = self.columns(section, Part::Scan, d_inner, d_state as usize + 1);
        let d = scan.pop().expect("D");
        Layer {
            norm: self.columns(section, Part::Norm, d_model, 1).remove(0),
            in_proj,
            in_proj_bias,
            conv: turned(&conv),
            conv_bias,
            x_proj,
            dt_proj,
            dt_bias: dt_bias.expect("dt has a bias"),
            a: turned(&scan),
            d,
            out_proj,
            out_proj_bias,
        }
    }
}
