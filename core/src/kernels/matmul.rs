//! Matrix times a chunk of tokens, from packed panels.
//!
//! Integer dots over a group of 32 columns are exact; groups are joined by fma in their order. A block of tokens
//! stays in registers while a panel's weights pass by once, and its size changes no bit of any result.

use super::isa::{GROUP, Isa, LANES, TILE, TILES};
use super::{Input, Scale};
use crate::format::{MatrixShape, Quant};

/// Weights that dot with int8 activations.
trait Packed<S: Isa> {
    /// The weights of 16 rows in a group of 32 columns.
    type Group;
    fn groups(bytes: &[u8]) -> &[Self::Group];
    fn dot<const T: usize>(s: S, w: &Self::Group, x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [S::I; T];
}

struct Q8;
impl<S: Isa> Packed<S> for Q8 {
    type Group = [[u8; TILE]; TILES];
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Self::Group] {
        bytes.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn dot<const T: usize>(s: S, w: &Self::Group, x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [S::I; T] {
        s.dot_i8(w, x, sums)
    }
}

struct Q4;
impl<S: Isa> Packed<S> for Q4 {
    type Group = [[u8; TILE]; TILES / 2];
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Self::Group] {
        bytes.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn dot<const T: usize>(s: S, w: &Self::Group, x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [S::I; T] {
        s.dot_u4(w, x, sums)
    }
}

/// One panel, cut into its parts.
struct Panel<'a> {
    scales: &'a [u8],
    weights: &'a [u8],
    bias: Option<&'a [u8; 4 * LANES]>,
}

impl<'a> Panel<'a> {
    #[inline(always)]
    fn new(shape: &MatrixShape, bytes: &'a [u8]) -> Self {
        let (scales, rest) = bytes.split_at(shape.scale_bytes() as usize);
        let (weights, bias) = rest.split_at(shape.weight_bytes() as usize);
        Self { scales, weights, bias: bias.first_chunk() }
    }

    #[inline(always)]
    fn start<S: Isa, const T: usize>(&self, s: S) -> [S::F; T] {
        match self.bias {
            Some(bias) => [s.load_f32_bytes(bias); T],
            None => [s.splat(0.0); T],
        }
    }
}

/// Calls a block function for all tokens, in blocks as large as the registers allow.
macro_rules! in_token_blocks {
    ($tokens:expr, |$first:ident| $block:ident::<$($generic:ty),+>($($arg:expr),*)) => {{
        let mut $first = 0;
        if S::BLOCK == 12 {
            while $first + 12 <= $tokens {
                $block::<$($generic,)+ 12>($($arg),*);
                $first += 12;
            }
        }
        if S::BLOCK >= 4 {
            while $first + 4 <= $tokens {
                $block::<$($generic,)+ 4>($($arg),*);
                $first += 4;
            }
        }
        if S::BLOCK == 3 {
            while $first + 3 <= $tokens {
                $block::<$($generic,)+ 3>($($arg),*);
                $first += 3;
            }
        }
        while $first + 2 <= $tokens {
            $block::<$($generic,)+ 2>($($arg),*);
            $first += 2;
        }
        if $first < $tokens {
            $block::<$($generic,)+ 1>($($arg),*);
        }
    }};
}

#[inline(always)]
pub(super) fn matmul<S: Isa>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
    let tokens = x.tokens;
    if tokens == 0 {
        return;
    }
    let y = y.as_chunks_mut::<LANES>().0;
    for (bytes, y) in panels.chunks_exact(shape.panel_bytes() as usize).zip(y.chunks_exact_mut(tokens)) {
        let panel = Panel::new(shape, bytes);
        match shape.quant() {
            Quant::Q8 => in_token_blocks!(tokens, |t| int_block::<S, Q8>(s, &panel, x, t, y)),
            Quant::Q4 => in_token_blocks!(tokens, |t| int_block::<S, Q4>(s, &panel, x, t, y)),
            Quant::F32 => {
                in_token_blocks!(tokens, |t| float_block::<S, WideF32>(s, &panel, x, t, y))
            }
            Quant::F16 => {
                in_token_blocks!(tokens, |t| float_block::<S, WideF16>(s, &panel, x, t, y))
            }
        }
    }
}

#[inline(always)]
fn int_block<S: Isa, P: Packed<S>, const T: usize>(
    s: S,
    panel: &Panel<'_>,
    x: &Input<'_>,
    first: usize,
    y: &mut [[f32; LANES]],
) {
    let mut acc: [S::F; T] = panel.start(s);
    let scales = panel.scales.as_chunks::<{ 2 * LANES }>().0;
    let activations = x.q.as_chunks::<GROUP>().0.chunks_exact(x.tokens).zip(x.scales.chunks_exact(x.tokens));
    for ((w, ws), (q, xs)) in P::groups(panel.weights).iter().zip(scales).zip(activations) {
        let (Some((q, _)), Some((xs, _))) =
            (q[first..].split_first_chunk::<T>(), xs[first..].split_first_chunk::<T>())
        else {
            return;
        };
        let dot = P::dot(s, w, q, xs);
        let ws = s.load_f16_bytes(ws);
        for t in 0..T {
            acc[t] = s.fma(s.int_to_float(dot[t]), s.mul(ws, s.splat(xs[t].scale)), acc[t]);
        }
    }
    for (acc, y) in acc.into_iter().zip(&mut y[first..]) {
        s.store(acc, y);
    }
}

/// Weights kept as floats: sixteen rows of a column adjacent.
trait Wide<S: Isa> {
    const BYTES: usize;
    /// Sixteen weights from the first `BYTES` bytes.
    fn load(s: S, bytes: &[u8]) -> S::F;
}

struct WideF32;
impl<S: Isa> Wide<S> for WideF32 {
    const BYTES: usize = 4 * LANES;
    #[inline(always)]
    fn load(s: S, bytes: &[u8]) -> S::F {
        match bytes.first_chunk() {
            Some(bytes) => s.load_f32_bytes(bytes),
            None => s.splat(0.0),
        }
    }
}

struct WideF16;
impl<S: Isa> Wide<S> for WideF16 {
    const BYTES: usize = 2 * LANES;
    #[inline(always)]
    fn load(s: S, bytes: &[u8]) -> S::F {
        match bytes.first_chunk() {
            Some(bytes) => s.load_f16_bytes(bytes),
            None => s.splat(0.0),
        }
    }
}

#[inline(always)]
fn float_block<S: Isa, W: Wide<S>, const T: usize>(
    s: S,
    panel: &Panel<'_>,
    x: &Input<'_>,
    first: usize,
    y: &mut [[f32; LANES]],
) {
    let mut acc: [S::F; T] = panel.start(s);
    let columns = x.x.as_chunks::<LANES>().0.chunks_exact(x.tokens);
    for (w, x) in panel.weights.chunks_exact(W::BYTES * LANES).zip(columns) {
        let Some((x, _)) = x[first..].split_first_chunk::<T>() else { return };
        for (c, w) in w.chunks_exact(W::BYTES).enumerate() {
            let w = W::load(s, w);
            for t in 0..T {
                acc[t] = s.fma(w, s.splat(x[t][c & (LANES - 1)]), acc[t]);
            }
        }
    }
    for (acc, y) in acc.into_iter().zip(&mut y[first..]) {
        s.store(acc, y);
    }
}
