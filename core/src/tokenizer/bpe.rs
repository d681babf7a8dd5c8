//! One word to tokens: the lowest-ranked merge first, and of equals the leftmost, until none applies.
//!
//! Bytes that have no token are left out before anything is merged, as Hugging Face's implementation does: Falcon's
//! vocabulary lacks some control characters.

use super::chars::Chars;
use super::unicode::char_at;
use super::{Tokenizer, TokenizerError};

/// Bytes of scratch for a byte of the longest word: four cells.
pub const SCRATCH_PER_BYTE: usize = 16;
/// Words up to this many bytes are merged on the stack and need no scratch.
pub const SHORT_WORD: usize = 32;

/// No merge applies.
const NONE: u32 = u32::MAX;

impl Tokenizer<'_> {
    /// Bytes of scratch that [`Self::encode_word`] needs for a word of `len` bytes. `usize::MAX` where none would do.
    #[must_use]
    pub const fn word_scratch(len: usize) -> usize {
        if len <= SHORT_WORD {
            0
        } else if len > (NONE / 4) as usize {
            usize::MAX
        } else {
            len.saturating_mul(SCRATCH_PER_BYTE)
        }
    }

    /// Encodes one word, as the pre-tokenizer cut it.
    ///
    /// # Errors
    /// Where `scratch` is smaller than [`Self::word_scratch`]; no token was emitted.
    #[inline]
    pub fn encode_word(
        &self,
        word: &[u8],
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<(), TokenizerError> {
        if let Some(id) = self.whole_word(word) {
            sink(id);
            return Ok(());
        }
        self.merge_word(word, scratch, sink)
    }

    /// Encodes one word by merging alone, without a look at the table of whole words. The packer finds out with this
    /// which tokens their own bytes lead to.
    ///
    /// # Errors
    /// Where `scratch` is smaller than [`Self::word_scratch`]; no token was emitted.
    pub fn merge_word(
        &self,
        word: &[u8],
        scratch: &mut [u8],
        sink: &mut dyn FnMut(u32),
    ) -> Result<(), TokenizerError> {
        if word.len() <= SHORT_WORD {
            self.merge_short(word, sink);
            return Ok(());
        }
        let (needed, given) = (Self::word_scratch(word.len()), scratch.len());
        match Cells::new(scratch, word.len()) {
            Some(cells) if given >= needed => self.merge_long(word, cells, sink),
            _ => return Err(TokenizerError::ScratchTooSmall { needed, given }),
        }
        Ok(())
    }

    /// The tokens that a word is merged from: no more than it has bytes.
    #[inline]
    fn symbols(&self, word: &[u8], mut sink: impl FnMut(u32)) {
        match &self.header.chars {
            None => word.iter().filter_map(|&byte| self.byte_token(byte)).for_each(sink),
            Some(chars) => self.char_symbols(chars, word, &mut sink),
        }
    }

    #[inline(never)]
    fn char_symbols(&self, chars: &Chars, word: &[u8], sink: &mut dyn FnMut(u32)) {
        let (mut at, mut after_unknown) = (0, false);
        while let Some((_, len)) = char_at(word, at) {
            let char = word.get(at..at + len).unwrap_or(&[]);
            at += len;
            let known = self.find_word(char);
            let is_unknown = known.is_none() && !chars.byte_fallback;
            match (known, chars.unknown) {
                (Some(id), _) => sink(id),
                (None, _) if chars.byte_fallback => {
                    char.iter().filter_map(|&byte| self.byte_token(byte)).for_each(&mut *sink);
                }
                (None, Some(id)) if !(chars.fuse_unknown && after_unknown) => sink(id),
                (None, _) => {}
            }
            after_unknown = is_unknown;
        }
    }

    /// The rank of the merge of two symbols.
    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.find_merge(left, right).unwrap_or(NONE)
    }

    /// Looks at all pairs again for each merge: quadratic, and fastest for words as they come.
    fn merge_short(&self, word: &[u8], sink: &mut dyn FnMut(u32)) {
        let (mut ids, mut ranks) = ([0; SHORT_WORD], [NONE; SHORT_WORD]);
        let mut len = 0;
        if let Some(chars) = &self.header.chars {
            self.char_symbols(chars, word, &mut |id| {
                if let Some(to) = ids.get_mut(len) {
                    *to = id;
                    len += 1;
                }
            });
        } else {
            for (to, id) in ids.iter_mut().zip(word.iter().filter_map(|&byte| self.byte_token(byte))) {
                *to = id;
                len += 1;
            }
        }
        for i in 1..len {
            ranks[i - 1] = self.rank(ids[i - 1], ids[i]);
        }
        while len > 1 {
            // ranks[i] is of the pair at i and i + 1.
            let mut best = 0;
            for i in 1..len - 1 {
                if ranks[i] < ranks[best] {
                    best = i;
                }
            }
            if ranks[best] == NONE {
                break;
            }
            ids[best] = self.merged(ranks[best]);
            ids.copy_within(best + 2..len, best + 1);
            ranks.copy_within(best + 1..len, best);
            len -= 1;
            ranks[len - 1] = NONE;
            if best > 0 {
                ranks[best - 1] = self.rank(ids[best - 1], ids[best]);
            }
            if best + 1 < len {
                ranks[best] = self.rank(ids[best], ids[best + 1]);
            }
        }
        for &id in &ids[..len] {
            sink(id);
        }
    }

    /// A tournament over the ranks of all pairs: each merge plays three of its paths again, so n log n in all.
    fn merge_long(&self, word: &[u8], mut cells: Cells<'_>, sink: &mut dyn FnMut(u32)) {
        let mut len = 0;
        self.symbols(word, |id| {
            cells.set_id(len, id);
            cells.set_span(len, 1);
            len += 1;
        });
        if len == 0 {
            return;
        }
        cells.len = len;
        for i in 0..len {
            let rank = if i + 1 < len { self.rank(cells.id(i), cells.id(i + 1)) } else { NONE };
            cells.set_rank(i, rank);
        }
        cells.play_all();
        loop {
            let at = cells.winner(1);
            let rank = cells.rank(at);
            if rank == NONE {
                break;
            }
            let right = at + cells.span_from(at);
            let span = cells.span_from(at) + cells.span_from(right);
            cells.set_id(at, self.merged(rank));
            cells.set_span(at, span);
            cells.replay(right, NONE);
            let next = at + span;
            let rank = if next < len { self.rank(cells.id(at), cells.id(next)) } else { NONE };
            cells.replay(at, rank);
            if at > 0 {
                let left = at - cells.span_to(at);
                let rank = self.rank(cells.id(left), cells.id(at));
                cells.replay(left, rank);
            }
        }
        let mut at = 0;
        while at < len {
            sink(cells.id(at));
            at += cells.span_from(at).max(1);
        }
    }
}

/// Scratch of a long word: four arrays with a cell for each of its bytes that has a token. A symbol lives where its
/// first byte does.
///
/// Reads beyond the end give 0 and writes there do nothing, so that no arithmetic on positions can panic.
struct Cells<'s> {
    /// The token of a symbol.
    ids: &'s mut [[u8; 4]],
    /// The length of the symbol that starts here (low half), and of the one that ends here (high half).
    spans: &'s mut [[u8; 4]],
    /// The rank of the merge of a symbol and the one after it.
    ranks: &'s mut [[u8; 4]],
    /// Node i of the tournament: the winner of nodes 2i and 2i + 1. Nodes from len on are the positions themselves.
    tree: &'s mut [[u8; 4]],
    /// How many cells are in use.
    len: usize,
}

impl<'s> Cells<'s> {
    fn new(scratch: &'s mut [u8], len: usize) -> Option<Self> {
        let cells = scratch.as_chunks_mut::<4>().0;
        let (ids, cells) = cells.split_at_mut_checked(len)?;
        let (spans, cells) = cells.split_at_mut_checked(len)?;
        let (ranks, cells) = cells.split_at_mut_checked(len)?;
        let (tree, _) = cells.split_at_mut_checked(len)?;
        Some(Self { ids, spans, ranks, tree, len })
    }

    fn get(cells: &[[u8; 4]], i: usize) -> u32 {
        cells.get(i).map_or(0, |&cell| u32::from_le_bytes(cell))
    }

    fn set(cells: &mut [[u8; 4]], i: usize, value: u32) {
        if let Some(cell) = cells.get_mut(i) {
            *cell = value.to_le_bytes();
        }
    }

    fn id(&self, i: usize) -> u32 {
        Self::get(self.ids, i)
    }

    fn set_id(&mut self, i: usize, id: u32) {
        Self::set(self.ids, i, id);
    }

    fn rank(&self, i: usize) -> u32 {
        Self::get(self.ranks, i)
    }

    fn set_rank(&mut self, i: usize, rank: u32) {
        Self::set(self.ranks, i, rank);
    }

    /// The length of the symbol that starts at `i`.
    fn span_from(&self, i: usize) -> usize {
        (Self::get(self.spans, i) & 0xffff) as usize
    }

    /// The length of the symbol that ends before `i`.
    fn span_to(&self, i: usize) -> usize {
        (Self::get(self.spans, i.wrapping_sub(1)) >> 16) as usize
    }

    /// Notes that a symbol of `span` bytes starts at `i`. A token's length fits 16 bits.
    fn set_span(&mut self, i: usize, span: usize) {
        let span32 = span as u32 & 0xffff;
        Self::set(self.spans, i, Self::get(self.spans, i) & 0xffff_0000 | span32);
        let last = i + span.saturating_sub(1);
        Self::set(self.spans, last, Self::get(self.spans, last) & 0xffff | span32 << 16);
    }

    /// The position that won at a node.
    fn winner(&self, node: usize) -> usize {
        if node >= self.len { node - self.len } else { Self::get(self.tree, node) as usize }
    }

    fn play(&mut self, node: usize) {
        let (a, b) = (self.winner(2 * node), self.winner(2 * node + 1));
        let winner = if (self.rank(b), b) < (self.rank(a), a) { b } else { a };
        Self::set(self.tree, node, winner as u32);
    }

    fn play_all(&mut self) {
        for node in (1..self.len).rev() {
            self.play(node);
        }
    }

    /// Gives a position a new rank.
    fn replay(&mut self, i: usize, rank: u32) {
        self.set_rank(i, rank);
        let mut node = (self.len + i) / 2;
        while node > 0 {
            self.play(node);
            node /= 2;
        }
    }
}
