//! The recurrence: a token of the sixteen states of a channel.

use core::arch::asm;

use crate::fixed::functions::EXP2;
use crate::fixed::kernels::channels::Pairs;
use crate::fixed::kernels::scan::Channel;

/// [`Dot::states`] by a function for each of the two shifts, of which one is by nothing.
macro_rules! either_shift {
    ($name:ident, $up:ident, $cut:ident) => {
        #[inline(always)]
        pub(in crate::fixed::kernels) fn $name(
            channel: &$crate::fixed::kernels::scan::Channel,
            lane: usize,
            a: &[[u8; 64]; 16],
            h: &mut [[i16; 16]; 16],
            pairs: &mut $crate::fixed::kernels::channels::Pairs,
        ) -> (i32, u32) {
            $crate::fixed::kernels::thumb2::states::decays(channel, lane, a, pairs);
            if channel.cut == 0 {
                $up(channel, channel.up, lane, h, pairs)
            } else {
                $cut(channel, channel.cut, lane, h, pairs)
            }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(in crate::fixed::kernels) use either_shift;

/// The states of a channel, once it is known what is left of them.
macro_rules! states {
    ($name:ident, $shift:literal) => {
        #[inline(always)]
        fn $name(channel: &Channel, by: i32, lane: usize, h: &mut [[i16; 16]; 16], pairs: &Pairs) -> (i32, u32) {
            let (mut y, mut largest) = (0, 0);
            // SAFETY: reads all pairs; reads and writes a lane of sixteen rows of states, 32 bytes apart.
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
                    // Half up: the last bit that is shifted out is added.
                    "asrs {b}, {b}, #14",
                    "adc {b}, {b}, #0",
                    "strh {b}, [{hs}], #32",
                    "ldrsh {t}, [{pairs}, #(12 + \\j)]",
                    "mla {t}, {t}, {b}, {sixty_four}",
                    "add {y}, {y}, {t}, asr #7",
                    "eor {b}, {b}, {b}, asr #31",
                    "orr {largest}, {largest}, {b}",
                    ".endr",
                    "add {pairs}, {pairs}, #16",
                    ".endr",
                    hs = inout(reg) h.as_flattened_mut().as_mut_ptr().wrapping_add(lane & 15) => _,
                    pairs = inout(reg) pairs.as_ptr() => _,
                    by = in(reg) by,
                    g = in(reg) channel.g,
                    down = in(reg) channel.g_down,
                    half = in(reg) (1 << channel.g_down) >> 1,
                    sixty_four = in(reg) 64,
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
either_shift!(states, states_up, states_cut);

/// What is left of sixteen states of a channel, in Q30: [`Channel::decay`] for each, the first half of every pair.
#[inline(always)]
pub(in crate::fixed::kernels) fn decays(
    channel: &Channel,
    lane: usize,
    a: &[[u8; 64]; 16],
    pairs: &mut Pairs,
) {
    let [c0, c1, c2, c3] = EXP2;
    // SAFETY: reads a word of each of sixteen rows of A, 64 bytes apart, and writes sixteen decays.
    unsafe {
        asm!(
            ".rept 8",
            ".irp next, 4, 12",
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
            "str {q}, [{to}], #\\next",
            ".endr",
            ".endr",
            a = inout(reg) a.as_flattened().as_ptr().wrapping_add(4 * (lane & 15)) => _,
            to = inout(reg) pairs.as_mut_ptr() => _,
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
}
