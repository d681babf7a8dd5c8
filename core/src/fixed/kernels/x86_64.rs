//! AVX2: eight rows of a tile in a register, as sixteen words of two columns each.

use core::arch::x86_64::*;

use super::{Activations, Dot, Group, TILE, TILES, instantiate};
use crate::fixed::num::Row;

/// AVX2.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        #[cfg(feature = "std")]
        let has = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(feature = "std"))]
        let has = cfg!(target_feature = "avx2");
        has.then_some(&Self(()))
    }
}

instantiate!(Avx2, #[target_feature(enable = "avx2")]);

/// How far ahead of use weights are asked for, as in the float path.
const AHEAD: usize = 24 << 10;

/// Calls intrinsics that need only the token's features.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read.
        unsafe { $e }
    };
}

/// Two activations, as [`super::place`] puts them, in every lane.
#[inline(always)]
fn pair(x: &Activations, i: usize) -> __m256i {
    let (words, _) = x.as_chunks::<2>();
    let [low, high] = words[i & 15];
    op!(_mm256_set1_epi32(i32::from(high) << 16 | i32::from(low as u16)))
}

/// The two halves of a tile.
#[inline(always)]
fn load(tile: &[u8; TILE]) -> [__m256i; 2] {
    let tile: *const __m256i = tile.as_ptr().cast();
    op!([_mm256_loadu_si256(tile), _mm256_loadu_si256(tile.add(1))])
}

/// `sum + w x`, two products a lane: at most 2 * 128 * 16383, far from overflow.
#[inline(always)]
fn madd(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    op!(_mm256_add_epi32(sum, _mm256_madd_epi16(w, x)))
}

#[inline(always)]
fn store(sums: [__m256i; 2]) -> Row {
    let mut row = [0; 16];
    let to: *mut __m256i = row.as_mut_ptr().cast();
    op!({
        _mm256_storeu_si256(to, sums[0]);
        _mm256_storeu_si256(to.add(1), sums[1]);
    });
    row
}

impl Dot for Avx2 {
    const NAME: &'static str = "AVX2";
    const VECTORS: bool = true;

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        let mut sums = [[op!(_mm256_setzero_si256()); 2]; T];
        for (k, tile) in w.iter().enumerate() {
            if T == 1 {
                self.prefetch(tile);
            }
            for (half, w) in load(tile).into_iter().enumerate() {
                // Columns 0 and 2, then 1 and 3, widened to 16 bits.
                let even = op!(_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)));
                let odd = op!(_mm256_srai_epi16::<8>(w));
                for t in 0..T {
                    let sum = madd(sums[t][half], even, pair(&x[t], 2 * k));
                    sums[t][half] = madd(sum, odd, pair(&x[t], 2 * k + 1));
                }
            }
        }
        sums.map(store)
    }

    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        groups: &[Group; T],
    ) -> [Row; T] {
        let mut sums: [[__m256i; 2]; T] =
            core::array::from_fn(|t| [op!(_mm256_set1_epi32(-8 * groups[t].sum)); 2]);
        let nibble = op!(_mm256_set1_epi16(15));
        for (k, pairs) in w.iter().enumerate() {
            if T == 1 {
                self.prefetch(pairs);
            }
            for (half, w) in load(pairs).into_iter().enumerate() {
                let columns = op!([
                    _mm256_and_si256(w, nibble),
                    _mm256_and_si256(_mm256_srli_epi16::<8>(w), nibble),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble),
                    _mm256_srli_epi16::<12>(w),
                ]);
                for (i, w) in columns.into_iter().enumerate() {
                    for t in 0..T {
                        sums[t][half] = madd(sums[t][half], w, pair(&x[t], 4 * k + i));
                    }
                }
            }
        }
        sums.map(store)
    }

    #[inline(always)]
    fn prefetch(self, from: &[u8]) {
        op!(_mm_prefetch::<_MM_HINT_T2>(from.as_ptr().wrapping_add(AHEAD).cast()))
    }
}
