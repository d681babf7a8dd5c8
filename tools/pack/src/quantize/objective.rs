//! The error that quantizing is to keep small.

use elapid_core::kernels::{Team, share, split};

use super::gram::Gram;

/// What an error `e` in a row of weights costs: `e^T H e`, where H is the mean of `x x^T` over activations.
///
/// H is kept as `U D U^T` with U upper triangular and ones in its diagonal, so that the cost is
/// `sum over k of D_k (e_k + sum over j < k of U_jk e_j)^2`: a sum over columns in their order, in which what earlier
/// columns did wrong asks a later one to make up for it.
pub struct Objective {
    n: usize,
    /// `[n][n]`, H itself.
    h: Vec<f32>,
    /// `[n][n]`, the part right of the diagonal used.
    u: Vec<f32>,
    /// `[n]`.
    d: Vec<f32>,
}

impl Objective {
    /// From sums of activations, with `damping` times their mean diagonal added to the diagonal: what was never active in the
    /// text is then still stored well.
    pub(crate) fn new(gram: &Gram, mut damping: f64, team: &dyn Team) -> Self {
        let n = gram.len();
        let mean = (0..n).map(|i| f64::from(gram.at(i, i))).sum::<f64>() / n as f64;
        let mean = if mean > 0.0 { mean } else { 1.0 };
        loop {
            // Scaled to a mean of 1, so that nothing leaves the range of floats.
            let mut h = vec![0.0f64; n * n];
            for (i, row) in h.chunks_exact_mut(n).enumerate() {
                for (j, h) in row.iter_mut().enumerate() {
                    *h = f64::from(gram.at(i.max(j), i.min(j))) / mean;
                }
                row[i] += damping;
            }
            let kept = h.iter().map(|h| *h as f32).collect();
            if let Some(d) = factor(&mut h, n, team) {
                let u = h.iter().map(|u| *u as f32).collect();
                return Self { n, h: kept, u, d: d.iter().map(|d| *d as f32).collect() };
            }
            // H is positive definite but for rounding; more damping outweighs that.
            damping = 10.0 * damping + 1e-6;
        }
    }

    /// `D_k`.
    pub fn d(&self, k: usize) -> f32 {
        self.d[k]
    }
    /// `U_jk` for all k; those with `k > j` count.
    pub fn u(&self, j: usize) -> &[f32] {
        &self.u[j * self.n..][..self.n]
    }
    /// Row `j` of H.
    pub fn h(&self, j: usize) -> &[f32] {
        &self.h[j * self.n..][..self.n]
    }
}

/// `a = U D U^T` in place, from the last column to the first; `None` if a pivot is not positive.
fn factor(a: &mut [f64], n: usize, team: &dyn Team) -> Option<Vec<f64>> {
    let mut d = vec![0.0; n];
    // Row k of U times D, from k on.
    let mut scaled = vec![0.0; n];
    for k in (0..n).rev() {
        let row = &a[k * n..][..n];
        let mut pivot = row[k];
        for m in k + 1..n {
            scaled[m] = row[m] * d[m];
            pivot -= row[m] * scaled[m];
        }
        if !(pivot > 1e-9 && pivot.is_finite()) {
            return None;
        }
        d[k] = pivot;
        let (above, _) = a.split_at_mut(k * n);
        share(team, k, 8 * (n - k), split(above, n), |_, rows| {
            for row in rows.chunks_exact_mut(n) {
                row[k] = (row[k] - dot(&row[k + 1..], &scaled[k + 1..])) / pivot;
            }
        });
    }
    Some(d)
}

/// A dot product in eight lanes, which the compiler keeps in registers.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::gram::tests::activations;
    use elapid_core::kernels::{LANES, Scalar, Solo};

    #[test]
    fn factors_give_the_matrix_back() {
        let (n, tokens) = (64, 96);
        let mut gram = Gram::new(n);
        gram.add(&Scalar, &Solo, &activations(n / LANES, tokens), tokens);
        for team in [&Solo as &dyn Team, &crate::threads::Threads(3)] {
            let o = Objective::new(&gram, 0.01, team);
            let u = |j: usize, k: usize| if j == k { 1.0 } else { f64::from(o.u(j)[k]) };
            for i in 0..n {
                for j in i..n {
                    let found: f64 = (j..n).map(|k| u(i, k) * f64::from(o.d(k)) * u(j, k)).sum();
                    let wanted = f64::from(o.h(i)[j]);
                    assert!((found - wanted).abs() < 1e-5, "{i}, {j}: {found}, not {wanted}");
                }
            }
            let trace: f64 = (0..n).map(|i| f64::from(o.h(i)[i])).sum();
            assert!((trace / n as f64 - 1.01).abs() < 1e-6);
        }
    }

    #[test]
    fn nothing_active_is_no_reason_to_fail() {
        let o = Objective::new(&Gram::new(32), 0.01, &Solo);
        assert!((0..32).all(|k| (o.d(k) - 0.01).abs() < 1e-9 && o.u(k)[k + 1..].iter().all(|u| *u == 0.0)));
    }
}
