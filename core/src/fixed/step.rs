//! The equations of Mamba, in order, in integers.

use super::scratch::{Buffers, Vectors};
use super::session::Cursor;
use super::{Session, State};
use crate::format::{Config, Layout, MatrixShape, Part, Quant, Section};
use crate::kernels::fixed::{
    Exponents, Group, Input, Inverse, Kernels, ScanInput, SsmState, Wide, WideMut, narrow_vectors, scale,
    times_ln_2,
};
use crate::kernels::{LANES, Team, share, split};
use crate::model::{Rows, StepError, cost, embedding_panel, for_each_run};
use crate::numbers::fixed::{LOW, Num, shift_long, shift_right};
use crate::source::LayerSource;

pub use crate::kernels::fixed::LOGIT_BITS;

/// What a panel and token cost where that differs from the float path, in the unit of [`share`]: about what a core with AVX2 would
/// do in bytes of weights meanwhile.
mod panel {
    /// Convolution and silu.
    pub(super) const CONV: usize = 2048;
    /// What a matrix takes beside its weights: the bias, and one exponent for the sums.
    pub(super) const SUMS: usize = 768;
}

/// A model: how its file is laid out, and what computes it.
#[derive(Clone, Copy)]
pub struct Model<'m> {
    layout: &'m Layout,
    kernels: &'m dyn Kernels,
    team: &'m dyn Team,
}

/// A part of a slice that is there; nothing where it is not.
fn at<T>(x: &[T], start: usize, len: usize) -> &[T] {
    x.get(start..start.saturating_add(len)).unwrap_or_default()
}

fn at_mut<T>(x: &mut [T], start: usize, len: usize) -> &mut [T] {
    x.get_mut(start..start.saturating_add(len)).unwrap_or_default()
}

fn from<T>(x: &[T], start: usize) -> &[T] {
    x.get(start..).unwrap_or_default()
}

fn from_mut<T>(x: &mut [T], start: usize) -> &mut [T] {
    x.get_mut(start..).unwrap_or_default()
}

impl Vectors<'_> {
    fn get(&self) -> Wide<'_> {
        Wide { m: self.m, e: self.e }
    }
    fn get_mut(&mut self) -> WideMut<'_> {
        WideMut { m: self.m, e: self.e }
    }
    /// Without the first `panels`, of `tokens` tokens each.
    fn from(&mut self, panels: usize, tokens: usize) -> Vectors<'_> {
        Vectors { m: from_mut(self.m, panels * tokens * LANES), e: from_mut(self.e, panels * tokens) }
    }
    /// The first `panels`, and the rest.
    fn cut(self, panels: usize, tokens: usize) -> [Self; 2] {
        let (m, rest_m) = self.m.split_at_mut_checked(panels * tokens * LANES).unwrap_or_default();
        let (e, rest_e) = self.e.split_at_mut_checked(panels * tokens).unwrap_or_default();
        [Self { m, e }, Self { m: rest_m, e: rest_e }]
    }
}

/// The rows of token `t` of `tokens`, with their panels.
fn token_rows(x: &mut [i32], t: usize, tokens: usize) -> impl Iterator<Item = (usize, &mut [i32; LANES])> {
    x.as_chunks_mut().0.iter_mut().skip(t).step_by(tokens.max(1)).enumerate()
}

/// Some panels of wide vectors of `tokens` tokens.
fn panels_of<'a>(x: &Wide<'a>, first: usize, panels: usize, tokens: usize) -> Wide<'a> {
    Wide {
        m: at(x.m, first * tokens * LANES, panels * tokens * LANES),
        e: at(x.e, first * tokens, panels * tokens),
    }
}

impl<'m> Model<'m> {
    /// A model computed by `kernels` on the cores of `team`; neither changes a bit of the results.
    ///
    /// # Errors
    /// [`StepError::Type`] for a matrix that is neither q8 nor q4.
    pub fn new(layout: &'m Layout, kernels: &'m dyn Kernels, team: &'m dyn Team) -> Result<Self, StepError> {
        let q = &layout.config().quants;
        let matrices = [
            ("the embedding", q.embedding),
            ("in_proj", q.in_proj),
            ("x_proj", q.x_proj),
            ("dt_proj", q.dt_proj),
            ("out_proj", q.out_proj),
            ("the head", q.head),
        ];
        for (matrix, quant) in matrices {
            match quant {
                Quant::Q8 | Quant::Q4 => {}
                Quant::F32 | Quant::F16 | Quant::Q5 | Quant::Q3 => {
                    return Err(StepError::Type { matrix, quant });
                }
            }
        }
        Ok(Self { layout, kernels, team })
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
        let config = self.config();
        session.check(config)?;
        session.cursor.check(tokens, config.vocab)?;
        if !session.scratch.fits(config, tokens.len()) {
            let need = super::ScratchSize::of(config, tokens.len()).words;
            let have = session.scratch.size().words;
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
    /// [`StepError::Source`] if the layer could not be computed: its state is then what it was before, and it may be tried
    /// again. [`StepError::NotReady`] if no step was begun.
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
        // What can't fail in the middle needs no way back.
        let settled = source.settled(Section::Layer(layer));
        if !settled {
            session.undo.copy_from(&state);
        }
        let buffers = session.scratch.cut(config, tokens);
        let layer_state = state.layer(config, 0);
        if let Err(error) = self.layer(source, layer, tokens, layer_state, buffers) {
            if !settled {
                state.copy_from(&session.undo);
            }
            return Err(error);
        }
        session.cursor = Cursor::passed(layer, tokens, config.n_layer);
        Ok(matches!(session.cursor, Cursor::Layer { .. }))
    }

    /// Computes logits for the tokens of the last step, in units of [`Config::logit_unit`], as a rule 2^-[`LOGIT_BITS`]. May be called again, for other rows too.
    ///
    /// # Errors
    /// [`StepError::Buffer`] if `out` is too small: `padded_vocab` elements for each token wanted.
    /// [`StepError::NotReady`] or [`StepError::Suspended`] if no step was finished.
    pub fn logits(
        &self,
        session: &mut Session<'_>,
        source: &mut dyn LayerSource,
        rows: Rows,
        out: &mut [i32],
    ) -> Result<(), StepError> {
        session.check(self.config())?;
        let tokens = session.cursor.done()?;
        let config = self.config();
        let wanted = if rows == Rows::Last { 1 } else { tokens };
        let need = (config.padded_vocab() as usize).saturating_mul(wanted);
        let have = out.len();
        let out = out.get_mut(..need).ok_or(StepError::Buffer { name: "the logits", have, need })?;

        let b = session.scratch.cut(config, tokens);
        let x = at_mut(b.xz.m, 0, wanted * config.padded_model() as usize);
        let first = tokens - wanted;
        let panels = b.x.as_chunks::<LANES>().0.chunks_exact(tokens.max(1));
        for (to, panel) in x.as_chunks_mut::<LANES>().0.chunks_exact_mut(wanted.max(1)).zip(panels) {
            for (to, row) in to.iter_mut().zip(from(panel, first)) {
                *to = *row;
            }
        }
        let (inv, qe) = (at_mut(b.inv, 0, wanted), at_mut(b.qe, 0, wanted));
        let x = (&*x, at(b.xe, first, wanted));
        self.norm(source, (Section::FinalNorm, Part::FinalNorm), x, inv, b.q, b.groups, qe)?;
        for e in qe.iter_mut() {
            *e -= i32::from(config.logit_exponent);
        }
        let (section, part) = self.layout.head();
        let (shape, stride) = (config.head(), wanted * LANES);
        let input = Input { tokens: wanted, q: b.q, groups: b.groups, exponents: qe };
        for_each_run(self.layout, source, section, part, |run| {
            let y = split(from_mut(out, run.first * stride), stride);
            let cost = (shape.panel_bytes() as usize).saturating_mul(wanted);
            share(self.team, run.panels, cost, y, |range, y| {
                for (covered, panels) in run.pieces(range) {
                    let y = at_mut(y, covered.start * stride, covered.len() * stride);
                    self.kernels.logits(&shape, panels, &input, y);
                }
            });
        })?;
        Ok(())
    }

    /// `x = embedding[token]` for token `t` of the chunk.
    fn embed(
        &self,
        source: &mut dyn LayerSource,
        token: u32,
        t: usize,
        tokens: usize,
        b: &mut Buffers<'_>,
    ) -> Result<(), StepError> {
        let shape = self.config().embedding();
        let panel = embedding_panel(self.layout, source, token)?;
        let exponent = shape.exponent(panel, token);
        // An int8 times a scale of 25 bits, in units of 2^-24.
        let element = |p: usize, i: usize| {
            let (integer, bits) = shape.quantized(panel, token, (p * LANES + i) as u32);
            i64::from(integer) * i64::from(scale(bits))
        };
        let mut largest = 0;
        for (p, x) in token_rows(b.x, t, tokens) {
            for (i, x) in x.iter_mut().enumerate() {
                let element = element(p, i);
                largest |= element.unsigned_abs();
                *x = element as i32;
            }
        }
        // Within 2^30: shifted down by 3 at most, as a rule by nothing.
        let down = (64 - largest.leading_zeros() as i32 - 30).max(0);
        if down > 0 {
            for (p, x) in token_rows(b.x, t, tokens) {
                for (i, x) in x.iter_mut().enumerate() {
                    *x = shift_long(element(p, i), -down) as i32;
                }
            }
        }
        if let Some(e) = b.xe.get_mut(t) {
            *e = down - 24 + exponent;
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
        let Buffers { x, xe, to, mut xn, mut xz, mut u, mut dbc, inv, q, groups, qe, bc, bce } = b;

        // q = norm(x);  x, z = in_proj(q)
        self.norm(source, (section, Part::Norm), (x, xe), inv, q, groups, qe)?;
        for (to, inv) in to.iter_mut().zip(&*inv) {
            *to = inv.top;
        }
        let input = Input { tokens, q, groups, exponents: qe };
        self.project(source, (section, Part::InProj), &config.in_proj(), &input, &mut xz)?;
        let [mut xc, z] = xz.cut(config.padded_inner() as usize / LANES, tokens);

        // u = silu(conv(x))
        self.conv(source, section, tokens, (state.conv, state.conv_exponents), xc.get(), &mut u)?;

        // dt, B, C = x_proj(u), each normed in a Falcon Mamba
        self.narrow(tokens, u.get(), q, groups, qe);
        let input = Input { tokens, q, groups, exponents: qe };
        self.project(source, (section, Part::XProj), &config.x_proj(), &input, &mut dbc)?;
        let d_state = config.padded_state() as usize / LANES;
        let [mut dt, rest] = dbc.cut(config.padded_rank() as usize / LANES, tokens);
        let [mut b, mut c] = rest.cut(d_state, tokens);
        if let Some(eps) = config.bcdt_eps {
            for (v, n) in [(&mut dt, config.dt_rank), (&mut b, config.d_state), (&mut c, config.d_state)] {
                self.kernels.rms_inv(v.m, Exponents::Panel(v.e), tokens, 0, n, eps.to_bits(), inv);
                self.kernels.rescale(v.get_mut(), inv);
            }
        }

        // dt = dt_proj(dt);  y = scan(u, softplus(dt), A, B, C) + D u;  y = y silu(z)
        self.narrow(tokens, dt.get(), q, groups, qe);
        let input = Input { tokens, q, groups, exponents: qe };
        self.project(source, (section, Part::DtProj), &config.dt_proj(), &input, &mut xc)?;
        let (bq, cq) = bc.split_at_mut_checked(d_state * tokens * LANES).unwrap_or_default();
        let (be, ce) = bce.split_at_mut_checked(tokens).unwrap_or_default();
        // The scan's dt is dt log2(e).
        times_ln_2(b.get_mut());
        narrow_vectors(tokens, b.get(), bq, be);
        narrow_vectors(tokens, c.get(), cq, ce);
        let states = config.d_state as usize;
        let input = ScanInput { tokens, d_state: states, b: bq, c: cq, b_exponents: be, c_exponents: ce };
        self.scan(source, section, (state.ssm, state.ranges), &input, (xc.get(), z.get()), &mut u)?;

        // x = x + out_proj(y)
        self.narrow(tokens, u.get(), q, groups, qe);
        let input = Input { tokens, q, groups, exponents: qe };
        self.project(source, (section, Part::OutProj), &config.out_proj(), &input, &mut xn)?;
        self.add(tokens, x, xe, to, xn.get());
        Ok(())
    }

    /// `x / sqrt(mean(x^2) + eps) w` for each token, as activations.
    fn norm(
        &self,
        source: &mut dyn LayerSource,
        (section, part): (Section, Part),
        (x, xe): (&[i32], &[i32]),
        inv: &mut [Inverse],
        q: &mut [i16],
        groups: &mut [Group],
        qe: &mut [i32],
    ) -> Result<(), StepError> {
        let (config, tokens) = (self.config(), inv.len());
        let e = Exponents::Token(xe);
        share(self.team, tokens, 4 * (x.len() / tokens.max(1)), split(inv, 1), |range, inv| {
            let eps = config.norm_eps.to_bits();
            self.kernels.rms_inv(x, e, tokens, range.start, config.d_model, eps, inv);
        });
        let (stride, inv) = (tokens * LANES, &*inv);
        // Panels by two, a group: blocks hold an even number of them.
        for_each_run(self.layout, source, section, part, |run| {
            let x = from(x, run.first * stride);
            let first = run.first / 2;
            let parts = (
                split(from_mut(q, first * 2 * stride), 2 * stride),
                split(from_mut(groups, first * tokens), tokens),
            );
            let cost = (2 * cost::ROW).saturating_mul(tokens);
            share(self.team, run.panels / 2, cost, parts, |range, (q, groups)| {
                for (covered, weight) in run.pieces(2 * range.start..2 * range.end) {
                    let x = at(x, (2 * range.start + covered.start) * stride, covered.len() * stride);
                    let q = at_mut(q, covered.start * stride, covered.len() * stride);
                    let groups = at_mut(groups, covered.start / 2 * tokens, covered.len() / 2 * tokens);
                    self.kernels.normalize(x, xe, weight, inv, q, groups);
                }
            });
        })?;
        complete(tokens, x.len() / (2 * stride).max(1), groups, qe);
        Ok(())
    }

    /// A vector as activations.
    fn narrow(&self, tokens: usize, x: Wide<'_>, q: &mut [i16], groups: &mut [Group], qe: &mut [i32]) {
        let (count, stride) = (x.e.len() / (2 * tokens).max(1), 2 * tokens * LANES);
        let parts = (split(q, stride), split(&mut *groups, tokens));
        share(self.team, count, (2 * cost::ROW).saturating_mul(tokens), parts, |range, (q, groups)| {
            let x = panels_of(&x, 2 * range.start, 2 * range.len(), tokens);
            self.kernels.narrow(tokens, x, q, groups);
        });
        complete(tokens, count, groups, qe);
    }

    /// `y = W x + bias` for each token.
    fn project(
        &self,
        source: &mut dyn LayerSource,
        (section, part): (Section, Part),
        shape: &MatrixShape,
        input: &Input<'_>,
        y: &mut Vectors<'_>,
    ) -> Result<(), StepError> {
        let tokens = input.tokens;
        for_each_run(self.layout, source, section, part, |run| {
            let y = y.from(run.first, tokens);
            let cost = (shape.panel_bytes() as usize).saturating_add(panel::SUMS).saturating_mul(tokens);
            let parts = (split(y.m, tokens * LANES), split(y.e, tokens));
            share(self.team, run.panels, cost, parts, |range, (m, e)| {
                let mut y = Vectors { m, e };
                for (covered, panels) in run.pieces(range) {
                    self.kernels.matmul(shape, panels, input, y.from(covered.start, tokens).get_mut());
                    if shape.has_exponents() {
                        scale_rows(shape, panels, tokens, y.from(covered.start, tokens).get_mut());
                    }
                }
            });
        })?;
        Ok(())
    }

    /// `u = silu(conv(x))`, channel by channel.
    fn conv(
        &self,
        source: &mut dyn LayerSource,
        section: Section,
        tokens: usize,
        (state, exponents): (&mut [i32], &mut [u16]),
        x: Wide<'_>,
        u: &mut Vectors<'_>,
    ) -> Result<(), StepError> {
        let d_conv = self.config().d_conv as usize;
        let kept = d_conv.saturating_sub(1);
        for_each_run(self.layout, source, section, Part::Conv, |run| {
            let u = u.from(run.first, tokens);
            let state = (
                split(from_mut(state, run.first * kept * LANES), kept * LANES),
                split(from_mut(exponents, run.first * kept), kept),
            );
            let parts = (state, (split(u.m, tokens * LANES), split(u.e, tokens)));
            let cost = panel::CONV.saturating_mul(tokens);
            share(self.team, run.panels, cost, parts, |range, ((state, exponents), (m, e))| {
                let mut u = Vectors { m, e };
                for (covered, panels) in run.pieces(range.clone()) {
                    let (first, count) = (covered.start, covered.len());
                    let x = panels_of(&x, run.first + range.start + first, count, tokens);
                    let state = at_mut(state, first * kept * LANES, count * kept * LANES);
                    let exponents = at_mut(exponents, first * kept, count * kept);
                    let u = &mut u.from(first, tokens);
                    self.kernels.conv_silu(d_conv, tokens, panels, state, exponents, x, u.get_mut());
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
        (mut state, ranges): (SsmState<'_>, &mut [crate::kernels::fixed::Range]),
        input: &ScanInput<'_>,
        (dt, z): (Wide<'_>, Wide<'_>),
        u: &mut Vectors<'_>,
    ) -> Result<(), StepError> {
        let (tokens, held) = (input.tokens, input.d_state * LANES);
        for_each_run(self.layout, source, section, Part::Scan, |run| {
            let u = u.from(run.first, tokens);
            let rest = (
                split(from_mut(ranges, run.first * LANES), LANES),
                (split(u.m, tokens * LANES), split(u.e, tokens)),
            );
            let cost = (cost::STATE * input.d_state).saturating_mul(tokens);
            // One body for both kinds of state.
            macro_rules! scan_as {
                ($kind:path, $state:expr) => {{
                    let parts = (split(from_mut($state, run.first * held), held), rest);
                    share(self.team, run.panels, cost, parts, |range, (state, (ranges, (m, e)))| {
                        let mut u = Vectors { m, e };
                        for (covered, panels) in run.pieces(range.clone()) {
                            let (first, count) = (covered.start, covered.len());
                            let place = run.first + range.start + first;
                            let (dt, z) =
                                (panels_of(&dt, place, count, tokens), panels_of(&z, place, count, tokens));
                            let state = $kind(at_mut(state, first * held, count * held));
                            let ranges = at_mut(ranges, first * LANES, count * LANES);
                            let u = &mut u.from(first, tokens);
                            self.kernels.scan(panels, state, ranges, input, dt, z, u.get_mut());
                        }
                    })
                }};
            }
            match &mut state {
                SsmState::I16(state) => scan_as!(SsmState::I16, state),
                SsmState::I32(state) => scan_as!(SsmState::I32, state),
            }
        })?;
        Ok(())
    }

    /// `x = x + y`. `to` has the exponents of bounds on `x`.
    fn add(&self, tokens: usize, x: &mut [i32], xe: &mut [i32], to: &mut [i32], y: Wide<'_>) {
        for (t, to) in to.iter_mut().enumerate() {
            // Both within 2^29: the sum within 2^30.
            let top = y.e.iter().skip(t).step_by(tokens.max(1)).fold(*to, |top, e| top.max(e + 30));
            *to = (top - 29).max(LOW);
        }
        let (panels, stride) = (x.len() / (tokens * LANES).max(1), tokens * LANES);
        share(self.team, panels, cost::ROW.saturating_mul(tokens), split(x, stride), |range, x| {
            self.kernels.add(x, xe, to, panels_of(&y, range.start, range.len(), tokens));
        });
        for (e, to) in xe.iter_mut().zip(to) {
            *e = *to;
        }
    }
}

/// Gives the sums of some panels' rows, which have one exponent for each token, the rows' exponents and biases.
fn scale_rows(shape: &MatrixShape, panels: &[u8], tokens: usize, y: WideMut<'_>) {
    let rows = y.m.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens.max(1));
    let panels = panels.chunks_exact(shape.panel_bytes().max(1) as usize);
    for (panel, (rows, e)) in panels.zip(rows.zip(y.e.chunks_exact_mut(tokens.max(1)))) {
        let mut exponents = [0; LANES];
        for (i, exponent) in exponents.iter_mut().enumerate() {
            *exponent = shape.exponent(panel, i as u32);
        }
        let bias = shape.biases(panel);
        for (row, e) in rows.iter_mut().zip(e) {
            *e = scale_row(row, *e, &exponents, bias);
        }
    }
}

/// Brings sixteen sums in units of `2^e`, each with its bias times two to the power of its exponent, to one unit, of which the
/// largest has 30 bits. Returns the unit's exponent.
fn scale_row(row: &mut [i32; LANES], e: i32, exponents: &[i32; LANES], bias: &[[u8; 4]]) -> i32 {
    let mut each = [LOW; LANES];
    for (i, ((m, each), exponent)) in row.iter_mut().zip(&mut each).zip(exponents).enumerate() {
        let b = bias.get(i).map_or(Num { m: 0, e }, |b| Num::from_f32_bits(u32::from_le_bytes(*b)));
        // Both have 31 bits at most. What is shifted up by 30 has 61, and the sum 62.
        let unit = if b.m == 0 { e } else { e.max(b.e) } - 30;
        let sum = shift_long(i64::from(*m), e - unit) + shift_long(i64::from(b.m), b.e - unit);
        let up = (sum ^ sum >> 63).leading_zeros() as i32 - 34;
        *m = shift_long(sum, up) as i32;
        if sum != 0 {
            *each = unit - up + exponent;
        }
    }
    let top = each.iter().fold(LOW, |top, e| top.max(*e));
    for (m, e) in row.iter_mut().zip(each) {
        if e < top {
            *m = shift_right(*m, top - e);
        }
    }
    top
}

/// Finds each vector's exponent, the largest of its groups', and how far the others lie below it.
fn complete(tokens: usize, count: usize, groups: &mut [Group], exponents: &mut [i32]) {
    let groups = at_mut(groups, 0, count * tokens);
    for (t, top) in exponents.iter_mut().enumerate() {
        let of_token = || groups.iter().skip(t).step_by(tokens.max(1));
        *top = of_token().fold(LOW, |top, group| top.max(group.exponent));
        for group in groups.iter_mut().skip(t).step_by(tokens.max(1)) {
            group.exponent = (*top - group.exponent).clamp(0, 31);
        }
    }
}
