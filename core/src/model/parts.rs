//! The state of a layer as a list of named parts: what is saved of it need not know what mixes its tokens.

use crate::kernels::fixed::Range;

/// The type of a part's elements. The numbers are those of the snapshot's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Element {
    /// f32.
    F32 = 1,
    /// f16.
    F16 = 2,
    /// Mantissas of 15 bits and sign.
    I16 = 3,
    /// Mantissas of 29 or 30 bits and sign.
    I32 = 4,
    /// Exponents.
    U16 = 5,
    /// Two exponents of 16 bits.
    Range = 6,
}

impl Element {
    /// Its name, as options and errors have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::U16 => "u16",
            Self::Range => "range",
        }
    }

    /// Bytes of one.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::Range => 4,
        }
    }

    /// The element of a number of the format.
    pub(super) const fn from_id(id: u8) -> Option<Self> {
        Some(match id {
            1 => Self::F32,
            2 => Self::F16,
            3 => Self::I16,
            4 => Self::I32,
            5 => Self::U16,
            6 => Self::Range,
            _ => return None,
        })
    }
}

/// The elements of a part, borrowed.
#[derive(Debug)]
pub enum Values<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// The bits of f16.
    F16(&'a mut [u16]),
    /// Mantissas.
    I16(&'a mut [i16]),
    /// Mantissas.
    I32(&'a mut [i32]),
    /// Exponents.
    U16(&'a mut [u16]),
    /// Two exponents each.
    Ranges(&'a mut [Range]),
}

impl Values<'_> {
    /// How many they are.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) | Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::Ranges(v) => v.len(),
        }
    }

    /// Their type.
    pub(super) const fn element(&self) -> Element {
        match self {
            Self::F32(_) => Element::F32,
            Self::F16(_) => Element::F16,
            Self::I16(_) => Element::I16,
            Self::I32(_) => Element::I32,
            Self::U16(_) => Element::U16,
            Self::Ranges(_) => Element::Range,
        }
    }
}

/// The most dimensions that a part has.
pub const MAX_RANK: usize = 4;

/// A part of a layer's state.
#[derive(Debug)]
pub struct Part<'a> {
    /// Its name: at most 12 bytes of ASCII.
    pub name: &'static str,
    /// Whether it is the recurrent state, which may be stored in half its size.
    pub recurrent: bool,
    /// Its dimensions: those that are not used are 0.
    pub shape: [u32; MAX_RANK],
    /// Its elements.
    pub values: Values<'a>,
}

/// A logit, as it is stored.
pub trait Stored: Copy {
    /// Its type.
    const ELEMENT: Element;
    /// Its bytes.
    fn to_bytes(self) -> [u8; 4];
    /// From its bytes; `None` for a value that no logit has.
    fn from_bytes(bytes: [u8; 4]) -> Option<Self>;
}

impl Stored for f32 {
    const ELEMENT: Element = Element::F32;
    fn to_bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
    fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        Some(Self::from_le_bytes(bytes)).filter(|x| x.is_finite())
    }
}

impl Stored for i32 {
    const ELEMENT: Element = Element::I32;
    fn to_bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
    fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        Some(Self::from_le_bytes(bytes))
    }
}
