//! The sums of a panel's rows with a token, by `smlad`.

use core::arch::asm;

use crate::kernels::fixed::arm::dot::{Work, prepare, quarter, sums_by_hand};
use crate::kernels::fixed::arm::token::Dsp;
use crate::kernels::fixed::operands::Input;
use crate::kernels::fixed::panel::{Panel, Quarters};
use crate::numbers::{GROUP, TILE, TILES};

/// Lines for tile `$k` of a group: columns 0 and 2 of four rows, then 1 and 3. Of each word of weights the bytes 0 and 2 meet the
/// activations that lie side by side ([`place`](crate::kernels::fixed::operands::place)). Sums begin with these registers; `a` comes last.
macro_rules! tile {
    ($k:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "ldrd {x}, {y}, [{xs}, #(8 * ",
            $k,
            ")]\n",
            "ldrd {v}, {w}, [{at}, #(64 * ",
            $k,
            " + 8)]\n",
            "sxtb16 {e}, {v}\n",
            "sxtb16 {v}, {v}, ror #8\n",
            "smlad {c}, {e}, {x}, ",
            $c,
            "\n",
            "smlad {c}, {v}, {y}, {c}\n",
            "sxtb16 {e}, {w}\n",
            "sxtb16 {w}, {w}, ror #8\n",
            "smlad {d}, {e}, {x}, ",
            $d,
            "\n",
            "smlad {d}, {w}, {y}, {d}\n",
            "ldrd {v}, {w}, [{at}, #(64 * ",
            $k,
            ")]\n",
            "sxtb16 {e}, {w}\n",
            "sxtb16 {w}, {w}, ror #8\n",
            "smlad {b}, {e}, {x}, ",
            $b,
            "\n",
            "smlad {b}, {w}, {y}, {b}\n",
            "sxtb16 {e}, {v}\n",
            "sxtb16 {v}, {v}, ror #8\n",
            "smlad {a}, {e}, {x}, {a}\n",
            "smlad {a}, {v}, {y}, {a}\n",
        )
    };
    ($k:literal) => {
        tile!($k, "{b}", "{c}", "{d}")
    };
}

sums_by_hand!(
    Dsp,
    sums_i8,
    TILE * TILES,
    [],
    [],
    tile!("0", "{a}", "{a}", "{a}"),
    tile!("1"),
    tile!("2"),
    tile!("3"),
    tile!("4"),
    tile!("5"),
    tile!("6"),
    tile!("7")
);

/// Columns of a short panel, two tiles: what a projection from a low rank has, that of a model of up to 128 elements.
const SHORT: u32 = 8;

/// Whether the activations of token `t` behind the first [`SHORT`] are 0, as those of padding are, unless a file says otherwise.
#[inline(always)]
fn short(_: Dsp, x: &Input<'_>, t: usize) -> bool {
    let Some(q) = x.q.as_chunks::<GROUP>().0.get(t) else { return false };
    let mut all = 0u32;
    // SAFETY: reads 24 of 32 activations; words may lie at half words.
    unsafe {
        asm!(
            "ldr {v}, [{q}, #16]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #20]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #24]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #28]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #32]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #36]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #40]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #44]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #48]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #52]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #56]",
            "orr {all}, {all}, {v}",
            "ldr {v}, [{q}, #60]",
            "orr {all}, {all}, {v}",
            q = in(reg) q.as_ptr(),
            all = inout(reg) all,
            v = out(reg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    all == 0
}

/// [`Isa::sums_i8`].
#[inline(always)]
pub(super) fn sums(s: Dsp, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool {
    if panel.columns <= SHORT && short(s, x, t) {
        short_i8(s, panel, x, t, sums)
    } else {
        sums_i8(s, panel, x, t, sums)
    }
}

/// The same for a short panel.
#[inline(never)]
fn short_i8(s: Dsp, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool {
    let activations = match prepare(s, panel, x, t, TILE * TILES, sums) {
        Work::Portable => return false,
        Work::Nothing => return true,
        Work::Loop(activations) => activations,
    };
    let Some(group) = x.groups.get(t) else { return false };
    // What the dot products are shifted by, and begin with: what rounds that shift. For each quarter, with the number of those that follow
    // above the shift's byte.
    let shift = group.exponent as u32 & 31;
    for (left, quarter) in sums.iter_mut().take(4).rev().enumerate() {
        quarter.beside = [1 << shift >> 1, (left as u32) << 8 | shift];
    }
    // SAFETY: `prepare` found a group of scales, weights and activations, all at words. Only `sums` is written. Saturation and sums of
    // products set a flag that nothing reads.
    unsafe {
        asm!(
            "3:",
            "ldr {a}, [{sums}, #32]",
            tile!("0", "{a}", "{a}", "{a}"),
            tile!("1"),
            "ldr {e}, [{sums}, #36]",
            quarter!("smull {y}, {v}, {x}, \\dot"),
            "bpl 3b",
            sums = inout(reg) sums.as_mut_ptr() => _,
            at = inout(reg) panel.weights.as_ptr() => _,
            xs = in(reg) activations,
            ws = inout(reg) panel.scales.as_ptr() => _,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            x = out(reg) _,
            y = out(reg) _,
            v = out(reg) _,
            w = out(reg) _,
            e = out(reg) _,
            options(nostack)
        );
    }
    true
}

// A word's nibbles are taken by fours, two columns of the low tile and two of the high one at a time.
sums_by_hand!(
    Dsp,
    sums_u4,
    TILE * TILES / 2,
    ["sub {v}, {v}, {e}, lsl #3"],
    ["mov {b}, {a}\nmov {c}, {a}\nmov {d}, {a}"],
    "mov {e}, #0x000f000f",
    ".rept 4",
    // Low nibbles.
    "ldrd {x}, {y}, [{xs}], #8",
    "ldr {w}, [{at}]",
    "and {v}, {e}, {w}",
    "and {w}, {e}, {w}, lsr #8",
    "smlad {a}, {v}, {x}, {a}",
    "smlad {a}, {w}, {y}, {a}",
    "ldr {w}, [{at}, #4]",
    "and {v}, {e}, {w}",
    "and {w}, {e}, {w}, lsr #8",
    "smlad {b}, {v}, {x}, {b}",
    "smlad {b}, {w}, {y}, {b}",
    "ldr {w}, [{at}, #8]",
    "and {v}, {e}, {w}",
    "and {w}, {e}, {w}, lsr #8",
    "smlad {c}, {v}, {x}, {c}",
    "smlad {c}, {w}, {y}, {c}",
    "ldr {w}, [{at}, #12]",
    "and {v}, {e}, {w}",
    "and {w}, {e}, {w}, lsr #8",
    "smlad {d}, {v}, {x}, {d}",
    "smlad {d}, {w}, {y}, {d}",
    // High nibbles.
    "ldrd {x}, {y}, [{xs}], #8",
    "ldr {w}, [{at}, #4]",
    "and {v}, {e}, {w}, lsr #4",
    "and {w}, {e}, {w}, lsr #12",
    "smlad {b}, {v}, {x}, {b}",
    "smlad {b}, {w}, {y}, {b}",
    "ldr {w}, [{at}, #8]",
    "and {v}, {e}, {w}, lsr #4",
    "and {w}, {e}, {w}, lsr #12",
    "smlad {c}, {v}, {x}, {c}",
    "smlad {c}, {w}, {y}, {c}",
    "ldr {w}, [{at}, #12]",
    "and {v}, {e}, {w}, lsr #4",
    "and {w}, {e}, {w}, lsr #12",
    "smlad {d}, {v}, {x}, {d}",
    "smlad {d}, {w}, {y}, {d}",
    "ldr {w}, [{at}], #64",
    "and {v}, {e}, {w}, lsr #4",
    "and {w}, {e}, {w}, lsr #12",
    "smlad {a}, {v}, {x}, {a}",
    "smlad {a}, {w}, {y}, {a}",
    ".endr",
    "sub {at}, {at}, #256",
    "sub {xs}, {xs}, #64"
);
