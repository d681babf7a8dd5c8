//! CRC-32 by carry-less products of 256 bits.

use core::arch::x86_64::*;

use crc32fast::Hasher;

use crate::cpu::x86_64::{has, prefetch};

/// Bytes that are folded at once: four registers, enough that none waits for its last product.
const STEP: usize = 128;

/// Prefetch distance in bytes.
const PREFETCH_DISTANCE: usize = 2048;

/// `x^n` modulo the polynomial, bits reversed: what a product with it folds by `n` bits. The product of two reversed
/// polynomials lacks a bit, which is made up for here.
const fn power(n: usize) -> i64 {
    let (mut power, mut i) = (1u32 << 31, 0);
    while i < n {
        power = (power >> 1) ^ if power & 1 == 1 { 0xedb8_8320 } else { 0 };
        i += 1;
    }
    (power as i64) << 1
}

/// The CRC-32 of some bytes; none if there are too few of them, or the CPU lacks the instruction.
pub(super) fn crc32(bytes: &[u8]) -> Option<u32> {
    let (steps, rest) = bytes.as_chunks();
    let (first, steps) = steps.split_first()?;
    if steps.is_empty() || !has!("avx2", "vpclmulqdq") {
        return None;
    }
    // SAFETY: the CPU has the features.
    let folded = unsafe { fold(first, steps) };
    // The library goes on from a register of 0, which is a CRC of ones: the start is part of what was folded.
    let mut hasher = Hasher::new_with_initial(!0);
    hasher.update(&folded);
    hasher.update(rest);
    Some(hasher.finalize())
}

/// Bytes that bring a register of 0 to where all of these bring a register of ones, with which a CRC-32 starts.
///
/// V. Gopal and others, Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction (2009): each half of a
/// 128-bit lane times the power of x by which it lies ahead of the lane that it is added to.
#[target_feature(enable = "avx2,vpclmulqdq")]
fn fold(first: &[u8; STEP], steps: &[[u8; STEP]]) -> [u8; STEP] {
    const BITS: usize = 8 * STEP;
    let mut sums = load(first);
    sums[0] = _mm256_xor_si256(sums[0], _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, !0));
    let (low, high) = (const { power(BITS + 32) }, const { power(BITS - 32) });
    let powers = _mm256_set_epi64x(high, low, high, low);
    for step in steps {
        prefetch(&step[0], PREFETCH_DISTANCE);
        prefetch(&step[STEP / 2], PREFETCH_DISTANCE);
        for (sum, bytes) in sums.iter_mut().zip(load(step)) {
            let low = _mm256_clmulepi64_epi128::<0x00>(*sum, powers);
            let high = _mm256_clmulepi64_epi128::<0x11>(*sum, powers);
            *sum = _mm256_xor_si256(_mm256_xor_si256(low, bytes), high);
        }
    }
    let mut folded = [0; STEP];
    for (to, sum) in folded.as_chunks_mut::<32>().0.iter_mut().zip(sums) {
        // SAFETY: a register is 32 bytes.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), sum) };
    }
    folded
}

/// The registers of a step.
#[inline]
#[target_feature(enable = "avx2")]
fn load(step: &[u8; STEP]) -> [__m256i; 4] {
    let at: *const __m256i = step.as_ptr().cast();
    // SAFETY: four registers are a step.
    unsafe {
        [
            _mm256_loadu_si256(at),
            _mm256_loadu_si256(at.add(1)),
            _mm256_loadu_si256(at.add(2)),
            _mm256_loadu_si256(at.add(3)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Powers as the paper has them, for lanes 512 bits apart.
    #[test]
    fn powers_are_the_papers() {
        assert_eq!((power(512 + 32), power(512 - 32)), (0x1_5444_2bd4, 0x1_c6e4_1596));
    }

    #[test]
    #[cfg(feature = "std")]
    fn every_length_gives_what_the_library_gives() {
        if !has!("avx2", "vpclmulqdq") {
            std::println!("skipped: this CPU has no VPCLMULQDQ");
            return;
        }
        let mut word = 1u32;
        let bytes: std::vec::Vec<u8> = core::iter::repeat_with(|| {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (word >> 24) as u8
        })
        .take(5 * STEP + 3)
        .collect();
        for length in 0..=bytes.len() {
            for from in [0, 1, 31, 64].into_iter().filter(|from| *from <= length) {
                let bytes = &bytes[from..length];
                let expected = (bytes.len() >= 2 * STEP).then(|| crc32fast::hash(bytes));
                assert_eq!(crc32(bytes), expected, "{from}..{length}");
            }
        }
        // The canary: one bit more changes it.
        let mut other = bytes.clone();
        other[2 * STEP] ^= 1;
        assert_ne!(crc32(&bytes), crc32(&other));
    }
}
