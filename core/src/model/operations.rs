//! What a step is made of: a model, where it stands, and the operations of a layer, which each kind of numbers gives in its own
//! way.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;

use super::StepError;
use super::parts::{self, Element, Stored};
use crate::format::{Config, Layout, MatrixShape, Part, Section};
use crate::kernels::{LANES, Share, Split, Team, split};
use crate::source::LayerSource;

/// Floating point: f32 vectors, int8 activations where matrices are quantized, and a state in f32 or f16.
#[derive(Clone, Copy, Debug)]
pub struct Float;

/// Integers: mantissas with shared exponents.
#[derive(Clone, Copy, Debug)]
pub struct Fixed;

/// A model: how its file is laid out, which numbers it is computed with, and what computes it.
pub struct Model<'m, N: Operations = Float> {
    pub(super) layout: &'m Layout,
    pub(super) kernels: &'m N::Kernels,
    pub(super) team: &'m dyn Team,
}

impl<N: Operations> Copy for Model<'_, N> {}

impl<N: Operations> Clone for Model<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'m, N: Operations> Model<'m, N> {
    /// The model's configuration.
    #[must_use]
    pub const fn config(&self) -> &'m Config {
        self.layout.config()
    }
}

/// Vectors of a chunk of `T` tokens, `[d/16][T][16]`.
pub type Vector<'a, N> = <<N as Operations>::Vectors as Panels>::Of<'a>;

/// Where an operation runs: a layer or the head, for the tokens of a chunk.
pub struct Pass<'p, N: Operations> {
    pub model: Model<'p, N>,
    pub source: &'p mut dyn LayerSource,
    /// The section that weights come from.
    pub section: Section,
    /// Tokens of the chunk, `T`.
    pub tokens: usize,
}

impl<'p, N: Operations> Pass<'p, N> {
    /// The model's configuration.
    pub const fn config(&self) -> &'p Config {
        self.model.config()
    }
}

/// The most sequences that a session can have.
pub const MAX_SLOTS: usize = 64;

/// Which tokens of the last chunk logits are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The last one: `[vocab]`, padded to 16.
    Last,
    /// All `T`: `[vocab/16][T][16]`.
    All,
}

/// Which sequences the tokens of a step belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// All of one slot's sequence, in order.
    One(usize),
    /// One each of the sequences in the slots whose bits are set, in the order of the slots.
    Each(u64),
}

impl Members {
    /// The slots that take part, and which of the `tokens` tokens are theirs.
    pub fn of(self, tokens: usize) -> impl Iterator<Item = (usize, Range<usize>)> + Clone {
        let (slots, each) = match self {
            Self::One(slot) => (1 << (slot % MAX_SLOTS), tokens),
            Self::Each(slots) => (slots, 1),
        };
        let taking_part = (0..MAX_SLOTS).filter(move |slot| slots >> slot & 1 == 1);
        taking_part.enumerate().map(move |(i, slot)| (slot, i * each..(i + 1) * each))
    }
}

/// What one layer's state was before a step, as far as the step has overwritten it: a layer that fails leaves no trace.
pub struct Undo<'u, N: Operations> {
    /// Of one layer, that of the sequences that take part one behind the other; empty where nothing need be undone.
    pub state: N::State<'u>,
    /// Panels of the convolution's state that are copied.
    pub conv: usize,
    /// Panels of the recurrent state that are copied.
    pub ssm: usize,
}

impl<'u, N: Operations> Undo<'u, N> {
    /// Nothing is copied yet.
    pub const fn new(state: N::State<'u>) -> Self {
        Self { state, conv: 0, ssm: 0 }
    }
}

/// A layer's part of the state of all sequences.
pub struct LayerState<'r, N: Operations> {
    /// Of all layers and all sequences.
    pub all: N::State<'r>,
    /// Where operations keep what they are about to overwrite.
    pub undo: Undo<'r, N>,
    /// The sequences that take part.
    pub members: Members,
    pub layer: usize,
}

impl<N: Operations> LayerState<'_, N> {
    /// For a state of `len` elements a layer: the elements of a sequence, and the range of them that is this layer's.
    pub fn of_layer(&self, config: &Config, len: usize) -> (usize, Range<usize>) {
        let start = self.layer.saturating_mul(len);
        ((config.n_layer as usize).saturating_mul(len), start..start.saturating_add(len))
    }

    /// Restores what was overwritten.
    pub fn restore(&mut self, config: &Config, tokens: usize) {
        let copied = (self.undo.conv, self.undo.ssm);
        for (i, (sequence, _)) in self.members.of(tokens).enumerate() {
            let layer = sequence.saturating_mul(config.n_layer as usize).saturating_add(self.layer);
            let saved = N::layer(config, &mut self.undo.state, i);
            N::copy(config, copied, &saved, &mut N::layer(config, &mut self.all, layer));
        }
    }
}

/// What a matrix is multiplied with.
pub enum Operand<'v, 'a, N: Operations> {
    /// What [`Operations::norm`] left in this vector, or in the working memory.
    Normed(&'v Vector<'a, N>),
    /// A vector.
    Vector(&'v Vector<'a, N>),
}

/// The vectors of a scan, equation 2 of Mamba (Gu and Dao 2023).
pub struct ScanVectors<'v, 'a, 'b, N: Operations> {
    /// The time step before softplus, `[d_inner]`.
    pub dt: &'v Vector<'a, N>,
    /// `[d_state]`, for the caller to use up.
    pub b: &'v mut Vector<'b, N>,
    /// `[d_state]`.
    pub c: &'v Vector<'b, N>,
    /// The gate, `[d_inner]`.
    pub z: &'v Vector<'a, N>,
}

/// The buffers of a chunk of `T` tokens.
pub struct Buffers<'a, N: Operations> {
    /// The residual stream, `[d_model]`.
    pub x: N::Residual<'a>,
    /// The residual normed, later what a layer adds to it, `[d_model]`.
    pub xn: Vector<'a, N>,
    /// The mixer's input (later dt), then the gate, `[2 d_inner]`, or longer.
    pub xz: Vector<'a, N>,
    /// After the convolution, later the scan's output, `[d_inner]`.
    pub u: Vector<'a, N>,
    /// dt of low rank, B and C, `[dt_rank + 2 d_state]`, each padded.
    pub dbc: Vector<'a, N>,
    pub work: N::Work<'a>,
}

/// What each kind of numbers gives: its state, its vectors, and the operations of a layer on them.
///
/// Sections, matrices and sizes are the caller's to match; slices that don't fit each other are worked on as far as the
/// shortest goes.
pub trait Operations: Sized + Copy + fmt::Debug + 'static {
    type Kernels: ?Sized + Sync;
    /// A logit.
    type Logit: Stored + Default + Send + 'static;
    /// The state of all layers of all sequences.
    type State<'a>: fmt::Debug;
    /// A list of the parts of a layer's state.
    type Parts<'a>: IntoIterator<Item = parts::Part<'a>>;
    /// The working memory of a step.
    type Scratch<'a>: fmt::Debug;
    /// The residual stream, `[d_model/16][T][16]`.
    type Residual<'a>;
    /// The kind of [`Vector`].
    type Vectors: Panels;
    /// What operations need beside their vectors.
    type Work<'a>;

    /// Whether state, undo copy and scratch have the sizes for `slots` sequences and chunks of one token.
    fn check_sizes(
        config: &Config,
        slots: usize,
        state: &Self::State<'_>,
        undo: &Self::State<'_>,
        scratch: &Self::Scratch<'_>,
    ) -> Result<(), StepError>;

    /// Whether the state is one that a step can have left behind.
    fn check_contents(config: &Config, state: &Self::State<'_>) -> Result<(), StepError>;

    /// If the working memory is too small for a chunk: elements that it has, and that the chunk needs.
    fn lacks(config: &Config, tokens: usize, scratch: &Self::Scratch<'_>) -> Option<(usize, usize)>;

    /// Cuts the working memory, which must fit, into the buffers of a chunk.
    fn cut<'a>(config: &Config, tokens: usize, scratch: &'a mut Self::Scratch<'_>) -> Buffers<'a, Self>;

    /// Reborrows for a shorter lifetime.
    fn reborrow<'a>(state: &'a mut Self::State<'_>) -> Self::State<'a>;

    /// An empty state of the same kind.
    fn none<'a>(state: &Self::State<'_>) -> Self::State<'a>;

    /// The state of one layer, counted through all sequences.
    fn layer<'a>(config: &Config, state: &'a mut Self::State<'_>, layer: usize) -> Self::State<'a>;

    /// The parts of a layer's state, to be saved or read.
    fn parts<'a>(config: &Config, layer: &'a mut Self::State<'_>) -> Self::Parts<'a>;

    /// How the recurrent state is kept.
    fn kept(state: &Self::State<'_>) -> Element;

    /// Forgets everything.
    fn clear(state: &mut Self::State<'_>);

    /// Copies a layer's first panels: `panels.0` of the convolution's state and `panels.1` of the recurrent one.
    fn copy(config: &Config, panels: (usize, usize), from: &Self::State<'_>, to: &mut Self::State<'_>);

    /// The first `panels` panels of `tokens` tokens, and the rest.
    fn split<'a>(v: &'a mut Vector<'_, Self>, panels: usize, tokens: usize) -> [Vector<'a, Self>; 2];

    /// The residual of all `tokens` tokens if as many are `wanted`, else that of the last one, copied to `room`.
    fn last<'a>(
        x: &'a mut Self::Residual<'_>,
        tokens: usize,
        wanted: usize,
        room: &'a mut Vector<'_, Self>,
    ) -> Self::Residual<'a>;

    /// `x = embedding[token]` for token `t` of the chunk.
    fn embed(
        p: &mut Pass<'_, Self>,
        token: u32,
        t: usize,
        x: &mut Self::Residual<'_>,
    ) -> Result<(), StepError>;

    /// `y = x / sqrt(mean(x^2) + eps) w`, in `y` or in `work`: an [`Operand::Normed`].
    fn norm(
        p: &mut Pass<'_, Self>,
        part: Part,
        x: &mut Self::Residual<'_>,
        work: &mut Self::Work<'_>,
        y: &mut Vector<'_, Self>,
    ) -> Result<(), StepError>;

    /// `y = W x + bias`.
    fn project(
        p: &mut Pass<'_, Self>,
        part: Part,
        w: &MatrixShape,
        x: Operand<'_, '_, Self>,
        work: &mut Self::Work<'_>,
        y: &mut Vector<'_, Self>,
    ) -> Result<(), StepError>;

    /// `u = silu(conv(x))`, channel by channel.
    fn conv(
        p: &mut Pass<'_, Self>,
        state: &mut LayerState<'_, Self>,
        x: &Vector<'_, Self>,
        u: &mut Vector<'_, Self>,
    ) -> Result<(), StepError>;

    /// `v = v / sqrt(mean(v^2) + eps)` over the first `n` elements.
    fn rescale(p: &Pass<'_, Self>, n: u32, eps: f32, work: &mut Self::Work<'_>, v: &mut Vector<'_, Self>);

    /// `u = (scan(u, softplus(dt), A, B, C) + D u) silu(z)`, channel by channel.
    fn scan(
        p: &mut Pass<'_, Self>,
        state: &mut LayerState<'_, Self>,
        v: ScanVectors<'_, '_, '_, Self>,
        work: &mut Self::Work<'_>,
        u: &mut Vector<'_, Self>,
    ) -> Result<(), StepError>;

    /// `x = x + y`.
    fn add(p: &Pass<'_, Self>, x: &mut Self::Residual<'_>, y: &Vector<'_, Self>) -> Result<(), StepError>;

    /// `logits = W x`, `[vocab/16][T][16]`.
    fn logits(
        p: &mut Pass<'_, Self>,
        part: Part,
        x: Operand<'_, '_, Self>,
        work: &mut Self::Work<'_>,
        logits: &mut [Self::Logit],
    ) -> Result<(), StepError>;
}

/// A kind of vectors that threads share by their panels of 16 rows, `[d/16][T]…`.
pub trait Panels {
    type Of<'a>;
    type Shared<'a>: Share<Part = Self::Of<'a>>;

    /// Shares the panels from `first` on, `each` of them an item.
    fn share<'a>(v: &'a mut Self::Of<'_>, first: usize, each: usize, tokens: usize) -> Self::Shared<'a>;

    /// Some of the panels; none where they are not there.
    fn part<'a>(v: &'a mut Self::Of<'_>, panels: Range<usize>, tokens: usize) -> Self::Of<'a>;
}

/// Slices `[d/16][T][16]`.
pub struct Slices<T>(PhantomData<T>);

impl<T: Send + 'static> Panels for Slices<T> {
    type Of<'a> = &'a mut [T];
    type Shared<'a> = Split<'a, T>;

    fn share<'a>(v: &'a mut &mut [T], first: usize, each: usize, tokens: usize) -> Split<'a, T> {
        split(from_mut(v, first * tokens * LANES), each * tokens * LANES)
    }

    fn part<'a>(v: &'a mut &mut [T], panels: Range<usize>, tokens: usize) -> &'a mut [T] {
        at_mut(v, panels.start * tokens * LANES, panels.len() * tokens * LANES)
    }
}

/// A part of a slice; empty where it is not all there.
pub fn at<T>(x: &[T], start: usize, len: usize) -> &[T] {
    x.get(start..start.saturating_add(len)).unwrap_or_default()
}

/// As [`at`], to be written.
pub fn at_mut<T>(x: &mut [T], start: usize, len: usize) -> &mut [T] {
    x.get_mut(start..start.saturating_add(len)).unwrap_or_default()
}

/// A slice from `start` on.
pub fn from<T>(x: &[T], start: usize) -> &[T] {
    x.get(start..).unwrap_or_default()
}

/// As [`from`], to be written.
pub fn from_mut<T>(x: &mut [T], start: usize) -> &mut [T] {
    x.get_mut(start..).unwrap_or_default()
}

/// The layer `index` of arrays that have `len` elements a layer.
pub fn part<T>(all: &mut [T], len: usize, index: usize) -> &mut [T] {
    at_mut(all, index.saturating_mul(len), len)
}

/// Copies as much as there is room for.
pub fn copy<T: Copy>(to: &mut [T], from: &[T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// The first `len` elements, or all.
pub fn first<T>(all: &[T], len: usize) -> &[T] {
    all.get(..len).unwrap_or(all)
}

/// The first buffer whose size is not that (`exact`) or is below it (`least`): its name, what it has and what it needs.
pub(super) fn wrong_size(
    exact: &[(&'static str, usize, usize)],
    least: &[(&'static str, usize, usize)],
) -> Result<(), StepError> {
    let wrong = exact.iter().find(|(_, have, need)| have != need);
    match wrong.or(least.iter().find(|(_, have, need)| have < need)) {
        Some(&(name, have, need)) => Err(StepError::Buffer { name, have, need }),
        None => Ok(()),
    }
}
