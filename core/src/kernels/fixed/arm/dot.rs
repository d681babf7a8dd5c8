//! The products of a panel with a token: sums of sixteen rows in 64 bits, and what becomes of them.

use core::arch::asm;

use super::token::{Thumb, Thumb2};
use crate::kernels::fixed::operands::Input;
use crate::kernels::fixed::panel::Panel;
use crate::kernels::fixed::panel::{self, Quarters};
use crate::numbers::fixed::Row;
use crate::numbers::{GROUP, TILE, TILES};

/// All scales, which lie at words, joined by two.
#[inline(always)]
fn joined<S: Thumb>(_: S, panel: &Panel<'_>) -> u32 {
    let mut all = 0;
    for ws in panel.scales {
        // SAFETY: reads sixteen scales, which lie at a word.
        unsafe {
            asm!(
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
    all
}

/// What is to be done for the sums of a panel.
pub(in crate::kernels::fixed) enum Work {
    /// All of it by portable code.
    Portable,
    /// Nothing: all scales are 0, as where rows are padding.
    Nothing,
    /// The loop over the groups, with the activations from here on.
    Loop(*const i16),
}

/// What is to be done for the sums of a panel with token `t`, whose groups have `bytes` bytes of weights. What a loop has in memory beside
/// the sums is then in their last part.
#[inline(always)]
pub(in crate::kernels::fixed) fn prepare<S: Thumb>(
    s: S,
    panel: &Panel<'_>,
    x: &Input<'_>,
    t: usize,
    bytes: usize,
    sums: &mut Quarters,
) -> Work {
    if (panel.scales.as_ptr() as usize | panel.weights.as_ptr() as usize | x.q.as_ptr() as usize) & 3 != 0 {
        return Work::Portable;
    }
    let scales = joined(s, panel);
    if scales & 0x7fff_7fff == 0 {
        for quarter in sums.iter_mut().take(4) {
            quarter.sums = [0; 4];
        }
        return Work::Nothing;
    }
    // Scales of 2 and more saturate.
    match activations(panel, x, t, bytes, sums) {
        Some(activations) if scales & 0x4000_4000 == 0 => Work::Loop(activations),
        _ => Work::Portable,
    }
}

/// Where the activations of token `t` begin, if there are as many groups of them as of weights.
#[inline(always)]
fn activations(
    panel: &Panel<'_>,
    x: &Input<'_>,
    t: usize,
    bytes: usize,
    sums: &mut Quarters,
) -> Option<*const i16> {
    let (left, tokens) = (panel.scales.len().min(panel.weights.len() / bytes), x.tokens.max(1));
    let last = t + left.checked_sub(1)? * tokens;
    let _ = (x.groups.get(last)?, x.q.as_chunks::<GROUP>().0.get(last)?);
    let groups = x.groups.as_ptr().wrapping_add(t).expose_provenance();
    sums[4].sums = [(tokens as i64) << 32 | groups as i64, left as i64, 0, 0];
    Some(x.q.as_ptr().wrapping_add(t * GROUP))
}

/// Lines for the sums of a quarter's rows, from `sums` on, once their dot products are in `a` to `d`, and its shift in the lowest byte
/// of `e`: `$product` makes the sum in `v` and `y` from a scale in `x`, an integer without its sign, and `dot`, shifted and
/// with that sign. Then `sums` and `at` are those of the next quarter, if there is one.
macro_rules! quarter {
    ($($product:literal),+) => {
        concat!(
            ".irp dot, {a}, {b}, {c}, {d}\n",
            "ldrsh {x}, [{ws}], #2\n",
            "asr \\dot, \\dot, {e}\n",
            "eor \\dot, \\dot, {x}, asr #31\n",
            "sub \\dot, \\dot, {x}, asr #31\n",
            "bfc {x}, #15, #17\n",
            // One less than its exponent, but not for subnormal numbers.
            "sub {w}, {x}, #0x400\n",
            "usat {w}, #4, {w}, asr #10\n",
            "sub {x}, {x}, {w}, lsl #10\n",
            "lsl {x}, {x}, {w}\n",
            $($product, "\n",)+
            "strd {y}, {v}, [{sums}], #8\n",
            ".endr\n",
            "add {sums}, {sums}, #8\n",
            "add {at}, {at}, #16\n",
            "subs {e}, {e}, #0x100\n",
        )
    };
}
pub(in crate::kernels::fixed) use quarter;

/// The sums of the rows of a panel with a token, as [`Isa::sums_i8`] and [`Isa::sums_u4`] return them.
///
/// `$dot` adds to `a` to `d` the dot products of four rows, of the `$bytes` bytes of a group's weights from `at` on, with 32 activations from
/// `xs` on, and may change `x`, `y`, `v`, `w` and `e`. `$start` changes `v`, what the dot products begin with, by the activations' sum in `e`; `$same` copies that from
/// `a` to the others, unless `$dot` does.
macro_rules! sums_by_hand {
    ($token:ident, $name:ident, $bytes:expr, [$($start:literal)?], [$($same:literal)?], $($dot:expr),+) => {
        #[inline(never)]
        pub(in crate::kernels::fixed) fn $name(
            s: $token,
            panel: &$crate::kernels::fixed::panel::Panel<'_>,
            x: &$crate::kernels::fixed::operands::Input<'_>,
            t: usize,
            sums: &mut $crate::kernels::fixed::panel::Quarters,
        ) -> bool {
            use $crate::kernels::fixed::arm::dot::{Work, prepare};
            let activations = match prepare(s, panel, x, t, $bytes, sums) {
                Work::Portable => return false,
                Work::Nothing => return true,
                Work::Loop(activations) => activations,
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
                    $($same,)?
                    $($dot,)+
                    "ldr {e}, [{sums}, #36]",
                    $crate::kernels::fixed::arm::dot::quarter!(
                        "ldrd {y}, {v}, [{sums}]",
                        "smlal {y}, {v}, {x}, \\dot"
                    ),
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
                    on = const $bytes - 64,
                    options(nostack)
                );
            }
            true
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(in crate::kernels::fixed) use sums_by_hand;

sums_by_hand!(
    Thumb2,
    sums_i8,
    TILE * TILES,
    [],
    ["mov {b}, {a}\nmov {c}, {a}\nmov {d}, {a}"],
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
    "sub {xs}, {xs}, #64"
);

// Nibbles in the order of the activations: those of the low tile, then those of the high one.
sums_by_hand!(
    Thumb2,
    sums_u4,
    TILE * TILES / 2,
    ["sub {v}, {v}, {e}, lsl #3"],
    ["mov {b}, {a}\nmov {c}, {a}\nmov {d}, {a}"],
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
    ".endr",
    "sub {at}, {at}, #256",
    "sub {xs}, {xs}, #64"
);

/// [`Isa::bits`]: where the upper halves tell, the lower ones are not looked at.
#[inline(always)]
pub(in crate::kernels::fixed) fn bits<S: Thumb>(_: S, sums: &Quarters) -> i32 {
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
    if all == 0 { panel::bits(sums) } else { 64 - all.leading_zeros() as i32 }
}

/// [`Isa::shifted`]: shifts of 64 bits by one or two words.
#[inline(always)]
pub(in crate::kernels::fixed) fn shifted<S: Thumb>(_: S, sums: &Quarters, up: i32, y: &mut Row) {
    if !(-32..0).contains(&up) {
        return panel::shifted(sums, up, y);
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
