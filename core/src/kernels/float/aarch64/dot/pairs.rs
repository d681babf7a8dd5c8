//! Dot products of groups without `sdot`.

use core::arch::aarch64::*;
use core::arch::asm;

use super::panels;
use super::products::{add_pairs, eight_columns, join_pairs, multiply, sixteen};
use super::{OneToken, PanelDot, Tokens, group_by_group};
use crate::kernels::float::aarch64::float::Neon;
use crate::kernels::float::aarch64::unpack::{Bytes, Nibbles, five_bits, less, three_bits, unpacked, widen};
use crate::kernels::float::isa::Dot;
use crate::kernels::float::operands::Scale;
use crate::numbers::{GROUP, TILE, TILES};

/// The dot products of 16 rows.
type Rows = [uint32x4_t; 4];

/// A group of int8 times one token: `$products` leaves its dot products in `v4` to `v7`.
macro_rules! group {
    ($w:ident, $x:ident, $products:expr) => {{
        let (a, b, c, d);
        // SAFETY: the caller has a token of NEON; the arrays have the bytes read, eight tiles and 32.
        unsafe {
            asm!(
                "ld4r {{v28.4s-v31.4s}}, [{x}]",
                "add {half}, {x}, #16",
                "ldp q20, q21, [{w}]",
                "ldp q22, q23, [{w}, #32]",
                "ldp q24, q25, [{w}, #64]",
                "ldp q26, q27, [{w}, #96]",
                $products,
                w = in(reg) $w.as_ptr(), x = in(reg) $x.as_ptr(), half = out(reg) _,
                out("v4") a, out("v5") b, out("v6") c, out("v7") d,
                out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
                out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
                out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _,
                out("v29") _, out("v30") _, out("v31") _,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        [a, b, c, d]
    }};
}

/// A group of int8 with `T` tokens. Two products reach 2 * 128 * 127 = 32,512, which an i16 holds.
#[inline(always)]
fn i8<const T: usize>(s: Neon, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Rows; T] {
    core::array::from_fn(|t| group_i8(s, w, &x[t]))
}

#[inline(always)]
fn group_i8(_: Neon, w: &Bytes, x: &[i8; GROUP]) -> Rows {
    group!(
        w,
        x,
        concat!(
            eight_columns!(
                "saddlp", "v28" "v29",
                "ldp q20, q21, [{w}, #128]\nldp q22, q23, [{w}, #160]\n",
                "ldp q24, q25, [{w}, #192]\nldp q26, q27, [{w}, #224]\n", "", ""
            ),
            eight_columns!(
                "sadalp", "v30" "v31",
                "ldp q20, q21, [{w}, #256]\nldp q22, q23, [{w}, #288]\n",
                "ldp q24, q25, [{w}, #320]\nldp q26, q27, [{w}, #352]\n",
                "ld4r {{v28.4s-v31.4s}}, [{half}]\n", ""
            ),
            eight_columns!(
                "sadalp", "v28" "v29",
                "ldp q20, q21, [{w}, #384]\nldp q22, q23, [{w}, #416]\n",
                "ldp q24, q25, [{w}, #448]\nldp q26, q27, [{w}, #480]\n", "", ""
            ),
            eight_columns!("sadalp", "v30" "v31", "", "", "", ""),
            join_pairs!()
        )
    )
}

/// A group of int8 with `T` tokens whose products i16 add up: 8 * 31 * 128 = 31,744 with weights of 5 bits.
#[inline(always)]
fn small<const T: usize>(s: Neon, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Rows; T] {
    core::array::from_fn(|t| group_small(s, w, &x[t]))
}

#[inline(always)]
fn group_small(_: Neon, w: &Bytes, x: &[i8; GROUP]) -> Rows {
    group!(
        w,
        x,
        concat!(
            sixteen!(dots = "smull", "v20" "v21" "v22" "v23" * "v28"),
            "ldp q20, q21, [{w}, #128]\nldp q22, q23, [{w}, #160]\n",
            sixteen!(dots = "smlal", "v24" "v25" "v26" "v27" * "v29"),
            "ldp q24, q25, [{w}, #192]\nldp q26, q27, [{w}, #224]\n",
            sixteen!(dots = "smlal", "v20" "v21" "v22" "v23" * "v30"),
            "ldp q20, q21, [{w}, #256]\nldp q22, q23, [{w}, #288]\n",
            sixteen!(dots = "smlal", "v24" "v25" "v26" "v27" * "v31"),
            "ldp q24, q25, [{w}, #320]\nldp q26, q27, [{w}, #352]\n",
            "ld4r {{v28.4s-v31.4s}}, [{half}]\n",
            sixteen!(dots = "smlal", "v20" "v21" "v22" "v23" * "v28"),
            "ldp q20, q21, [{w}, #384]\nldp q22, q23, [{w}, #416]\n",
            sixteen!(dots = "smlal", "v24" "v25" "v26" "v27" * "v29"),
            "ldp q24, q25, [{w}, #448]\nldp q26, q27, [{w}, #480]\n",
            sixteen!(dots = "smlal", "v20" "v21" "v22" "v23" * "v30"),
            sixteen!(dots = "smlal", "v24" "v25" "v26" "v27" * "v31"),
            "saddlp v4.4s, v4.8h
            saddlp v5.4s, v5.8h
            saddlp v6.4s, v6.8h
            saddlp v7.4s, v7.8h
            saddlp v8.4s, v8.8h
            saddlp v9.4s, v9.8h
            saddlp v10.4s, v10.8h
            saddlp v11.4s, v11.8h\n",
            join_pairs!()
        )
    )
}

/// A group of 4-bit weights with `T` tokens.
#[inline(always)]
fn u4<const T: usize>(s: Neon, w: &Nibbles, x: &[[i8; GROUP]; T], _sums: &[Scale; T]) -> [Rows; T] {
    let mut bytes = [[0; TILE]; TILES];
    widen(w, &mut bytes);
    small(s, &bytes, x)
}

// SAFETY: `detect` alone gives the token.
unsafe impl Dot for Neon {
    const BLOCK: usize = 2;

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
        less(self, small(self, &unpacked(self, |k, q| three_bits(self, w, k, q)), x), sums, 4)
    }
    /// 16 less in each weight is taken from the sums.
    #[inline(always)]
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T] {
        less(self, small(self, &unpacked(self, |k, q| five_bits(self, w, k, q)), x), sums, 16)
    }
}

// SAFETY: as above.
unsafe impl PanelDot for Neon {
    #[inline(always)]
    fn panel_i8(self, panel: &OneToken<'_, Bytes>, sums: Self::F) -> Self::F {
        panels::panel_i8(self, panel, sums)
    }
    #[inline(always)]
    fn panel_u4(self, panel: &OneToken<'_, Nibbles>, sums: Self::F) -> Self::F {
        panels::panel_u4(self, panel, sums)
    }
    #[inline(always)]
    fn dot_small<const T: usize>(self, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Self::I; T] {
        small(self, w, x)
    }
    #[inline(always)]
    fn slice<const SMALL: bool, const T: usize>(
        self,
        slice: &Tokens<'_>,
        mut sums: [Self::F; T],
    ) -> [Self::F; T] {
        match sums.as_chunks_mut() {
            ([two], []) if SMALL => *two = panels::two_small(self, slice, *two),
            ([two], []) => *two = panels::two_i8(self, slice, *two),
            _ => return group_by_group::<Self, SMALL, T>(self, slice, sums),
        }
        sums
    }
}
