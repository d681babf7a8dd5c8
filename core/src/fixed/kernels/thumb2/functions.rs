//! Single numbers: shifts, softplus and silu.

use core::arch::asm;

use crate::fixed::functions::{self, EXP2, LOG2, LOG2_E, RECIPROCAL};
use crate::fixed::num::{LOW, Num};

/// [`Dot::shift_right`].
#[inline(always)]
pub(in crate::fixed::kernels) fn shift_right(m: i32, by: i32) -> i32 {
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

/// [`Dot::normal`].
#[inline(always)]
pub(in crate::fixed::kernels) fn normal(v: Num) -> Num {
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
pub(in crate::fixed::kernels) static SILU: [u32; 8] =
    [LOG2_E, EXP2[2], EXP2[3], EXP2[1], EXP2[0], RECIPROCAL[2], RECIPROCAL[1], RECIPROCAL[0]];
pub(in crate::fixed::kernels) static SOFTPLUS: [u32; 12] = [
    LOG2_E, EXP2[2], EXP2[3], EXP2[1], EXP2[0], LOG2[6], LOG2[5], LOG2[4], LOG2[3], LOG2[2], LOG2[1], LOG2[0],
];

/// A program for `z = |v| log2(e)` and `2^-z`, whose integer part is cut off `z`: from `m`, not 0, and `e`, with constants from `at`
/// on. Then `k` is how far `m` is to be shifted up to be normal, `t` is [`functions::scaled`]'s mantissa, `z` the whole of z, `p` the
/// exponential of the fraction.
macro_rules! exponential {
    () => {
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
            "lsl {f}, {z}, #8\n",
            "lsr {z}, {z}, #24\n",
            "ldrd {p}, {c}, [{at}], #8\n",
            "umull {d}, {c}, {c}, {f}\n",
            "sub {p}, {p}, {c}\n",
            "ldrd {c}, {d}, [{at}], #8\n",
            "umull {q}, {p}, {p}, {f}\n",
            "sub {p}, {c}, {p}\n",
            "umull {q}, {p}, {p}, {f}\n",
            "sub {p}, {d}, {p}\n",
            "umull {q}, {p}, {p}, {f}\n",
            "add {p}, {p}, #2\n",
            "lsr {p}, {p}, #2\n",
            "rsb {p}, {p}, #0x40000000\n",
            // As a fraction of 32 bits, which 1 is not.
            "lsr {f}, {p}, {z}\n",
            "usat {f}, #30, {f}\n",
            "lsl {f}, {f}, #2\n",
        )
    };
}
pub(in crate::fixed::kernels) use exponential;

/// [`Dot::silu`] with the lines of the last product, `m = m f / 2^32` rounded half up.
macro_rules! silu_by_hand {
    ($name:ident, $($product:literal),+) => {
        #[inline(always)]
        pub(in crate::fixed::kernels) fn $name(v: $crate::fixed::num::Num) -> $crate::fixed::num::Num {
            if v.m == 0 {
                return $crate::fixed::num::Num { m: 0, e: $crate::fixed::num::LOW };
            }
            let (mut m, mut e) = (v.m, v.e);
            // SAFETY: reads the eight constants.
            unsafe {
                core::arch::asm!(
                    $crate::fixed::kernels::thumb2::functions::exponential!(),
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
                    at = inout(reg) $crate::fixed::kernels::thumb2::functions::SILU.as_ptr() => _,
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
pub(in crate::fixed::kernels) use silu_by_hand;

silu_by_hand!(silu, "smull {q}, {m}, {m}, {f}", "lsls {q}, {q}, #1", "adc {m}, {m}, #0");

/// [`Dot::softplus_log2`].
#[inline(always)]
pub(in crate::fixed::kernels) fn softplus_log2(v: Num) -> (u32, i32) {
    const OF_ZERO: (u32, i32) = functions::softplus_log2(Num { m: 0, e: 0 });
    if v.m == 0 {
        return OF_ZERO;
    }
    let (mut m, mut e) = (v.m, v.e);
    // SAFETY: reads the twelve constants.
    unsafe {
        asm!(
            exponential!(),
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
            at = inout(reg) SOFTPLUS.as_ptr() => _,
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
