//! Mantissas of 30 bits narrowed to activations of 14.

use super::operands::{Activations, place};
use crate::numbers::GROUP;
use crate::numbers::fixed::{Row, shift_right};

/// Bits of an activation's mantissa, without its sign.
pub(super) const NARROW: i32 = 14;

/// See [`Isa::activations`](super::isa::Isa::activations).
#[inline(always)]
pub(super) fn activations(rows: [&Row; 2], up: [i32; 2], q: &mut Activations) -> i32 {
    let mut sum = 0;
    for (half, (x, up)) in rows.into_iter().zip(up).enumerate() {
        for (i, x) in x.iter().enumerate() {
            let x = narrow_one(*x, up);
            q[place(half * 16 + i) & (GROUP - 1)] = x;
            sum += i32::from(x);
        }
    }
    sum
}

/// `x 2^s` from -16384 to 16383. To the left only what fits: the largest keeps within 2^14. Rounding may reach it.
#[inline(always)]
pub(super) fn narrow_one(x: i32, s: i32) -> i16 {
    let x = if s >= 0 { x << s.min(31) } else { shift_right(x, -s) };
    x.clamp(-1 << NARROW, (1 << NARROW) - 1) as i16
}
