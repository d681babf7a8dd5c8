//! The recurrence: a token of the states of sixteen channels.

use core::arch::x86_64::*;

use super::functions::{Avx2, high, load, load_row, op, round, store};
use crate::kernels::fixed::operands::FINE;
use crate::kernels::fixed::steps::{HALF, SUMMED, Steps, Stored};
use crate::numbers::fixed::functions::EXP2;

/// Both halves of a row of sixteen channels, whose long chains of operations go side by side.
type Both = [__m256i; 2];

/// An expression for each half.
macro_rules! both {
    ($i:ident, $e:expr) => {
        [
            {
                let $i = 0;
                $e
            },
            {
                let $i = 1;
                $e
            },
        ]
    };
}

/// See [`mul_high`](crate::numbers::fixed::mul_high).
#[inline(always)]
fn mul_high(s: Avx2, a: __m256i, b: __m256i) -> __m256i {
    op!(s, {
        let half = _mm256_set1_epi64x(1 << 31);
        let even = _mm256_add_epi64(_mm256_mul_epi32(a, b), half);
        let odd = _mm256_add_epi64(_mm256_mul_epi32(high(s, a), high(s, b)), half);
        _mm256_blend_epi32::<0b1010_1010>(high(s, even), odd)
    })
}

/// `a b / 2^32`, cut, see [`mul_high_cut`](crate::numbers::fixed::mul_high_cut), of factors and their [`high`].
#[inline(always)]
fn both_high_cut(s: Avx2, a: Both, a_high: Both, b: Both, b_high: Both) -> Both {
    let odd = both!(i, op!(s, _mm256_mul_epu32(a_high[i], b_high[i])));
    let even = both!(i, op!(s, _mm256_mul_epu32(a[i], b[i])));
    both!(i, op!(s, _mm256_blend_epi32::<0b1010_1010>(high(s, even[i]), odd[i])))
}

/// `c` and the product of `a`, a factor and its [`high`], with `b`, see
/// [`mul_high_down`](crate::numbers::fixed::mul_high_down).
#[inline(always)]
fn both_plus(s: Avx2, c: i32, a: Both, a_high: Both, b: Both) -> Both {
    let odd = both!(i, op!(s, _mm256_mul_epi32(a_high[i], high(s, b[i]))));
    let even = both!(i, op!(s, _mm256_mul_epi32(a[i], b[i])));
    let product = both!(i, op!(s, _mm256_blend_epi32::<0b1010_1010>(high(s, even[i]), odd[i])));
    both!(i, op!(s, _mm256_add_epi32(product[i], _mm256_set1_epi32(c))))
}

/// See [`exp2`](crate::numbers::fixed::functions::exp2).
#[inline(always)]
fn exp2(s: Avx2, t: Both) -> Both {
    let [c0, c1, c2, c3, c4] = EXP2;
    let f = both!(i, op!(s, _mm256_srli_epi32::<1>(_mm256_slli_epi32::<8>(t[i]))));
    let f_high = both!(i, high(s, f[i]));
    let q = both_plus(s, c3, f, f_high, [op!(s, _mm256_set1_epi32(c4)); 2]);
    let q = both_plus(s, c2, f, f_high, q);
    let q = both_plus(s, c1, f, f_high, q);
    let power = both_plus(s, c0, f, f_high, q);
    // Of 2^30 nothing is left by a shift of 31 or more.
    both!(i, op!(s, _mm256_srlv_epi32(power[i], _mm256_srli_epi32::<24>(t[i]))))
}

/// `x` times a number of 16 bits that is in the lower half of every lane.
#[inline(always)]
fn mul_low(s: Avx2, x: __m256i, by: i16) -> __m256i {
    op!(s, _mm256_madd_epi16(x, _mm256_set1_epi32(i32::from(by as u16))))
}

/// See [`Isa::sixteen`](crate::kernels::fixed::isa::Isa::sixteen).
#[inline(always)]
pub(super) fn sixteen<H: Stored>(
    s: Avx2,
    steps: &mut Steps,
    a: &[[u8; 64]],
    h: &mut [[H; 16]],
    b: &[i16],
    c: &[i16],
) {
    // `Channel::decay` and `Channel::state`, for sixteen channels.
    let (dt, down) = (load_row(s, &steps.dt), load_row(s, &steps.down));
    let dt_high = both!(i, high(s, dt[i]));
    let (g, g_down) = (load_row(s, &steps.g), load_row(s, &steps.g_down));
    let (up, cut) = (load_row(s, &steps.up), load_row(s, &steps.cut));
    let (mut sum, mut all) = (load_row(s, &steps.y), load_row(s, &steps.largest));
    let g_half = both!(i, op!(s, _mm256_srli_epi32::<1>(_mm256_sllv_epi32(_mm256_set1_epi32(1), g_down[i]))));
    for ((a, h), (b, c)) in a.chunks(2).zip(h.chunks_mut(2)).zip(b.chunks(2).zip(c.chunks(2))) {
        let mut products = [op!(s, _mm256_set1_epi32(HALF)); 2];
        for ((a, h), (b, c)) in a.iter().zip(h).zip(b.iter().zip(c)) {
            let a = load(s, a);
            let mut kept = [0; 16];
            for i in 0..16 {
                kept[i] = h[i].get();
            }
            let kept = load_row(s, &kept);
            let mantissa =
                both!(i, op!(s, _mm256_or_si256(_mm256_slli_epi32::<8>(a[i]), _mm256_set1_epi32(i32::MIN))));
            let product = both_high_cut(s, mantissa, both!(i, high(s, mantissa[i])), dt, dt_high);
            let exponent = both!(i, op!(s, _mm256_srli_epi32::<23>(a[i])));
            let shift = both!(
                i,
                op!(s, _mm256_max_epi32(_mm256_sub_epi32(down[i], exponent[i]), _mm256_setzero_si256()))
            );
            let shift = both!(i, op!(s, _mm256_min_epi32(shift[i], _mm256_set1_epi32(31))));
            let decay = exp2(s, both!(i, op!(s, _mm256_srlv_epi32(product[i], shift[i]))));

            let kept = both!(i, op!(s, _mm256_srav_epi32(_mm256_sllv_epi32(kept[i], up[i]), cut[i])));
            let added = both!(i, op!(s, _mm256_add_epi32(mul_low(s, g[i], *b), g_half[i])));
            let left = both!(i, mul_high(s, kept[i], decay[i]));
            let state = both!(i, op!(s, _mm256_add_epi32(left[i], _mm256_srav_epi32(added[i], g_down[i]))));
            let rounded = both!(i, round::<FINE>(s, state[i]));
            products = both!(i, op!(s, _mm256_add_epi32(products[i], mul_low(s, rounded[i], *c))));
            let kept = if H::CUT == 0 { state } else { rounded };
            all = both!(
                i,
                op!(s, _mm256_or_si256(all[i], _mm256_xor_si256(kept[i], _mm256_srai_epi32::<31>(kept[i]))))
            );
            let (state, rounded) = (store(s, state), store(s, rounded));
            for i in 0..16 {
                h[i] = H::put(state[i], rounded[i]);
            }
        }
        sum = both!(i, op!(s, _mm256_add_epi32(sum[i], _mm256_srai_epi32::<SUMMED>(products[i]))));
    }
    steps.y = store(s, sum);
    for (largest, all) in steps.largest.iter_mut().zip(store(s, all)) {
        *largest = all as u32;
    }
}
