//! The recurrence of sixteen channels in one token, in portable code.

use super::operands::{FINE, Range, words};
use crate::numbers::fixed::functions::exp2;
use crate::numbers::fixed::{Row, bits, magnitude, mul_high, mul_high_cut};

/// Products with C are cut by so many bits: 256 of 2^29 then stay within 2^30.
pub(super) const SUMMED: i32 = 7;
/// Half a unit of what the sums of products with C are cut to.
pub(super) const HALF: i32 = 1 << SUMMED >> 1;

/// How a state is kept.
pub(crate) trait Stored: Copy {
    /// Bits of a state that are not kept.
    const CUT: i32;
    fn get(self) -> i32;
    /// From a state and the same rounded to 15 bits.
    ///
    /// # Correctness
    /// The caller ensures that the rounded state fits an i16. Only debug builds check it; in others its upper bits are lost.
    fn put(h: i32, rounded: i32) -> Self;
    /// Sixteen states of sixteen channels, as hand-written [`Isa::sixteen`](super::isa::Isa::sixteen) takes them.
    #[cfg_attr(not(target_arch = "arm"), allow(dead_code))]
    #[inline(always)]
    fn narrow(_: &mut [[Self; 16]]) -> Option<&mut [[i16; 16]; 16]> {
        None
    }
}

impl Stored for i16 {
    const CUT: i32 = FINE;
    #[inline(always)]
    fn get(self) -> i32 {
        i32::from(self)
    }
    #[inline(always)]
    fn put(_: i32, rounded: i32) -> Self {
        debug_assert!(i16::try_from(rounded).is_ok());
        rounded as i16
    }
    #[inline(always)]
    fn narrow(h: &mut [[Self; 16]]) -> Option<&mut [[i16; 16]; 16]> {
        h.try_into().ok()
    }
}

impl Stored for i32 {
    const CUT: i32 = 0;
    #[inline(always)]
    fn get(self) -> i32 {
        self
    }
    #[inline(always)]
    fn put(h: i32, _: i32) -> Self {
        h
    }
}

/// What the states of each of sixteen channels share in a token.
#[repr(C)]
pub(crate) struct Steps {
    /// `dt log2(e)`, mantissa.
    pub dt: [u32; 16],
    /// With A's sign and biased exponent taken off, how far `dt log2(e) A` is to be shifted to Q24.
    pub down: Row,
    /// `dt log2(e) u`.
    pub g: Row,
    /// How far its product with B is to be shifted.
    pub g_down: Row,
    /// How far a kept state is to be shifted up, then down, to lie 2 bits above a state's unit.
    pub up: Row,
    pub cut: Row,
    /// The exponent of a state.
    pub unit: Row,
    /// The sums of states times C.
    pub y: Row,
    /// The states' magnitudes, joined.
    pub largest: [u32; 16],
    /// Exponents of what becomes of the sums.
    pub e: Row,
}

impl Steps {
    /// Before the first token.
    pub const ZERO: Self = Self {
        dt: [0; 16],
        down: [0; 16],
        g: [0; 16],
        g_down: [0; 16],
        up: [0; 16],
        cut: [0; 16],
        unit: [0; 16],
        y: [0; 16],
        largest: [0; 16],
        e: [0; 16],
    };

    /// See [`Isa::sixteen`](super::isa::Isa::sixteen).
    #[inline(always)]
    pub(super) fn sixteen<H: Stored>(&mut self, a: &[[u8; 64]], h: &mut [[H; 16]], b: &[i16], c: &[i16]) {
        for ((a, h), (b, c)) in a.chunks(2).zip(h.chunks_mut(2)).zip(b.chunks(2).zip(c.chunks(2))) {
            let mut products = [HALF; 16];
            for ((a, h), (b, c)) in a.iter().zip(h).zip(b.iter().zip(c)) {
                let a = words(a);
                for i in 0..16 {
                    let channel = self.channel(i);
                    let (kept, rounded) = channel.state(channel.decay(a[i]), h[i], i32::from(*b));
                    h[i] = kept;
                    self.largest[i] |= magnitude(kept.get());
                    products[i] += rounded * i32::from(*c);
                }
            }
            for i in 0..16 {
                self.y[i] += products[i] >> SUMMED;
            }
        }
    }

    /// What is needed of channel `i` for its states.
    #[inline(always)]
    pub(super) fn channel(&self, i: usize) -> Channel {
        Channel {
            dt: self.dt[i],
            down: self.down[i],
            g: self.g[i],
            g_down: self.g_down[i],
            up: self.up[i],
            cut: self.cut[i],
        }
    }

    /// Notes how the states are kept.
    #[inline(always)]
    pub(super) fn keep(&self, ranges: &mut [Range; 16], cut: i32) {
        for i in 0..16 {
            let unit = self.unit[i] + cut;
            ranges[i] = Range::new(unit, bits(self.largest[i]));
        }
    }
}

/// One of [`Steps`], by the same names.
pub(crate) struct Channel {
    pub dt: u32,
    pub down: i32,
    pub g: i32,
    pub g_down: i32,
    pub up: i32,
    /// 0 where `up` is not.
    pub cut: i32,
}

impl Channel {
    /// Half a unit of what the shift of `g B` leaves, and half a unit of what is kept of a state in 15 bits, before that shift.
    #[cfg(all(target_arch = "arm", any(target_feature = "thumb2", feature = "thumb2")))]
    #[inline(always)]
    pub(super) fn halves(&self) -> i32 {
        ((1 << FINE) + 1) << ((self.g_down - 1) & 31)
    }

    /// What is left of a state, in Q30.
    #[inline(always)]
    fn decay(&self, a: u32) -> i32 {
        // A is negative by definition, so that its sign is known: a positive one counts as next to nothing, zero and what is subnormal as
        // 2^-127 and a bit.
        let product = mul_high_cut(self.dt, a << 8 | 1 << 31);
        let down = (self.down - (a >> 23) as i32).clamp(0, 31);
        // From 64 on, where it would not fit, it is 64 at least all the same.
        exp2(product >> down) as i32
    }

    /// One state: what is kept, and what of it meets C.
    #[inline(always)]
    fn state<H: Stored>(&self, decay: i32, h: H, b: i32) -> (H, i32) {
        // The two bits that a kept state of 30 bits lacks are cut.
        let left = mul_high((h.get() << self.up) >> self.cut, decay);
        let added = (self.g * b + (1 << self.g_down >> 1)) >> self.g_down;
        let h = left + added;
        let rounded = (h + (1 << FINE >> 1)) >> FINE;
        (H::put(h, rounded), rounded)
    }
}
