//! Panels times one token, and slices of a panel times two, without `sdot`: a loop over groups of columns in one block of
//! assembly, as [`products`](super::products) says.

use core::arch::aarch64::float32x4_t;
use core::arch::asm;

use super::products::{add_pairs, eight, eight_columns, join_pairs, multiply, sixteen};
use super::{OneToken, Tokens};
use crate::kernels::float::aarch64::float::Neon;
use crate::kernels::float::aarch64::unpack::{Bytes, Nibbles};
use crate::kernels::float::operands::Scale;
use crate::numbers::{LANES, TILE};

/// The sums of 16 rows.
type Sums = [float32x4_t; 4];

/// Joins four partial dot products of each row, in i16: four rows a register, `v4` to `v7`. Sixteen products of a nibble reach
/// 16 * 15 * 128 = 30,720.
macro_rules! join_small {
    () => {
        "addp v4.8h, v4.8h, v5.8h
        addp v5.8h, v6.8h, v7.8h
        addp v6.8h, v8.8h, v9.8h
        addp v7.8h, v10.8h, v11.8h
        saddlp v4.4s, v4.8h
        saddlp v5.4s, v5.8h
        saddlp v6.4s, v6.8h
        saddlp v7.4s, v7.8h\n"
    };
}

/// Eight columns of sixteen rows of nibbles with a token. `v17` masks the low ones; `$next` reads the next eight columns' weights.
macro_rules! eight_nibbles {
    ($op:literal, $a:literal $b:literal $c:literal $d:literal * $x:literal $y:literal, $next:literal, $meanwhile:expr, $last:expr) => {
        concat!(
            "and v12.16b, ", $a, ".16b, v17.16b\nand v13.16b, ", $b, ".16b, v17.16b\n",
            "and v14.16b, ", $c, ".16b, v17.16b\nand v15.16b, ", $d, ".16b, v17.16b\n",
            $next,
            "ushr ", $a, ".16b, ", $a, ".16b, #4\nushr ", $b, ".16b, ", $b, ".16b, #4\n",
            "ushr ", $c, ".16b, ", $c, ".16b, #4\nushr ", $d, ".16b, ", $d, ".16b, #4\n",
            sixteen!(dots = $op, "v12" "v13" "v14" "v15" * $x),
            $meanwhile,
            sixteen!(dots = "smlal", $a $b $c $d * $y),
            $last
        )
    };
}

/// A panel times one token, group by group: `$products` leaves a group's dot products in `v4` to `v7`, its scales in `v12` and
/// `v13`, as f16, and the token's scale in `v16`.
///
/// A round reads how the next group begins. The last round reads its own beginning again, for there is no next group.
macro_rules! panel_loop {
    ($panel:ident, $sums:ident, $before:expr, $pointers:expr, $products:expr, $($pointer:ident)+) => {{
        let (groups, [mut a, mut b, mut c, mut d]) = ($panel.groups(), $sums);
        if groups > 0 {
            // SAFETY: the caller has a token of NEON; each slice has `groups` elements, and no more is read: a group's weights and scales, 32 bytes
            // of activations, 8 of their scale and sum.
            unsafe {
                asm!(
                    $before,
                    "ld4r {{v28.4s-v31.4s}}, [{x}]",
                    "2:",
                    "add {half}, {x}, #16",
                    "subs {groups}, {groups}, #1",
                    "cset {more}, ne",
                    "add {x}, {x}, {more}, lsl #5",
                    $pointers,
                    $products,
                    "fcvtl v14.4s, v12.4h",
                    "fcvtl2 v15.4s, v12.8h",
                    "fcvtl v12.4s, v13.4h",
                    "fcvtl2 v13.4s, v13.8h",
                    "scvtf v4.4s, v4.4s",
                    "scvtf v5.4s, v5.4s",
                    "scvtf v6.4s, v6.4s",
                    "scvtf v7.4s, v7.4s",
                    "fmul v14.4s, v14.4s, v16.s[0]",
                    "fmul v15.4s, v15.4s, v16.s[0]",
                    "fmul v12.4s, v12.4s, v16.s[0]",
                    "fmul v13.4s, v13.4s, v16.s[0]",
                    "add {ws}, {ws}, #32",
                    "add {xs}, {xs}, #8",
                    "fmla v0.4s, v4.4s, v14.4s",
                    "fmla v1.4s, v5.4s, v15.4s",
                    "fmla v2.4s, v6.4s, v12.4s",
                    "fmla v3.4s, v7.4s, v13.4s",
                    "b.ne 2b",
                    groups = inout(reg) groups => _, more = out(reg) _, half = out(reg) _, $($pointer = out(reg) _,)+
                    w = inout(reg) $panel.w.as_ptr() => _, ws = inout(reg) $panel.ws.as_ptr() => _,
                    x = inout(reg) $panel.x.as_ptr() => _, xs = inout(reg) $panel.xs.as_ptr() => _,
                    inout("v0") a, inout("v1") b, inout("v2") c, inout("v3") d,
                    out("v4") _, out("v5") _, out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _,
                    out("v11") _, out("v12") _, out("v13") _, out("v14") _, out("v15") _, out("v16") _, out("v17") _,
                    out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _, out("v24") _,
                    out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
                    options(pure, readonly, nostack)
                );
            }
        }
        [a, b, c, d]
    }};
}

/// Adds a panel of int8 times one token.
#[inline(always)]
pub(super) fn panel_i8(_: Neon, panel: &OneToken<'_, Bytes>, sums: Sums) -> Sums {
    panel_loop!(
        panel,
        sums,
        "add {w1}, {w}, #64
        ld1 {{v20.16b-v23.16b}}, [{w}]
        ld1 {{v24.16b-v27.16b}}, [{w1}]",
        "add {w2}, {w}, #128
        add {w3}, {w}, #192
        add {w4}, {w}, #256
        add {w5}, {w}, #320
        add {w6}, {w}, #384
        add {w7}, {w}, #448
        add {w}, {w}, {more}, lsl #9
        add {w1}, {w}, #64",
        concat!(
            eight_columns!(
                "saddlp", "v28" "v29",
                "ld1 {{v20.16b-v23.16b}}, [{w2}]\n", "ld1 {{v24.16b-v27.16b}}, [{w3}]\n", "", ""
            ),
            eight_columns!(
                "sadalp", "v30" "v31",
                "ld1 {{v20.16b-v23.16b}}, [{w4}]\n", "ld1 {{v24.16b-v27.16b}}, [{w5}]\n",
                "ld4r {{v28.4s-v31.4s}}, [{half}]\n", ""
            ),
            eight_columns!(
                "sadalp", "v28" "v29",
                "ld1 {{v20.16b-v23.16b}}, [{w6}]\n", "ld1 {{v24.16b-v27.16b}}, [{w7}]\n", "", ""
            ),
            eight_columns!(
                "sadalp", "v30" "v31",
                "ld1 {{v20.16b-v23.16b}}, [{w}]\n", "ld1 {{v24.16b-v27.16b}}, [{w1}]\n",
                "ld4r {{v28.4s-v31.4s}}, [{x}]\n",
                "ld1 {{v12.8h, v13.8h}}, [{ws}]\nld1 {{v16.2s}}, [{xs}]\n"
            ),
            join_pairs!()
        ),
        w1 w2 w3 w4 w5 w6 w7
    )
}

/// Adds a panel of 4-bit weights times one token.
#[inline(always)]
pub(super) fn panel_u4(_: Neon, panel: &OneToken<'_, Nibbles>, sums: Sums) -> Sums {
    panel_loop!(
        panel,
        sums,
        "movi v17.16b, #15
        movi v18.4s, #8
        ld1 {{v20.16b-v23.16b}}, [{w}]",
        "add {w1}, {w}, #64
        add {w2}, {w}, #128
        add {w3}, {w}, #192
        add {w}, {w}, {more}, lsl #8",
        concat!(
            eight_nibbles!(
                "smull", "v20" "v21" "v22" "v23" * "v28" "v29", "ld1 {{v24.16b-v27.16b}}, [{w1}]\n", "", ""
            ),
            eight_nibbles!(
                "smlal", "v24" "v25" "v26" "v27" * "v30" "v31", "ld1 {{v20.16b-v23.16b}}, [{w2}]\n", "",
                "ld4r {{v28.4s-v31.4s}}, [{half}]\n"
            ),
            eight_nibbles!(
                "smlal", "v20" "v21" "v22" "v23" * "v28" "v29", "ld1 {{v24.16b-v27.16b}}, [{w3}]\n", "", ""
            ),
            eight_nibbles!(
                "smlal", "v24" "v25" "v26" "v27" * "v30" "v31", "ld1 {{v20.16b-v23.16b}}, [{w}]\n",
                "ld1 {{v12.8h, v13.8h}}, [{ws}]\nld1 {{v16.2s}}, [{xs}]\n",
                "ld4r {{v28.4s-v31.4s}}, [{x}]\n"
            ),
            join_small!(),
            // Each weight is 8 too large.
            "mls v4.4s, v18.4s, v16.s[1]
            mls v5.4s, v18.4s, v16.s[1]
            mls v6.4s, v18.4s, v16.s[1]
            mls v7.4s, v18.4s, v16.s[1]\n"
        ),
        w1 w2 w3
    )
}

/// A slice times two tokens, eight rows at a time: `$products` leaves a group's dot products in `v4` to `v7`, the first token's
/// first.
macro_rules! two_loop {
    ($slice:ident, $sums:ident, $products:expr) => {{
        let (groups, x, first, [mut a, mut b]) = ($slice.groups(2), $slice.x, $slice.first, $sums);
        let eight_rows = (0..2).filter(|_| groups > 0);
        for rows in eight_rows {
            // SAFETY: the caller has a token of NEON; there are `groups` elements of weights and scales, and as many rows of activations and their
            // scales with two tokens or more from the first on. No more is read: half a group's weights and scales, and in a row
            // 64 bytes of activations and 16 of their scales and sums.
            unsafe {
                asm!(
                    "2:",
                    "add {w1}, {w}, #64",
                    "add {w2}, {w}, #128",
                    "add {w3}, {w}, #192",
                    "add {w4}, {w}, #256",
                    "add {w5}, {w}, #320",
                    "add {w6}, {w}, #384",
                    "add {w7}, {w}, #448",
                    "add {half}, {x}, #16",
                    "add {y}, {x}, #32",
                    "add {y_half}, {x}, #48",
                    "subs {groups}, {groups}, #1",
                    "ld4r {{v24.4s-v27.4s}}, [{x}]",
                    "ld1 {{v20.16b, v21.16b}}, [{w}]",
                    "ld4r {{v28.4s-v31.4s}}, [{y}]",
                    "ld1 {{v22.16b, v23.16b}}, [{w1}]",
                    $products,
                    "fmul v16.4s, v12.4s, v14.s[0]",
                    "fmul v17.4s, v13.4s, v14.s[0]",
                    "fmul v18.4s, v12.4s, v14.s[2]",
                    "fmul v19.4s, v13.4s, v14.s[2]",
                    "scvtf v4.4s, v4.4s",
                    "scvtf v5.4s, v5.4s",
                    "scvtf v6.4s, v6.4s",
                    "scvtf v7.4s, v7.4s",
                    "fmla v0.4s, v4.4s, v16.4s",
                    "fmla v1.4s, v5.4s, v17.4s",
                    "fmla v2.4s, v6.4s, v18.4s",
                    "fmla v3.4s, v7.4s, v19.4s",
                    "add {w}, {w}, #512",
                    "add {ws}, {ws}, #64",
                    "add {x}, {x}, {stride}, lsl #2",
                    "add {xs}, {xs}, {stride}",
                    "b.ne 2b",
                    groups = inout(reg) groups => _,
                    w = inout(reg) $slice.w.as_ptr().cast::<u8>().add(rows * TILE / 2) => _,
                    ws = inout(reg) $slice.ws.as_ptr().cast::<f32>().add(rows * LANES / 2) => _,
                    x = inout(reg) x.q.as_ptr().add(first) => _,
                    xs = inout(reg) x.scales.as_ptr().add(first) => _,
                    stride = in(reg) x.tokens * size_of::<Scale>(),
                    w1 = out(reg) _, w2 = out(reg) _, w3 = out(reg) _, w4 = out(reg) _, w5 = out(reg) _, w6 = out(reg) _,
                    w7 = out(reg) _, half = out(reg) _, y = out(reg) _, y_half = out(reg) _,
                    inout("v0") a[2 * rows], inout("v1") a[2 * rows + 1],
                    inout("v2") b[2 * rows], inout("v3") b[2 * rows + 1],
                    out("v4") _, out("v5") _, out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _,
                    out("v11") _, out("v12") _, out("v13") _, out("v14") _, out("v15") _, out("v16") _, out("v17") _,
                    out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _, out("v24") _,
                    out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
                    options(pure, readonly, nostack)
                );
            }
        }
        [a, b]
    }};
}

/// Eight columns of eight rows of int8 with two tokens; `$next` and `$after` read the weights of the next eight.
macro_rules! eight_by_two {
    ($add:literal, $a:literal $b:literal, $c:literal $d:literal, $next:literal, $after:literal, $meanwhile:literal, $last:literal) => {
        concat!(
            eight!(products = "smull", "v20" "v21" * $a $b),
            $next,
            eight!(products = "smlal", "v22" "v23" * $c $d),
            $after,
            add_pairs!($add, $meanwhile, $last)
        )
    };
}

/// Adds a slice of int8 times two tokens.
#[inline(always)]
pub(super) fn two_i8(_: Neon, slice: &Tokens<'_>, sums: [Sums; 2]) -> [Sums; 2] {
    two_loop!(
        slice,
        sums,
        concat!(
            eight_by_two!(
                "saddlp", "v24" "v28", "v25" "v29",
                "ld1 {{v20.16b, v21.16b}}, [{w2}]\n", "ld1 {{v22.16b, v23.16b}}, [{w3}]\n", "", ""
            ),
            eight_by_two!(
                "sadalp", "v26" "v30", "v27" "v31",
                "ld1 {{v20.16b, v21.16b}}, [{w4}]\n", "ld1 {{v22.16b, v23.16b}}, [{w5}]\n",
                "ld4r {{v24.4s-v27.4s}}, [{half}]\nld4r {{v28.4s-v31.4s}}, [{y_half}]\n", ""
            ),
            eight_by_two!(
                "sadalp", "v24" "v28", "v25" "v29",
                "ld1 {{v20.16b, v21.16b}}, [{w6}]\n", "ld1 {{v22.16b, v23.16b}}, [{w7}]\n", "", ""
            ),
            eight_by_two!(
                "sadalp", "v26" "v30", "v27" "v31", "", "",
                "ld1 {{v12.4s, v13.4s}}, [{ws}]\nld1 {{v14.4s}}, [{xs}]\n", ""
            ),
            join_pairs!()
        )
    )
}

/// Adds a slice of int8 within -8 and 7 times two tokens.
#[inline(always)]
pub(super) fn two_small(_: Neon, slice: &Tokens<'_>, sums: [Sums; 2]) -> [Sums; 2] {
    two_loop!(
        slice,
        sums,
        concat!(
            eight!(dots = "smull", "v20" "v21" * "v24" "v28"),
            "ld1 {{v20.16b, v21.16b}}, [{w2}]\n",
            eight!(dots = "smlal", "v22" "v23" * "v25" "v29"),
            "ld1 {{v22.16b, v23.16b}}, [{w3}]\n",
            eight!(dots = "smlal", "v20" "v21" * "v26" "v30"),
            "ld1 {{v20.16b, v21.16b}}, [{w4}]\n",
            eight!(dots = "smlal", "v22" "v23" * "v27" "v31"),
            "ld4r {{v24.4s-v27.4s}}, [{half}]\n",
            "ld4r {{v28.4s-v31.4s}}, [{y_half}]\n",
            "ld1 {{v22.16b, v23.16b}}, [{w5}]\n",
            eight!(dots = "smlal", "v20" "v21" * "v24" "v28"),
            "ld1 {{v20.16b, v21.16b}}, [{w6}]\n",
            eight!(dots = "smlal", "v22" "v23" * "v25" "v29"),
            "ld1 {{v22.16b, v23.16b}}, [{w7}]\n",
            eight!(dots = "smlal", "v20" "v21" * "v26" "v30"),
            eight!(dots = "smlal", "v22" "v23" * "v27" "v31"),
            "ld1 {{v12.4s, v13.4s}}, [{ws}]\n",
            "ld1 {{v14.4s}}, [{xs}]\n",
            join_small!()
        )
    )
}
