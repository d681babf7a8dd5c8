//! Cases of norms, quantizing, the convolution and sums.

use elapid_core::kernels::{GROUP, Kernels, LANES, Scale, TOKEN_BLOCK};
use elapid_tests::oracle;

use crate::case::{Bound, Case, TINY, U, Vectors, append, bytes_of, chunks, tokens_of};
use crate::random::{Kind, Random};

struct RmsInv {
    x: Vectors,
    n: u32,
    eps: f32,
}

pub fn rms_inv(random: &mut Random, kind: Kind, index: usize) -> Box<dyn Case> {
    let d = LANES * random.between(1, 20);
    let mut x = Vectors::random(random, kind, tokens_of(index), d);
    // Elements past n are padding.
    let n = d - random.between(0, LANES - 1);
    x.x.chunks_exact_mut(d).for_each(|x| x[n..].fill(0.0));
    Box::new(RmsInv { x, n: n as u32, eps: [1e-5, 1e-6, 0.0][index % 3] })
}

impl Case for RmsInv {
    fn run(&self, kernels: &dyn Kernels, chunk: usize) -> Vec<f32> {
        let mut results = Vec::new();
        for (first, tokens) in chunks(self.x.tokens(), chunk) {
            let x = self.x.panels(first, tokens);
            let mut inv = vec![f32::NAN; tokens];
            // Two members of a team, each with its own tokens.
            let (some, more) = inv.split_at_mut(tokens / 2);
            kernels.rms_inv(&x, tokens, 0, self.n, self.eps, some);
            kernels.rms_inv(&x, tokens, tokens / 2, self.n, self.eps, more);
            results.extend(inv);
        }
        results
    }

    fn bounds(&self) -> Vec<Bound> {
        let bound = |x: &[f32]| {
            let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
            let exact = (squares / f64::from(self.n) + f64::from(self.eps)).sqrt().recip();
            // Lanes, the tree that joins them, the division and eps, under the root; the root and the division.
            let roundings = (x.len() / LANES + 4 + 2) as f64 / 2.0 + 2.0;
            Bound { exact, error: exact * roundings * U * 1.001 }
        };
        self.x.x.chunks_exact(self.x.d).map(bound).collect()
    }
}

/// `x inv w`, or `x inv` without a weight.
struct Scaled {
    x: Vectors,
    inv: Vec<f32>,
    weight: Option<Vec<f32>>,
}

pub fn normalize(random: &mut Random, kind: Kind, index: usize) -> Box<dyn Case> {
    let (tokens, d) = (tokens_of(index), LANES * random.between(1, 9));
    let x = Vectors::random(random, kind, tokens, d);
    Box::new(Scaled { x, inv: random.floats(tokens, kind), weight: Some(random.floats(d, kind)) })
}

pub fn rescale(random: &mut Random, kind: Kind, index: usize) -> Box<dyn Case> {
    let (tokens, d) = (tokens_of(index), LANES * random.between(1, 9));
    let x = Vectors::random(random, kind, tokens, d);
    Box::new(Scaled { x, inv: random.floats(tokens, kind), weight: None })
}

impl Case for Scaled {
    fn run(&self, kernels: &dyn Kernels, chunk: usize) -> Vec<f32> {
        let mut results = Vec::new();
        for (first, tokens) in chunks(self.x.tokens(), chunk) {
            let mut x = self.x.panels(first, tokens);
            let inv = &self.inv[first..][..tokens];
            if let Some(weight) = &self.weight {
                let mut y = vec![f32::NAN; x.len()];
                kernels.normalize(&x, &bytes_of(weight), inv, &mut y);
                x = y;
            } else {
                kernels.rescale(&mut x, inv);
            }
            append(&mut results, &x, tokens);
        }
        results
    }

    fn bounds(&self) -> Vec<Bound> {
        let bound = |(i, &x): (usize, &f32)| {
            let exact = f64::from(x) * f64::from(self.inv[i / self.x.d]);
            let (exact, roundings) = match &self.weight {
                Some(weight) => (exact * f64::from(weight[i % self.x.d]), 2.0),
                None => (exact, 1.0),
            };
            Bound { exact, error: exact.abs() * roundings * U * 1.001 + 4.0 * TINY }
        };
        self.x.x.iter().enumerate().map(bound).collect()
    }
}

struct Quantize {
    x: Vectors,
}

pub fn quantize(random: &mut Random, kind: Kind, index: usize) -> Box<dyn Case> {
    let d = GROUP * random.between(1, 6);
    let mut x = Vectors::random(random, kind, tokens_of(index), d);
    // Groups about the threshold below which everything is 0, on both its sides, and of multiples, where ties are.
    for (i, group) in x.x.chunks_exact_mut(GROUP).enumerate() {
        match i % 5 {
            1 => group.iter_mut().for_each(|x| *x *= 2f32.powi(-101)),
            2 => group.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 - 16.0) * 127.0 / 32.0),
            3 => {
                group.fill(2f32.powi(-102));
                group[i % GROUP] = if i % 2 == 0 { 2f32.powi(-100) } else { 2f32.powi(-100).next_down() };
            }
            _ => {}
        }
    }
    if kind == Kind::Wild && index.is_multiple_of(4) {
        let at = random.between(0, x.x.len() - 1);
        x.x[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][index / 4 % 3];
    }
    Box::new(Quantize { x })
}

impl Case for Quantize {
    fn run(&self, kernels: &dyn Kernels, chunk: usize) -> Vec<f32> {
        let groups = self.x.d / GROUP;
        let (mut results, mut finite) = (Vec::new(), true);
        for (first, tokens) in chunks(self.x.tokens(), chunk) {
            let x = self.x.panels(first, tokens);
            let mut q = vec![-128; x.len()];
            let mut scales = vec![Scale { scale: f32::NAN, sum: 0 }; tokens * groups];
            for (start, block) in chunks(tokens, TOKEN_BLOCK) {
                let range = start * groups..(start + block) * groups;
                let q = &mut q[range.start * GROUP..range.end * GROUP];
                let scales = &mut scales[range];
                finite &= kernels.quantize(tokens, start..start + block, &x, q, scales);
                for t in 0..block {
                    for group in 0..groups {
                        let q = &q[(group * block + t) * GROUP..][..GROUP];
                        let scale = scales[group * block + t];
                        results.extend(q.iter().map(|&q| f32::from(q)));
                        results.extend([scale.scale, scale.sum as f32]);
                    }
                }
            }
        }
        // What a token that is not finite was made into does not matter: the step fails.
        if finite { results } else { vec![] }
    }

    fn bounds(&self) -> Vec<Bound> {
        let group = |x: &[f32]| -> Vec<Bound> {
            let amax = x.iter().fold(0.0f64, |a, &x| a.max(f64::from(x).abs()));
            let (scale, inv) = if amax < 2f64.powi(-100) { (0.0, 0.0) } else { (amax / 127.0, 127.0 / amax) };
            let q = x.iter().map(move |&x| f64::from(x) * inv);
            let sum = q.clone().sum();
            let rounding = if scale == 0.0 { 0.0 } else { 0.5 + 127.0 * 2.0 * U };
            let sum = [
                Bound { exact: scale, error: scale * U },
                Bound { exact: sum, error: rounding * GROUP as f64 },
            ];
            q.map(|exact| Bound { exact, error: rounding }).chain(sum).collect()
        };
        self.x.x.chunks_exact(GROUP).flat_map(group).collect()
    }
}

struct ConvSilu {
    x: Vectors,
    d_conv: usize,
    /// `[d][d_conv]`, the last tap for the newest input.
    taps: Vec<f32>,
    bias: Vec<f32>,
    /// `[d][d_conv - 1]`, the last inputs, oldest first.
    state: Vec<f32>,
}

pub fn conv_silu(random: &mut Random, kind: Kind, index: usize) -> Box<dyn Case> {
    let (d, d_conv) = (LANES * random.between(1, 5), 1 + index % 5);
    Box::new(ConvSilu {
        x: Vectors::random(random, kind, tokens_of(index), d),
        d_conv,
        taps: random.floats(d * d_conv, kind),
        bias: random.floats(d, kind),
        state: random.floats(d * (d_conv - 1), kind),
    })
}

/// `[d][k]` as `[d/16][k][16]`.
fn in_lanes(x: &[f32], k: usize) -> Vec<f32> {
    let panels = x.chunks_exact((LANES * k).max(1));
    panels.flat_map(|panel| (0..LANES * k).map(move |i| panel[i % LANES * k + i / LANES])).collect()
}

impl Case for ConvSilu {
    fn run(&self, kernels: &dyn Kernels, chunk: usize) -> Vec<f32> {
        let taps = in_lanes(&self.taps, self.d_conv);
        let weights = taps.chunks_exact(LANES * self.d_conv).zip(self.bias.chunks_exact(LANES));
        let panels: Vec<u8> =
            weights.flat_map(|(taps, bias)| [bytes_of(taps), bytes_of(bias)].concat()).collect();
        let mut state = in_lanes(&self.state, self.d_conv - 1);
        let mut results = Vec::new();
        for (first, tokens) in chunks(self.x.tokens(), chunk) {
            let x = self.x.panels(first, tokens);
            let mut u = vec![f32::NAN; x.len()];
            // In two parts, as if the tokens before and after the first part were other sequences'.
            for range in [0..tokens / 2, tokens / 2..tokens] {
                kernels.conv_silu(self.d_conv, tokens, range, &panels, &mut state, &x, &mut u);
            }
            append(&mut results, &u, tokens);
        }
        results.extend(state);
        results
    }

    fn bounds(&self) -> Vec<Bound> {
        let kept = self.d_conv - 1;
        let mut bounds = Vec::new();
        let mut state: Vec<f64> = self.state.iter().map(|&x| x.into()).collect();
        let taps: Vec<f64> = self.taps.iter().map(|&x| x.into()).collect();
        for t in 0..self.x.tokens() {
            for (channel, &x) in self.x.of(t).iter().enumerate() {
                let (x, bias) = (f64::from(x), f64::from(self.bias[channel]));
                let taps = &taps[channel * self.d_conv..][..self.d_conv];
                let past = &mut state[channel * kept..][..kept];
                let size: f64 = past.iter().chain([&x]).zip(taps).map(|(x, w)| (x * w).abs()).sum();
                let sum = oracle::conv1d_step(past, x, taps, bias);
                let error = self.d_conv as f64 * U * (size + bias.abs()) * 1.001;
                let exact = oracle::silu(sum);
                // The slope of silu is at most 1.1, its own error 3.4 units in the last place.
                bounds.push(Bound { exact, error: 1.1 * error + 6.8 * U * exact.abs() + 88.0 * 1.2e-38 });
            }
        }
        let panels = state.chunks_exact((LANES * kept).max(1));
        let lanes =
            panels.flat_map(|panel| (0..LANES * kept).map(move |i| panel[i % LANES * kept + i / LANES]));
        bounds.extend(lanes.map(|exact| Bound { exact, error: 0.0 }));
        bounds
    }
}

struct Add {
    x: Vectors,
    y: Vectors,
}

pub fn add(random: &mut Random, kind: Kind, index: usize) -> Box<dyn Case> {
    let (tokens, d) = (tokens_of(index), LANES * random.between(1, 9));
    let x = Vectors::random(random, kind, tokens, d);
    Box::new(Add { x, y: Vectors::random(random, kind, tokens, d) })
}

impl Case for Add {
    fn run(&self, kernels: &dyn Kernels, chunk: usize) -> Vec<f32> {
        let (mut results, mut finite) = (Vec::new(), true);
        for (first, tokens) in chunks(self.x.tokens(), chunk) {
            let mut x = self.x.panels(first, tokens);
            let y = self.y.panels(first, tokens);
            finite &= kernels.add(&mut x, &y);
            assert_eq!(kernels.is_finite(&x), x.iter().all(|x| x.is_finite()), "{}", kernels.name());
            append(&mut results, &x, tokens);
        }
        results.push(f32::from(u8::from(finite)));
        results
    }

    fn bounds(&self) -> Vec<Bound> {
        let sums = self.x.x.iter().zip(&self.y.x).map(|(&x, &y)| f64::from(x) + f64::from(y));
        let sums = sums.map(|exact| Bound { exact, error: exact.abs() * U * 1.001 });
        sums.chain([Bound { exact: 1.0, error: 0.0 }]).collect()
    }
}
