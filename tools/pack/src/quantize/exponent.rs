//! The power of two that a row is divided by, so that f16 holds its weights or scales.

use elapid_core::format::{MatrixShape, Quant};

use super::range::{self, Range};
use crate::checkpoint::StoredGroup;

/// The exponent of a row, and which of its values is the largest.
pub(super) struct Row {
    /// Two to the power of this is what the row is divided by: 0 where it is held as it is.
    pub(super) exponent: i32,
    /// The column of the largest value.
    pub(super) largest: usize,
}

/// The smallest scale that a row may need: f16 tells it to 2^-9 of itself, less than int8 is off.
const LEAST_SCALE: f32 = 1.0 / 65536.0;
/// The smallest f16 that may be the largest of a row: a smaller one has too many of its row's weights among the subnormal f16.
const LEAST_F16: f32 = 1.0 / 1024.0;
/// From here on an f16 is rounded to infinity.
const MOST_F16: f32 = 65520.0;

impl Row {
    /// The exponent with which f16 holds a row, next to its bias. `stored` are the groups that the row comes from: their scales
    /// are what f16 is to hold.
    ///
    /// It may be larger than the format allows ([`MatrixShape::EXPONENTS`]), never smaller.
    pub(super) fn of(quant: Quant, row: &[f32], bias: f32, stored: &[StoredGroup]) -> Self {
        let larger = |a: usize, b: usize| if row[b].abs() > row[a].abs() { b } else { a };
        let largest = (0..row.len()).fold(0, larger);
        let most = row.get(largest).copied().unwrap_or_default().abs();
        // What f16 is to hold at most, from where to where it may lie, and the power of two that an exponent brings it to.
        let scale = stored.iter().map(|group| group.scale.to_f32().abs()).reduce(f32::max);
        let integers = |range: &Range| (scale.unwrap_or(most / -range.low), LEAST_SCALE, range.most, -2);
        let (held, least, limit, place) = match quant {
            Quant::F32 => return Self { exponent: 0, largest },
            Quant::F16 => (most, LEAST_F16, MOST_F16, 14),
            Quant::Q8 => integers(&range::Q8),
            Quant::Q5 => integers(&range::Q5),
            Quant::Q4 => integers(&range::Q4),
            Quant::Q3 => integers(&range::Q3),
        };
        if most == 0.0 || held == 0.0 || (least..limit).contains(&held) {
            return Self { exponent: 0, largest };
        }
        let mut exponent = exponent_of(held) - place;
        if bias != 0.0 {
            // The bias is divided too, and must stay far within f32; beside such a one, weights so small count for nothing.
            exponent = exponent.max(exponent_of(bias) - 100);
        }
        Self { exponent: exponent.max(*MatrixShape::EXPONENTS.start()), largest }
    }
}

/// The largest `e` with `2^e <= |x|`, which is not 0.
pub(crate) fn exponent_of(x: f32) -> i32 {
    // Every f32 is a normal f64.
    (f64::from(x).to_bits() >> 52 & 0x7ff) as i32 - 1023
}
