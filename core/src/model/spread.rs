//! The parts of a layer, spread over the runs that a source lends and the cores of a team.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::run::{Run, for_each_run, for_each_run_to_check};
use super::session::Members;
use super::state::{Undo, copy};
use super::{Model, StepError};
use crate::format::{MatrixShape, Part, Section, power_of_two};
use crate::kernels::{
    GROUP, Input, LANES, Scale, ScanInput, SsmState, TOKEN_BLOCK, share, split, split_rows,
};
use crate::source::LayerSource;

/// What sixteen lanes of one token cost, in the unit of [`share`]: rough, and only to tell little work from much.
pub(crate) mod cost {
    /// An operation or two on a row.
    pub(crate) const ROW: usize = 64;
    /// Elements of the embedding, one by one.
    pub(crate) const ELEMENTS: usize = 2048;
    /// Convolution and silu.
    pub(crate) const CONV: usize = 512;
    /// One state of the scan.
    pub(crate) const STATE: usize = 256;
}

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

impl Model<'_> {
    /// `y = x / sqrt(mean(x^2) + eps) w` for each token.
    pub(super) fn norm(
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
    pub(super) fn project(
        &self,
        source: &mut dyn LayerSource,
        (section, part): (Section, Part),
        shape: &MatrixShape,
        tokens: usize,
        x: &[f32],
        (q, scales): (&mut [i8], &mut [Scale]),
        y: &mut [f32],
    ) -> Result<(), StepError> {
        let groups = shape.cols() as usize / GROUP;
        if shape.quant().is_integer() && !self.quantize(tokens, groups, x, q, scales) {
            return Err(StepError::NonFinite { section });
        }
        let input = Input { tokens, x, q, scales };
        let stride = tokens * LANES;
        let cost = (shape.panel_bytes() as usize).saturating_mul(tokens);
        let multiply = |run: &Run<'_>, range: Range<usize>, y: &mut [f32]| {
            for (at, panels) in run.pieces(range) {
                let y = &mut y[at.start * stride..at.end * stride];
                self.kernels.matmul(shape, panels, &input, y);
                if shape.has_exponents() {
                    scale_rows(shape, panels, tokens, y);
                }
            }
        };
        if tokens > TOKEN_BLOCK {
            for_each_run(self.layout, source, section, part, |run| {
                let y = split(&mut y[run.first * stride..], stride);
                share(self.team, run.panels, cost, y, |range, y| multiply(run, range, y));
            })?;
            return Ok(());
        }
        // A few tokens wait for memory: a block is checked by the core that multiplies it, on its way into the caches.
        for_each_run_to_check(self.layout, source, section, part, |run| {
            let y = &mut y[run.first * stride..];
            let Some(each) = run.block_to_check() else {
                share(self.team, run.panels, cost, split(y, stride), |range, y| multiply(run, range, y));
                return None;
            };
            let damaged = AtomicU32::new(u32::MAX);
            let y = split(y, each * stride);
            share(self.team, run.blocks, cost.saturating_mul(each), y, |blocks, y| {
                for (block, y) in blocks.zip(y.chunks_mut(each * stride)) {
                    if run.is_sound(block) {
                        multiply(run, block * each..((block + 1) * each).min(run.panels), y);
                    } else {
                        damaged.fetch_min(block as u32, Ordering::Relaxed);
                    }
                }
            });
            Some(damaged.into_inner()).filter(|damaged| *damaged != u32::MAX)
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

    /// `u = silu(conv(x))`, channel by channel. `state` is that of all layers and slots; each core copies what it is about to
    /// overwrite to `undo`, when it needs it in its caches anyway.
    pub(super) fn conv(
        &self,
        source: &mut dyn LayerSource,
        layer: u32,
        tokens: usize,
        members: Members,
        (state, undo): (&mut [f32], &mut Undo<'_>),
        x: &[f32],
        u: &mut [f32],
    ) -> Result<(), StepError> {
        let d_conv = self.config().d_conv as usize;
        let (stride, kept) = (tokens * LANES, (d_conv - 1) * LANES);
        let (row, within) = self.of_layer(layer, self.config().conv_state_len());
        for_each_run(self.layout, source, Section::Layer(layer), Part::Conv, |run| {
            let first = run.first;
            let x = &x[first * stride..];
            let states = split_rows(state, row, within.start + first * kept..within.end, kept);
            let copies = split_rows(undo.state.conv, within.len(), first * kept..within.len(), kept);
            undo.conv = first + run.panels;
            let parts = ((states, copies), split(&mut u[first * stride..], stride));
            share(
                self.team,
                run.panels,
                cost::CONV.saturating_mul(tokens),
                parts,
                |range, ((mut states, mut copies), u)| {
                    for (at, panels) in run.pieces(range.clone()) {
                        let x = &x[(range.start + at.start) * stride..][..at.len() * stride];
                        let u = &mut u[at.start * stride..at.end * stride];
                        for (i, (slot, tokens_of_slot)) in members.of(tokens).enumerate() {
                            let state = &mut states.row(slot)[at.start * kept..at.end * kept];
                            copy(copies.row(i).get_mut(at.start * kept..).unwrap_or_default(), state);
                            self.kernels.conv_silu(d_conv, tokens, tokens_of_slot, panels, state, x, u);
                        }
                    }
                },
            );
        })?;
        Ok(())
    }

    /// The selective scan, channel by channel; `u` becomes `y silu(z)`. `state` and `undo` as for the convolution.
    pub(super) fn scan(
        &self,
        source: &mut dyn LayerSource,
        layer: u32,
        members: Members,
        (state, undo): (&mut SsmState<'_>, &mut Undo<'_>),
        input: &ScanInput<'_>,
        dt: &[f32],
        z: &[f32],
        u: &mut [f32],
    ) -> Result<(), StepError> {
        let (stride, held) = (input.tokens * LANES, input.d_state * LANES);
        let (row, within) = self.of_layer(layer, self.config().ssm_state_len());
        for_each_run(self.layout, source, Section::Layer(layer), Part::Scan, |run| {
            let first = run.first;
            let (dt, z) = (&dt[first * stride..], &z[first * stride..]);
            let u = split(&mut u[first * stride..], stride);
            // One body for both kinds of state.
            macro_rules! scan_as {
                ($kind:path, $state:expr, $copy:expr) => {{
                    let states = split_rows($state, row, within.start + first * held..within.end, held);
                    let copies = split_rows($copy, within.len(), first * held..within.len(), held);
                    let cost = (cost::STATE * input.d_state).saturating_mul(input.tokens);
                    share(
                        self.team,
                        run.panels,
                        cost,
                        ((states, copies), u),
                        |range, ((mut states, mut copies), u)| {
                            for (at, panels) in run.pieces(range.clone()) {
                                let from = (range.start + at.start) * stride;
                                let (dt, z) =
                                    (&dt[from..][..at.len() * stride], &z[from..][..at.len() * stride]);
                                let u = &mut u[at.start * stride..at.end * stride];
                                for (i, (slot, range)) in members.of(input.tokens).enumerate() {
                                    let state = &mut states.row(slot)[at.start * held..at.end * held];
                                    copy(copies.row(i).get_mut(at.start * held..).unwrap_or_default(), state);
                                    let input = ScanInput { range, ..input.clone() };
                                    self.kernels.scan(panels, $kind(state), &input, dt, z, u);
                                }
                            }
                        },
                    )
                }};
            }
            undo.ssm = first + run.panels;
            match (&mut *state, &mut undo.state.ssm) {
                (SsmState::F32(state), SsmState::F32(saved)) => scan_as!(SsmState::F32, state, saved),
                (SsmState::F16(state), SsmState::F16(saved)) => scan_as!(SsmState::F16, state, saved),
                _ => debug_assert!(false, "states of two kinds"),
            }
        })?;
        Ok(())
    }

    /// Elements of a slot's state of all layers, and which of them are this layer's, where a layer has `len`.
    fn of_layer(&self, layer: u32, len: usize) -> (usize, Range<usize>) {
        let layer = layer as usize;
        (self.config().n_layer as usize * len, layer * len..(layer + 1) * len)
    }
}
