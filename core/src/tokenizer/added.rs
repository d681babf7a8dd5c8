//! Added tokens: found in the text before anything else looks at it, leftmost first, then longest.

use core::ops::Range;

use super::Tokenizer;
use super::table::{ADDED_ID, ADDED_LSTRIP, ADDED_RSTRIP, ADDED_SINGLE_WORD};
use super::unicode::{SPACE, char_at, kind};

/// The added tokens that are matched in one form of the text, sorted by their bytes.
#[derive(Clone, Copy, Debug)]
pub struct AddedSet<'a> {
    first: &'a [u8; 32],
    second: &'a [u8; 32],
    ids: &'a [[u8; 4]],
    /// Ids have the `ADDED_` flags.
    rules: bool,
    /// What comes before each token where it is looked for.
    before: &'static [u8],
}

/// A token found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where, in bytes, with the white space that belongs to it.
    pub range: Range<usize>,
    /// Where the next one is looked for: the end without white space.
    pub resume: usize,
    /// Which.
    pub id: u32,
}

/// Where tokens are looked for.
#[derive(Clone, Debug)]
pub(super) struct Search {
    /// Where the text begins, of which what is looked at is a part.
    pub begin: usize,
    /// What is before is taken: no white space of it belongs to a token.
    pub taken: usize,
    /// Where a token may start.
    pub starts: Range<usize>,
    /// The end of the white space that was last seen behind a token.
    pub spaces: usize,
}

impl Search {
    /// Gives the token that was found behind a piece of the text, if one was, and moves `at` behind it: whether there was one. The next
    /// one is looked for from there, or without one from `end`.
    pub(super) fn pass(
        &mut self,
        found: Option<Found>,
        end: usize,
        at: &mut usize,
        sink: &mut dyn FnMut(u32),
    ) -> bool {
        self.starts.start = end;
        let Some(found) = found else { return false };
        sink(found.id);
        (*at, self.starts.start) = (found.range.end, found.resume);
        true
    }
}

impl<'a> AddedSet<'a> {
    /// Reads a set as the table stores it: two bit sets and the ids.
    pub(super) fn new(bytes: &'a [u8], rules: bool, before: &'static str) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk()?;
        let (second, ids) = rest.split_first_chunk()?;
        Some(Self { first, second, ids: ids.as_chunks().0, rules, before: before.as_bytes() })
    }

    /// The id of an entry, without flags.
    fn id_in(&self, entry: [u8; 4]) -> u32 {
        let entry = u32::from_le_bytes(entry);
        if self.rules { entry & ADDED_ID } else { entry }
    }

    /// The ids, in the order of their bytes.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + use<'a> {
        let set = *self;
        set.ids.iter().map(move |&id| set.id_in(id))
    }

    /// The length of the longest token in bytes.
    pub(super) fn longest(&self, tokenizer: &Tokenizer<'_>) -> usize {
        self.ids().map(|id| self.before.len() + tokenizer.bytes_of(id).len()).max().unwrap_or(0)
    }

    fn id(&self, i: usize) -> u32 {
        self.ids.get(i).map_or(u32::MAX, |&id| self.id_in(id))
    }

    /// The token with exactly these bytes.
    pub(super) fn exact(&self, tokenizer: &Tokenizer<'_>, bytes: &[u8]) -> Option<u32> {
        let at = self.ids.binary_search_by_key(&bytes, |&id| tokenizer.bytes_of(self.id_in(id))).ok()?;
        Some(self.id(at))
    }

    /// The first token that starts where it may, and of those the longest, unless `ignore` says that it counts as text.
    ///
    /// What is ignored still hides the tokens that it overlaps, as in Hugging Face's implementation.
    pub(super) fn find(
        &self,
        tokenizer: &Tokenizer<'_>,
        text: &[u8],
        search: &mut Search,
        ignore: impl Fn(u32) -> bool,
    ) -> Option<Found> {
        if self.ids.is_empty() {
            return None;
        }
        let has = |set: &[u8; 32], byte: u8| set[usize::from(byte >> 3)] >> (byte & 7) & 1 != 0;
        let end = search.starts.end.min(text.len());
        let mut at = search.starts.start;
        while at < end {
            let skip = text.get(at..end)?.iter().position(|&byte| has(self.first, byte))?;
            at += skip;
            if text.get(at + 1).is_none_or(|&byte| has(self.second, byte))
                && let Some((len, entry)) = self.longest_at(tokenizer, text, at)
            {
                let (id, resume) = (self.id(entry), at + len);
                if !ignore(id)
                    && let Some(range) = self.apply_rules(tokenizer, text, search, entry, at..resume)
                {
                    return Some(Found { range, resume, id });
                }
                at = resume;
                continue;
            }
            at += 1;
        }
        None
    }

    /// The range of a match with the white space that belongs to it, or `None` where the token must be a word of its own
    /// and is not.
    #[inline]
    fn apply_rules(
        &self,
        tokenizer: &Tokenizer<'_>,
        text: &[u8],
        search: &mut Search,
        entry: usize,
        mut range: Range<usize>,
    ) -> Option<Range<usize>> {
        let flags = if self.rules { self.ids.get(entry).map_or(0, |&id| u32::from_le_bytes(id)) } else { 0 };
        if flags & ADDED_SINGLE_WORD != 0 {
            let is_word = |at| tokenizer.patterns.is_some_and(|patterns| patterns.is_word(text, at));
            let before = range.start > search.begin && is_word(char_before(text, range.start));
            if before || is_word(range.end) {
                return None;
            }
        }
        let is_space = |at| char_at(text, at).is_some_and(|(c, _)| kind(c) == SPACE);
        if flags & ADDED_LSTRIP != 0 {
            while range.start > search.taken && is_space(char_before(text, range.start)) {
                range.start = char_before(text, range.start);
            }
        }
        if flags & ADDED_RSTRIP != 0 {
            if range.end > search.spaces {
                search.spaces = range.end;
                while let Some((c, len)) = char_at(text, search.spaces)
                    && kind(c) == SPACE
                {
                    search.spaces += len;
                }
            }
            range.end = search.spaces;
        }
        Some(range)
    }

    /// The longest token that starts at `at`. Of the sorted tokens, those that agree with the text so far are a range,
    /// narrowed byte by byte.
    ///
    /// Gives its length and its place in the set.
    fn longest_at(&self, tokenizer: &Tokenizer<'_>, text: &[u8], at: usize) -> Option<(usize, usize)> {
        let bytes_at = |i: usize| tokenizer.bytes_of(self.id(i));
        let mut range = 0..self.ids.len();
        let mut found = None;
        if !text.get(at..)?.starts_with(self.before) {
            return None;
        }
        let (at, before) = (at + self.before.len(), self.before.len());
        for depth in 0.. {
            if range.is_empty() {
                break;
            }
            // A token that ends here sorts before those that go on.
            if bytes_at(range.start).len() == depth {
                found = Some((before + depth, range.start));
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

/// Where the character before `at` starts.
fn char_before(text: &[u8], at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    before.iter().rposition(|&byte| byte & 0xc0 != 0x80).unwrap_or(0)
}
