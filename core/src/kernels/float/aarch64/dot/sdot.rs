//! Dot products of groups by `sdot`, which takes four columns of an activation by element.
//!
//! A group is one block of assembly: the intrinsic is unstable, and a load of four registers that moves its pointer on
//! halves the loads.

use core::arch::aarch64::*;
use core::arch::asm;

use super::{OneToken, PanelDot};
use crate::kernels::float::aarch64::float::{NeonDot, op};
use crate::kernels::float::aarch64::unpack::{
    Bytes, Nibbles, five_bits, four_of, less, three_bits, unpacked,
};
use crate::kernels::float::isa::Dot;
use crate::kernels::float::operands::Scale;
use crate::numbers::{GROUP, TILE, TILES};

/// The dot products of 16 rows.
type Rows = [uint32x4_t; 4];
/// Their sums.
type Sums = [float32x4_t; 4];

/// A tile in four registers times four columns of a token, added to four registers or operands.
macro_rules! tile {
    ([$w:tt $w1:tt $w2:tt $w3:tt], $x:tt $lane:literal, $a:tt $b:tt $c:tt $d:tt) => {
        concat!(
            tile!(@row $a $w $x $lane), tile!(@row $b $w1 $x $lane),
            tile!(@row $c $w2 $x $lane), tile!(@row $d $w3 $x $lane)
        )
    };
    (@row $acc:tt $w:tt $x:tt $lane:literal) => {
        concat!("sdot ", tile!(@name $acc), ".4s, ", $w, ".16b, ", $x, ".4b[", $lane, "]\n")
    };
    (@name $register:literal) => { $register };
    (@name $operand:ident) => { concat!("{", stringify!($operand), ":v}") };
}

/// A group of int8 with some tokens. The weights of a tile stay in registers for all of them.
macro_rules! tokens {
    ($name:ident, $tokens:literal; $($x:tt $q:tt $first:literal $second:literal: $a:ident $b:ident $c:ident $d:ident),+) => {
        #[inline(always)]
        fn $name(s: NeonDot, w: &[[u8; TILE]; TILES], x: &[[i8; GROUP]; $tokens]) -> [Rows; $tokens] {
            let zero = four_of(s, 0);
            $(let ($a, $b, $c, $d);)+
            // SAFETY: the token proves the instructions; the arrays have the bytes read, eight tiles and 32 of each token.
            unsafe {
                asm!(
                    ".arch_extension dotprod",
                    $(concat!("ldr ", $q, ", [{x}, #", $first, "]"),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64",
                    $(tile!(["v0" "v1" "v2" "v3"], $x 0, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64",
                    $(tile!(["v0" "v1" "v2" "v3"], $x 1, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64",
                    $(tile!(["v0" "v1" "v2" "v3"], $x 2, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64",
                    $(tile!(["v0" "v1" "v2" "v3"], $x 3, $a $b $c $d),)+
                    $(concat!("ldr ", $q, ", [{x}, #", $second, "]"),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64",
                    $(tile!(["v0" "v1" "v2" "v3"], $x 0, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64",
                    $(tile!(["v0" "v1" "v2" "v3"], $x 1, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}], #64",
                    $(tile!(["v0" "v1" "v2" "v3"], $x 2, $a $b $c $d),)+
                    "ld1 {{v0.16b-v3.16b}}, [{w}]",
                    $(tile!(["v0" "v1" "v2" "v3"], $x 3, $a $b $c $d),)+
                    w = inout(reg) w.as_ptr() => _, x = in(reg) x.as_ptr(),
                    $($a = inout(vreg) zero => $a, $b = inout(vreg) zero => $b,
                      $c = inout(vreg) zero => $c, $d = inout(vreg) zero => $d,)+
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _,
                    $(out($x) _,)+
                    options(pure, readonly, nostack, preserves_flags)
                );
            }
            [$([$a, $b, $c, $d]),+]
        }
    };
}

tokens!(one, 1; "v4" "q4" 0 16: a b c d);
tokens!(two, 2; "v4" "q4" 0 16: a0 b0 c0 d0, "v5" "q5" 32 48: a1 b1 c1 d1);
tokens!(three, 3; "v4" "q4" 0 16: a0 b0 c0 d0, "v5" "q5" 32 48: a1 b1 c1 d1, "v6" "q6" 64 80: a2 b2 c2 d2);

/// A group of int8 with `T` tokens.
#[inline(always)]
fn i8<const T: usize>(s: NeonDot, w: &[[u8; TILE]; TILES], x: &[[i8; GROUP]; T]) -> [Rows; T] {
    let mut dots = [[four_of(s, 0); 4]; T];
    let ((x3, x), (dots3, dots1)) = (x.as_chunks::<3>(), dots.as_chunks_mut::<3>());
    for (x, dots) in x3.iter().zip(dots3) {
        *dots = three(s, w, x);
    }
    match (x, dots1) {
        ([x], [dots]) => [*dots] = one(s, w, &[*x]),
        ([x0, x1], [dots0, dots1]) => [*dots0, *dots1] = two(s, w, &[*x0, *x1]),
        _ => {}
    }
    dots
}

/// A pair of tiles of nibbles from memory: the low halves times columns `lane`, the high halves times the next four.
macro_rules! nibbles {
    ($w:literal, $x:tt $lane:literal $next:literal, $a:tt $b:tt $c:tt $d:tt) => {
        concat!(
            "ld1 {{v0.16b-v3.16b}}, [{", $w, "}], #64\n",
            "and v4.16b, v0.16b, {mask:v}.16b\n",
            "and v5.16b, v1.16b, {mask:v}.16b\n",
            "and v6.16b, v2.16b, {mask:v}.16b\n",
            "and v7.16b, v3.16b, {mask:v}.16b\n",
            "ushr v0.16b, v0.16b, #4\n",
            "ushr v1.16b, v1.16b, #4\n",
            "ushr v2.16b, v2.16b, #4\n",
            "ushr v3.16b, v3.16b, #4\n",
            tile!(["v4" "v5" "v6" "v7"], $x $lane, $a $b $c $d),
            tile!(["v0" "v1" "v2" "v3"], $x $next, $a $b $c $d)
        )
    };
}

/// What eight less in every weight of a group comes to.
#[inline(always)]
fn less_eight(s: NeonDot, sum: i32) -> uint32x4_t {
    four_of(s, sum.wrapping_mul(-8) as u32)
}

#[inline(always)]
fn low_halves(s: NeonDot) -> uint8x16_t {
    op!(s, vdupq_n_u8(15))
}

/// A group of 4-bit weights with `T` tokens.
#[inline(always)]
fn u4<const T: usize>(s: NeonDot, w: &Nibbles, x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [Rows; T] {
    core::array::from_fn(|t| one_u4(s, w, &x[t], sums[t].sum))
}

#[inline(always)]
fn one_u4(s: NeonDot, w: &Nibbles, x: &[i8; GROUP], sum: i32) -> Rows {
    let start = less_eight(s, sum);
    let (a, b, c, d);
    // SAFETY: the token proves the instructions; the arrays have the bytes read, four pairs of tiles and 32.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "ldp q16, q17, [{x}]",
            nibbles!("w", "v16" 0 1, a b c d),
            nibbles!("w", "v16" 2 3, a b c d),
            nibbles!("w", "v17" 0 1, a b c d),
            nibbles!("w", "v17" 2 3, a b c d),
            w = inout(reg) w.as_ptr() => _, x = in(reg) x.as_ptr(), mask = in(vreg) low_halves(s),
            a = inout(vreg) start => a, b = inout(vreg) start => b, c = inout(vreg) start => c, d = inout(vreg) start => d,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v16") _, out("v17") _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// Two panels times one token, group by group, with dot products in `v16` to `v23`; activations are in `v24` and `v25`, and
/// `v26` holds their scale and sum.
///
/// The whole loop in one block: here a load moves its pointer on, where the compiler would count in indices.
macro_rules! pair_loop {
    ($pair:ident, $sums:ident, $products:expr $(, $operand:ident = $class:ident(vreg) $value:expr)*) => {{
        let ([one, two], [mut a, mut b]) = ($pair, $sums);
        let groups = one.groups().min(two.groups());
        if groups > 0 {
            // SAFETY: the token proves the instructions; each slice has `groups` elements, and no more is read: 32 bytes of
            // activations, 8 of their scale and sum, 32 of either panel's scales, and its tiles.
            unsafe {
                asm!(
                    ".arch_extension dotprod",
                    "2:",
                    "ldp q24, q25, [{x}], #32",
                    "ldr d26, [{xs}], #8",
                    $products,
                    join!("sa", ["v16" "v17" "v18" "v19"], a0 a1 a2 a3),
                    join!("sb", ["v20" "v21" "v22" "v23"], b0 b1 b2 b3),
                    "subs {groups}, {groups}, #1",
                    "b.ne 2b",
                    groups = inout(reg) groups => _,
                    wa = inout(reg) one.w.as_ptr() => _, wb = inout(reg) two.w.as_ptr() => _,
                    sa = inout(reg) one.ws.as_ptr() => _, sb = inout(reg) two.ws.as_ptr() => _,
                    x = inout(reg) one.x.as_ptr() => _, xs = inout(reg) one.xs.as_ptr() => _,
                    $($operand = $class(vreg) $value,)*
                    a0 = inout(vreg) a[0], a1 = inout(vreg) a[1], a2 = inout(vreg) a[2], a3 = inout(vreg) a[3],
                    b0 = inout(vreg) b[0], b1 = inout(vreg) b[1], b2 = inout(vreg) b[2], b3 = inout(vreg) b[3],
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                    out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _,
                    out("v23") _, out("v24") _, out("v25") _, out("v26") _,
                    options(pure, readonly, nostack)
                );
            }
        }
        [a, b]
    }};
}

/// Adds a group's dot products to the sums of sixteen rows: times the weights' scales, which are times the token's.
macro_rules! join {
    ($scales:literal, [$a:literal $b:literal $c:literal $d:literal], $sa:ident $sb:ident $sc:ident $sd:ident) => {
        concat!(
            "ldp q0, q1, [{", $scales, "}], #32\n",
            "fcvtl v4.4s, v0.4h\n", "fcvtl2 v5.4s, v0.8h\n", "fcvtl v6.4s, v1.4h\n", "fcvtl2 v7.4s, v1.8h\n",
            join!(@rows $a "v4" $sa), join!(@rows $b "v5" $sb), join!(@rows $c "v6" $sc), join!(@rows $d "v7" $sd)
        )
    };
    (@rows $dots:literal $scales:literal $sum:ident) => {
        concat!(
            "scvtf ", $dots, ".4s, ", $dots, ".4s\n",
            "fmul ", $scales, ".4s, ", $scales, ".4s, v26.s[0]\n",
            "fmla {", stringify!($sum), ":v}.4s, ", $dots, ".4s, ", $scales, ".4s\n"
        )
    };
}

/// Two panels of int8 times one token.
#[inline(always)]
fn pair_i8(_: NeonDot, pair: &[OneToken<'_, Bytes>; 2], sums: [Sums; 2]) -> [Sums; 2] {
    /// A tile of each panel times four columns.
    macro_rules! both {
        ($x:tt $lane:literal) => {
            concat!(
                "ld1 {{v0.16b-v3.16b}}, [{wa}], #64\n",
                "ld1 {{v4.16b-v7.16b}}, [{wb}], #64\n",
                tile!(["v0" "v1" "v2" "v3"], $x $lane, "v16" "v17" "v18" "v19"),
                tile!(["v4" "v5" "v6" "v7"], $x $lane, "v20" "v21" "v22" "v23")
            )
        };
    }
    pair_loop!(
        pair,
        sums,
        concat!(
            "movi v16.4s, #0\n",
            "movi v17.4s, #0\n",
            "movi v18.4s, #0\n",
            "movi v19.4s, #0\n",
            "movi v20.4s, #0\n",
            "movi v21.4s, #0\n",
            "movi v22.4s, #0\n",
            "movi v23.4s, #0\n",
            both!("v24" 0),
            both!("v24" 1),
            both!("v24" 2),
            both!("v24" 3),
            both!("v25" 0),
            both!("v25" 1),
            both!("v25" 2),
            both!("v25" 3)
        )
    )
}

/// Two panels of 4-bit weights times one token.
#[inline(always)]
fn pair_u4(s: NeonDot, pair: &[OneToken<'_, Nibbles>; 2], sums: [Sums; 2]) -> [Sums; 2] {
    /// A pair of tiles of each panel times eight columns.
    macro_rules! both {
        ($x:tt $lane:literal $next:literal) => {
            concat!(
                nibbles!("wa", $x $lane $next, "v16" "v17" "v18" "v19"),
                nibbles!("wb", $x $lane $next, "v20" "v21" "v22" "v23")
            )
        };
    }
    pair_loop!(
        pair, sums,
        concat!(
            "mul v16.4s, {less:v}.4s, v26.s[1]\n",
            "mov v17.16b, v16.16b\n", "mov v18.16b, v16.16b\n", "mov v19.16b, v16.16b\n", "mov v20.16b, v16.16b\n",
            "mov v21.16b, v16.16b\n", "mov v22.16b, v16.16b\n", "mov v23.16b, v16.16b\n",
            both!("v24" 0 1), both!("v24" 2 3), both!("v25" 0 1), both!("v25" 2 3)
        ),
        less = in(vreg) four_of(s, -8i32 as u32), mask = in(vreg) low_halves(s)
    )
}

// SAFETY: `detect` alone gives the token.
unsafe impl Dot for NeonDot {
    const BLOCK: usize = 3;

    #[inline(always)]
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        _sums: &[Scale; T],
    ) -> [Self::I; T] {
        i8(self, w, x)
    }
    #[inline(always)]
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        u4(self, w, x, sums)
    }
    /// 4 less in each weight is taken from the sums.
    #[inline(always)]
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        less(self, i8(self, &unpacked(self, |k, q| three_bits(self, w, k, q)), x), sums, 4)
    }
    /// 16 less in each weight is taken from the sums.
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        less(self, i8(self, &unpacked(self, |k, q| five_bits(self, w, k, q)), x), sums, 16)
    }
}

// SAFETY: as above.
unsafe impl PanelDot for NeonDot {
    #[inline(always)]
    fn pair_i8(self, pair: &[OneToken<'_, Bytes>; 2], sums: [Self::F; 2]) -> [Self::F; 2] {
        pair_i8(self, pair, sums)
    }
    #[inline(always)]
    fn pair_u4(self, pair: &[OneToken<'_, Nibbles>; 2], sums: [Self::F; 2]) -> [Self::F; 2] {
        pair_u4(self, pair, sums)
    }
    /// Small weights are no different here.
    #[inline(always)]
    fn dot_small<const T: usize>(self, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Self::I; T] {
        i8(self, w, x)
    }
}
