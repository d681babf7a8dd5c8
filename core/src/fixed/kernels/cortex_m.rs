//! Cortex-M with the DSP instructions (M4, M7, M33): two products an instruction.

use core::arch::asm;

use super::scan::{Channel, States};
use super::thumb2::{ROWS, dot_by_hand, quarter, states_by_hand};
use super::{Activations, Dot, Group, Sums, TILE, TILES, instantiate};
use crate::fixed::num::Row;

/// The DSP instructions of ARMv7E-M and ARMv8-M.
#[derive(Clone, Copy, Debug)]
pub struct Dsp;

instantiate!(Dsp);

/// Dot products of rows `4 quarter..` of eight tiles of int8. Of each word the bytes 0 and 2 meet the activations of columns 0
/// and 2, which lie side by side ([`super::place`]), bytes 1 and 3 those of 1 and 3.
#[inline(always)]
fn four_i8(w: &[[u8; TILE]; TILES], q: usize, x: &Activations) -> [i32; ROWS] {
    let (mut a, mut b, mut c, mut d) = (0, 0, 0, 0);
    // SAFETY: reads 16 bytes of each of the eight tiles, 64 bytes apart, and the 32 activations; `ldr` needs no alignment. Writes
    // only the named registers. No sum overflows, so the flag that tells of it stays as it is.
    unsafe {
        asm!(
            ".rept 8",
            "ldr {x02}, [{x}], #4",
            "ldr {x13}, [{x}], #4",
            "ldr {w}, [{at}, #4]",
            "sxtb16 {e}, {w}",
            "sxtb16 {w}, {w}, ror #8",
            "smlad {b}, {e}, {x02}, {b}",
            "smlad {b}, {w}, {x13}, {b}",
            "ldr {w}, [{at}, #8]",
            "sxtb16 {e}, {w}",
            "sxtb16 {w}, {w}, ror #8",
            "smlad {c}, {e}, {x02}, {c}",
            "smlad {c}, {w}, {x13}, {c}",
            "ldr {w}, [{at}, #12]",
            "sxtb16 {e}, {w}",
            "sxtb16 {w}, {w}, ror #8",
            "smlad {d}, {e}, {x02}, {d}",
            "smlad {d}, {w}, {x13}, {d}",
            "ldr {w}, [{at}], #64",
            "sxtb16 {e}, {w}",
            "sxtb16 {w}, {w}, ror #8",
            "smlad {a}, {e}, {x02}, {a}",
            "smlad {a}, {w}, {x13}, {a}",
            ".endr",
            at = inout(reg) quarter(w, q) => _,
            x = inout(reg) x.as_ptr() => _,
            a = inout(reg) a,
            b = inout(reg) b,
            c = inout(reg) c,
            d = inout(reg) d,
            x02 = out(reg) _,
            x13 = out(reg) _,
            w = out(reg) _,
            e = out(reg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// The same of four pairs of tiles of 4-bit values, from `start` on. A word's nibbles are taken by fours, two columns of the low
/// tile and two of the high one at a time.
#[inline(always)]
fn four_u4(w: &[[u8; TILE]; TILES / 2], q: usize, x: &Activations, start: i32) -> [i32; ROWS] {
    let (mut a, mut b, mut c, mut d) = (start, start, start, start);
    // SAFETY: as above, of four pairs of tiles.
    unsafe {
        asm!(
            ".rept 4",
            // Low nibbles.
            "ldr {p}, [{x}], #4",
            "ldr {q}, [{x}], #4",
            "ldr {w}, [{at}]",
            "and {n}, {mask}, {w}",
            "and {w}, {mask}, {w}, lsr #8",
            "smlad {a}, {n}, {p}, {a}",
            "smlad {a}, {w}, {q}, {a}",
            "ldr {w}, [{at}, #4]",
            "and {n}, {mask}, {w}",
            "and {w}, {mask}, {w}, lsr #8",
            "smlad {b}, {n}, {p}, {b}",
            "smlad {b}, {w}, {q}, {b}",
            "ldr {w}, [{at}, #8]",
            "and {n}, {mask}, {w}",
            "and {w}, {mask}, {w}, lsr #8",
            "smlad {c}, {n}, {p}, {c}",
            "smlad {c}, {w}, {q}, {c}",
            "ldr {w}, [{at}, #12]",
            "and {n}, {mask}, {w}",
            "and {w}, {mask}, {w}, lsr #8",
            "smlad {d}, {n}, {p}, {d}",
            "smlad {d}, {w}, {q}, {d}",
            // High nibbles.
            "ldr {p}, [{x}], #4",
            "ldr {q}, [{x}], #4",
            "ldr {w}, [{at}, #4]",
            "and {n}, {mask}, {w}, lsr #4",
            "and {w}, {mask}, {w}, lsr #12",
            "smlad {b}, {n}, {p}, {b}",
            "smlad {b}, {w}, {q}, {b}",
            "ldr {w}, [{at}, #8]",
            "and {n}, {mask}, {w}, lsr #4",
            "and {w}, {mask}, {w}, lsr #12",
            "smlad {c}, {n}, {p}, {c}",
            "smlad {c}, {w}, {q}, {c}",
            "ldr {w}, [{at}, #12]",
            "and {n}, {mask}, {w}, lsr #4",
            "and {w}, {mask}, {w}, lsr #12",
            "smlad {d}, {n}, {p}, {d}",
            "smlad {d}, {w}, {q}, {d}",
            "ldr {w}, [{at}], #64",
            "and {n}, {mask}, {w}, lsr #4",
            "and {w}, {mask}, {w}, lsr #12",
            "smlad {a}, {n}, {p}, {a}",
            "smlad {a}, {w}, {q}, {a}",
            ".endr",
            at = inout(reg) quarter(w, q) => _,
            x = inout(reg) x.as_ptr() => _,
            a = inout(reg) a,
            b = inout(reg) b,
            c = inout(reg) c,
            d = inout(reg) d,
            mask = in(reg) 0x000f_000f,
            p = out(reg) _,
            q = out(reg) _,
            w = out(reg) _,
            n = out(reg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

states_by_hand!(states_dsp, "smmulr {h}, {h}, {q}", "adc {h}, {h}, {b}");

dot_by_hand!(Dsp, "Cortex-M DSP", four_i8, four_u4, states_dsp);
