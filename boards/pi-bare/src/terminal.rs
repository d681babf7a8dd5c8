//! The serial line as the console wants it.

use core::fmt::{self, Write};

use elapid_console::Platform;

use crate::arch;
use crate::board::{Fault, Uart};

/// The serial line, with the board's clock.
pub struct Terminal {
    uart: Uart,
}

impl Terminal {
    /// A terminal at a serial line.
    #[must_use]
    pub const fn new(uart: Uart) -> Self {
        Self { uart }
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

impl Platform for Terminal {
    fn poll(&mut self) -> Option<u8> {
        self.uart.read()
    }

    /// Microseconds.
    fn ticks(&mut self) -> u64 {
        arch::now().as_micros() as u64
    }

    fn ticks_a_second(&self) -> u32 {
        1_000_000
    }

    fn stack_used(&self) -> Option<usize> {
        Some(arch::stack_used())
    }

    fn storage_fault(&self, code: i32) -> Option<&'static str> {
        Fault::from_code(code).map(Fault::text)
    }
}

/// Writes a line. The console can't fail.
macro_rules! say {
    ($terminal:expr, $($text:tt)*) => {{
        let _ = core::fmt::Write::write_fmt($terminal, format_args!("{}\n", format_args!($($text)*)));
    }};
}
pub(crate) use say;
