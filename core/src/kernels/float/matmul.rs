//! Matrix times a chunk of tokens, from packed panels.
//!
//! Integer dots over a group of 32 columns are exact; groups are joined by fma in their order. The micro-kernel keeps the
//! sums of a register tile, 16 rows by some tokens, in registers while a panel's weights pass by. The number of tokens
//! changes no bit of any result.
//!
//! Many tokens are multiplied with a block of columns at a time: a panel's weights for it stay in the first cache while
//! all tokens pass by, and the activations of all tokens in the second.

use core::ops::Range;

use super::isa::Dot;
use super::operands::{Input, Scale, TOKEN_BLOCK};
use crate::format::{MatrixShape, Quant};
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// Groups of columns in a block: 1024 columns are 16 KiB of int8 for a panel.
const COLUMN_BLOCK: usize = 1024 / GROUP;
/// Tokens whose activations for a block of columns stay in the second cache: 264 KiB, more than a chunk of a prompt.
pub(super) const CACHED_TOKENS: usize = 22 * TOKEN_BLOCK;

/// Weights that dot with int8 activations.
trait Packed<S: Dot> {
    /// The weights of 16 rows in a group of 32 columns.
    type Group;
    /// Its bytes and those of its scales.
    const BYTES: usize = size_of::<Self::Group>() + 2 * LANES;
    fn groups(bytes: &[u8]) -> &[Self::Group];
    fn bytes(group: &Self::Group) -> &[u8];
    fn dot<const T: usize>(s: S, w: &Self::Group, x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [S::I; T];
}

/// A type whose groups are some cache lines one after the other.
macro_rules! packed {
    ($name:ident, $lines:expr, $dot:ident) => {
        struct $name;
        impl<S: Dot> Packed<S> for $name {
            type Group = [[u8; TILE]; $lines];
            #[inline(always)]
            fn groups(bytes: &[u8]) -> &[Self::Group] {
                bytes.as_chunks().0.as_chunks().0
            }
            #[inline(always)]
            fn bytes(group: &Self::Group) -> &[u8] {
                group.as_flattened()
            }
            #[inline(always)]
            fn dot<const T: usize>(
                s: S,
                w: &Self::Group,
                x: &[[i8; GROUP]; T],
                sums: &[Scale; T],
            ) -> [S::I; T] {
                s.$dot(w, x, sums)
            }
        }
    };
}

packed!(Q8, TILES, dot_i8);
packed!(Q5, 5, dot_u5);
packed!(Q4, TILES / 2, dot_u4);
packed!(Q3, 3, dot_u3);

/// One panel, cut into its parts.
pub(super) struct Panel<'a> {
    bytes: &'a [u8],
    pub(super) scales: &'a [u8],
    pub(super) weights: &'a [u8],
    bias: Option<&'a [u8; 4 * LANES]>,
}

impl<'a> Panel<'a> {
    #[inline(always)]
    pub(super) fn new(shape: &MatrixShape, bytes: &'a [u8]) -> Self {
        let (scales, rest) = bytes.split_at(shape.scale_bytes() as usize);
        let (weights, rest) = rest.split_at(shape.weight_bytes() as usize);
        Self { bytes, scales, weights, bias: if shape.has_bias() { rest.first_chunk() } else { None } }
    }

    #[inline(always)]
    pub(super) fn start<S: Dot, const T: usize>(&self, s: S) -> [S::F; T] {
        match self.bias {
            Some(bias) => [s.load_f32_bytes(bias); T],
            None => [s.splat(0.0); T],
        }
    }
}

/// Calls a micro-kernel for all of some tokens, in tiles as large as the registers allow.
macro_rules! in_tiles {
    ($tokens:expr, |$first:ident| $tile:ident::<$($generic:ty),+>($($arg:expr),*)) => {{
        let mut $first = 0;
        macro_rules! tiles_of {
            ($size:literal) => {
                // In this form the compiler's code for a Cortex-M is 1 to 9 KB smaller than in others.
                #[allow(clippy::int_plus_one)]
                while $first + $size <= $tokens {
                    $tile::<$($generic,)+ $size>($($arg),*);
                    $first += $size;
                }
            };
        }
        if S::BLOCK == 12 {
            tiles_of!(12);
            tiles_of!(8);
        }
        if S::BLOCK >= 4 {
            tiles_of!(4);
        }
        if S::BLOCK == 3 {
            tiles_of!(3);
        }
        if S::BLOCK >= 2 {
            tiles_of!(2);
        }
        tiles_of!(1);
    }};
}

#[inline(always)]
pub(super) fn matmul<S: Dot>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
    if x.tokens == 0 {
        return;
    }
    let y = y.as_chunks_mut::<LANES>().0;
    match shape.quant() {
        Quant::Q8 => int_panels::<S, Q8>(s, shape, panels, x, y),
        Quant::Q4 => int_panels::<S, Q4>(s, shape, panels, x, y),
        Quant::Q3 => int_panels::<S, Q3>(s, shape, panels, x, y),
        Quant::Q5 => int_panels::<S, Q5>(s, shape, panels, x, y),
        Quant::F32 => float_panels::<S, WideF32>(s, shape, panels, x, y),
        Quant::F16 => float_panels::<S, WideF16>(s, shape, panels, x, y),
    }
}

#[inline(always)]
fn int_panels<S: Dot, P: Packed<S>>(
    s: S,
    shape: &MatrixShape,
    panels: &[u8],
    x: &Input<'_>,
    y: &mut [[f32; LANES]],
) {
    let (all, tokens) = (shape.cols() as usize / GROUP, x.tokens);
    let panels = panels.chunks_exact(shape.panel_bytes() as usize);
    if S::BLOCK > 1 && tokens <= TOKEN_BLOCK {
        // Weights come from memory, in order and once.
        let columns = if tokens <= S::BLOCK { all } else { COLUMN_BLOCK };
        for (bytes, y) in panels.zip(y.chunks_exact_mut(tokens)) {
            let panel = Panel::new(shape, bytes);
            for groups in blocks(0..all, columns) {
                let Some(block) = Block::new(x, 0, all, &groups) else { return };
                in_tiles!(tokens, |t| int_tile::<S, P>(s, &panel, &groups, &block, t, y));
            }
        }
        return;
    }
    // Where tokens share no registers, blocks of columns gain nothing, and this loop does for one token too.
    let columns = if S::BLOCK > 1 { COLUMN_BLOCK } else { all };
    for groups in blocks(0..all, columns) {
        for cached in blocks(0..tokens, CACHED_TOKENS) {
            for (bytes, y) in panels.clone().zip(y.chunks_exact_mut(tokens)) {
                let panel = Panel::new(shape, bytes);
                for start in cached.clone().step_by(TOKEN_BLOCK) {
                    let Some(block) = Block::new(x, start, all, &groups) else { return };
                    let y = &mut y[start..start + block.tokens];
                    in_tiles!(block.tokens, |t| int_tile::<S, P>(s, &panel, &groups, &block, t, y));
                }
            }
        }
    }
}

/// Cuts groups of columns, or tokens, into blocks of `size`.
#[inline(always)]
pub(super) fn blocks(all: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    all.clone().step_by(size.max(1)).map(move |first| first..(first + size).min(all.end))
}

/// The int8 activations of a block of tokens, for some groups of columns.
pub(super) struct Block<'a> {
    pub(super) tokens: usize,
    /// Whether there is no other block.
    alone: bool,
    /// `[groups][tokens][32]`
    pub(super) q: &'a [[i8; GROUP]],
    /// `[groups][tokens]`
    pub(super) scales: &'a [Scale],
}

impl<'a> Block<'a> {
    /// `groups` of the `all` that there are, for the block that begins with token `start`.
    #[inline(always)]
    pub(super) fn new(x: &Input<'a>, start: usize, all: usize, groups: &Range<usize>) -> Option<Self> {
        let tokens = TOKEN_BLOCK.min(x.tokens - start);
        let alone = tokens == x.tokens;
        let range = start * all + groups.start * tokens..start * all + groups.end * tokens;
        Some(Self { tokens, alone, q: x.q.as_chunks().0.get(range.clone())?, scales: x.scales.get(range)? })
    }
}

/// Loads every cache line of some bytes `times` times.
#[inline(always)]
fn touch<S: Dot>(s: S, bytes: &[u8], times: usize) {
    for line in bytes.chunks(TILE) {
        for byte in line.iter().take(times) {
            s.touch(byte);
        }
    }
}

/// The micro-kernel of integers: a register tile of 16 rows by `T` tokens.
#[inline(always)]
fn int_tile<S: Dot, P: Packed<S>, const T: usize>(
    s: S,
    panel: &Panel<'_>,
    groups: &Range<usize>,
    x: &Block<'_>,
    first: usize,
    y: &mut [[f32; LANES]],
) {
    let Some(y) = y[first..].first_chunk_mut::<T>() else { return };
    // The first tile of a few tokens.
    let from_memory = first == 0 && x.alone;
    let in_order = from_memory && T == 1 && S::TOUCHES > 0;
    let prefetch = from_memory && !in_order && S::PREFETCH_DISTANCE > 0;
    let mut acc: [S::F; T] = panel.start(s);
    if groups.start > 0 {
        for t in 0..T {
            acc[t] = s.load(&y[t]);
        }
    }
    let scales = panel.scales.as_chunks::<{ 2 * LANES }>().0.get(groups.clone()).unwrap_or_default();
    let weights = P::groups(panel.weights).get(groups.clone()).unwrap_or_default();
    let activations = x.q.chunks_exact(x.tokens).zip(x.scales.chunks_exact(x.tokens));
    // A panel's bytes in order, as many with each group as it has: scales and weights are prefetched evenly and whole, at a
    // distance of the scales, which lie before the weights, and some.
    let mut reading = panel.bytes.get(groups.start * P::BYTES..).unwrap_or_default().chunks(P::BYTES);
    let distance = panel.scales.len() + S::PREFETCH_DISTANCE;
    if in_order {
        touch(s, scales.as_flattened(), S::TOUCHES);
    }
    for ((w, ws), (q, xs)) in weights.iter().zip(scales).zip(activations) {
        let (Some((q, _)), Some((xs, _))) =
            (q[first..].split_first_chunk::<T>(), xs[first..].split_first_chunk::<T>())
        else {
            return;
        };
        if in_order {
            touch(s, P::bytes(w), S::TOUCHES);
        }
        if prefetch {
            let bytes = reading.next().unwrap_or_default();
            // A fixed number of lines, for no loop.
            if let Some(start) = bytes.first() {
                for line in 0..P::BYTES.div_ceil(TILE) {
                    s.prefetch(start, distance + line * TILE);
                }
            }
        }
        s.add_scaled(&mut acc, P::dot(s, w, q, xs), ws, xs);
    }
    for t in 0..T {
        s.store(acc[t], &mut y[t]);
    }
}

/// Weights kept as floats: sixteen rows of a column adjacent.
trait Wide<S: Dot> {
    const BYTES: usize;
    /// Sixteen weights from the first `BYTES` bytes.
    fn load(s: S, bytes: &[u8]) -> S::F;
}

struct WideF32;
impl<S: Dot> Wide<S> for WideF32 {
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
impl<S: Dot> Wide<S> for WideF16 {
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
fn float_panels<S: Dot, W: Wide<S>>(
    s: S,
    shape: &MatrixShape,
    panels: &[u8],
    x: &Input<'_>,
    y: &mut [[f32; LANES]],
) {
    for (bytes, y) in panels.chunks_exact(shape.panel_bytes() as usize).zip(y.chunks_exact_mut(x.tokens)) {
        let panel = Panel::new(shape, bytes);
        in_tiles!(x.tokens, |t| float_tile::<S, W>(s, &panel, x, t, y));
    }
}

/// The micro-kernel of floats.
#[inline(always)]
fn float_tile<S: Dot, W: Wide<S>, const T: usize>(
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
