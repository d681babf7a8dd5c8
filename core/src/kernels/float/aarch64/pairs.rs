//! Dot products of groups without `sdot`.

use core::arch::aarch64::*;
use core::arch::asm;

use super::order::{Bytes, Nibbles, widen};
use super::products::{add_pairs, eight_columns, join_pairs, multiply, sixteen};
use super::{five_bits, less, three_bits, unpacked};
use crate::kernels::float::Scale;
use crate::numbers::{GROUP, TILE, TILES};

/// The dot products of 16 rows.
type Rows = [uint32x4_t; 4];

/// A group of int8 times one token: `$products` leaves its dot products in `v4` to `v7`.
macro_rules! group {
    ($w:ident, $x:ident, $products:expr) => {{
        let (a, b, c, d);
        // SAFETY: NEON is there; the arrays have the bytes read, eight tiles and 32.
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

/// Nothing but the products, added in pairs.
#[inline(always)]
pub(super) fn bare(acc: uint32x4_t, w: int8x16_t, x: int8x16_t) -> uint32x4_t {
    // SAFETY: NEON is there.
    unsafe {
        let sums = vreinterpretq_s32_u32(acc);
        let low = vpadalq_s16(sums, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
        vreinterpretq_u32_s32(vpadalq_s16(low, vmull_high_s8(w, x)))
    }
}

/// A group of int8 with `T` tokens. Two products reach 2 * 128 * 127 = 32,512, which an i16 holds.
#[inline(always)]
pub(super) fn i8<const T: usize>(w: &Bytes, x: &[[i8; GROUP]; T]) -> [Rows; T] {
    core::array::from_fn(|t| group_i8(w, &x[t]))
}

#[inline(always)]
fn group_i8(w: &Bytes, x: &[i8; GROUP]) -> Rows {
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
pub(super) fn small<const T: usize>(w: &Bytes, x: &[[i8; GROUP]; T]) -> [Rows; T] {
    core::array::from_fn(|t| group_small(w, &x[t]))
}

#[inline(always)]
fn group_small(w: &Bytes, x: &[i8; GROUP]) -> Rows {
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

/// A group of 3-bit weights with `T` tokens: 4 less in each is taken from the sums.
#[inline(always)]
pub(super) fn u3<const T: usize>(w: &[[u8; TILE]; 3], x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [Rows; T] {
    less(small(&unpacked(|k, q| three_bits(w, k, q)), x), sums, 4)
}

/// A group of 4-bit weights with `T` tokens.
#[inline(always)]
pub(super) fn u4<const T: usize>(w: &Nibbles, x: &[[i8; GROUP]; T], _sums: &[Scale; T]) -> [Rows; T] {
    let mut bytes = [[0; TILE]; TILES];
    widen(w, &mut bytes);
    small(&bytes, x)
}

/// A group of 5-bit weights with `T` tokens: 16 less.
#[inline(always)]
pub(super) fn u5<const T: usize>(w: &[[u8; TILE]; 5], x: &[[i8; GROUP]; T], sums: &[Scale; T]) -> [Rows; T] {
    less(small(&unpacked(|k, q| five_bits(w, k, q)), x), sums, 16)
}
