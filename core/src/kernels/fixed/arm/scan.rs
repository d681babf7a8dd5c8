//! The recurrence: a token of the sixteen states of a channel.

use core::arch::asm;

use super::token::Thumb2;
use crate::kernels::fixed::steps::{Channel, HALF, Steps, Stored};
use crate::numbers::fixed::functions::EXP2;

/// For two states each what is left of them, and their B and C as two halves of a word.
pub(in crate::kernels::fixed) type Pairs = [[u32; 4]; 8];

/// B and C of sixteen states.
#[inline(always)]
pub(in crate::kernels::fixed) fn pairs(b: &[i16; 16], c: &[i16; 16]) -> Pairs {
    let word = |[low, high]: [i16; 2]| u32::from(high as u16) << 16 | u32::from(low as u16);
    let mut pairs = [[0; 4]; 8];
    for (pair, (b, c)) in pairs.iter_mut().zip(b.as_chunks().0.iter().zip(c.as_chunks().0)) {
        *pair = [0, 0, word(*b), word(*c)];
    }
    pairs
}

/// [`Isa::sixteen`] for sixteen states of 15 bits. False where states are others.
///
/// A function of its own: the compiler takes the repeated lines for shorter than they are, and branches over them would not reach.
#[inline(never)]
pub(in crate::kernels::fixed) fn sixteen<H: Stored>(
    s: Thumb2,
    steps: &mut Steps,
    a: &[[u8; 64]],
    h: &mut [[H; 16]],
    b: &[i16],
    c: &[i16],
) -> bool {
    let (Ok(a), Some(h), Ok(b), Ok(c)) = (a.try_into(), H::narrow(h), b.try_into(), c.try_into()) else {
        return false;
    };
    let mut pairs = pairs(b, c);
    for lane in 0..16 {
        let channel = steps.channel(lane);
        decays(s, &channel, lane, a, &mut pairs);
        let (sum, all) = if channel.cut == 0 {
            states_up(s, &channel, channel.up, lane, h, &mut pairs)
        } else {
            states_cut(s, &channel, channel.cut, lane, h, &mut pairs)
        };
        steps.y[lane] += sum;
        steps.largest[lane] |= all;
    }
    true
}

/// The states of a channel, once it is known what is left of them.
macro_rules! states {
    ($name:ident, $shift:literal) => {
        #[inline(always)]
        fn $name(_: Thumb2, channel: &Channel, by: i32, lane: usize, h: &mut [[i16; 16]; 16], pairs: &mut Pairs) -> (i32, u32) {
            let (mut y, mut largest) = (0, 0);
            // SAFETY: reads all pairs and writes their first word; reads and writes a lane of sixteen rows of states, 32 bytes apart.
            unsafe {
                asm!(
                    ".rept 8",
                    ".irp j, 0, 2",
                    "ldrsh {h}, [{hs}]",
                    "ldrsh {b}, [{pairs}, #(8 + \\j)]",
                    concat!($shift, " {h}, {h}, {by}"),
                    "mla {b}, {b}, {g}, {half}",
                    "asr {b}, {b}, {down}",
                    "ldr {q}, [{pairs}, #(2 * \\j)]",
                    "mov {t}, #0x80000000",
                    "smlal {t}, {b}, {h}, {q}",
                    "asr {b}, {b}, #14",
                    "strh {b}, [{hs}], #32",
                    "ldrsh {t}, [{pairs}, #(12 + \\j)]",
                    ".if \\j",
                    "ldr {h}, [{pairs}]",
                    "mla {t}, {t}, {b}, {h}",
                    "add {y}, {y}, {t}, asr #7",
                    ".else",
                    "mla {t}, {t}, {b}, {half_unit}",
                    "str {t}, [{pairs}]",
                    ".endif",
                    "eor {b}, {b}, {b}, asr #31",
                    "orr {largest}, {largest}, {b}",
                    ".endr",
                    "add {pairs}, {pairs}, #16",
                    ".endr",
                    hs = inout(reg) h.as_flattened_mut().as_mut_ptr().wrapping_add(lane & 15) => _,
                    pairs = inout(reg) pairs.as_mut_ptr() => _,
                    by = in(reg) by,
                    g = in(reg) channel.g,
                    down = in(reg) channel.g_down,
                    half = in(reg) channel.halves(),
                    half_unit = in(reg) HALF,
                    y = inout(reg) y,
                    largest = inout(reg) largest,
                    h = out(reg) _,
                    b = out(reg) _,
                    q = out(reg) _,
                    t = out(reg) _,
                    options(nostack)
                );
            }
            (y, largest)
        }
    };
}

states!(states_up, "lsl");
states!(states_cut, "asr");

/// What is left of sixteen states of a channel, in Q30: [`Channel::decay`] for each, the first half of every pair.
#[inline(always)]
fn decays(_: Thumb2, channel: &Channel, lane: usize, a: &[[u8; 64]; 16], pairs: &mut Pairs) {
    let [_, c1, c2, c3, c4] = EXP2;
    // SAFETY: reads a word of each of sixteen rows of A, 64 bytes apart, and writes sixteen decays.
    unsafe {
        asm!(
            ".rept 8",
            ".irp next, 4, 12",
            "ldr {w}, [{a}], #64",
            "sub {f}, {down}, {w}, lsr #23",
            "usat {f}, #5, {f}",
            "lsl {w}, {w}, #8",
            "orr {w}, {w}, #0x80000000",
            "umull {p}, {w}, {w}, {dt}",
            "lsr {w}, {w}, {f}",
            "ubfx {f}, {w}, #0, #24",
            "lsl {f}, {f}, #7",
            "smull {q}, {p}, {f}, {c4}",
            "add {p}, {p}, {c3}",
            "smull {q}, {p}, {f}, {p}",
            "add {p}, {p}, {c2}",
            "smull {q}, {p}, {f}, {p}",
            "add {p}, {p}, {c1}",
            "smull {q}, {p}, {f}, {p}",
            "add {p}, {p}, #0x40000000",
            // A shift by 32 and more leaves nothing.
            "lsr {w}, {w}, #24",
            "lsr {p}, {p}, {w}",
            "str {p}, [{to}], #\\next",
            ".endr",
            ".endr",
            a = inout(reg) a.as_flattened().as_ptr().wrapping_add(4 * (lane & 15)) => _,
            to = inout(reg) pairs.as_mut_ptr() => _,
            dt = in(reg) channel.dt,
            down = in(reg) channel.down,
            c1 = in(reg) c1,
            c2 = in(reg) c2,
            c3 = in(reg) c3,
            c4 = in(reg) c4,
            w = out(reg) _,
            f = out(reg) _,
            p = out(reg) _,
            q = out(reg) _,
            options(nostack)
        );
    }
}
