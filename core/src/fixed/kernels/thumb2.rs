//! Cortex-M from the M3 on: what the instructions of Thumb-2 do better by hand than the compiler, which runs out of registers.
//!
//! The loops that both kinds of Cortex-M share are here too: [`sums`] and [`states`].

use core::arch::asm;

use super::channels::Pairs;
use super::lanes::{self, Quarters};
use super::matmul::Panel;
use super::scan::Channel;
use super::{Activations, Dot, Group, Input, Scalar, TILE, TILES, instantiate};
use crate::fixed::functions::{EXP2, LOG2, LOG2_E, RECIPROCAL};
use crate::fixed::num::{HIGH, LOW, Num, Row, mul_high};
use crate::kernels::GROUP;

/// The instructions of ARMv7-M and ARMv8-M Mainline.
#[derive(Clone, Copy, Debug)]
pub struct Thumb2;

instantiate!(Thumb2);

/// Whether scales, weights and activations lie at words, and all scales are below 2.
#[inline(always)]
fn plain(panel: &Panel<'_>, x: &Input<'_>) -> bool {
    if (panel.scales.as_ptr() as usize | panel.weights.as_ptr() as usize | x.q.as_ptr() as usize) & 3 != 0 {
        return false;
    }
    let mut all = 0;
    for ws in panel.scales {
        // SAFETY: reads sixteen scales, which lie at a word.
        unsafe {
            core::arch::asm!(
                "ldm {ws}!, {{r0, r1, r2, r3}}",
                "orr {all}, {all}, r0",
                "orr {all}, {all}, r1",
                "orr {all}, {all}, r2",
                "orr {all}, {all}, r3",
                "ldm {ws}, {{r0, r1, r2, r3}}",
                "orr {all}, {all}, r0",
                "orr {all}, {all}, r1",
                "orr {all}, {all}, r2",
                "orr {all}, {all}, r3",
                ws = inout(reg) ws.as_ptr() => _,
                all = inout(reg) all,
                out("r0") _,
                out("r1") _,
                out("r2") _,
                out("r3") _,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
    }
    all & 0x4000_4000 == 0
}

/// Where the activations of token `t` begin, if the loop may run over the groups of a panel, which have `bytes` bytes of weights. What
/// it has in memory beside the sums is then in their last part.
#[inline(always)]
pub(super) fn prepare(
    panel: &Panel<'_>,
    x: &Input<'_>,
    t: usize,
    bytes: usize,
    sums: &mut Quarters,
) -> Option<*const i16> {
    let (left, tokens) = (panel.scales.len().min(panel.weights.len() / bytes), x.tokens.max(1));
    // As many groups of activations as of weights.
    let last = t + left.checked_sub(1)? * tokens;
    let _ = (x.groups.get(last)?, x.q.as_chunks::<GROUP>().0.get(last)?);
    let groups = x.groups.as_ptr().wrapping_add(t).expose_provenance();
    sums[4].sums = [(tokens as i64) << 32 | groups as i64, left as i64, 0, 0];
    plain(panel, x).then_some(x.q.as_ptr().wrapping_add(t * GROUP))
}

/// The sums of the rows of a panel with a token, as [`Dot::sums_i8`] and [`Dot::sums_u4`] return them.
///
/// `$dot` adds to `a` to `d` the dot products of four rows with a group of 32 activations from `xs` on, which it moves behind them.
/// It moves `at` from the first of the group's `$bytes` bytes of weights to behind the last, and may change `x`, `y`, `v`, `w`
/// and `e`. `$start` changes `v`, what the dot products begin with, by the activations' sum in `e`.
macro_rules! sums_by_hand {
    ($name:ident, $bytes:expr, [$($start:literal)?], $($dot:literal),+) => {
        #[inline(never)]
        pub(super) fn $name(
            panel: &$crate::fixed::kernels::matmul::Panel<'_>,
            x: &$crate::fixed::kernels::Input<'_>,
            t: usize,
            sums: &mut $crate::fixed::kernels::lanes::Quarters,
        ) -> bool {
            let Some(activations) = $crate::fixed::kernels::thumb2::prepare(panel, x, t, $bytes, sums) else {
                return false;
            };
            // SAFETY: `prepare` found scales, weights and activations of as many groups as it noted, one or more, all at words.
            // Only `sums` is written. Saturation and sums of products set a flag that nothing reads.
            unsafe {
                core::arch::asm!(
                    "mov {x}, #0",
                    ".irp quarter, 0, 40, 80, 120",
                    "strd {x}, {x}, [{sums}, #\\quarter]",
                    "strd {x}, {x}, [{sums}, #(\\quarter + 8)]",
                    "strd {x}, {x}, [{sums}, #(\\quarter + 16)]",
                    "strd {x}, {x}, [{sums}, #(\\quarter + 24)]",
                    ".endr",
                    "2:",
                    // What a group's dot products are shifted by, and begin with: what rounds that shift.
                    "ldrd {x}, {y}, [{sums}, #160]",
                    "ldrd {w}, {e}, [{x}]",
                    "add {x}, {x}, {y}, lsl #3",
                    "str {x}, [{sums}, #160]",
                    "and {w}, {w}, #31",
                    "mov {v}, #1",
                    "lsl {v}, {v}, {w}",
                    "lsr {v}, {v}, #1",
                    $($start,)?
                    // For each quarter, with the number of those that follow above the shift's byte.
                    "strd {v}, {w}, [{sums}, #152]",
                    "add {w}, {w}, #0x100",
                    "strd {v}, {w}, [{sums}, #112]",
                    "add {w}, {w}, #0x100",
                    "strd {v}, {w}, [{sums}, #72]",
                    "add {w}, {w}, #0x100",
                    "strd {v}, {w}, [{sums}, #32]",
                    "3:",
                    "ldr {a}, [{sums}, #32]",
                    "mov {b}, {a}",
                    "mov {c}, {a}",
                    "mov {d}, {a}",
                    $($dot,)+
                    "ldr {e}, [{sums}, #36]",
                    ".irp dot, {a}, {b}, {c}, {d}",
                    "ldrsh {x}, [{ws}], #2",
                    "asr \\dot, \\dot, {e}",
                    // The scale's sign goes to the dot product.
                    "eor \\dot, \\dot, {x}, asr #31",
                    "sub \\dot, \\dot, {x}, asr #31",
                    "bfc {x}, #15, #17",
                    // One less than its exponent, but not for subnormal numbers.
                    "sub {w}, {x}, #0x400",
                    "usat {w}, #4, {w}, asr #10",
                    "ldrd {y}, {v}, [{sums}]",
                    "sub {x}, {x}, {w}, lsl #10",
                    "lsl {x}, {x}, {w}",
                    "smlal {y}, {v}, {x}, \\dot",
                    "strd {y}, {v}, [{sums}], #8",
                    ".endr",
                    "add {sums}, {sums}, #8",
                    "sub {xs}, {xs}, #64",
                    "sub {at}, {at}, #{back}",
                    "subs {e}, {e}, #0x100",
                    "bpl 3b",
                    "sub {sums}, {sums}, #160",
                    "add {at}, {at}, #{on}",
                    "ldrd {y}, {v}, [{sums}, #164]",
                    "add {xs}, {xs}, {y}, lsl #6",
                    "subs {v}, {v}, #1",
                    "str {v}, [{sums}, #168]",
                    "bne 2b",
                    sums = inout(reg) sums.as_mut_ptr() => _,
                    at = inout(reg) panel.weights.as_ptr() => _,
                    xs = inout(reg) activations => _,
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
                    back = const $bytes - 16,
                    on = const $bytes - 64,
                    options(nostack)
                );
            }
            true
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use sums_by_hand;

sums_by_hand!(
    sums_i8,
    TILE * TILES,
    [],
    ".irp k, 0, 64, 128, 192, 256, 320, 384, 448",
    // Columns in the order of the activations.
    ".irp j, 0, 2, 1, 3",
    "ldrsh {x}, [{xs}], #2",
    "ldrsb {w}, [{at}, #(\\k + \\j)]",
    "mla {a}, {w}, {x}, {a}",
    "ldrsb {w}, [{at}, #(\\k + 4 + \\j)]",
    "mla {b}, {w}, {x}, {b}",
    "ldrsb {w}, [{at}, #(\\k + 8 + \\j)]",
    "mla {c}, {w}, {x}, {c}",
    "ldrsb {w}, [{at}, #(\\k + 12 + \\j)]",
    "mla {d}, {w}, {x}, {d}",
    ".endr",
    ".endr",
    "add {at}, {at}, #512"
);

// Nibbles in the order of the activations: those of the low tile, then those of the high one.
sums_by_hand!(
    sums_u4,
    TILE * TILES / 2,
    ["sub {v}, {v}, {e}, lsl #3"],
    ".rept 4",
    "ldrd {y}, {v}, [{at}]",
    "ldr {w}, [{at}, #8]",
    ".irp bit, 0, 16, 8, 24, 4, 20, 12, 28",
    "ldrsh {x}, [{xs}], #2",
    "ubfx {e}, {y}, #\\bit, #4",
    "mla {a}, {e}, {x}, {a}",
    "ubfx {e}, {v}, #\\bit, #4",
    "mla {b}, {e}, {x}, {b}",
    "ubfx {e}, {w}, #\\bit, #4",
    "mla {c}, {e}, {x}, {c}",
    // No register is left for the fourth.
    "ldr {e}, [{at}, #12]",
    "ubfx {e}, {e}, #\\bit, #4",
    "mla {d}, {e}, {x}, {d}",
    ".endr",
    "add {at}, {at}, #64",
    ".endr"
);

/// [`Dot::bits`]: where the upper halves tell, the lower ones are not looked at.
#[inline(always)]
pub(super) fn bits(sums: &Quarters) -> i32 {
    let mut all = 0u32;
    // SAFETY: reads the sums' upper halves.
    unsafe {
        asm!(
            ".irp quarter, 0, 40, 80, 120",
            "ldr {x}, [{sums}, #(\\quarter + 4)]",
            "ldr {y}, [{sums}, #(\\quarter + 12)]",
            "eor {x}, {x}, {x}, asr #31",
            "orr {all}, {all}, {x}",
            "eor {y}, {y}, {y}, asr #31",
            "orr {all}, {all}, {y}",
            "ldr {x}, [{sums}, #(\\quarter + 20)]",
            "ldr {y}, [{sums}, #(\\quarter + 28)]",
            "eor {x}, {x}, {x}, asr #31",
            "orr {all}, {all}, {x}",
            "eor {y}, {y}, {y}, asr #31",
            "orr {all}, {all}, {y}",
            ".endr",
            sums = in(reg) sums.as_ptr(),
            all = inout(reg) all,
            x = out(reg) _,
            y = out(reg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    if all == 0 { lanes::bits(sums) } else { 64 - all.leading_zeros() as i32 }
}

/// [`Dot::shifted`]: shifts of 64 bits by one or two words.
#[inline(always)]
pub(super) fn shifted(sums: &Quarters, up: i32, y: &mut Row) {
    if !(-32..0).contains(&up) {
        return lanes::shifted(sums, up, y);
    }
    // SAFETY: reads sixteen sums and writes a row. The results fit a word, and of shifts by 1 to 32 the last bit that is shifted out
    // is the carry.
    unsafe {
        asm!(
            ".irp quarter, 0, 40, 80, 120",
            ".irp row, 0, 8, 16, 24",
            "ldrd {low}, {high}, [{sums}, #(\\quarter + \\row)]",
            "lsrs {low}, {low}, {right}",
            "lsl {high}, {high}, {left}",
            "adc {low}, {low}, {high}",
            "str {low}, [{y}], #4",
            ".endr",
            ".endr",
            sums = in(reg) sums.as_ptr(),
            y = inout(reg) y.as_mut_ptr() => _,
            right = in(reg) -up,
            left = in(reg) 32 + up,
            low = out(reg) _,
            high = out(reg) _,
            options(nostack)
        );
    }
}

/// [`Dot::states`] by a function for each of the two shifts, of which one is by nothing.
macro_rules! either_shift {
    ($name:ident, $up:ident, $cut:ident) => {
        #[inline(always)]
        pub(super) fn $name(
            channel: &$crate::fixed::kernels::scan::Channel,
            lane: usize,
            a: &[[u8; 64]; 16],
            h: &mut [[i16; 16]; 16],
            pairs: &mut $crate::fixed::kernels::channels::Pairs,
        ) -> (i32, u32) {
            decays(channel, lane, a, pairs);
            if channel.cut == 0 {
                $up(channel, channel.up, lane, h, pairs)
            } else {
                $cut(channel, channel.cut, lane, h, pairs)
            }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use either_shift;

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
                    "asr {b}, {b}, #14",
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
                    half = in(reg) channel.halves(),
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

/// What is left of sixteen states of a channel, in Q30: [`Channel::decay`] for each, the first half of every pair. `$products` are the
/// steps of Horner's scheme, `$registers` what else these need.
macro_rules! decays_by_hand {
    ($($product:literal),+; $($registers:tt)+) => {
        #[inline(always)]
        fn decays(
            channel: &$crate::fixed::kernels::scan::Channel,
            lane: usize,
            a: &[[u8; 64]; 16],
            pairs: &mut $crate::fixed::kernels::channels::Pairs,
        ) {
            let [_, c1, c2, c3, c4] = $crate::fixed::functions::EXP2;
            // SAFETY: reads a word of each of sixteen rows of A, 64 bytes apart, and writes sixteen decays.
            unsafe {
                core::arch::asm!(
                    ".rept 8",
                    ".irp next, 4, 12",
                    "ldr {w}, [{a}], #64",
                    "sub {f}, {down}, {w}, lsr #23",
                    "usat {f}, #5, {f}",
                    "lsl {w}, {w}, #8",
                    "orr {w}, {w}, #0x80000000",
                    "umull {q}, {w}, {w}, {dt}",
                    "lsr {w}, {w}, {f}",
                    "ubfx {f}, {w}, #0, #24",
                    "lsl {f}, {f}, #7",
                    $($product,)+
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
                    c1 = in(reg) c1,
                    c2 = in(reg) c2,
                    c3 = in(reg) c3,
                    c4 = in(reg) c4,
                    w = out(reg) _,
                    f = out(reg) _,
                    q = out(reg) _,
                    $($registers)+
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use decays_by_hand;

decays_by_hand!(
    "smull {t}, {q}, {f}, {c4}",
    "add {q}, {q}, {c3}",
    "smull {t}, {q}, {f}, {q}",
    "add {q}, {q}, {c2}",
    "smull {t}, {q}, {f}, {q}",
    "add {q}, {q}, {c1}",
    "smull {t}, {q}, {f}, {q}",
    "add {q}, {q}, #0x40000000";
    t = out(reg) _,
);

/// [`Dot::shift_right`].
#[inline(always)]
pub(super) fn shift_right(m: i32, by: i32) -> i32 {
    let shifted;
    // SAFETY: only registers change, and a flag that nothing reads.
    unsafe {
        asm!(
            "sub {by}, {by}, #1",
            "usat {by}, #5, {by}",
            "asr {m}, {m}, {by}",
            "add {m}, {m}, #1",
            "asr {m}, {m}, #1",
            m = inout(reg) m => shifted,
            by = inout(reg) by => _,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    shifted
}

/// [`Dot::exponent`].
#[inline(always)]
pub(super) fn exponent(e: i32) -> i32 {
    const { assert!(LOW == -(1 << 13) && HIGH == (1 << 13) - 1) };
    let within;
    // SAFETY: only a register changes, and a flag that nothing reads.
    unsafe {
        asm!("ssat {e}, #14, {e}", e = inout(reg) e => within, options(pure, nomem, nostack, preserves_flags));
    }
    within
}

/// [`Dot::within_word`].
#[inline(always)]
pub(super) fn within_word(by: i32) -> i32 {
    let within;
    // SAFETY: as above.
    unsafe {
        asm!("usat {by}, #5, {by}", by = inout(reg) by => within, options(pure, nomem, nostack, preserves_flags));
    }
    within
}

/// [`Dot::normal`].
#[inline(always)]
pub(super) fn normal(v: Num) -> Num {
    let (mut m, mut e) = (v.m, v.e);
    // SAFETY: only registers change.
    unsafe {
        asm!(
            "eor {k}, {m}, {m}, asr #31",
            "sub {k}, {k}, {m}, asr #31",
            "clz {k}, {k}",
            "sub {k}, {k}, #1",
            "lsl {m}, {m}, {k}",
            "sub {e}, {e}, {k}",
            m = inout(reg) m,
            e = inout(reg) e,
            k = out(reg) _,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    Num { m, e: if m == 0 { LOW } else { e } }
}

/// Constants of [`Dot::silu`] and [`Dot::softplus_log2`], in the order in which they are needed.
pub(super) static SILU: [u32; 8] = [
    LOG2_E,
    EXP2[4] as u32,
    EXP2[3] as u32,
    EXP2[2] as u32,
    EXP2[1] as u32,
    RECIPROCAL[2],
    RECIPROCAL[1],
    RECIPROCAL[0],
];
pub(super) static SOFTPLUS: [u32; 12] = [
    LOG2_E,
    EXP2[4] as u32,
    EXP2[3] as u32,
    EXP2[2] as u32,
    EXP2[1] as u32,
    LOG2[6],
    LOG2[5],
    LOG2[4],
    LOG2[3],
    LOG2[2],
    LOG2[1],
    LOG2[0],
];

/// A program for `z = |v| log2(e)` and `2^-z`, whose integer part is cut off `z`: from `m`, not 0, and `e`, with constants from `at`
/// on, and with lines for `p = f p / 2^32` and `c`, `d` or 2^30. Then `k` is how far `m` is to be shifted up to be normal, `t` is [`functions::scaled`]'s mantissa, `z` the whole of z, `p` the
/// exponential of the fraction.
macro_rules! exponential {
    ($with_c:literal, $with_d:literal, $with_one:literal) => {
        concat!(
            // The magnitude, normal in 32 bits.
            "eor {t}, {m}, {m}, asr #31\n",
            "sub {t}, {t}, {m}, asr #31\n",
            "clz {k}, {t}\n",
            "lsl {t}, {t}, {k}\n",
            "ldr {c}, [{at}], #4\n",
            "umull {c}, {t}, {t}, {c}\n",
            "sub {k}, {k}, #1\n",
            // To Q24, saturating.
            "sub {p}, {k}, {e}\n",
            "subs {p}, {p}, #24\n",
            "usat {p}, #6, {p}\n",
            "lsr {z}, {t}, {p}\n",
            "it mi\n",
            "mvnmi {z}, #0\n",
            "ubfx {f}, {z}, #0, #24\n",
            "lsl {f}, {f}, #7\n",
            "lsr {z}, {z}, #24\n",
            "ldrd {p}, {c}, [{at}], #8\n",
            $with_c,
            "ldrd {c}, {d}, [{at}], #8\n",
            $with_c,
            $with_d,
            $with_one,
            // As a fraction of 32 bits, which 1 is not.
            "lsr {f}, {p}, {z}\n",
            "usat {f}, #30, {f}\n",
            "lsl {f}, {f}, #2\n",
        )
    };
}
pub(super) use exponential;

/// [`Dot::silu`] with the lines of [`exponential`] and of the last product, `m = m f / 2^32` rounded half up.
macro_rules! silu_by_hand {
    ($name:ident, [$($exponential:literal),+], $($product:literal),+) => {
        #[inline(always)]
        pub(super) fn $name(v: $crate::fixed::num::Num) -> $crate::fixed::num::Num {
            if v.m == 0 {
                return $crate::fixed::num::Num { m: 0, e: $crate::fixed::num::LOW };
            }
            let (mut m, mut e) = (v.m, v.e);
            // SAFETY: reads the eight constants.
            unsafe {
                core::arch::asm!(
                    $crate::fixed::kernels::thumb2::exponential!($($exponential),+),
                    // 1 / (1 + f): a polynomial, then two steps of Newton's.
                    "ldrd {c}, {d}, [{at}], #8",
                    "umull {q}, {c}, {c}, {f}",
                    "sub {c}, {d}, {c}",
                    "ldr {d}, [{at}]",
                    "umull {q}, {c}, {c}, {f}",
                    "sub {c}, {d}, {c}",
                    "lsr {c}, {c}, #1",
                    "umull {q}, {d}, {c}, {f}",
                    "add {d}, {d}, {c}",
                    "rsb {d}, {d}, #0",
                    "umull {q}, {c}, {c}, {d}",
                    "lsl {c}, {c}, #1",
                    "umull {q}, {d}, {c}, {f}",
                    "add {d}, {d}, {c}",
                    "rsb {d}, {d}, #0",
                    "umull {q}, {c}, {c}, {d}",
                    "lsl {c}, {c}, #1",
                    // Times the exponential where v is negative.
                    "sub {e}, {e}, {k}",
                    "add {e}, {e}, #2",
                    "lsr {f}, {c}, #1",
                    "lsl {p}, {p}, #1",
                    "cmp {m}, #0",
                    "itt mi",
                    "umullmi {q}, {f}, {p}, {c}",
                    "submi {e}, {e}, {z}",
                    "lsl {m}, {m}, {k}",
                    $($product,)+
                    m = inout(reg) m,
                    e = inout(reg) e,
                    at = inout(reg) $crate::fixed::kernels::thumb2::SILU.as_ptr() => _,
                    t = out(reg) _,
                    k = out(reg) _,
                    z = out(reg) _,
                    p = out(reg) _,
                    f = out(reg) _,
                    c = out(reg) _,
                    d = out(reg) _,
                    q = out(reg) _,
                    options(pure, readonly, nostack)
                );
            }
            $crate::fixed::num::Num { m, e }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use silu_by_hand;

silu_by_hand!(
    silu,
    [
        "smull {q}, {p}, {f}, {p}\nadd {p}, {p}, {c}\n",
        "smull {q}, {p}, {f}, {p}\nadd {p}, {p}, {d}\n",
        "smull {q}, {p}, {f}, {p}\nadd {p}, {p}, #0x40000000\n"
    ],
    "smull {q}, {m}, {m}, {f}",
    "lsls {q}, {q}, #1",
    "adc {m}, {m}, #0"
);

/// [`Dot::softplus_log2`] with the lines of [`exponential`].
macro_rules! softplus_by_hand {
    ($name:ident, [$($exponential:literal),+]) => {
#[inline(always)]
pub(super) fn $name(v: $crate::fixed::num::Num) -> (u32, i32) {
    const OF_ZERO: (u32, i32) = $crate::fixed::functions::softplus_log2($crate::fixed::num::Num { m: 0, e: 0 });
    if v.m == 0 {
        return OF_ZERO;
    }
    let (mut m, mut e) = (v.m, v.e);
    // SAFETY: reads the twelve constants.
    unsafe {
        core::arch::asm!(
            $crate::fixed::kernels::thumb2::exponential!($($exponential),+),
            "sub {e}, {e}, {k}",
            // log2(1 + f) / f.
            "ldrd {c}, {d}, [{at}], #8",
            "umull {q}, {c}, {c}, {f}",
            "sub {c}, {d}, {c}",
            ".rept 2",
            "ldrd {d}, {k}, [{at}], #8",
            "umull {q}, {c}, {c}, {f}",
            "sub {c}, {d}, {c}",
            "umull {q}, {c}, {c}, {f}",
            "sub {c}, {k}, {c}",
            ".endr",
            "ldr {d}, [{at}]",
            "umull {q}, {c}, {c}, {f}",
            "sub {c}, {d}, {c}",
            "lsl {p}, {p}, #1",
            "umull {q}, {p}, {p}, {c}",
            // Where v is positive, v is added; that it is not, the exponent says.
            "mvn {z}, {z}",
            "sub {z}, {z}, #29",
            "cmp {m}, #0",
            "ittt mi",
            "lsrmi {m}, {p}, #1",
            "addmi {k}, {z}, #1",
            "bmi 2f",
            "cmp {e}, {z}",
            "ite gt",
            "addgt {k}, {e}, #1",
            "addle {k}, {z}, #1",
            "sub {e}, {k}, {e}",
            "usat {e}, #5, {e}",
            "lsr {m}, {t}, {e}",
            "sub {z}, {k}, {z}",
            "usat {z}, #5, {z}",
            "lsr {p}, {p}, {z}",
            "add {m}, {m}, {p}",
            "2:",
            "clz {e}, {m}",
            "lsl {m}, {m}, {e}",
            "sub {e}, {k}, {e}",
            m = inout(reg) m,
            e = inout(reg) e,
            at = inout(reg) $crate::fixed::kernels::thumb2::SOFTPLUS.as_ptr() => _,
            t = out(reg) _,
            k = out(reg) _,
            z = out(reg) _,
            p = out(reg) _,
            f = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            q = out(reg) _,
            options(pure, readonly, nostack)
        );
    }
    (m as u32, e)
}
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use softplus_by_hand;

softplus_by_hand!(
    softplus_log2,
    [
        "smull {q}, {p}, {f}, {p}\nadd {p}, {p}, {c}\n",
        "smull {q}, {p}, {f}, {p}\nadd {p}, {p}, {d}\n",
        "smull {q}, {p}, {f}, {p}\nadd {p}, {p}, #0x40000000\n"
    ]
);

/// [`Dot`] by functions for the sums of a panel, products, softplus and silu, and the states.
macro_rules! dot_by_hand {
    ($isa:ident, $name:literal, $sums_i8:path, $sums_u4:path, $mul_high:path, $softplus:path, $silu:path, $states:path) => {
        impl Dot for $isa {
            const NAME: &'static str = $name;
            const VECTORS: bool = false;

            #[inline(always)]
            fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T] {
                Scalar.dot_i8(w, x)
            }

            #[inline(always)]
            fn dot_u4<const T: usize>(
                self,
                w: &[[u8; TILE]; TILES / 2],
                x: &[Activations; T],
                groups: &[Group; T],
            ) -> [Row; T] {
                Scalar.dot_u4(w, x, groups)
            }

            #[inline(always)]
            fn sums_i8(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool {
                $sums_i8(panel, x, t, sums)
            }

            #[inline(always)]
            fn sums_u4(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool {
                $sums_u4(panel, x, t, sums)
            }

            #[inline(always)]
            fn bits(self, sums: &Quarters) -> i32 {
                $crate::fixed::kernels::thumb2::bits(sums)
            }

            #[inline(always)]
            fn shifted(self, sums: &Quarters, up: i32, y: &mut Row) {
                $crate::fixed::kernels::thumb2::shifted(sums, up, y);
            }

            #[inline(always)]
            fn mul_high(self, a: i32, b: i32) -> i32 {
                $mul_high(a, b)
            }

            #[inline(always)]
            fn shift_right(self, m: i32, by: i32) -> i32 {
                $crate::fixed::kernels::thumb2::shift_right(m, by)
            }

            #[inline(always)]
            fn exponent(self, e: i32) -> i32 {
                $crate::fixed::kernels::thumb2::exponent(e)
            }

            #[inline(always)]
            fn within_word(self, by: i32) -> i32 {
                $crate::fixed::kernels::thumb2::within_word(by)
            }

            #[inline(always)]
            fn normal(self, v: Num) -> Num {
                $crate::fixed::kernels::thumb2::normal(v)
            }

            #[inline(always)]
            fn softplus_log2(self, v: Num) -> (u32, i32) {
                $softplus(v)
            }

            #[inline(always)]
            fn silu(self, v: Num) -> Num {
                $silu(v)
            }

            #[inline(always)]
            fn states(
                self,
                channel: &Channel,
                lane: usize,
                a: &[[u8; 64]; 16],
                h: &mut [[i16; 16]; 16],
                pairs: &mut Pairs,
            ) -> Option<(i32, u32)> {
                Some($states(channel, lane, a, h, pairs))
            }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(super) use dot_by_hand;

dot_by_hand!(Thumb2, "Thumb-2", sums_i8, sums_u4, mul_high, softplus_log2, silu, states);
