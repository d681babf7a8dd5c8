//! Cortex-M with the DSP instructions (M4, M7, M33): two products an instruction.

use core::arch::asm;

use super::channels::Pairs;
use super::lanes::Quarters;
use super::matmul::Panel;
use super::scan::Channel;
use super::thumb2::dot_by_hand;
use super::thumb2::functions::silu_by_hand;
use super::thumb2::products::sums_by_hand;
use super::thumb2::states::either_shift;
use super::{Activations, Dot, Group, Input, Scalar, TILE, TILES, instantiate};
use crate::fixed::num::{Num, Row};

/// The DSP instructions of ARMv7E-M and ARMv8-M.
#[derive(Clone, Copy, Debug)]
pub struct Dsp;

instantiate!(Dsp);

// Of each word the bytes 0 and 2 meet the activations of columns 0 and 2, which lie side by side ([`super::place`]), bytes 1 and 3
// those of 1 and 3.
sums_by_hand!(
    sums_i8,
    TILE * TILES,
    [],
    ".rept 8",
    "ldrd {x}, {y}, [{xs}], #8",
    "ldrd {v}, {w}, [{at}, #8]",
    "sxtb16 {e}, {v}",
    "sxtb16 {v}, {v}, ror #8",
    "smlad {c}, {e}, {x}, {c}",
    "smlad {c}, {v}, {y}, {c}",
    "sxtb16 {e}, {w}",
    "sxtb16 {w}, {w}, ror #8",
    "smlad {d}, {e}, {x}, {d}",
    "smlad {d}, {w}, {y}, {d}",
    "ldrd {v}, {w}, [{at}], #64",
    "sxtb16 {e}, {v}",
    "sxtb16 {v}, {v}, ror #8",
    "smlad {a}, {e}, {x}, {a}",
    "smlad {a}, {v}, {y}, {a}",
    "sxtb16 {e}, {w}",
    "sxtb16 {w}, {w}, ror #8",
    "smlad {b}, {e}, {x}, {b}",
    "smlad {b}, {w}, {y}, {b}",
    ".endr"
);

// A word's nibbles are taken by fours, two columns of the low tile and two of the high one at a time.
sums_by_hand!(
    sums_u4,
    TILE * TILES / 2,
    ["sub {v}, {v}, {e}, lsl #3"],
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
    ".endr"
);

/// The states of a channel, once it is known what is left of them.
macro_rules! states {
    ($name:ident, $shift:literal) => {
        #[inline(always)]
        fn $name(channel: &Channel, by: i32, lane: usize, h: &mut [[i16; 16]; 16], pairs: &Pairs) -> (i32, u32) {
            let (mut y, mut joined) = (0, 0u32);
            // SAFETY: reads all pairs; reads and writes a lane of sixteen rows of states, 32 bytes apart. No sum overflows, so the
            // flag that tells of it stays as it is.
            unsafe {
                asm!(
                    ".rept 8",
                    "ldm {pairs}!, {{r0, r1, r2}}",
                    ".irp j, 0, 1",
                    "ldrsh {h}, [{hs}]",
                    concat!($shift, " {h}, {h}, {by}"),
                    // The upper half of g_down is g.
                    ".if \\j",
                    "smlatt {b}, {g_down}, r2, {half}",
                    ".else",
                    "smlatb {b}, {g_down}, r2, {half}",
                    ".endif",
                    "asr {b}, {b}, {g_down}",
                    "smmlar r\\j, r\\j, {h}, {b}",
                    // Half up: the last bit that is shifted out is added.
                    "asrs r\\j, r\\j, #14",
                    "adc r\\j, r\\j, #0",
                    "strh r\\j, [{hs}], #32",
                    ".endr",
                    "ldr r2, [{pairs}], #4",
                    "smlabb {b}, r0, r2, {sixty_four}",
                    "add {y}, {y}, {b}, asr #7",
                    "smlabt {b}, r1, r2, {sixty_four}",
                    "add {y}, {y}, {b}, asr #7",
                    // Where a bit of either half differs from the one below it.
                    "pkhbt r0, r0, r1, lsl #16",
                    "eor r0, r0, r0, lsl #1",
                    "orr {joined}, {joined}, r0",
                    ".endr",
                    hs = inout(reg) h.as_flattened_mut().as_mut_ptr().wrapping_add(lane & 15) => _,
                    pairs = inout(reg) pairs.as_ptr() => _,
                    by = in(reg) by,
                    g_down = in(reg) channel.g << 16 | channel.g_down,
                    half = in(reg) (1 << channel.g_down) >> 1,
                    sixty_four = in(reg) 64,
                    y = inout(reg) y,
                    joined = inout(reg) joined,
                    h = out(reg) _,
                    b = out(reg) _,
                    out("r0") _,
                    out("r1") _,
                    out("r2") _,
                    options(nostack)
                );
            }
            // The highest bit that differs from the one below it is the sign that is not needed: a magnitude has one bit less. What
            // lies below a half's lowest bit means nothing.
            (y, ((joined | joined >> 16) & 0xffff) >> 1)
        }
    };
}

states!(states_up, "lsl");
states!(states_cut, "asr");
either_shift!(states, states_up, states_cut);

silu_by_hand!(silu, "smmulr {m}, {m}, {f}");

/// [`Dot::mul_high`].
#[inline(always)]
fn mul_high(a: i32, b: i32) -> i32 {
    let high;
    // SAFETY: only a register changes. The compiler, where it knows one sign, makes more of it.
    unsafe {
        asm!(
            "smmulr {high}, {a}, {b}",
            a = in(reg) a,
            b = in(reg) b,
            high = lateout(reg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    high
}

dot_by_hand!(Dsp, "Cortex-M DSP", sums_i8, sums_u4, mul_high, silu, states);
