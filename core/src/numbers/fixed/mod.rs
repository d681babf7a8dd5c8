//! Mantissas and exponents: the numbers of the fixed path, and the operations that all of it is made of.
//!
//! Right shifts round half up: half is added, then bits are cut. Where bits are cut without that, the comment says so.

pub mod functions;

/// The exponent of what is 0, and the least that a state may have: below every exponent that weights can lead to.
pub(crate) const LOW: i32 = -(1 << 13);
/// The largest exponent that a state may have: above every exponent that weights can lead to.
pub(crate) const HIGH: i32 = (1 << 13) - 1;

/// An exponent as it is kept: above the lowest there is, so that all zeros means zeros.
#[inline(always)]
pub(crate) const fn above_lowest(e: i32) -> u16 {
    let e = if e < LOW {
        LOW
    } else if e > HIGH {
        HIGH
    } else {
        e
    };
    (e - LOW) as u16
}

/// Sixteen mantissas that share an exponent.
pub(crate) type Row = [i32; 16];

/// `m 2^e`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Num {
    /// Mantissa.
    pub m: i32,
    /// Exponent.
    pub e: i32,
}

impl Num {
    /// A number from the bits of an f32: exact, `2^30 <= |m| < 2^31`. What is subnormal becomes 0; infinity and NaN, which
    /// no packer writes, become what their bits would be with one more exponent.
    #[inline(always)]
    #[must_use]
    pub const fn from_f32_bits(bits: u32) -> Self {
        let exponent = (bits >> 23 & 255) as i32;
        let magnitude = ((bits & 0x007f_ffff | 0x0080_0000) << 7) as i32;
        let sign = bits as i32 >> 31;
        Self { m: if exponent == 0 { 0 } else { (magnitude ^ sign) - sign }, e: exponent - 157 }
    }

    /// A weight from the bits of an f32, as little work as that takes: negative ones are a unit of 2^-30 larger, and what is zero or
    /// subnormal counts as `2^-127 (1 + fraction)`, which is nothing beside any number that a vector holds.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn weight(bits: u32) -> Self {
        let magnitude = (bits << 7 & 0x3fff_ff80) as i32 + (1 << 30);
        Self { m: magnitude ^ bits as i32 >> 31, e: (bits >> 23 & 255) as i32 - 157 }
    }

    /// The same number with `2^30 <= |m| < 2^31`; 0 with 31 taken off its exponent.
    #[inline(always)]
    #[must_use]
    pub const fn normal(self) -> Self {
        let k = self.m.unsigned_abs().leading_zeros() as i32 - 1;
        // Of m = -2^31 nothing is shifted, and half is lost rather than the sign.
        if k < 0 { Self { m: self.m >> 1, e: self.e + 1 } } else { Self { m: self.m << k, e: self.e - k } }
    }
}

/// `a b / 2^32`, rounded half up: `smmulr` on a Cortex-M.
#[inline(always)]
pub(crate) const fn mul_high(a: i32, b: i32) -> i32 {
    ((a as i64 * b as i64 + (1 << 31)) >> 32) as i32
}

/// `a b / 2^32`, cut.
#[inline(always)]
pub(crate) const fn mul_high_cut(a: u32, b: u32) -> u32 {
    ((a as u64 * b as u64) >> 32) as u32
}

/// `a b / 2^32`, cut, towards minus infinity: `smmul` on a Cortex-M.
#[inline(always)]
pub(crate) const fn mul_high_down(a: i32, b: i32) -> i32 {
    ((a as i64 * b as i64) >> 32) as i32
}

/// A shift within 0 to 31.
#[inline(always)]
pub(crate) const fn within_word(by: i32) -> i32 {
    if by < 0 {
        0
    } else if by > 31 {
        31
    } else {
        by
    }
}

/// `m 2^-s`, cut, for `s >= 0`; from 32 on as for 31, which leaves the sign.
#[inline(always)]
pub(crate) const fn cut(m: i32, s: i32) -> i32 {
    m >> within_word(s)
}

/// Bits of a magnitude: the least `b` with `|m| <= 2^b`, or one more. Or of many, joined by [`magnitude`].
#[inline(always)]
pub(crate) const fn bits(magnitude: u32) -> i32 {
    32 - magnitude.leading_zeros() as i32
}

/// What [`bits`] takes: or these of several numbers for the bits of the largest.
#[inline(always)]
pub(crate) const fn magnitude(m: i32) -> u32 {
    (m ^ (m >> 31)) as u32
}

/// `m 2^-s`, rounded half up, for `s >= 1`; from 32 on the result is 0 or, of what is -2^31, as for 32.
///
/// # Correctness
/// The caller ensures `s >= 1`. Only debug builds check it; in others the result is unspecified.
#[inline(always)]
pub(crate) fn shift_right(m: i32, s: i32) -> i32 {
    debug_assert!(s >= 1);
    ((m >> ((s - 1).min(31) as u32 & 31)) + 1) >> 1
}

/// `m 2^s`, to the right rounded half up.
///
/// # Correctness
/// The caller ensures that the result fits. Only debug builds check it; in others its upper bits are lost.
#[inline(always)]
pub(crate) fn shift(m: i32, s: i32) -> i32 {
    if s >= 0 {
        let left = m << (s.min(31) as u32 & 31);
        debug_assert!(left >> (s.min(31) as u32) == m, "{m} << {s} does not fit");
        left
    } else {
        shift_right(m, -s)
    }
}

/// [`shift`] for 64 bits, under the same condition.
#[inline(always)]
pub(crate) fn shift_long(m: i64, s: i32) -> i64 {
    if s >= 0 {
        let left = m << (s.min(63) as u32 & 63);
        debug_assert!(left >> (s.min(63) as u32) == m, "{m} << {s} does not fit");
        left
    } else {
        ((m >> ((-s - 1).min(63) as u32 & 63)) + 1) >> 1
    }
}

/// Counts of what did not fit, in debug builds: always 0 in others.
pub mod saturated {
    #[cfg(debug_assertions)]
    use core::sync::atomic::{AtomicU32, Ordering};

    #[cfg(debug_assertions)]
    static COUNT: AtomicU32 = AtomicU32::new(0);

    /// How many values were saturated since the program began.
    #[must_use]
    pub fn count() -> u32 {
        #[cfg(debug_assertions)]
        return COUNT.load(Ordering::Relaxed);
        #[cfg(not(debug_assertions))]
        0
    }

    /// Counts one more if `saturates`.
    #[inline(always)]
    pub(crate) fn note(saturates: bool) {
        #[cfg(debug_assertions)]
        if saturates {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        #[cfg(not(debug_assertions))]
        let _ = saturates;
    }
}
