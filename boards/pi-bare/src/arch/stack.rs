//! How much of their stacks the cores have used: what is free is painted before anything runs.

use core::arch::asm;
use core::ops::Range;

use super::CORES;

/// As in `kernel8.ld`, in words.
const STACK: usize = 0x2_0000 / 8;
const PAGE: usize = 0x1000 / 8;
/// Nothing that a program leaves on a stack is likely to look like this.
const PAINT: u64 = 0x5eed_ba5e_c0a7_ed00;

unsafe extern "C" {
    static mut __stacks: u64;
}

/// The stack of a core, without the page below it that is not there.
fn of(core: usize) -> Range<*mut u64> {
    let start = (&raw mut __stacks).wrapping_add((core % CORES) * (PAGE + STACK) + PAGE);
    start..start.wrapping_add(STACK)
}

/// Paints what is free of the stack of the calling core, whose number is `core`.
pub(super) fn paint(core: usize) {
    let top: *mut u64;
    // SAFETY: copies the stack pointer.
    unsafe { asm!("mov {}, sp", out(reg) top, options(nomem, nostack, preserves_flags)) };
    let mut at = of(core).start;
    while at < top {
        // SAFETY: the linker script puts memory there, and nothing lies below a stack pointer.
        unsafe { at.write_volatile(PAINT) };
        at = at.wrapping_add(1);
    }
}

/// Bytes of stack that the core has used which used most.
#[must_use]
pub fn used() -> usize {
    let of_core = |core| {
        let Range { start, end } = of(core);
        let mut at = start;
        // SAFETY: the stacks are memory; words are read as they happen to be, where no object of this program lies or
        // another core has one of its own, and only compared with the paint.
        while at < end && unsafe { at.read_volatile() } == PAINT {
            at = at.wrapping_add(1);
        }
        end as usize - at as usize
    };
    (0..CORES).map(of_core).max().unwrap_or(0)
}
