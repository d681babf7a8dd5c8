//! A packed panel of a matrix, and the sums of its rows.

use crate::format::MatrixShape;
use crate::numbers::fixed::{Row, saturated, shift_long};

/// Sums of 16 rows.
pub(crate) type Sums = [i64; 16];

/// The exponent of a weight's scale as an integer.
pub(super) const SCALE_EXPONENT: i32 = -24;
/// Fraction bits of a logit.
pub const LOGIT_BITS: i32 = 16;

/// Sums of four rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Quarter {
    pub sums: [i64; 4],
    /// What code by hand keeps beside them.
    pub beside: [u32; 2],
}

/// Sums of sixteen rows, and space for code by hand.
pub(crate) type Quarters = [Quarter; 5];

/// The sums alone, row by row.
#[inline(always)]
pub(super) fn sums(all: &Quarters) -> impl Iterator<Item = i64> {
    all.iter().take(4).flat_map(|quarter| quarter.sums)
}

/// A panel and its parts.
pub(crate) struct Panel<'a> {
    pub bytes: &'a [u8],
    /// Columns that are not padding.
    #[cfg_attr(
        not(all(target_arch = "arm", any(target_feature = "dsp", feature = "dsp"))),
        allow(dead_code)
    )]
    pub columns: u32,
    pub scales: &'a [[u8; 32]],
    pub weights: &'a [u8],
    /// Of rows without exponents.
    pub bias: Option<&'a [u8; 64]>,
}

impl<'a> Panel<'a> {
    #[inline(always)]
    pub(super) fn new(shape: &MatrixShape, bytes: &'a [u8]) -> Option<Self> {
        let (scales, rest) = bytes.split_at_checked(shape.scale_bytes() as usize)?;
        let (weights, rest) = rest.split_at_checked(shape.weight_bytes() as usize)?;
        Some(Self {
            bytes,
            columns: shape.used_cols(),
            scales: scales.as_chunks().0,
            weights,
            bias: if shape.has_exponents() { None } else { rest.first_chunk() },
        })
    }
}

/// Sixteen scales.
#[inline(always)]
pub(super) fn scales(bytes: &[u8; 32]) -> Row {
    let (bytes, _) = bytes.as_chunks::<2>();
    let mut scales = [0; 16];
    for i in 0..16 {
        scales[i] = scale(u16::from_le_bytes(bytes[i]));
    }
    scales
}

/// Adds a group's dot products times decoded scales.
#[inline(always)]
pub(super) fn add_scaled(dots: &Row, scales: &Row, down: u32, sums: &mut Sums) {
    let half = (1 << down) >> 1;
    for r in 0..16 {
        sums[r] += i64::from((dots[r] + half) >> down) * i64::from(scales[r]);
    }
}

/// One scale in units of 2^-24: f16 is an integer of 11 bits, shifted. A scale of 2 or more saturates, just below 2.
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

/// The least `b` with all of them within `2^b`: [`Isa::bits`](super::isa::Isa::bits).
#[inline(always)]
pub(super) fn bits(all: &Quarters) -> i32 {
    64 - sums(all).fold(0, |all, sum| all | (sum ^ sum >> 63) as u64).leading_zeros() as i32
}

/// Sums times `2^up`, rounded half up; they fit: [`Isa::shifted`](super::isa::Isa::shifted).
#[inline(always)]
pub(super) fn shifted(all: &Quarters, up: i32, y: &mut Row) {
    for (y, sum) in y.iter_mut().zip(sums(all)) {
        *y = shift_long(sum, up) as i32;
    }
}

/// Sums times `2^up`, saturating.
#[inline(always)]
pub(super) fn fixed(sums: &Sums, up: i32) -> Row {
    let mut row = [0; 16];
    for i in 0..16 {
        row[i] = saturating(sums[i], up);
    }
    row
}

/// Sums times `2^(up + exponent)`, each row's own, saturating.
#[inline(never)]
pub(super) fn fixed_rows(sums: &Sums, up: i32, shape: &MatrixShape, panel: &[u8]) -> Row {
    let mut row = [0; 16];
    for i in 0..16 {
        row[i] = saturating(sums[i], up + shape.exponent(panel, i as u32));
    }
    row
}

/// A sum times `2^up`, saturating.
#[inline(always)]
fn saturating(sum: i64, up: i32) -> i32 {
    let left = up.clamp(0, 31);
    let limit = i64::from(i32::MAX >> left);
    let sum = if up < 0 { shift_long(sum, up) } else { sum };
    saturated::note(sum.abs() > limit);
    if sum > limit {
        i32::MAX
    } else if sum < -limit {
        -i32::MAX
    } else {
        (sum << left) as i32
    }
}
