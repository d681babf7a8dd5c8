//! The inner loops of the float path, for each instruction set, behind one trait.
//!
//! [`Kernels`] is what the step calls: each method works on whole panels and is coarse enough for dynamic dispatch.
//! The bodies are written once, over [`Isa`]; `instantiate!` compiles them with an instruction set's features.
//! Every instance gives the bits of [`Scalar`].

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(all(target_arch = "arm", feature = "dsp", feature = "fpu"))]
mod arm;
mod elementwise;
mod isa;
mod matmul;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{Neon, NeonDot};
#[cfg(all(target_arch = "arm", feature = "dsp", feature = "fpu"))]
pub use arm::CortexM;
pub use isa::{Isa, TOKEN_BLOCK};
pub use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Avx2, Avx512, AvxVnni};

use core::ops::Range;

use crate::format::MatrixShape;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
use crate::numbers::GROUP;
use crate::numbers::LANES;

/// Scale of a group of 32 activations, and the sum of its integers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Scale {
    /// What one step of the integers stands for.
    pub scale: f32,
    /// Sum of the group's 32 integers.
    pub sum: i32,
}

/// What a matrix is multiplied with: a chunk of tokens, as the matrix' quantization wants it.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Tokens in the chunk, `T`.
    pub tokens: usize,
    /// `[cols/16][T][16]`, read by f32 and f16 matrices.
    pub x: &'a [f32],
    /// Within +-127, read by matrices of integers: blocks of [`TOKEN_BLOCK`] tokens one after the other, the last one
    /// perhaps with fewer, each of `B` tokens as `[cols/32][B][32]`.
    pub q: &'a [i8],
    /// Blocks of `[cols/32][B]`, read by matrices of integers.
    pub scales: &'a [Scale],
}

impl Input<'_> {
    /// Whether the integers of all tokens are there, with their scales, for a matrix.
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    #[inline(always)]
    pub(crate) fn is_whole(&self, shape: &MatrixShape) -> bool {
        let groups = (shape.cols() as usize / GROUP).saturating_mul(self.tokens);
        self.q.len() / GROUP >= groups && self.scales.len() >= groups
    }
}

/// The recurrent state of some channels, `[channels/16][d_state][16]`.
#[derive(Debug)]
pub enum SsmState<'a> {
    /// Kept as f32.
    F32(&'a mut [f32]),
    /// Kept as f16 (its bits), rounded after every token and saturating.
    F16(&'a mut [u16]),
}

impl SsmState<'_> {
    /// The same, for less long.
    pub(crate) fn lend(&mut self) -> SsmState<'_> {
        match self {
            Self::F32(state) => SsmState::F32(state),
            Self::F16(state) => SsmState::F16(state),
        }
    }

    /// No channels, of the same kind.
    pub(crate) fn none(&self) -> SsmState<'static> {
        match self {
            Self::F32(_) => SsmState::F32(&mut []),
            Self::F16(_) => SsmState::F16(&mut []),
        }
    }
}

/// What all channels of a scan share.
#[derive(Clone, Debug)]
pub struct ScanInput<'a> {
    /// Tokens in the chunk, `T`.
    pub tokens: usize,
    /// The tokens of the sequence whose state is given.
    pub range: Range<usize>,
    /// States of a channel, `N`.
    pub d_state: usize,
    /// `[N/16][T][16]`, the last panel padded.
    pub b: &'a [f32],
    /// `[N/16][T][16]`, the last panel padded.
    pub c: &'a [f32],
}

impl ScanInput<'_> {
    /// The tokens of the range for which B and C are there, however many a kernel takes at a time.
    pub(crate) fn given(&self) -> Range<usize> {
        let before_last = self.d_state.div_ceil(LANES).saturating_sub(1).saturating_mul(self.tokens);
        let given = |x: &[f32]| (x.len() / LANES).saturating_sub(before_last);
        self.range.start..self.range.end.min(self.tokens).min(given(self.b)).min(given(self.c))
    }
}

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

    /// Nothing but `rounds` of the instruction set's int8 dot products on registers, for benchmarks: what a matrix product
    /// could reach at most. Returns how many products of two int8 were computed.
    fn bare_dots(&self, rounds: usize) -> u64;
}

/// Implements [`Kernels`] for a token by compiling every body with the instruction set's features.
macro_rules! instantiate {
    ($isa:ty $(, #[$features:meta])?) => {
        instantiate!($isa, [$(#[$features])?], matmul::matmul, elementwise::scan);
    };
    // With a matrix product and a scan of its own.
    ($isa:ty, $features:tt, $matmul_in:ident::$matmul:ident, $scan_in:ident::$scan:ident) => {
        impl $crate::kernels::float::Kernels for $isa {
            fn name(&self) -> &'static str {
                <$isa as $crate::kernels::float::Isa>::NAME
            }
            instantiate!(@method $isa, $features, elementwise::rms_inv,
                rms_inv(x: &[f32], tokens: usize, first: usize, n: u32, eps: f32, inv: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::normalize,
                normalize(x: &[f32], weight: &[u8], inv: &[f32], y: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::rescale,
                rescale(x: &mut [f32], inv: &[f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::quantize,
                quantize(tokens: usize, range: core::ops::Range<usize>, x: &[f32], q: &mut [i8],
                    scales: &mut [$crate::kernels::float::Scale]) -> bool);
            instantiate!(@method $isa, $features, $matmul_in::$matmul,
                matmul(shape: &$crate::format::MatrixShape, panels: &[u8], x: &$crate::kernels::float::Input<'_>,
                    y: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::conv_silu,
                conv_silu(d_conv: usize, tokens: usize, range: core::ops::Range<usize>, panels: &[u8],
                    state: &mut [f32], x: &[f32], u: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, $scan_in::$scan,
                scan(panels: &[u8], state: $crate::kernels::float::SsmState<'_>, input: &$crate::kernels::float::ScanInput<'_>,
                    dt: &[f32], z: &[f32], u: &mut [f32]) -> ());
            instantiate!(@method $isa, $features, elementwise::add,
                add(x: &mut [f32], y: &[f32]) -> bool);
            instantiate!(@method $isa, $features, elementwise::is_finite,
                is_finite(x: &[f32]) -> bool);
            instantiate!(@method $isa, $features, matmul::bare_dots,
                bare_dots(rounds: usize) -> u64);
        }
    };
    (@method $isa:ty, [$($features:tt)*], $module:ident::$body:ident,
     $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty) => {
        fn $name(&self, $($arg: $ty),*) -> $ret {
            $($features)*
            fn with(isa: $isa, $($arg: $ty),*) -> $ret {
                $crate::kernels::float::$module::$body(isa, $($arg),*)
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

/// The names of the kernels for this architecture that are chosen at run time, whether this CPU has them or not: tests print
/// which did not run.
pub const NAMES: &[&str] = {
    #[cfg(target_arch = "x86_64")]
    let names = x86_64::NAMES;
    #[cfg(target_arch = "aarch64")]
    let names = aarch64::NAMES;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let names = &[];
    names
};

/// Every instruction set that this program was built with and this CPU has, from slowest to fastest.
///
/// The kernels are handed to `visit` one by one.
pub fn for_each_available(visit: &mut dyn FnMut(&'static dyn Kernels)) {
    visit(&Scalar);
    #[cfg(target_arch = "x86_64")]
    x86_64::for_each_available(visit);
    #[cfg(target_arch = "aarch64")]
    aarch64::for_each_available(visit);
    #[cfg(all(target_arch = "arm", feature = "dsp", feature = "fpu"))]
    visit(CortexM::new());
}

/// The best kernels for the CPU that the program runs on: detected at run time with feature `std`, else at compile
/// time.
#[must_use]
pub fn detect() -> &'static dyn Kernels {
    let mut best: &'static dyn Kernels = &Scalar;
    for_each_available(&mut |kernels| best = kernels);
    best
}
