//! Kernels that keep a copy of what the large matrices of a layer are multiplied with.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use elapid_core::format::{Layout, MatrixShape, Part, Section};
use elapid_core::kernels::{Input, Kernels, Scale, ScanInput, SsmState};
use elapid_core::source::{LayerSource, SourceError};

/// The matrices that are watched, in the order in which they are used.
const MATRICES: [Part; 2] = [Part::InProj, Part::OutProj];
/// No matrix is about to be used.
const NONE: usize = usize::MAX;

/// The kernels of some instruction set, watched.
///
/// A kernel does not know which matrix it multiplies; the source that gives the matrix does. So a [`TapSource`] announces
/// each matrix, and the first product after that is the one whose input is copied.
pub(super) struct Tap<'k> {
    kernels: &'k dyn Kernels,
    announced: AtomicUsize,
    inputs: Mutex<[Vec<f32>; 2]>,
}

impl<'k> Tap<'k> {
    pub(super) fn new(kernels: &'k dyn Kernels) -> Self {
        Self { kernels, announced: AtomicUsize::new(NONE), inputs: Mutex::default() }
    }

    /// What the matrices of the last layer were multiplied with, `[cols/16][T][16]` each.
    pub(super) fn take(&self) -> [Vec<f32>; 2] {
        std::mem::take(&mut *self.inputs.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Kernels for Tap<'_> {
    fn name(&self) -> &'static str {
        self.kernels.name()
    }
    fn rms_inv(&self, x: &[f32], tokens: usize, first: usize, n: u32, eps: f32, inv: &mut [f32]) {
        self.kernels.rms_inv(x, tokens, first, n, eps, inv);
    }
    fn normalize(&self, x: &[f32], weight: &[u8], inv: &[f32], y: &mut [f32]) {
        self.kernels.normalize(x, weight, inv, y);
    }
    fn rescale(&self, x: &mut [f32], inv: &[f32]) {
        self.kernels.rescale(x, inv);
    }
    fn quantize(
        &self,
        tokens: usize,
        range: Range<usize>,
        x: &[f32],
        q: &mut [i8],
        scales: &mut [Scale],
    ) -> bool {
        self.kernels.quantize(tokens, range, x, q, scales)
    }
    fn matmul(&self, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
        let matrix = self.announced.swap(NONE, Ordering::Relaxed);
        if matrix != NONE {
            let mut inputs = self.inputs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(input) = inputs.get_mut(matrix) {
                *input = x.x.to_vec();
            }
        }
        self.kernels.matmul(shape, panels, x, y);
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
        self.kernels.conv_silu(d_conv, tokens, range, panels, state, x, u);
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
        self.kernels.scan(panels, state, input, dt, z, u);
    }
    fn add(&self, x: &mut [f32], y: &[f32]) -> bool {
        self.kernels.add(x, y)
    }
    fn is_finite(&self, x: &[f32]) -> bool {
        self.kernels.is_finite(x)
    }
}

/// A source that announces each matrix of a layer to a [`Tap`].
pub(super) struct TapSource<'t, 'k, S> {
    pub(super) source: S,
    pub(super) layout: &'t Layout,
    pub(super) tap: &'t Tap<'k>,
}

impl<S: LayerSource> LayerSource for TapSource<'_, '_, S> {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        let begins = |part: &Part| self.layout.part(*part).first_block == blocks.start;
        if let Some(matrix) = MATRICES.iter().position(begins) {
            self.tap.announced.store(matrix, Ordering::Relaxed);
        }
        self.source.borrow(section, blocks)
    }
}
