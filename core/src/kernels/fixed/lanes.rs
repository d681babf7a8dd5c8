//! Matrices for CPUs without vectors: one token and one row after the other.

use core::array;

use super::isa::Isa;
use super::operands::{Input, WIDE, WideMut, rows_mut};
use super::packed::{Packed, Q4, Q8};
use super::panel::{
    LOGIT_BITS, Panel, Quarter, Quarters, SCALE_EXPONENT, Sums, add_scaled, fixed, fixed_rows, scales, sums,
};
use super::scalar::Scalar;
use crate::format::{MatrixShape, Quant};
use crate::numbers::GROUP;
use crate::numbers::fixed::{LOW, Num, Row, shift_long};

const ZERO: Quarters = [Quarter { sums: [0; 4], beside: [0; 2] }; 5];

/// See [`super::set::Kernels::matmul`].
#[inline(always)]
pub(super) fn matmul<S: Isa>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: WideMut<'_>) {
    let tokens = x.tokens.max(1);
    let output = rows_mut(y.m).chunks_exact_mut(tokens).zip(y.e.chunks_exact_mut(tokens));
    let mut sums = ZERO;
    for (bytes, (y, ye)) in panels.chunks_exact(shape.panel_bytes().max(1) as usize).zip(output) {
        let Some(panel) = Panel::new(shape, bytes) else { return };
        for (t, ((y, ye), e)) in y.iter_mut().zip(ye).zip(x.exponents).enumerate() {
            product(s, shape.quant(), &panel, x, t, &mut sums);
            *ye = wide(s, &mut sums, e + SCALE_EXPONENT, panel.bias, y);
        }
    }
}

/// See [`super::set::Kernels::logits`].
#[inline(always)]
pub(super) fn logits<S: Isa>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [i32]) {
    let tokens = x.tokens.max(1);
    let output = rows_mut(y).chunks_exact_mut(tokens);
    let mut all = ZERO;
    for (bytes, y) in panels.chunks_exact(shape.panel_bytes().max(1) as usize).zip(output) {
        let Some(panel) = Panel::new(shape, bytes) else { return };
        for (t, (y, e)) in y.iter_mut().zip(x.exponents).enumerate() {
            product(s, shape.quant(), &panel, x, t, &mut all);
            let up = e + SCALE_EXPONENT + LOGIT_BITS;
            if shape.has_exponents() {
                *y = fixed_rows(&rows(&all), up, shape, bytes);
            } else if s.bits(&all) + up <= 30 {
                // What is within 2^30 does not saturate.
                s.shifted(&all, up, y);
            } else {
                saturating(&all, up, y);
            }
        }
    }
}

/// Sums of the rows of a panel with a token.
#[inline(always)]
fn product<S: Isa>(s: S, quant: Quant, panel: &Panel<'_>, x: &Input<'_>, t: usize, all: &mut Quarters) {
    let by_hand = match quant {
        Quant::Q8 => s.sums_i8(panel, x, t, all),
        Quant::Q4 => s.sums_u4(panel, x, t, all),
        // No model of the fixed path has such a matrix.
        Quant::F32 | Quant::F16 | Quant::Q5 | Quant::Q3 => true,
    };
    if !by_hand {
        if quant == Quant::Q8 {
            portable::<Q8>(panel, x, t, all);
        } else {
            portable::<Q4>(panel, x, t, all);
        }
    }
}

/// The same by portable code.
#[inline(never)]
fn portable<P: Packed>(panel: &Panel<'_>, x: &Input<'_>, t: usize, all: &mut Quarters) {
    let mut sums = [0; 16];
    let tokens = x.tokens.max(1);
    let columns = x.q.as_chunks::<GROUP>().0.iter().zip(x.groups).skip(t).step_by(tokens);
    for ((w, ws), (q, group)) in P::groups(panel.weights).iter().zip(panel.scales).zip(columns) {
        let [dots] = P::dot(Scalar, w, array::from_ref(q), array::from_ref(group));
        add_scaled(&dots, &scales(ws), group.exponent as u32 & 31, &mut sums);
    }
    for (quarter, sums) in all.iter_mut().zip(sums.as_chunks().0) {
        quarter.sums = *sums;
    }
}

/// Sums in units of `2^e`, with a bias, as a row of 30 bits; returns its exponent.
#[inline(always)]
fn wide<S: Isa>(s: S, all: &mut Quarters, mut e: i32, bias: Option<&[u8; 64]>, y: &mut Row) -> i32 {
    if let Some(bias) = bias {
        e = add_bias(s, all, e, bias);
    }
    let bits = s.bits(all);
    if bits == 0 && all[0].sums[0] == 0 {
        *y = [0; 16];
        return LOW;
    }
    let up = WIDE - bits;
    s.shifted(all, up, y);
    e - up
}

/// Adds a bias to sums in units of `2^e`; returns the exponent of their units then.
#[inline(never)]
fn add_bias<S: Isa>(s: S, all: &mut Quarters, e: i32, bias: &[u8; 64]) -> i32 {
    let bias = bias.as_chunks::<4>().0;
    // Magnitudes are ordered as their bits.
    let largest = bias.iter().fold(0, |largest, b| largest.max(u32::from_le_bytes(*b) << 1)) >> 1;
    let top = Num::weight(largest).e;
    let unit = e.max(top - 30).max(e + s.bits(all) - 62);
    if unit > e {
        for sum in all.iter_mut().take(4).flat_map(|quarter| &mut quarter.sums) {
            *sum = shift_long(*sum, e - unit);
        }
    }
    for (quarter, bias) in all.iter_mut().zip(bias.as_chunks::<4>().0) {
        for (sum, b) in quarter.sums.iter_mut().zip(bias) {
            let b = Num::weight(u32::from_le_bytes(*b));
            // 30 at most.
            let up = b.e - unit;
            if up >= 0 {
                *sum += i64::from(b.m) * i64::from(1 << (up & 31));
            } else {
                *sum += i64::from(s.shift_right(b.m, -up));
            }
        }
    }
    unit
}

/// Sums times `2^up`, saturating.
#[inline(never)]
fn saturating(all: &Quarters, up: i32, y: &mut Row) {
    *y = fixed(&rows(all), up);
}

/// The sums as a row.
fn rows(all: &Quarters) -> Sums {
    let mut row = [0; 16];
    for (to, sum) in row.iter_mut().zip(sums(all)) {
        *to = sum;
    }
    row
}
