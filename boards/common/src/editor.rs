//! A line that is edited as it is typed, on a terminal that understands the usual escape sequences.

use core::fmt::{self, Write};

/// What a key did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to be told.
    None,
    /// The line is complete.
    Line,
    /// Ctrl-C: the line is dropped.
    Cancel,
}

/// Where an escape sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    /// After `ESC [` or `ESC O`, with the number so far.
    Bracket(u16),
}

/// The editor of a line of at most `LINE` bytes. `HISTORY` bytes hold the lines before, which can be brought back: 0 for none.
///
/// A new one is all zeros.
#[derive(Debug)]
pub struct Editor<const LINE: usize, const HISTORY: usize> {
    line: [u8; LINE],
    len: usize,
    /// Where the next character goes: the start of one.
    cursor: usize,
    escape: Escape,
    /// A character whose bytes are not all there.
    partial: [u8; 4],
    partial_len: usize,
    /// Lines before, each ended by a newline, the last one last.
    history: [u8; HISTORY],
    history_len: usize,
    /// How many lines back the shown one is; 0 is the one being typed.
    back: usize,
    /// The last byte was a carriage return: a newline right behind it belongs to it.
    returned: bool,
}

impl<const LINE: usize, const HISTORY: usize> Default for Editor<LINE, HISTORY> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const LINE: usize, const HISTORY: usize> Editor<LINE, HISTORY> {
    /// An empty line, with no lines before.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            line: [0; LINE],
            len: 0,
            cursor: 0,
            escape: Escape::None,
            partial: [0; 4],
            partial_len: 0,
            history: [0; HISTORY],
            history_len: 0,
            back: 0,
            returned: false,
        }
    }

    /// The line as it is.
    #[must_use]
    pub fn line(&self) -> &str {
        self.between(0, self.len)
    }

    /// What stands between two boundaries of characters.
    fn between(&self, from: usize, to: usize) -> &str {
        core::str::from_utf8(self.line.get(from..to).unwrap_or_default()).unwrap_or_default()
    }

    /// Forgets the line, after it was used.
    pub fn clear(&mut self) {
        (self.len, self.cursor, self.back, self.partial_len) = (0, 0, 0, 0);
        self.escape = Escape::None;
    }

    /// Takes a byte from the terminal, and shows what it did on `out`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn key(&mut self, byte: u8, out: &mut dyn Write) -> Result<Event, fmt::Error> {
        let returned = core::mem::replace(&mut self.returned, byte == b'\r');
        match (self.escape, byte) {
            (Escape::None, b'\n') if returned => {}
            (Escape::None, b'\r' | b'\n') => {
                self.remember();
                out.write_str("\n")?;
                return Ok(Event::Line);
            }
            (Escape::None, 0x1b) => self.escape = Escape::Begun,
            (Escape::Begun, b'[' | b'O') => self.escape = Escape::Bracket(0),
            (Escape::Begun, _) => self.escape = Escape::None,
            (Escape::Bracket(n), b'0'..=b'9') => {
                self.escape = Escape::Bracket(n.saturating_mul(10).saturating_add(u16::from(byte - b'0')));
            }
            (Escape::Bracket(_), b';') => self.escape = Escape::Bracket(0),
            (Escape::Bracket(n), _) => {
                self.escape = Escape::None;
                self.special(n, byte, out)?;
            }
            (Escape::None, 3) => {
                self.clear();
                out.write_str("^C\n")?;
                return Ok(Event::Cancel);
            }
            (Escape::None, 8 | 0x7f) => self.delete(self.before(self.cursor), self.cursor, out)?,
            (Escape::None, 1) => self.go(0, out)?,
            (Escape::None, 5) => self.go(self.len, out)?,
            (Escape::None, 2) => self.go(self.before(self.cursor), out)?,
            (Escape::None, 6) => self.go(self.after(self.cursor), out)?,
            (Escape::None, 4) => self.delete(self.cursor, self.after(self.cursor), out)?,
            (Escape::None, 0x0b) => self.delete(self.cursor, self.len, out)?,
            (Escape::None, 0x15) => self.delete(0, self.cursor, out)?,
            (Escape::None, 0x17) => self.delete(self.word(), self.cursor, out)?,
            (Escape::None, 0x10) => self.recall(self.back + 1, out)?,
            (Escape::None, 0x0e) => self.recall(self.back.saturating_sub(1), out)?,
            // A tab is a space here.
            (Escape::None, b'\t') => self.character(b' ', out)?,
            (Escape::None, 0..0x20) => {}
            (Escape::None, _) => self.character(byte, out)?,
        }
        Ok(Event::None)
    }

    /// The end of an escape sequence.
    fn special(&mut self, number: u16, byte: u8, out: &mut dyn Write) -> fmt::Result {
        match (byte, number) {
            (b'A', _) => self.recall(self.back + 1, out),
            (b'B', _) => self.recall(self.back.saturating_sub(1), out),
            (b'C', _) => self.go(self.after(self.cursor), out),
            (b'D', _) => self.go(self.before(self.cursor), out),
            (b'H', _) | (b'~', 1 | 7) => self.go(0, out),
            (b'F', _) | (b'~', 4 | 8) => self.go(self.len, out),
            (b'~', 3) => self.delete(self.cursor, self.after(self.cursor), out),
            _ => Ok(()),
        }
    }

    /// A byte of text: inserted when its character is complete. What is no UTF-8 is dropped.
    #[inline(never)]
    fn character(&mut self, byte: u8, out: &mut dyn Write) -> fmt::Result {
        if byte & 0xc0 != 0x80 {
            self.partial_len = 0;
        }
        let Some(place) = self.partial.get_mut(self.partial_len) else {
            self.partial_len = 0;
            return Ok(());
        };
        *place = byte;
        self.partial_len += 1;
        let bytes = self.partial;
        let Ok(text) = core::str::from_utf8(&bytes[..self.partial_len]) else { return Ok(()) };
        self.partial_len = 0;
        self.insert(text, out)
    }

    fn insert(&mut self, text: &str, out: &mut dyn Write) -> fmt::Result {
        let (at, grown) = (self.cursor, self.len + text.len());
        if grown > LINE {
            // A bell: the line is full.
            return out.write_str("\x07");
        }
        self.line.copy_within(at..self.len, at + text.len());
        self.line[at..at + text.len()].copy_from_slice(text.as_bytes());
        self.len = grown;
        self.cursor = at + text.len();
        out.write_str(self.between(at, self.len))?;
        back(out, self.between(self.cursor, self.len))
    }

    #[inline(never)]
    fn delete(&mut self, from: usize, to: usize, out: &mut dyn Write) -> fmt::Result {
        if from >= to {
            return Ok(());
        }
        self.go(from, out)?;
        self.line.copy_within(to..self.len, from);
        self.len -= to - from;
        out.write_str(self.between(from, self.len))?;
        // Erase to the end of the line.
        out.write_str("\x1b[K")?;
        back(out, self.between(from, self.len))
    }

    #[inline(never)]
    fn go(&mut self, to: usize, out: &mut dyn Write) -> fmt::Result {
        if to < self.cursor {
            back(out, self.between(to, self.cursor))?;
        } else {
            out.write_str(self.between(self.cursor, to))?;
        }
        self.cursor = to;
        Ok(())
    }

    fn before(&self, at: usize) -> usize {
        self.between(0, at).chars().next_back().map_or(0, |c| at - c.len_utf8())
    }

    fn after(&self, at: usize) -> usize {
        self.between(at, self.len).chars().next().map_or(self.len, |c| at + c.len_utf8())
    }

    /// The start of the word before the cursor.
    fn word(&self) -> usize {
        let before = self.between(0, self.cursor).trim_end();
        before.rfind(' ').map_or(0, |space| space + 1)
    }

    /// Keeps the line, and drops the oldest ones where there is no room.
    fn remember(&mut self) {
        let need = self.len + 1;
        if self.len == 0
            || need > HISTORY
            || self.nth_back(1).is_some_and(|range| self.history[range] == self.line[..self.len])
        {
            return;
        }
        while self.history_len + need > HISTORY {
            let first = self.history[..self.history_len].iter().position(|byte| *byte == b'\n');
            let dropped = first.map_or(self.history_len, |end| end + 1);
            self.history.copy_within(dropped..self.history_len, 0);
            self.history_len -= dropped;
        }
        let at = self.history_len;
        self.history[at..at + self.len].copy_from_slice(&self.line[..self.len]);
        self.history[at + self.len] = b'\n';
        self.history_len += need;
    }

    /// Where the line lies that is `n` lines back.
    fn nth_back(&self, n: usize) -> Option<core::ops::Range<usize>> {
        let all = self.history[..self.history_len].strip_suffix(b"\n")?;
        let line = all.rsplit(|byte| *byte == b'\n').nth(n.checked_sub(1)?)?;
        let start = line.as_ptr() as usize - all.as_ptr() as usize;
        Some(start..start + line.len())
    }

    #[inline(never)]
    fn recall(&mut self, n: usize, out: &mut dyn Write) -> fmt::Result {
        let range = self.nth_back(n).unwrap_or(0..0);
        if n == self.back || (n > 0 && range.is_empty()) {
            return Ok(());
        }
        self.go(0, out)?;
        self.len = range.len();
        self.line[..self.len].copy_from_slice(&self.history[range]);
        out.write_str("\x1b[K")?;
        out.write_str(self.line())?;
        (self.cursor, self.back) = (self.len, n);
        Ok(())
    }
}

/// Moves the cursor back over a text, of which every character takes one column.
// Not inlined, like others here: code size matters more than speed.
#[inline(never)]
fn back(out: &mut dyn Write, over: &str) -> fmt::Result {
    let columns = over.chars().count();
    if columns > 0 { write!(out, "\x1b[{columns}D") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Event;
    use std::borrow::ToOwned;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    const LENGTH: usize = 2048;
    const HISTORY: usize = 4096;
    type Editor = super::Editor<LENGTH, HISTORY>;

    /// A terminal's line: what is shown, and where the cursor is.
    fn screen(output: &str) -> (String, usize) {
        let (mut line, mut at) = (Vec::<char>::new(), 0);
        let mut chars = output.chars();
        while let Some(c) = chars.next() {
            match c {
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let sequence: String = chars.by_ref().take_while(|c| c.is_ascii_digit()).collect();
                    // `take_while` has taken the letter.
                    match sequence.parse::<usize>() {
                        Ok(n) => at -= n,
                        Err(_) => line.truncate(at),
                    }
                }
                '\n' => (line, at) = (Vec::new(), 0),
                '\x07' => {}
                c => {
                    if at == line.len() {
                        line.push(c)
                    } else {
                        line[at] = c
                    }
                    at += 1;
                }
            }
        }
        (line.into_iter().collect(), at)
    }

    fn type_in(editor: &mut Editor, keys: &str, output: &mut String) -> Event {
        keys.bytes().fold(Event::None, |_, byte| editor.key(byte, output).unwrap())
    }

    /// Types keys into a new editor; the screen must show the line at every moment.
    fn typed(keys: &str) -> (String, usize) {
        let (mut editor, mut output) = (Editor::new(), String::new());
        for byte in keys.bytes() {
            editor.key(byte, &mut output).unwrap();
            let (shown, column) = screen(&output);
            assert_eq!(shown, editor.line(), "after {byte:#x} of {keys:?}");
            assert_eq!(column, editor.line()[..editor.cursor].chars().count(), "after {byte:#x} of {keys:?}");
        }
        (editor.line().to_owned(), editor.cursor)
    }

    #[test]
    fn keys_edit_the_line() {
        for (keys, line, cursor) in [
            ("abc", "abc", 3),
            ("abc\x7f\x08d", "ad", 2),
            ("abc\x1b[D\x1b[DX", "aXbc", 2),
            ("größe\x1b[D\x1b[D\x7f", "grße", 2),
            ("één\x01\x1b[3~\x04", "n", 0),
            ("one two  three\x17\x17", "one ", 4),
            ("one two\x1b[H\x1b[C\x0b", "o", 1),
            ("one two\x02\x02\x15", "wo", 0),
            ("ab\x1b[1~c\x1b[4~d\x1b[7~e\x1bOF", "ecabd", 5),
            ("a\x1b[5~\x1bxb\x1b[1;5D", "ab", 1),
            ("\x7f\x04\x0b\x15\x17\x1b[D\x1b[C", "", 0),
            ("a\tb\x00\x1f", "a b", 3),
        ] {
            assert_eq!(typed(keys), (line.to_owned(), cursor), "{keys:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_dropped() {
        let (mut editor, mut output) = (Editor::new(), String::new());
        for byte in [0xff, b'a', 0xc3, b'b', 0xe2, 0x82, 0xac, 0x80, 0xf0, 0x9f, 0x90, 0x8d, 0xc0, 0xaf] {
            editor.key(byte, &mut output).unwrap();
        }
        assert_eq!(editor.line(), "ab€🐍");
    }

    #[test]
    fn lines_end_once_and_come_back() {
        let (mut editor, mut output) = (Editor::new(), String::new());
        for line in ["first\r", "\nsecond\n", "second\r\n", ""] {
            if type_in(&mut editor, line, &mut output) == Event::Line || line.ends_with('\n') {
                editor.clear();
            }
        }
        let mut recalled = |keys: &str| {
            type_in(&mut editor, keys, &mut output);
            editor.line().to_owned()
        };
        assert_eq!(recalled("typing"), "typing");
        assert_eq!(recalled("\x1b[A"), "second");
        assert_eq!(recalled("\x1b[A"), "first");
        assert_eq!(recalled("\x1b[A"), "first");
        assert_eq!(recalled("\x1b[B"), "second");
        assert_eq!(recalled("\x1b[B"), "");
        assert_eq!(recalled("\x10!"), "second!");
        assert_eq!(type_in(&mut editor, "\x03", &mut output), Event::Cancel);
        assert_eq!(editor.line(), "");
    }

    #[test]
    fn a_full_line_and_a_long_history() {
        let (mut editor, mut output) = (Editor::new(), String::new());
        for i in 0..20 {
            let line = format!("{i} {}\r", "x".repeat(500));
            assert_eq!(type_in(&mut editor, &line, &mut output), Event::Line);
            editor.clear();
        }
        assert!(editor.history_len <= HISTORY);
        type_in(&mut editor, "\x1b[A", &mut output);
        assert!(editor.line().starts_with("19 x"));
        editor.clear();
        type_in(&mut editor, &"é".repeat(LENGTH), &mut output);
        assert_eq!(editor.line().len(), LENGTH);
        assert!(output.contains('\x07'));
    }

    #[test]
    fn without_a_history_no_line_comes_back() {
        let (mut editor, mut output) = (super::Editor::<8, 0>::new(), String::new());
        for byte in b"first\r\x1b[A\x10" {
            if editor.key(*byte, &mut output).unwrap() == Event::Line {
                editor.clear();
            }
        }
        assert_eq!(editor.line(), "");
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let (mut editor, mut output) = (Editor::new(), String::new());
        let mut random = 1u64;
        for _ in 0..200_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let byte = match (random >> 40) % 4 {
                0 => (random >> 50) as u8,
                1 => *b"\x1b[ABCD~3\r\n\x17\x7f".get((random >> 50) as usize % 12).unwrap(),
                _ => b'a',
            };
            if editor.key(byte, &mut output).unwrap() == Event::Line {
                editor.clear();
            }
            assert!(editor.cursor <= editor.len && editor.line().is_char_boundary(editor.cursor));
            output.clear();
        }
    }
}
