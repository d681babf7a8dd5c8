//! The equations of Mamba, in order.

use core::sync::atomic::{AtomicBool, Ordering};

use super::run::embedding_panel;
use super::scratch::Buffers;
use super::session::{Cursor, Members};
use super::spread::cost;
use super::state::Undo;
use super::{Scratch, ScratchSize, Session, State, StateSize, StepError};
use crate::format::{Config, Layout, Part, Section};
use crate::kernels::{Kernels, LANES, ScanInput, Team, share, split};
use crate::source::LayerSource;

/// A model: how its file is laid out, and what computes it.
#[derive(Clone, Copy)]
pub struct Model<'m> {
    pub(super) layout: &'m Layout,
    pub(super) kernels: &'m dyn Kernels,
    pub(super) team: &'m dyn Team,
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

    /// Begins a step of the first sequence: looks the tokens up in the embedding.
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
        self.begin_slot(session, source, 0, tokens)
    }

    /// Begins a step of one sequence of several.
    ///
    /// # Errors
    /// As [`Model::begin`], or [`StepError::Slot`].
    pub fn begin_slot(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
        slot: usize,
        tokens: &[u32],
    ) -> Result<(), StepError> {
        session.check_slot(slot)?;
        self.begin_for(session, source, Members::One(slot), tokens.iter().copied())
    }

    /// Begins a step of several sequences, one token each: pairs of a slot and its token, in the order of the slots. They
    /// give the bits that each gives alone, and the weights are read once. [`Rows::All`] gives their logits in that order.
    ///
    /// # Errors
    /// As [`Model::begin`], or [`StepError::Slot`].
    pub fn begin_each(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
        tokens: &[(usize, u32)],
    ) -> Result<(), StepError> {
        let mut taking_part = 0u64;
        for &(slot, _) in tokens {
            session.check_slot(slot)?;
            if taking_part >> slot != 0 {
                return Err(StepError::Slot { slot, slots: session.slots() });
            }
            taking_part |= 1 << slot;
        }
        let members = Members::Each(taking_part);
        self.begin_for(session, source, members, tokens.iter().map(|&(_, token)| token))
    }

    fn begin_for(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
        members: Members,
        tokens: impl ExactSizeIterator<Item = u32> + Clone,
    ) -> Result<(), StepError> {
        let (config, vocab) = (self.config(), self.config().vocab);
        session.check(config)?;
        if session.suspended_at().is_some() {
            return Err(StepError::Suspended);
        }
        let count = tokens.len();
        if count == 0 {
            return Err(StepError::NoTokens);
        }
        if let Some((position, token)) = tokens.clone().enumerate().find(|(_, token)| *token >= vocab) {
            return Err(StepError::Token { position, token, vocab });
        }
        if !session.scratch.fits(config, count) {
            let need = ScratchSize::of(config, count).floats;
            let have = session.scratch.size().floats;
            return Err(StepError::Buffer { name: "the working memory for a chunk", have, need });
        }
        let mut buffers = session.scratch.cut(config, count);
        session.cursor = Cursor::Empty;
        for (t, token) in tokens.enumerate() {
            self.embed(source, token, t, count, &mut buffers)?;
        }
        session.cursor = Cursor::Layer { layer: 0, tokens: count, members };
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
    /// If the layer could not be computed. After [`StepError::Source`] its state is what it was before, and it may be
    /// tried again; after [`StepError::NonFinite`] only [`Session::clear`] helps. [`StepError::NotReady`] if no step was
    /// begun.
    pub fn advance(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
    ) -> Result<bool, StepError> {
        session.check(self.config())?;
        let (layer, tokens, members) = match session.cursor {
            Cursor::Layer { layer, tokens, members } => (layer, tokens, members),
            Cursor::Done { .. } => return Ok(false),
            Cursor::Empty => return Err(StepError::NotReady),
        };
        let config = self.config();
        let (layers, at) = (config.n_layer as usize, layer as usize);
        // What can't fail in the middle needs no way back; after a value that is not finite there is none.
        let copy = if source.settled(Section::Layer(layer)) {
            State { conv: &mut [], ssm: session.undo.ssm.none() }
        } else {
            session.undo.lend()
        };
        let mut undo = Undo::new(copy);
        let buffers = session.scratch.cut(config, tokens);
        if let Err(error) =
            self.layer(source, layer, tokens, members, (&mut session.state, &mut undo), buffers)
        {
            for (i, (slot, _)) in members.of(tokens).enumerate() {
                undo.restore(config, i, &mut session.state.layer(config, slot * layers + at));
            }
            return Err(error);
        }
        let next = layer + 1;
        let done = next == config.n_layer;
        session.cursor =
            if done { Cursor::Done { tokens } } else { Cursor::Layer { layer: next, tokens, members } };
        Ok(!done)
    }

    /// Lets tokens pass one layer outside of any session, for tools that work on a model layer by layer.
    ///
    /// `x` is the residual stream `[d_model/16][T][16]`, replaced by what leaves the layer; `state` is that of all layers, of
    /// which this one's is used.
    ///
    /// # Errors
    /// [`StepError::NoTokens`] or [`StepError::Buffer`] before anything is changed; after any other, `x` and `state` mean
    /// nothing.
    pub fn pass_layer(
        &self,
        source: &mut dyn LayerSource,
        layer: u32,
        x: &mut [f32],
        state: &mut State<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), StepError> {
        let config = self.config();
        let width = config.padded_model() as usize;
        let tokens = x.len() / width;
        if tokens == 0 {
            return Err(StepError::NoTokens);
        }
        let (have, need) = (state.size(), StateSize::of(config, config.n_layer as usize));
        let (space, floor) = (scratch.size(), ScratchSize::of(config, tokens));
        let fits = [
            ("the residual stream", x.len(), tokens * width, x.len() == tokens * width),
            ("the convolution state", have.conv, need.conv, have.conv == need.conv),
            ("the recurrent state", have.ssm, need.ssm, have.ssm == need.ssm),
            ("the working memory", space.floats, floor.floats, scratch.fits(config, tokens)),
        ];
        if let Some((name, have, need, _)) = fits.into_iter().find(|(.., fits)| !fits) {
            return Err(StepError::Buffer { name, have, need });
        }
        let buffers = Buffers { x, ..scratch.cut(config, tokens) };
        let nothing = State { conv: &mut [], ssm: state.ssm.none() };
        self.layer(source, layer, tokens, Members::One(0), (state, &mut Undo::new(nothing)), buffers)
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
        let finite = AtomicBool::new(true);
        share(self.team, out.len() / LANES, cost::ROW, split(out, LANES), |_, out| {
            if !self.kernels.is_finite(out) {
                finite.store(false, Ordering::Relaxed);
            }
        });
        if finite.into_inner() { Ok(()) } else { Err(StepError::NonFinite { section }) }
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
        let panel = embedding_panel(self.layout, source, token)?;
        let panels = self.config().padded_model() as usize / LANES;
        let x = split(&mut *buffers.x, tokens * LANES);
        share(self.team, panels, cost::ELEMENTS, x, |range, x| {
            for (p, x) in range.zip(x.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens)) {
                for (i, x) in x[t].iter_mut().enumerate() {
                    *x = shape.element(panel, token, (p * LANES + i) as u32);
                }
            }
        });
        Ok(())
    }

    /// One layer: `x = x + mixer(norm(x))`.
    fn layer(
        &self,
        source: &mut dyn LayerSource,
        layer: u32,
        tokens: usize,
        members: Members,
        (state, undo): (&mut State<'_>, &mut Undo<'_>),
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
        self.conv(source, layer, tokens, members, (state.conv, undo), xc, u)?;

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
        let input = ScanInput { tokens, range: 0..tokens, d_state: config.d_state as usize, b, c };
        self.scan(source, layer, members, (&mut state.ssm, undo), &input, dt, z, u)?;

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
}
