//! AVX2 and F16C, which every CPU with AVX2 has: eight rows of a tile in a register, as sixteen words of two columns each.

use core::arch::x86_64::*;

use crate::cpu::x86_64::{PREFETCH_DISTANCE, has, prefetch};
use crate::kernels::fixed::elementwise::NARROW;
use crate::kernels::fixed::matmul::Sums;
use crate::kernels::fixed::scan::{FINE, HALF, Hold, SUMMED, Steps};
use crate::kernels::fixed::{Activations, Dot, Group, instantiate};
use crate::numbers::fixed::Row;
use crate::numbers::fixed::functions::EXP2;
use crate::numbers::{GROUP, TILE, TILES};

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

instantiate!(Avx2, #[target_feature(enable = "avx2,f16c")]);

/// Calls intrinsics that need only the token's features.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the token proves the features; memory operands are references to arrays of the size read.
        unsafe { $e }
    };
}

/// Two activations, as [`crate::kernels::fixed::place`] puts them, in every lane.
#[inline(always)]
fn pair(x: &Activations, i: usize) -> __m256i {
    let (words, _) = x.as_chunks::<2>();
    let [low, high] = words[i & 15];
    op!(_mm256_set1_epi32(i32::from(high) << 16 | i32::from(low as u16)))
}

/// Four activations of a byte each in every lane.
#[inline(always)]
fn four(x: &[[i16; 2]], i: usize) -> __m256i {
    let [low, high] = x.get(i).copied().unwrap_or_default();
    op!(_mm256_set1_epi32(i32::from(high) << 16 | i32::from(low as u16)))
}

/// 32 packed bytes column by column: packing leaves the halves of both operands interleaved, and [`crate::kernels::fixed::place`] the columns.
#[inline(always)]
fn columns(packed: __m256i) -> __m256i {
    op!({
        let places = _mm256_setr_epi8(
            0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12,
            14, 13, 15,
        );
        _mm256_shuffle_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed), places)
    })
}

/// Sixteen numbers times `2^up` as activations, see [`narrow_one`](crate::kernels::fixed::elementwise::narrow_one), in the order of their
/// columns.
#[inline(always)]
fn narrowed(x: &Row, up: i32) -> __m256i {
    let [x, y] = load_row(x);
    op!({
        let [x, y] = if up >= 0 {
            let up = _mm_cvtsi32_si128(up.min(31));
            [_mm256_sll_epi32(x, up), _mm256_sll_epi32(y, up)]
        } else {
            let down = _mm_cvtsi32_si128((-up - 1).min(31));
            [round::<1>(_mm256_sra_epi32(x, down)), round::<1>(_mm256_sra_epi32(y, down))]
        };
        let (least, most) = (_mm256_set1_epi16(-1 << NARROW), _mm256_set1_epi16((1 << NARROW) - 1));
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x, y));
        _mm256_max_epi16(_mm256_min_epi16(packed, most), least)
    })
}

/// The two halves of a tile.
#[inline(always)]
fn load(tile: &[u8; TILE]) -> [__m256i; 2] {
    let tile: *const __m256i = tile.as_ptr().cast();
    op!([_mm256_loadu_si256(tile), _mm256_loadu_si256(tile.add(1))])
}

/// `sum + w x`, two products a lane: at most 2 * 128 * 16384, far from overflow.
#[inline(always)]
fn madd(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    op!(_mm256_add_epi32(sum, _mm256_madd_epi16(w, x)))
}

/// A loop, here and elsewhere: what is made by closures is not always inlined, and then lacks the features.
#[inline(always)]
fn store_all<const T: usize>(sums: [[__m256i; 2]; T]) -> [Row; T] {
    let mut rows = [[0; 16]; T];
    for t in 0..T {
        rows[t] = store(sums[t]);
    }
    rows
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

/// Eight numbers of a row.
#[inline(always)]
fn load_row<T>(row: &[T; 16]) -> [__m256i; 2] {
    const { assert!(size_of::<T>() == 4) };
    let row: *const __m256i = row.as_ptr().cast();
    op!([_mm256_loadu_si256(row), _mm256_loadu_si256(row.add(1))])
}

/// The upper halves of words of 64 bits, below and where they were.
#[inline(always)]
fn high(x: __m256i) -> __m256i {
    op!(_mm256_shuffle_epi32::<0b11_11_01_01>(x))
}

/// See [`mul_high`](crate::numbers::fixed::mul_high).
#[inline(always)]
fn mul_high(a: __m256i, b: __m256i) -> __m256i {
    op!({
        let half = _mm256_set1_epi64x(1 << 31);
        let even = _mm256_add_epi64(_mm256_mul_epi32(a, b), half);
        let odd = _mm256_add_epi64(_mm256_mul_epi32(high(a), high(b)), half);
        _mm256_blend_epi32::<0b1010_1010>(high(even), odd)
    })
}

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

/// `a b / 2^32`, cut, see [`mul_high_cut`](crate::numbers::fixed::mul_high_cut), of factors and their [`high`].
#[inline(always)]
fn both_high_cut(a: Both, a_high: Both, b: Both, b_high: Both) -> Both {
    let odd = both!(i, op!(_mm256_mul_epu32(a_high[i], b_high[i])));
    let even = both!(i, op!(_mm256_mul_epu32(a[i], b[i])));
    both!(i, op!(_mm256_blend_epi32::<0b1010_1010>(high(even[i]), odd[i])))
}

/// `c` and the product of `a`, a factor and its [`high`], with `b`, see
/// [`mul_high_down`](crate::numbers::fixed::mul_high_down).
#[inline(always)]
fn both_plus(c: i32, a: Both, a_high: Both, b: Both) -> Both {
    let odd = both!(i, op!(_mm256_mul_epi32(a_high[i], high(b[i]))));
    let even = both!(i, op!(_mm256_mul_epi32(a[i], b[i])));
    let product = both!(i, op!(_mm256_blend_epi32::<0b1010_1010>(high(even[i]), odd[i])));
    both!(i, op!(_mm256_add_epi32(product[i], _mm256_set1_epi32(c))))
}

/// See [`exp2`](crate::numbers::fixed::functions::exp2).
#[inline(always)]
fn exp2(t: Both) -> Both {
    let [c0, c1, c2, c3, c4] = EXP2;
    let f = both!(i, op!(_mm256_srli_epi32::<1>(_mm256_slli_epi32::<8>(t[i]))));
    let f_high = both!(i, high(f[i]));
    let q = both_plus(c3, f, f_high, [op!(_mm256_set1_epi32(c4)); 2]);
    let q = both_plus(c2, f, f_high, q);
    let q = both_plus(c1, f, f_high, q);
    let power = both_plus(c0, f, f_high, q);
    // Of 2^30 nothing is left by a shift of 31 or more.
    both!(i, op!(_mm256_srlv_epi32(power[i], _mm256_srli_epi32::<24>(t[i]))))
}

/// Adds `1/2` and cuts: `x 2^-BITS`.
#[inline(always)]
fn round<const BITS: i32>(x: __m256i) -> __m256i {
    op!(_mm256_srai_epi32::<BITS>(_mm256_add_epi32(x, _mm256_set1_epi32(1 << BITS >> 1))))
}

/// `x` times a number of 16 bits that is in the lower half of every lane.
#[inline(always)]
fn mul_low(x: __m256i, by: i16) -> __m256i {
    op!(_mm256_madd_epi16(x, _mm256_set1_epi32(i32::from(by as u16))))
}

/// See [`scale`](crate::kernels::fixed::scale).
///
/// By way of f32, which is exact: a scale of 11 bits, times a power of two, is an integer of 25 bits.
#[inline(always)]
fn scales(bits: __m256i) -> Row {
    op!({
        let sign = _mm256_set1_epi16(i16::MIN);
        let magnitude = _mm256_andnot_si256(sign, bits);
        let magnitude = _mm256_min_epi16(magnitude, _mm256_set1_epi16((16 << 10) - 1));
        let bits = _mm256_or_si256(magnitude, _mm256_and_si256(sign, bits));
        store([scaled(_mm256_castsi256_si128(bits)), scaled(_mm256_extracti128_si256::<1>(bits))])
    })
}

/// Eight f16 in units of 2^-24.
#[inline(always)]
fn scaled(bits: __m128i) -> __m256i {
    op!(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps((1 << 24) as f32))))
}

impl Dot for Avx2 {
    const NAME: &'static str = "AVX2";
    const VECTORS: bool = true;

    #[inline(always)]
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
        let mut sums = [[op!(_mm256_setzero_si256()); 2]; T];
        for (k, tile) in w.iter().enumerate() {
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
        store_all(sums)
    }

    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        groups: &[Group; T],
    ) -> [Row; T] {
        let mut sums = [[op!(_mm256_setzero_si256()); 2]; T];
        for t in 0..T {
            sums[t] = [op!(_mm256_set1_epi32(-8 * groups[t].sum)); 2];
        }
        let nibble = op!(_mm256_set1_epi16(15));
        for (k, pairs) in w.iter().enumerate() {
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
        store_all(sums)
    }

    #[inline(always)]
    fn activations(self, rows: [&Row; 2], up: [i32; 2], q: &mut Activations) -> i32 {
        let (low, high) = (narrowed(rows[0], up[0]), narrowed(rows[1], up[1]));
        let to: *mut __m256i = q.as_mut_ptr().cast();
        let pairs = op!({
            for (half, x) in [low, high].into_iter().enumerate() {
                let placed = _mm256_shufflehi_epi16::<0b11_01_10_00>(x);
                _mm256_storeu_si256(to.add(half), _mm256_shufflelo_epi16::<0b11_01_10_00>(placed));
            }
            _mm256_madd_epi16(_mm256_add_epi16(low, high), _mm256_set1_epi16(1))
        });
        // Of two activations the sum fits 16 bits.
        op!({
            let four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b11_10_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b01_01_01_01>(two)))
        })
    }

    const AHEAD: usize = PREFETCH_DISTANCE;
    const SPLITS: bool = true;

    /// `x = 128 high + low`: the lower 7 bits of all, then the upper ones with their sign, a byte each, column by column.
    #[inline(always)]
    fn split(self, x: &Activations) -> Activations {
        let mut bytes = [0; GROUP];
        let from: *const __m256i = x.as_ptr().cast();
        let to: *mut __m256i = bytes.as_mut_ptr().cast();
        op!({
            // Neither saturates: 0 to 127, and -128 to 127.
            let (x, y) = (_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1)));
            let mask = _mm256_set1_epi16(127);
            let low = _mm256_packus_epi16(_mm256_and_si256(x, mask), _mm256_and_si256(y, mask));
            let high = _mm256_packs_epi16(_mm256_srai_epi16::<7>(x), _mm256_srai_epi16::<7>(y));
            _mm256_storeu_si256(to, columns(low));
            _mm256_storeu_si256(to.add(1), columns(high));
        });
        bytes
    }

    /// Sums of both halves within a group stay within 16 bits: 8 of 2 * 15 * 128.
    #[inline(always)]
    fn dot_split(self, w: &[[u8; TILE]; TILES / 2], x: &Activations, group: &Group) -> Row {
        let nibble = op!(_mm256_set1_epi8(15));
        let (low, high) = x.as_chunks::<2>().0.split_at(TILES);
        let zero = op!(_mm256_setzero_si256());
        let (mut lows, mut highs) = ([zero; 2], [zero; 2]);
        for (k, pairs) in w.iter().enumerate() {
            for (half, w) in load(pairs).into_iter().enumerate() {
                let tiles =
                    op!([_mm256_and_si256(w, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble),]);
                for (i, w) in tiles.into_iter().enumerate() {
                    let (low, high) = (four(low, 2 * k + i), four(high, 2 * k + i));
                    lows[half] = op!(_mm256_add_epi16(lows[half], _mm256_maddubs_epi16(w, low)));
                    highs[half] = op!(_mm256_add_epi16(highs[half], _mm256_maddubs_epi16(w, high)));
                }
            }
        }
        let start = op!(_mm256_set1_epi32(-8 * group.sum));
        let mut sums = [start; 2];
        for half in 0..2 {
            let low = madd(start, lows[half], op!(_mm256_set1_epi16(1)));
            sums[half] = madd(low, highs[half], op!(_mm256_set1_epi16(128)));
        }
        store(sums)
    }

    #[inline(always)]
    fn prefetch(self, from: &u8, ahead: usize) {
        prefetch(from, ahead);
    }

    #[inline(always)]
    fn scales(self, ws: &[u8; 32]) -> Row {
        let scales = scales(op!(_mm256_loadu_si256(ws.as_ptr().cast())));
        // That also counts what saturates.
        debug_assert_eq!(scales, crate::kernels::fixed::matmul::scales(ws));
        scales
    }

    #[inline(always)]
    fn add_scaled(self, dots: &Row, scales: &Row, down: u32, sums: &mut Sums) {
        let half = op!(_mm256_set1_epi32((1 << down) >> 1));
        let count = op!(_mm_cvtsi32_si128(down as i32));
        let (dots, scales) = (load_row(dots), load_row(scales));
        let (sums, _) = sums.as_chunks_mut::<8>();
        for (sums, (dots, scales)) in sums.iter_mut().zip(dots.into_iter().zip(scales)) {
            let to: *mut __m256i = sums.as_mut_ptr().cast();
            op!({
                let dots = _mm256_sra_epi32(_mm256_add_epi32(dots, half), count);
                // Even rows first, then odd ones.
                let even = _mm256_mul_epi32(dots, scales);
                let odd = _mm256_mul_epi32(high(dots), high(scales));
                _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_loadu_si256(to), even));
                _mm256_storeu_si256(to.add(1), _mm256_add_epi64(_mm256_loadu_si256(to.add(1)), odd));
            });
        }
    }

    #[inline(always)]
    fn in_order(self, sums: &Sums) -> Sums {
        let mut all = [0; 16];
        for i in 0..16 {
            all[i] = sums[i & 8 | (i & 1) << 2 | (i & 7) >> 1];
        }
        all
    }

    #[inline(always)]
    fn sixteen<H: Hold>(self, steps: &mut Steps, a: &[[u8; 64]], h: &mut [[H; 16]], b: &[i16], c: &[i16]) {
        // `Channel::decay` and `Channel::state`, for sixteen channels.
        let (dt, down) = (load_row(&steps.dt), load_row(&steps.down));
        let dt_high = both!(i, high(dt[i]));
        let (g, g_down) = (load_row(&steps.g), load_row(&steps.g_down));
        let (up, cut) = (load_row(&steps.up), load_row(&steps.cut));
        let (mut sum, mut all) = (load_row(&steps.y), load_row(&steps.largest));
        let g_half =
            both!(i, op!(_mm256_srli_epi32::<1>(_mm256_sllv_epi32(_mm256_set1_epi32(1), g_down[i]))));
        for ((a, h), (b, c)) in a.chunks(2).zip(h.chunks_mut(2)).zip(b.chunks(2).zip(c.chunks(2))) {
            let mut products = [op!(_mm256_set1_epi32(HALF)); 2];
            for ((a, h), (b, c)) in a.iter().zip(h).zip(b.iter().zip(c)) {
                let a = load(a);
                let mut kept = [0; 16];
                for i in 0..16 {
                    kept[i] = h[i].get();
                }
                let kept = load_row(&kept);
                let mantissa =
                    both!(i, op!(_mm256_or_si256(_mm256_slli_epi32::<8>(a[i]), _mm256_set1_epi32(i32::MIN))));
                let product = both_high_cut(mantissa, both!(i, high(mantissa[i])), dt, dt_high);
                let exponent = both!(i, op!(_mm256_srli_epi32::<23>(a[i])));
                let shift = both!(
                    i,
                    op!(_mm256_max_epi32(_mm256_sub_epi32(down[i], exponent[i]), _mm256_setzero_si256()))
                );
                let shift = both!(i, op!(_mm256_min_epi32(shift[i], _mm256_set1_epi32(31))));
                let decay = exp2(both!(i, op!(_mm256_srlv_epi32(product[i], shift[i]))));

                let kept = both!(i, op!(_mm256_srav_epi32(_mm256_sllv_epi32(kept[i], up[i]), cut[i])));
                let added = both!(i, op!(_mm256_add_epi32(mul_low(g[i], *b), g_half[i])));
                let left = both!(i, mul_high(kept[i], decay[i]));
                let state = both!(i, op!(_mm256_add_epi32(left[i], _mm256_srav_epi32(added[i], g_down[i]))));
                let rounded = both!(i, round::<FINE>(state[i]));
                products = both!(i, op!(_mm256_add_epi32(products[i], mul_low(rounded[i], *c))));
                let kept = if H::CUT == 0 { state } else { rounded };
                all = both!(
                    i,
                    op!(_mm256_or_si256(all[i], _mm256_xor_si256(kept[i], _mm256_srai_epi32::<31>(kept[i]))))
                );
                let (state, rounded) = (store(state), store(rounded));
                for i in 0..16 {
                    h[i] = H::put(state[i], rounded[i]);
                }
            }
            sum = both!(i, op!(_mm256_add_epi32(sum[i], _mm256_srai_epi32::<SUMMED>(products[i]))));
        }
        steps.y = store(sum);
        for (largest, all) in steps.largest.iter_mut().zip(store(all)) {
            *largest = all as u32;
        }
    }
}
