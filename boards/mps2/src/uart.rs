//! The UART of Arm's Cortex-M System Design Kit (DDI 0479, chapter 4.4).

use core::fmt;

/// Transmit buffer full.
const TX_FULL: u32 = 1;
/// Receive buffer full.
const RX_FULL: u32 = 1 << 1;
const ENABLE_BOTH: u32 = 0b11;
/// The smallest divider that the UART takes. Where the FPGA image runs, the host's terminal sees 25 MHz / 217 = 115,200.
const DIVIDER: u32 = 217;

/// A UART that is polled.
#[derive(Debug)]
pub struct Uart {
    base: *mut u32,
}

impl Uart {
    /// The UART whose registers are at `base`. [`Uart::enable`] switches it on.
    ///
    /// # Safety
    /// There must be a CMSDK UART at `base`, and no other `Uart` for it.
    #[must_use]
    pub const unsafe fn new(base: usize) -> Self {
        Self { base: base as *mut u32 }
    }

    /// Switches it on.
    pub fn enable(&mut self) {
        self.write_register(Register::Divider, DIVIDER);
        self.write_register(Register::Control, ENABLE_BOTH);
    }

    /// The next byte, if one has come.
    pub fn poll(&mut self) -> Option<u8> {
        let come = self.read_register(Register::State) & RX_FULL != 0;
        come.then(|| self.read_register(Register::Data) as u8)
    }

    fn put(&mut self, byte: u8) {
        while self.read_register(Register::State) & TX_FULL != 0 {}
        self.write_register(Register::Data, u32::from(byte));
    }

    fn read_register(&self, register: Register) -> u32 {
        // SAFETY: `new` was told that the registers are there.
        unsafe { self.base.add(register as usize).read_volatile() }
    }

    fn write_register(&mut self, register: Register, value: u32) {
        // SAFETY: as above.
        unsafe { self.base.add(register as usize).write_volatile(value) }
    }
}

/// Registers, in words from the base.
#[derive(Clone, Copy)]
enum Register {
    Data = 0,
    State = 1,
    Control = 2,
    Divider = 4,
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
