//! Cases of the selective scan.

use elapid_core::kernels::{Kernels, LANES, ScanInput, SsmState};
use elapid_tests::oracle;
use half::f16;

use crate::case::{Bound, Case, TINY, U, Vectors, append, bytes_of, chunks, tokens_of};
use crate::random::{Kind, Random};

/// Largest finite f16.
const F16_MAX: f64 = 65504.0;
/// Where `e^x` counts as 0.
const FLUSHED: f64 = 1.2e-38;

struct Scan {
    d_state: usize,
    /// `[d][d_state]`
    a: Vec<f32>,
    /// `[d]`
    skip: Vec<f32>,
    /// `[T][d_state]`, padded to whole panels.
    b: Vectors,
    c: Vectors,
    /// `[T][d]`
    dt: Vectors,
    z: Vectors,
    u: Vectors,
    /// `[d][d_state]`
    state: Vec<f16>,
    /// Whether the state is kept as f16.
    narrow: bool,
}

pub fn scan(random: &mut Random, kind: Kind, index: usize) -> Box<dyn Case> {
    let (tokens, d) = (tokens_of(index), LANES * random.between(1, 4));
    let d_state = [1, 5, 16, 17, 24, 33][random.between(0, 5)];
    let narrow = index / 29 % 2 == 1;
    let mut a = random.floats(d * d_state, kind);
    let mut dt = Vectors::random(random, kind, tokens, d);
    let mut u = Vectors::random(random, kind, tokens, d);
    if kind == Kind::Tame {
        a.iter_mut().for_each(|a| *a = -16.0 * a.abs().powi(3) / 27.0 - 1e-3);
        dt.x.iter_mut().for_each(|dt| *dt = 2.0 * *dt - 2.0);
        // A state past what f16 holds.
        if index.is_multiple_of(5) {
            u.x.iter_mut().for_each(|u| *u *= 40_000.0);
        }
    }
    let padded = d_state.next_multiple_of(LANES);
    Box::new(Scan {
        d_state,
        a,
        skip: random.floats(d, kind),
        b: Vectors::random(random, kind, tokens, padded),
        c: Vectors::random(random, kind, tokens, padded),
        dt,
        z: Vectors::random(random, kind, tokens, d),
        u,
        state: (0..d * d_state).map(|_| random.f16(kind)).collect(),
        narrow,
    })
}

impl Scan {
    /// `[d][d_state]` as `[d/16][d_state][16]`.
    fn in_lanes<T: Copy>(&self, x: &[T]) -> Vec<T> {
        let n = self.d_state;
        let panels = x.chunks_exact(LANES * n);
        panels.flat_map(|panel| (0..LANES * n).map(move |i| panel[i % LANES * n + i / LANES])).collect()
    }

    /// The state as it is kept.
    fn run_with(
        &self,
        chunk: usize,
        mut step: impl FnMut(&[u8], &ScanInput<'_>, [&[f32]; 2], &mut [f32]),
    ) -> Vec<f32> {
        let a = self.in_lanes(&self.a);
        let weights = a.chunks_exact(LANES * self.d_state).zip(self.skip.chunks_exact(LANES));
        let panels: Vec<u8> = weights.flat_map(|(a, skip)| [bytes_of(a), bytes_of(skip)].concat()).collect();
        let mut results = Vec::new();
        for (first, tokens) in chunks(self.u.tokens(), chunk) {
            let [b, c, dt, z, mut u] =
                [&self.b, &self.c, &self.dt, &self.z, &self.u].map(|x| x.panels(first, tokens));
            // In two parts, as if the tokens before and after the first part were other sequences'.
            for range in [0..tokens / 2, tokens / 2..tokens] {
                let input = ScanInput { tokens, range, d_state: self.d_state, b: &b, c: &c };
                step(&panels, &input, [&dt, &z], &mut u);
            }
            append(&mut results, &u, tokens);
        }
        results
    }
}

impl Case for Scan {
    fn run(&self, kernels: &dyn Kernels, chunk: usize) -> Vec<f32> {
        let state = self.in_lanes(&self.state);
        if self.narrow {
            let mut state: Vec<u16> = state.iter().map(|h| h.to_bits()).collect();
            let mut results = self.run_with(chunk, |panels, input, [dt, z], u| {
                kernels.scan(panels, SsmState::F16(&mut state), input, dt, z, u);
            });
            results.extend(state.iter().map(|&h| f16::from_bits(h).to_f32()));
            results
        } else {
            let mut state: Vec<f32> = state.iter().map(|h| h.to_f32()).collect();
            let mut results = self.run_with(chunk, |panels, input, [dt, z], u| {
                kernels.scan(panels, SsmState::F32(&mut state), input, dt, z, u);
            });
            results.extend(state);
            results
        }
    }

    /// The recurrence in f64, and beside each number how far off the kernel's can be by now.
    ///
    /// softplus is within 5.8 U of its value (2.9 units in the last place), exp within 1.8 U, silu within 6.8 U
    /// (`functions.rs`).
    fn bounds(&self) -> Vec<Bound> {
        let (n, d) = (self.d_state, self.u.d);
        let mut state: Vec<Bound> =
            self.state.iter().map(|h| Bound { exact: h.to_f64(), error: 0.0 }).collect();
        let mut bounds = Vec::new();
        for t in 0..self.u.tokens() {
            for channel in 0..d {
                let of = |x: &Vectors| f64::from(x.of(t)[channel]);
                let (step, u, gate) =
                    (oracle::softplus(of(&self.dt)), of(&self.u), oracle::silu(of(&self.z)));
                let skip = f64::from(self.skip[channel]);
                let (mut y, mut y_size, mut y_error) = (skip * u, (skip * u).abs(), 0.0);
                for (i, h) in state[channel * n..][..n].iter_mut().enumerate() {
                    let exponent = step * f64::from(self.a[channel * n + i]);
                    let decay = exponent.exp();
                    // The exponent is off by softplus' error and one rounding, which exp turns into a relative one.
                    let decay_error = decay * (6.8 * exponent.abs() + 1.8) * U * 1.001 + FLUSHED;
                    let input = step * u * f64::from(self.b.of(t)[i]);
                    let exact = decay * h.exact + input;
                    let size = exact.abs() + input.abs() + (decay * h.exact).abs();
                    let error = (decay + decay_error) * h.error
                        + decay_error * h.exact.abs()
                        + 7.8 * U * 1.001 * input.abs();
                    // The rounding of the sum itself.
                    let error = error + U * (size + error) + 2.0 * TINY;
                    let c = f64::from(self.c.of(t)[i]);
                    y += exact * c;
                    y_size += (exact * c).abs();
                    y_error += error * c.abs();
                    *h = if self.narrow {
                        let kept = exact.clamp(-F16_MAX, F16_MAX);
                        Bound { exact: kept, error: error + (kept.abs() + error) / 2048.0 + 2f64.powi(-25) }
                    } else {
                        Bound { exact, error }
                    };
                }
                let y_error = y_error + (n + 1) as f64 * (U * (y_size + y_error) * 1.001 + TINY);
                let error = gate.abs() * y_error + 7.8 * U * 1.001 * (gate * y).abs();
                bounds.push(Bound { exact: gate * y, error: error + 8.0 * U * y_error + TINY });
            }
        }
        bounds.extend(self.in_lanes(&state));
        bounds
    }
}
