//! The selective scan.

use super::elementwise::{Lanes, rows, rows_mut};
use super::isa::Isa;
use super::operands::{ScanInput, SsmState};
use crate::numbers::LANES;
use crate::numbers::float;

/// Largest finite f16.
const F16_MAX: f32 = 65504.0;

/// How the scan reads and writes a vector of the state.
trait Stored<S: Isa> {
    /// The stored element.
    type Element;
    fn get(s: S, from: &[Self::Element; LANES]) -> S::F;
    /// What a token leaves behind: `h`, as far as the stored type holds it.
    fn keep(s: S, h: S::F) -> S::F;
    fn put(s: S, h: S::F, to: &mut [Self::Element; LANES]);
}

struct StoredF32;
impl<S: Isa> Stored<S> for StoredF32 {
    type Element = f32;
    #[inline(always)]
    fn get(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
    #[inline(always)]
    fn keep(_: S, h: S::F) -> S::F {
        h
    }
    #[inline(always)]
    fn put(s: S, h: S::F, to: &mut [f32; LANES]) {
        s.store(h, to);
    }
}

struct StoredF16;
impl<S: Isa> Stored<S> for StoredF16 {
    type Element = u16;
    #[inline(always)]
    fn get(s: S, from: &[u16; LANES]) -> S::F {
        s.load_f16(from)
    }
    #[inline(always)]
    fn keep(s: S, h: S::F) -> S::F {
        let mut rounded = [0; LANES];
        Self::put(s, h, &mut rounded);
        s.load_f16(&rounded)
    }
    #[inline(always)]
    fn put(s: S, h: S::F, to: &mut [u16; LANES]) {
        let (low, high) = (s.splat(-F16_MAX), s.splat(F16_MAX));
        let h = s.select_lt(h, low, low, h);
        s.store_f16(s.select_lt(high, h, high, h), to);
    }
}

#[inline(always)]
pub(super) fn scan<S: Isa>(
    s: S,
    panels: &[u8],
    state: SsmState<'_>,
    input: &ScanInput<'_>,
    dt: &[f32],
    z: &[f32],
    u: &mut [f32],
) {
    match state {
        SsmState::F32(state) => scan_panels::<S, StoredF32>(s, panels, state, input, dt, z, u),
        SsmState::F16(state) => scan_panels::<S, StoredF16>(s, panels, state, input, dt, z, u),
    }
}

#[inline(always)]
fn scan_panels<S: Isa, H: Stored<S>>(
    s: S,
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
    let inputs = rows(dt).chunks_exact(tokens).zip(rows(z).chunks_exact(tokens));
    for (((w, h), (dt, z)), u) in weights.zip(state).zip(inputs).zip(rows_mut(u).chunks_exact_mut(tokens)) {
        let mut t = range.start;
        if S::LOCKSTEP == 2 {
            while t + 2 <= range.end {
                scan_block::<S, H, 2, 1>(s, w, h, input, t, dt, z, u);
                t += 2;
            }
        } else {
            while S::SCAN_BLOCK >= 4 && t + 4 <= range.end {
                scan_block::<S, H, 4, 1>(s, w, h, input, t, dt, z, u);
                t += 4;
            }
        }
        while t < range.end {
            match S::LOCKSTEP {
                1 => scan_block::<S, H, 1, 1>(s, w, h, input, t, dt, z, u),
                2 => scan_block::<S, H, 1, 2>(s, w, h, input, t, dt, z, u),
                _ => scan_block::<S, H, 1, 4>(s, w, h, input, t, dt, z, u),
            }
            t += 1;
        }
    }
}

/// `T` tokens from `first` on, for sixteen channels: each `h[n]` is read and written once, `N` of them side by side.
#[inline(always)]
fn scan_block<S: Isa, H: Stored<S>, const T: usize, const N: usize>(
    s: S,
    weights: &[[u8; 4 * LANES]],
    state: &mut [[H::Element; LANES]],
    input: &ScanInput<'_>,
    first: usize,
    dt: &[Lanes],
    z: &[Lanes],
    u: &mut [Lanes],
) {
    let (dt, z, u) = (&dt[first..][..T], &z[first..][..T], &mut u[first..][..T]);
    let (a, d) = weights.split_at(state.len());
    let mut y = [s.splat(0.0); T];
    let (mut step, mut step_u) = (y, y);
    for t in 0..T {
        step[t] = s.softplus(s.load(&dt[t]));
        step_u[t] = s.mul(step[t], s.load(&u[t]));
    }
    for (block, (a, state)) in a.chunks(LANES).zip(state.chunks_mut(LANES)).enumerate() {
        let of_block = |x| rows(x).get(block * input.tokens + first..)?.first_chunk::<T>();
        let (Some(b), Some(c)) = (of_block(input.b), of_block(input.c)) else { return };
        let scan = Scan { step: &step, step_u: &step_u, b, c };
        let (several, rest) = state.as_chunks_mut::<N>();
        let (a_several, a_rest) = a.as_chunks::<N>();
        for (i, (a, state)) in a_several.iter().zip(&mut *several).enumerate() {
            scan.states::<S, H, N>(s, i * N, a, state, &mut y);
        }
        for (i, (a, state)) in a_rest.iter().zip(rest).enumerate() {
            scan.states::<S, H, 1>(s, several.len() * N + i, &[*a], core::array::from_mut(state), &mut y);
        }
    }
    let d = s.load_f32_bytes(&d[0]);
    for t in 0..T {
        let y = s.fma(d, s.load(&u[t]), y[t]);
        s.store(s.mul(y, s.silu(s.load(&z[t]))), &mut u[t]);
    }
}

/// What `T` tokens bring to all states of sixteen channels.
struct Scan<'a, F, const T: usize> {
    /// softplus(dt)
    step: &'a [F; T],
    /// softplus(dt) u
    step_u: &'a [F; T],
    /// B and C of up to sixteen states.
    b: &'a [Lanes; T],
    c: &'a [Lanes; T],
}

impl<F: Copy, const T: usize> Scan<'_, F, T> {
    /// States `first..first + N`.
    #[inline(always)]
    fn states<S: Isa<F = F>, H: Stored<S>, const N: usize>(
        &self,
        s: S,
        first: usize,
        a: &[[u8; 4 * LANES]; N],
        state: &mut [[H::Element; LANES]; N],
        y: &mut [F; T],
    ) {
        let mut decay = [[s.splat(0.0); T]; N];
        for n in 0..N {
            let a = s.load_f32_bytes(&a[n]);
            for t in 0..T {
                decay[n][t] = s.mul(self.step[t], a);
            }
        }
        if S::LOCKSTEP == 1 {
            for n in 0..N {
                for t in 0..T {
                    decay[n][t] = s.exp(decay[n][t]);
                }
            }
        } else if T == 1 {
            let mut x = [s.splat(0.0); N];
            for n in 0..N {
                x[n] = decay[n][0];
            }
            let e = float::exp_each(s, x);
            for n in 0..N {
                decay[n][0] = e[n];
            }
        } else {
            for decay in &mut decay {
                *decay = float::exp_each(s, *decay);
            }
        }
        for n in 0..N {
            let at = (first + n) & (LANES - 1);
            let mut h = H::get(s, &state[n]);
            for t in 0..T {
                h = s.fma(decay[n][t], h, s.mul(self.step_u[t], s.splat(self.b[t][at])));
                y[t] = s.fma(h, s.splat(self.c[t][at]), y[t]);
                if t + 1 < T {
                    h = H::keep(s, h);
                }
            }
            H::put(s, h, &mut state[n]);
        }
    }
}
