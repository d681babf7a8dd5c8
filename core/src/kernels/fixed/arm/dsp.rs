//! Cortex-M with the DSP instructions (M4, M7, M33): two products an instruction.

use core::arch::asm;
use core::mem;

use super::by_hand::ByHand;
use super::dot::{Work, prepare, quarter, sums_by_hand};
use super::functions::{silu_by_hand, softplus_by_hand};
use super::scan::{Pairs, pairs};
use super::token::Dsp;
use crate::kernels::fixed::conv::ROOM;
use crate::kernels::fixed::operands::{FINE, Input, Tap};
use crate::kernels::fixed::panel::{Panel, Quarters};
use crate::kernels::fixed::set::instantiate;
use crate::kernels::fixed::steps::{HALF, SUMMED, Steps, Stored};
use crate::numbers::fixed::functions::EXP2;
use crate::numbers::fixed::{Num, Row};
use crate::numbers::{GROUP, TILE, TILES};

instantiate!(Dsp);

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
fn sums(s: Dsp, panel: &Panel<'_>, x: &Input<'_>, t: usize, sums: &mut Quarters) -> bool {
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

/// What [`sixteen`] loads by few instructions, in this order.
#[repr(C)]
struct Recurrence {
    a: *const [u8; 64],
    pairs: *mut Pairs,
    steps: *mut Steps,
    exp2: [i32; 5],
    h: *mut [i16; 16],
    /// Where the channel lies in a row of words.
    offset: usize,
}

const _: () = assert!(
    mem::offset_of!(Recurrence, h) == 32
        && mem::offset_of!(Recurrence, offset) == 36
        && mem::offset_of!(Steps, down) == 64
        && mem::offset_of!(Steps, g) == 128
        && mem::offset_of!(Steps, g_down) == 192
        && mem::offset_of!(Steps, up) == 256
        && mem::offset_of!(Steps, cut) == 320
        && mem::offset_of!(Steps, y) == 448
        && mem::offset_of!(Steps, largest) == 512
        && HALF == 64
        && FINE == 14
        && SUMMED == 7
);

/// Lines for sixteen states of a channel, by two: what is left of them and their B in `r0` to `r2`, then their C in `r2`.
macro_rules! states {
    ($shift:literal) => {
        concat!(
            ".rept 8\n",
            "ldm r3!, {{r0, r1, r2}}\n",
            ".irp j, 0, 1\n",
            "ldrsh lr, [r4]\n",
            $shift,
            " lr, lr, r5\n",
            // The upper half of r8 is g.
            ".if \\j\n",
            "smlatt {x}, r8, r2, r9\n",
            ".else\n",
            "smlatb {x}, r8, r2, r9\n",
            ".endif\n",
            "asr {x}, {x}, r8\n",
            "smmlar r\\j, r\\j, lr, {x}\n",
            "asr r\\j, r\\j, #14\n",
            "strh r\\j, [r4], #32\n",
            ".endr\n",
            "ldr r2, [r3], #4\n",
            "pkhbt r0, r0, r1, lsl #16\n",
            "smlad {x}, r0, r2, r10\n",
            "add r11, r11, {x}, asr #7\n",
            // Where a bit of either half differs from the one below it.
            "eor r0, r0, r0, lsl #1\n",
            "orr r12, r12, r0\n",
            ".endr\n",
        )
    };
}

/// [`Isa::sixteen`] for sixteen states of 15 bits. False where states are others.
///
/// A function of its own: the compiler takes the repeated lines for shorter than they are, and branches over them would not reach.
#[inline(never)]
fn sixteen<H: Stored>(
    _: Dsp,
    steps: &mut Steps,
    a: &[[u8; 64]],
    h: &mut [[H; 16]],
    b: &[i16],
    c: &[i16],
) -> bool {
    let (Ok(a), Some(h), Ok(b), Ok(c)) =
        (<&[[u8; 64]; 16]>::try_from(a), H::narrow(h), b.try_into(), c.try_into())
    else {
        return false;
    };
    let mut pairs = pairs(b, c);
    let mut all =
        Recurrence { a: a.as_ptr(), pairs: &mut pairs, steps, exp2: EXP2, h: h.as_mut_ptr(), offset: 0 };
    // SAFETY: for each of sixteen channels, reads a word of `steps`' rows and of sixteen rows of A, 64 bytes apart, reads and writes a
    // half word of sixteen rows of states, 32 bytes apart, and a word of `steps`' sums and magnitudes; reads and writes all pairs. No sum overflows, so
    // the flag that tells of it stays as it is.
    unsafe {
        asm!(
            "2:",
            // What is left of the states: `Channel::decay`, in the first half of every pair.
            "ldm {x}, {{r0, r1, r2, r3, r4, r5, r8, r9}}",
            "ldr r12, [{x}, #36]",
            "add r0, r0, r12",
            "add r2, r2, r12",
            "ldr r10, [r2]",
            "ldr r11, [r2, #64]",
            ".rept 8",
            ".irp next, 4, 12",
            "ldr r2, [r0], #64",
            "sub r12, r11, r2, lsr #23",
            "usat r12, #5, r12",
            "lsl r2, r2, #8",
            "orr r2, r2, #0x80000000",
            "umull lr, r2, r2, r10",
            "lsr r2, r2, r12",
            "ubfx r12, r2, #0, #24",
            "lsl r12, r12, #7",
            "smmla lr, r12, r9, r8",
            "smmla lr, r12, lr, r5",
            "smmla lr, r12, lr, r4",
            "smmla lr, r12, lr, r3",
            // A shift by 32 and more leaves nothing.
            "lsr r2, r2, #24",
            "lsr lr, lr, r2",
            "str lr, [r1], #\\next",
            ".endr",
            ".endr",
            // The states.
            "sub r3, r1, #128",
            "ldr r5, [{x}, #8]",
            "ldrd r4, r12, [{x}, #32]",
            "add r5, r5, r12",
            "add r4, r4, r12, lsr #1",
            "ldr r8, [r5, #192]",
            "ldr r1, [r5, #128]",
            // `Channel::halves`.
            "sub r2, r8, #1",
            "movw r9, #0x4001",
            "lsl r9, r9, r2",
            "orr r8, r8, r1, lsl #16",
            "ldr r0, [r5, #320]",
            "ldr r5, [r5, #256]",
            "mov r10, #64",
            "mov r11, #0",
            "mov r12, #0",
            "push {{{x}}}",
            "cmp r0, #0",
            "bne 3f",
            states!("lsl"),
            "b 4f",
            "3:",
            "mov r5, r0",
            states!("asr"),
            "4:",
            "pop {{{x}}}",
            // The highest bit that differs from the one below it is the sign that is not needed: a magnitude has one bit less. What lies
            // below a half's lowest bit means nothing.
            "orr r12, r12, r12, lsr #16",
            "ubfx r12, r12, #1, #15",
            "ldr r0, [{x}, #36]",
            "ldr r1, [{x}, #8]",
            "add r1, r1, r0",
            "ldr r2, [r1, #448]",
            "add r2, r2, r11",
            "str r2, [r1, #448]",
            "ldr r2, [r1, #512]",
            "orr r2, r2, r12",
            "str r2, [r1, #512]",
            "add r0, r0, #4",
            "str r0, [{x}, #36]",
            "cmp r0, #64",
            "bne 2b",
            x = inout(reg) &mut all => _,
            out("r0") _,
            out("r1") _,
            out("r2") _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("lr") _,
        );
    }
    true
}

softplus_by_hand!(Dsp, dsp);
silu_by_hand!(Dsp, dsp);

/// [`Isa::mul_high`].
#[inline(always)]
fn mul_high(_: Dsp, a: i32, b: i32) -> i32 {
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

/// Lines for [`Num::weight`] of the bits in `t`, with its biased exponent.
macro_rules! weight {
    ($m:literal, $e:literal) => {
        concat!(
            "mov ",
            $m,
            ", #0x40000000\n",
            "bfi ",
            $m,
            ", {t}, #7, #23\n",
            "eor ",
            $m,
            ", ",
            $m,
            ", {t}, asr #31\n",
            "ubfx ",
            $e,
            ", {t}, #23, #8\n",
        )
    };
}

/// Lines for the product of a tap with its weight in `$p`, and its exponent in `$e`.
macro_rules! product {
    ($k:literal, $p:literal, $e:literal) => {
        concat!(
            "ldr {t}, [{w}, #(64 * ",
            $k,
            ")]\n",
            "ldrd ",
            $p,
            ", ",
            $e,
            ", [{taps}, #(8 * ",
            $k,
            ")]\n",
            "ldr ",
            $p,
            ", [{w}, ",
            $p,
            "]\n",
            weight!("{m}", "{t}"),
            "smmulr ",
            $p,
            ", ",
            $p,
            ", {m}\n",
            "add ",
            $e,
            ", ",
            $e,
            ", {t}\n",
            "cmp {top}, ",
            $e,
            "\n",
            "it lt\n",
            "movlt {top}, ",
            $e,
            "\n",
        )
    };
}

/// Lines that add a product in units of `top`.
macro_rules! sum {
    ($p:literal, $e:literal) => {
        concat!(
            "sub ",
            $e,
            ", {top}, ",
            $e,
            "\n",
            "usat ",
            $e,
            ", #5, ",
            $e,
            "\n",
            "asr ",
            $p,
            ", ",
            $p,
            ", ",
            $e,
            "\n",
            "add {m}, {m}, ",
            $p,
            "\n",
        )
    };
}

/// [`Isa::convolve`] over four tokens.
#[inline(always)]
fn convolve(s: Dsp, weights: &[[u8; 64]], taps: &[Tap<'_>], u: &mut Row, e: &mut Row) -> bool {
    let (Ok(weights), Ok(taps)) = (<&[[u8; 64]; 5]>::try_from(weights), <&[Tap<'_>; 4]>::try_from(taps))
    else {
        return false;
    };
    // How far a tap's inputs lie behind the weights, and what a product's exponent has beside its weight's.
    let start = weights.as_ptr().expose_provenance();
    let mut behind = [[0; 2]; 4];
    for (behind, tap) in behind.iter_mut().zip(taps) {
        *behind = [tap.x.as_ptr().expose_provenance().wrapping_sub(start), (tap.e + 32) as usize];
    }
    for i in 0..16 {
        let (sum, top): (i32, i32);
        // SAFETY: reads a channel's weights in five rows, 64 bytes apart, the four taps, and the channel's input of each.
        unsafe {
            asm!(
                "ldr {t}, [{w}, #256]",
                "ubfx {top}, {t}, #23, #8",
                product!("0", "{p0}", "{e0}"),
                product!("1", "{p1}", "{e1}"),
                product!("2", "{p2}", "{e2}"),
                product!("3", "{p3}", "{e3}"),
                "add {top}, {top}, #{room}",
                "ldr {t}, [{w}, #256]",
                weight!("{m}", "{t}"),
                "sub {t}, {top}, {t}",
                "usat {t}, #5, {t}",
                "asr {m}, {m}, {t}",
                sum!("{p0}", "{e0}"),
                sum!("{p1}", "{e1}"),
                sum!("{p2}", "{e2}"),
                sum!("{p3}", "{e3}"),
                "sub {top}, {top}, #157",
                w = in(reg) weights.as_flattened().as_ptr().wrapping_add(4 * i),
                taps = in(reg) behind.as_ptr(),
                room = const ROOM,
                top = out(reg) top,
                m = out(reg) sum,
                t = out(reg) _,
                p0 = out(reg) _,
                p1 = out(reg) _,
                p2 = out(reg) _,
                p3 = out(reg) _,
                e0 = out(reg) _,
                e1 = out(reg) _,
                e2 = out(reg) _,
                e3 = out(reg) _,
                options(pure, readonly, nostack)
            );
        }
        let y = silu(s, Num { m: sum, e: top });
        (u[i], e[i]) = (y.m, y.e);
    }
    true
}

// SAFETY: the compiler, or the feature `dsp` of this crate, promises the CPU.
unsafe impl ByHand for Dsp {
    const TOKEN_NAME: &'static str = "Cortex-M DSP";

    #[inline(always)]
    fn sums_of_i8(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, out: &mut Quarters) -> bool {
        sums(self, panel, x, t, out)
    }
    #[inline(always)]
    fn sums_of_u4(self, panel: &Panel<'_>, x: &Input<'_>, t: usize, out: &mut Quarters) -> bool {
        sums_u4(self, panel, x, t, out)
    }
    #[inline(always)]
    fn product_high(self, a: i32, b: i32) -> i32 {
        mul_high(self, a, b)
    }
    #[inline(always)]
    fn softplus(self, v: Num) -> (u32, i32) {
        softplus_log2(self, v)
    }
    #[inline(always)]
    fn gate(self, v: Num) -> Num {
        silu(self, v)
    }
    #[inline(always)]
    fn sixteen_narrow<H: Stored>(
        self,
        steps: &mut Steps,
        a: &[[u8; 64]],
        h: &mut [[H; 16]],
        b: &[i16],
        c: &[i16],
    ) -> bool {
        sixteen(self, steps, a, h, b, c)
    }
    #[inline(always)]
    fn convolution(self, weights: &[[u8; 64]], taps: &[Tap<'_>], u: &mut Row, e: &mut Row) -> bool {
        convolve(self, weights, taps, u, e)
    }
}
