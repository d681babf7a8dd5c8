//! The token, registers from and to memory, and activations.

use core::arch::x86_64::*;

use crate::cpu::x86_64::has;
use crate::kernels::fixed::narrow::NARROW;
use crate::kernels::fixed::operands::Activations;
use crate::numbers::TILE;
use crate::numbers::fixed::Row;

/// AVX2.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, where the CPU has the features.
    #[must_use]
    pub fn detect() -> Option<&'static Self> {
        has!("avx2", "f16c").then_some(&Self(()))
    }
}

/// Takes a token as the proof that [`op!`] needs.
#[inline(always)]
pub(super) const fn proves(_: Avx2) {}

/// Evaluates an expression of intrinsics that need only the token's features.
macro_rules! op {
    ($token:expr, $e:expr) => {{
        $crate::kernels::fixed::x86_64::functions::proves($token);
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read or written.
        unsafe { $e }
    }};
}
pub(super) use op;

/// The two halves of a tile.
#[inline(always)]
pub(super) fn load(s: Avx2, tile: &[u8; TILE]) -> [__m256i; 2] {
    let tile: *const __m256i = tile.as_ptr().cast();
    op!(s, [_mm256_loadu_si256(tile), _mm256_loadu_si256(tile.add(1))])
}

#[inline(always)]
pub(super) fn store(s: Avx2, sums: [__m256i; 2]) -> Row {
    let mut row = [0; 16];
    let to: *mut __m256i = row.as_mut_ptr().cast();
    op!(s, {
        _mm256_storeu_si256(to, sums[0]);
        _mm256_storeu_si256(to.add(1), sums[1]);
    });
    row
}

/// Eight numbers of a row.
#[inline(always)]
pub(super) fn load_row<T>(s: Avx2, row: &[T; 16]) -> [__m256i; 2] {
    const { assert!(size_of::<T>() == 4) };
    let row: *const __m256i = row.as_ptr().cast();
    op!(s, [_mm256_loadu_si256(row), _mm256_loadu_si256(row.add(1))])
}

/// The upper halves of words of 64 bits, below and where they were.
#[inline(always)]
pub(super) fn high(s: Avx2, x: __m256i) -> __m256i {
    op!(s, _mm256_shuffle_epi32::<0b11_11_01_01>(x))
}

/// Adds `1/2` and cuts: `x 2^-BITS`.
#[inline(always)]
pub(super) fn round<const BITS: i32>(s: Avx2, x: __m256i) -> __m256i {
    op!(s, _mm256_srai_epi32::<BITS>(_mm256_add_epi32(x, _mm256_set1_epi32(1 << BITS >> 1))))
}

/// Sixteen numbers times `2^up` as activations, see [`narrow_one`](crate::kernels::fixed::narrow::narrow_one), in the order of their
/// columns.
#[inline(always)]
fn narrowed(s: Avx2, x: &Row, up: i32) -> __m256i {
    let [x, y] = load_row(s, x);
    op!(s, {
        let [x, y] = if up >= 0 {
            let up = _mm_cvtsi32_si128(up.min(31));
            [_mm256_sll_epi32(x, up), _mm256_sll_epi32(y, up)]
        } else {
            let down = _mm_cvtsi32_si128((-up - 1).min(31));
            [round::<1>(s, _mm256_sra_epi32(x, down)), round::<1>(s, _mm256_sra_epi32(y, down))]
        };
        let (least, most) = (_mm256_set1_epi16(-1 << NARROW), _mm256_set1_epi16((1 << NARROW) - 1));
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x, y));
        _mm256_max_epi16(_mm256_min_epi16(packed, most), least)
    })
}

/// See [`Isa::activations`](crate::kernels::fixed::isa::Isa::activations).
#[inline(always)]
pub(super) fn activations(s: Avx2, rows: [&Row; 2], up: [i32; 2], q: &mut Activations) -> i32 {
    let (low, high) = (narrowed(s, rows[0], up[0]), narrowed(s, rows[1], up[1]));
    let to: *mut __m256i = q.as_mut_ptr().cast();
    let pairs = op!(s, {
        for (half, x) in [low, high].into_iter().enumerate() {
            let placed = _mm256_shufflehi_epi16::<0b11_01_10_00>(x);
            _mm256_storeu_si256(to.add(half), _mm256_shufflelo_epi16::<0b11_01_10_00>(placed));
        }
        _mm256_madd_epi16(_mm256_add_epi16(low, high), _mm256_set1_epi16(1))
    });
    // Of two activations the sum fits 16 bits.
    op!(s, {
        let four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b11_10_11_10>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b01_01_01_01>(two)))
    })
}
