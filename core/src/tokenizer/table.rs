//! The layout of the compiled table, used by reader and packer alike.
//!
//! All numbers are little-endian. The header is followed by the arrays of [`Layout`], without gaps, in its order.
//! An *index* is a `u16`, or a `u32` in a wide table; where an index may be absent it is stored plus one, and 0 is none.

use core::ops::Range;

use super::TokenizerError;
use super::chars::Chars;

/// The first bytes of every table.
pub const MAGIC: [u8; 4] = *b"eBPE";
/// The latest version that this code reads and writes. A table that does not need it has version 1, which older releases
/// read too.
pub const VERSION: u16 = 2;
/// The size of the header in bytes.
pub const HEADER_LEN: usize = 64;
/// No key of a hash table lies further than this from its home slot: the bound of every search.
pub const MAX_PROBES: u32 = 64;
/// The longest token in bytes: a length fits 16 bits.
pub const MAX_TOKEN_LEN: usize = 0xffff;
/// The largest wide table's count of tokens or merges. Narrow tables have at most 65,535.
pub const MAX_COUNT: u32 = 1 << 24;

/// Set in a token's entry: as a word of its own, it is encoded as this token, without any merging.
pub const TOKEN_WORD: u32 = 1 << 28;
/// Set in a token's entry: a special token.
pub const TOKEN_SPECIAL: u32 = 1 << 29;
/// Set in a token's entry: an added token.
pub const TOKEN_ADDED: u32 = 1 << 30;
/// Set in a token's entry: it stands for its one byte, whatever its name, and is never a word. Version 2.
pub const TOKEN_BYTE: u32 = 1 << 31;
/// Both of these, which no token of a tokenizer has: it is known in a text, and never drawn. The model has no finite logit for it.
pub const TOKEN_NEVER: u32 = TOKEN_SPECIAL | TOKEN_BYTE;
/// The bits of a token's entry that hold the offset of its bytes.
pub const TOKEN_OFFSET: u32 = TOKEN_WORD - 1;

/// Set in the id of an added token: white space before it belongs to it. Version 2.
pub const ADDED_LSTRIP: u32 = 1 << 29;
/// Set in the id of an added token: white space behind it belongs to it. Version 2.
pub const ADDED_RSTRIP: u32 = 1 << 30;
/// Set in the id of an added token: it is not matched beside a character of a word (`\w`). Version 2.
pub const ADDED_SINGLE_WORD: u32 = 1 << 31;
/// The bits of an added token's entry that hold its id.
pub const ADDED_ID: u32 = ADDED_LSTRIP - 1;

const FLAG_NFC: u16 = 1;
const FLAG_WIDE: u16 = 2;
const FLAG_ADDED_RULES: u16 = 4;

/// How text is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PreTokenizer {
    /// `ByteLevel` with its regular expression: GPT-2, GPT-NeoX.
    Gpt2,
    /// `Punctuation`, `ByteLevel`, `Digits`, and three digits at a time: Falcon.
    Falcon,
    /// The stages of [`Layout::patterns`]. Version 2.
    Patterns,
}

/// The header: what the table holds, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How text is cut into words.
    pub pre_tokenizer: PreTokenizer,
    /// Text is normalised to NFC.
    pub nfc: bool,
    /// Indices have 32 bits, not 16.
    pub wide: bool,
    /// Added tokens have the `ADDED_` flags. Version 2.
    pub added_rules: bool,
    /// Ids of tokens are below this.
    pub vocab_size: u32,
    /// Merges, in the order of their rank.
    pub merges: u32,
    /// Slots of the hash table from pairs to merges.
    pub merge_slots: u32,
    /// Slots of the hash table from words to tokens.
    pub word_slots: u32,
    /// Added tokens that are matched in the raw text.
    pub added_raw: u32,
    /// Added tokens that are matched in the normalised text.
    pub added_normalized: u32,
    /// Tokens before a text.
    pub prefix: u32,
    /// Tokens after a text.
    pub suffix: u32,
    /// Bytes of all tokens together.
    pub text_len: u32,
    /// Bytes of the automata. Version 2.
    pub patterns_len: u32,
    /// Words consist of characters, not of bytes. Version 2.
    pub chars: Option<Chars>,
}

/// Where each array lies, in bytes from the start of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `[256]` index plus one: the token of each byte. Bytes without one are left out of a text.
    pub byte_tokens: Range<usize>,
    /// `[vocab_size + 1]` u32: offset in the text, and the `TOKEN_` bits. The last one is the end of the text.
    pub tokens: Range<usize>,
    /// `[merges][3]` index: left, right, and what they become.
    pub merges: Range<usize>,
    /// `[merge_slots]` index plus one: a merge.
    pub merge_slots: Range<usize>,
    /// `[word_slots]` index plus one: a token.
    pub word_slots: Range<usize>,
    /// `[32] [32]` bytes: bit sets of the first and of the second bytes of the raw added tokens, then `[added_raw]`
    /// u32: their ids, sorted by their bytes.
    pub added_raw: Range<usize>,
    /// The same for the normalised added tokens.
    pub added_normalized: Range<usize>,
    /// `[prefix]` u32: ids.
    pub prefix: Range<usize>,
    /// `[suffix]` u32: ids.
    pub suffix: Range<usize>,
    /// `[text_len]` bytes: the tokens' bytes, one after the other.
    pub text: Range<usize>,
    /// `[patterns_len]` bytes: the automata of the pre-tokenizer and of added tokens, see [`super::pattern`].
    pub patterns: Range<usize>,
}

/// Marks a token of a table as one that is never drawn. An id without a token needs no mark.
///
/// # Errors
/// If the bytes don't have the form of a table.
pub fn never_draw(table: &mut [u8], id: u32) -> Result<(), TokenizerError> {
    let header = Header::parse(table)?;
    let given = table.len() as u64;
    let layout = header.layout().ok_or(TokenizerError::Truncated { needed: u64::MAX, given })?;
    if id < header.vocab_size {
        let needed = layout.len() as u64;
        let tokens = table.get_mut(layout.tokens).ok_or(TokenizerError::Truncated { needed, given })?;
        if let Some(entry) = tokens.as_chunks_mut().0.get_mut(id as usize) {
            *entry = (u32::from_le_bytes(*entry) | TOKEN_NEVER).to_le_bytes();
        }
    }
    Ok(())
}

impl Header {
    /// Writes the header.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let flags = [(self.nfc, FLAG_NFC), (self.wide, FLAG_WIDE), (self.added_rules, FLAG_ADDED_RULES)];
        let flags =
            flags.iter().map(|&(set, flag)| if set { flag } else { 0 }).fold(0, |all, flag| all | flag);
        let pre: u32 = match self.pre_tokenizer {
            PreTokenizer::Gpt2 => 1,
            PreTokenizer::Falcon => 2,
            PreTokenizer::Patterns => 3,
        };
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&self.version().to_le_bytes());
        out[6..8].copy_from_slice(&flags.to_le_bytes());
        let fields = [
            pre,
            self.vocab_size,
            self.merges,
            self.merge_slots,
            self.word_slots,
            self.added_raw,
            self.added_normalized,
            self.prefix,
            self.suffix,
            self.text_len,
            self.patterns_len,
            self.chars.map_or(0, |chars| chars.bits()),
            self.chars.and_then(|chars| chars.unknown).map_or(0, |id| id.saturating_add(1)),
        ];
        for (at, field) in out[8..].chunks_exact_mut(4).zip(fields) {
            at.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    /// The kind of tokenizer, in words.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match (&self.chars, self.pre_tokenizer) {
            (Some(_), _) => "SentencePiece BPE",
            (None, PreTokenizer::Gpt2) => "byte-level BPE, words of GPT-2",
            (None, PreTokenizer::Falcon) => "byte-level BPE, words of Falcon",
            (None, PreTokenizer::Patterns) => "byte-level BPE, words by its own expressions",
        }
    }

    /// The version of a table with this header: the first one that has what it asks for.
    #[must_use]
    pub fn version(&self) -> u16 {
        let second = self.pre_tokenizer == PreTokenizer::Patterns
            || self.added_rules
            || self.patterns_len > 0
            || self.chars.is_some();
        if second { 2 } else { 1 }
    }

    /// Reads the header from the start of a table.
    ///
    /// # Errors
    /// Where the bytes are not a table, or one of another version, or one that asks for what this code does not know.
    pub fn parse(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            let given = bytes.len() as u64;
            return Err(TokenizerError::Truncated { needed: HEADER_LEN as u64, given });
        };
        if header[0..4] != MAGIC {
            return Err(TokenizerError::NotATable);
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if !(1..=VERSION).contains(&version) {
            return Err(TokenizerError::Version { found: version });
        }
        let second = version >= 2;
        let flags = u16::from_le_bytes([header[6], header[7]]);
        let known = FLAG_NFC | FLAG_WIDE | if second { FLAG_ADDED_RULES } else { 0 };
        if flags & !known != 0 {
            return Err(TokenizerError::Unsupported { what: "flags", value: flags.into() });
        }
        let field = |i: usize| {
            let at = 8 + 4 * i;
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let pre_tokenizer = match field(0) {
            1 => PreTokenizer::Gpt2,
            2 => PreTokenizer::Falcon,
            3 if second => PreTokenizer::Patterns,
            value => return Err(TokenizerError::Unsupported { what: "pre-tokenizer", value }),
        };
        let chars = match if second { field(11) } else { 0 } {
            0 => None,
            bits => match Chars::parse(bits, field(12).checked_sub(1)) {
                Some(chars) => Some(chars),
                None => {
                    return Err(TokenizerError::Unsupported { what: "treatment of characters", value: bits });
                }
            },
        };
        let wide = flags & FLAG_WIDE != 0;
        let header = Self {
            pre_tokenizer,
            nfc: flags & FLAG_NFC != 0,
            wide,
            added_rules: flags & FLAG_ADDED_RULES != 0,
            vocab_size: field(1),
            merges: field(2),
            merge_slots: field(3),
            word_slots: field(4),
            added_raw: field(5),
            added_normalized: field(6),
            prefix: field(7),
            suffix: field(8),
            text_len: field(9),
            patterns_len: if second { field(10) } else { 0 },
            chars,
        };
        let most = if wide { MAX_COUNT } else { 0xffff };
        for (what, value) in [("vocabulary size", header.vocab_size), ("merge count", header.merges)] {
            if value > most {
                return Err(TokenizerError::Unsupported { what, value });
            }
        }
        if header.text_len > TOKEN_OFFSET {
            return Err(TokenizerError::Unsupported { what: "text length", value: header.text_len });
        }
        Ok(header)
    }

    /// Where the arrays lie, or `None` where they would not fit the address space.
    #[must_use]
    pub fn layout(&self) -> Option<Layout> {
        let index = if self.wide { 4 } else { 2 };
        let mut at = HEADER_LEN;
        let mut take = |count: u32, size: usize, extra: usize| {
            let start = at;
            at = usize::try_from(count).ok()?.checked_mul(size)?.checked_add(extra)?.checked_add(start)?;
            Some(start..at)
        };
        Some(Layout {
            byte_tokens: take(256, index, 0)?,
            tokens: take(self.vocab_size, 4, 4)?,
            merges: take(self.merges, 3 * index, 0)?,
            merge_slots: take(self.merge_slots, index, 0)?,
            word_slots: take(self.word_slots, index, 0)?,
            added_raw: take(self.added_raw, 4, 64)?,
            added_normalized: take(self.added_normalized, 4, 64)?,
            prefix: take(self.prefix, 4, 0)?,
            suffix: take(self.suffix, 4, 0)?,
            text: take(self.text_len, 1, 0)?,
            patterns: take(self.patterns_len, 1, 0)?,
        })
    }
}

impl Layout {
    /// The size of the whole table in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.patterns.end
    }

    /// A table is never empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }
}

/// The home slot of a pair of tokens among `slots`.
#[must_use]
pub fn pair_slot(left: u32, right: u32, slots: u32) -> u32 {
    let h = left.wrapping_mul(0x9e37_79b1) ^ right.wrapping_mul(0x85eb_ca77).rotate_left(15);
    scale(h, slots)
}

/// The home slot of a word among `slots`.
#[must_use]
pub fn word_slot(word: &[u8], slots: u32) -> u32 {
    let (chunks, rest) = word.as_chunks::<4>();
    let mut h = (word.len() as u32).wrapping_mul(0x9e37_79b1);
    let step = |h: u32, v: u32| (h ^ v).wrapping_mul(0x85eb_ca77).rotate_left(15);
    for &chunk in chunks {
        h = step(h, u32::from_le_bytes(chunk));
    }
    let last = match *rest {
        [a] => u32::from(a),
        [a, b] => u32::from(u16::from_le_bytes([a, b])),
        [a, b, c] => u32::from_le_bytes([a, b, c, 0]),
        _ => 0,
    };
    scale(step(h, last), slots)
}

/// Mixes `h` and scales it to `0..slots`.
fn scale(h: u32, slots: u32) -> u32 {
    let h = (h ^ (h >> 15)).wrapping_mul(0xc2b2_ae3d);
    let h = h ^ (h >> 13);
    ((u64::from(h) * u64::from(slots)) >> 32) as u32
}
