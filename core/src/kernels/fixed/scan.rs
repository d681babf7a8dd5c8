//! The selective scan in integers.
//!
//! A channel's states share an exponent, which is chosen anew for every token, so that both what is left of the states
//! and what is added stay within 2^28 units: together within 2^29. Then, for every state,
//!
//! ```text
//! h = exp2(dt log2(e) A) h + dt u B        30 bits
//! y = y + (C round(h, 15 bits)) / 2^7      a shift for two states
//! ```
//!
//! and what is kept of h is its upper 15 bits and sign, or all of it. `dt` stands there as `dt log2(e)`; `ln(2)` is in B.

use super::elementwise::{NARROW, join};
use super::{Dot, Range, ScanInput, SsmState, Wide, WideMut, rows, rows_mut, words};
use crate::numbers::fixed::functions::exp2;
use crate::numbers::fixed::{Num, Row, bits, magnitude, mul_high, mul_high_cut};

/// Bits of what is left of a state and of what is added to it.
pub(super) const PART: i32 = 28;
/// The most bits by which what is added to a state is shifted: half a unit of what is kept fits before the shift.
const G_DOWN: i32 = 16;
/// Bits by which a state exceeds what meets C.
pub(super) const FINE: i32 = 14;
/// Products with C are cut by so many bits: 256 of 2^29 then stay within 2^30.
pub(super) const SUMMED: i32 = 7;

/// How a state is kept.
pub(crate) trait Hold: Copy {
    /// Bits of a state that are not kept.
    const CUT: i32;
    fn get(self) -> i32;
    /// From a state and the same rounded to 15 bits.
    fn put(h: i32, rounded: i32) -> Self;
    /// Sixteen states of sixteen channels as [`Dot::sixteen`] by hand takes them.
    #[cfg_attr(not(target_arch = "arm"), allow(dead_code))]
    #[inline(always)]
    fn narrow(_: &mut [[Self; 16]]) -> Option<&mut [[i16; 16]; 16]> {
        None
    }
}

impl Hold for i16 {
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

impl Hold for i32 {
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

#[inline(always)]
pub(super) fn scan<S: Dot>(
    s: S,
    panels: &[u8],
    state: SsmState<'_>,
    ranges: &mut [Range],
    input: &ScanInput<'_>,
    dt: Wide<'_>,
    z: Wide<'_>,
    u: WideMut<'_>,
) {
    match state {
        SsmState::I16(state) => scan_panels(s, panels, state, ranges, input, dt, z, u),
        SsmState::I32(state) => scan_panels(s, panels, state, ranges, input, dt, z, u),
    }
}

#[inline(always)]
fn scan_panels<S: Dot, H: Hold>(
    s: S,
    panels: &[u8],
    state: &mut [H],
    ranges: &mut [Range],
    input: &ScanInput<'_>,
    dt: Wide<'_>,
    z: Wide<'_>,
    u: WideMut<'_>,
) {
    let (n, tokens) = (input.d_state, input.tokens);
    if n == 0 || tokens == 0 {
        return;
    }
    let mut steps = Steps::ZERO;
    let weights = panels.as_chunks::<64>().0.chunks_exact(n.saturating_add(1));
    let states = state.as_chunks_mut::<16>().0.chunks_exact_mut(n).zip(ranges.as_chunks_mut::<16>().0);
    let dt = rows(dt.m).chunks_exact(tokens).zip(dt.e.chunks_exact(tokens));
    let z = rows(z.m).chunks_exact(tokens).zip(z.e.chunks_exact(tokens));
    let u = rows_mut(u.m).chunks_exact_mut(tokens).zip(u.e.chunks_exact_mut(tokens));
    for ((w, (h, ranges)), ((dt, dte), ((z, ze), (u, ue)))) in weights.zip(states).zip(dt.zip(z.zip(u))) {
        let Some((d, a)) = w.split_last() else { return };
        let dt = dt.iter().zip(dte);
        let io = dt.zip(z.iter().zip(ze)).zip(u.iter_mut().zip(ue));
        let exponents = input.b_exponents.iter().zip(input.c_exponents);
        let taking_part = io.zip(exponents).enumerate().take(input.range.end).skip(input.range.start);
        for (t, ((((dt, dte), (z, ze)), (u, ue)), (be, ce))) in taking_part {
            let io = Token { dt: (dt, *dte), z: (z, *ze), d, a, input, t, exponents: (*be, *ce) };
            *ue = scan_token(s, &mut steps, &io, h, ranges, u, *ue);
        }
    }
}

/// Half a unit of what the sums of products with C are cut to.
pub(super) const HALF: i32 = 1 << SUMMED >> 1;
/// Bits of `dt log2(e) u` that don't meet B.
const G_CUT: i32 = 15;

/// What the channels of a panel share in a token.
struct Token<'a> {
    dt: (&'a Row, i32),
    z: (&'a Row, i32),
    d: &'a [u8; 64],
    a: &'a [[u8; 64]],
    input: &'a ScanInput<'a>,
    t: usize,
    /// Of B and C.
    exponents: (i32, i32),
}

/// A token of the sixteen channels of a panel; returns the exponent of `u`.
#[inline(always)]
fn scan_token<S: Dot, H: Hold>(
    s: S,
    steps: &mut Steps,
    io: &Token<'_>,
    h: &mut [[H; 16]],
    ranges: &mut [Range; 16],
    u: &mut Row,
    ue: i32,
) -> i32 {
    let (be, ce) = io.exponents;
    steps.set(s, io.dt, (u, ue), be, ranges);
    let (b, c) = (rows_of(io.input.b), rows_of(io.input.c));
    let mut at = io.t;
    for (a, h) in io.a.chunks(16).zip(h.chunks_mut(16)) {
        let (Some(b), Some(c)) = (b.get(at), c.get(at)) else { break };
        s.sixteen(steps, a, h, b, c);
        at += io.input.tokens;
    }
    steps.keep(ranges, H::CUT);
    gated(s, steps, ce, io.d, (u, ue), io.z)
}

/// B or C of sixteen states each, `[N/16][T]`.
#[inline(always)]
fn rows_of(x: &[i16]) -> &[[i16; 16]] {
    x.as_chunks().0
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
    unit: Row,
    /// The sums of states times C.
    pub y: Row,
    /// The states' magnitudes, joined.
    pub largest: [u32; 16],
    /// Exponents of what becomes of the sums.
    e: Row,
}

impl Steps {
    /// Before the first token.
    const ZERO: Self = Self {
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

    /// Those of a token.
    #[inline(always)]
    fn set<S: Dot>(
        &mut self,
        s: S,
        (dt, dte): (&Row, i32),
        (u, ue): (&Row, i32),
        be: i32,
        ranges: &[Range; 16],
    ) {
        for i in 0..16 {
            let (channel, unit) = step(s, Num { m: dt[i], e: dte }, Num { m: u[i], e: ue }, be, ranges[i]);
            let Channel { dt, down, g, g_down, up, cut } = channel;
            (self.dt[i], self.down[i], self.g[i], self.g_down[i]) = (dt, down, g, g_down);
            (self.up[i], self.cut[i], self.unit[i]) = (up, cut, unit);
            (self.y[i], self.largest[i]) = (0, 0);
        }
    }

    /// See [`Dot::sixteen`].
    #[inline(always)]
    pub(super) fn sixteen<H: Hold>(&mut self, a: &[[u8; 64]], h: &mut [[H; 16]], b: &[i16], c: &[i16]) {
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
    fn keep(&self, ranges: &mut [Range; 16], cut: i32) {
        for i in 0..16 {
            let unit = self.unit[i] + cut;
            ranges[i] = Range::new(unit, bits(self.largest[i]));
        }
    }
}

/// What a channel's states share in a token, and the exponent of a state.
#[inline(always)]
fn step<S: Dot>(s: S, dt: Num, u: Num, be: i32, range: Range) -> (Channel, i32) {
    let (dt, e) = s.softplus_log2(dt);

    // dt log2(e) u, of 28 bits at least, unless u is 0.
    let u = s.normal(u);
    let g = s.mul_high((dt >> 1) as i32, u.m);
    let g_e = e + u.e + (1 + 32 + G_CUT);

    // A unit in which what is left and what is added are within 2^28.
    let top = range.top().max(g_e + 15 + be + NARROW);
    let unit = s.exponent(top - PART);
    let up = range.unit() - unit + 2;
    // 1 at least.
    let g_down = unit - g_e - be;
    let channel = Channel {
        dt,
        // |A| = mantissa 2^(biased exponent - 158), the product's upper half counts 2^32, Q24 2^-24. A's sign is the exponent's
        // highest bit.
        down: 256 + 158 - 32 - 24 - e,
        // Of what is shifted further, bits are taken off before it meets B.
        // With 15 nothing is left of the product.
        g: s.within_half(((g >> (G_CUT - 1 + s.within_nibble(g_down - G_DOWN))) + 1) >> 1),
        g_down: 1 + s.within_nibble(g_down - 1),
        up: s.within_word(up),
        cut: s.within_word(-up),
    };
    (channel, unit)
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
    fn state<H: Hold>(&self, decay: i32, h: H, b: i32) -> (H, i32) {
        // The two bits that a kept state of 30 bits lacks are cut.
        let left = mul_high((h.get() << self.up) >> self.cut, decay);
        let added = (self.g * b + (1 << self.g_down >> 1)) >> self.g_down;
        let h = left + added;
        let rounded = (h + (1 << FINE >> 1)) >> FINE;
        (H::put(h, rounded), rounded)
    }
}

/// `(y + D u) silu(z)`.
#[inline(always)]
fn gated<S: Dot>(
    s: S,
    steps: &mut Steps,
    ce: i32,
    d: &[u8; 64],
    (u, ue): (&mut Row, i32),
    (z, ze): (&Row, i32),
) -> i32 {
    let (d, _) = d.as_chunks();
    for i in 0..16 {
        let y = Num { m: steps.y[i], e: steps.unit[i] + FINE + ce + SUMMED };
        let d = u32::from_le_bytes(d[i]);
        let y = gate(s, y, d, Num { m: u[i], e: ue }, Num { m: z[i], e: ze });
        (u[i], steps.e[i]) = (y.m, y.e);
    }
    join(s, u, &steps.e)
}

/// The same for one channel, `d` as the bits of an f32. The mantissa has 30 bits at most.
#[inline(always)]
fn gate<S: Dot>(s: S, y: Num, d: u32, u: Num, z: Num) -> Num {
    let d = Num::weight(d);
    let direct = Num { m: s.mul_high(u.m, d.m), e: u.e + d.e + 32 };
    let e = y.e.max(direct.e) + 1;
    let m = s.cut(y.m, e - y.e) + s.cut(direct.m, e - direct.e);
    let (sum, gate) = (s.normal(Num { m, e }), s.silu(z));
    Num { m: s.mul_high(sum.m, gate.m), e: sum.e + gate.e + 32 }
}
