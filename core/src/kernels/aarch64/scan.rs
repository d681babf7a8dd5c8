//! The selective scan, four channels at a time.
//!
//! Sixteen channels of some tokens don't fit 32 registers of four lanes beside the constants of `exp`; a quarter does.
//! The operations are those of `elementwise::scan`, in the same order.

use core::arch::aarch64::*;
use core::arch::asm;

use super::neon::{narrow, widen};
use super::quad::Quad;
use crate::kernels::isa::LANES;
use crate::kernels::{ScanInput, SsmState};
use crate::num;

/// Channels worked on at once.
const LANE: usize = 4;
/// Tokens that pass while a state is in a register.
const BLOCK: usize = 2;
/// Largest finite f16.
const F16_MAX: f32 = 65504.0;

type Lanes = [f32; LANES];

/// Applies intrinsics that every AArch64 has.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: NEON is part of every AArch64 that this compiles for; memory operands are arrays of the size read.
        unsafe { $e }
    };
}

/// Four of sixteen elements.
#[inline(always)]
fn four<T>(of: &[T; LANES], quarter: usize) -> &[T; LANE] {
    &of.as_chunks().0[quarter % LANE]
}

#[inline(always)]
fn four_mut<T>(of: &mut [T; LANES], quarter: usize) -> &mut [T; LANE] {
    &mut of.as_chunks_mut().0[quarter % LANE]
}

#[inline(always)]
fn load(from: &[f32; LANE]) -> float32x4_t {
    op!(vld1q_f32(from.as_ptr()))
}

#[inline(always)]
fn store(x: float32x4_t, to: &mut [f32; LANE]) {
    op!(vst1q_f32(to.as_mut_ptr(), x));
}

/// Four weights of a vector of sixteen in the model's file.
#[inline(always)]
fn weight(of: &[u8; 4 * LANES], quarter: usize) -> float32x4_t {
    op!(of.as_chunks::<16>().0[quarter % LANE].as_ptr().cast::<float32x4_t>().read_unaligned())
}

/// How the state is stored.
trait Hold {
    type Element;
    fn get(from: &[Self::Element; LANE]) -> float32x4_t;
    /// What a token leaves behind: `h`, as far as the stored type holds it.
    fn keep(h: float32x4_t) -> float32x4_t;
    fn put(h: float32x4_t, to: &mut [Self::Element; LANE]);
}

struct HoldF32;
impl Hold for HoldF32 {
    type Element = f32;
    #[inline(always)]
    fn get(from: &[f32; LANE]) -> float32x4_t {
        load(from)
    }
    #[inline(always)]
    fn keep(h: float32x4_t) -> float32x4_t {
        h
    }
    #[inline(always)]
    fn put(h: float32x4_t, to: &mut [f32; LANE]) {
        store(h, to);
    }
}

struct HoldF16;
impl HoldF16 {
    #[inline(always)]
    fn round(h: float32x4_t) -> uint16x4_t {
        let (low, high) = op!((vdupq_n_f32(-F16_MAX), vdupq_n_f32(F16_MAX)));
        let h = op!(vbslq_f32(vcltq_f32(h, low), low, h));
        narrow(op!(vbslq_f32(vcltq_f32(high, h), high, h)))
    }
}
impl Hold for HoldF16 {
    type Element = u16;
    #[inline(always)]
    fn get(from: &[u16; LANE]) -> float32x4_t {
        widen(op!(vld1_u16(from.as_ptr())))
    }
    #[inline(always)]
    fn keep(h: float32x4_t) -> float32x4_t {
        widen(Self::round(h))
    }
    #[inline(always)]
    fn put(h: float32x4_t, to: &mut [u16; LANE]) {
        op!(vst1_u16(to.as_mut_ptr(), Self::round(h)));
    }
}

/// See [`Kernels::scan`](crate::kernels::Kernels::scan).
#[inline(always)]
pub(in crate::kernels) fn scan<S>(
    _: S,
    panels: &[u8],
    state: SsmState<'_>,
    input: &ScanInput<'_>,
    dt: &[f32],
    z: &[f32],
    u: &mut [f32],
) {
    match state {
        SsmState::F32(state) => scan_panels::<HoldF32>(panels, state, input, dt, z, u),
        SsmState::F16(state) => scan_panels::<HoldF16>(panels, state, input, dt, z, u),
    }
}

#[inline(always)]
fn scan_panels<H: Hold>(
    panels: &[u8],
    state: &mut [H::Element],
    input: &ScanInput<'_>,
    dt: &[f32],
    z: &[f32],
    u: &mut [f32],
) {
    let (n, tokens) = (input.d_state, input.tokens);
    let range = input.given();
    if n == 0 || range.is_empty() {
        return;
    }
    let weights = panels.as_chunks::<{ 4 * LANES }>().0.chunks_exact(n + 1);
    let state = state.as_chunks_mut::<LANES>().0.chunks_exact_mut(n);
    let of_panels = |x| <[f32]>::as_chunks::<LANES>(x).0.chunks_exact(tokens);
    let u = u.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens);
    for ((((w, h), dt), z), u) in weights.zip(state).zip(of_panels(dt)).zip(of_panels(z)).zip(u) {
        for quarter in 0..LANES / LANE {
            let mut first = range.start;
            while first + BLOCK <= range.end {
                scan_block::<H, BLOCK>(w, h, input, first, quarter, dt, z, u);
                first += BLOCK;
            }
            while first < range.end {
                scan_block::<H, 1>(w, h, input, first, quarter, dt, z, u);
                first += 1;
            }
        }
    }
}

/// [`num::exp`], operation for operation, with its constants at hand.
///
/// Those that only multiply lie in lanes of two registers: one register each would leave too few for two tokens.
struct Exp {
    /// `log2(e)`, both parts of `-ln 2`, coefficient 1; coefficients 3 and 4.
    factors: [float32x4_t; 2],
    floor: float32x4_t,
    magic: float32x4_t,
    p0: float32x4_t,
    p2: float32x4_t,
    one: float32x4_t,
    /// A shift by 23 bits, as a factor.
    exponent: uint32x4_t,
}

impl Exp {
    #[inline(always)]
    fn new() -> Self {
        let mut factors = [
            load(&[num::LOG2_E, -num::LN2_HI, -num::LN2_LO, num::EXP_P[1]]),
            load(&[num::EXP_P[3], num::EXP_P[4], 0.0, 0.0]),
        ];
        let [low, high] = &mut factors;
        // SAFETY: no instruction. It hides the values, which the compiler would spread over a register each.
        unsafe {
            asm!("/* {0:v} {1:v} */", inout(vreg) * low, inout(vreg) * high, options(pure, nomem, nostack))
        };
        let all = |x| op!(vdupq_n_f32(x));
        Self {
            factors,
            floor: all(num::EXP_FLOOR),
            magic: all(num::ROUND_MAGIC),
            p0: all(num::EXP_P[0]),
            p2: all(num::EXP_P[2]),
            one: all(1.0),
            exponent: op!(vdupq_n_u32(1 << 23)),
        }
    }

    /// Of several vectors side by side: of one alone, each operation would wait for the one before.
    #[inline(always)]
    fn each<const K: usize>(&self, x: [float32x4_t; K]) -> [float32x4_t; K] {
        /// An operation on each of them.
        macro_rules! each {
            (|$i:ident| $e:expr) => {
                core::array::from_fn::<_, K, _>(|$i| op!($e))
            };
        }
        let [low, high] = self.factors;
        let x = each!(|i| vmaxnmq_f32(x[i], self.floor));
        let shifted = each!(|i| vfmaq_laneq_f32::<0>(self.magic, x[i], low));
        let n = each!(|i| vsubq_f32(shifted[i], self.magic));
        let r = each!(|i| vfmaq_laneq_f32::<1>(x[i], n[i], low));
        let r = each!(|i| vfmaq_laneq_f32::<2>(r[i], n[i], low));
        let r2 = each!(|i| vmulq_f32(r[i], r[i]));
        let p01 = each!(|i| vfmaq_laneq_f32::<3>(self.p0, r[i], low));
        let p23 = each!(|i| vfmaq_laneq_f32::<0>(self.p2, r[i], high));
        let p234 = each!(|i| vfmaq_laneq_f32::<1>(p23[i], r2[i], high));
        let p = each!(|i| vfmaq_f32(p01[i], p234[i], r2[i]));
        let e = each!(|i| vfmaq_f32(r[i], p[i], r2[i]));
        let e = each!(|i| vaddq_f32(self.one, e[i]));
        core::array::from_fn(|i| add_exponent(e[i], op!(vreinterpretq_u32_f32(shifted[i])), self.exponent))
    }
}

/// `e + (shifted << 23)` on the bits, as one multiplication: the compiler would shift and add.
#[inline(always)]
fn add_exponent(mut e: float32x4_t, shifted: uint32x4_t, factor: uint32x4_t) -> float32x4_t {
    // SAFETY: reads and writes only the named registers.
    unsafe {
        asm!("mla {e:v}.4s, {s:v}.4s, {f:v}.4s", e = inout(vreg) e, s = in(vreg) shifted, f = in(vreg) factor,
            options(pure, nomem, nostack, preserves_flags));
    }
    e
}

/// What `T` tokens bring for four channels: the step, the step times the input, and the output so far.
struct Channels<const T: usize> {
    step: [float32x4_t; T],
    step_u: [float32x4_t; T],
    y: [float32x4_t; T],
}

impl<const T: usize> Channels<T> {
    /// `exp(dt A)` of a state for all tokens and of as many states behind it as make `V` vectors.
    #[inline(always)]
    fn decays<const V: usize>(&self, exp: &Exp, a: &[float32x4_t]) -> [float32x4_t; V] {
        exp.each(core::array::from_fn(|i| op!(vmulq_f32(self.step[i % T], a[i / T]))))
    }

    /// One state of each channel: `h = exp(dt A) h + dt u B`, `y += C h`, with B and C in lane `N`.
    #[inline(always)]
    fn pass<H: Hold, const N: i32>(
        &mut self,
        decay: [float32x4_t; T],
        state: &mut [H::Element; LANE],
        b: &[float32x4_t; T],
        c: &[float32x4_t; T],
    ) {
        let mut h = H::get(state);
        for t in 0..T {
            h = op!(vfmaq_f32(vmulq_laneq_f32::<N>(self.step_u[t], b[t]), decay[t], h));
            self.y[t] = op!(vfmaq_laneq_f32::<N>(self.y[t], h, c[t]));
            if t + 1 < T {
                h = H::keep(h);
            }
        }
        H::put(h, state);
    }
}

/// `T` tokens from `first` on, for four channels: each `h[n]` is read and written once.
#[inline(always)]
fn scan_block<H: Hold, const T: usize>(
    weights: &[[u8; 4 * LANES]],
    state: &mut [[H::Element; LANES]],
    input: &ScanInput<'_>,
    first: usize,
    quarter: usize,
    dt: &[Lanes],
    z: &[Lanes],
    u: &mut [Lanes],
) {
    let (dt, z, u) = (&dt[first..][..T], &z[first..][..T], &mut u[first..][..T]);
    let (a, d) = weights.split_at(state.len());
    let zero = [op!(vdupq_n_f32(0.0)); T];
    let mut channels = Channels { step: zero, step_u: zero, y: zero };
    for t in 0..T {
        channels.step[t] = num::softplus(Quad, load(four(&dt[t], quarter)));
        channels.step_u[t] = op!(vmulq_f32(channels.step[t], load(four(&u[t], quarter))));
    }
    let exp = Exp::new();
    // A state's decays among those of all four, each token's; whole states in a row, so that only the place in it counts.
    let of = |decays: &[float32x4_t; LANE], state: usize| -> [float32x4_t; T] {
        core::array::from_fn(|t| decays[(state * T + t) % LANE])
    };
    for (panel, (a, state)) in a.chunks(LANES).zip(state.chunks_mut(LANES)).enumerate() {
        let of_panel =
            |x| <[f32]>::as_chunks::<LANES>(x).0.get(panel * input.tokens + first..)?.first_chunk::<T>();
        let (Some(b), Some(c)) = (of_panel(input.b), of_panel(input.c)) else { return };
        let (a4, a) = a.as_chunks::<LANE>();
        let (states, state) = state.as_chunks_mut::<LANE>();
        for (i, (a4, [h0, h1, h2, h3])) in a4.iter().zip(states).enumerate() {
            let (mut b4, mut c4) = (zero, zero);
            for t in 0..T {
                (b4[t], c4[t]) = (load(four(&b[t], i)), load(four(&c[t], i)));
            }
            let a4 = a4.each_ref().map(|a| weight(a, quarter));
            // Four vectors at once: all states of one token, or two of two tokens.
            let first = channels.decays::<LANE>(&exp, &a4);
            channels.pass::<H, 0>(of(&first, 0), four_mut(h0, quarter), &b4, &c4);
            channels.pass::<H, 1>(of(&first, 1), four_mut(h1, quarter), &b4, &c4);
            let last = if T == 1 { first } else { channels.decays(&exp, &a4[2..]) };
            channels.pass::<H, 2>(of(&last, 2), four_mut(h2, quarter), &b4, &c4);
            channels.pass::<H, 3>(of(&last, 3), four_mut(h3, quarter), &b4, &c4);
        }
        for (i, (a, h)) in a.iter().zip(state).enumerate() {
            let (mut b1, mut c1) = (zero, zero);
            for t in 0..T {
                let n = (LANE * a4.len() + i) % LANES;
                (b1[t], c1[t]) = (op!(vdupq_n_f32(b[t][n])), op!(vdupq_n_f32(c[t][n])));
            }
            let decay = channels.decays::<T>(&exp, &[weight(a, quarter)]);
            channels.pass::<H, 0>(decay, four_mut(h, quarter), &b1, &c1);
        }
    }
    let d = weight(&d[0], quarter);
    for t in 0..T {
        let u = four_mut(&mut u[t], quarter);
        let y = op!(vfmaq_f32(channels.y[t], d, load(u)));
        store(op!(vmulq_f32(y, num::silu(Quad, load(four(&z[t], quarter))))), u);
    }
}
