//! Sums of products of activations: how much an error in one weight of a row shows, and together with which others.

use elapid_core::format::{MatrixShape, Quant};
use elapid_core::kernels::{Input, Kernels, LANES, Team, share, split};

/// `sum over tokens of x x^T`, as `[n/16][n][16]`.
pub(crate) struct Gram {
    n: usize,
    sums: Vec<f32>,
}

impl Gram {
    /// Of vectors of `n` elements, a multiple of 16; nothing is summed yet.
    pub fn new(n: usize) -> Self {
        Self { n, sums: vec![0.0; n * n] }
    }

    /// Elements of a vector.
    pub fn len(&self) -> usize {
        self.n
    }

    /// The sum of `x[row] x[col]`.
    pub fn at(&self, row: usize, col: usize) -> f32 {
        self.sums[(row / LANES * self.n + col) * LANES + row % LANES]
    }

    /// Adds `tokens` vectors, `x` as `[n/16][tokens][16]`; `tokens` is a multiple of 32, at most
    /// [`MatrixShape::MAX_COLS`].
    ///
    /// A panel of an f32 matrix lies as a panel of activations does. So the activations are multiplied as if they were a
    /// matrix of n rows and a column for each token, with their own transpose: by the kernels, which give the same bits on
    /// every machine.
    pub(crate) fn add(&mut self, kernels: &dyn Kernels, team: &dyn Team, x: &[f32], tokens: usize) {
        let n = self.n;
        let mut transposed = vec![0.0; x.len()];
        for (p, panel) in x.chunks_exact(tokens * LANES).enumerate() {
            for (t, lanes) in panel.chunks_exact(LANES).enumerate() {
                for (c, &x) in lanes.iter().enumerate() {
                    transposed[(t / LANES * n + p * LANES + c) * LANES + t % LANES] = x;
                }
            }
        }
        let input = Input { tokens: n, x: &transposed, q: &[], scales: &[] };
        let shape = MatrixShape::new(LANES as u32, tokens as u32, Quant::F32, false)
            .expect("a piece of text has fewer tokens than a matrix may have columns");
        share(team, n / LANES, 4 * n * tokens * LANES, split(&mut self.sums, n * LANES), |range, sums| {
            let mut y = vec![0.0; n * LANES];
            let panels = x.chunks_exact(tokens * LANES).skip(range.start);
            for (panel, sums) in panels.zip(sums.chunks_exact_mut(n * LANES)) {
                let bytes: Vec<u8> = panel.iter().flat_map(|x| x.to_le_bytes()).collect();
                kernels.matmul(&shape, &bytes, &input, &mut y);
                for (sum, y) in sums.iter_mut().zip(&y) {
                    *sum += y;
                }
            }
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use elapid_core::kernels::{Scalar, Solo};

    /// Activations `[panels][tokens][16]` that go together: each is mostly the one before it, and some are large.
    pub(crate) fn activations(panels: usize, tokens: usize) -> Vec<f32> {
        let mut x = vec![0.0; panels * tokens * LANES];
        let mut seed = 1u64;
        for t in 0..tokens {
            let mut last = 0.0;
            for c in 0..panels * LANES {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let noise = (seed >> 40) as f32 / (1 << 24) as f32 - 0.5;
                last = 0.8 * last + noise;
                let size = if c % 11 == 0 { 4.0 } else { 1.0 };
                x[(c / LANES * tokens + t) * LANES + c % LANES] = last * size;
            }
        }
        x
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        let (n, tokens) = (48, 64);
        let x = activations(n / LANES, tokens);
        let at = |t: usize, c: usize| f64::from(x[(c / LANES * tokens + t) * LANES + c % LANES]);
        let mut gram = Gram::new(n);
        gram.add(&Scalar, &Solo, &x, tokens);
        gram.add(elapid_core::kernels::detect(), &crate::threads::Threads(2), &x, tokens);
        for row in 0..n {
            for col in 0..n {
                let wanted: f64 = 2.0 * (0..tokens).map(|t| at(t, row) * at(t, col)).sum::<f64>();
                let found = f64::from(gram.at(row, col));
                assert!((found - wanted).abs() < 1e-4 * (1.0 + wanted.abs()), "{row}, {col}");
            }
        }
    }
}
