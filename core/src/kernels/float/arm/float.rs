//! Floating point, one lane after the other, by `vfma.f32`, `vsqrt.f32` and `vcvtb.f32.f16`. Everything else is
//! [`Scalar`]'s.
//!
//! The stable compiler has no intrinsics for these, and a call of libm's fma takes a hundred times as long. Functions are
//! compiled once, for one lane, and called, which is both smaller and faster than sixteen copies that keep their values on
//! the stack.

use core::arch::asm;

use crate::kernels::float::isa::Isa;
use crate::kernels::float::scalar::Scalar;
use crate::numbers::LANES;
use crate::numbers::float::{self, Float, One};

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
pub(super) fn fma(_: CortexM, a: f32, b: f32, mut c: f32) -> f32 {
    // SAFETY: the token proves the instruction; it reads and writes registers only.
    unsafe {
        asm!("vfma.f32 {c}, {a}, {b}", a = in(sreg) a, b = in(sreg) b, c = inout(sreg) c,
            options(pure, nomem, nostack));
    }
    c
}

/// The square root.
#[inline(always)]
fn sqrt(_: CortexM, a: f32) -> f32 {
    let root: f32;
    // SAFETY: as above.
    unsafe {
        asm!("vsqrt.f32 {root}, {a}", a = in(sreg) a, root = out(sreg) root, options(pure, nomem, nostack));
    }
    root
}

/// An f16 (its bits), widened exactly.
#[inline(always)]
pub(super) fn widen(_: CortexM, bits: u16) -> f32 {
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
fn narrow(_: CortexM, x: f32) -> u16 {
    let half: f32;
    // SAFETY: as above. Only the low half of the register is written, and only that is used.
    unsafe {
        asm!("vcvtb.f16.f32 {h}, {x}", x = in(sreg) x, h = inout(sreg) 0.0f32 => half,
            options(pure, nomem, nostack));
    }
    half.to_bits() as u16
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
            fn one(s: CortexM, x: f32) -> f32 {
                float::$name(Lane(s), x)
            }
            #[inline(never)]
            fn all(s: CortexM, x: &mut [f32; LANES]) {
                for x in x {
                    *x = one(s, *x);
                }
            }
            all(self, &mut x);
            x
        })*
    };
}

/// One lane.
#[derive(Clone, Copy)]
struct Lane(CortexM);

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
        fma(self.0, a, b, c)
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        sqrt(self.0, a)
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
        core::array::from_fn(|i| fma(self, a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        a.map(|a| sqrt(self, a))
    }
}

// SAFETY: the features of this crate that give the token promise the CPU.
unsafe impl Isa for CortexM {
    const NAME: &'static str = "Cortex-M";
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
        from.map(|half| widen(self, half))
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        *to = x.map(|x| narrow(self, x));
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        let (halves, _) = from.as_chunks();
        core::array::from_fn(|i| widen(self, u16::from_le_bytes(halves[i])))
    }
}
