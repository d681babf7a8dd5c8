//! Cortex-M from the M3 on: what the instructions of Thumb-2 do better by hand than the compiler, which runs out of registers.
//!
//! The loops that both kinds of Cortex-M share are here too: [`accumulate`] and [`states`].

use core::arch::asm;
use core::mem::MaybeUninit;

use super::scan::{Channel, States};
use super::{Activations, Dot, Group, Sums, TILE, TILES, instantiate};
use crate::fixed::functions::EXP2;
use crate::fixed::num::Row;

/// The instructions of ARMv7-M and ARMv8-M Mainline.
#[derive(Clone, Copy, Debug)]
pub struct Thumb2;

instantiate!(Thumb2);

/// Rows that are summed side by side: what fits the registers.
pub(super) const ROWS: usize = 4;

/// Where the four rows of a quarter begin in the first tile.
#[inline(always)]
pub(super) fn quarter<const N: usize>(w: &[[u8; TILE]; N], quarter: usize) -> *const u8 {
    w.as_flattened().as_ptr().wrapping_add(4 * ROWS * (quarter & 3))
}

/// Dot products of four rows of eight tiles of int8.
#[inline(always)]
fn four_i8(w: &[[u8; TILE]; TILES], q: usize, x: &Activations) -> [i32; ROWS] {
    let (mut a, mut b, mut c, mut d) = (0, 0, 0, 0);
    // SAFETY: reads 16 bytes of each of the eight tiles, 64 bytes apart, and the 32 activations; writes only the named registers.
    unsafe {
        asm!(
            ".rept 8",
            // Columns in the order of the activations.
            ".irp j, 0, 2, 1, 3",
            "ldrsh {x}, [{xs}], #2",
            "ldrsb {w}, [{at}, #\\j]",
            "mla {a}, {w}, {x}, {a}",
            "ldrsb {w}, [{at}, #(4 + \\j)]",
            "mla {b}, {w}, {x}, {b}",
            "ldrsb {w}, [{at}, #(8 + \\j)]",
            "mla {c}, {w}, {x}, {c}",
            "ldrsb {w}, [{at}, #(12 + \\j)]",
            "mla {d}, {w}, {x}, {d}",
            ".endr",
            "add {at}, {at}, #64",
            ".endr",
            at = inout(reg) quarter(w, q) => _,
            xs = inout(reg) x.as_ptr() => _,
            a = inout(reg) a,
            b = inout(reg) b,
            c = inout(reg) c,
            d = inout(reg) d,
            x = out(reg) _,
            w = out(reg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// The same of four pairs of tiles of 4-bit values, from `start` on.
#[inline(always)]
fn four_u4(w: &[[u8; TILE]; TILES / 2], q: usize, x: &Activations, start: i32) -> [i32; ROWS] {
    let (mut a, mut b, mut c, mut d) = (start, start, start, start);
    // SAFETY: as above, of four pairs of tiles; `ldr` needs no alignment, and has it.
    unsafe {
        asm!(
            ".rept 4",
            "ldr {wa}, [{at}]",
            "ldr {wb}, [{at}, #4]",
            "ldr {wc}, [{at}, #8]",
            "ldr {wd}, [{at}, #12]",
            // Nibbles in the order of the activations: those of the low tile, then those of the high one.
            ".irp bit, 0, 16, 8, 24, 4, 20, 12, 28",
            "ldrsh {x}, [{xs}], #2",
            "ubfx {w}, {wa}, #\\bit, #4",
            "mla {a}, {w}, {x}, {a}",
            "ubfx {w}, {wb}, #\\bit, #4",
            "mla {b}, {w}, {x}, {b}",
            "ubfx {w}, {wc}, #\\bit, #4",
            "mla {c}, {w}, {x}, {c}",
            "ubfx {w}, {wd}, #\\bit, #4",
            "mla {d}, {w}, {x}, {d}",
            ".endr",
            "add {at}, {at}, #64",
            ".endr",
            at = inout(reg) quarter(w, q) => _,
            xs = inout(reg) x.as_ptr() => _,
            a = inout(reg) a,
            b = inout(reg) b,
            c = inout(reg) c,
            d = inout(reg) d,
            wa = out(reg) _,
            wb = out(reg) _,
            wc = out(reg) _,
            wd = out(reg) _,
            x = out(reg) _,
            w = out(reg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// [`Dot::accumulate`]: a scale's sign goes to the dot product, its magnitude to an integer as in [`super::scale`].
#[inline(always)]
pub(super) fn accumulate(dots: &Row, ws: &[u8; 32], down: u32, sums: &mut Sums) {
    let half = (1 << down) >> 1;
    // SAFETY: reads sixteen dot products and scales, reads and writes sixteen sums, which are aligned to 8 bytes.
    unsafe {
        asm!(
            ".rept 16",
            "ldrh {k}, [{ws}], #2",
            "ldr {v}, [{dots}], #4",
            "ldrd {lo}, {hi}, [{sums}]",
            "add {v}, {v}, {half}",
            "asr {v}, {v}, {down}",
            // The sign falls into the carry.
            "lsls {m}, {k}, #17",
            "it cs",
            "rsbcs {v}, {v}, #0",
            "lsr {m}, {m}, #17",
            "usat {m}, #14, {m}",
            // One less than the exponent, but not for subnormal numbers.
            "lsrs {k}, {m}, #10",
            "it ne",
            "subne {k}, {k}, #1",
            "sub {m}, {m}, {k}, lsl #10",
            "lsl {m}, {m}, {k}",
            "smlal {lo}, {hi}, {m}, {v}",
            "strd {lo}, {hi}, [{sums}], #8",
            ".endr",
            ws = inout(reg) ws.as_ptr() => _,
            dots = inout(reg) dots.as_ptr() => _,
            sums = inout(reg) sums.as_mut_ptr() => _,
            half = in(reg) half,
            down = in(reg) down,
            k = out(reg) _,
            m = out(reg) _,
            v = out(reg) _,
            lo = out(reg) _,
            hi = out(reg) _,
            options(nostack)
        );
    }
}

/// [`Dot::states`] with `$product`, which turns `h q + 2^31` into its upper half and adds `b`, whose half is in the carry.
macro_rules! states_by_hand {
    ($name:ident, $($product:literal),+) => {
        #[inline(always)]
        pub(super) fn $name(channel: &Channel, states: States<'_>) -> (i32, u32) {
            let (mut y, mut largest) = (0, 0);
            let decays = $crate::fixed::kernels::thumb2::decays(channel, states.a, states.lane);
            let h = states.h.as_flattened_mut().as_mut_ptr().wrapping_add(states.lane & 15);
            // One of the two shifts is by nothing.
            if channel.cut == 0 {
                states_by_hand!(@ "lsl", channel.up, channel, states, h, decays, y, largest, $($product),+);
            } else {
                states_by_hand!(@ "asr", channel.cut, channel, states, h, decays, y, largest, $($product),+);
            }
            (y, largest)
        }
    };
    (@ $shift:literal, $by:expr, $channel:ident, $states:ident, $h:ident, $decays:ident, $y:ident, $largest:ident, $($product:literal),+) => {
        // SAFETY: reads sixteen decays, B and C; reads and writes a lane of sixteen rows of states, 32 bytes apart.
        unsafe {
            asm!(
                ".rept 16",
                "ldrsh {h}, [{hs}]",
                "ldrsh {b}, [{bs}], #2",
                "ldr {q}, [{decays}], #4",
                concat!($shift, " {h}, {h}, {by}"),
                "mul {b}, {b}, {g}",
                // Half up: the last bit that is shifted out is added.
                "asrs {b}, {b}, {down}",
                $($product,)+
                "asrs {h}, {h}, #14",
                "adc {h}, {h}, #0",
                "strh {h}, [{hs}], #32",
                "ldrsh {b}, [{cs}], #2",
                "mul {b}, {b}, {h}",
                "asrs {b}, {b}, #7",
                "adc {y}, {y}, {b}",
                "eor {h}, {h}, {h}, asr #31",
                "orr {largest}, {largest}, {h}",
                ".endr",
                hs = inout(reg) $h => _,
                bs = inout(reg) $states.b.as_ptr() => _,
                cs = inout(reg) $states.c.as_ptr() => _,
                decays = inout(reg) $decays.as_ptr() => _,
                by = in(reg) $by,
                g = in(reg) $channel.g,
                down = in(reg) $channel.g_down,
                y = inout(reg) $y,
                largest = inout(reg) $largest,
                h = out(reg) _,
                b = out(reg) _,
                q = out(reg) _,
                options(nostack)
            );
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use states_by_hand;

states_by_hand!(
    states,
    "adc {b}, {b}, #0",
    "smull {q}, {h}, {h}, {q}",
    "lsls {q}, {q}, #1",
    "adc {h}, {h}, {b}"
);

/// What is left of sixteen states of a channel, in Q30: [`Channel::decay`] for each.
#[inline(always)]
pub(super) fn decays(channel: &Channel, a: &[[u8; 64]; 16], lane: usize) -> MaybeUninit<[u32; 16]> {
    let mut decays = MaybeUninit::<[u32; 16]>::uninit();
    let [c0, c1, c2, c3] = EXP2;
    // SAFETY: reads a word of each of sixteen rows of A, 64 bytes apart, and writes sixteen decays.
    unsafe {
        asm!(
            ".rept 16",
            "ldr {w}, [{a}], #64",
            "ubfx {f}, {w}, #23, #8",
            "sub {f}, {down}, {f}",
            "usat {f}, #5, {f}",
            "lsl {w}, {w}, #8",
            "orr {w}, {w}, #0x80000000",
            "umull {t}, {w}, {w}, {dt}",
            "lsr {w}, {w}, {f}",
            "lsl {f}, {w}, #8",
            "umull {t}, {q}, {f}, {c3}",
            "sub {q}, {c2}, {q}",
            "umull {t}, {q}, {q}, {f}",
            "sub {q}, {c1}, {q}",
            "umull {t}, {q}, {q}, {f}",
            "sub {q}, {c0}, {q}",
            "umull {t}, {q}, {q}, {f}",
            "add {q}, {q}, #2",
            "lsr {q}, {q}, #2",
            "rsb {q}, {q}, #0x40000000",
            // A shift by 32 and more leaves nothing.
            "lsr {w}, {w}, #24",
            "lsr {q}, {q}, {w}",
            "str {q}, [{to}], #4",
            ".endr",
            a = inout(reg) a.as_flattened().as_ptr().wrapping_add(4 * (lane & 15)) => _,
            to = inout(reg) decays.as_mut_ptr().cast::<u32>() => _,
            dt = in(reg) channel.dt,
            down = in(reg) channel.down,
            c0 = in(reg) c0,
            c1 = in(reg) c1,
            c2 = in(reg) c2,
            c3 = in(reg) c3,
            w = out(reg) _,
            f = out(reg) _,
            q = out(reg) _,
            t = out(reg) _,
            options(nostack, preserves_flags)
        );
    }
    decays
}

/// [`Dot`] by functions for four rows of a group, and one for the states.
macro_rules! dot_by_hand {
    ($isa:ident, $name:literal, $four_i8:path, $four_u4:path, $states:path) => {
        impl Dot for $isa {
            const NAME: &'static str = $name;
            const VECTORS: bool = false;

            #[inline(always)]
            fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
                let mut rows = [[0; 16]; T];
                for t in 0..T {
                    for (quarter, row) in rows[t].as_chunks_mut().0.iter_mut().enumerate() {
                        *row = $four_i8(w, quarter, &x[t]);
                    }
                }
                rows
            }

            #[inline(always)]
            fn dot_u4<const T: usize>(
                self,
                w: &[[u8; TILE]; TILES / 2],
                x: &[Activations; T],
                groups: &[Group; T],
            ) -> [Row; T] {
                let mut rows = [[0; 16]; T];
                for t in 0..T {
                    for (quarter, row) in rows[t].as_chunks_mut().0.iter_mut().enumerate() {
                        *row = $four_u4(w, quarter, &x[t], -8 * groups[t].sum);
                    }
                }
                rows
            }

            #[inline(always)]
            fn accumulate(self, dots: &Row, ws: &[u8; 32], down: u32, sums: &mut Sums) {
                $crate::fixed::kernels::thumb2::accumulate(dots, ws, down, sums);
            }

            #[inline(always)]
            fn states(self, channel: &Channel, all: States<'_>) -> (i32, u32) {
                $states(channel, all)
            }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use dot_by_hand;

dot_by_hand!(Thumb2, "Thumb-2", four_i8, four_u4, states);
