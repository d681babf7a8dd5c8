//! The operations of a layer in integers: no floating point, and the same bits wherever they run. Specified in
//! `docs/numerics.md`.
//!
//! Three formats, all of a mantissa and an exponent:
//! * wide: 16 mantissas of 30 bits with one exponent; the residual stream has one exponent a token;
//! * activations, which meet matrices: 32 mantissas of 14 bits with one exponent;
//! * state: mantissas of 15 or 29 bits with an exponent a channel.

mod scratch;
mod state;

pub use scratch::{Scratch, ScratchSize};
pub use state::{State, StateKind, StateSize};

pub use crate::kernels::fixed::LOGIT_BITS;

use core::ops::Range;

use super::StepError;
pub use super::operations::Fixed;
use super::operations::{
    self, Buffers, LayerState, Operand, Operations, Panels, Pass, ScanVectors, Slices, at, at_mut, copy,
    first, from, from_mut, part, wrong_size,
};
use super::parts::{self, Element, Values};
use super::span::for_each_span;
use super::spread::{cost, multiply};
use crate::format::{Config, MatrixShape, Part};
use crate::kernels::fixed::{
    Exponents, Group, Input, Kernels, ScanInput, SharedWide, SsmState, Wide, WideMut, narrow_vectors, scale,
    times_ln_2,
};
use crate::kernels::{LANES, share, split, split_rows};
use crate::numbers::fixed::{LOW, Num, shift_long, shift_right};
use scratch::{Residual, Work};

/// A model in integers: [`Model::fixed`](crate::model::Model::fixed).
pub type Model<'m> = operations::Model<'m, Fixed>;
/// Sequences of a model in integers.
pub type Session<'s> = super::Session<'s, Fixed>;

/// What a panel and token cost where that differs from the float path, in the unit of [`share`]: about what a core with AVX2 would
/// do in bytes of weights meanwhile.
mod panel {
    /// Convolution and silu.
    pub(super) const CONV: usize = 2048;
    /// What a matrix takes beside its weights: the bias, and one exponent for the sums.
    pub(super) const SUMS: usize = 768;
}

/// Mantissas `[d/16][T][16]` and exponents `[d/16][T]`.
pub struct Wides;

impl Panels for Wides {
    type Of<'a> = WideMut<'a>;
    type Shared<'a> = SharedWide<'a>;

    fn share<'a>(v: &'a mut WideMut<'_>, first: usize, each: usize, tokens: usize) -> SharedWide<'a> {
        SharedWide::new(from_mut(v.m, first * tokens * LANES), from_mut(v.e, first * tokens), each * tokens)
    }

    fn part<'a>(v: &'a mut WideMut<'_>, panels: Range<usize>, tokens: usize) -> WideMut<'a> {
        WideMut {
            m: at_mut(v.m, panels.start * tokens * LANES, panels.len() * tokens * LANES),
            e: at_mut(v.e, panels.start * tokens, panels.len() * tokens),
        }
    }
}

/// Some panels of wide vectors of `tokens` tokens.
fn panels_of<'a>(x: &Wide<'a>, first: usize, panels: usize, tokens: usize) -> Wide<'a> {
    Wide {
        m: at(x.m, first * tokens * LANES, panels * tokens * LANES),
        e: at(x.e, first * tokens, panels * tokens),
    }
}

/// The rows of token `t` of `tokens`, with their panels.
fn token_rows(x: &mut [i32], t: usize, tokens: usize) -> impl Iterator<Item = (usize, &mut [i32; LANES])> {
    x.as_chunks_mut().0.iter_mut().skip(t).step_by(tokens.max(1)).enumerate()
}

/// What a matrix is multiplied with, as activations in `work`.
fn input<'w>(p: &Pass<'_, Fixed>, x: &Operand<'_, '_, Fixed>, work: &'w mut Work<'_>) -> Input<'w> {
    let tokens = p.tokens;
    if let Operand::Vector(x) = x {
        let (count, stride) = (x.e.len() / (2 * tokens).max(1), 2 * tokens * LANES);
        let parts = (split(work.q, stride), split(work.groups, tokens));
        let cost = (2 * cost::ROW).saturating_mul(tokens);
        share(p.model.team, count, cost, parts, |range, (q, groups)| {
            let x = panels_of(&x.get(), 2 * range.start, 2 * range.len(), tokens);
            p.model.kernels.narrow(tokens, x, q, groups);
        });
        complete(count, work.groups, at_mut(work.qe, 0, tokens));
    }
    Input { tokens, q: work.q, groups: work.groups, exponents: at(work.qe, 0, tokens) }
}

impl Operations for Fixed {
    type Kernels = dyn Kernels;
    type Logit = i32;
    type State<'a> = State<'a>;
    type Parts<'a> = [parts::Part<'a>; 4];
    type Scratch<'a> = Scratch<'a>;
    type Residual<'a> = Residual<'a>;
    type Vectors = Wides;
    type Work<'a> = Work<'a>;

    fn check_sizes(
        config: &Config,
        slots: usize,
        state: &State<'_>,
        undo: &State<'_>,
        scratch: &Scratch<'_>,
    ) -> Result<(), StepError> {
        let one = StateSize::of(config, slots);
        let all = StateSize::of(config, (config.n_layer as usize).saturating_mul(slots));
        let (has, saved) = (state.size(), undo.size());
        let copied = if state.kind() == undo.kind() { saved.ssm } else { 0 };
        let (space, least) = (scratch.size(), ScratchSize::of(config, 1));
        wrong_size(
            &[
                ("the convolution state", has.conv, all.conv),
                ("the exponents of the convolution state", has.conv_exponents, all.conv_exponents),
                ("the recurrent state", has.ssm, all.ssm),
                ("the ranges of the recurrent state", has.ranges, all.ranges),
                ("the undo copy of the convolution state", saved.conv, one.conv),
                ("the undo copy of its exponents", saved.conv_exponents, one.conv_exponents),
                ("the undo copy of the recurrent state", copied, one.ssm),
                ("the undo copy of its ranges", saved.ranges, one.ranges),
            ],
            &[
                ("the working memory", space.words, least.words),
                ("the memory of activations", space.halves, least.halves),
                ("the memory of groups of activations", space.groups, least.groups),
                ("the memory of norms", space.tokens, least.tokens),
            ],
        )
    }

    fn check_contents(config: &Config, state: &State<'_>) -> Result<(), StepError> {
        state.check(config)
    }

    fn lacks(config: &Config, tokens: usize, scratch: &Scratch<'_>) -> Option<(usize, usize)> {
        let need = ScratchSize::of(config, tokens).words;
        (!scratch.fits(config, tokens)).then_some((scratch.size().words, need))
    }

    fn cut<'a>(config: &Config, tokens: usize, scratch: &'a mut Scratch<'_>) -> Buffers<'a, Self> {
        scratch.cut(config, tokens)
    }

    fn reborrow<'a>(state: &'a mut State<'_>) -> State<'a> {
        let State { conv, conv_exponents, ssm, ranges } = state;
        State { conv, conv_exponents, ssm: ssm.reborrow(), ranges }
    }

    fn none<'a>(state: &State<'_>) -> State<'a> {
        State { conv: &mut [], conv_exponents: &mut [], ssm: state.ssm.none(), ranges: &mut [] }
    }

    fn layer<'a>(config: &Config, state: &'a mut State<'_>, layer: usize) -> State<'a> {
        let one = StateSize::of(config, 1);
        State {
            conv: part(state.conv, one.conv, layer),
            conv_exponents: part(state.conv_exponents, one.conv_exponents, layer),
            ssm: match &mut state.ssm {
                SsmState::I16(s) => SsmState::I16(part(s, one.ssm, layer)),
                SsmState::I32(s) => SsmState::I32(part(s, one.ssm, layer)),
            },
            ranges: part(state.ranges, one.ranges, layer),
        }
    }

    fn parts<'a>(config: &Config, layer: &'a mut State<'_>) -> [parts::Part<'a>; 4] {
        let (panels, lanes) = (config.padded_inner() / LANES as u32, LANES as u32);
        let recurrent = match &mut layer.ssm {
            SsmState::I16(s) => Values::I16(s),
            SsmState::I32(s) => Values::I32(s),
        };
        let (taps, d_state) = (config.d_conv - 1, config.d_state);
        let part = |name, shape, values| parts::Part { name, recurrent: false, shape, values };
        [
            part("conv", [panels, taps, lanes, 0], Values::I32(layer.conv)),
            part("conv_exp", [panels, taps, 0, 0], Values::U16(layer.conv_exponents)),
            part("ssm", [panels, d_state, lanes, 0], recurrent),
            part("ssm_range", [panels, lanes, 0, 0], Values::Ranges(layer.ranges)),
        ]
    }

    fn kept(state: &State<'_>) -> Element {
        if matches!(state.ssm, SsmState::I16(_)) { Element::I16 } else { Element::I32 }
    }

    fn clear(state: &mut State<'_>) {
        state.clear();
    }

    fn copy(config: &Config, (conv, ssm): (usize, usize), from: &State<'_>, to: &mut State<'_>) {
        let conv = conv.saturating_mul((config.d_conv as usize).saturating_sub(1));
        copy(to.conv, first(from.conv, conv.saturating_mul(LANES)));
        copy(to.conv_exponents, first(from.conv_exponents, conv));
        let channels = ssm.saturating_mul(LANES);
        let states = channels.saturating_mul(config.d_state as usize);
        match (&mut to.ssm, &from.ssm) {
            (SsmState::I16(to), SsmState::I16(from)) => copy(to, first(from, states)),
            (SsmState::I32(to), SsmState::I32(from)) => copy(to, first(from, states)),
            _ => debug_assert!(false, "states of two kinds"),
        }
        copy(to.ranges, first(from.ranges, channels));
    }

    fn split<'a>(v: &'a mut WideMut<'_>, panels: usize, tokens: usize) -> [WideMut<'a>; 2] {
        let (m, rest_m) = v.m.split_at_mut_checked(panels * tokens * LANES).unwrap_or_default();
        let (e, rest_e) = v.e.split_at_mut_checked(panels * tokens).unwrap_or_default();
        [WideMut { m, e }, WideMut { m: rest_m, e: rest_e }]
    }

    fn last<'a>(
        x: &'a mut Residual<'_>,
        tokens: usize,
        wanted: usize,
        room: &'a mut WideMut<'_>,
    ) -> Residual<'a> {
        let Residual { m, e, top } = x;
        if wanted == tokens {
            return Residual { m, e, top };
        }
        let panels = m.as_chunks::<LANES>().0.chunks_exact(tokens.max(1));
        let last = panels.filter_map(|panel| panel.last());
        for (to, last) in room.m.as_chunks_mut::<LANES>().0.iter_mut().zip(last) {
            *to = *last;
        }
        let before = tokens.saturating_sub(1);
        let room = at_mut(room.m, 0, m.len() / tokens.max(1));
        Residual { m: room, e: from_mut(e, before), top: from_mut(top, before) }
    }

    fn embed(p: &mut Pass<'_, Self>, token: u32, t: usize, x: &mut Residual<'_>) -> Result<(), StepError> {
        let (tokens, shape) = (p.tokens, p.config().embedding());
        let panel = p.embedding_panel(token)?;
        let exponent = shape.exponent(panel, token);
        // An int8 times a scale of 25 bits, in units of 2^-24.
        let element = |p: usize, i: usize| {
            let (integer, bits) = shape.quantized(panel, token, (p * LANES + i) as u32);
            i64::from(integer) * i64::from(scale(bits))
        };
        let mut largest = 0;
        for (p, x) in token_rows(x.m, t, tokens) {
            for (i, x) in x.iter_mut().enumerate() {
                let element = element(p, i);
                largest |= element.unsigned_abs();
                *x = element as i32;
            }
        }
        // Within 2^30: shifted down by 3 at most, as a rule by nothing.
        let down = (64 - largest.leading_zeros() as i32 - 30).max(0);
        if down > 0 {
            for (p, x) in token_rows(x.m, t, tokens) {
                for (i, x) in x.iter_mut().enumerate() {
                    *x = shift_long(element(p, i), -down) as i32;
                }
            }
        }
        if let Some(e) = x.e.get_mut(t) {
            *e = down - 24 + exponent;
        }
        Ok(())
    }

    // The result is activations in `work`, and the bounds of `x` in `x.top`.
    fn norm(
        p: &mut Pass<'_, Self>,
        part: Part,
        x: &mut Residual<'_>,
        work: &mut Work<'_>,
        _: &mut WideMut<'_>,
    ) -> Result<(), StepError> {
        let (config, kernels, team, tokens) = (p.config(), p.model.kernels, p.model.team, p.tokens);
        let Work { inv, q, groups, qe, .. } = work;
        let (x, xe, top) = (&*x.m, &*x.e, &mut *x.top);
        let inv = at_mut(inv, 0, tokens);
        let e = Exponents::Token(xe);
        share(team, tokens, 4 * (x.len() / tokens.max(1)), split(inv, 1), |range, inv| {
            kernels.rms_inv(x, e, tokens, range.start, config.d_model, config.norm_eps.to_bits(), inv);
        });
        let (stride, inv) = (tokens * LANES, &*inv);
        // Panels by two, a group: blocks hold an even number of them.
        for_each_span(p, part, |span| {
            let x = from(x, span.first * stride);
            let first = span.first / 2;
            let parts = (
                split(from_mut(q, first * 2 * stride), 2 * stride),
                split(from_mut(groups, first * tokens), tokens),
            );
            let cost = (2 * cost::ROW).saturating_mul(tokens);
            share(team, span.panels / 2, cost, parts, |range, (q, groups)| {
                for (covered, weight) in span.pieces(2 * range.start..2 * range.end) {
                    let x = at(x, (2 * range.start + covered.start) * stride, covered.len() * stride);
                    let q = at_mut(q, covered.start * stride, covered.len() * stride);
                    let groups = at_mut(groups, covered.start / 2 * tokens, covered.len() / 2 * tokens);
                    kernels.normalize(x, xe, weight, inv, q, groups);
                }
            });
        })?;
        complete(x.len() / (2 * stride).max(1), groups, at_mut(qe, 0, tokens));
        for (top, inv) in top.iter_mut().zip(inv) {
            *top = inv.top;
        }
        Ok(())
    }

    fn project(
        p: &mut Pass<'_, Self>,
        part: Part,
        w: &MatrixShape,
        x: Operand<'_, '_, Self>,
        work: &mut Work<'_>,
        y: &mut WideMut<'_>,
    ) -> Result<(), StepError> {
        let (kernels, tokens) = (p.model.kernels, p.tokens);
        let input = input(p, &x, work);
        let cost = (w.panel_bytes() as usize).saturating_add(panel::SUMS).saturating_mul(tokens);
        multiply::<Self, Wides>(p, part, cost, y, |panels, mut y| {
            kernels.matmul(w, panels, &input, y.get_mut());
            if w.has_exponents() {
                scale_rows(w, panels, tokens, y.get_mut());
            }
        })
    }

    fn conv(
        p: &mut Pass<'_, Self>,
        state: &mut LayerState<'_, Self>,
        x: &WideMut<'_>,
        u: &mut WideMut<'_>,
    ) -> Result<(), StepError> {
        let (config, kernels, team, tokens) = (p.config(), p.model.kernels, p.model.team, p.tokens);
        let d_conv = config.d_conv as usize;
        let kept = d_conv.saturating_sub(1);
        let (row, within) = state.of_layer(config, config.conv_state_len() / LANES);
        let LayerState { all, undo, members, .. } = state;
        let cost = panel::CONV.saturating_mul(tokens);
        let x = x.get();
        for_each_span(p, Part::Conv, |span| {
            let (first, len) = (span.first * kept, within.len());
            let of = |row: usize, from: usize, to: usize, lanes: usize| {
                (row * lanes, from * lanes..to * lanes, kept * lanes)
            };
            let (all_rows, all_range, each) = of(row, within.start + first, within.end, LANES);
            let (exp_rows, exp_range, each_exp) = of(row, within.start + first, within.end, 1);
            let states = (
                split_rows(all.conv, all_rows, all_range, each),
                split_rows(all.conv_exponents, exp_rows, exp_range, each_exp),
            );
            let (undo_rows, undo_range, _) = of(len, first, len, LANES);
            let copies = (
                split_rows(undo.state.conv, undo_rows, undo_range, each),
                split_rows(undo.state.conv_exponents, len, first..len, kept),
            );
            undo.conv = span.first + span.panels;
            let parts = ((states, copies), Wides::share(u, span.first, 1, tokens));
            share(team, span.panels, cost, parts, |range, ((mut states, mut copies), mut u)| {
                for (covered, panels) in span.pieces(range.clone()) {
                    let (first, count) = (covered.start, covered.len());
                    let x = panels_of(&x, span.first + range.start + first, count, tokens);
                    let mut u = Wides::part(&mut u, covered, tokens);
                    for (i, (sequence, range)) in members.of(tokens).enumerate() {
                        let state = at_mut(states.0.row(sequence), first * each, count * each);
                        let exponents = at_mut(states.1.row(sequence), first * kept, count * kept);
                        copy(from_mut(copies.0.row(i), first * each), state);
                        copy(from_mut(copies.1.row(i), first * kept), exponents);
                        kernels.conv_silu(d_conv, tokens, range, panels, state, exponents, x, u.get_mut());
                    }
                }
            });
        })?;
        Ok(())
    }

    fn rescale(p: &Pass<'_, Self>, n: u32, eps: f32, work: &mut Work<'_>, v: &mut WideMut<'_>) {
        let (kernels, inv) = (p.model.kernels, at_mut(work.inv, 0, p.tokens));
        kernels.rms_inv(v.m, Exponents::Panel(v.e), p.tokens, 0, n, eps.to_bits(), inv);
        kernels.rescale(v.get_mut(), inv);
    }

    fn scan(
        p: &mut Pass<'_, Self>,
        state: &mut LayerState<'_, Self>,
        v: ScanVectors<'_, '_, '_, Self>,
        work: &mut Work<'_>,
        u: &mut WideMut<'_>,
    ) -> Result<(), StepError> {
        let (config, kernels, team, tokens) = (p.config(), p.model.kernels, p.model.team, p.tokens);
        let ScanVectors { dt, b, c, z } = v;
        let padded = config.padded_state() as usize * tokens;
        let (bq, cq) = work.bc.split_at_mut_checked(padded).unwrap_or_default();
        let (be, rest) = work.bce.split_at_mut_checked(tokens).unwrap_or_default();
        let ce = at_mut(rest, 0, tokens);
        // The scan's dt is dt log2(e).
        times_ln_2(b.get_mut());
        narrow_vectors(tokens, b.get(), bq, be);
        narrow_vectors(tokens, c.get(), cq, ce);
        let input = ScanInput {
            tokens,
            range: 0..tokens,
            d_state: config.d_state as usize,
            b: bq,
            c: cq,
            b_exponents: be,
            c_exponents: ce,
        };
        let (dt, z) = (dt.get(), z.get());
        let held = input.d_state * LANES;
        let (row, within) = state.of_layer(config, config.ssm_state_len());
        let (channels, of_channels) = state.of_layer(config, config.padded_inner() as usize);
        let LayerState { all, undo, members, .. } = state;
        let cost = (cost::STATE * input.d_state).saturating_mul(tokens);
        for_each_span(p, Part::Scan, |span| {
            let (first, lanes) = (span.first * held, span.first * LANES);
            let len = of_channels.len();
            let ranges = split_rows(all.ranges, channels, of_channels.start + lanes..of_channels.end, LANES);
            let saved = split_rows(undo.state.ranges, len, lanes..len, LANES);
            let rest = ((ranges, saved), Wides::share(u, span.first, 1, tokens));
            // One body for both kinds of state.
            macro_rules! scan_as {
                ($kind:path, $state:expr, $copy:expr) => {{
                    let states = split_rows($state, row, within.start + first..within.end, held);
                    let copies = split_rows($copy, within.len(), first..within.len(), held);
                    let parts = ((states, copies), rest);
                    share(
                        team,
                        span.panels,
                        cost,
                        parts,
                        |range, ((mut states, mut copies), ((mut ranges, mut saved), mut u))| {
                            for (covered, panels) in span.pieces(range.clone()) {
                                let (first, count) = (covered.start, covered.len());
                                let place = span.first + range.start + first;
                                let dt = panels_of(&dt, place, count, tokens);
                                let z = panels_of(&z, place, count, tokens);
                                let mut u = Wides::part(&mut u, covered, tokens);
                                for (i, (sequence, range)) in members.of(tokens).enumerate() {
                                    let state = at_mut(states.row(sequence), first * held, count * held);
                                    let ranges = at_mut(ranges.row(sequence), first * LANES, count * LANES);
                                    copy(from_mut(copies.row(i), first * held), state);
                                    copy(from_mut(saved.row(i), first * LANES), ranges);
                                    let input = ScanInput { range, ..input.clone() };
                                    let state = $kind(state);
                                    kernels.scan(panels, state, ranges, &input, dt, z, u.get_mut());
                                }
                            }
                        },
                    )
                }};
            }
            undo.ssm = span.first + span.panels;
            match (&mut all.ssm, &mut undo.state.ssm) {
                (SsmState::I16(state), SsmState::I16(saved)) => scan_as!(SsmState::I16, state, saved),
                (SsmState::I32(state), SsmState::I32(saved)) => scan_as!(SsmState::I32, state, saved),
                _ => debug_assert!(false, "states of two kinds"),
            }
        })?;
        Ok(())
    }

    fn add(p: &Pass<'_, Self>, x: &mut Residual<'_>, y: &WideMut<'_>) -> Result<(), StepError> {
        let (tokens, y) = (p.tokens, y.get());
        for (t, top) in x.top.iter_mut().enumerate() {
            // Both within 2^29: the sum within 2^30.
            let most = y.e.iter().skip(t).step_by(tokens.max(1)).fold(*top, |most, e| most.max(e + 30));
            *top = (most - 29).max(LOW);
        }
        let (panels, stride) = (x.m.len() / (tokens * LANES).max(1), tokens * LANES);
        let (from, to) = (&*x.e, &*x.top);
        share(p.model.team, panels, cost::ROW.saturating_mul(tokens), split(x.m, stride), |range, x| {
            p.model.kernels.add(x, from, to, panels_of(&y, range.start, range.len(), tokens));
        });
        copy(x.e, x.top);
        Ok(())
    }

    fn logits(
        p: &mut Pass<'_, Self>,
        part: Part,
        x: Operand<'_, '_, Self>,
        work: &mut Work<'_>,
        mut logits: &mut [i32],
    ) -> Result<(), StepError> {
        let (config, kernels, tokens) = (p.config(), p.model.kernels, p.tokens);
        let shape = config.head();
        input(p, &x, work);
        for e in at_mut(work.qe, 0, tokens) {
            *e -= i32::from(config.logit_exponent);
        }
        let input = Input { tokens, q: work.q, groups: work.groups, exponents: at(work.qe, 0, tokens) };
        let cost = (shape.panel_bytes() as usize).saturating_mul(tokens);
        multiply::<Self, Slices<i32>>(p, part, cost, &mut logits, |panels, y| {
            kernels.logits(&shape, panels, &input, y);
        })
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
fn complete(count: usize, groups: &mut [Group], exponents: &mut [i32]) {
    let tokens = exponents.len();
    let groups = at_mut(groups, 0, count * tokens);
    for (t, top) in exponents.iter_mut().enumerate() {
        let of_token = || groups.iter().skip(t).step_by(tokens.max(1));
        *top = of_token().fold(LOW, |top, group| top.max(group.exponent));
        for group in groups.iter_mut().skip(t).step_by(tokens.max(1)) {
            group.exponent = (*top - group.exponent).clamp(0, 31);
        }
    }
}
