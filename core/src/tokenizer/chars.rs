//! BPE over characters, as SentencePiece has it: a space is the character `▁`, words begin with it, and a character
//! without a token is spelt in bytes or unknown.

use super::split::Cut;

/// The character that stands for a space, `▁` (U+2581).
pub const MARK: &str = "\u{2581}";

/// Whether a `▁` is put before a text that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Prepend {
    /// Never.
    Never = 0,
    /// Always, before each piece between added tokens of the raw text: the normaliser `Prepend`.
    Always = 1,
    /// Before each piece between added tokens that does not begin with one: `Metaspace`.
    Missing = 2,
    /// As [`Self::Missing`], at the start of the whole text only.
    First = 3,
}

/// Where a text may be cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Words {
    /// Nowhere: all between added tokens is one word.
    Whole = 0,
    /// Before each `▁`: words are merged apart from each other.
    EachMark = 1,
    /// Before a `▁` that follows another character, where no merge joins the two: the tokens are those of the whole.
    Unjoined = 2,
}

/// What is left out at the start of a decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Strip {
    /// Nothing.
    Nothing = 0,
    /// One space.
    Space = 1,
    /// All spaces of the first token.
    FirstToken = 2,
}

/// How texts and tokens of characters are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chars {
    /// A character without a token becomes its bytes.
    pub byte_fallback: bool,
    /// Unknown characters in a row are one token.
    pub fuse_unknown: bool,
    /// A space becomes `▁`.
    pub spaces: bool,
    /// Added tokens that are matched in the normalised text have a `▁` before them there; and that text has been changed
    /// before they are looked for. Otherwise they are looked for in the text as it is.
    pub normalized_first: bool,
    /// Whether a `▁` comes before a text.
    pub prepend: Prepend,
    /// Where a text may be cut.
    pub words: Words,
    /// What is left out of a decoded text.
    pub strip: Strip,
    /// The token of an unknown character. Without one, it is left out.
    pub unknown: Option<u32>,
}

impl Chars {
    /// The bits that stand for the settings, never 0.
    pub(super) fn bits(&self) -> u32 {
        let flags = [self.byte_fallback, self.fuse_unknown, self.spaces, self.normalized_first];
        let flags = flags.iter().rev().fold(0, |bits, &flag| bits << 1 | u32::from(flag));
        1 | flags << 1 | (self.prepend as u32) << 8 | (self.words as u32) << 12 | (self.strip as u32) << 16
    }

    /// The settings that bits stand for, or `None` where they are not known.
    pub(super) fn parse(bits: u32, unknown: Option<u32>) -> Option<Self> {
        let chars = Self {
            byte_fallback: bits & 2 != 0,
            fuse_unknown: bits & 4 != 0,
            spaces: bits & 8 != 0,
            normalized_first: bits & 16 != 0,
            prepend: match bits >> 8 & 15 {
                0 => Prepend::Never,
                1 => Prepend::Always,
                2 => Prepend::Missing,
                3 => Prepend::First,
                _ => return None,
            },
            words: match bits >> 12 & 15 {
                0 => Words::Whole,
                1 => Words::EachMark,
                2 => Words::Unjoined,
                _ => return None,
            },
            strip: match bits >> 16 & 15 {
                0 => Strip::Nothing,
                1 => Strip::Space,
                2 => Strip::FirstToken,
                _ => return None,
            },
            unknown,
        };
        (chars.bits() == bits).then_some(chars)
    }

    /// Whether a `▁` is put before `text[at..]`.
    pub(super) fn prepends(&self, text: &[u8], at: usize) -> bool {
        let missing = || {
            let rest = text.get(at..).unwrap_or(&[]);
            !(rest.starts_with(MARK.as_bytes()) || self.spaces && rest.starts_with(b" "))
        };
        match self.prepend {
            Prepend::Never => false,
            Prepend::Always => true,
            Prepend::Missing => missing(),
            Prepend::First => at == 0 && missing(),
        }
    }

    /// Cuts one word from `text[at..]`, in which spaces are `▁` already.
    pub(super) fn cut(&self, text: &[u8], at: usize) -> Cut {
        let end = match self.words {
            Words::Whole => None,
            Words::EachMark => find_mark(text, at + 1),
            Words::Unjoined => {
                let mut from = at;
                // Behind the marks that the word begins with.
                while text.get(from..).is_some_and(|rest| rest.starts_with(MARK.as_bytes())) {
                    from += MARK.len();
                }
                find_mark(text, from)
            }
        };
        match end {
            Some(end) => Cut { end, decided: end },
            None => Cut { end: text.len(), decided: text.len() },
        }
    }
}

/// The first `▁` from `from` on.
fn find_mark(text: &[u8], from: usize) -> Option<usize> {
    let mark = MARK.as_bytes();
    let mut at = from;
    loop {
        at += text.get(at..)?.iter().position(|&byte| byte == mark[0])?;
        if text.get(at..)?.starts_with(mark) {
            return Some(at);
        }
        at += 1;
    }
}

/// Copies `text` with spaces as `▁`, and gives the length: a prefix of it, as much as there is room for.
///
/// The second number is how much of the text was taken.
pub(super) fn copy_with_marks(text: &[u8], spaces: bool, to: &mut [u8]) -> (usize, usize) {
    let (mut len, mut taken) = (0, 0);
    for &byte in text {
        let one = [byte];
        let bytes = if spaces && byte == b' ' { MARK.as_bytes() } else { &one };
        let Some(room) = to.get_mut(len..len + bytes.len()) else { break };
        room.copy_from_slice(bytes);
        len += bytes.len();
        taken += 1;
    }
    (len, taken)
}
