//! Matrix times a chunk of tokens, from packed panels.
//!
//! A group's dot product is exact in 32 bits, at most 32 * 128 * 16383 < 2^26. Brought to the exponent of the vector by a shift,
//! which is the same for all rows, and multiplied with the weights' scale, below 2^25 in units of 2^-24, it is added up in
//! 64 bits, exactly: 4096 groups, the most that a configuration can have, stay below 2^63.

use super::elementwise::WIDE;
use super::{Activations, Dot, Group, Input, TILE, TILES, WideMut, numbers, rows_mut};
use crate::fixed::num::{LOW, Row, saturated, shift_long};
use crate::format::{MatrixShape, Quant};
use crate::kernels::GROUP;

/// Sums of 16 rows.
pub(super) type Sums = [i64; 16];

/// The exponent of a weight's scale as an integer.
const SCALE_EXPONENT: i32 = -24;
/// Fraction bits of a logit.
pub const LOGIT_BITS: i32 = 16;

/// Weights that dot with activations.
trait Packed {
    /// The weights of 16 rows in a group of 32 columns.
    type Group;
    fn groups(bytes: &[u8]) -> &[Self::Group];
    fn dot<S: Dot, const T: usize>(
        s: S,
        w: &Self::Group,
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T];
}

struct Q8;
impl Packed for Q8 {
    type Group = [[u8; TILE]; TILES];
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Self::Group] {
        bytes.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn dot<S: Dot, const T: usize>(s: S, w: &Self::Group, x: &[Activations; T], _: &[Group; T]) -> [Row; T] {
        s.dot_i8(w, x)
    }
}

struct Q4;
impl Packed for Q4 {
    type Group = [[u8; TILE]; TILES / 2];
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Self::Group] {
        bytes.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn dot<S: Dot, const T: usize>(
        s: S,
        w: &Self::Group,
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T] {
        s.dot_u4(w, x, sums)
    }
}

/// The parts of a panel.
struct Panel<'a> {
    scales: &'a [[u8; 32]],
    weights: &'a [u8],
    bias: Option<&'a [u8; 64]>,
}

impl<'a> Panel<'a> {
    #[inline(always)]
    fn new(shape: &MatrixShape, bytes: &'a [u8]) -> Option<Self> {
        let (scales, rest) = bytes.split_at_checked(shape.scale_bytes() as usize)?;
        let (weights, bias) = rest.split_at_checked(shape.weight_bytes() as usize)?;
        Some(Self { scales: scales.as_chunks().0, weights, bias: bias.first_chunk() })
    }
}

/// Sixteen scales in units of 2^-24: f16 is an integer of 11 bits, shifted. A scale of 2 or more saturates, just below 2.
#[inline(always)]
fn scales(bytes: &[u8; 32]) -> Row {
    let (bytes, _) = bytes.as_chunks::<2>();
    let mut scales = [0; 16];
    for i in 0..16 {
        scales[i] = scale(u16::from_le_bytes(bytes[i]));
    }
    scales
}

/// Adds a group's dot products, decoding each scale where it is needed.
#[inline(always)]
pub(super) fn accumulate(dots: &Row, ws: &[u8; 32], down: u32, sums: &mut Sums) {
    let half = (1 << down) >> 1;
    let (ws, _) = ws.as_chunks::<2>();
    for r in 0..16 {
        sums[r] += i64::from((dots[r] + half) >> down) * i64::from(scale(u16::from_le_bytes(ws[r])));
    }
}

/// One of them.
#[inline(always)]
pub(crate) fn scale(bits: u16) -> i32 {
    let (magnitude, sign) = (i32::from(bits & 0x7fff), i32::from(bits as i16) >> 31);
    saturated::note(magnitude >= 16 << 10);
    let magnitude = magnitude.min((16 << 10) - 1);
    // Subnormal numbers have the exponent of the smallest normal ones.
    let k = ((magnitude >> 10) - 1).max(0);
    let s = (magnitude - (k << 10)) << k;
    (s ^ sign) - sign
}

/// Calls a block function for all tokens.
macro_rules! in_token_blocks {
    ($tokens:expr, |$first:ident| $block:ident::<$packed:ty>($($arg:expr),*)) => {{
        let mut $first = 0;
        if S::VECTORS {
            while $first + 4 <= $tokens {
                $block::<S, $packed, 4>($($arg),*);
                $first += 4;
            }
        }
        while $first < $tokens {
            $block::<S, $packed, 1>($($arg),*);
            $first += 1;
        }
    }};
}

#[inline(always)]
pub(super) fn matmul<S: Dot>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: WideMut<'_>) {
    let tokens = x.tokens.max(1);
    let output = rows_mut(y.m).chunks_exact_mut(tokens).zip(y.e.chunks_exact_mut(tokens));
    for (bytes, (y, ye)) in panels.chunks_exact(shape.panel_bytes().max(1) as usize).zip(output) {
        let Some(panel) = Panel::new(shape, bytes) else { return };
        let mut put = |t: usize, sums: &Sums| {
            let (Some(y), Some(e), Some(ye)) = (y.get_mut(t), x.exponents.get(t), ye.get_mut(t)) else {
                return;
            };
            (*y, *ye) = wide(sums, e + SCALE_EXPONENT, panel.bias);
        };
        match shape.quant() {
            Quant::Q8 => in_token_blocks!(tokens, |t| block::<Q8>(s, &panel, x, t, &mut put)),
            Quant::Q4 => in_token_blocks!(tokens, |t| block::<Q4>(s, &panel, x, t, &mut put)),
            // No model of the fixed path has such a matrix.
            Quant::F32 | Quant::F16 | Quant::Q5 | Quant::Q3 => return,
        }
    }
}

#[inline(always)]
pub(super) fn logits<S: Dot>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [i32]) {
    let tokens = x.tokens.max(1);
    let output = rows_mut(y).chunks_exact_mut(tokens);
    for (bytes, y) in panels.chunks_exact(shape.panel_bytes().max(1) as usize).zip(output) {
        let Some(panel) = Panel::new(shape, bytes) else { return };
        let mut put = |t: usize, sums: &Sums| {
            let (Some(y), Some(e)) = (y.get_mut(t), x.exponents.get(t)) else { return };
            *y = fixed(sums, e + SCALE_EXPONENT + LOGIT_BITS);
        };
        match shape.quant() {
            Quant::Q8 => in_token_blocks!(tokens, |t| block::<Q8>(s, &panel, x, t, &mut put)),
            Quant::Q4 => in_token_blocks!(tokens, |t| block::<Q4>(s, &panel, x, t, &mut put)),
            Quant::F32 | Quant::F16 | Quant::Q5 | Quant::Q3 => return,
        }
    }
}

/// A panel with `T` tokens from `first` on.
#[inline(always)]
fn block<S: Dot, P: Packed, const T: usize>(
    s: S,
    panel: &Panel<'_>,
    x: &Input<'_>,
    first: usize,
    put: &mut impl FnMut(usize, &Sums),
) {
    let mut sums = [[0i64; 16]; T];
    let tokens = x.tokens.max(1);
    let activations = x.q.as_chunks::<GROUP>().0.chunks_exact(tokens).zip(x.groups.chunks_exact(tokens));
    for ((w, ws), (q, groups)) in P::groups(panel.weights).iter().zip(panel.scales).zip(activations) {
        let (Some(q), Some(groups)) = (chunk::<_, T>(q, first), chunk::<_, T>(groups, first)) else { return };
        if T == 1 {
            s.prefetch(ws);
        }
        let dots = P::dot(s, w, q, groups);
        if S::VECTORS {
            let ws = scales(ws);
            for t in 0..T {
                let down = groups[t].exponent as u32 & 31;
                let half = (1 << down) >> 1;
                for r in 0..16 {
                    sums[t][r] += i64::from((dots[t][r] + half) >> down) * i64::from(ws[r]);
                }
            }
        } else {
            for t in 0..T {
                s.accumulate(&dots[t], ws, groups[t].exponent as u32 & 31, &mut sums[t]);
            }
        }
    }
    for (t, sums) in sums.iter().enumerate() {
        put(first + t, sums);
    }
}

#[inline(always)]
fn chunk<T, const N: usize>(x: &[T], first: usize) -> Option<&[T; N]> {
    x.get(first..)?.first_chunk()
}

/// Sums in units of `2^e`, with a bias, as a row of 30 bits.
#[inline(always)]
fn wide(sums: &Sums, mut e: i32, bias: Option<&[u8; 64]>) -> (Row, i32) {
    let mut sums = *sums;
    if let Some(bias) = bias {
        let bias = numbers(bias);
        // A bias of 31 bits shifted up by 30, and sums of 62 bits, fit together.
        let top = bias.iter().fold(LOW, |top, b| top.max(if b.m == 0 { LOW } else { b.e }));
        let unit = e.max(top - 30).max(e + long_bits(&sums) - 62);
        for (sum, b) in sums.iter_mut().zip(bias) {
            let b = if b.m == 0 { 0 } else { shift_long(i64::from(b.m), b.e - unit) };
            *sum = if unit > e { shift_long(*sum, e - unit) } else { *sum } + b;
        }
        e = unit;
    }
    let bits = long_bits(&sums);
    if bits == 0 && sums[0] == 0 {
        return ([0; 16], LOW);
    }
    let up = WIDE - bits;
    let mut row = [0; 16];
    for i in 0..16 {
        row[i] = shift_long(sums[i], up) as i32;
    }
    (row, e - up)
}

/// The least `b` with all of them within `2^b`.
#[inline(always)]
fn long_bits(sums: &Sums) -> i32 {
    let all = sums.iter().fold(0, |all, sum| all | (sum ^ (sum >> 63)) as u64);
    64 - all.leading_zeros() as i32
}

/// Sums times `2^up`, saturating.
#[inline(always)]
fn fixed(sums: &Sums, up: i32) -> Row {
    sums.map(|sum| {
        let sum = if up < 0 { shift_long(sum, up) } else { sum };
        let left = up.clamp(0, 31);
        let limit = i64::from(i32::MAX >> left);
        saturated::note(sum.abs() > limit);
        if sum > limit {
            i32::MAX
        } else if sum < -limit {
            -i32::MAX
        } else {
            (sum << left) as i32
        }
    })
}
