//! The trait of a set of kernels, and how one is made from the bodies for an instruction set.

use super::operands::{Exponents, Group, Input, Inverse, Range, ScanInput, SsmState, Wide, WideMut};
use crate::format::MatrixShape;

/// The kernels of one instruction set. Slices whose lengths don't fit each other are worked on as far as the shortest goes.
pub trait Kernels: Sync {
    /// The instruction set's name.
    fn name(&self) -> &'static str;

    /// `1 / sqrt(mean(x^2) + eps)` over `n` elements for tokens `first..first + inv.len()` of `tokens`; `eps` as the bits of an
    /// f32.
    fn rms_inv(
        &self,
        x: &[i32],
        e: Exponents<'_>,
        tokens: usize,
        first: usize,
        n: u32,
        eps: u32,
        inv: &mut [Inverse],
    );

    /// `x inv w` as groups of activations, for some groups; `e` and `inv` have an element a token, `weight` is
    /// `[panels][16]` f32.
    fn normalize(
        &self,
        x: &[i32],
        e: &[i32],
        weight: &[u8],
        inv: &[Inverse],
        q: &mut [i16],
        groups: &mut [Group],
    );

    /// `x = x inv` for some panels.
    fn rescale(&self, x: WideMut<'_>, inv: &[Inverse]);

    /// Some panels as groups of activations.
    fn narrow(&self, tokens: usize, x: Wide<'_>, q: &mut [i16], groups: &mut [Group]);

    /// `y = W x + bias` for some panels of 16 rows; `y = W x`, with W as stored, where rows have exponents.
    fn matmul(&self, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: WideMut<'_>);

    /// `y = W x` for some panels of 16 rows, as `[panels][T][16]` in Q16, saturating; rows may have exponents.
    fn logits(&self, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [i32]);

    /// Depthwise causal convolution over `d_conv` tokens and silu, for some panels of channels.
    ///
    /// Of the `tokens` tokens only those of `range` take part, consecutive ones of one sequence. `state` is `[panels][d_conv - 1][16]`, the last inputs, oldest first, `exponents` `[panels][d_conv - 1]`, above the lowest
    /// there is.
    fn conv_silu(
        &self,
        d_conv: usize,
        tokens: usize,
        range: core::ops::Range<usize>,
        panels: &[u8],
        state: &mut [i32],
        exponents: &mut [u16],
        x: Wide<'_>,
        u: WideMut<'_>,
    );

    /// Selective scan with softplus of `dt` before, `D u` and the gate `silu(z)` after, for some panels of channels and the
    /// tokens of `input.range`: the result replaces `u`.
    fn scan(
        &self,
        panels: &[u8],
        state: SsmState<'_>,
        ranges: &mut [Range],
        input: &ScanInput<'_>,
        dt: Wide<'_>,
        z: Wide<'_>,
        u: WideMut<'_>,
    );

    /// `x += y` for some panels; `from` are the exponents of `x`, `to` those that it gets, `[T]`, which hold the sum.
    fn add(&self, x: &mut [i32], from: &[i32], to: &[i32], y: Wide<'_>);
}

/// Implements [`Kernels`] for a token by compiling every body with the instruction set's features.
macro_rules! instantiate {
    ($isa:ty $(, #[$features:meta])?) => {
        impl $crate::kernels::fixed::set::Kernels for $isa {
            fn name(&self) -> &'static str {
                <$isa as $crate::kernels::fixed::isa::Isa>::NAME
            }
            instantiate!(@method $isa, [$(#[$features])?], elementwise::rms_inv,
                rms_inv(x: &[i32], e: $crate::kernels::fixed::operands::Exponents<'_>, tokens: usize, first: usize, n: u32, eps: u32,
                    inv: &mut [$crate::kernels::fixed::operands::Inverse]));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::normalize,
                normalize(x: &[i32], e: &[i32], weight: &[u8], inv: &[$crate::kernels::fixed::operands::Inverse], q: &mut [i16],
                    groups: &mut [$crate::kernels::fixed::operands::Group]));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::rescale,
                rescale(x: $crate::kernels::fixed::operands::WideMut<'_>, inv: &[$crate::kernels::fixed::operands::Inverse]));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::narrow,
                narrow(tokens: usize, x: $crate::kernels::fixed::operands::Wide<'_>, q: &mut [i16],
                    groups: &mut [$crate::kernels::fixed::operands::Group]));
            instantiate!(@method $isa, [$(#[$features])?], matmul::matmul,
                matmul(shape: &$crate::format::MatrixShape, panels: &[u8], x: &$crate::kernels::fixed::operands::Input<'_>,
                    y: $crate::kernels::fixed::operands::WideMut<'_>));
            instantiate!(@method $isa, [$(#[$features])?], matmul::logits,
                logits(shape: &$crate::format::MatrixShape, panels: &[u8], x: &$crate::kernels::fixed::operands::Input<'_>,
                    y: &mut [i32]));
            instantiate!(@method $isa, [$(#[$features])?], conv::conv_silu,
                conv_silu(d_conv: usize, tokens: usize, range: core::ops::Range<usize>, panels: &[u8],
                    state: &mut [i32], exponents: &mut [u16],
                    x: $crate::kernels::fixed::operands::Wide<'_>, u: $crate::kernels::fixed::operands::WideMut<'_>));
            instantiate!(@method $isa, [$(#[$features])?], scan::scan,
                scan(panels: &[u8], state: $crate::kernels::fixed::operands::SsmState<'_>,
                    ranges: &mut [$crate::kernels::fixed::operands::Range], input: &$crate::kernels::fixed::operands::ScanInput<'_>,
                    dt: $crate::kernels::fixed::operands::Wide<'_>, z: $crate::kernels::fixed::operands::Wide<'_>,
                    u: $crate::kernels::fixed::operands::WideMut<'_>));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::add,
                add(x: &mut [i32], from: &[i32], to: &[i32], y: $crate::kernels::fixed::operands::Wide<'_>));
        }
    };
    (@method $isa:ty, [$($features:tt)*], $module:ident::$body:ident, $name:ident($($arg:ident: $ty:ty),*)) => {
        fn $name(&self, $($arg: $ty),*) {
            $($features)*
            fn with(isa: $isa, $($arg: $ty),*) {
                $crate::kernels::fixed::$module::$body(isa, $($arg),*)
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
