//! What kernels compute with: mantissas, exponents, activations, states.

use crate::kernels::share::{Share, Split, split};
use crate::numbers::fixed::{HIGH, LOW, Row};
use crate::numbers::{GROUP, LANES};

/// Bits of a wide mantissa, without its sign.
pub(super) const WIDE: i32 = 30;
/// Bits by which a state exceeds what meets C.
pub(super) const FINE: i32 = 14;

/// 32 activations of a token, see [`place`].
pub(crate) type Activations = [i16; GROUP];

/// Where column `c` of a group lies: of four, the even ones first, as the bytes of a word come apart on a Cortex-M (`sxtb16`)
/// and by shifts on every vector unit.
#[inline(always)]
pub(crate) const fn place(c: usize) -> usize {
    c & !3 | (c & 1) << 1 | (c & 2) >> 1
}

/// What a group of 32 activations is beside its mantissas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Group {
    /// Its exponent; once the vector is complete, how far it lies below the vector's: 0 to 31.
    pub exponent: i32,
    /// The sum of its mantissas.
    pub sum: i32,
}

/// `1 / sqrt(mean(x^2) + eps)` of one token, and how large its elements are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Inverse {
    /// Mantissa, at most 2^30.
    pub m: i32,
    /// Exponent.
    pub e: i32,
    /// Every element is within `2^top`.
    pub top: i32,
}

/// What a matrix is multiplied with: a chunk of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Tokens in the chunk, `T`.
    pub tokens: usize,
    /// Mantissas from -16384 to 16383, `[cols/32][T][32]`, each four in the order 0, 2, 1, 3.
    pub q: &'a [i16],
    /// `[cols/32][T]`, how far each group's exponent lies below the vector's.
    pub groups: &'a [Group],
    /// The vectors' exponents, `[T]`.
    pub exponents: &'a [i32],
}

/// The exponents of a chunk `[d/16][T][16]`.
#[derive(Clone, Copy, Debug)]
pub enum Exponents<'a> {
    /// One a token, `[T]`.
    Token(&'a [i32]),
    /// One a panel and token, `[d/16][T]`.
    Panel(&'a [i32]),
}

/// How one channel's states are stored: values are mantissas times `2^unit`, none beyond `2^top`.
///
/// Both exponents are kept above the lowest there is, so that all zeros means a channel whose states are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    unit: u16,
    top: u16,
}

/// The largest exponent of a kept state's mantissas: that of a state within its limits, with what an i16 does not keep.
const MOST_UNIT: i32 = HIGH + FINE;

impl Range {
    /// That of a channel whose states are 0.
    pub const ZERO: Self = Self { unit: 0, top: 0 };

    /// Of states of `bits` bits in a unit of `2^unit`.
    ///
    /// # Correctness
    /// The caller ensures that `unit` is from [`LOW`] to [`MOST_UNIT`]. Only debug builds check it; in others the exponents
    /// that are kept wrap.
    #[inline(always)]
    pub(super) fn new(unit: i32, bits: i32) -> Self {
        debug_assert!((LOW..=MOST_UNIT).contains(&unit));
        let unit = (unit - LOW) as u16;
        Self { unit, top: unit + bits as u16 }
    }
    /// Both exponents as one number, to be saved.
    pub(crate) const fn to_bits(self) -> u32 {
        self.unit as u32 | (self.top as u32) << 16
    }
    /// From [`Range::to_bits`]. What was saved elsewhere must be checked as any state is.
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self { unit: bits as u16, top: (bits >> 16) as u16 }
    }
    /// Exponent of the mantissas.
    #[inline(always)]
    #[must_use]
    pub const fn unit(self) -> i32 {
        self.unit as i32 + LOW
    }
    /// Exponent of a bound on the values.
    #[inline(always)]
    #[must_use]
    pub const fn top(self) -> i32 {
        self.top as i32 + LOW
    }
}

/// The recurrent state of some channels, `[channels/16][d_state][16]`.
#[derive(Debug)]
pub enum SsmState<'a> {
    /// 15 bits and sign.
    I16(&'a mut [i16]),
    /// 29 bits and sign.
    I32(&'a mut [i32]),
}

impl SsmState<'_> {
    /// Reborrows for a shorter lifetime.
    pub(crate) const fn reborrow(&mut self) -> SsmState<'_> {
        match self {
            Self::I16(state) => SsmState::I16(state),
            Self::I32(state) => SsmState::I32(state),
        }
    }

    /// No channels, of the same kind.
    pub(crate) const fn none(&self) -> SsmState<'static> {
        match self {
            Self::I16(_) => SsmState::I16(&mut []),
            Self::I32(_) => SsmState::I32(&mut []),
        }
    }
}

/// What all channels of a scan share.
#[derive(Clone, Debug)]
pub struct ScanInput<'a> {
    /// Tokens in the chunk, `T`.
    pub tokens: usize,
    /// The tokens of the sequence whose state is given.
    pub range: core::ops::Range<usize>,
    /// States of a channel, `N`.
    pub d_state: usize,
    /// Mantissas of B within +-16383, `[N/16][T][16]`, the last panel padded.
    pub b: &'a [i16],
    /// Of C.
    pub c: &'a [i16],
    /// Exponents of B, `[T]`.
    pub b_exponents: &'a [i32],
    /// Of C.
    pub c_exponents: &'a [i32],
}

/// Mantissas of some panels of a chunk, `[panels][T][16]` within +-2^30, and their exponents, `[panels][T]`.
#[derive(Clone, Copy, Debug)]
pub struct Wide<'a> {
    /// Mantissas.
    pub m: &'a [i32],
    /// Exponents.
    pub e: &'a [i32],
}

/// The same, to be written.
#[derive(Debug)]
pub struct WideMut<'a> {
    /// Mantissas.
    pub m: &'a mut [i32],
    /// Exponents.
    pub e: &'a mut [i32],
}

impl WideMut<'_> {
    /// To be read.
    pub(crate) const fn get(&self) -> Wide<'_> {
        Wide { m: self.m, e: self.e }
    }

    /// Reborrows for a shorter lifetime.
    pub(crate) const fn get_mut(&mut self) -> WideMut<'_> {
        WideMut { m: self.m, e: self.e }
    }
}

/// Vectors that threads share.
pub struct SharedWide<'a> {
    m: Split<'a, i32>,
    e: Split<'a, i32>,
}

impl<'a> SharedWide<'a> {
    /// Shares vectors whose items have `rows` rows of sixteen elements.
    pub(crate) fn new(m: &'a mut [i32], e: &'a mut [i32], rows: usize) -> Self {
        Self { m: split(m, rows * LANES), e: split(e, rows) }
    }
}

impl<'a> Share for SharedWide<'a> {
    type Part = WideMut<'a>;

    unsafe fn part(&self, items: &core::ops::Range<usize>) -> WideMut<'a> {
        // SAFETY: handed on to the caller.
        unsafe { WideMut { m: self.m.part(items), e: self.e.part(items) } }
    }
}

impl Exponents<'_> {
    /// Of a panel and token.
    #[inline(always)]
    pub(super) fn of(&self, panel: usize, tokens: usize, token: usize) -> i32 {
        let place = match self {
            Self::Token(e) => e.get(token),
            Self::Panel(e) => e.get(panel * tokens + token),
        };
        place.copied().unwrap_or(LOW)
    }
}

/// One tap of the convolution: the inputs of sixteen channels, and their exponent.
#[derive(Clone, Copy)]
pub(crate) struct Tap<'a> {
    pub x: &'a Row,
    pub e: i32,
}

/// `x` as rows of sixteen; a rest shorter than that is left out.
#[inline(always)]
pub(super) fn rows(x: &[i32]) -> &[Row] {
    x.as_chunks().0
}

#[inline(always)]
pub(super) fn rows_mut(x: &mut [i32]) -> &mut [Row] {
    x.as_chunks_mut().0
}

/// Sixteen little-endian words, such as f32 bits, from bytes of a model file.
#[inline(always)]
pub(super) fn words(bytes: &[u8; 64]) -> [u32; 16] {
    // Loops, here and elsewhere: what is made by closures is not always inlined, and then lacks the features.
    let (bytes, _) = bytes.as_chunks::<4>();
    let mut words = [0; 16];
    for i in 0..16 {
        words[i] = u32::from_le_bytes(bytes[i]);
    }
    words
}
