//! The convolution of four taps.

use core::arch::asm;

use super::functions::silu;
use crate::kernels::fixed::arm::token::Dsp;
use crate::kernels::fixed::conv::ROOM;
use crate::kernels::fixed::operands::Tap;
use crate::numbers::fixed::{Num, Row};

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
pub(super) fn convolve(s: Dsp, weights: &[[u8; 64]], taps: &[Tap<'_>], u: &mut Row, e: &mut Row) -> bool {
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
