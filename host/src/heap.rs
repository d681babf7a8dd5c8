//! Memory from the heap: zeros that cost nothing before they are used, and addresses that are set aside and never are.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};

use elapid_core::kernels::Scale;
use elapid_core::kernels::fixed::{Group, Inverse, Range};

use crate::Error;

/// Numbers, and structures of numbers alone.
///
/// # Safety
/// Bytes that are all 0 must be a value of the type.
pub(crate) unsafe trait Zeroable {}

macro_rules! zeroable {
    ($($name:ty),+) => {
        $(
            // SAFETY: integers and floats, or a structure of nothing else.
            unsafe impl Zeroable for $name {}
        )+
    };
}
zeroable!(f32, i32, u32, i16, u16, i8, Scale, Group, Inverse, Range);

/// Zeros, or an error where the system has no memory for them.
pub(crate) fn zeros<T: Zeroable>(what: &'static str, len: usize) -> Result<Vec<T>, Error> {
    let bytes = len.saturating_mul(size_of::<T>());
    zeroed(len).ok_or(Error::Memory { what, bytes, smaller_state: None })
}

/// Zeros; none if the system has no memory for them. Large ones take memory, and time, only where they are used: the system
/// makes zeros of a page when it is touched first. That should be by writing: a page that is read first is met twice.
fn zeroed<T: Zeroable>(len: usize) -> Option<Vec<T>> {
    let layout = Layout::array::<T>(len).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout has bytes.
    let start: *mut T = unsafe { alloc_zeroed(layout) }.cast();
    if start.is_null() {
        return None;
    }
    #[cfg(target_os = "linux")]
    expect_use(start.cast(), layout.size());
    // SAFETY: allocated as a vector of `len` elements allocates, and all of them are values.
    Some(unsafe { Vec::from_raw_parts(start, len, len) })
}

/// Keeps the small allocations of all threads in one heap, where the C library would give each thread its own and set 64 MiB of
/// addresses aside for it. They are no memory, but a limit on addresses (`ulimit -v`) counts them. For a program to call at its
/// start; it is only advice, and threads that compute allocate nothing.
pub fn one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes any parameter and value, and returns whether it knew them.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Asks for pages of 2 MiB for memory that is to be used from end to end, where it holds some: a state of 38 MiB in pages of 4 KiB
/// takes ten thousand page faults, and as long to be freed. It is only advice.
#[cfg(target_os = "linux")]
fn expect_use(start: *mut u8, len: usize) {
    const PAGE: usize = 2 << 20;
    let skipped = start.addr().next_multiple_of(PAGE) - start.addr();
    let pages = len.saturating_sub(skipped) / PAGE;
    if pages > 0 {
        // SAFETY: of pages that are whole within an allocation; their content stays.
        unsafe { libc::madvise(start.add(skipped).cast(), pages * PAGE, libc::MADV_HUGEPAGE) };
    }
}
