//! The serial line as people use it.

use core::fmt::{self, Write};

use elapid_pi_bare::console::{Editor, Event};

use crate::board::Uart;

/// Bytes that were typed while a text was being generated.
const TYPED_AHEAD: usize = 1024;

/// The console with its line editor.
pub struct Terminal {
    uart: Uart,
    editor: Editor,
    ahead: [u8; TYPED_AHEAD],
    ahead_len: usize,
}

impl Terminal {
    /// A terminal at a console.
    #[must_use]
    pub const fn new(uart: Uart) -> Self {
        Self { uart, editor: Editor::new(), ahead: [0; TYPED_AHEAD], ahead_len: 0 }
    }

    /// Shows `prompt`, and returns the line that is typed.
    pub fn line(&mut self, prompt: &str) -> &str {
        self.editor.clear();
        // The console can't fail.
        let _ = self.uart.write_str(prompt);
        let mut taken = 0;
        loop {
            let byte = if taken < self.ahead_len {
                taken += 1;
                self.ahead[taken - 1]
            } else if let Some(byte) = self.uart.read() {
                byte
            } else {
                core::hint::spin_loop();
                continue;
            };
            match self.editor.key(byte, &mut self.uart) {
                Ok(Event::Line) => break,
                Ok(Event::Cancel) => {
                    let _ = self.uart.write_str(prompt);
                }
                Ok(Event::None) | Err(_) => {}
            }
        }
        self.ahead.copy_within(taken..self.ahead_len, 0);
        self.ahead_len -= taken;
        self.editor.line()
    }

    /// Looks at what has been typed, and keeps it for the next line. True if Ctrl-C was.
    pub fn interrupted(&mut self) -> bool {
        let mut interrupted = false;
        while let Some(byte) = self.uart.read() {
            if byte == 3 {
                self.ahead_len = 0;
                interrupted = true;
            } else if let Some(place) = self.ahead.get_mut(self.ahead_len) {
                *place = byte;
                self.ahead_len += 1;
            }
        }
        interrupted
    }

    /// Waits until everything is on the line.
    pub fn flush(&mut self) {
        self.uart.flush();
    }
}

impl Write for Terminal {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.uart.write_str(text)
    }
}

/// Writes a line. The console can't fail.
macro_rules! say {
    ($terminal:expr, $($text:tt)*) => {{
        let _ = core::fmt::Write::write_fmt($terminal, format_args!("{}\n", format_args!($($text)*)));
    }};
}
pub(crate) use say;
