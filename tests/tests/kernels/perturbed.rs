//! Kernels that are wrong on purpose.

use core::ops::Range;

use elapid_core::format::MatrixShape;
use elapid_core::kernels::{Input, Kernels, Scalar, Scale, ScanInput, SsmState};

/// The portable kernels, but for the last result of every kernel.
pub struct Perturbed(fn(f32) -> f32);

impl Perturbed {
    /// Right after all.
    pub fn none() -> Self {
        Self(|x| x)
    }
    /// Wrong in the last bit.
    pub fn one_bit() -> Self {
        Self(|x| f32::from_bits(x.to_bits() ^ 1))
    }
    /// Wrong by a thousandth.
    pub fn a_thousandth() -> Self {
        Self(|x| x * 1.001)
    }

    fn last(&self, x: &mut [f32]) {
        if let Some(x) = x.last_mut() {
            *x = (self.0)(*x);
        }
    }
}

impl Kernels for Perturbed {
    fn name(&self) -> &'static str {
        "perturbed"
    }
    fn rms_inv(&self, x: &[f32], tokens: usize, first: usize, n: u32, eps: f32, inv: &mut [f32]) {
        Scalar.rms_inv(x, tokens, first, n, eps, inv);
        self.last(inv);
    }
    fn normalize(&self, x: &[f32], weight: &[u8], inv: &[f32], y: &mut [f32]) {
        Scalar.normalize(x, weight, inv, y);
        self.last(y);
    }
    fn rescale(&self, x: &mut [f32], inv: &[f32]) {
        Scalar.rescale(x, inv);
        self.last(x);
    }
    fn quantize(
        &self,
        tokens: usize,
        range: Range<usize>,
        x: &[f32],
        q: &mut [i8],
        scales: &mut [Scale],
    ) -> bool {
        let finite = Scalar.quantize(tokens, range, x, q, scales);
        if let Some(last) = scales.last_mut() {
            last.scale = (self.0)(last.scale);
        }
        finite
    }
    fn matmul(&self, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
        Scalar.matmul(shape, panels, x, y);
        self.last(y);
    }
    fn conv_silu(
        &self,
        d_conv: usize,
        tokens: usize,
        range: Range<usize>,
        panels: &[u8],
        state: &mut [f32],
        x: &[f32],
        u: &mut [f32],
    ) {
        Scalar.conv_silu(d_conv, tokens, range, panels, state, x, u);
        self.last(u);
    }
    fn scan(
        &self,
        panels: &[u8],
        state: SsmState<'_>,
        input: &ScanInput<'_>,
        dt: &[f32],
        z: &[f32],
        u: &mut [f32],
    ) {
        Scalar.scan(panels, state, input, dt, z, u);
        self.last(u);
    }
    fn add(&self, x: &mut [f32], y: &[f32]) -> bool {
        let finite = Scalar.add(x, y);
        self.last(x);
        finite
    }
    fn is_finite(&self, x: &[f32]) -> bool {
        Scalar.is_finite(x)
    }
}
