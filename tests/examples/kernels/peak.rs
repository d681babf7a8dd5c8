//! The rate of an instruction set's int8 dot products on registers alone: what a matrix product could reach at most.

#[cfg(target_arch = "aarch64")]
use core::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::*;
use std::hint::black_box;

/// Defines a function that multiplies `rounds` times: `$tokens` tokens' worth of sums, of `$parts` registers each. Every
/// product has an operand of its own, so that none can serve twice. Returns how many products of two int8 were computed.
macro_rules! bare {
    ($name:ident, $(#[$features:meta])? [$register:ty; $tokens:literal x $parts:literal],
     $splat:expr, $add:expr, |$acc:ident, $w:ident, $x:ident| $dot:expr) => {
        $(#[$features])?
        fn $name(rounds: usize) -> u64 {
            let step = $splat(black_box(0x0101_0101));
            let mut x = [step; $parts];
            for part in &mut x {
                *part = $splat(black_box(0x0101_0101));
            }
            let mut weights = [step; $tokens];
            for (t, w) in weights.iter_mut().enumerate() {
                *w = $splat(black_box(0x0102_0304 + t as i32));
            }
            let mut sums = [[$splat(0); $parts]; $tokens];
            for _ in 0..rounds {
                for t in 0..$tokens {
                    for part in 0..$parts {
                        let ($acc, $w, $x) = (sums[t][part], weights[t], x[part]);
                        sums[t][part] = $dot;
                    }
                }
                for part in &mut x {
                    *part = $add(*part, step);
                }
            }
            black_box(sums);
            (rounds * $tokens * $parts * size_of::<$register>()) as u64
        }
    };
}

#[cfg(target_arch = "x86_64")]
bare!(avx2, #[target_feature(enable = "avx2")] [__m256i; 4 x 2], _mm256_set1_epi32, _mm256_add_epi32, |acc, w, x| {
    _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)))
});
#[cfg(target_arch = "x86_64")]
bare!(avx_vnni, #[target_feature(enable = "avx2,avxvnni")] [__m256i; 4 x 2], _mm256_set1_epi32, _mm256_add_epi32,
    |acc, w, x| _mm256_dpbusd_avx_epi32(acc, w, x));
#[cfg(target_arch = "x86_64")]
bare!(avx512, #[target_feature(enable = "avx512f,avx512vnni")] [__m512i; 12 x 1], _mm512_set1_epi32, _mm512_add_epi32,
    |acc, w, x| _mm512_dpbusd_epi32(acc, w, x));

#[cfg(target_arch = "aarch64")]
bare!(neon, #[target_feature(enable = "neon")] [int32x4_t; 2 x 4], vdupq_n_s32, vaddq_s32, |acc, w, x| {
    let (w, x) = (vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
    let low = vpadalq_s16(acc, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    vpadalq_s16(low, vmull_high_s8(w, x))
});
#[cfg(target_arch = "aarch64")]
bare!(neon_dot, #[target_feature(enable = "neon,dotprod")] [int32x4_t; 3 x 4], vdupq_n_s32, vaddq_s32, |acc, w, x| {
    let mut sum = acc;
    // SAFETY: this function is compiled for CPUs with the instruction. The intrinsic is unstable.
    unsafe {
        core::arch::asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[0]",
            sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
});

bare!(scalar, [i32; 2 x 16], i32::from, i32::wrapping_add, |acc, w, x| {
    let products = w.to_le_bytes().into_iter().zip(x.to_le_bytes());
    products.fold(acc, |sum, (w, x)| sum.wrapping_add(i32::from(w as i8) * i32::from(x as i8)))
});

/// Runs `rounds` of the dot products of the kernels of this name, which this CPU has.
pub fn bare_dots(kernels: &str, rounds: usize) -> u64 {
    match kernels {
        // SAFETY: kernels of these names were found on this CPU, so it has their features.
        #[cfg(target_arch = "x86_64")]
        "AVX2" => unsafe { avx2(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        "AVX-VNNI" => unsafe { avx_vnni(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        "AVX-512 VNNI" => unsafe { avx512(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        "NEON" => unsafe { neon(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        "NEON with dot product" => unsafe { neon_dot(rounds) },
        _ => scalar(rounds),
    }
}
