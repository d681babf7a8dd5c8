//! The equations of Mamba, in order, over any kind of numbers.

use super::StepError;
use super::operations::{Buffers, LayerState, Operand, Operations, Pass, Rows, ScanVectors};
use crate::format::{Config, Part, Section};
use crate::kernels::LANES;

/// What a layer does between its norm and its residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mixer {
    /// Mamba-1 and Falcon Mamba, which norms dt, B and C.
    Mamba,
}

/// The mixer of a layer: Mamba, the only one in format version 1.
const fn mixer(_: &Config, _: Section) -> Mixer {
    Mixer::Mamba
}

/// One layer: `x = x + mixer(norm(x))`.
pub(super) fn layer<N: Operations>(
    p: &mut Pass<'_, N>,
    state: &mut LayerState<'_, N>,
    b: &mut Buffers<'_, N>,
) -> Result<(), StepError> {
    // xn = x / rms(x) w                                   [d_model]
    N::norm(p, Part::Norm, &mut b.x, &mut b.work, &mut b.xn)?;
    match mixer(p.config(), p.section) {
        Mixer::Mamba => mamba(p, state, b)?,
    }
    // x = x + xn                                          [d_model]
    N::add(p, &mut b.x, &b.xn)
}

/// `xn = mamba(xn)`: Mamba (Gu and Dao 2023), section 3.4, and the norms of Falcon Mamba (Zuo et al. 2024).
fn mamba<N: Operations>(
    p: &mut Pass<'_, N>,
    state: &mut LayerState<'_, N>,
    b: &mut Buffers<'_, N>,
) -> Result<(), StepError> {
    let (config, tokens) = (p.config(), p.tokens);
    let panels = |padded: u32| padded as usize / LANES;
    let Buffers { xn, xz, u, dbc, work, .. } = b;

    // x, z = W_in xn                                      [d_inner] each
    N::project(p, Part::InProj, &config.in_proj(), Operand::Normed(xn), work, xz)?;
    let [mut xc, z] = N::split(xz, panels(config.padded_inner()), tokens);

    // u = silu(conv(x) + bias)                            [d_inner]
    N::conv(p, state, &xc, u)?;

    // dt, B, C = W_x u                                    [dt_rank], [d_state], [d_state]
    N::project(p, Part::XProj, &config.x_proj(), Operand::Vector(u), work, dbc)?;
    let [mut dt_low, mut bc] = N::split(dbc, panels(config.padded_rank()), tokens);
    let [mut b, mut c] = N::split(&mut bc, panels(config.padded_state()), tokens);
    if let Some(eps) = config.bcdt_eps {
        N::rescale(p, config.dt_rank, eps, work, &mut dt_low);
        N::rescale(p, config.d_state, eps, work, &mut b);
        N::rescale(p, config.d_state, eps, work, &mut c);
    }

    // dt = W_dt dt + bias                                 [d_inner]
    let dt = &mut xc;
    N::project(p, Part::DtProj, &config.dt_proj(), Operand::Vector(&dt_low), work, dt)?;

    // h = exp(dt A) h + dt B u,  with dt = softplus(dt)   [d_inner, d_state]
    // u = (C h + D u) silu(z)                             [d_inner]
    N::scan(p, state, ScanVectors { dt, b: &mut b, c: &c, z: &z }, work, u)?;

    // xn = W_out u                                        [d_model]
    N::project(p, Part::OutProj, &config.out_proj(), Operand::Vector(u), work, xn)
}

/// The logits of the last token of a chunk, or of all its tokens: `W_head norm(x)`.
pub(super) fn head<N: Operations>(
    p: &mut Pass<'_, N>,
    rows: Rows,
    b: Buffers<'_, N>,
    logits: &mut [N::Logit],
) -> Result<(), StepError> {
    let Buffers { mut x, mut xn, mut xz, mut work, .. } = b;
    let (section, part) = p.model.layout.head();
    let wanted = if rows == Rows::Last { 1 } else { p.tokens };
    let mut x = N::last(&mut x, p.tokens, wanted, &mut xz);
    p.tokens = wanted;
    p.section = Section::FinalNorm;
    N::norm(p, Part::FinalNorm, &mut x, &mut work, &mut xn)?;
    p.section = section;
    N::logits(p, part, Operand::Normed(&xn), &mut work, logits)
}
