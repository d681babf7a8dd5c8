//! The equations of Mamba, in order.

use core::sync::atomic::{AtomicBool, Ordering};

use super::run::for_each_run;
use super::scratch::Buffers;
use super::session::Cursor;
use super::{Session, State, StepError};
use crate::format::{Config, Layout, MatrixShape, Part, Section};
use crate::kernels::{
    GROUP, Input, Kernels, LANES, Scale, ScanInput, SsmState, TOKEN_BLOCK, Team, share, split,
};
use crate::source::{Fault, LayerSource, SourceError};

/// What sixteen lanes of one token cost, in the unit of [`share`]: rough, and only to tell little work from much.
mod cost {
    /// An operation or two on a row.
    pub(super) const ROW: usize = 64;
    /// Convolution and silu.
    pub(super) const CONV: usize = 512;
    /// One state of the scan.
    pub(super) const STATE: usize = 256;
}

/// A model: how its file is laid out, and what computes it.
#[derive(Clone, Copy)]
pub struct Model<'m> {
    layout: &'m Layout,
    kernels: &'m dyn Kernels,
    team: &'m dyn Team,
}

/// Which tokens of the last chunk logits are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The last one: `[vocab]`, padded to 16.
    Last,
    /// All `T`: `[vocab/16][T][16]`.
    All,
}

impl<'m> Model<'m> {
    /// A model computed by `kernels` on the cores of `team`; neither changes a bit of the results.
    #[must_use]
    pub const fn new(layout: &'m Layout, kernels: &'m dyn Kernels, team: &'m dyn Team) -> Self {
        Self { layout, kernels, team }
    }

    /// The model's configuration.
    #[must_use]
    pub const fn config(&self) -> &'m Config {
        self.layout.config()
    }

    /// Lets a chunk of tokens pass all layers.
    ///
    /// # Errors
    /// After [`StepError::Source`] in a layer, [`Model::resume`] goes on from that layer; if no step is suspended then,
    /// begin again.
    pub fn forward(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
        tokens: &[u32],
    ) -> Result<(), StepError> {
        self.begin(session, source, tokens)?;
        self.resume(session, source)
    }

    /// Begins a step: looks the tokens up in the embedding.
    ///
    /// # Errors
    /// For no tokens, too many for the working memory, one that the model does not know, or a suspended step: nothing
    /// is changed then. After [`StepError::Source`] the state is unchanged too, but the last logits are gone; begin again.
    pub fn begin(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
        tokens: &[u32],
    ) -> Result<(), StepError> {
        let (config, vocab) = (self.config(), self.config().vocab);
        session.check(config)?;
        if session.suspended_at().is_some() {
            return Err(StepError::Suspended);
        }
        if tokens.is_empty() {
            return Err(StepError::NoTokens);
        }
        if let Some((position, &token)) = tokens.iter().enumerate().find(|(_, token)| **token >= vocab) {
            return Err(StepError::Token { position, token, vocab });
        }
        if !session.scratch.fits(config, tokens.len()) {
            let need = super::ScratchSize::of(config, tokens.len()).floats;
            let have = session.scratch.size().floats;
            return Err(StepError::Buffer { name: "the working memory for a chunk", have, need });
        }
        let mut buffers = session.scratch.cut(config, tokens.len());
        session.cursor = Cursor::Empty;
        for (t, &token) in tokens.iter().enumerate() {
            self.embed(source, token, t, tokens.len(), &mut buffers)?;
        }
        session.cursor = Cursor::Layer { layer: 0, tokens: tokens.len() };
        Ok(())
    }

    /// Finishes a step that was begun, from the layer where it stands.
    ///
    /// # Errors
    /// As [`Model::advance`].
    pub fn resume(&self, session: &mut Session<'_>, source: &mut dyn LayerSource) -> Result<(), StepError> {
        while self.advance(session, source)? {}
        Ok(())
    }

    /// Lets the tokens of a step pass one more layer. Returns whether there are more.
    ///
    /// # Errors
    /// If the layer could not be computed. Its state is then what it was before: after [`StepError::Source`] it may be
    /// tried again, after [`StepError::NonFinite`] only [`Session::clear`] helps. [`StepError::NotReady`] if no step was
    /// begun.
    pub fn advance(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
    ) -> Result<bool, StepError> {
        session.check(self.config())?;
        let (layer, tokens) = match session.cursor {
            Cursor::Layer { layer, tokens } => (layer, tokens),
            Cursor::Done { .. } => return Ok(false),
            Cursor::Empty => return Err(StepError::NotReady),
        };
        let config = self.config();
        let mut state = session.state.layer(config, layer as usize);
        session.undo.copy_from(&state);
        let buffers = session.scratch.cut(config, tokens);
        let layer_state = state.layer(config, 0);
        if let Err(error) = self.layer(source, layer, tokens, layer_state, buffers) {
            state.copy_from(&session.undo);
            return Err(error);
        }
        let next = layer + 1;
        let done = next == config.n_layer;
        session.cursor = if done { Cursor::Done { tokens } } else { Cursor::Layer { layer: next, tokens } };
        Ok(!done)
    }

    /// Computes logits for the tokens of the last step. May be called again, for other rows too.
    ///
    /// # Errors
    /// [`StepError::Buffer`] if `out` is too small: `padded_vocab` floats for each token wanted.
    /// [`StepError::NotReady`] or [`StepError::Suspended`] if no step was finished.
    pub fn logits(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
        rows: Rows,
        out: &mut [f32],
    ) -> Result<(), StepError> {
        session.check(self.config())?;
        let tokens = match session.cursor {
            Cursor::Done { tokens } => tokens,
            Cursor::Layer { .. } => return Err(StepError::Suspended),
            Cursor::Empty => return Err(StepError::NotReady),
        };
        let config = self.config();
        let wanted = if rows == Rows::Last { 1 } else { tokens };
        let need = (config.padded_vocab() as usize).saturating_mul(wanted);
        let have = out.len();
        let out = out.get_mut(..need).ok_or(StepError::Buffer { name: "the logits", have, need })?;

        let b = session.scratch.cut(config, tokens);
        if rows == Rows::Last {
            // The residual of the last token, on its own: the layout of a chunk of one.
            let last = b.x.as_chunks::<LANES>().0.chunks_exact(tokens);
            for (to, panel) in b.xz.as_chunks_mut::<LANES>().0.iter_mut().zip(last) {
                *to = panel[tokens - 1];
            }
        } else {
            b.xz[..b.x.len()].copy_from_slice(b.x);
        }
        let width = wanted * config.padded_model() as usize;
        let (x, xn, inv) = (&b.xz[..width], &mut b.xn[..width], &mut b.inv[..wanted]);
        self.norm(source, (Section::FinalNorm, Part::FinalNorm), x, inv, xn)?;
        let (section, part) = self.layout.head();
        self.project(source, (section, part), &config.head(), wanted, xn, (b.q, b.scales), out)?;
        if self.kernels.is_finite(out) { Ok(()) } else { Err(StepError::NonFinite { section }) }
    }

    /// `x = embedding[token]` for token `t` of the chunk.
    fn embed(
        &self,
        source: &mut dyn LayerSource,
        token: u32,
        t: usize,
        tokens: usize,
        buffers: &mut Buffers<'_>,
    ) -> Result<(), StepError> {
        let shape = self.config().embedding();
        let geometry = self.layout.part(Part::Embedding);
        let panel = token / LANES as u32;
        let block = panel / geometry.panels_per_block;
        let bytes = source.lend(Section::Embedding, block..block + 1)?;
        let start = (panel % geometry.panels_per_block * geometry.panel_bytes) as usize;
        let panel = bytes.get(start..start + geometry.panel_bytes as usize).ok_or_else(|| {
            let offset = self.layout.block(Section::Embedding, block).map_or(0, |b| b.offset);
            SourceError { section: Section::Embedding, block, offset, fault: Fault::NoSuchBlock }
        })?;
        let columns = buffers.x.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens);
        for (p, x) in columns.enumerate() {
            for (i, x) in x[t].iter_mut().enumerate() {
                *x = shape.element(panel, token, (p * LANES + i) as u32);
            }
        }
        Ok(())
    }

    /// One layer: `x = x + mixer(norm(x))`.
    fn layer(
        &self,
        source: &mut dyn LayerSource,
        layer: u32,
        tokens: usize,
        state: State<'_>,
        b: Buffers<'_>,
    ) -> Result<(), StepError> {
        let config = self.config();
        let section = Section::Layer(layer);
        let Buffers { x, xn, xz, u, dbc, inv, q, scales } = b;
        let d_inner = config.padded_inner() as usize * tokens;
        let d_state = config.padded_state() as usize * tokens;
        let dt_rank = config.padded_rank() as usize * tokens;

        // xn = norm(x);  x, z = in_proj(xn)
        self.norm(source, (section, Part::Norm), x, inv, xn)?;
        self.project(source, (section, Part::InProj), &config.in_proj(), tokens, xn, (q, scales), xz)?;
        let (xc, z) = xz.split_at_mut(d_inner);
        let z = &z[..d_inner];

        // u = silu(conv(x))
        self.conv(source, section, tokens, state.conv, xc, u)?;

        // dt, B, C = x_proj(u), each normed in a Falcon Mamba
        self.project(source, (section, Part::XProj), &config.x_proj(), tokens, u, (q, scales), dbc)?;
        let (dt_low, bc) = dbc.split_at_mut(dt_rank);
        let (b, c) = bc.split_at_mut(d_state);
        if let Some(eps) = config.bcdt_eps {
            for (v, n) in
                [(&mut *dt_low, config.dt_rank), (&mut *b, config.d_state), (&mut *c, config.d_state)]
            {
                self.kernels.rms_inv(v, tokens, 0, n, eps, inv);
                self.kernels.rescale(v, inv);
            }
        }

        // dt = dt_proj(dt);  y = scan(u, softplus(dt), A, B, C) + D u;  y = y silu(z)
        let dt = xc;
        self.project(source, (section, Part::DtProj), &config.dt_proj(), tokens, dt_low, (q, scales), dt)?;
        let input = ScanInput { tokens, d_state: config.d_state as usize, b, c };
        self.scan(source, section, state.ssm, &input, dt, z, u)?;

        // x = x + out_proj(y)
        self.project(source, (section, Part::OutProj), &config.out_proj(), tokens, u, (q, scales), xn)?;
        let finite = AtomicBool::new(true);
        share(self.team, x.len() / LANES, cost::ROW, split(x, LANES), |range, x| {
            if !self.kernels.add(x, &xn[range.start * LANES..range.end * LANES]) {
                finite.store(false, Ordering::Relaxed);
            }
        });
        if finite.into_inner() { Ok(()) } else { Err(StepError::NonFinite { section }) }
    }

    /// `y = x / sqrt(mean(x^2) + eps) w` for each token.
    fn norm(
        &self,
        source: &mut dyn LayerSource,
        (section, part): (Section, Part),
        x: &[f32],
        inv: &mut [f32],
        y: &mut [f32],
    ) -> Result<(), StepError> {
        let (config, tokens) = (self.config(), inv.len());
        share(self.team, tokens, 4 * (x.len() / tokens), split(inv, 1), |range, inv| {
            self.kernels.rms_inv(x, tokens, range.start, config.d_model, config.norm_eps, inv);
        });
        let (stride, inv) = (tokens * LANES, &*inv);
        for_each_run(self.layout, source, section, part, |run| {
            let (x, y) = (&x[run.first * stride..], &mut y[run.first * stride..]);
            share(self.team, run.panels, cost::ROW.saturating_mul(tokens), split(y, stride), |range, y| {
                for (at, weight) in run.pieces(range.clone()) {
                    let x = &x[(range.start + at.start) * stride..][..at.len() * stride];
                    self.kernels.normalize(x, weight, inv, &mut y[at.start * stride..at.end * stride]);
                }
            });
        })?;
        Ok(())
    }

    /// `y = W x + bias` for each token; `x` is quantized first where `W` is.
    fn project(
        &self,
        source: &mut dyn LayerSource,
        (section, part): (Section, Part),
        shape: &MatrixShape,
        tokens: usize,
        x: &[f32],
        (q, scales): (&mut [i8], &mut [Scale]),
        y: &mut [f32],
    ) -> Result<(), StepError> {
        if shape.quant().is_integer() {
            if !self.quantize(tokens, shape.cols() as usize / GROUP, x, q, scales) {
                return Err(StepError::NonFinite { section });
            }
        }
        let input = Input { tokens, x, q, scales };
        let stride = tokens * LANES;
        for_each_run(self.layout, source, section, part, |run| {
            let y = split(&mut y[run.first * stride..], stride);
            share(
                self.team,
                run.panels,
                (shape.panel_bytes() as usize).saturating_mul(tokens),
                y,
                |range, y| {
                    for (at, panels) in run.pieces(range) {
                        self.kernels.matmul(
                            shape,
                            panels,
                            &input,
                            &mut y[at.start * stride..at.end * stride],
                        );
                    }
                },
            );
        })?;
        Ok(())
    }

    /// Quantizes `x` to int8 in blocks of tokens, as [`Input`] wants them. False if any element is infinite or NaN.
    fn quantize(&self, tokens: usize, groups: usize, x: &[f32], q: &mut [i8], scales: &mut [Scale]) -> bool {
        let finite = AtomicBool::new(true);
        let quantize = |tokens_of_block, x: &[f32], q: &mut [i8], scales: &mut [Scale]| {
            if !self.kernels.quantize(tokens, tokens_of_block, x, q, scales) {
                finite.store(false, Ordering::Relaxed);
            }
        };
        let cost = (2 * cost::ROW).saturating_mul(tokens);
        if tokens <= TOKEN_BLOCK {
            let stride = tokens * GROUP;
            share(
                self.team,
                groups,
                cost,
                (split(q, stride), split(scales, tokens)),
                |range, (q, scales)| {
                    quantize(0..tokens, &x[range.start * stride..range.end * stride], q, scales);
                },
            );
        } else {
            let (blocks, block) = (tokens.div_ceil(TOKEN_BLOCK), TOKEN_BLOCK * groups);
            let q = split(&mut q[..tokens * groups * GROUP], block * GROUP);
            let scales = split(&mut scales[..tokens * groups], block);
            share(self.team, blocks, cost / blocks * groups, (q, scales), |range, (q, scales)| {
                let parts = q.chunks_mut(block * GROUP).zip(scales.chunks_mut(block));
                for (at, (q, scales)) in range.zip(parts) {
                    let start = at * TOKEN_BLOCK;
                    quantize(start..(start + TOKEN_BLOCK).min(tokens), x, q, scales);
                }
            });
        }
        finite.into_inner()
    }

    /// `u = silu(conv(x))`, channel by channel.
    fn conv(
        &self,
        source: &mut dyn LayerSource,
        section: Section,
        tokens: usize,
        state: &mut [f32],
        x: &[f32],
        u: &mut [f32],
    ) -> Result<(), StepError> {
        let d_conv = self.config().d_conv as usize;
        let (stride, kept) = (tokens * LANES, (d_conv - 1) * LANES);
        for_each_run(self.layout, source, section, Part::Conv, |run| {
            let first = run.first;
            let x = &x[first * stride..];
            let parts = (split(&mut state[first * kept..], kept), split(&mut u[first * stride..], stride));
            share(self.team, run.panels, cost::CONV.saturating_mul(tokens), parts, |range, (state, u)| {
                for (at, panels) in run.pieces(range.clone()) {
                    let x = &x[(range.start + at.start) * stride..][..at.len() * stride];
                    let state = &mut state[at.start * kept..at.end * kept];
                    let u = &mut u[at.start * stride..at.end * stride];
                    self.kernels.conv_silu(d_conv, tokens, panels, state, x, u);
                }
            });
        })?;
        Ok(())
    }

    /// The selective scan, channel by channel; `u` becomes `y silu(z)`.
    fn scan(
        &self,
        source: &mut dyn LayerSource,
        section: Section,
        mut state: SsmState<'_>,
        input: &ScanInput<'_>,
        dt: &[f32],
        z: &[f32],
        u: &mut [f32],
    ) -> Result<(), StepError> {
        let (stride, held) = (input.tokens * LANES, input.d_state * LANES);
        for_each_run(self.layout, source, section, Part::Scan, |run| {
            let first = run.first;
            let (dt, z) = (&dt[first * stride..], &z[first * stride..]);
            let u = split(&mut u[first * stride..], stride);
            // One body for both kinds of state.
            macro_rules! scan_as {
                ($kind:path, $state:expr) => {{
                    let parts = (split(&mut $state[first * held..], held), u);
                    let cost = (cost::STATE * input.d_state).saturating_mul(input.tokens);
                    share(self.team, run.panels, cost, parts, |range, (state, u)| {
                        for (at, panels) in run.pieces(range.clone()) {
                            let from = (range.start + at.start) * stride;
                            let (dt, z) = (&dt[from..][..at.len() * stride], &z[from..][..at.len() * stride]);
                            let state = $kind(&mut state[at.start * held..at.end * held]);
                            let u = &mut u[at.start * stride..at.end * stride];
                            self.kernels.scan(panels, state, input, dt, z, u);
                        }
                    })
                }};
            }
            match &mut state {
                SsmState::F32(state) => scan_as!(SsmState::F32, state),
                SsmState::F16(state) => scan_as!(SsmState::F16, state),
            }
        })?;
        Ok(())
    }
}
