//! The CPU's features, against what the compiler was allowed to use, and its caches.
//!
//! The standard library's detection can't tell: it takes what the program was compiled for as given.

use core::arch::x86_64::{__cpuid_count, __get_cpuid_max, _MM_HINT_T0, _mm_prefetch, _xgetbv};

/// Whether the CPU has all the features: detected at run time with feature `std`, else known at compile time.
macro_rules! has {
    ($($feature:tt),+) => {{
        #[cfg(feature = "std")]
        { $(std::arch::is_x86_feature_detected!($feature))&&+ }
        #[cfg(not(feature = "std"))]
        { $(cfg!(target_feature = $feature))&&+ }
    }};
}
pub(crate) use has;

/// Prefetch distance in bytes of kernels that read weights from memory: less than what memory gives in the time of one
/// access to it.
///
/// On a Zen 3 the product of one token reads 1.3 to 1.4 times as fast as without prefetching (18 GB/s, where plain reads
/// reach 14). Prefetched addresses must be contiguous and in order; 4 KiB more lose nearly all of the gain, in any cache.
pub(crate) const PREFETCH_DISTANCE: usize = 1024;

/// Prefetches the cache line `distance` bytes behind the start of `from`. It need not exist.
#[inline(always)]
pub(crate) fn prefetch(from: &u8, distance: usize) {
    // SAFETY: every 64-bit x86 has the instruction, and no address makes it fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(from).wrapping_byte_add(distance).cast()) }
}

/// A bit of CPUID: leaf, subleaf, register, place.
type Bit = (u32, u32, usize, u32);
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
/// Where CPUID says that the operating system has set XCR0.
const OSXSAVE: Bit = (1, 0, ECX, 27);

/// What the operating system must keep for a feature, as bits of XCR0.
const NONE: u64 = 0;
const YMM: u64 = 0b110;
const ZMM: u64 = 0b1110_0110;

macro_rules! features {
    ($($name:tt: $state:ident $bit:tt,)+) => {
        &[$((cfg!(target_feature = $name), $name, $state, $bit)),+]
    };
}

/// Features of which compilers make use by themselves: whether this program was compiled for them, their names, the state
/// to be kept, and where CPUID shows them.
const FEATURES: &[(bool, &str, u64, Bit)] = features! {
    "sse3": NONE (1, 0, ECX, 0),
    "pclmulqdq": NONE (1, 0, ECX, 1),
    "ssse3": NONE (1, 0, ECX, 9),
    "fma": YMM (1, 0, ECX, 12),
    "cmpxchg16b": NONE (1, 0, ECX, 13),
    "sse4.1": NONE (1, 0, ECX, 19),
    "sse4.2": NONE (1, 0, ECX, 20),
    "movbe": NONE (1, 0, ECX, 22),
    "popcnt": NONE (1, 0, ECX, 23),
    "aes": NONE (1, 0, ECX, 25),
    "avx": YMM (1, 0, ECX, 28),
    "f16c": YMM (1, 0, ECX, 29),
    "lzcnt": NONE (0x8000_0001, 0, ECX, 5),
    "sse4a": NONE (0x8000_0001, 0, ECX, 6),
    "tbm": NONE (0x8000_0001, 0, ECX, 21),
    "bmi1": NONE (7, 0, EBX, 3),
    "avx2": YMM (7, 0, EBX, 5),
    "bmi2": NONE (7, 0, EBX, 8),
    "adx": NONE (7, 0, EBX, 19),
    "avx512f": ZMM (7, 0, EBX, 16),
    "avx512dq": ZMM (7, 0, EBX, 17),
    "avx512ifma": ZMM (7, 0, EBX, 21),
    "avx512cd": ZMM (7, 0, EBX, 28),
    "avx512bw": ZMM (7, 0, EBX, 30),
    "avx512vl": ZMM (7, 0, EBX, 31),
    "avx512vbmi": ZMM (7, 0, ECX, 1),
    "avx512vbmi2": ZMM (7, 0, ECX, 6),
    "gfni": NONE (7, 0, ECX, 8),
    "avx512vnni": ZMM (7, 0, ECX, 11),
    "avx512bitalg": ZMM (7, 0, ECX, 12),
    "avx512vpopcntdq": ZMM (7, 0, ECX, 14),
    "avxvnni": YMM (7, 1, EAX, 4),
};

fn cpuid((leaf, subleaf, register, place): Bit) -> bool {
    // SAFETY: every 64-bit x86 has the instruction.
    #[allow(unused_unsafe)]
    let last = unsafe { __get_cpuid_max(leaf & 0x8000_0000) }.0;
    if leaf > last {
        return false;
    }
    // SAFETY: as above; the leaf is there.
    #[allow(unused_unsafe)]
    let found = unsafe { __cpuid_count(leaf, subleaf) };
    let registers = [found.eax, found.ebx, found.ecx, found.edx];
    registers[register & 3] >> place & 1 == 1
}

/// XCR0, which says what the operating system keeps.
#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: register 0 is there wherever the instruction is.
    unsafe { _xgetbv(0) }
}

/// The first feature that the program was compiled for and this CPU, or its operating system, lacks.
pub(super) fn missing_feature() -> Option<&'static str> {
    // SAFETY: CPUID says that the instruction is there and allowed.
    let kept = if cpuid(OSXSAVE) { unsafe { xcr0() } } else { 0 };
    let missing = |(compiled, _, state, bit): &&(bool, &str, u64, Bit)| {
        *compiled && (kept & state != *state || !cpuid(*bit))
    };
    FEATURES.iter().find(missing).map(|(_, name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways of asking agree, so places and registers in the table are right. What the program was compiled for, the
    /// standard library does not look for.
    #[test]
    #[cfg(feature = "std")]
    fn detection_agrees_with_the_standard_librarys() {
        // SAFETY: CPUID says that the instruction is there and allowed.
        let kept = if cpuid(OSXSAVE) { unsafe { xcr0() } } else { 0 };
        let found = |feature| {
            let (_, _, state, bit) = *FEATURES.iter().find(|(_, name, ..)| *name == feature).unwrap();
            kept & state == state && cpuid(bit)
        };
        macro_rules! agree {
            ($($name:tt)+) => { $(assert_eq!(found($name), std::is_x86_feature_detected!($name), $name);)+ };
        }
        agree!("sse3" "pclmulqdq" "ssse3" "fma" "cmpxchg16b" "sse4.1" "sse4.2" "movbe" "popcnt" "aes" "avx" "f16c");
        agree!("lzcnt" "sse4a" "tbm" "bmi1" "avx2" "bmi2" "adx" "avx512f" "avx512dq" "avx512ifma" "avx512cd");
        agree!("avx512bw" "avx512vl" "avx512vbmi" "avx512vbmi2" "gfni" "avx512vnni" "avx512bitalg");
        agree!("avx512vpopcntdq" "avxvnni");
    }
}
