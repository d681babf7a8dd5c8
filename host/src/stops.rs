//! Looks for texts that end a text, while it is made.

use std::ops::Range;

/// Looks for stop texts in a stream, and holds back what may become one. Of the stream, some is looked at only and is no part of
/// what comes out: special tokens.
pub(crate) struct Stops {
    stops: Vec<String>,
    held: String,
    /// Which bytes of `held` are not to come out, in order.
    hidden: Vec<Range<usize>>,
    /// A stop text came: `held` ends before it.
    pub found: bool,
}

impl Stops {
    /// Looks for these texts; empty ones are never found.
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), hidden: Vec::new(), found: false }
    }

    /// Takes more of the stream, which comes out or not.
    pub(crate) fn push(&mut self, text: &str, comes_out: bool) {
        if self.found {
            return;
        }
        let start = self.held.len();
        self.held.push_str(text);
        if !comes_out {
            self.hidden.push(start..self.held.len());
        }
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.found = true;
        }
    }

    /// What surely is no part of a stop text.
    pub(crate) fn ready(&mut self) -> String {
        // The longest end of `held` with which a stop text begins.
        let begins = |at: usize| {
            self.stops.iter().any(|stop| stop.as_bytes().starts_with(&self.held.as_bytes()[at..]))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let keep = (from..self.held.len()).find(|at| self.held.is_char_boundary(*at) && begins(*at));
        self.take(keep.filter(|_| !self.found).unwrap_or(self.held.len()))
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> String {
        self.take(self.held.len())
    }

    /// Takes the first `len` bytes off, without what is not to come out.
    fn take(&mut self, len: usize) -> String {
        let (mut out, mut at) = (String::new(), 0);
        for hidden in self.hidden.iter().take_while(|hidden| hidden.start < len) {
            out.push_str(&self.held[at..hidden.start]);
            at = hidden.end.min(len);
        }
        out.push_str(&self.held[at..len]);
        self.held.drain(..len);
        self.hidden.retain_mut(|hidden| {
            *hidden = hidden.start.saturating_sub(len)..hidden.end.saturating_sub(len);
            hidden.start < hidden.end
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::Stops;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stops = Stops::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            // In brackets: what does not come out.
            stops.push(piece.trim_matches(['[', ']']), !piece.starts_with('['));
            out.push(stops.ready());
        }
        (out, stops.rest(), stops.found)
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
    }

    #[test]
    fn without_stop_texts_nothing_is_held() {
        let (out, rest, found) = run(&[""], &["a", "b"]);
        assert_eq!(out, ["a", "b"]);
        assert_eq!((rest.as_str(), found), ("", false));
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
}
