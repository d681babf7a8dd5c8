//! Cortex-M with FPU and DSP instructions (M4F, M7, M33): one lane after the other, with `vfma.f32`, `vsqrt.f32`,
//! `vcvtb.f32.f16` and `smlad`. Everything else is [`Scalar`]'s.
//!
//! The stable compiler has no intrinsics for these, and a call of libm's fma takes a hundred times as long.
//!
//! Sixteen lanes fit no registers here: what is long (functions, dot products) is compiled once, for one lane or four rows,
//! and called, which is both smaller and faster than sixteen copies of it that keep their values on the stack.

use core::arch::asm;

use crate::kernels::float::isa::{Isa, four};
use crate::kernels::float::{Scalar, Scale, instantiate};
use crate::numbers::float::{self, Float, One};
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// A Cortex-M with FPU and DSP instructions. The features `dsp` and `fpu` of this crate promise the CPU.
#[derive(Clone, Copy, Debug)]
pub struct CortexM(());

impl CortexM {
    /// The token. That it can be had is decided by the crate's features.
    #[must_use]
    pub const fn new() -> &'static Self {
        &Self(())
    }
}

/// `a b + c`, rounded once.
#[inline(always)]
fn fma(a: f32, b: f32, mut c: f32) -> f32 {
    // SAFETY: `fpu` promises the instruction; it reads and writes registers only.
    unsafe {
        asm!("vfma.f32 {c}, {a}, {b}", a = in(sreg) a, b = in(sreg) b, c = inout(sreg) c,
            options(pure, nomem, nostack));
    }
    c
}

/// The square root.
#[inline(always)]
fn sqrt(a: f32) -> f32 {
    let root: f32;
    // SAFETY: as above.
    unsafe {
        asm!("vsqrt.f32 {root}, {a}", a = in(sreg) a, root = out(sreg) root, options(pure, nomem, nostack));
    }
    root
}

/// An f16 (its bits), widened exactly.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    let x: f32;
    // SAFETY: as above.
    unsafe {
        asm!("vcvtb.f32.f16 {x}, {h}", h = in(sreg) f32::from_bits(u32::from(bits)), x = out(sreg) x,
            options(pure, nomem, nostack));
    }
    x
}

/// The bits of the nearest f16, ties to even.
#[inline(always)]
fn narrow(x: f32) -> u16 {
    let half: f32;
    // SAFETY: as above. Only the low half of the register is written, and only that is used.
    unsafe {
        asm!("vcvtb.f16.f32 {h}, {x}", x = in(sreg) x, h = inout(sreg) 0.0f32 => half,
            options(pure, nomem, nostack));
    }
    half.to_bits() as u16
}

/// Bytes 0 and 2 of `x`, sign-extended to halves.
#[inline(always)]
fn even(x: u32) -> u32 {
    let halves: u32;
    // SAFETY: `dsp` promises the instruction; it reads and writes registers only.
    unsafe {
        asm!("sxtb16 {h}, {x}", x = in(reg) x, h = lateout(reg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    halves
}

/// Bytes 1 and 3 of `x`, sign-extended to halves.
#[inline(always)]
fn odd(x: u32) -> u32 {
    let halves: u32;
    // SAFETY: as above.
    unsafe {
        asm!("sxtb16 {h}, {x}, ror #8", x = in(reg) x, h = lateout(reg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    halves
}

/// `acc + a.low b.low + a.high b.high`.
#[inline(always)]
fn smlad(a: u32, b: u32, acc: i32) -> i32 {
    let sum: i32;
    // SAFETY: as above. It may set the flag Q, which nobody reads.
    unsafe {
        asm!("smlad {sum}, {a}, {b}, {acc}", a = in(reg) a, b = in(reg) b, acc = in(reg) acc,
            sum = lateout(reg) sum, options(pure, nomem, nostack));
    }
    sum
}

/// Rows whose sums stay in registers.
const ROWS: usize = 4;

/// The four bytes of a row in a tile.
#[inline(always)]
fn row(tile: &[u8; TILE], row: usize) -> u32 {
    u32::from_le_bytes(tile.as_chunks::<4>().0[row & (LANES - 1)])
}

/// Columns `4 k .. 4 k + 4` of a group of activations, as halves: the even ones, the odd ones.
#[inline(always)]
fn halves(x: &[i8; GROUP]) -> [(u32, u32); TILES] {
    core::array::from_fn(|k| {
        let word = u32::from_le_bytes(four(x, k).map(|x| x as u8));
        (even(word), odd(word))
    })
}

/// Four rows at a time: their sums stay in registers.
#[inline(always)]
fn all_rows(mut four_rows: impl FnMut(usize) -> [i32; ROWS]) -> [u32; LANES] {
    let mut all = [0; LANES];
    for (block, sums) in all.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        *sums = four_rows(ROWS * block).map(|sum| sum as u32);
    }
    all
}

/// `start` and the dot products of sixteen rows of int8 with one token.
#[inline(never)]
fn dot_i8(w: &[[u8; TILE]; TILES], x: &[i8; GROUP], start: i32) -> [u32; LANES] {
    let x = halves(x);
    all_rows(|first| {
        let mut acc = [start; ROWS];
        for (tile, (x_even, x_odd)) in w.iter().zip(x) {
            for (i, acc) in acc.iter_mut().enumerate() {
                let w = row(tile, first + i);
                *acc = smlad(odd(w), x_odd, smlad(even(w), x_even, *acc));
            }
        }
        acc
    })
}

/// The same for weights of 4 bits, none less 8.
#[inline(never)]
fn dot_u4(w: &[[u8; TILE]; TILES / 2], x: &[i8; GROUP], start: i32) -> [u32; LANES] {
    /// The low halves of bytes 0 and 2.
    const LOW: u32 = 0x000f_000f;
    let x = halves(x);
    all_rows(|first| {
        let mut acc = [start; ROWS];
        for (pair, x) in w.iter().zip(x.as_chunks::<2>().0) {
            let [(low_even, low_odd), (high_even, high_odd)] = *x;
            for (i, acc) in acc.iter_mut().enumerate() {
                let w = row(pair, first + i);
                let low = smlad(w >> 8 & LOW, low_odd, smlad(w & LOW, low_even, *acc));
                *acc = smlad(w >> 12 & LOW, high_odd, smlad(w >> 4 & LOW, high_even, low));
            }
        }
        acc
    })
}

/// `acc + dot ws scale`, sixteen rows one after the other.
#[inline(never)]
fn add_scaled(acc: &mut [f32; LANES], dot: &[u32; LANES], ws: &[u8; 2 * LANES], scale: f32) {
    let (ws, _) = ws.as_chunks();
    for ((acc, dot), ws) in acc.iter_mut().zip(dot).zip(ws) {
        *acc = fma(*dot as i32 as f32, widen(u16::from_le_bytes(*ws)) * scale, *acc);
    }
}

/// Tiles of int8 from weights in fewer bits: `word(k, r)` is the four bytes of row `r` in tile `k`.
#[inline(always)]
fn unpack(word: impl Fn(usize, usize) -> u32) -> [[u8; TILE]; TILES] {
    let mut tiles = [[0; TILE]; TILES];
    for (k, tile) in tiles.iter_mut().enumerate() {
        for (r, bytes) in tile.as_chunks_mut().0.iter_mut().enumerate() {
            *bytes = word(k, r).to_le_bytes();
        }
    }
    tiles
}

/// Weights of 3 bits as bytes, none less 4.
#[inline(never)]
fn unpack_u3([first, second, high]: &[[u8; TILE]; 3]) -> [[u8; TILE]; TILES] {
    unpack(|k, r| {
        let low = if k < TILES / 2 { first } else { second };
        row(low, r) >> (2 * (k % 4)) & 0x0303_0303 | (row(high, r) >> k & 0x0101_0101) << 2
    })
}

/// Weights of 5 bits as bytes, none less 16.
#[inline(never)]
fn unpack_u5(w: &[[u8; TILE]; 5]) -> [[u8; TILE]; TILES] {
    unpack(|k, r| {
        row(&w[k / 2 & 3], r) >> (4 * (k % 2)) & 0x0f0f_0f0f | (row(&w[4], r) >> k & 0x0101_0101) << 4
    })
}

/// Methods that do what another token's do.
macro_rules! methods_of {
    ($token:ident: $($name:ident $(<const $n:ident: $t:ty>)? ($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        $(#[inline(always)]
        fn $name $(<const $n: $t>)? (self, $($arg: $ty),*) -> $ret {
            $token.$name $(::<$n>)? ($($arg),*)
        })*
    };
}

/// Methods that apply a function of one lane to all of them, compiled once.
macro_rules! lane_by_lane {
    ($($name:ident;)*) => {
        $(#[inline(always)]
        fn $name(self, mut x: Self::F) -> Self::F {
            #[inline(never)]
            fn one(x: f32) -> f32 {
                float::$name(Lane, x)
            }
            #[inline(never)]
            fn all(x: &mut [f32; LANES]) {
                for x in x {
                    *x = one(*x);
                }
            }
            all(&mut x);
            x
        })*
    };
}

/// One lane.
#[derive(Clone, Copy)]
struct Lane;

impl Float for Lane {
    type F = f32;
    type I = u32;

    methods_of! { One:
        splat(x: f32) -> f32;
        add(a: f32, b: f32) -> f32;
        sub(a: f32, b: f32) -> f32;
        mul(a: f32, b: f32) -> f32;
        div(a: f32, b: f32) -> f32;
        neg_abs(a: f32) -> f32;
        select_lt(a: f32, b: f32, x: f32, y: f32) -> f32;
        at_least(a: f32, floor: f32) -> f32;
        to_bits(a: f32) -> u32;
        of_bits(a: u32) -> f32;
        add_bits(a: u32, b: u32) -> u32;
        shl_bits<const N: i32>(a: u32) -> u32;
    }
    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        fma(a, b, c)
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        sqrt(a)
    }
}

impl Float for CortexM {
    type F = [f32; LANES];
    type I = [u32; LANES];

    methods_of! { Scalar:
        splat(x: f32) -> Self::F;
        add(a: Self::F, b: Self::F) -> Self::F;
        sub(a: Self::F, b: Self::F) -> Self::F;
        mul(a: Self::F, b: Self::F) -> Self::F;
        div(a: Self::F, b: Self::F) -> Self::F;
        neg_abs(a: Self::F) -> Self::F;
        select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
        at_least(a: Self::F, floor: f32) -> Self::F;
        to_bits(a: Self::F) -> Self::I;
        of_bits(a: Self::I) -> Self::F;
        add_bits(a: Self::I, b: Self::I) -> Self::I;
        shl_bits<const N: i32>(a: Self::I) -> Self::I;
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        core::array::from_fn(|i| fma(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        a.map(sqrt)
    }
}

instantiate!(CortexM);

impl Isa for CortexM {
    const NAME: &'static str = "Cortex-M";
    const BLOCK: usize = 1;
    const SCAN_BLOCK: usize = 1;
    const LOCKSTEP: usize = 1;

    methods_of! { Scalar:
        load(from: &[f32; LANES]) -> Self::F;
        store(x: Self::F, to: &mut [f32; LANES]) -> ();
        load_f32_bytes(from: &[u8; 4 * LANES]) -> Self::F;
        int_to_float(x: Self::I) -> Self::F;
        store_rounded_i8(x: Self::F, to: &mut [i8; LANES]) -> ();
        accumulate_abs_bits(acc: Self::I, x: Self::F) -> Self::I;
        max_bits(x: Self::I) -> u32;
        zero_bits() -> Self::I;
    }
    lane_by_lane! {
        exp;
        softplus;
        silu;
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        from.map(widen)
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        *to = x.map(narrow);
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        let (halves, _) = from.as_chunks();
        core::array::from_fn(|i| widen(u16::from_le_bytes(halves[i])))
    }
    #[inline(always)]
    fn add_scaled<const T: usize>(
        self,
        acc: &mut [Self::F; T],
        dot: [Self::I; T],
        ws: &[u8; 2 * LANES],
        xs: &[Scale; T],
    ) {
        for t in 0..T {
            add_scaled(&mut acc[t], &dot[t], ws, xs[t].scale);
        }
    }
    #[inline(always)]
    fn bare_dot(self, acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        let dot = |i: usize| smlad(odd(w[i]), odd(x[i]), smlad(even(w[i]), even(x[i]), acc[i] as i32));
        core::array::from_fn(|i| dot(i) as u32)
    }
    #[inline(always)]
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        _sums: &[Scale; T],
    ) -> [Self::I; T] {
        core::array::from_fn(|t| dot_i8(w, &x[t], 0))
    }
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        core::array::from_fn(|t| dot_u4(w, &x[t], -8 * sums[t].sum))
    }
    #[inline(always)]
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let w = unpack_u3(w);
        core::array::from_fn(|t| dot_i8(&w, &x[t], -4 * sums[t].sum))
    }
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        let w = unpack_u5(w);
        core::array::from_fn(|t| dot_i8(&w, &x[t], -16 * sums[t].sum))
    }
}
