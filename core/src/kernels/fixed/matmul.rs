//! Matrix times a chunk of tokens, from packed panels.
//!
//! A group's dot product is exact in 32 bits, at most 32 * 128 * 16384 = 2^26. Brought to the exponent of the vector by a shift,
//! which is the same for all rows, and multiplied with the weights' scale, below 2^25 in units of 2^-24, it is added up in
//! 64 bits, exactly: 4096 groups, the most that a configuration can have, stay below 2^63.

use core::array;

use super::isa::Isa;
use super::lanes;
use super::operands::{Activations, Group, Input, WIDE, WideMut, rows_mut, words};
use super::packed::{Packed, Q4, Q8};
use super::panel::{LOGIT_BITS, Panel, SCALE_EXPONENT, Sums, fixed, fixed_rows};
use crate::format::{MatrixShape, Quant};
use crate::numbers::fixed::{LOW, Num, Row, shift_long, shift_right};
use crate::numbers::{GROUP, TILE, TILES};

/// The same with activations from [`Isa::split`], of one token.
struct SplitQ4;
impl Packed for SplitQ4 {
    type Group = [[u8; TILE]; TILES / 2];
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Self::Group] {
        Q4::groups(bytes)
    }
    #[inline(always)]
    fn dot<S: Isa, const T: usize>(
        s: S,
        w: &Self::Group,
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T] {
        let mut rows = [[0; 16]; T];
        for t in 0..T {
            rows[t] = s.dot_split(w, &x[t], &sums[t]);
        }
        rows
    }
}

/// Groups of activations at most that are split, those of 2048 columns: 4 KiB of stack.
const SPLIT: usize = 64;

/// Splits the activations of a single token into `to`, where they fit and that is faster.
#[inline(always)]
fn split_once<'a, S: Isa>(
    s: S,
    shape: &MatrixShape,
    x: &Input<'_>,
    to: &'a mut [Activations; SPLIT],
) -> Option<&'a [i16]> {
    if !S::SPLITS || x.tokens != 1 || !matches!(shape.quant(), Quant::Q4) {
        return None;
    }
    let groups = x.q.as_chunks::<GROUP>().0.get(..shape.cols().div_ceil(GROUP as u32) as usize)?;
    let to = to.get_mut(..groups.len())?;
    for (to, x) in to.iter_mut().zip(groups) {
        *to = s.split(x);
    }
    Some(to.as_flattened())
}

/// Multiplies a panel with all tokens, in blocks of some, and hands the sums of each to `$put`.
///
/// A macro, because what is made by closures is not always inlined, and then lacks the instruction set's features.
macro_rules! for_each_token {
    ($s:ident, $shape:ident, $panel:ident, $x:ident, $split:ident, |$t:ident, $sums:ident| $put:expr) => {
        match ($shape.quant(), $split) {
            (Quant::Q4, Some(q)) => {
                let x = &Input { q, ..*$x };
                for_each_token!(@alone SplitQ4, $s, $panel, x, |$t, $sums| $put)
            }
            (Quant::Q8, _) if S::PREFETCH_DISTANCE > 0 && $x.tokens == 1 => {
                for_each_token!(@alone Q8, $s, $panel, $x, |$t, $sums| $put)
            }
            (Quant::Q4, _) if S::PREFETCH_DISTANCE > 0 && $x.tokens == 1 => {
                for_each_token!(@alone Q4, $s, $panel, $x, |$t, $sums| $put)
            }
            (Quant::Q8, _) => for_each_token!(@ Q8, $s, $panel, $x, |$t, $sums| $put),
            (Quant::Q4, _) => for_each_token!(@ Q4, $s, $panel, $x, |$t, $sums| $put),
            // No model of the fixed path has such a matrix.
            (Quant::F32 | Quant::F16 | Quant::Q5 | Quant::Q3, _) => return,
        }
    };
    (@alone $packed:ty, $s:ident, $panel:ident, $x:ident, |$t:ident, $sums:ident| $put:expr) => {{
        let [sums] = alone::<S, $packed>($s, &$panel, $x);
        let ($t, $sums) = (0, &sums);
        $put
    }};
    (@ $packed:ty, $s:ident, $panel:ident, $x:ident, |$t:ident, $sums:ident| $put:expr) => {{
        let tokens = $x.tokens.max(1);
        let mut first = 0;
        while first + 4 <= tokens {
            let block = block::<S, $packed, 4>($s, &$panel, $x, first);
            for i in 0..4 {
                let ($t, $sums) = (first + i, &block[i]);
                $put
            }
            first += 4;
        }
        while first < tokens {
            let [block] = block::<S, $packed, 1>($s, &$panel, $x, first);
            let ($t, $sums) = (first, &block);
            $put
            first += 1;
        }
    }};
}

#[inline(always)]
pub(super) fn matmul<S: Isa>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: WideMut<'_>) {
    if !S::VECTORS {
        return lanes::matmul(s, shape, panels, x, y);
    }
    let tokens = x.tokens.max(1);
    let output = rows_mut(y.m).chunks_exact_mut(tokens).zip(y.e.chunks_exact_mut(tokens));
    let mut room = [[0; GROUP]; SPLIT];
    let split = split_once(s, shape, x, &mut room);
    for (bytes, (y, ye)) in panels.chunks_exact(shape.panel_bytes().max(1) as usize).zip(output) {
        let Some(panel) = Panel::new(shape, bytes) else { return };
        for_each_token!(s, shape, panel, x, split, |t, sums| {
            let (Some(y), Some(e), Some(ye)) = (y.get_mut(t), x.exponents.get(t), ye.get_mut(t)) else {
                return;
            };
            (*y, *ye) = wide(sums, e + SCALE_EXPONENT, panel.bias);
        });
    }
}

#[inline(always)]
pub(super) fn logits<S: Isa>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [i32]) {
    if !S::VECTORS {
        return lanes::logits(s, shape, panels, x, y);
    }
    let tokens = x.tokens.max(1);
    let output = rows_mut(y).chunks_exact_mut(tokens);
    let mut room = [[0; GROUP]; SPLIT];
    let split = split_once(s, shape, x, &mut room);
    for (bytes, y) in panels.chunks_exact(shape.panel_bytes().max(1) as usize).zip(output) {
        let Some(panel) = Panel::new(shape, bytes) else { return };
        for_each_token!(s, shape, panel, x, split, |t, sums| {
            let (Some(y), Some(e)) = (y.get_mut(t), x.exponents.get(t)) else { return };
            let up = e + SCALE_EXPONENT + LOGIT_BITS;
            *y = if shape.has_exponents() { fixed_rows(sums, up, shape, bytes) } else { fixed(sums, up) };
        });
    }
}

/// The sums of a panel with `T` tokens from `first` on.
#[inline(always)]
fn block<S: Isa, P: Packed, const T: usize>(
    s: S,
    panel: &Panel<'_>,
    x: &Input<'_>,
    first: usize,
) -> [Sums; T] {
    let mut sums = [[0i64; 16]; T];
    let tokens = x.tokens.max(1);
    let activations = x.q.as_chunks::<GROUP>().0.chunks_exact(tokens).zip(x.groups.chunks_exact(tokens));
    for ((w, ws), (q, groups)) in P::groups(panel.weights).iter().zip(panel.scales).zip(activations) {
        let (Some(q), Some(groups)) = (chunk::<_, T>(q, first), chunk::<_, T>(groups, first)) else { break };
        add_group::<S, P, T>(s, (w, ws), (q, groups), &mut sums);
    }
    in_order(s, &sums)
}

/// The sums of a panel with the only token, for which the panel comes from memory.
///
/// Its bytes are prefetched in order, as many with each group as it has, and so evenly and whole: at a distance of the
/// scales, which lie before the weights, and some.
#[inline(always)]
fn alone<S: Isa, P: Packed>(s: S, panel: &Panel<'_>, x: &Input<'_>) -> [Sums; 1] {
    let bytes = const { size_of::<P::Group>() + size_of::<[u8; 32]>() };
    let mut sums = [[0i64; 16]];
    let mut distance = panel.scales.as_flattened().len() + S::PREFETCH_DISTANCE;
    let activations = x.q.as_chunks::<GROUP>().0.iter().zip(x.groups);
    for ((w, ws), (q, group)) in P::groups(panel.weights).iter().zip(panel.scales).zip(activations) {
        if let Some(from) = panel.bytes.first() {
            for line in 0..bytes.div_ceil(TILE) {
                s.prefetch(from, distance + line * TILE);
            }
        }
        distance += bytes;
        add_group::<S, P, 1>(s, (w, ws), (array::from_ref(q), array::from_ref(group)), &mut sums);
    }
    in_order(s, &sums)
}

/// Adds a group's products with `T` tokens.
#[inline(always)]
fn add_group<S: Isa, P: Packed, const T: usize>(
    s: S,
    (w, ws): (&P::Group, &[u8; 32]),
    (q, groups): (&[Activations; T], &[Group; T]),
    sums: &mut [Sums; T],
) {
    let dots = P::dot(s, w, q, groups);
    let ws = s.scales(ws);
    for t in 0..T {
        s.add_scaled(&dots[t], &ws, groups[t].exponent as u32 & 31, &mut sums[t]);
    }
}

#[inline(always)]
fn in_order<S: Isa, const T: usize>(s: S, sums: &[Sums; T]) -> [Sums; T] {
    let mut all = *sums;
    for t in 0..T {
        all[t] = s.in_order(&sums[t]);
    }
    all
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
        e = add_bias(&mut sums, e, &words(bias));
    }
    let bits = long_bits(&sums);
    if bits == 0 && sums[0] == 0 {
        return ([0; 16], LOW);
    }
    let up = WIDE - bits;
    let sums = shift_all(&sums, up);
    let mut row = [0; 16];
    for i in 0..16 {
        row[i] = sums[i] as i32;
    }
    (row, e - up)
}

/// Adds a bias, the bits of f32, to sums in units of `2^e`, and returns the exponent of their new unit.
#[inline(always)]
fn add_bias(sums: &mut Sums, e: i32, bias: &[u32; 16]) -> i32 {
    let mut top = Num::weight(0).e;
    for i in 0..16 {
        top = top.max(Num::weight(bias[i]).e);
    }
    // A bias of 31 bits shifted up by 30, and sums of 62 bits, fit together.
    let unit = e.max(top - 30).max(e + long_bits(sums) - 62);
    if unit > e {
        *sums = shift_all(sums, e - unit);
    }
    for i in 0..16 {
        // To the right in 32 bits, to the left in 64.
        let Num { m, e } = Num::weight(bias[i]);
        let up = e - unit;
        let m = if up < 0 { shift_right(m, (-up).max(1)) } else { m };
        sums[i] += i64::from(m) << (up.clamp(0, 30) as u32);
    }
    unit
}

/// All of them by [`shift_long`].
#[inline(always)]
fn shift_all(sums: &Sums, up: i32) -> Sums {
    let mut all = *sums;
    // The loops in the branches, so that no lane does both.
    if up >= 0 {
        for i in 0..16 {
            all[i] = shift_long(sums[i], up.max(0));
        }
    } else {
        let cut = (-up - 1).min(63) as u32 & 63;
        for i in 0..16 {
            all[i] = ((sums[i] >> cut) + 1) >> 1;
        }
    }
    all
}

/// The least `b` with all of them within `2^b`.
#[inline(always)]
fn long_bits(sums: &Sums) -> i32 {
    let all = sums.iter().fold(0, |all, sum| all | (sum ^ (sum >> 63)) as u64);
    64 - all.leading_zeros() as i32
}
