//! How much stack was ever used: cortex-m-rt's `paint-stack` fills it with a pattern before anything runs.

use cortex_m_rt::STACK_PAINT_VALUE as PAINT;

unsafe extern "C" {
    static mut _stack_start: u32;
    static mut _stack_end: u32;
}

/// Bytes between the stack's start and the deepest word that is no longer painted.
#[must_use]
pub fn used() -> usize {
    let (top, end) = (&raw const _stack_start, &raw const _stack_end);
    let mut at = end;
    // SAFETY: the linker script puts RAM between the two symbols; words are read below the stack pointer, where nothing
    // that this program refers to lies, and volatile, as their values are no language's business.
    while at < top && unsafe { at.read_volatile() } == PAINT {
        at = at.wrapping_add(1);
    }
    top as usize - at as usize
}
