//! Added tokens: found in the text before anything else looks at it, leftmost first, then longest.

use core::ops::Range;

use super::Tokenizer;

/// The added tokens that are matched in one form of the text, sorted by their bytes.
#[derive(Clone, Copy, Debug)]
pub struct AddedSet<'a> {
    first: &'a [u8; 32],
    second: &'a [u8; 32],
    ids: &'a [[u8; 4]],
}

/// A token found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where, in bytes.
    pub range: Range<usize>,
    /// Which.
    pub id: u32,
}

impl<'a> AddedSet<'a> {
    /// Reads a set as the table stores it: two bit sets and the ids.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk()?;
        let (second, ids) = rest.split_first_chunk()?;
        Some(Self { first, second, ids: ids.as_chunks().0 })
    }

    /// The ids, in the order of their bytes.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + 'a {
        self.ids.iter().map(|&id| u32::from_le_bytes(id))
    }

    /// The length of the longest token in bytes.
    pub(super) fn longest(&self, tokenizer: &Tokenizer<'_>) -> usize {
        self.ids().map(|id| tokenizer.bytes_of(id).len()).max().unwrap_or(0)
    }

    fn id(&self, i: usize) -> u32 {
        self.ids.get(i).map_or(u32::MAX, |&id| u32::from_le_bytes(id))
    }

    /// The token with exactly these bytes.
    pub(super) fn exact(&self, tokenizer: &Tokenizer<'_>, bytes: &[u8]) -> Option<u32> {
        let at =
            self.ids.binary_search_by_key(&bytes, |&id| tokenizer.bytes_of(u32::from_le_bytes(id))).ok()?;
        Some(self.id(at))
    }

    /// The first token that starts in `starts`, and of those the longest, unless `ignore` says that it counts as text.
    ///
    /// What is ignored still hides the tokens that it overlaps, as in Hugging Face's implementation.
    pub(super) fn find(
        &self,
        tokenizer: &Tokenizer<'_>,
        text: &[u8],
        starts: Range<usize>,
        ignore: impl Fn(u32) -> bool,
    ) -> Option<Found> {
        if self.ids.is_empty() {
            return None;
        }
        let has = |set: &[u8; 32], byte: u8| set[usize::from(byte >> 3)] >> (byte & 7) & 1 != 0;
        let end = starts.end.min(text.len());
        let mut at = starts.start;
        while at < end {
            let skip = text.get(at..end)?.iter().position(|&byte| has(self.first, byte))?;
            at += skip;
            if text.get(at + 1).is_none_or(|&byte| has(self.second, byte))
                && let Some(found) = self.longest_at(tokenizer, text, at)
            {
                if !ignore(found.id) {
                    return Some(found);
                }
                at = found.range.end;
                continue;
            }
            at += 1;
        }
        None
    }

    /// The longest token that starts at `at`. Of the sorted tokens, those that agree with the text so far are a range,
    /// narrowed byte by byte.
    fn longest_at(&self, tokenizer: &Tokenizer<'_>, text: &[u8], at: usize) -> Option<Found> {
        let bytes_at = |i: usize| tokenizer.bytes_of(self.id(i));
        let mut range = 0..self.ids.len();
        let mut found = None;
        for depth in 0.. {
            if range.is_empty() {
                break;
            }
            // A token that ends here sorts before those that go on.
            if bytes_at(range.start).len() == depth {
                found = Some(Found { range: at..at + depth, id: self.id(range.start) });
                range.start += 1;
            }
            let Some(&byte) = text.get(at + depth) else { break };
            let below = |limit: u16, range: Range<usize>| {
                let (mut low, mut high) = (range.start, range.end);
                while low < high {
                    let middle = low + (high - low) / 2;
                    if bytes_at(middle).get(depth).is_some_and(|&b| u16::from(b) < limit) {
                        low = middle + 1;
                    } else {
                        high = middle;
                    }
                }
                low
            };
            let start = below(byte.into(), range.clone());
            range = start..below(u16::from(byte) + 1, start..range.end);
        }
        found
    }
}
