//! Dot products of groups by `smmla`: eight columns of two rows with two tokens, twice the products of `sdot`.
//!
//! Callers' tokens prove the instruction. It wants eight columns of a row side by side, where a tile has four: weights are
//! prepared so, once for all tokens of a strip.

use core::arch::aarch64::*;
use core::arch::asm;

use super::order::Bytes;
use super::{four_of, quarter};
use crate::kernels::isa::GROUP;

/// The dot products of 16 rows.
type Rows = [uint32x4_t; 4];

/// Two tiles become two rows of four columns each, then two of the next: `[cols/8][rows/2][2][8]`.
#[inline(always)]
pub(super) fn prepare(w: &mut Bytes) {
    for tiles in w.as_chunks_mut::<2>().0 {
        let [a, b] = *tiles;
        let (to, _) = tiles.as_flattened_mut().as_chunks_mut::<32>();
        for (q, to) in to.iter_mut().enumerate() {
            let (a, b) = (quarter(&a, q), quarter(&b, q));
            // SAFETY: NEON is there; the array has the 32 bytes written.
            unsafe {
                let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
                let to = to.as_mut_ptr().cast();
                vst1q_s32(to, vzip1q_s32(a, b));
                vst1q_s32(to.add(4), vzip2q_s32(a, b));
            }
        }
    }
}

/// Two rows of eight columns, four times, with two tokens.
macro_rules! products {
    ($x:literal, $a:ident $b:ident $c:ident $d:ident) => {
        concat!(
            products!(@rows $a "v0" $x), products!(@rows $b "v1" $x), products!(@rows $c "v2" $x), products!(@rows $d "v3" $x)
        )
    };
    (@rows $acc:ident $w:literal $x:literal) => {
        concat!("smmla {", stringify!($acc), ":v}.4s, ", $x, ".16b, ", $w, ".16b\n")
    };
}

/// Sixteen columns of pairs of tokens: each pair's first eight columns in one register, the next eight in another.
macro_rules! columns {
    ($first:literal $second:literal, $low:literal $high:literal) => {
        concat!(
            "ldr q0, [{x}, #",
            $first,
            "]\n",
            "ldr q1, [{x}, #",
            $second,
            "]\n",
            "zip1 ",
            $low,
            ".2d, v0.2d, v1.2d\n",
            "zip2 ",
            $high,
            ".2d, v0.2d, v1.2d\n"
        )
    };
}

/// A prepared group with pairs of tokens.
macro_rules! tokens {
    ($name:ident, $tokens:literal; $(
        $at:tt $next:tt $at16:tt $next16:tt $low:tt $high:tt:
        $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident
    ),+) => {
        #[inline(always)]
        fn $name(w: &Bytes, x: &[[i8; GROUP]; $tokens]) -> [[Rows; 2]; $tokens / 2] {
            let zero = four_of(0);
            $(let ($a, $b, $c, $d, $e, $f, $g, $h);)+
            // SAFETY: the CPU has the instructions; the arrays have the bytes read, eight tiles and 32 of each token.
            unsafe {
                asm!(
                    ".arch_extension i8mm",
                    $(columns!($at $next, $low $high),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64", $(products!($low, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64", $(products!($low, $e $f $g $h),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64", $(products!($high, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64", $(products!($high, $e $f $g $h),)+
                    $(columns!($at16 $next16, $low $high),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64", $(products!($low, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64", $(products!($low, $e $f $g $h),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64", $(products!($high, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}]", $(products!($high, $e $f $g $h),)+
                    w = inout(reg) w.as_ptr() => _, x = in(reg) x.as_ptr(),
                    $($a = inout(vreg) zero => $a, $b = inout(vreg) zero => $b, $c = inout(vreg) zero => $c,
                      $d = inout(vreg) zero => $d, $e = inout(vreg) zero => $e, $f = inout(vreg) zero => $f,
                      $g = inout(vreg) zero => $g, $h = inout(vreg) zero => $h,)+
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, $(out($low) _, out($high) _,)+
                    options(pure, readonly, nostack, preserves_flags)
                );
            }
            [$(apart([[$a, $b], [$c, $d], [$e, $f], [$g, $h]])),+]
        }
    };
}

tokens!(two, 2; 0 32 16 48 "v4" "v5": a b c d e f g h);
tokens!(four, 4;
    0 32 16 48 "v4" "v5": a b c d e f g h,
    64 96 80 112 "v6" "v7": i j k l m n o p);

/// Each token's rows, of two rows with both tokens.
#[inline(always)]
fn apart(pairs: [[uint32x4_t; 2]; 4]) -> [Rows; 2] {
    let of = |first: bool| {
        pairs.map(|[a, b]| {
            // SAFETY: NEON is there.
            unsafe {
                let (a, b) = (vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b));
                vreinterpretq_u32_u64(if first { vzip1q_u64(a, b) } else { vzip2q_u64(a, b) })
            }
        })
    };
    [of(true), of(false)]
}

/// A prepared group with up to four tokens.
#[inline(always)]
pub(super) fn i8<const T: usize>(w: &Bytes, x: &[[i8; GROUP]; T]) -> [Rows; T] {
    let mut dots = [[four_of(0); 4]; T];
    match (x.as_slice(), dots.as_mut_slice()) {
        ([x], [dots]) => [[*dots, _]] = two(w, &[*x, *x]),
        ([x0, x1], [d0, d1]) => [[*d0, *d1]] = two(w, &[*x0, *x1]),
        ([x0, x1, x2, x3], [d0, d1, d2, d3]) => [[*d0, *d1], [*d2, *d3]] = four(w, &[*x0, *x1, *x2, *x3]),
        _ => {}
    }
    dots
}
