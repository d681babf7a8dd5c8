//! The checked view over a compiled table.

use core::ops::Range;

use super::TokenizerError;
use super::added::AddedSet;
use super::chars::{MARK, Prepend};
use super::pattern::Patterns;
use super::table::{
    Header, MAX_PROBES, MAX_TOKEN_LEN, PreTokenizer, TOKEN_ADDED, TOKEN_BYTE, TOKEN_NEVER, TOKEN_OFFSET,
    TOKEN_SPECIAL, TOKEN_WORD, pair_slot, word_slot,
};

/// An array of indices. Every read is total: beyond the end it gives 0.
#[derive(Clone, Copy, Debug)]
enum Indices<'a> {
    Narrow(&'a [[u8; 2]]),
    Wide(&'a [[u8; 4]]),
}

impl<'a> Indices<'a> {
    fn new(bytes: &'a [u8], wide: bool) -> Self {
        if wide { Self::Wide(bytes.as_chunks().0) } else { Self::Narrow(bytes.as_chunks().0) }
    }

    fn get(&self, i: u32) -> u32 {
        match self {
            Self::Narrow(all) => all.get(i as usize).map_or(0, |&v| u16::from_le_bytes(v).into()),
            Self::Wide(all) => all.get(i as usize).map_or(0, |&v| u32::from_le_bytes(v)),
        }
    }
}

/// A tokenizer: a checked view over the bytes of a compiled table.
#[derive(Clone, Debug)]
pub struct Tokenizer<'a> {
    pub(super) header: Header,
    byte_tokens: Indices<'a>,
    tokens: &'a [[u8; 4]],
    merges: Indices<'a>,
    merge_slots: Indices<'a>,
    word_slots: Indices<'a>,
    pub(super) added_raw: AddedSet<'a>,
    pub(super) added_normalized: AddedSet<'a>,
    pub(super) prefix: &'a [[u8; 4]],
    pub(super) suffix: &'a [[u8; 4]],
    text: &'a [u8],
    pub(super) patterns: Option<Patterns<'a>>,
    missing: Range<u32>,
}

impl<'a> Tokenizer<'a> {
    /// Checks a table and reads it in place. `bytes` may be aligned in any way, and may be longer than the table.
    ///
    /// Takes time linear in the table, no memory, and a few hundred bytes of stack.
    ///
    /// # Errors
    /// Says what is wrong with the table. The checks make every later operation total: no bytes that pass them can make
    /// one panic or run without end. Whether the hash tables find what they should is the packer's promise.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TokenizerError> {
        let mut tokenizer = Self::reopen(bytes, 0..0)?;
        tokenizer.check()?;
        let missing = |id: &u32| tokenizer.is_never(*id);
        let mut ids = 0..tokenizer.vocab_size();
        if let Some(first) = ids.clone().find(missing) {
            tokenizer.missing = first..ids.rfind(missing).map_or(first, |last| last + 1);
        }
        Ok(tokenizer)
    }

    /// As [`Tokenizer::parse`], without checking the table's contents and looking for [`Tokenizer::missing`] ids: for bytes for
    /// which that succeeded before.
    ///
    /// # Errors
    /// If the bytes don't have the form of a table.
    pub fn reopen(bytes: &'a [u8], missing: Range<u32>) -> Result<Self, TokenizerError> {
        let header = Header::parse(bytes)?;
        let given = bytes.len() as u64;
        let layout = header.layout().ok_or(TokenizerError::Truncated { needed: u64::MAX, given })?;
        let truncated = TokenizerError::Truncated { needed: layout.len() as u64, given };
        let part = |range: Range<usize>| bytes.get(range).ok_or(truncated);
        let before = match header.chars {
            Some(chars) if chars.normalized_first && chars.prepend == Prepend::Always => MARK,
            _ => "",
        };
        let words = |range: Range<usize>| part(range).map(|part| part.as_chunks::<4>().0);
        let indices = |range: Range<usize>| part(range).map(|part| Indices::new(part, header.wide));
        Ok(Self {
            byte_tokens: indices(layout.byte_tokens)?,
            tokens: words(layout.tokens)?,
            merges: indices(layout.merges)?,
            merge_slots: indices(layout.merge_slots)?,
            word_slots: indices(layout.word_slots)?,
            added_raw: AddedSet::new(part(layout.added_raw)?, header.added_rules, "").ok_or(truncated)?,
            added_normalized: AddedSet::new(part(layout.added_normalized)?, header.added_rules, before)
                .ok_or(truncated)?,
            prefix: words(layout.prefix)?,
            suffix: words(layout.suffix)?,
            text: part(layout.text)?,
            patterns: Patterns::new(part(layout.patterns)?),
            missing,
            header,
        })
    }

    /// From the first id that is never drawn to behind the last, of those below [`Tokenizer::vocab_size`].
    #[must_use]
    pub fn missing(&self) -> Range<u32> {
        self.missing.clone()
    }

    fn check(&self) -> Result<(), TokenizerError> {
        let damaged = |what, index| TokenizerError::Damaged { what, index };
        let vocab_size = self.header.vocab_size;
        let mut start = 0;
        for (index, &entry) in self.tokens.iter().enumerate() {
            let end = (u32::from_le_bytes(entry) & TOKEN_OFFSET) as usize;
            if end < start || end - start > MAX_TOKEN_LEN || end > self.text.len() {
                return Err(damaged("token", index as u32));
            }
            start = end;
        }
        for byte in 0..=255u8 {
            let token = self.byte_tokens.get(byte.into());
            if token != 0 && self.bytes_of(token - 1) != [byte] {
                return Err(damaged("token of byte", byte.into()));
            }
        }
        // The bytes of what a merge makes are those of its parts, so that a symbol's length in a word is its token's.
        for index in 0..self.header.merges {
            let [left, right, merged] = [0, 1, 2].map(|i| self.merges.get(3 * index + i));
            let (l, r, m) = (self.bytes_of(left), self.bytes_of(right), self.bytes_of(merged));
            if l.is_empty() || r.is_empty() || m.strip_prefix(l) != Some(r) {
                return Err(damaged("merge", index));
            }
        }
        for slot in 0..self.header.merge_slots {
            if self.merge_slots.get(slot) > self.header.merges {
                return Err(damaged("merge slot", slot));
            }
        }
        for slot in 0..self.header.word_slots {
            if self.word_slots.get(slot) > vocab_size {
                return Err(damaged("word slot", slot));
            }
        }
        if let Some(patterns) = self.patterns {
            if !patterns.check() {
                return Err(damaged("pattern", 0));
            }
        } else if self.header.patterns_len > 0 || self.header.pre_tokenizer == PreTokenizer::Patterns {
            return Err(damaged("pattern", 0));
        }
        for set in [&self.added_raw, &self.added_normalized] {
            let mut before: &[u8] = &[];
            for (index, id) in set.ids().enumerate() {
                // Sorted, and none empty: an empty token would match without end.
                let bytes = if id < vocab_size { self.bytes_of(id) } else { &[] };
                if bytes <= before {
                    return Err(damaged("added token", index as u32));
                }
                before = bytes;
            }
        }
        if let Some(id) = self.header.chars.and_then(|chars| chars.unknown)
            && id >= vocab_size
        {
            return Err(damaged("unknown token", id));
        }
        for (index, &id) in self.prefix.iter().chain(self.suffix).enumerate() {
            if u32::from_le_bytes(id) >= vocab_size {
                return Err(damaged("template token", index as u32));
            }
        }
        Ok(())
    }

    /// Ids of tokens are below this. Ids between may have no token. A model's padded vocabulary may be larger.
    #[must_use]
    pub const fn vocab_size(&self) -> u32 {
        self.header.vocab_size
    }

    /// What the table holds.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The bytes of a token, which need not be whole characters, or `None` where no token has this id.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&'a [u8]> {
        let bytes = self.bytes_of(id);
        if bytes.is_empty() { None } else { Some(bytes) }
    }

    /// Sets the logits of ids without a token, or with one that is [never drawn](TOKEN_NEVER), to negative infinity. `logits` has one element
    /// for each id of the model, whose vocabulary may be padded.
    pub fn mask(&self, logits: &mut [f32]) {
        if let Some(padding) = logits.get_mut(self.vocab_size() as usize..) {
            padding.fill(f32::NEG_INFINITY);
        }
        for id in self.missing.clone().filter(|id| self.is_never(*id)) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Whether a sampler must not draw an id.
    fn is_never(&self, id: u32) -> bool {
        self.bytes_of(id).is_empty() || self.entry(id) & TOKEN_NEVER == TOKEN_NEVER
    }

    /// The token with these bytes: an added one, or else one of the vocabulary. Only an exact match counts, and what an
    /// encoder would make of the bytes does not matter.
    #[must_use]
    pub fn id_of(&self, bytes: &[u8]) -> Option<u32> {
        self.added_raw
            .exact(self, bytes)
            .or_else(|| self.added_normalized.exact(self, bytes))
            .or_else(|| self.find_word(bytes))
    }

    /// Whether a token is special: no text of its own, but a mark such as the end of a text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.entry(id) & TOKEN_SPECIAL != 0
    }

    /// Whether a token stands for one byte of a character that has no token.
    #[must_use]
    pub fn is_byte(&self, id: u32) -> bool {
        self.header.chars.is_some() && self.entry(id) & TOKEN_NEVER == TOKEN_BYTE
    }

    /// Whether a token was added to the vocabulary, special or not.
    #[must_use]
    pub fn is_added(&self, id: u32) -> bool {
        self.entry(id) & TOKEN_ADDED != 0
    }

    /// The ids of the special tokens, in ascending order.
    pub fn special_tokens(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.vocab_size()).filter(|&id| self.is_special(id))
    }

    /// The entry of a token, 0 where there is none.
    fn entry(&self, id: u32) -> u32 {
        if id < self.header.vocab_size {
            self.tokens.get(id as usize).map_or(0, |&entry| u32::from_le_bytes(entry))
        } else {
            0
        }
    }

    /// The bytes of a token, empty where there is none.
    pub(super) fn bytes_of(&self, id: u32) -> &'a [u8] {
        let id = id as usize;
        let Some(&[start, end]) = self.tokens.get(id..).and_then(|rest| rest.first_chunk::<2>()) else {
            return &[];
        };
        let [start, end] = [start, end].map(|entry| (u32::from_le_bytes(entry) & TOKEN_OFFSET) as usize);
        self.text.get(start..end).unwrap_or(&[])
    }

    /// The token of one byte, if it has one.
    pub(super) fn byte_token(&self, byte: u8) -> Option<u32> {
        self.byte_tokens.get(byte.into()).checked_sub(1)
    }

    /// The merge of a pair of tokens: its rank.
    #[inline]
    pub(super) fn find_merge(&self, left: u32, right: u32) -> Option<u32> {
        let slots = self.header.merge_slots;
        let mut slot = pair_slot(left, right, slots);
        for _ in 0..=MAX_PROBES {
            let merge = self.merge_slots.get(slot).checked_sub(1)?;
            if self.merges.get(3 * merge) == left && self.merges.get(3 * merge + 1) == right {
                return Some(merge);
            }
            slot = if slot + 1 == slots { 0 } else { slot + 1 };
        }
        None
    }

    /// What a merge makes.
    pub(super) fn merged(&self, merge: u32) -> u32 {
        self.merges.get(3 * merge + 2)
    }

    /// The token of the vocabulary with these bytes.
    pub(super) fn find_word(&self, word: &[u8]) -> Option<u32> {
        let slots = self.header.word_slots;
        let mut slot = word_slot(word, slots);
        for _ in 0..=MAX_PROBES {
            let id = self.word_slots.get(slot).checked_sub(1)?;
            if self.bytes_of(id) == word {
                return Some(id);
            }
            slot = if slot + 1 == slots { 0 } else { slot + 1 };
        }
        None
    }

    /// The token that a whole word is encoded as, where that is known without merging.
    #[inline]
    pub(super) fn whole_word(&self, word: &[u8]) -> Option<u32> {
        self.find_word(word).filter(|&id| self.entry(id) & TOKEN_WORD != 0)
    }
}
