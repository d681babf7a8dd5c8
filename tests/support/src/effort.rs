//! How much of what it could do a test does.

/// Whether the CPU is emulated, 10 to 30 times slower than a real one: tests take a small part of their inputs.
pub fn emulated() -> bool {
    std::env::var_os("ELAPID_EMULATED").is_some()
}

/// Whether everything is taken: `cargo xtask test --full`.
pub fn full() -> bool {
    std::env::var_os("ELAPID_FULL").is_some()
}

/// Of inputs that take minutes when all are taken, one in how many is: all with `cargo xtask test --full`, one in `sampled`
/// otherwise, one in `few` on an emulated CPU.
pub fn stride(sampled: usize, few: usize) -> usize {
    match (emulated(), full()) {
        (true, _) => few,
        (false, true) => 1,
        (false, false) => sampled,
    }
}
