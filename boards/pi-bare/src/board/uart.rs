//! The console: a PL011 at pins 14 (to the other side) and 15 (from it), 115,200 baud, 8 bits, no parity.

use core::fmt;
use core::time::Duration;

use super::registers::Registers;
use super::{Clock, Mailbox, peripheral};
use crate::arch;

const UART: usize = 0x20_1000;
const GPIO: usize = 0x20_0000;
const BAUD: u32 = 115_200;
/// The UART's clock where the firmware does not say.
const USUAL_CLOCK: u32 = 48_000_000;

/// Registers of the PL011 (Arm DDI 0183).
mod reg {
    pub const DATA: usize = 0x00;
    pub const FLAGS: usize = 0x18;
    pub const BAUD_INTEGER: usize = 0x24;
    pub const BAUD_FRACTION: usize = 0x28;
    pub const LINE: usize = 0x2c;
    pub const CONTROL: usize = 0x30;
    pub const INTERRUPT_MASK: usize = 0x38;
    pub const CLEAR: usize = 0x44;
}

mod flag {
    pub const BUSY: u32 = 1 << 3;
    pub const NOTHING_RECEIVED: u32 = 1 << 4;
    pub const FULL: u32 = 1 << 5;
}

/// The console. Written to, it turns `\n` into `\r\n`.
pub struct Uart(Registers);

impl Uart {
    /// Sets the console up.
    #[must_use]
    pub fn new(mailbox: &mut Mailbox) -> Self {
        connect_pins();
        let clock = mailbox.rate(Clock::Uart).filter(|rate| *rate >= 16 * BAUD).unwrap_or(USUAL_CLOCK);
        let uart = peripheral(UART, 0x1000);
        uart.write(reg::CONTROL, 0);
        uart.write(reg::INTERRUPT_MASK, 0);
        uart.write(reg::CLEAR, 0x7ff);
        // In 64ths, rounded.
        let divisor = (4 * clock + BAUD / 2) / BAUD;
        uart.write(reg::BAUD_INTEGER, divisor >> 6);
        uart.write(reg::BAUD_FRACTION, divisor & 63);
        // 8 bits, with FIFOs.
        uart.write(reg::LINE, 3 << 5 | 1 << 4);
        uart.write(reg::CONTROL, 1 << 9 | 1 << 8 | 1);
        Self(uart)
    }

    /// The console as it is, for the end: whoever else was writing will not go on.
    #[must_use]
    pub fn for_last_words() -> Self {
        Self(peripheral(UART, 0x1000))
    }

    /// A byte that has come, if there is one.
    pub fn read(&mut self) -> Option<u8> {
        let none = self.0.read(reg::FLAGS) & flag::NOTHING_RECEIVED != 0;
        // The upper bits tell of errors on the line: the byte is what it is.
        (!none).then(|| self.0.read(reg::DATA) as u8)
    }

    /// Waits until everything is on the line.
    pub fn flush(&mut self) {
        while self.0.read(reg::FLAGS) & flag::BUSY != 0 {
            core::hint::spin_loop();
        }
    }

    fn put(&mut self, byte: u8) {
        while self.0.read(reg::FLAGS) & flag::FULL != 0 {
            core::hint::spin_loop();
        }
        self.0.write(reg::DATA, u32::from(byte));
    }
}

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

/// Gives pins 14 and 15 to the PL011 (alternative 0). The firmware of a Raspberry Pi 3 or 4 gives it to Bluetooth.
fn connect_pins() {
    const SELECT_1: usize = 0x04;
    const PULL: usize = 0x94;
    const PULL_CLOCK: usize = 0x98;
    let gpio = peripheral(GPIO, 0x1000);
    gpio.update(SELECT_1, 0o77 << 12, 0o44 << 12);
    // The older chip's way to take the pulls off; the newer one's firmware has done so, and ignores this.
    gpio.write(PULL, 0);
    arch::wait(Duration::from_micros(5));
    gpio.write(PULL_CLOCK, 3 << 14);
    arch::wait(Duration::from_micros(5));
    gpio.write(PULL_CLOCK, 0);
}
