//! The recurrence: a token of the sixteen states of a channel.

use core::arch::asm;
use core::mem;

use crate::kernels::fixed::arm::scan::{Pairs, pairs};
use crate::kernels::fixed::arm::token::Dsp;
use crate::kernels::fixed::operands::FINE;
use crate::kernels::fixed::steps::{HALF, SUMMED, Steps, Stored};
use crate::numbers::fixed::functions::EXP2;

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
pub(super) fn sixteen<H: Stored>(
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
