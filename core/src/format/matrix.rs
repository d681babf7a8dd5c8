//! How a matrix lies in panels of 16 rows.

use core::ops::RangeInclusive;

use super::{FormatError, Limit, round_up};
use crate::numbers::{GROUP, LANES};

/// How the weights of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Quant {
    /// 32-bit floats.
    F32 = 1,
    /// 16-bit floats.
    F16 = 2,
    /// int8 with an f16 scale a row and 32 columns: 8.5 bits a weight.
    Q8 = 3,
    /// 4 bits with an f16 scale a row and 32 columns: 4.5 bits a weight.
    Q4 = 4,
    /// 3 bits with an f16 scale a row and 32 columns: 3.5 bits a weight.
    Q3 = 5,
    /// 5 bits with an f16 scale a row and 32 columns: 5.5 bits a weight.
    Q5 = 6,
}

impl Quant {
    /// All, by number.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Q8, Self::Q4, Self::Q3, Self::Q5];

    /// The quantization with the number `id`.
    ///
    /// # Errors
    /// [`FormatError::Unknown`] naming `field`.
    pub const fn from_id(id: u8, field: &'static str) -> Result<Self, FormatError> {
        let mut i = 0;
        while i < Self::ALL.len() {
            if Self::ALL[i] as u8 == id {
                return Ok(Self::ALL[i]);
            }
            i += 1;
        }
        Err(FormatError::Unknown { field, value: id as u32 })
    }

    /// The name used on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
            Self::Q3 => "q3",
            Self::Q5 => "q5",
        }
    }

    /// Whether activations are quantized to int8 before they meet such a matrix.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::Q8) || self.is_coarse()
    }

    /// Whether it has fewer than 8 bits: too coarse for x_proj and dt_proj, which are small and decide how the state changes.
    #[must_use]
    pub const fn is_coarse(self) -> bool {
        matches!(self, Self::Q5 | Self::Q4 | Self::Q3)
    }
}

/// Shape and storage of a matrix, `[rows, cols]`.
///
/// Rows are padded to 16 and columns to 32, with zeros. A panel is `[scales | weights | bias | exponents]`: f16 scales
/// `[cols/32][16]` padded to 64 bytes (of integers only), the weights of 16 rows, 16 f32 of bias if there is one, and 16 exponents
/// if rows have them: a row's weights and bias are what is stored times two to the power of its exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    rows: u32,
    cols: u32,
    used: u32,
    quant: Quant,
    bias: bool,
    exponents: bool,
}

impl MatrixShape {
    /// The exponents that a row may have: two to the power of each is a normal f32.
    pub const EXPONENTS: RangeInclusive<i32> = -126..=64;

    /// The most rows of a matrix, those of the largest vocabulary.
    pub const MAX_ROWS: u32 = 1 << 20;
    /// The most columns of a matrix, those of the largest d_inner. A panel of them has 8 MiB, so no size here overflows.
    pub const MAX_COLS: u32 = 1 << 17;

    /// A matrix; `rows` and `cols` are padded here.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] where there are no rows or columns, or more than [`MAX_ROWS`](Self::MAX_ROWS) or
    /// [`MAX_COLS`](Self::MAX_COLS).
    pub const fn new(rows: u32, cols: u32, quant: Quant, bias: bool) -> Result<Self, FormatError> {
        if rows == 0 || rows > Self::MAX_ROWS {
            let (field, max) = ("rows", Self::MAX_ROWS);
            return Err(FormatError::OutOfRange(Limit { field, value: rows, min: 1, max }));
        }
        if cols == 0 || cols > Self::MAX_COLS {
            let (field, max) = ("columns", Self::MAX_COLS);
            return Err(FormatError::OutOfRange(Limit { field, value: cols, min: 1, max }));
        }
        Ok(Self::within_limits(rows, cols, quant, bias))
    }

    /// The same for rows and columns that are known to be within the limits, as those of a checked configuration.
    pub(super) const fn within_limits(rows: u32, cols: u32, quant: Quant, bias: bool) -> Self {
        Self {
            rows: round_up(rows, LANES as u32),
            cols: round_up(cols, GROUP as u32),
            used: cols,
            quant,
            bias,
            exponents: false,
        }
    }

    /// The same, where rows have exponents or have none.
    #[must_use]
    pub const fn with_exponents(self, exponents: bool) -> Self {
        Self { exponents, ..self }
    }
    /// Rows, padded to 16.
    #[must_use]
    pub const fn rows(&self) -> u32 {
        self.rows
    }
    /// Columns, padded to 32.
    #[must_use]
    pub const fn cols(&self) -> u32 {
        self.cols
    }
    /// Columns without padding.
    #[must_use]
    pub const fn used_cols(&self) -> u32 {
        self.used
    }
    /// How weights are stored.
    #[must_use]
    pub const fn quant(&self) -> Quant {
        self.quant
    }
    /// Whether each panel has 16 biases.
    #[must_use]
    pub const fn has_bias(&self) -> bool {
        self.bias
    }
    /// Whether each panel ends with 16 exponents.
    #[must_use]
    pub const fn has_exponents(&self) -> bool {
        self.exponents
    }
    /// Panels of 16 rows.
    #[must_use]
    pub const fn panels(&self) -> u32 {
        self.rows / LANES as u32
    }
    /// Bytes of a panel's scales, padded to 64.
    #[must_use]
    pub const fn scale_bytes(&self) -> u32 {
        if self.quant.is_integer() { round_up(self.cols / GROUP as u32 * 2 * LANES as u32, 64) } else { 0 }
    }
    /// Bytes of a panel's weights.
    #[must_use]
    pub const fn weight_bytes(&self) -> u32 {
        let weights = self.cols * LANES as u32;
        match self.quant {
            Quant::F32 => weights * 4,
            Quant::F16 => weights * 2,
            Quant::Q8 => weights,
            Quant::Q4 => weights / 2,
            Quant::Q3 => weights / 8 * 3,
            Quant::Q5 => weights / 8 * 5,
        }
    }
    /// Bytes of a panel, a multiple of 64.
    #[must_use]
    pub const fn panel_bytes(&self) -> u32 {
        let rows = 4 * LANES as u32;
        self.scale_bytes() + self.weight_bytes() + rows * (self.bias as u32 + self.exponents as u32)
    }

    /// The biases of a panel's rows as stored, each the bytes of an f32; nothing where there are none.
    #[must_use]
    pub fn biases<'a>(&self, panel: &'a [u8]) -> &'a [[u8; 4]] {
        let start = (self.scale_bytes() + self.weight_bytes()) as usize;
        let end = start + 4 * LANES * usize::from(self.bias);
        panel.get(start..end).unwrap_or_default().as_chunks().0
    }

    /// The exponent of a row from the bytes of the panel that holds it, within [`EXPONENTS`](Self::EXPONENTS) whatever the bytes are;
    /// 0 where rows have none.
    #[inline(never)]
    #[must_use]
    pub fn exponent(&self, panel: &[u8], row: u32) -> i32 {
        let end = self.panel_bytes() as usize;
        let stored = panel.get(end.saturating_sub(4 * (LANES - row as usize % LANES))..end);
        match stored.and_then(<[u8]>::first_chunk) {
            Some(stored) if self.exponents => {
                i32::from_le_bytes(*stored).clamp(*Self::EXPONENTS.start(), *Self::EXPONENTS.end())
            }
            _ => 0,
        }
    }

    /// Element `[row, col]` of a matrix from the bytes of the panel that holds `row`; exact for every type, unless an exponent
    /// leads below the normal f32.
    ///
    /// 0 where `col` is out of range or `panel` is too short.
    #[must_use]
    pub fn element(&self, panel: &[u8], row: u32, col: u32) -> f32 {
        let stored = self.stored(panel, row, col);
        if !self.exponents {
            return stored;
        }
        stored * power_of_two(self.exponent(panel, row))
    }

    /// The same without the row's exponent.
    fn stored(&self, panel: &[u8], row: u32, col: u32) -> f32 {
        if col >= self.cols || panel.len() < self.panel_bytes() as usize {
            return 0.0;
        }
        let (r, c) = (row as usize % LANES, col as usize);
        let scales = self.scale_bytes() as usize;
        let f16 = |at: usize| match panel.get(at..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => half::f16::from_le_bytes(*bytes).to_f32_const(),
            None => 0.0,
        };
        let scale = || f16((c / GROUP * LANES + r) * 2);
        let byte = |at: usize| panel.get(scales + at).copied().unwrap_or(0);
        match self.quant {
            Quant::F32 => match panel.get((c * LANES + r) * 4..).and_then(<[u8]>::first_chunk) {
                Some(bytes) => f32::from_le_bytes(*bytes),
                None => 0.0,
            },
            Quant::F16 => f16((c * LANES + r) * 2),
            Quant::Q8 => f32::from(byte(c / 4 * 64 + 4 * r + c % 4) as i8) * scale(),
            Quant::Q4 => {
                let pair = byte(c / 8 * 64 + 4 * r + c % 4);
                let nibble = if c % 8 < 4 { pair & 15 } else { pair >> 4 };
                (f32::from(nibble) - 8.0) * scale()
            }
            Quant::Q3 => f32::from(three_bits(byte, r, c)) * scale(),
            Quant::Q5 => f32::from(five_bits(byte, r, c)) * scale(),
        }
    }

    /// Element `[row, col]` of a matrix of integers as an integer and its scale, the bits of an f16, without the row's exponent.
    ///
    /// 0 where `col` is out of range, `panel` too short or the type another.
    #[must_use]
    pub fn quantized(&self, panel: &[u8], row: u32, col: u32) -> (i8, u16) {
        if col >= self.cols {
            return (0, 0);
        }
        let (r, c) = (row as usize % LANES, col as usize);
        let scale = panel.get((c / GROUP * LANES + r) * 2..).and_then(<[u8]>::first_chunk).copied();
        let byte = |at: usize| panel.get(self.scale_bytes() as usize + at).copied().unwrap_or(0);
        let integer = match self.quant {
            Quant::F32 | Quant::F16 => 0,
            Quant::Q8 => byte(c / 4 * 64 + 4 * r + c % 4) as i8,
            Quant::Q4 => {
                let pair = byte(c / 8 * 64 + 4 * r + c % 4);
                (if c % 8 < 4 { pair & 15 } else { pair >> 4 }) as i8 - 8
            }
            Quant::Q3 => three_bits(byte, r, c),
            Quant::Q5 => five_bits(byte, r, c),
        };
        (integer, u16::from_le_bytes(scale.unwrap_or_default()))
    }
}

/// 2^`exponent`, a normal f32.
pub(crate) const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

/// Row `r`, column `c` of a panel of q3: two lines with the lower two bits of 16 columns each, and one with the third bit.
fn three_bits(byte: impl Fn(usize) -> u8, r: usize, c: usize) -> i8 {
    let (group, tile, within) = (c / GROUP * 192, c % GROUP / 4, 4 * r + c % 4);
    let low = byte(group + tile / 4 * 64 + within) >> (2 * (tile % 4)) & 3;
    let high = byte(group + 128 + within) >> tile & 1;
    (low | high << 2) as i8 - 4
}

/// The same of q5: four pairs of tiles as in q4, and a line with the fifth bit.
fn five_bits(byte: impl Fn(usize) -> u8, r: usize, c: usize) -> i8 {
    let (group, tile, within) = (c / GROUP * 320, c % GROUP / 4, 4 * r + c % 4);
    let low = byte(group + tile / 2 * 64 + within) >> (4 * (tile % 2)) & 15;
    let high = byte(group + 256 + within) >> tile & 1;
    (low | high << 4) as i8 - 16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No shape is empty or has a size that wraps: kernels divide by a panel's bytes.
    #[test]
    fn shapes_are_within_the_limits() {
        let (rows, cols) = (MatrixShape::MAX_ROWS, MatrixShape::MAX_COLS);
        for quant in Quant::ALL {
            for (r, c) in
                [(0, 32), (16, 0), (0, 0), (rows + 1, 1), (1, cols + 1), (u32::MAX, u32::MAX), (16, 1 << 28)]
            {
                let found = MatrixShape::new(r, c, quant, true);
                let (field, value) = if r == 0 || r > rows { ("rows", r) } else { ("columns", c) };
                let max = if field == "rows" { rows } else { cols };
                assert_eq!(found, Err(FormatError::OutOfRange(Limit { field, value, min: 1, max })));
            }
            for (r, c) in [(1, 1), (rows, cols)] {
                let shape = MatrixShape::new(r, c, quant, true).unwrap();
                let bits = match quant {
                    Quant::F32 => 32,
                    Quant::F16 => 16,
                    Quant::Q8 => 8,
                    Quant::Q5 => 5,
                    Quant::Q4 => 4,
                    Quant::Q3 => 3,
                };
                let weights = u64::from(shape.cols()) * 16 * bits / 8;
                let bytes = weights + u64::from(shape.scale_bytes()) + 64;
                assert_eq!(u64::from(shape.panel_bytes()), bytes);
                assert_eq!(u64::from(shape.panels()), u64::from(r).div_ceil(16));
            }
        }
    }
}
