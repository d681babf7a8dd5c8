//! Integer matrices times a chunk of tokens, in an order for 32 registers of four lanes.
//!
//! One token: two panels at once, which share the activations. More tokens: a slice of a panel at a time, with 4-bit
//! weights and scales widened once for all tokens. The sums of all tokens lie in `y` between slices, so that neither
//! weights nor activations leave the first cache. No order changes a bit: groups are still joined in theirs.

use core::ops::Range;

use super::dot::{OneToken, Packed, PanelDot, Q4, Q8, Tokens};
use super::unpack::{Bytes, widen};
use crate::format::{MatrixShape, Quant};
use crate::kernels::float::matmul::{self, Block, Panel};
use crate::kernels::float::operands::{Input, TOKEN_BLOCK};
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// Groups in a slice: 8 KiB of weights, and half a KiB of activations a token.
const SLICE: usize = 16;

/// The scales of a panel, group by group; what pads them may come last.
#[inline(always)]
fn scales<'a>(panel: &Panel<'a>) -> &'a [[u8; 2 * LANES]] {
    panel.scales.as_chunks().0
}

/// `y = W x + bias` for some panels.
#[inline(always)]
pub(in crate::kernels::float) fn matmul<S: PanelDot>(
    s: S,
    shape: &MatrixShape,
    panels: &[u8],
    x: &Input<'_>,
    y: &mut [f32],
) {
    // Inputs that end early are worked on as far as the common order does.
    let whole = x.is_whole(shape);
    match (shape.quant(), x.tokens) {
        (Quant::Q8, 1) if whole => one_token::<S, Q8>(s, shape, panels, x, y),
        (Quant::Q4, 1) if whole => one_token::<S, Q4>(s, shape, panels, x, y),
        (Quant::Q8 | Quant::Q4, 2..) if whole => many_tokens(s, shape, panels, x, y),
        _ => matmul::matmul(s, shape, panels, x, y),
    }
}

/// A panel and the token that it meets.
#[inline(always)]
fn with<'a, S: PanelDot, P: Packed<S>>(panel: &Panel<'a>, x: &Input<'a>) -> OneToken<'a, P::Group> {
    OneToken { w: P::groups(panel.weights), ws: scales(panel), x: x.q.as_chunks().0, xs: x.scales }
}

#[inline(always)]
fn one_token<S: PanelDot, P: Packed<S>>(
    s: S,
    shape: &MatrixShape,
    panels: &[u8],
    x: &Input<'_>,
    y: &mut [f32],
) {
    let panels = panels.chunks_exact(shape.panel_bytes() as usize);
    let y = y.as_chunks_mut::<LANES>().0;
    // Of panels for which there are weights: the last one may have no second to it, however long `y` is.
    let given = panels.len().min(y.len());
    let (pairs, last) = y[..given].as_chunks_mut::<2>();
    let mut panels = panels.map(|bytes| Panel::new(shape, bytes));
    for [ya, yb] in pairs {
        let (Some(a), Some(b)) = (panels.next(), panels.next()) else { return };
        let ([sum_a], [sum_b]) = (a.start(s), b.start(s));
        let [sum_a, sum_b] = P::pair(s, &[with::<S, P>(&a, x), with::<S, P>(&b, x)], [sum_a, sum_b]);
        s.store(sum_a, ya);
        s.store(sum_b, yb);
    }
    if let ([y], Some(panel)) = (last, panels.next()) {
        let [sum] = panel.start(s);
        s.store(P::panel(s, &with::<S, P>(&panel, x), sum), y);
    }
}

/// What is prepared of a slice of a panel before the tokens pass.
struct Slice {
    tiles: [Bytes; SLICE],
    scales: [[f32; LANES]; SLICE],
}

#[inline(always)]
fn many_tokens<S: PanelDot>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
    let (all, tokens) = (shape.cols() as usize / GROUP, x.tokens);
    let mut slice = Slice { tiles: [[[0; TILE]; TILES]; SLICE], scales: [[0.0; LANES]; SLICE] };
    let y = y.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens);
    for (bytes, y) in panels.chunks_exact(shape.panel_bytes() as usize).zip(y) {
        let panel = Panel::new(shape, bytes);
        let [start] = panel.start(s);
        for y in &mut *y {
            s.store(start, y);
        }
        for first in (0..all).step_by(SLICE) {
            let groups = first..(first + SLICE).min(all);
            let scales = scales(&panel).get(groups.clone()).unwrap_or_default();
            for (from, to) in scales.iter().zip(&mut slice.scales) {
                s.store(s.load_f16_bytes(from), to);
            }
            let scales = &slice.scales[..groups.len()];
            if shape.quant() == Quant::Q4 {
                let nibbles =
                    <Q4 as Packed<S>>::groups(panel.weights).get(groups.clone()).unwrap_or_default();
                for (from, to) in nibbles.iter().zip(&mut slice.tiles) {
                    widen(from, to);
                }
                all_blocks::<S, true>(s, &slice.tiles, scales, x, (all, &groups), y);
            } else {
                let tiles = <Q8 as Packed<S>>::groups(panel.weights).get(groups.clone()).unwrap_or_default();
                all_blocks::<S, false>(s, tiles, scales, x, (all, &groups), y);
            }
        }
    }
}

/// A slice, some groups of all, times all tokens.
#[inline(always)]
fn all_blocks<S: PanelDot, const SMALL: bool>(
    s: S,
    tiles: &[Bytes],
    scales: &[[f32; LANES]],
    x: &Input<'_>,
    (all, groups): (usize, &Range<usize>),
    y: &mut [[f32; LANES]],
) {
    for (i, y) in y.chunks_mut(TOKEN_BLOCK).enumerate() {
        let Some(x) = Block::new(x, i * TOKEN_BLOCK, all, groups) else { return };
        let tokens = x.tokens.min(y.len());
        let mut first = 0;
        if S::BLOCK == 3 {
            while first + 3 <= tokens {
                micro_kernel::<S, SMALL, 3>(s, tiles, scales, &x, first, y);
                first += 3;
            }
        }
        while first + 2 <= tokens {
            micro_kernel::<S, SMALL, 2>(s, tiles, scales, &x, first, y);
            first += 2;
        }
        if first < tokens {
            micro_kernel::<S, SMALL, 1>(s, tiles, scales, &x, first, y);
        }
    }
}

/// Adds a slice times `T` tokens to their sums.
#[inline(always)]
fn micro_kernel<S: PanelDot, const SMALL: bool, const T: usize>(
    s: S,
    tiles: &[Bytes],
    scales: &[[f32; LANES]],
    x: &Block<'_>,
    first: usize,
    y: &mut [[f32; LANES]],
) {
    let Some(y) = y.get_mut(first..).and_then(|y| y.first_chunk_mut::<T>()) else { return };
    let mut sums = [s.splat(0.0); T];
    for t in 0..T {
        sums[t] = s.load(&y[t]);
    }
    let sums = s.slice::<SMALL, T>(&Tokens { w: tiles, ws: scales, x, first }, sums);
    for t in 0..T {
        s.store(sums[t], &mut y[t]);
    }
}
