//! What is on the board: the console, the firmware's mailbox, the card's host controller, and where they are.
#![allow(unsafe_code)]

mod mailbox;
mod power;
mod registers;
mod sdhci;
mod uart;

use core::fmt;
use core::ops::Range;

pub use mailbox::{Clock, Mailbox};
pub use power::restart;
pub use sdhci::{Answer, Fault, Host, card_hosts};
pub use uart::Uart;

use crate::arch;
use registers::Registers;

/// The machines that this kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Raspberry Pi 3, and the Zero 2 W, which has the same chip.
    Pi3,
    /// Raspberry Pi 4, 400 and Compute Module 4.
    Pi4,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pi3 => "Raspberry Pi 3",
            Self::Pi4 => "Raspberry Pi 4",
        })
    }
}

/// The machine that the CPU tells: a Cortex-A72 is a Raspberry Pi 4's. On any other, a Raspberry Pi 3's devices are the best
/// guess.
#[must_use]
pub fn machine() -> Machine {
    const CORTEX_A72: u32 = 0xd08;
    if arch::cpu_part() == CORTEX_A72 { Machine::Pi4 } else { Machine::Pi3 }
}

/// Where devices are in memory.
#[must_use]
pub fn device_memory() -> Range<u64> {
    match machine() {
        Machine::Pi3 => 0x3f00_0000..0x4020_0000,
        Machine::Pi4 => 0xfc00_0000..0x1_0000_0000,
    }
}

/// The registers of a peripheral, by its offset.
fn peripheral(offset: usize, length: usize) -> Registers {
    let base = match machine() {
        Machine::Pi3 => 0x3f00_0000,
        Machine::Pi4 => 0xfe00_0000,
    };
    // SAFETY: in the board's device memory, which is mapped as such; the callers below name devices of both boards.
    unsafe { Registers::new(base + offset, length) }
}

/// The memory that is the program's, from what the firmware says.
#[must_use]
pub fn memory(mailbox: &mut Mailbox) -> [Range<u64>; 2] {
    let low = mailbox.arm_memory().unwrap_or(128 << 20);
    let all = mailbox.board_memory().unwrap_or(low);
    // The GPU has the end of the first gigabyte. A Raspberry Pi 4 has more behind it, up to the devices.
    let low = low.min(device_memory().start).min(1 << 30);
    match machine() {
        Machine::Pi3 => [0..low, 0..0],
        Machine::Pi4 => [0..low, 1 << 30..all.min(device_memory().start)],
    }
}
