//! Sixteen lanes in portable code: the reference that every instruction set equals bit for bit.

use super::isa::{Dot, Isa, four};
use super::operands::Scale;
use super::set::instantiate;
use crate::numbers::float::{Float, One};
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// Portable code; runs everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

/// Applies a one-lane operation to every lane.
macro_rules! lanes {
    (|$($x:ident),+| $body:expr) => {{
        core::array::from_fn(|i| { $(let $x = $x[i];)+ $body })
    }};
}

impl Float for Scalar {
    type F = [f32; LANES];
    type I = [u32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes!(|a, b, c| One.fma(a, b, c))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        lanes!(|a| One.sqrt(a))
    }
    #[inline(always)]
    fn neg_abs(self, a: Self::F) -> Self::F {
        lanes!(|a| One.neg_abs(a))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        lanes!(|a, b, x, y| One.select_lt(a, b, x, y))
    }
    #[inline(always)]
    fn at_least(self, a: Self::F, floor: f32) -> Self::F {
        lanes!(|a| One.at_least(a, floor))
    }
    #[inline(always)]
    fn to_bits(self, a: Self::F) -> Self::I {
        lanes!(|a| a.to_bits())
    }
    #[inline(always)]
    fn of_bits(self, a: Self::I) -> Self::F {
        lanes!(|a| f32::from_bits(a))
    }
    #[inline(always)]
    fn add_bits(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(|a, b| a.wrapping_add(b))
    }
    #[inline(always)]
    fn shl_bits<const N: i32>(self, a: Self::I) -> Self::I {
        lanes!(|a| a << N)
    }
}

instantiate!(Scalar);

/// `x` rounded to an integer, ties to even, for `|x| <= 2^22`.
#[inline(always)]
fn round_to_int(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}

// SAFETY: portable code needs no feature.
unsafe impl Isa for Scalar {
    const NAME: &'static str = "scalar";
    const LOCKSTEP: usize = 1;

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        lanes!(|from| half::f16::from_bits(from).to_f32_const())
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        *to = lanes!(|x| half::f16::from_f32_const(x).to_bits());
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> Self::F {
        let (words, _) = from.as_chunks::<4>();
        lanes!(|words| f32::from_le_bytes(words))
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        let (words, _) = from.as_chunks::<2>();
        lanes!(|words| half::f16::from_le_bytes(words).to_f32_const())
    }
    #[inline(always)]
    fn int_to_float(self, x: Self::I) -> Self::F {
        lanes!(|x| x as i32 as f32)
    }
    #[inline(always)]
    fn store_rounded_i8(self, x: Self::F, to: &mut [i8; LANES]) {
        *to = lanes!(|x| round_to_int(x) as i8);
    }
    #[inline(always)]
    fn accumulate_abs_bits(self, acc: Self::I, x: Self::F) -> Self::I {
        lanes!(|acc, x| acc.max(x.to_bits() & 0x7fff_ffff))
    }
    #[inline(always)]
    fn max_bits(self, x: Self::I) -> u32 {
        x.into_iter().fold(0, u32::max)
    }
    #[inline(always)]
    fn zero_bits(self) -> Self::I {
        [0; LANES]
    }
}

// SAFETY: as above.
unsafe impl Dot for Scalar {
    const BLOCK: usize = 2;

    #[inline(always)]
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        _sums: &[Scale; T],
    ) -> [Self::I; T] {
        core::array::from_fn(|t| {
            let mut acc = [0i32; LANES];
            for (k, tile) in w.iter().enumerate() {
                add_tile(&mut acc, four(&x[t], k), |i| tile[i] as i8);
            }
            acc.map(|x| x as u32)
        })
    }
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        _sums: &[Scale; T],
    ) -> [Self::I; T] {
        core::array::from_fn(|t| {
            let mut acc = [0i32; LANES];
            for (k, pair) in w.iter().enumerate() {
                add_tile(&mut acc, four(&x[t], 2 * k), |i| (pair[i] & 15) as i8 - 8);
                add_tile(&mut acc, four(&x[t], 2 * k + 1), |i| (pair[i] >> 4) as i8 - 8);
            }
            acc.map(|x| x as u32)
        })
    }
    #[inline(always)]
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        _sums: &[Scale; T],
    ) -> [Self::I; T] {
        core::array::from_fn(|t| {
            let mut acc = [0i32; LANES];
            for k in 0..TILES {
                add_tile(&mut acc, four(&x[t], k), |i| three_bits(w, k, i) as i8 - 4);
            }
            acc.map(|x| x as u32)
        })
    }
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        _sums: &[Scale; T],
    ) -> [Self::I; T] {
        core::array::from_fn(|t| {
            let mut acc = [0i32; LANES];
            for k in 0..TILES {
                add_tile(&mut acc, four(&x[t], k), |i| five_bits(w, k, i) as i8 - 16);
            }
            acc.map(|x| x as u32)
        })
    }
}

/// `acc[r] += sum over j of w(4 r + j) x[j]`.
#[inline(always)]
fn add_tile(acc: &mut [i32; LANES], x: &[i8; 4], w: impl Fn(usize) -> i8) {
    for (r, acc) in acc.iter_mut().enumerate() {
        for (j, x) in x.iter().enumerate() {
            *acc += i32::from(w(4 * r + j)) * i32::from(*x);
        }
    }
}

/// Byte `at` of tile `k` of a group of 3-bit weights: 0 to 7.
#[inline(always)]
fn three_bits([first, second, high]: &[[u8; TILE]; 3], k: usize, at: usize) -> u8 {
    let low = if k < TILES / 2 { first } else { second };
    low[at] >> (2 * (k % 4)) & 3 | (high[at] >> k & 1) << 2
}

/// The same of 5-bit weights: 0 to 31.
#[inline(always)]
fn five_bits(w: &[[u8; TILE]; 5], k: usize, at: usize) -> u8 {
    w[(k / 2) & 3][at] >> (4 * (k % 2)) & 15 | (w[4][at] >> k & 1) << 4
}
