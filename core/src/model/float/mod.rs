//! The operations of a layer in floating point.

mod scratch;
mod state;

pub use scratch::{Scratch, ScratchSize};
pub use state::{State, StateKind, StateSize};

use core::sync::atomic::{AtomicBool, Ordering};

use super::StepError;
use super::operations::{
    Buffers, Float, LayerState, Operand, Operations, Pass, ScanVectors, Slices, Vector, at, copy, first,
    from_mut, part, wrong_size,
};
use super::parts::{self, Element, Values};
use super::span::for_each_span;
use super::spread::{cost, multiply};
use crate::format::{Config, MatrixShape, Part, power_of_two};
use crate::kernels::{
    GROUP, Input, Kernels, LANES, ScanInput, SsmState, TOKEN_BLOCK, share, split, split_rows,
};
use scratch::Work;

/// Multiplies what some panels gave for each token by two to the power of the rows' exponents: exactly, unless the product is
/// too large or too small for an f32.
#[inline(never)]
fn scale_rows(shape: &MatrixShape, panels: &[u8], tokens: usize, y: &mut [f32]) {
    let panels = panels.chunks_exact(shape.panel_bytes() as usize);
    for (panel, y) in panels.zip(y.chunks_exact_mut(tokens * LANES)) {
        let mut factors = [0.0; LANES];
        for (row, factor) in (0..).zip(&mut factors) {
            *factor = power_of_two(shape.exponent(panel, row));
        }
        for row in y.as_chunks_mut::<LANES>().0 {
            row.iter_mut().zip(&factors).for_each(|(y, factor)| *y *= factor);
        }
    }
}

/// Quantizes `x` to int8 in blocks of tokens, as [`Input`] wants them. False if any element is infinite or NaN.
fn quantize(p: &Pass<'_, Float>, groups: usize, x: &[f32], work: &mut Work<'_>) -> bool {
    let (kernels, team, tokens) = (p.model.kernels, p.model.team, p.tokens);
    let Work { q, scales, .. } = work;
    let finite = AtomicBool::new(true);
    let quantize = |tokens_of_block, x: &[f32], q: &mut [i8], scales: &mut [_]| {
        if !kernels.quantize(tokens, tokens_of_block, x, q, scales) {
            finite.store(false, Ordering::Relaxed);
        }
    };
    let cost = (2 * cost::ROW).saturating_mul(tokens);
    if tokens <= TOKEN_BLOCK {
        let stride = tokens * GROUP;
        share(team, groups, cost, (split(q, stride), split(scales, tokens)), |range, (q, scales)| {
            quantize(0..tokens, &x[range.start * stride..range.end * stride], q, scales);
        });
    } else {
        let (blocks, block) = (tokens.div_ceil(TOKEN_BLOCK), TOKEN_BLOCK * groups);
        let q = split(&mut q[..tokens * groups * GROUP], block * GROUP);
        let scales = split(&mut scales[..tokens * groups], block);
        share(team, blocks, cost / blocks * groups, (q, scales), |range, (q, scales)| {
            let parts = q.chunks_mut(block * GROUP).zip(scales.chunks_mut(block));
            for (at, (q, scales)) in range.zip(parts) {
                let start = at * TOKEN_BLOCK;
                quantize(start..(start + TOKEN_BLOCK).min(tokens), x, q, scales);
            }
        });
    }
    finite.into_inner()
}

/// Calls `check` with the panels of `x`, which may change them: an error if it finds one that is infinite or NaN.
fn finite(
    p: &Pass<'_, Float>,
    x: &mut [f32],
    check: impl Fn(usize, &mut [f32]) -> bool + Sync,
) -> Result<(), StepError> {
    let finite = AtomicBool::new(true);
    share(p.model.team, x.len() / LANES, cost::ROW, split(x, LANES), |range, x| {
        if !check(range.start * LANES, x) {
            finite.store(false, Ordering::Relaxed);
        }
    });
    if finite.into_inner() { Ok(()) } else { Err(StepError::NonFinite { section: p.section }) }
}

impl Operations for Float {
    type Kernels = dyn Kernels;
    type Logit = f32;
    type State<'a> = State<'a>;
    type Parts<'a> = [parts::Part<'a>; 2];
    type Scratch<'a> = Scratch<'a>;
    type Residual<'a> = &'a mut [f32];
    type Vectors = Slices<f32>;
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
        let (has, least) = (scratch.size(), ScratchSize::of(config, 1));
        let same_kind = matches!(
            (&state.ssm, &undo.ssm),
            (SsmState::F32(_), SsmState::F32(_)) | (SsmState::F16(_), SsmState::F16(_))
        );
        wrong_size(
            &[
                ("the convolution state", state.size().conv, all.conv),
                ("the recurrent state", state.size().ssm, all.ssm),
                ("the undo copy of the convolution state", undo.size().conv, one.conv),
                (
                    "the undo copy of the recurrent state",
                    if same_kind { undo.size().ssm } else { 0 },
                    one.ssm,
                ),
            ],
            &[
                ("the working memory", has.floats, least.floats),
                ("the memory of quantized activations", has.ints, least.ints),
                ("the memory of scales", has.scales, least.scales),
            ],
        )
    }

    fn check_contents(_: &Config, _: &State<'_>) -> Result<(), StepError> {
        Ok(())
    }

    fn lacks(config: &Config, tokens: usize, scratch: &Scratch<'_>) -> Option<(usize, usize)> {
        let need = ScratchSize::of(config, tokens).floats;
        (!scratch.fits(config, tokens)).then_some((scratch.size().floats, need))
    }

    fn cut<'a>(config: &Config, tokens: usize, scratch: &'a mut Scratch<'_>) -> Buffers<'a, Self> {
        scratch.cut(config, tokens)
    }

    fn reborrow<'a>(state: &'a mut State<'_>) -> State<'a> {
        State { conv: state.conv, ssm: state.ssm.reborrow() }
    }

    fn none<'a>(state: &State<'_>) -> State<'a> {
        State { conv: &mut [], ssm: state.ssm.none() }
    }

    fn layer<'a>(config: &Config, state: &'a mut State<'_>, layer: usize) -> State<'a> {
        State {
            conv: part(state.conv, config.conv_state_len(), layer),
            ssm: match &mut state.ssm {
                SsmState::F32(s) => SsmState::F32(part(s, config.ssm_state_len(), layer)),
                SsmState::F16(s) => SsmState::F16(part(s, config.ssm_state_len(), layer)),
            },
        }
    }

    fn parts<'a>(config: &Config, layer: &'a mut State<'_>) -> [parts::Part<'a>; 2] {
        let (panels, lanes) = (config.padded_inner() / LANES as u32, LANES as u32);
        let recurrent = match &mut layer.ssm {
            SsmState::F32(s) => Values::F32(s),
            SsmState::F16(s) => Values::F16(s),
        };
        let (taps, d_state) = (config.d_conv - 1, config.d_state);
        [
            parts::Part {
                name: "conv",
                recurrent: false,
                shape: [panels, taps, lanes, 0],
                values: Values::F32(layer.conv),
            },
            parts::Part {
                name: "ssm",
                recurrent: true,
                shape: [panels, d_state, lanes, 0],
                values: recurrent,
            },
        ]
    }

    fn kept(state: &State<'_>) -> Element {
        if matches!(state.ssm, SsmState::F32(_)) { Element::F32 } else { Element::F16 }
    }

    fn clear(state: &mut State<'_>) {
        state.clear();
    }

    fn copy(config: &Config, (conv, ssm): (usize, usize), from: &State<'_>, to: &mut State<'_>) {
        copy(to.conv, first(from.conv, conv * (config.d_conv as usize - 1) * LANES));
        let ssm = ssm * config.d_state as usize * LANES;
        match (&mut to.ssm, &from.ssm) {
            (SsmState::F32(to), SsmState::F32(from)) => copy(to, first(from, ssm)),
            (SsmState::F16(to), SsmState::F16(from)) => copy(to, first(from, ssm)),
            _ => debug_assert!(false, "states of two kinds"),
        }
    }

    fn split<'a>(v: &'a mut &mut [f32], panels: usize, tokens: usize) -> [&'a mut [f32]; 2] {
        let (v, rest) = v.split_at_mut(panels * tokens * LANES);
        [v, rest]
    }

    fn last<'a>(
        x: &'a mut &mut [f32],
        tokens: usize,
        wanted: usize,
        room: &'a mut &mut [f32],
    ) -> &'a mut [f32] {
        if wanted == tokens {
            return x;
        }
        let panels = x.as_chunks::<LANES>().0.chunks_exact(tokens);
        for (to, panel) in room.as_chunks_mut::<LANES>().0.iter_mut().zip(panels) {
            *to = panel[tokens - 1];
        }
        &mut room[..x.len() / tokens]
    }

    #[inline(always)]
    fn embed(p: &mut Pass<'_, Self>, token: u32, t: usize, x: &mut &mut [f32]) -> Result<(), StepError> {
        let (tokens, shape, team) = (p.tokens, p.config().embedding(), p.model.team);
        let panels = p.config().padded_model() as usize / LANES;
        let panel = p.embedding_panel(token)?;
        share(team, panels, cost::ELEMENTS, split(x, tokens * LANES), |range, x| {
            for (p, x) in range.zip(x.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens)) {
                for (i, x) in x[t].iter_mut().enumerate() {
                    *x = shape.element(panel, token, (p * LANES + i) as u32);
                }
            }
        });
        Ok(())
    }

    fn norm(
        p: &mut Pass<'_, Self>,
        part: Part,
        x: &mut &mut [f32],
        work: &mut Work<'_>,
        y: &mut &mut [f32],
    ) -> Result<(), StepError> {
        let (config, kernels, team, tokens) = (p.config(), p.model.kernels, p.model.team, p.tokens);
        let (x, inv) = (&**x, &mut work.inv[..tokens]);
        share(team, tokens, 4 * (x.len() / tokens), split(inv, 1), |range, inv| {
            kernels.rms_inv(x, tokens, range.start, config.d_model, config.norm_eps, inv);
        });
        let (stride, inv) = (tokens * LANES, &*inv);
        for_each_span(p, part, |span| {
            let (x, y) = (&x[span.first * stride..], &mut y[span.first * stride..]);
            share(team, span.panels, cost::ROW.saturating_mul(tokens), split(y, stride), |range, y| {
                for (at, weight) in span.pieces(range.clone()) {
                    let x = &x[(range.start + at.start) * stride..][..at.len() * stride];
                    kernels.normalize(x, weight, inv, &mut y[at.start * stride..at.end * stride]);
                }
            });
        })?;
        Ok(())
    }

    fn project(
        p: &mut Pass<'_, Self>,
        part: Part,
        w: &MatrixShape,
        x: Operand<'_, '_, Self>,
        work: &mut Work<'_>,
        y: &mut Vector<'_, Self>,
    ) -> Result<(), StepError> {
        let (Operand::Normed(x) | Operand::Vector(x)) = x;
        let (kernels, tokens) = (p.model.kernels, p.tokens);
        let groups = w.cols() as usize / GROUP;
        if w.quant().is_integer() && !quantize(p, groups, x, work) {
            return Err(StepError::NonFinite { section: p.section });
        }
        let input = Input { tokens, x, q: work.q, scales: work.scales };
        let cost = (w.panel_bytes() as usize).saturating_mul(tokens);
        multiply::<Self, Self::Vectors>(p, part, cost, y, |panels, y| {
            kernels.matmul(w, panels, &input, y);
            if w.has_exponents() {
                scale_rows(w, panels, tokens, y);
            }
        })
    }

    // Each thread copies what it is about to overwrite, when it needs it in its caches anyway.
    #[inline(always)]
    fn conv(
        p: &mut Pass<'_, Self>,
        state: &mut LayerState<'_, Self>,
        x: &&mut [f32],
        u: &mut &mut [f32],
    ) -> Result<(), StepError> {
        let (config, kernels, team, tokens) = (p.config(), p.model.kernels, p.model.team, p.tokens);
        let d_conv = config.d_conv as usize;
        let (stride, kept) = (tokens * LANES, (d_conv - 1) * LANES);
        let (row, within) = state.of_layer(config, config.conv_state_len());
        let LayerState { all, undo, members, .. } = state;
        let cost = cost::CONV.saturating_mul(tokens);
        for_each_span(p, Part::Conv, |span| {
            let first = span.first;
            let x = &x[first * stride..];
            let states = split_rows(all.conv, row, within.start + first * kept..within.end, kept);
            let copies = split_rows(undo.state.conv, within.len(), first * kept..within.len(), kept);
            undo.conv = first + span.panels;
            let parts = ((states, copies), split(&mut u[first * stride..], stride));
            share(team, span.panels, cost, parts, |range, ((mut states, mut copies), u)| {
                for (at, panels) in span.pieces(range.clone()) {
                    let x = &x[(range.start + at.start) * stride..][..at.len() * stride];
                    let u = &mut u[at.start * stride..at.end * stride];
                    for (i, (sequence, range)) in members.of(tokens).enumerate() {
                        let state = &mut states.row(sequence)[at.start * kept..at.end * kept];
                        copy(from_mut(copies.row(i), at.start * kept), state);
                        kernels.conv_silu(d_conv, tokens, range, panels, state, x, u);
                    }
                }
            });
        })?;
        Ok(())
    }

    fn rescale(p: &Pass<'_, Self>, n: u32, eps: f32, work: &mut Work<'_>, v: &mut &mut [f32]) {
        let inv = &mut work.inv[..p.tokens];
        p.model.kernels.rms_inv(v, p.tokens, 0, n, eps, inv);
        p.model.kernels.rescale(v, inv);
    }

    #[inline(always)]
    fn scan(
        p: &mut Pass<'_, Self>,
        state: &mut LayerState<'_, Self>,
        v: ScanVectors<'_, '_, '_, Self>,
        _: &mut Work<'_>,
        u: &mut &mut [f32],
    ) -> Result<(), StepError> {
        let (config, kernels, team, tokens) = (p.config(), p.model.kernels, p.model.team, p.tokens);
        let ScanVectors { dt, b, c, z } = v;
        let input = ScanInput { tokens, range: 0..tokens, d_state: config.d_state as usize, b, c };
        let (stride, held) = (tokens * LANES, input.d_state * LANES);
        let (row, within) = state.of_layer(config, config.ssm_state_len());
        let LayerState { all, undo, members, .. } = state;
        for_each_span(p, Part::Scan, |span| {
            let first = span.first;
            let (dt, z) = (&dt[first * stride..], &z[first * stride..]);
            let u = split(&mut u[first * stride..], stride);
            // One body for both kinds of state.
            macro_rules! scan_as {
                ($kind:path, $state:expr, $copy:expr) => {{
                    let states = split_rows($state, row, within.start + first * held..within.end, held);
                    let copies = split_rows($copy, within.len(), first * held..within.len(), held);
                    let cost = (cost::STATE * input.d_state).saturating_mul(tokens);
                    let parts = ((states, copies), u);
                    share(team, span.panels, cost, parts, |range, ((mut states, mut copies), u)| {
                        for (at, panels) in span.pieces(range.clone()) {
                            let from = (range.start + at.start) * stride;
                            let (dt, z) = (&dt[from..][..at.len() * stride], &z[from..][..at.len() * stride]);
                            let u = &mut u[at.start * stride..at.end * stride];
                            for (i, (sequence, range)) in members.of(tokens).enumerate() {
                                let state = &mut states.row(sequence)[at.start * held..at.end * held];
                                copy(from_mut(copies.row(i), at.start * held), state);
                                let input = ScanInput { range, ..input.clone() };
                                kernels.scan(panels, $kind(state), &input, dt, z, u);
                            }
                        }
                    })
                }};
            }
            undo.ssm = first + span.panels;
            match (&mut all.ssm, &mut undo.state.ssm) {
                (SsmState::F32(state), SsmState::F32(saved)) => scan_as!(SsmState::F32, state, saved),
                (SsmState::F16(state), SsmState::F16(saved)) => scan_as!(SsmState::F16, state, saved),
                _ => debug_assert!(false, "states of two kinds"),
            }
        })?;
        Ok(())
    }

    #[inline(always)]
    fn add(p: &Pass<'_, Self>, x: &mut &mut [f32], y: &&mut [f32]) -> Result<(), StepError> {
        finite(p, x, |start, x| p.model.kernels.add(x, at(y, start, x.len())))
    }

    #[inline(always)]
    fn logits(
        p: &mut Pass<'_, Self>,
        part: Part,
        x: Operand<'_, '_, Self>,
        work: &mut Work<'_>,
        mut logits: &mut [f32],
    ) -> Result<(), StepError> {
        Self::project(p, part, &p.config().head(), x, work, &mut logits)?;
        finite(p, logits, |_, logits| p.model.kernels.is_finite(logits))
    }
}
