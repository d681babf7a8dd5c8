//! Dot products, and sums of them times scales.

use core::arch::x86_64::*;

use super::functions::{Avx2, high, load, load_row, op, store};
use crate::kernels::fixed::operands::{Activations, Group};
use crate::kernels::fixed::panel::Sums;
use crate::numbers::fixed::Row;
use crate::numbers::{GROUP, TILE, TILES};

/// Two activations, as [`crate::kernels::fixed::operands::place`] puts them, in every lane.
#[inline(always)]
fn pair(s: Avx2, x: &Activations, i: usize) -> __m256i {
    let (words, _) = x.as_chunks::<2>();
    let [low, high] = words[i & 15];
    op!(s, _mm256_set1_epi32(i32::from(high) << 16 | i32::from(low as u16)))
}

/// Four activations of a byte each in every lane.
#[inline(always)]
fn four(s: Avx2, x: &[[i16; 2]], i: usize) -> __m256i {
    let [low, high] = x.get(i).copied().unwrap_or_default();
    op!(s, _mm256_set1_epi32(i32::from(high) << 16 | i32::from(low as u16)))
}

/// 32 packed bytes column by column: packing leaves the halves of both operands interleaved, and [`crate::kernels::fixed::operands::place`] the columns.
#[inline(always)]
fn columns(s: Avx2, packed: __m256i) -> __m256i {
    op!(s, {
        let places = _mm256_setr_epi8(
            0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12,
            14, 13, 15,
        );
        _mm256_shuffle_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed), places)
    })
}

/// `sum + w x`, two products a lane: at most 2 * 128 * 16384, far from overflow.
#[inline(always)]
fn madd(s: Avx2, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    op!(s, _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)))
}

/// A loop, here and elsewhere: what is made by closures is not always inlined, and then lacks the features.
#[inline(always)]
fn store_all<const T: usize>(s: Avx2, sums: [[__m256i; 2]; T]) -> [Row; T] {
    let mut rows = [[0; 16]; T];
    for t in 0..T {
        rows[t] = store(s, sums[t]);
    }
    rows
}

/// See [`scale`](crate::kernels::fixed::panel::scale).
///
/// By way of f32, which is exact: a scale of 11 bits, times a power of two, is an integer of 25 bits.
#[inline(always)]
fn scaled_f16(s: Avx2, bits: __m256i) -> Row {
    op!(s, {
        let sign = _mm256_set1_epi16(i16::MIN);
        let magnitude = _mm256_andnot_si256(sign, bits);
        let magnitude = _mm256_min_epi16(magnitude, _mm256_set1_epi16((16 << 10) - 1));
        let bits = _mm256_or_si256(magnitude, _mm256_and_si256(sign, bits));
        store(s, [scaled(s, _mm256_castsi256_si128(bits)), scaled(s, _mm256_extracti128_si256::<1>(bits))])
    })
}

/// Eight f16 in units of 2^-24.
#[inline(always)]
fn scaled(s: Avx2, bits: __m128i) -> __m256i {
    op!(s, _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps((1 << 24) as f32))))
}

/// See [`Isa::dot_i8`](crate::kernels::fixed::isa::Isa::dot_i8).
#[inline(always)]
pub(super) fn dot_i8<const T: usize>(s: Avx2, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
    let mut sums = [[op!(s, _mm256_setzero_si256()); 2]; T];
    for (k, tile) in w.iter().enumerate() {
        for (half, w) in load(s, tile).into_iter().enumerate() {
            // Columns 0 and 2, then 1 and 3, widened to 16 bits.
            let even = op!(s, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)));
            let odd = op!(s, _mm256_srai_epi16::<8>(w));
            for t in 0..T {
                let sum = madd(s, sums[t][half], even, pair(s, &x[t], 2 * k));
                sums[t][half] = madd(s, sum, odd, pair(s, &x[t], 2 * k + 1));
            }
        }
    }
    store_all(s, sums)
}

/// See [`Isa::dot_u4`](crate::kernels::fixed::isa::Isa::dot_u4).
#[inline(always)]
pub(super) fn dot_u4<const T: usize>(
    s: Avx2,
    w: &[[u8; TILE]; TILES / 2],
    x: &[Activations; T],
    groups: &[Group; T],
) -> [Row; T] {
    let mut sums = [[op!(s, _mm256_setzero_si256()); 2]; T];
    for t in 0..T {
        sums[t] = [op!(s, _mm256_set1_epi32(-8 * groups[t].sum)); 2];
    }
    let nibble = op!(s, _mm256_set1_epi16(15));
    for (k, pairs) in w.iter().enumerate() {
        for (half, w) in load(s, pairs).into_iter().enumerate() {
            let columns = op!(
                s,
                [
                    _mm256_and_si256(w, nibble),
                    _mm256_and_si256(_mm256_srli_epi16::<8>(w), nibble),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble),
                    _mm256_srli_epi16::<12>(w),
                ]
            );
            for (i, w) in columns.into_iter().enumerate() {
                for t in 0..T {
                    sums[t][half] = madd(s, sums[t][half], w, pair(s, &x[t], 4 * k + i));
                }
            }
        }
    }
    store_all(s, sums)
}

/// `x = 128 high + low`: the lower 7 bits of all, then the upper ones with their sign, a byte each, column by column.
#[inline(always)]
pub(super) fn split(s: Avx2, x: &Activations) -> Activations {
    let mut bytes = [0; GROUP];
    let from: *const __m256i = x.as_ptr().cast();
    let to: *mut __m256i = bytes.as_mut_ptr().cast();
    op!(s, {
        // Neither saturates: 0 to 127, and -128 to 127.
        let (x, y) = (_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1)));
        let mask = _mm256_set1_epi16(127);
        let low = _mm256_packus_epi16(_mm256_and_si256(x, mask), _mm256_and_si256(y, mask));
        let high = _mm256_packs_epi16(_mm256_srai_epi16::<7>(x), _mm256_srai_epi16::<7>(y));
        _mm256_storeu_si256(to, columns(s, low));
        _mm256_storeu_si256(to.add(1), columns(s, high));
    });
    bytes
}

/// Sums of both halves within a group stay within 16 bits: 8 of 2 * 15 * 128.
#[inline(always)]
pub(super) fn dot_split(s: Avx2, w: &[[u8; TILE]; TILES / 2], x: &Activations, group: &Group) -> Row {
    let nibble = op!(s, _mm256_set1_epi8(15));
    let (low, high) = x.as_chunks::<2>().0.split_at(TILES);
    let zero = op!(s, _mm256_setzero_si256());
    let (mut lows, mut highs) = ([zero; 2], [zero; 2]);
    for (k, pairs) in w.iter().enumerate() {
        for (half, w) in load(s, pairs).into_iter().enumerate() {
            let tiles =
                op!(s, [_mm256_and_si256(w, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble),]);
            for (i, w) in tiles.into_iter().enumerate() {
                let (low, high) = (four(s, low, 2 * k + i), four(s, high, 2 * k + i));
                lows[half] = op!(s, _mm256_add_epi16(lows[half], _mm256_maddubs_epi16(w, low)));
                highs[half] = op!(s, _mm256_add_epi16(highs[half], _mm256_maddubs_epi16(w, high)));
            }
        }
    }
    let start = op!(s, _mm256_set1_epi32(-8 * group.sum));
    let mut sums = [start; 2];
    for half in 0..2 {
        let low = madd(s, start, lows[half], op!(s, _mm256_set1_epi16(1)));
        sums[half] = madd(s, low, highs[half], op!(s, _mm256_set1_epi16(128)));
    }
    store(s, sums)
}

/// See [`Isa::scales`](crate::kernels::fixed::isa::Isa::scales).
#[inline(always)]
pub(super) fn scales(s: Avx2, ws: &[u8; 32]) -> Row {
    let scales = scaled_f16(s, op!(s, _mm256_loadu_si256(ws.as_ptr().cast())));
    // That also counts what saturates.
    debug_assert_eq!(scales, crate::kernels::fixed::panel::scales(ws));
    scales
}

/// See [`Isa::add_scaled`](crate::kernels::fixed::isa::Isa::add_scaled).
#[inline(always)]
pub(super) fn add_scaled(s: Avx2, dots: &Row, scales: &Row, down: u32, sums: &mut Sums) {
    let half = op!(s, _mm256_set1_epi32((1 << down) >> 1));
    let count = op!(s, _mm_cvtsi32_si128(down as i32));
    let (dots, scales) = (load_row(s, dots), load_row(s, scales));
    let (sums, _) = sums.as_chunks_mut::<8>();
    for (sums, (dots, scales)) in sums.iter_mut().zip(dots.into_iter().zip(scales)) {
        let to: *mut __m256i = sums.as_mut_ptr().cast();
        op!(s, {
            let dots = _mm256_sra_epi32(_mm256_add_epi32(dots, half), count);
            // Even rows first, then odd ones.
            let even = _mm256_mul_epi32(dots, scales);
            let odd = _mm256_mul_epi32(high(s, dots), high(s, scales));
            _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_loadu_si256(to), even));
            _mm256_storeu_si256(to.add(1), _mm256_add_epi64(_mm256_loadu_si256(to.add(1)), odd));
        });
    }
}

/// See [`Isa::in_order`](crate::kernels::fixed::isa::Isa::in_order).
#[inline(always)]
pub(super) fn in_order(_: Avx2, sums: &Sums) -> Sums {
    let mut all = [0; 16];
    for i in 0..16 {
        all[i] = sums[i & 8 | (i & 1) << 2 | (i & 7) >> 1];
    }
    all
}
