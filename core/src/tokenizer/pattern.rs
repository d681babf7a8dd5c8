//! Regular expressions that the packer compiled: how a text is cut into words where no built-in pre-tokenizer does it.
//!
//! A pre-tokenizer is a list of stages, each of which cuts the pieces of the one before it further. A stage is a
//! deterministic automaton over *classes* of characters: the packer gives two characters one class where no expression
//! tells them apart, so that an automaton has tens of states and tens of classes, whatever Unicode sets it uses. Its
//! matches are leftmost-first, as those of a backtracking engine.
//!
//! An automaton learns whether a match ends at a place from the character behind it, or from the end of the piece. That
//! is what expressions such as `\s+(?!\S)` need, and all that they need.
//!
//! Layout of the bytes, all numbers little-endian:
//!
//! | part | elements |
//! |---|---|
//! | header | 8 u16: classes, stages, blocks, ranges, 1 if an automaton for `\w` follows those of the stages, three zeros |
//! | automata | 8 bytes each: how pieces come of matches (u16), states (u16), offset of the transitions in these bytes (u32) |
//! | ASCII | 128 u8: classes |
//! | index | 1024 u16: the block of each 128 characters below U+20000 |
//! | blocks | 128 u8 each: classes |
//! | ranges | u32 each, ascending: the first character from U+20000 on of a run of one class, and the class in the high 8 bits |
//! | transitions | for each state, (classes + 1) u16: bits 0 to 14 are the next state; bit 15: a match ends before this character. The last one is for the end of the piece |
//!
//! State 0 is where no match is possible any more; state 1 is the start.

use super::unicode::char_at;

/// The most stages of a pre-tokenizer.
pub const MAX_STAGES: usize = 8;
/// The most classes of characters.
pub const MAX_CLASSES: usize = 250;
/// The most states of an automaton.
pub const MAX_STATES: usize = 0x7fff;
/// The size of the header in bytes.
pub const HEADER_LEN: usize = 16;
/// The size of an automaton's record in bytes.
pub const RECORD_LEN: usize = 8;
/// Characters from here on are in a list of ranges.
pub const HIGH: u32 = 0x2_0000;
/// Characters of a block.
pub const BLOCK: usize = 128;
/// Set in a transition: a match ends before the character.
pub const MATCH: u16 = 0x8000;
/// The state that an automaton starts in.
pub const START: u16 = 1;

/// What becomes of the matches of a stage and of what is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Pieces {
    /// Both are pieces.
    All = 0,
    /// Matches are left out of the text.
    Between = 1,
    /// What is between matches is left out of the text.
    Matches = 2,
}

/// The automata of a tokenizer, and the classes of characters that they share.
#[derive(Clone, Copy, Debug)]
pub struct Patterns<'a> {
    bytes: &'a [u8],
    stages: usize,
    columns: usize,
    ascii: &'a [u8; 128],
    index: &'a [[u8; 2]],
    blocks: &'a [u8],
    ranges: &'a [[u8; 4]],
    records: &'a [[u8; RECORD_LEN]],
}

/// One stage of a pre-tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    patterns: Patterns<'a>,
    pieces: Pieces,
    transitions: &'a [[u8; 2]],
}

/// A piece that a stage cuts off the start of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its end.
    pub end: usize,
    /// The place that decided this, as of [`super::split::Cut`].
    pub decided: usize,
    /// It is part of the text; else it is left out.
    pub kept: bool,
    /// How many characters were looked at.
    pub steps: usize,
}

/// A match that was looked for at one place.
struct Match {
    end: Option<usize>,
    decided: usize,
    steps: usize,
}

impl<'a> Patterns<'a> {
    /// Reads what [`Self::check`] accepted, or `None` where the parts are not there.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let field = |i: usize| u16::from_le_bytes([header[2 * i], header[2 * i + 1]]);
        let [classes, stages, blocks, ranges, word] = [0, 1, 2, 3, 4].map(|i| usize::from(field(i)));
        if [5, 6, 7].iter().any(|&i| field(i) != 0)
            || word > 1
            || stages > MAX_STAGES
            || classes > MAX_CLASSES
        {
            return None;
        }
        let (records, rest) = rest.split_at_checked(RECORD_LEN * (stages + word))?;
        let (ascii, rest) = rest.split_first_chunk()?;
        let (index, rest) = rest.split_at_checked(2 * (HIGH as usize / BLOCK))?;
        let (blocks, rest) = rest.split_at_checked(BLOCK * blocks)?;
        let (ranges, _) = rest.split_at_checked(4 * ranges)?;
        Some(Self {
            bytes,
            stages,
            columns: classes + 1,
            ascii,
            index: index.as_chunks().0,
            blocks,
            ranges: ranges.as_chunks().0,
            records: records.as_chunks().0,
        })
    }

    /// Whether all classes, states and kinds of pieces are ones that there are. Takes time linear in the bytes.
    pub(super) fn check(&self) -> bool {
        let classes = self.columns - 1;
        let known = |class: u8| usize::from(class) < classes;
        let blocks = self.blocks.len() / BLOCK;
        self.ascii.iter().chain(self.blocks).all(|&class| known(class))
            && self.index.iter().all(|&block| usize::from(u16::from_le_bytes(block)) < blocks)
            && self.ranges.iter().all(|range| known(range[3]))
            && (0..self.records.len()).all(|i| self.automaton(i).is_some_and(|stage| stage.check()))
    }

    /// How many stages there are.
    pub(super) const fn stages(&self) -> usize {
        self.stages
    }

    /// Whether the character at `at` is one of a word: `\w`.
    pub(super) fn is_word(&self, text: &[u8], at: usize) -> bool {
        self.automaton(self.stages).is_some_and(|word| word.match_at(text, at).end.is_some())
    }

    /// A stage, or behind the last one the automaton of `\w`.
    pub(super) fn automaton(&self, i: usize) -> Option<Stage<'a>> {
        let &[p0, p1, s0, s1, offset @ ..] = self.records.get(i)?;
        let pieces = match u16::from_le_bytes([p0, p1]) {
            0 => Pieces::All,
            1 => Pieces::Between,
            2 => Pieces::Matches,
            _ => return None,
        };
        let start = usize::try_from(u32::from_le_bytes(offset)).ok()?;
        let states = usize::from(u16::from_le_bytes([s0, s1]));
        let transitions = self.bytes.get(start..)?.get(..2 * states * self.columns)?.as_chunks().0;
        Some(Stage { patterns: *self, pieces, transitions })
    }

    /// The class of a character beyond ASCII.
    fn class(&self, c: u32) -> usize {
        let class = if c < HIGH {
            let block = self.index.get(c as usize / BLOCK).map_or(0, |&block| u16::from_le_bytes(block));
            self.blocks.get(usize::from(block) * BLOCK + c as usize % BLOCK).copied()
        } else {
            let first = |range: &[u8; 4]| u32::from_le_bytes(*range) & 0xff_ffff;
            let at = self.ranges.partition_point(|range| first(range) <= c);
            at.checked_sub(1).and_then(|at| self.ranges.get(at)).map(|range| range[3])
        };
        class.unwrap_or(0).into()
    }
}

impl Stage<'_> {
    fn check(&self) -> bool {
        let states = self.transitions.len() / self.patterns.columns;
        states > usize::from(START)
            && self.transitions.iter().all(|&entry| usize::from(u16::from_le_bytes(entry) & !MATCH) < states)
    }

    /// The transition from `state` with the character at `at`, and the character's length: 0 at the end.
    #[inline]
    fn step(&self, text: &[u8], at: usize, state: u16) -> (u16, usize) {
        let columns = self.patterns.columns;
        let (class, len) = match text.get(at) {
            Some(&byte) if byte < 0x80 => (usize::from(self.patterns.ascii[usize::from(byte)]), 1),
            Some(_) => match char_at(text, at) {
                Some((c, len)) => (self.patterns.class(c), len),
                None => (columns - 1, 0),
            },
            None => (columns - 1, 0),
        };
        let entry = self.transitions.get(usize::from(state) * columns + class);
        (entry.map_or(0, |&entry| u16::from_le_bytes(entry)), len)
    }

    /// Looks for a match that starts at `at` and is not empty.
    #[inline]
    fn match_at(&self, text: &[u8], at: usize) -> Match {
        let (mut state, mut end, mut next, mut steps) = (START, None, at, 0);
        loop {
            let (entry, len) = self.step(text, next, state);
            steps += 1;
            if entry & MATCH != 0 && next > at {
                end = Some(next);
            }
            state = entry & !MATCH;
            if state == 0 || len == 0 {
                return Match { end, decided: next, steps };
            }
            next += len;
        }
    }

    /// Cuts one piece from `text[at..]`, which must not be empty.
    #[inline]
    pub(super) fn piece(&self, text: &[u8], at: usize) -> Piece {
        let found = self.match_at(text, at);
        match found.end {
            Some(end) => {
                let kept = self.pieces != Pieces::Between;
                Piece { end, decided: found.decided, kept, steps: found.steps }
            }
            None => self.gap(text, at, found),
        }
    }

    /// The piece from `at` to the next match, where none starts at `at`.
    ///
    /// An attempt that failed may have read far. The attempts at places before its end run beside a repetition of it: once
    /// both are in the same state, the later one must fail too.
    fn gap(&self, text: &[u8], mut at: usize, failed: Match) -> Piece {
        let kept = self.pieces != Pieces::Matches;
        let mut steps = failed.steps;
        // The last attempt that failed: its state at `at`, and where it ended.
        let (mut earlier, mut until) = (START, failed.decided);
        let mut decided = failed.decided;
        loop {
            let (entry, len) = self.step(text, at, earlier);
            earlier = entry & !MATCH;
            at += len;
            if len == 0 || at >= text.len() {
                return Piece { end: text.len(), decided: text.len(), kept, steps };
            }
            let (mut one, mut other, mut next) = (earlier, START, at);
            let fails = loop {
                if next > until {
                    break false;
                }
                if one == other {
                    break true;
                }
                let (entry, len) = self.step(text, next, other);
                steps += 1;
                if entry & MATCH != 0 && next > at {
                    break false;
                }
                other = entry & !MATCH;
                if other == 0 || len == 0 {
                    break true;
                }
                one = self.step(text, next, one).0 & !MATCH;
                next += len;
            };
            decided = decided.max(next);
            if fails {
                continue;
            }
            let found = self.match_at(text, at);
            steps += found.steps;
            decided = decided.max(found.decided);
            if found.end.is_some() {
                return Piece { end: at, decided, kept, steps };
            }
            (earlier, until) = (START, found.decided);
        }
    }
}
