//! Looks for texts that end a text, while it is made.

use super::Rules;

/// Bytes of memory for text that is held back by these stop texts: two for each byte of the longest one but its last.
#[must_use]
pub fn held_bytes<'s>(stops: impl Iterator<Item = &'s str>) -> usize {
    2 * stops.map(str::len).max().unwrap_or(0).saturating_sub(1)
}

/// Looks for stop texts in a stream, and holds back the end of it that one may begin with. Some of the stream is only searched and
/// is no part of what comes out: special tokens.
///
/// With less memory than [`held_bytes`], text comes out before a stop text that begins with it is complete.
#[derive(Clone, Debug)]
pub(super) struct Stops<B> {
    /// The text, and behind it as many bytes again that say whether each of its bytes comes out (1) or not (0).
    held: B,
    len: usize,
    found: bool,
}

/// The text that is held back and the piece that comes after it.
#[derive(Clone, Copy)]
struct Stream<'s> {
    held: &'s [u8],
    piece: &'s [u8],
}

impl Stream<'_> {
    const fn len(self) -> usize {
        self.held.len() + self.piece.len()
    }

    fn from(self, at: usize) -> impl Iterator<Item = u8> {
        let held = self.held.get(at..).unwrap_or_default();
        let piece = self.piece.get(at.saturating_sub(self.held.len())..).unwrap_or_default();
        held.iter().chain(piece).copied()
    }

    /// Whether a stop text stands at `at`, or its start does and the stream ends within it.
    fn matches(self, at: usize, stop: &str) -> (bool, bool) {
        let equal = stop.bytes().zip(self.from(at)).take_while(|(a, b)| a == b).count();
        (equal == stop.len(), equal == self.len() - at)
    }

    /// Where the earliest stop text is, and where the earliest one may begin.
    fn search<R: Rules>(self, rules: &R) -> (Option<usize>, Option<usize>) {
        let mut begins = None;
        for at in 0..self.len() {
            for stop in rules.stops().filter(|stop| !stop.is_empty()) {
                let (whole, start) = self.matches(at, stop);
                if whole {
                    return (Some(at), None);
                }
                if start && begins.is_none() {
                    begins = Some(at);
                }
            }
        }
        (None, begins)
    }

    /// The first place from `at` on where a character begins.
    fn character_from(self, at: usize) -> usize {
        at + self.from(at).take_while(|byte| byte & 0xc0 == 0x80).count()
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Stops<B> {
    pub(super) const fn new(held: B) -> Self {
        Self { held, len: 0, found: false }
    }

    /// Whether a stop text came.
    pub(super) const fn found(&self) -> bool {
        self.found
    }

    /// Takes more of the stream, which comes out (`shown`) or is only searched, and gives `sink` what can't belong to a stop text.
    // Not inlined at each of its calls: code size matters on boards.
    #[inline(never)]
    pub(super) fn push<R: Rules>(&mut self, rules: &R, piece: &str, shown: bool, sink: &mut dyn FnMut(&str)) {
        if self.found {
            return;
        }
        let room = self.held.as_ref().len() / 2;
        let stream =
            Stream { held: self.held.as_ref().get(..self.len).unwrap_or_default(), piece: piece.as_bytes() };
        let (found, begins) = stream.search(rules);
        let end = found.unwrap_or_else(|| {
            let begins = begins.unwrap_or(stream.len());
            if stream.len() - begins > room { stream.character_from(stream.len() - room) } else { begins }
        });
        self.found = found.is_some();
        // A stop text begins with the start of a character, so that all places are boundaries of characters.
        let before = end.saturating_sub(self.len);
        self.take(end.min(self.len), sink);
        let (now, later) = piece.split_at_checked(before).unwrap_or((piece, ""));
        if shown && !now.is_empty() {
            sink(now);
        }
        if self.found {
            self.len = 0;
        } else {
            self.hold(later.as_bytes(), shown);
        }
    }

    /// Gives `sink` all that is left.
    pub(super) fn rest(&mut self, sink: &mut dyn FnMut(&str)) {
        self.take(self.len, sink);
    }

    /// Adds to what is held.
    fn hold(&mut self, text: &[u8], shown: bool) {
        let held = self.held.as_mut();
        let (bytes, flags) = held.split_at_mut(held.len() / 2);
        let places = bytes.iter_mut().zip(flags).skip(self.len);
        for ((byte, flag), from) in places.zip(text) {
            (*byte, *flag) = (*from, u8::from(shown));
            self.len += 1;
        }
    }

    /// Takes the first `end` bytes off, and gives `sink` what of them comes out.
    fn take(&mut self, end: usize, sink: &mut dyn FnMut(&str)) {
        let held = self.held.as_mut();
        let (bytes, flags) = held.split_at_mut(held.len() / 2);
        let mut rest = bytes.get(..end).unwrap_or_default();
        for run in flags.get(..end).unwrap_or_default().chunk_by(|a, b| a == b) {
            let (text, after) = rest.split_at_checked(run.len()).unwrap_or_default();
            rest = after;
            if run.first() == Some(&1) {
                sink(core::str::from_utf8(text).unwrap_or_default());
            }
        }
        if end > 0 && end <= self.len && self.len <= bytes.len() {
            bytes.copy_within(end..self.len, 0);
            flags.copy_within(end..self.len, 0);
            self.len -= end;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;
    use std::vec::Vec;

    use super::super::tests::Scripted;
    use super::{Stops, held_bytes};

    fn run_within(bytes: usize, stops: &[&'static str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let rules = Scripted::with_stops(stops);
        let mut stops = Stops::new(std::vec![0xff; bytes]);
        let mut out = Vec::new();
        for piece in pieces {
            let mut text = String::new();
            // In brackets: what does not come out.
            let shown = !piece.starts_with('[');
            stops.push(&rules, piece.trim_matches(['[', ']']), shown, &mut |some| text += some);
            out.push(text);
        }
        let mut rest = String::new();
        stops.rest(&mut |some| rest += some);
        (out, rest, stops.found())
    }

    fn run(stops: &[&'static str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        run_within(held_bytes(stops.iter().copied()), stops, pieces)
    }

    #[test]
    fn a_stop_text_may_span_pieces() {
        let (out, rest, found) = run(&["\n\nEnd"], &["one\n", "two\n", "\nE", "nd of", "more"]);
        assert_eq!(out, ["one", "\ntwo", "", "", ""]);
        assert_eq!((rest.as_str(), found), ("", true));
    }

    #[test]
    fn what_only_began_like_one_comes_out() {
        let (out, rest, found) = run(&["abac"], &["ab", "ab", "a", "x", "aba"]);
        assert_eq!(out, ["", "ab", "", "abax", ""]);
        assert_eq!((rest.as_str(), found), ("aba", false));
    }

    #[test]
    fn the_earliest_wins_and_multibyte_characters_stay_whole() {
        let (out, _, found) = run(&["ö!", "é"], &["größ", "er öé", "!"]);
        assert_eq!((out.concat().as_str(), found), ("größer ö", true));
        let (out, rest, found) = run(&["öö"], &["xö", "é"]);
        assert_eq!((out.concat().as_str(), rest.as_str(), found), ("xöé", "", false));
        // Of two in one piece, the one that begins first.
        let (out, _, found) = run(&["bc", "abcd"], &["xabcd"]);
        assert_eq!((out.concat().as_str(), found), ("x", true));
    }

    #[test]
    fn without_stop_texts_nothing_is_held() {
        for stops in [&[] as &[&str], &[""]] {
            let (out, rest, found) = run(stops, &["a", "b"]);
            assert_eq!(out, ["a", "b"]);
            assert_eq!((rest.as_str(), found), ("", false));
        }
    }

    #[test]
    fn what_does_not_come_out_is_searched_too() {
        let (out, rest, found) = run(&["<end>"], &["a", "[<s>]", "b", "[<end>]", "c"]);
        assert_eq!((out.concat().as_str(), rest.as_str(), found), ("ab", "", true));
        // Partly text, on either side.
        let (out, _, found) = run(&["x<end>y"], &["ax", "[<end>]", "z", "x", "[<end>]", "yb"]);
        assert_eq!((out, found), (["a", "", "xz", "", "", ""].map(String::from).to_vec(), true));
        let (out, rest, found) = run(&["<end>y"], &["a", "[<e>]", "b", "[<end>]"]);
        assert_eq!((out.concat().as_str(), rest.as_str(), found), ("ab", "", false));
        // Without a stop text it is only left out.
        let (out, rest, _) = run(&[], &["a", "[<s>]", "b", "[<e>]"]);
        assert_eq!((out.concat().as_str(), rest.as_str()), ("ab", ""));
    }

    /// What came out after each piece, and whether a stop text was found, by looking at the whole text every time.
    fn naive(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let (mut all, mut shown, mut out) = (String::new(), Vec::new(), Vec::new());
        for piece in pieces {
            let comes_out = !piece.starts_with('[');
            let piece = piece.trim_matches(['[', ']']);
            all += piece;
            shown.resize(all.len(), comes_out);
            let found = stops.iter().filter_map(|stop| all.find(stop)).min();
            let may_begin =
                |at: &usize| stops.iter().any(|stop| stop.as_bytes().starts_with(&all.as_bytes()[*at..]));
            let end = found.or((0..all.len()).find(may_begin)).unwrap_or(all.len());
            let bytes = all.bytes().zip(&shown).take(end).filter(|(_, shown)| **shown).map(|(byte, _)| byte);
            out.push(String::from_utf8(bytes.collect()).unwrap());
            if found.is_some() {
                return (out, true);
            }
        }
        (out, false)
    }

    #[test]
    fn random_streams_come_out_as_a_naive_search_says() {
        const STOPS: [&str; 6] = ["ab", "aab", "bö", "b<s>a", "ö", "abab"];
        const PIECES: [&str; 7] = ["a", "b", "aab", "ö", "[<s>]", "xa", "aö"];
        let mut random = 1u64;
        let mut below = |most: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % most
        };
        let mut ended = 0;
        for _ in 0..3000 {
            let stops: Vec<&str> = (0..below(4)).map(|_| STOPS[below(STOPS.len())]).collect();
            let pieces: Vec<&str> = (0..below(12)).map(|_| PIECES[below(PIECES.len())]).collect();
            let (out, rest, found) = run(&stops, &pieces);
            let (expected, ends) = naive(&stops, &pieces);
            let mut before = String::new();
            for (text, expected) in out.iter().zip(&expected) {
                before += text;
                assert_eq!(&before, expected, "{stops:?} {pieces:?}");
            }
            assert_eq!(found, ends);
            if found {
                ended += 1;
                // Nothing comes out behind it.
                assert_eq!((out.concat() + &rest).as_str(), expected.last().unwrap());
            } else {
                let shown = pieces.iter().filter(|piece| !piece.starts_with('['));
                assert_eq!(out.concat() + &rest, shown.copied().collect::<String>());
            }
        }
        assert!((500..2500).contains(&ended), "{ended} of 3000 ended");
    }

    #[test]
    fn too_little_memory_holds_less_and_loses_nothing() {
        let pieces = ["ö", "ab", "[<s>]", "é", "c"];
        for bytes in 0..40 {
            let (out, rest, found) = run_within(bytes, &["öab<s>éd"], &pieces);
            assert_eq!((out.concat() + &rest).as_str(), "öabéc", "{bytes} bytes");
            assert!(!found);
            // A stop text within one piece needs none.
            assert!(run_within(bytes, &["bc"], &["abcd"]).2);
        }
    }
}
