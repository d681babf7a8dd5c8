//! The memory that the program may use.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

/// What lies below is the kernel's.
const FREE_FROM: u64 = 2 << 20;

/// All memory in `ranges` behind the kernel, as bytes. Nothing the second time.
///
/// # Safety
/// Each range must be RAM that nothing else uses (the firmware's is not), and they must not overlap.
pub unsafe fn free_memory<const N: usize>(ranges: [Range<u64>; N]) -> [&'static mut [u8]; N] {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let taken = TAKEN.swap(true, Ordering::Relaxed);
    ranges.map(|range| {
        let start = range.start.max(FREE_FROM);
        if taken || range.end <= start {
            return Default::default();
        }
        // SAFETY: RAM of the caller's word, mapped, above the kernel, given out once. Any bytes are a valid `[u8]`.
        unsafe { core::slice::from_raw_parts_mut(start as *mut u8, (range.end - start) as usize) }
    })
}
