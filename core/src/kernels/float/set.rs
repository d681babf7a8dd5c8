//! The trait of a set of kernels, and how one is made from the bodies for an instruction set.

use core::ops::Range;

use super::operands::{Input, Scale, ScanInput, SsmState};
use crate::format::MatrixShape;

/// The kernels of one instruction set.
///
/// Activations lie as `[d/16][T][16]`; weights are panels as packed (`docs/format.md`). Slices whose lengths don't fit
/// each other are worked on as far as the shortest goes.
pub trait Kernels: Sync {
    /// The instruction set's name.
    fn name(&self) -> &'static str;

    /// `inv[i] = 1 / sqrt(mean(x^2) + eps)` for tokens `first..first + inv.len()` of `tokens`, over `n` elements.
    fn rms_inv(&self, x: &[f32], tokens: usize, first: usize, n: u32, eps: f32, inv: &mut [f32]);

    /// `y = x inv w` for some panels; `inv` has an element a token, `weight` is `[panels][16]` f32.
    fn normalize(&self, x: &[f32], weight: &[u8], inv: &[f32], y: &mut [f32]);

    /// `x = x inv` for some panels.
    fn rescale(&self, x: &mut [f32], inv: &[f32]);

    /// Quantizes some groups of 32 to int8, for a range of the `tokens` tokens: `x` as `[2 groups][T][16]`, `q` as
    /// `[groups][range][32]`, `scales` as `[groups][range]`. False if any element is infinite or NaN.
    fn quantize(
        &self,
        tokens: usize,
        range: Range<usize>,
        x: &[f32],
        q: &mut [i8],
        scales: &mut [Scale],
    ) -> bool;

    /// `y = W x + bias` for some panels of 16 rows, `y` as `[panels][T][16]`, all as stored: without the exponents that rows
    /// may have.
    fn matmul(&self, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]);

    /// Depthwise causal convolution over `d_conv` tokens and silu, for some panels of channels.
    ///
    /// Of the `tokens` tokens only those of `range` take part, consecutive ones of one sequence. `state` is
    /// `[panels][d_conv - 1][16]`, the sequence's last inputs, oldest first.
    fn conv_silu(
        &self,
        d_conv: usize,
        tokens: usize,
        range: Range<usize>,
        panels: &[u8],
        state: &mut [f32],
        x: &[f32],
        u: &mut [f32],
    );

    /// Selective scan with softplus of `dt` before, `D u` and the gate `silu(z)` after, for some panels of channels and the
    /// tokens of `input.range`.
    ///
    /// `h = exp(dt A) h + dt u B`, `y = C h + D u` (Mamba, Gu and Dao 2023, equation 2); `y silu(z)` replaces `u`.
    fn scan(
        &self,
        panels: &[u8],
        state: SsmState<'_>,
        input: &ScanInput<'_>,
        dt: &[f32],
        z: &[f32],
        u: &mut [f32],
    );

    /// `x += y`. False if any sum is infinite or NaN.
    fn add(&self, x: &mut [f32], y: &[f32]) -> bool;

    /// Whether every element is finite.
    fn is_finite(&self, x: &[f32]) -> bool;
}

/// Implements [`Kernels`] for a token by compiling every body with the instruction set's features.
macro_rules! instantiate {
    ($isa:ty $(, #[$features:meta])?) => {
        instantiate!($isa, [$(#[$features])?], matmul::matmul, scan::scan);
    };
    // With a matrix product and a scan of its own.
    ($isa:ty, $features:tt, $($matmul:ident)::+, $($scan:ident)::+) => {
        impl $crate::kernels::float::set::Kernels for $isa {
            fn name(&self) -> &'static str {
                <$isa as $crate::kernels::float::isa::Isa>::NAME
            }
            instantiate!(@method $isa, $features, elementwise::rms_inv,
                rms_inv(x: &[f32], tokens: usize, first: usize, n: u32, eps: f32, inv: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::normalize,
                normalize(x: &[f32], weight: &[u8], inv: &[f32], y: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::rescale,
                rescale(x: &mut [f32], inv: &[f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::quantize,
                quantize(tokens: usize, range: core::ops::Range<usize>, x: &[f32], q: &mut [i8],
                    scales: &mut [$crate::kernels::float::operands::Scale]) -> bool);
            instantiate!(@method $isa, $features, $($matmul)::+,
                matmul(shape: &$crate::format::MatrixShape, panels: &[u8], x: &$crate::kernels::float::operands::Input<'_>,
                    y: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::conv_silu,
                conv_silu(d_conv: usize, tokens: usize, range: core::ops::Range<usize>, panels: &[u8],
                    state: &mut [f32], x: &[f32], u: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, $($scan)::+,
                scan(panels: &[u8], state: $crate::kernels::float::operands::SsmState<'_>, input: &$crate::kernels::float::operands::ScanInput<'_>,
                    dt: &[f32], z: &[f32], u: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::add,
                add(x: &mut [f32], y: &[f32]) -> bool);
            instantiate!(@method $isa, $features, elementwise::is_finite,
                is_finite(x: &[f32]) -> bool);
        }
    };
    (@method $isa:ty, [$($features:tt)*], $($body:ident)::+,
     $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty) => {
        fn $name(&self, $($arg: $ty),*) -> $ret {
            $($features)*
            fn with(isa: $isa, $($arg: $ty),*) -> $ret {
                $crate::kernels::float::$($body)::+(isa, $($arg),*)
            }
            // SAFETY: the token exists only where the CPU has these features.
            #[allow(unused_unsafe)]
            unsafe {
                with(*self, $($arg),*)
            }
        }
    };
}
pub(crate) use instantiate;
