//! Single numbers: products, softplus and silu.

use core::arch::asm;

use crate::kernels::fixed::arm::functions::{silu_by_hand, softplus_by_hand};
use crate::kernels::fixed::arm::token::Dsp;

softplus_by_hand!(Dsp, dsp);
silu_by_hand!(Dsp, dsp);

/// [`Isa::mul_high`].
#[inline(always)]
pub(super) fn mul_high(_: Dsp, a: i32, b: i32) -> i32 {
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
