//! AVX-512 with VNNI: sixteen lanes are one register.

use core::arch::x86_64::*;

use crate::cpu::x86_64::{PREFETCH_DISTANCE, has, prefetch};
use crate::kernels::float::isa::{Isa, word};
use crate::kernels::float::{Scale, instantiate};
use crate::numbers::float::Float;
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// AVX-512 F, BW, DQ, VL and VNNI, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        has!("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "fma", "f16c").then_some(&Self(()))
    }
}

instantiate!(Avx512, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]);

/// Calls intrinsics that need only the token's features.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read.
        unsafe { $e }
    };
}

impl Float for Avx512 {
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        op!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn neg_abs(self, a: __m512) -> __m512 {
        op!(_mm512_or_ps(a, _mm512_set1_ps(-0.0)))
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }
    #[inline(always)]
    fn at_least(self, a: __m512, floor: f32) -> __m512 {
        // The second operand is what comes of a NaN.
        op!(_mm512_max_ps(a, _mm512_set1_ps(floor)))
    }
    #[inline(always)]
    fn to_bits(self, a: __m512) -> __m512i {
        op!(_mm512_castps_si512(a))
    }
    #[inline(always)]
    fn of_bits(self, a: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    fn add_bits(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn shl_bits<const N: i32>(self, a: __m512i) -> __m512i {
        op!(_mm512_sll_epi32(a, _mm_cvtsi32_si128(N)))
    }
}

impl Isa for Avx512 {
    const NAME: &'static str = "AVX-512 VNNI";
    const BLOCK: usize = 12;
    const AHEAD: usize = PREFETCH_DISTANCE;
    const TOUCHES: usize = 4;
    const LOCKSTEP: usize = 4;

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        op!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        op!(_mm512_storeu_ps(to.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn store_f16(self, x: __m512, to: &mut [u16; LANES]) {
        op!(_mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)))
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> __m512 {
        op!(_mm512_loadu_ps(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn int_to_float(self, x: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn store_rounded_i8(self, x: __m512, to: &mut [i8; LANES]) {
        op!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))))
    }
    #[inline(always)]
    fn accumulate_abs_bits(self, acc: __m512i, x: __m512) -> __m512i {
        op!({
            let bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff));
            _mm512_max_epu32(acc, bits)
        })
    }
    #[inline(always)]
    fn max_bits(self, x: __m512i) -> u32 {
        op!(_mm512_reduce_max_epu32(x))
    }
    #[inline(always)]
    fn zero_bits(self) -> __m512i {
        op!(_mm512_setzero_si512())
    }
    #[inline(always)]
    fn prefetch(self, from: &u8, ahead: usize) {
        prefetch(from, ahead);
    }
    #[inline(always)]
    fn touch(self, from: &u8) {
        // SAFETY: a reference can be read. Volatile, so that the load stays.
        unsafe {
            core::ptr::from_ref(from).read_volatile();
        }
    }
    /// `vpdpbusd` wants unsigned weights: w + 128, from which 128 times the sum of the activations is taken.
    #[inline(always)]
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [__m512i; T] {
        let mut acc = [self.zero_bits(); T];
        for t in 0..T {
            acc[t] = op!(_mm512_set1_epi32(sums[t].sum.wrapping_mul(-128)));
        }
        for (k, tile) in w.iter().enumerate() {
            let w = op!(_mm512_xor_si512(_mm512_loadu_si512(tile.as_ptr().cast()), _mm512_set1_epi8(-128)));
            for t in 0..T {
                acc[t] = op!(_mm512_dpbusd_epi32(acc[t], w, _mm512_set1_epi32(word(&x[t], k))));
            }
        }
        acc
    }
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [__m512i; T] {
        let mut acc = [self.zero_bits(); T];
        for t in 0..T {
            acc[t] = op!(_mm512_set1_epi32(sums[t].sum.wrapping_mul(-8)));
        }
        for (k, pair) in w.iter().enumerate() {
            let (low, high) = op!({
                let bytes = _mm512_loadu_si512(pair.as_ptr().cast());
                let mask = _mm512_set1_epi8(15);
                (_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask))
            });
            for t in 0..T {
                acc[t] = op!(_mm512_dpbusd_epi32(acc[t], low, _mm512_set1_epi32(word(&x[t], 2 * k))));
            }
            for t in 0..T {
                acc[t] = op!(_mm512_dpbusd_epi32(acc[t], high, _mm512_set1_epi32(word(&x[t], 2 * k + 1))));
            }
        }
        acc
    }
    #[inline(always)]
    fn bare_dot(self, acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        op!(_mm512_dpbusd_epi32(acc, w, x))
    }
    #[inline(always)]
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [__m512i; T] {
        less(4, three_bits(w), x, sums)
    }
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [__m512i; T] {
        less(16, five_bits(w), x, sums)
    }
}

/// Dot products of tiles of unsigned bytes, each less `offset`.
#[inline(always)]
fn less<const T: usize>(
    offset: i32,
    w: [__m512i; TILES],
    x: &[[i8; GROUP]; T],
    sums: &[Scale; T],
) -> [__m512i; T] {
    let mut acc = [op!(_mm512_setzero_si512()); T];
    for t in 0..T {
        acc[t] = op!(_mm512_set1_epi32(sums[t].sum.wrapping_mul(-offset)));
    }
    for (k, w) in w.into_iter().enumerate() {
        for t in 0..T {
            acc[t] = op!(_mm512_dpbusd_epi32(acc[t], w, _mm512_set1_epi32(word(&x[t], k))));
        }
    }
    acc
}

/// A group of 3-bit weights as eight tiles of bytes.
#[inline(always)]
fn three_bits(w: &[[u8; TILE]; 3]) -> [__m512i; TILES] {
    let line = |line: &[u8; TILE]| op!(_mm512_loadu_si512(line.as_ptr().cast()));
    let (first, second, high) = (line(&w[0]), line(&w[1]), line(&w[2]));
    macro_rules! tile {
        ($low:ident >> $shift:literal, $place:ident::<$to:literal>) => {
            op!(_mm512_or_si512(
                _mm512_and_si512(_mm512_srli_epi16::<$shift>($low), _mm512_set1_epi8(3)),
                _mm512_and_si512($place::<$to>(high), _mm512_set1_epi8(4)),
            ))
        };
    }
    [
        tile!(first >> 0, _mm512_slli_epi16::<2>),
        tile!(first >> 2, _mm512_slli_epi16::<1>),
        tile!(first >> 4, _mm512_srli_epi16::<0>),
        tile!(first >> 6, _mm512_srli_epi16::<1>),
        tile!(second >> 0, _mm512_srli_epi16::<2>),
        tile!(second >> 2, _mm512_srli_epi16::<3>),
        tile!(second >> 4, _mm512_srli_epi16::<4>),
        tile!(second >> 6, _mm512_srli_epi16::<5>),
    ]
}

/// A group of 5-bit weights as eight tiles of bytes.
#[inline(always)]
fn five_bits(w: &[[u8; TILE]; 5]) -> [__m512i; TILES] {
    let line = |line: &[u8; TILE]| op!(_mm512_loadu_si512(line.as_ptr().cast()));
    let pairs = [line(&w[0]), line(&w[1]), line(&w[2]), line(&w[3])];
    let high = line(&w[4]);
    macro_rules! tile {
        ($pair:literal >> $shift:literal, $place:ident::<$to:literal>) => {
            op!(_mm512_or_si512(
                _mm512_and_si512(_mm512_srli_epi16::<$shift>(pairs[$pair]), _mm512_set1_epi8(15)),
                _mm512_and_si512($place::<$to>(high), _mm512_set1_epi8(16)),
            ))
        };
    }
    [
        tile!(0 >> 0, _mm512_slli_epi16::<4>),
        tile!(0 >> 4, _mm512_slli_epi16::<3>),
        tile!(1 >> 0, _mm512_slli_epi16::<2>),
        tile!(1 >> 4, _mm512_slli_epi16::<1>),
        tile!(2 >> 0, _mm512_srli_epi16::<0>),
        tile!(2 >> 4, _mm512_srli_epi16::<1>),
        tile!(3 >> 0, _mm512_srli_epi16::<2>),
        tile!(3 >> 4, _mm512_srli_epi16::<3>),
    ]
}
