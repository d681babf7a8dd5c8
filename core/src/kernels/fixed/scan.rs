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

use super::elementwise::join;
use super::isa::Isa;
use super::narrow::NARROW;
use super::operands::{FINE, Range, ScanInput, SsmState, Wide, WideMut, rows, rows_mut};
use super::steps::{Channel, SUMMED, Steps, Stored};
use crate::numbers::fixed::{Num, Row};

/// Bits of what is left of a state and of what is added to it.
pub(super) const PART: i32 = 28;
/// The most bits by which what is added to a state is shifted: half a unit of what is kept fits before the shift.
const G_DOWN: i32 = 16;
#[inline(always)]
pub(super) fn scan<S: Isa>(
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
fn scan_panels<S: Isa, H: Stored>(
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
fn scan_token<S: Isa, H: Stored>(
    s: S,
    steps: &mut Steps,
    io: &Token<'_>,
    h: &mut [[H; 16]],
    ranges: &mut [Range; 16],
    u: &mut Row,
    ue: i32,
) -> i32 {
    let (be, ce) = io.exponents;
    set(s, steps, io.dt, (u, ue), be, ranges);
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

/// Sets the steps to those of a token.
#[inline(always)]
fn set<S: Isa>(
    s: S,
    steps: &mut Steps,
    (dt, dte): (&Row, i32),
    (u, ue): (&Row, i32),
    be: i32,
    ranges: &[Range; 16],
) {
    for i in 0..16 {
        let (channel, unit) = step(s, Num { m: dt[i], e: dte }, Num { m: u[i], e: ue }, be, ranges[i]);
        let Channel { dt, down, g, g_down, up, cut } = channel;
        (steps.dt[i], steps.down[i], steps.g[i], steps.g_down[i]) = (dt, down, g, g_down);
        (steps.up[i], steps.cut[i], steps.unit[i]) = (up, cut, unit);
        (steps.y[i], steps.largest[i]) = (0, 0);
    }
}

/// What a channel's states share in a token, and the exponent of a state.
#[inline(always)]
fn step<S: Isa>(s: S, dt: Num, u: Num, be: i32, range: Range) -> (Channel, i32) {
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

/// `(y + D u) silu(z)`.
#[inline(always)]
fn gated<S: Isa>(
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
fn gate<S: Isa>(s: S, y: Num, d: u32, u: Num, z: Num) -> Num {
    let d = Num::weight(d);
    let direct = Num { m: s.mul_high(u.m, d.m), e: u.e + d.e + 32 };
    let e = y.e.max(direct.e) + 1;
    let m = s.cut(y.m, e - y.e) + s.cut(direct.m, e - direct.e);
    let (sum, gate) = (s.normal(Num { m, e }), s.silu(z));
    Num { m: s.mul_high(sum.m, gate.m), e: sum.e + gate.e + 32 }
}
