//! Addresses that are set aside and never used.
#![allow(unsafe_code)]

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
