//! Questions to the firmware on the GPU.
//!
//! <https://github.com/raspberrypi/firmware/wiki/Mailbox-property-interface>

use core::time::Duration;

use super::peripheral;
use super::registers::Registers;
use crate::arch;

const MAILBOX: usize = 0xb880;
const READ: usize = 0x00;
const STATUS: usize = 0x18;
const WRITE: usize = 0x20;
const FULL: u32 = 1 << 31;
const EMPTY: u32 = 1 << 30;
/// The channel of questions by tags.
const PROPERTIES: u32 = 8;
/// What the GPU sees at this address is memory as the ARM cores see it at 0, past the GPU's own cache.
const UNCACHED: u32 = 0xc000_0000;
const PATIENCE: Duration = Duration::from_millis(500);

/// A clock that the firmware sets.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Clock {
    /// The older card controller.
    Emmc = 1,
    /// The console.
    Uart = 2,
    /// The cores.
    Arm = 3,
    /// The newer card controller.
    Emmc2 = 12,
}

mod tag {
    pub const BOARD_REVISION: u32 = 0x0001_0002;
    pub const ARM_MEMORY: u32 = 0x0001_0005;
    pub const CLOCK_RATE: u32 = 0x0003_0002;
    pub const MAX_CLOCK_RATE: u32 = 0x0003_0004;
    pub const SET_CLOCK_RATE: u32 = 0x0003_8002;
}

/// On lines of the cache that nothing else is on.
#[repr(C, align(64))]
struct Message([u32; 16]);

/// The way to the firmware.
pub struct Mailbox {
    registers: Registers,
    message: Message,
}

impl Mailbox {
    /// The mailbox. There must be only one at a time, or answers go astray.
    #[must_use]
    pub fn new() -> Self {
        Self { registers: peripheral(MAILBOX, 0x40), message: Message([0; 16]) }
    }

    /// Bytes from address 0 on that are the ARM cores'.
    pub fn arm_memory(&mut self) -> Option<u64> {
        let [base, size] = self.ask(tag::ARM_MEMORY, [0, 0])?;
        Some(u64::from(base) + u64::from(size)).filter(|end| *end > 0)
    }

    /// Bytes of memory on the board, as its revision says.
    pub fn board_memory(&mut self) -> Option<u64> {
        let [revision, _] = self.ask(tag::BOARD_REVISION, [0, 0])?;
        const NEW_STYLE: u32 = 1 << 23;
        (revision & NEW_STYLE != 0).then(|| (256 << 20) << (revision >> 20 & 7))
    }

    /// A clock's rate in Hz.
    pub fn rate(&mut self, clock: Clock) -> Option<u32> {
        let [_, rate] = self.ask(tag::CLOCK_RATE, [clock as u32, 0])?;
        Some(rate).filter(|rate| *rate > 0)
    }

    /// Sets the cores to the fastest rate that the firmware allows, and returns it in Hz. It starts programs such as this
    /// one at a slower rate.
    pub fn full_speed(&mut self) -> Option<u32> {
        let arm = Clock::Arm as u32;
        let [_, most] = self.ask(tag::MAX_CLOCK_RATE, [arm, 0])?;
        // The third word: leave the turbo setting alone.
        self.exchange([tag::SET_CLOCK_RATE, 12, 0, arm, most, 1])?;
        self.rate(Clock::Arm)
    }

    fn ask(&mut self, tag: u32, values: [u32; 2]) -> Option<[u32; 2]> {
        self.exchange([tag, 8, 0, values[0], values[1], 0])
    }

    /// Sends one tag with its values, and returns the first two words of the answer.
    fn exchange(&mut self, question: [u32; 6]) -> Option<[u32; 2]> {
        let words = &mut self.message.0;
        words.fill(0);
        words[0] = size_of::<Message>() as u32;
        words[2..8].copy_from_slice(&question);
        self.flush();
        let address = &raw const self.message as u32 | UNCACHED | PROPERTIES;
        let waited = |register, flag| {
            let start = arch::now();
            while self.registers.read(register) & flag != 0 {
                if arch::now().saturating_sub(start) > PATIENCE {
                    return None;
                }
            }
            Some(())
        };
        waited(STATUS, FULL)?;
        self.registers.write(WRITE, address);
        while waited(STATUS, EMPTY).is_some() {
            if self.registers.read(READ) & 15 == PROPERTIES {
                self.flush();
                // The GPU has written to it.
                // SAFETY: a reference to words that are initialised; volatile, because the compiler has not seen a write.
                let words = unsafe { (&raw const self.message.0).read_volatile() };
                let (done, answered) = (words[1] == 0x8000_0000, words[4] >> 31 == 1);
                return (done && answered).then_some([words[5], words[6]]);
            }
        }
        None
    }

    fn flush(&self) {
        let words = self.message.0.as_ptr();
        // SAFETY: the bytes of the message.
        arch::flush(unsafe { core::slice::from_raw_parts(words.cast(), size_of::<Message>()) });
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}
