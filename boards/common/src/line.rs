//! A line typed on a console.

use core::fmt;

use heapless::Vec;

use crate::{Error, Platform};

const BACKSPACE: u8 = 8;
const DELETE: u8 = 127;
/// Ctrl-U: the line so far is thrown away.
const KILL: u8 = 21;
const ESCAPE: u8 = 27;

/// Reads a line, echoes it, and lets it be corrected. Cursor keys and the like are passed over.
///
/// # Errors
/// [`Error::Long`] or [`Error::NotText`], after the whole line was read.
pub(crate) fn read<'l, const N: usize>(
    platform: &mut dyn Platform,
    line: &'l mut Vec<u8, N>,
) -> Result<&'l str, Error> {
    line.clear();
    let mut long = false;
    loop {
        match platform.read() {
            b'\r' | b'\n' => break,
            BACKSPACE | DELETE => rub_out(platform, line),
            KILL => {
                while !line.is_empty() {
                    rub_out(platform, line);
                }
            }
            ESCAPE => {
                // ESC [ parameters letter.
                if platform.read() == b'[' {
                    while !platform.read().is_ascii_alphabetic() {}
                }
            }
            byte if byte < b' ' && byte != b'\t' => {}
            byte => {
                long |= line.push(byte).is_err();
                if !long {
                    echo(platform, line);
                }
            }
        }
    }
    say(platform, format_args!("\n"));
    if long {
        return Err(Error::Long(N));
    }
    core::str::from_utf8(line).map_err(|_| Error::NotText)
}

/// Shows the last character, once all its bytes are there.
fn echo(platform: &mut dyn Platform, line: &[u8]) {
    let start = line.iter().rposition(|byte| !is_continuation(*byte)).unwrap_or(0);
    if let Some(Ok(character)) = line.get(start..).map(core::str::from_utf8) {
        say(platform, format_args!("{character}"));
    }
}

/// Takes the last character away.
fn rub_out<const N: usize>(platform: &mut dyn Platform, line: &mut Vec<u8, N>) {
    if line.is_empty() {
        return;
    }
    while line.pop().is_some_and(is_continuation) {}
    say(platform, format_args!("\u{8} \u{8}"));
}

const fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Writes to the console. That it can't be written to can't be said anywhere.
pub(crate) fn say(platform: &mut dyn Platform, text: fmt::Arguments<'_>) {
    let _ = platform.write_fmt(text);
}
