//! Single numbers: shifts, softplus and silu.

use core::arch::asm;

use super::token::{Thumb, Thumb2};
use crate::kernels::fixed::narrow;
use crate::kernels::fixed::operands::Activations;
use crate::numbers::fixed::functions::{EXP2, LOG2, LOG2_E, RECIPROCAL};
use crate::numbers::fixed::{HIGH, LOW, Num, Row};

/// [`Isa::shift_right`].
#[inline(always)]
pub(in crate::kernels::fixed) fn shift_right<S: Thumb>(_: S, m: i32, by: i32) -> i32 {
    let shifted;
    // SAFETY: the token proves the instructions; only registers change, and a flag that nothing reads.
    unsafe {
        asm!(
            "sub {by}, {by}, #1",
            "usat {by}, #5, {by}",
            "asr {m}, {m}, {by}",
            "add {m}, {m}, #1",
            "asr {m}, {m}, #1",
            m = inout(reg) m => shifted,
            by = inout(reg) by => _,
            options(pure, nomem, nostack)
        );
    }
    shifted
}

/// [`Isa::cut`].
#[inline(always)]
pub(in crate::kernels::fixed) fn cut<S: Thumb>(_: S, m: i32, by: i32) -> i32 {
    let cut;
    // SAFETY: the token proves the instructions; only registers change, and a flag that nothing reads.
    unsafe {
        asm!(
            "usat {by}, #5, {by}",
            "asr {m}, {m}, {by}",
            m = inout(reg) m => cut,
            by = inout(reg) by => _,
            options(pure, nomem, nostack)
        );
    }
    cut
}

/// A function that saturates to some bits, by one instruction.
macro_rules! saturating {
    ($(#[$doc:meta])+ $name:ident, $instruction:literal) => {
        $(#[$doc])+
        #[inline(always)]
        pub(in crate::kernels::fixed) fn $name<S: Thumb>(_: S, x: i32) -> i32 {
            let within;
            // SAFETY: the token proves the instructions; only a register changes, and a flag that nothing reads.
            unsafe {
                asm!(concat!($instruction, ", {x}"), x = inout(reg) x => within, options(pure, nomem, nostack));
            }
            within
        }
    };
}

const _: () = assert!(LOW == -(1 << 13) && HIGH == (1 << 13) - 1);
saturating!(
    /// [`Isa::exponent`].
    exponent,
    "ssat {x}, #14"
);
saturating!(
    /// [`Isa::within_word`].
    within_word,
    "usat {x}, #5"
);
saturating!(
    /// [`Isa::within_half`].
    within_half,
    "ssat {x}, #16"
);
saturating!(
    /// [`Isa::within_nibble`].
    within_nibble,
    "usat {x}, #4"
);

/// [`Isa::activations`].
#[inline(always)]
pub(in crate::kernels::fixed) fn activations<S: Thumb>(
    s: S,
    rows: [&Row; 2],
    up: [i32; 2],
    q: &mut Activations,
) -> i32 {
    let [first, second] = up;
    if first >= 0 || second >= 0 {
        return narrow::activations(rows, up, q);
    }
    let (q, _) = q.as_chunks_mut();
    narrow(s, rows[0], -first, &mut q[0]) + narrow(s, rows[1], -second, &mut q[1])
}

/// `x 2^-by`, for `by` from 1 on, as half a group of activations; returns their sum.
#[inline(always)]
fn narrow<S: Thumb>(_: S, x: &Row, by: i32, q: &mut [i16; 16]) -> i32 {
    let mut sum = 0;
    // SAFETY: reads a row and writes half a group.
    unsafe {
        asm!(
            "usat {by}, #5, {by}",
            ".irp four, 0, 8, 16, 24",
            ".irp place, 0, 4, 2, 6",
            "ldr {v}, [{x}], #4",
            "asr {v}, {v}, {by}",
            "add {v}, {v}, #1",
            "ssat {v}, #15, {v}, asr #1",
            "strh {v}, [{q}, #(\\four + \\place)]",
            "add {sum}, {sum}, {v}",
            ".endr",
            ".endr",
            x = inout(reg) x.as_ptr() => _,
            q = in(reg) q.as_mut_ptr(),
            by = inout(reg) by - 1 => _,
            sum = inout(reg) sum,
            v = out(reg) _,
            options(nostack)
        );
    }
    sum
}

/// [`Isa::normal`].
#[inline(always)]
pub(in crate::kernels::fixed) fn normal<S: Thumb>(_: S, v: Num) -> Num {
    let (mut m, mut e) = (v.m, v.e);
    // SAFETY: the token proves the instructions; only registers change.
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
    Num { m, e }
}

/// Constants of [`Isa::silu`] and [`Isa::softplus_log2`], in the order in which they are needed.
pub(in crate::kernels::fixed) static SILU: [u32; 9] = {
    let [_, e1, e2, e3, e4] = EXP2;
    let [r0, r1, r2, r3] = RECIPROCAL;
    [LOG2_E, e4 as u32, e3 as u32, e2 as u32, e1 as u32, r3 as u32, r2 as u32, r1 as u32, r0 as u32]
};
pub(in crate::kernels::fixed) static SOFTPLUS: [u32; 12] = {
    let [_, e1, e2, e3, e4] = EXP2;
    let [l0, l1, l2, l3, l4, l5, l6] = LOG2;
    [
        LOG2_E, e4 as u32, e3 as u32, e2 as u32, e1 as u32, l6 as u32, l5 as u32, l4 as u32, l3 as u32,
        l2 as u32, l1 as u32, l0 as u32,
    ]
};

/// A line for `to = a b / 2^32 + c`, cut: `to` may be `a` or `b`. It may change `q`.
macro_rules! plus {
    (dsp, $to:literal, $a:literal, $b:literal, $c:literal) => {
        concat!("smmla ", $to, ", ", $a, ", ", $b, ", ", $c, "\n")
    };
    (thumb2, $to:literal, $a:literal, $b:literal, $c:literal) => {
        concat!("smull {q}, ", $to, ", ", $a, ", ", $b, "\nadd ", $to, ", ", $to, ", ", $c, "\n")
    };
}
pub(in crate::kernels::fixed) use plus;

/// A line for `to = a b / 2^32`, cut.
macro_rules! high {
    (dsp, $if:literal, $to:literal, $a:literal, $b:literal) => {
        concat!("smmul", $if, " ", $to, ", ", $a, ", ", $b, "\n")
    };
    (thumb2, $if:literal, $to:literal, $a:literal, $b:literal) => {
        concat!("smull", $if, " {q}, ", $to, ", ", $a, ", ", $b, "\n")
    };
}
pub(in crate::kernels::fixed) use high;

/// Lines for `m = m f / 2^32`, rounded half up.
macro_rules! rounded {
    (dsp, $m:literal, $f:literal) => {
        concat!("smmulr ", $m, ", ", $m, ", ", $f, "\n")
    };
    (thumb2, $m:literal, $f:literal) => {
        concat!("smull {q}, ", $m, ", ", $m, ", ", $f, "\nlsls {q}, {q}, #1\nadc ", $m, ", ", $m, ", #0\n")
    };
}
pub(in crate::kernels::fixed) use rounded;

/// A program for `z = |v| log2(e)` and `2^-z`, whose integer part is cut off `z`: from `m` and `e`, with constants from `at` on. Then `k`
/// is how far `m` is to be shifted up to be normal, `t` is [`functions::scaled`]'s mantissa, `z` the whole of z, `p` the exponential of
/// the fraction, and `f` the exponential, Q30, or what is just below 1.
macro_rules! exponential {
    ($set:ident) => {
        concat!(
            // The magnitude, normal in 32 bits.
            "eor {t}, {m}, {m}, asr #31\n",
            "sub {t}, {t}, {m}, asr #31\n",
            "clz {k}, {t}\n",
            "lsl {t}, {t}, {k}\n",
            "ldr {c}, [{at}], #4\n",
            "umull {c}, {t}, {t}, {c}\n",
            "sub {k}, {k}, #1\n",
            // To Q24.
            "sub {p}, {k}, {e}\n",
            "sub {p}, {p}, #24\n",
            "usat {p}, #5, {p}\n",
            "lsr {z}, {t}, {p}\n",
            "ubfx {f}, {z}, #0, #24\n",
            "lsl {f}, {f}, #7\n",
            "lsr {z}, {z}, #24\n",
            "ldrd {p}, {c}, [{at}], #8\n",
            plus!($set, "{p}", "{f}", "{p}", "{c}"),
            "ldrd {c}, {d}, [{at}], #8\n",
            plus!($set, "{p}", "{f}", "{p}", "{c}"),
            plus!($set, "{p}", "{f}", "{p}", "{d}"),
            "mov {c}, #0x40000000\n",
            plus!($set, "{p}", "{f}", "{p}", "{c}"),
            "lsr {f}, {p}, {z}\n",
            "usat {f}, #30, {f}\n",
        )
    };
}
pub(in crate::kernels::fixed) use exponential;

/// [`Isa::silu`] for an instruction set, with a register that its lines change.
macro_rules! silu_by_hand {
    ($token:ident, $set:ident $(, $register:ident)?) => {
        #[inline(always)]
        pub(in crate::kernels::fixed) fn silu(_: $token, v: $crate::numbers::fixed::Num) -> $crate::numbers::fixed::Num {
            // They are in scope where they are defined.
            #[allow(unused_imports)]
            use $crate::kernels::fixed::arm::functions::{SILU, exponential, high, plus, rounded};
            let (mut m, mut e) = (v.m, v.e);
            // SAFETY: the token proves the instructions. Reads the nine constants.
            unsafe {
                core::arch::asm!(
                    exponential!($set),
                    // 1 / (1 + f): a polynomial of f - 1/2, then a step of Newton's.
                    "lsl {t}, {f}, #2",
                    "eor {t}, {t}, #0x80000000",
                    "ldrd {c}, {d}, [{at}], #8",
                    plus!($set, "{c}", "{t}", "{c}", "{d}"),
                    "ldrd {d}, {at}, [{at}]",
                    plus!($set, "{c}", "{t}", "{c}", "{d}"),
                    plus!($set, "{c}", "{t}", "{c}", "{at}"),
                    "rsb {f}, {f}, #0xc0000000",
                    "mov {d}, #0x10000000",
                    plus!($set, "{f}", "{f}", "{c}", "{d}"),
                    "lsl {f}, {f}, #4",
                    plus!($set, "{f}", "{f}", "{c}", "{c}"),
                    // Times the exponential where v is negative.
                    "sub {e}, {e}, {k}",
                    "add {e}, {e}, #2",
                    "cmp {m}, #0",
                    "ittt mi",
                    high!($set, "mi", "{f}", "{p}", "{f}"),
                    "lslmi {f}, {f}, #2",
                    "submi {e}, {e}, {z}",
                    "lsl {m}, {m}, {k}",
                    rounded!($set, "{m}", "{f}"),
                    m = inout(reg) m,
                    e = inout(reg) e,
                    at = inout(reg) SILU.as_ptr() => _,
                    t = out(reg) _,
                    k = out(reg) _,
                    z = out(reg) _,
                    p = out(reg) _,
                    f = out(reg) _,
                    c = out(reg) _,
                    d = out(reg) _,
                    $($register = out(reg) _,)?
                    options(pure, readonly, nostack)
                );
            }
            $crate::numbers::fixed::Num { m, e }
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(in crate::kernels::fixed) use silu_by_hand;

silu_by_hand!(Thumb2, thumb2, q);

/// [`Isa::softplus_log2`] for an instruction set, with a register that its lines change.
macro_rules! softplus_by_hand {
    ($token:ident, $set:ident $(, $register:ident)?) => {
        #[inline(always)]
        pub(in crate::kernels::fixed) fn softplus_log2(_: $token, v: $crate::numbers::fixed::Num) -> (u32, i32) {
            #[allow(unused_imports)]
            use $crate::kernels::fixed::arm::functions::{SOFTPLUS, exponential, high, plus};
            let (mut m, mut e) = (v.m, v.e);
            // SAFETY: the token proves the instructions. Reads the twelve constants.
            unsafe {
                core::arch::asm!(
                    exponential!($set),
                    "sub {e}, {e}, {k}",
                    // log2(1 + f) / f: a polynomial of f - 1/2.
                    "lsl {f}, {f}, #2",
                    "eor {f}, {f}, #0x80000000",
                    "ldrd {c}, {d}, [{at}], #8",
                    plus!($set, "{c}", "{f}", "{c}", "{d}"),
                    "ldrd {d}, {k}, [{at}], #8",
                    plus!($set, "{c}", "{f}", "{c}", "{d}"),
                    plus!($set, "{c}", "{f}", "{c}", "{k}"),
                    "ldrd {d}, {k}, [{at}], #8",
                    plus!($set, "{c}", "{f}", "{c}", "{d}"),
                    plus!($set, "{c}", "{f}", "{c}", "{k}"),
                    "ldr {d}, [{at}]",
                    plus!($set, "{c}", "{f}", "{c}", "{d}"),
                    high!($set, "", "{p}", "{p}", "{c}"),
                    // Where v is positive, v is added; that it is not, the exponent says.
                    "mvn {z}, {z}",
                    "sub {z}, {z}, #27",
                    "cmp {m}, #0",
                    "ittt le",
                    "lsrle {m}, {p}, #1",
                    "addle {k}, {z}, #1",
                    "ble 2f",
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
                    at = inout(reg) SOFTPLUS.as_ptr() => _,
                    t = out(reg) _,
                    k = out(reg) _,
                    z = out(reg) _,
                    p = out(reg) _,
                    f = out(reg) _,
                    c = out(reg) _,
                    d = out(reg) _,
                    $($register = out(reg) _,)?
                    options(pure, readonly, nostack)
                );
            }
            (m as u32, e)
        }
    };
}
#[cfg(any(target_feature = "dsp", feature = "dsp"))]
pub(in crate::kernels::fixed) use softplus_by_hand;

softplus_by_hand!(Thumb2, thumb2, q);
