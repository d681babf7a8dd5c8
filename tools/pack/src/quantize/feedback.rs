//! Quantizing a panel for what comes of it: integers and scales chosen together, errors made up for by later columns.
//!
//! Rounding column after column, each with what the ones before ask of it, is that of GPTQ (Frantar et al. 2022), in the
//! form of QuIP (Chee et al. 2023), which needs no inverse of H. Before it, each group's scale is searched for by rounding
//! the group with many; after it, single scales and integers are changed where that lowers the cost.

use elapid_core::kernels::{GROUP, LANES};
use half::f16;

use super::objective::Objective;
use super::range::{Range, round};

/// A column of a panel: 16 rows, which are quantized side by side.
type Lanes = [f32; LANES];

/// Times that a group's scale is fitted to its integers, and these to the scale.
const REFITS: usize = 2;
/// Times that all scales and integers are looked at again.
const PASSES: usize = 4;

/// A panel's integers and scales.
pub(super) struct Fitted {
    /// `[cols/32][16]`, each an f16.
    scales: Vec<Lanes>,
    /// `[cols][16]`.
    q: Vec<Lanes>,
}

impl Fitted {
    /// The scale and integers of group `g` of row `r`.
    pub(super) fn group(&self, g: usize, r: usize) -> (f16, [i8; GROUP]) {
        let q = std::array::from_fn(|k| self.q[g * GROUP + k][r] as i8);
        (f16::from_f32(self.scales[g][r]), q)
    }
}

/// A group of 16 rows, rounded.
struct Trial {
    scale: Lanes,
    q: [Lanes; GROUP],
    cost: Lanes,
}

impl Trial {
    /// Takes over the rows in which `other` costs less.
    fn improve(&mut self, other: &Self) {
        for r in 0..LANES {
            if other.cost[r] < self.cost[r] {
                (self.cost[r], self.scale[r]) = (other.cost[r], other.scale[r]);
                for (q, other) in self.q.iter_mut().zip(&other.q) {
                    q[r] = other[r];
                }
            }
        }
    }
}

/// `y += a x`.
#[inline(always)]
fn add_scaled(y: &mut Lanes, a: f32, x: &Lanes) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// `y[k] += a[k] x` for all k.
fn add_outer(y: &mut [Lanes], a: &[f32], x: &Lanes) {
    for (y, a) in y.iter_mut().zip(a) {
        add_scaled(y, *a, x);
    }
}

/// A group of columns and what is wanted of it.
struct Columns<'a> {
    objective: &'a Objective,
    first: usize,
    w: &'a [Lanes; GROUP],
    /// The weights with what earlier groups ask for.
    wanted: [Lanes; GROUP],
}

impl Columns<'_> {
    /// U within the group, from column `first + k` on to later ones.
    fn later(&self, k: usize) -> &[f32] {
        &self.objective.u(self.first + k)[self.first + k + 1..self.first + GROUP]
    }

    /// Rounds column after column with one scale a row.
    fn round(&self, range: &Range, scale: Lanes) -> Trial {
        let inverse = scale.map(|s| if s == 0.0 { 0.0 } else { 1.0 / s });
        let mut trial = Trial { scale, q: [[0.0; LANES]; GROUP], cost: [0.0; LANES] };
        let mut wanted = self.wanted;
        for k in 0..GROUP {
            let d = self.objective.d(self.first + k);
            let mut error = [0.0; LANES];
            for r in 0..LANES {
                let q = round((wanted[k][r] * inverse[r]).clamp(range.low, range.high));
                let missed = wanted[k][r] - q * scale[r];
                trial.q[k][r] = q;
                trial.cost[r] += d * missed * missed;
                error[r] = self.w[k][r] - q * scale[r];
            }
            add_outer(&mut wanted[k + 1..], self.later(k), &error);
        }
        trial
    }

    /// The best scale for the integers of a trial: column k misses `alpha_k - scale beta_k`.
    fn refit(&self, trial: &Trial) -> Lanes {
        let (mut alpha, mut beta) = (self.wanted, trial.q);
        let (mut top, mut bottom) = ([0.0; LANES], [0.0; LANES]);
        for k in 0..GROUP {
            let d = self.objective.d(self.first + k);
            for r in 0..LANES {
                top[r] += d * alpha[k][r] * beta[k][r];
                bottom[r] += d * beta[k][r] * beta[k][r];
            }
            add_outer(&mut alpha[k + 1..], self.later(k), &self.w[k]);
            add_outer(&mut beta[k + 1..], self.later(k), &trial.q[k]);
        }
        std::array::from_fn(|r| if bottom[r] > 0.0 { top[r] / bottom[r] } else { trial.scale[r] })
    }

    /// The best of many scales.
    fn search(&self, range: &Range) -> Trial {
        let mut extreme = [0.0f32; LANES];
        for column in &self.wanted {
            for (extreme, x) in extreme.iter_mut().zip(column) {
                *extreme = if x.abs() > extreme.abs() { *x } else { *extreme };
            }
        }
        let ends = if range.is_lopsided() { &[range.low, -range.low][..] } else { &[range.low] };
        let mut best = self.round(range, range.scales(extreme.map(|x| x / range.low)));
        for factor in range.tried {
            for end in ends {
                best.improve(&self.round(range, range.scales(extreme.map(|x| x / (end * factor)))));
            }
        }
        for _ in 0..REFITS {
            best.improve(&self.round(range, range.scales(self.refit(&best))));
        }
        best
    }
}

impl Range {
    /// Each as an f16 that a scale may be.
    fn scales(&self, scale: Lanes) -> Lanes {
        scale.map(|s| f16::from_f32(s.clamp(-self.most, self.most)).to_f32())
    }

    /// Quantizes a panel, `[cols][16]`.
    pub(super) fn fit_panel(&self, objective: &Objective, w: &[Lanes]) -> Fitted {
        let mut wanted = w.to_vec();
        let mut fitted = Fitted { scales: Vec::new(), q: Vec::new() };
        for (g, w) in w.as_chunks::<GROUP>().0.iter().enumerate() {
            let first = g * GROUP;
            let (before, after) = wanted.split_at_mut(first + GROUP);
            let Some(of_group) = before.last_chunk::<GROUP>() else { break };
            let best = Columns { objective, first, w, wanted: *of_group }.search(self);
            for k in 0..GROUP {
                let error = std::array::from_fn(|r| w[k][r] - best.q[k][r] * best.scale[r]);
                add_outer(after, &objective.u(first + k)[first + GROUP..], &error);
            }
            fitted.scales.push(best.scale);
            fitted.q.extend_from_slice(&best.q);
        }
        let mut descent = Descent::new(objective, w, fitted);
        for _ in 0..PASSES {
            if !descent.pass(self) {
                break;
            }
        }
        descent.fitted
    }
}

/// Lowers the cost by changes of one scale or one integer of a row at a time.
struct Descent<'a> {
    objective: &'a Objective,
    fitted: Fitted,
    /// `[cols][16]`, H e: half of what the cost falls by for each unit that the weights stored grow by.
    slope: Vec<Lanes>,
}

impl<'a> Descent<'a> {
    fn new(objective: &'a Objective, w: &[Lanes], fitted: Fitted) -> Self {
        let mut slope = vec![[0.0; LANES]; w.len()];
        for (j, w) in w.iter().enumerate() {
            let (q, scale) = (&fitted.q[j], &fitted.scales[j / GROUP]);
            let error = std::array::from_fn(|r| w[r] - q[r] * scale[r]);
            add_outer(&mut slope, objective.h(j), &error);
        }
        Self { objective, fitted, slope }
    }

    /// Looks at everything once. Returns whether anything changed.
    fn pass(&mut self, range: &Range) -> bool {
        let mut changed = false;
        for g in 0..self.fitted.scales.len() {
            changed |= self.rescale(range, g);
            for k in g * GROUP..(g + 1) * GROUP {
                changed |= self.step(range, k);
            }
        }
        changed
    }

    /// Column `k` as stored grows by `delta`.
    fn grow(&mut self, k: usize, delta: &Lanes) {
        add_outer(&mut self.slope, self.objective.h(k), &delta.map(|x| -x));
    }

    /// The scales of group `g`: the cost changes by `delta^2 q^T H q - 2 delta q^T H e`.
    fn rescale(&mut self, range: &Range, g: usize) -> bool {
        let first = g * GROUP;
        let (mut slope, mut curve) = ([0.0; LANES], [0.0; LANES]);
        for k in first..first + GROUP {
            let mut hq = [0.0; LANES];
            for (h, q) in self.objective.h(k)[first..].iter().zip(&self.fitted.q[first..first + GROUP]) {
                add_scaled(&mut hq, *h, q);
            }
            for r in 0..LANES {
                slope[r] += self.fitted.q[k][r] * self.slope[k][r];
                curve[r] += self.fitted.q[k][r] * hq[r];
            }
        }
        let old = self.fitted.scales[g];
        let best = range.scales(std::array::from_fn(|r| {
            if curve[r] > 0.0 { old[r] + slope[r] / curve[r] } else { old[r] }
        }));
        // Rounded to f16 it may be worse than what is there.
        let delta: Lanes = std::array::from_fn(|r| {
            let delta = best[r] - old[r];
            if delta * delta * curve[r] < 2.0 * delta * slope[r] { delta } else { 0.0 }
        });
        if delta == [0.0; LANES] {
            return false;
        }
        self.fitted.scales[g] = std::array::from_fn(|r| old[r] + delta[r]);
        for k in first..first + GROUP {
            let q = self.fitted.q[k];
            self.grow(k, &std::array::from_fn(|r| delta[r] * q[r]));
        }
        true
    }

    /// The integers of column `k`: the cost is least where the slope is 0.
    fn step(&mut self, range: &Range, k: usize) -> bool {
        let (scale, curve) = (self.fitted.scales[k / GROUP], self.objective.h(k)[k]);
        let old = self.fitted.q[k];
        let new: Lanes = std::array::from_fn(|r| {
            let wanted = old[r] + self.slope[k][r] / (curve * scale[r]);
            if scale[r] == 0.0 { old[r] } else { round(wanted.clamp(range.low, range.high)) }
        });
        if new == old {
            return false;
        }
        self.fitted.q[k] = new;
        self.grow(k, &std::array::from_fn(|r| (new[r] - old[r]) * scale[r]));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::gram::{Gram, tests::activations};
    use super::super::range::{Q3, Q4, Q5};
    use super::*;
    use elapid_core::kernels::{Scalar, Solo};

    const COLUMNS: usize = 128;

    fn weights() -> Vec<Lanes> {
        let noise = activations(COLUMNS / LANES, 32);
        noise.as_chunks::<LANES>().0.iter().take(COLUMNS).map(|x| x.map(|x| 0.03 * x)).collect()
    }

    fn objective(tokens: usize) -> Objective {
        let mut gram = Gram::new(COLUMNS);
        if tokens > 0 {
            gram.add(&Scalar, &Solo, &activations(COLUMNS / LANES, tokens), tokens);
        }
        Objective::new(&gram, 0.01, &Solo)
    }

    /// `e^T H e` of all rows, in f64 from H itself.
    fn cost(objective: &Objective, w: &[Lanes], stored: impl Fn(usize, usize) -> f32) -> f64 {
        let error = |r: usize, c: usize| f64::from(w[c][r] - stored(r, c));
        (0..LANES)
            .map(|r| {
                let row = |j: usize| {
                    let h = objective.h(j);
                    (0..COLUMNS).map(|k| f64::from(h[k]) * error(r, k)).sum::<f64>()
                };
                (0..COLUMNS).map(|j| error(r, j) * row(j)).sum::<f64>()
            })
            .sum()
    }

    fn fitted(range: &Range, objective: &Objective, w: &[Lanes]) -> f64 {
        let fitted = range.fit_panel(objective, w);
        cost(objective, w, |r, c| {
            let (scale, q) = fitted.group(c / GROUP, r);
            assert!((range.low..=range.high).contains(&f32::from(q[c % GROUP])));
            scale.to_f32() * f32::from(q[c % GROUP])
        })
    }

    fn plain(range: &Range, objective: &Objective, w: &[Lanes]) -> f64 {
        let groups: Vec<Vec<(f16, [i8; GROUP])>> = (0..LANES)
            .map(|r| {
                let group = |g: usize| range.fit(&std::array::from_fn(|k| w[g * GROUP + k][r]));
                (0..COLUMNS / GROUP).map(group).collect()
            })
            .collect();
        cost(objective, w, |r, c| {
            let (scale, q) = groups[r][c / GROUP];
            scale.to_f32() * f32::from(q[c % GROUP])
        })
    }

    #[test]
    fn what_comes_of_the_weights_is_nearer() {
        let (objective, w) = (objective(512), weights());
        for range in [&Q5, &Q4, &Q3] {
            let (fitted, plain) = (fitted(range, &objective, &w), plain(range, &objective, &w));
            println!("{fitted:.5} with the objective, {plain:.5} without");
            assert!(fitted < 0.6 * plain, "{fitted} beside {plain}");
        }
    }

    /// Where nothing goes together, a weight is best stored for itself: another search ends as near, to half a percent.
    #[test]
    fn without_activations_it_is_the_plain_search() {
        let (objective, w) = (objective(0), weights());
        for range in [&Q5, &Q4, &Q3] {
            let (fitted, plain) = (fitted(range, &objective, &w), plain(range, &objective, &w));
            assert!(fitted < 1.005 * plain && fitted > 0.9 * plain, "{fitted} beside {plain}");
        }
    }
}
