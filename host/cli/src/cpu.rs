//! Whether the CPU has what the program was compiled for, asked before anything else runs.

/// The first feature that it lacks.
#[cfg(not(all(target_arch = "aarch64", target_os = "linux")))]
pub(crate) fn missing_feature() -> Option<&'static str> {
    elapid::core::cpu::missing_feature()
}

/// The first feature that it lacks, from the vector that the kernel hands to every program.
///
/// The standard library's detection can't tell: it takes what the program was compiled for as given.
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
pub(crate) fn missing_feature() -> Option<&'static str> {
    /// Of the auxiliary vector's entries, two words each: which, and what.
    const HWCAP: u64 = 16;
    const HWCAP2: u64 = 26;

    macro_rules! features {
        ($($name:tt: $word:ident $place:literal,)+) => {
            [$((cfg!(target_feature = $name), $name, $word, 1u64 << $place)),+]
        };
    }
    /// Features of which compilers make use by themselves, and their bits in Linux.
    const FEATURES: [(bool, &str, u64, u64); 18] = features! {
        "neon": HWCAP 1,
        "aes": HWCAP 3,
        "sha2": HWCAP 6,
        "crc": HWCAP 7,
        "lse": HWCAP 8,
        "fp16": HWCAP 10,
        "rdm": HWCAP 12,
        "jsconv": HWCAP 13,
        "fcma": HWCAP 14,
        "rcpc": HWCAP 15,
        "sha3": HWCAP 17,
        "dotprod": HWCAP 20,
        "sve": HWCAP 22,
        "fhm": HWCAP 23,
        "rcpc2": HWCAP 26,
        "sve2": HWCAP2 1,
        "i8mm": HWCAP2 13,
        "bf16": HWCAP2 14,
    };

    let vector = std::fs::read("/proc/self/auxv").ok()?;
    let words = vector.as_chunks::<8>().0;
    let word = |which: u64| {
        let mut pairs = words.chunks_exact(2);
        pairs.find(|pair| u64::from_ne_bytes(pair[0]) == which).map_or(0, |pair| u64::from_ne_bytes(pair[1]))
    };
    let (first, second) = (word(HWCAP), word(HWCAP2));
    let missing = |(compiled, _, which, bit): &&(bool, &str, u64, u64)| {
        let found = if *which == HWCAP { first } else { second };
        *compiled && found & bit == 0
    };
    FEATURES.iter().find(missing).map(|(_, name, ..)| *name)
}
