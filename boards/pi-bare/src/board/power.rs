//! Restarting.

use super::peripheral;
use crate::arch;

const POWER: usize = 0x10_0000;
const RESET_CONTROL: usize = 0x1c;
const WATCHDOG: usize = 0x24;
const PASSWORD: u32 = 0x5a00_0000;
const FULL_RESET: u32 = 0x20;

/// Starts the board again, by its watchdog. (An emulator that was told not to, ends.)
pub fn restart() -> ! {
    let power = peripheral(POWER, 0x100);
    // In 16ths of a millisecond.
    power.write(WATCHDOG, PASSWORD | 10);
    power.write(RESET_CONTROL, PASSWORD | power.read(RESET_CONTROL) & !0x30 | FULL_RESET);
    arch::stop()
}
