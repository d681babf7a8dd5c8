//! The inner loops of the fixed path, for each instruction set, behind one trait.
//!
//! Sums of integers do not depend on their order, so every instance gives the same bits by construction. What is worth it is written
//! for each instruction set by hand; the rest is left to the compiler, which has one body for all and each time an
//! instruction set's features.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(all(target_arch = "arm", any(target_feature = "thumb2", feature = "thumb2")))]
mod arm;
mod channels;
mod elementwise;
mod lanes;
mod matmul;
mod scalar;
mod scan;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use core::array;

use crate::format::MatrixShape;
use crate::numbers::fixed::{self, HIGH, LOW, Num, Row, functions};
use crate::numbers::{GROUP, TILE, TILES};
use channels::Tap;
use lanes::Quarters;
use matmul::{Panel, Sums};
use scan::{Hold, Steps};

#[cfg(target_arch = "aarch64")]
pub use aarch64::Neon;
#[cfg(all(target_arch = "arm", any(target_feature = "dsp", feature = "dsp")))]
pub use arm::Dsp;
#[cfg(all(target_arch = "arm", any(target_feature = "thumb2", feature = "thumb2")))]
pub use arm::Thumb2;
pub(crate) use elementwise::{narrow_vectors, times_ln_2};
pub use matmul::LOGIT_BITS;
pub(crate) use matmul::scale;
pub use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub use x86_64::Avx2;

/// 32 activations of a token, see [`place`].
pub(crate) type Activations = [i16; GROUP];

/// Where column `c` of a group lies: of four, the even ones first, as the bytes of a word come apart on a Cortex-M (`sxtb16`)
/// and by shifts on every vector unit.
#[inline(always)]
pub(crate) const fn place(c: usize) -> usize {
    c & !3 | (c & 1) << 1 | (c & 2) >> 1
}

/// What a group of 32 activations is beside its mantissas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Group {
    /// Its exponent; once the vector is complete, how far it lies below the vector's: 0 to 31.
    pub exponent: i32,
    /// The sum of its mantissas.
    pub sum: i32,
}

/// `1 / sqrt(mean(x^2) + eps)` of one token, and how large its elements are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Inverse {
    /// Mantissa, at most 2^30.
    pub m: i32,
    /// Exponent.
    pub e: i32,
    /// Every element is within `2^top`.
    pub top: i32,
}

/// What a matrix is multiplied with: a chunk of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Tokens in the chunk, `T`.
    pub tokens: usize,
    /// Mantissas from -16384 to 16383, `[cols/32][T][32]`, each four in the order 0, 2, 1, 3.
    pub q: &'a [i16],
    /// `[cols/32][T]`, how far each group's exponent lies below the vector's.
    pub groups: &'a [Group],
    /// The vectors' exponents, `[T]`.
    pub exponents: &'a [i32],
}

/// The exponents of a chunk `[d/16][T][16]`.
#[derive(Clone, Copy, Debug)]
pub enum Exponents<'a> {
    /// One a token, `[T]`.
    Token(&'a [i32]),
    /// One a panel and token, `[d/16][T]`.
    Panel(&'a [i32]),
}

/// How one channel's states are stored: values are mantissas times `2^unit`, none beyond `2^top`.
///
/// Both exponents are kept above the lowest there is, so that all zeros means a channel whose states are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    unit: u16,
    top: u16,
}

/// The largest exponent of a kept state's mantissas: that of a state within its limits, with what an i16 does not keep.
pub(super) const MOST_UNIT: i32 = HIGH + scan::FINE;

impl Range {
    /// That of a channel whose states are 0.
    pub const ZERO: Self = Self { unit: 0, top: 0 };

    /// Of states of so many bits in a unit not below the lowest there is.
    #[inline(always)]
    pub(super) fn new(unit: i32, bits: i32) -> Self {
        debug_assert!((LOW..=MOST_UNIT).contains(&unit));
        let unit = (unit - LOW) as u16;
        Self { unit, top: unit + bits as u16 }
    }
    /// Exponent of the mantissas.
    #[inline(always)]
    #[must_use]
    pub const fn unit(self) -> i32 {
        self.unit as i32 + LOW
    }
    /// Exponent of a bound on the values.
    #[inline(always)]
    #[must_use]
    pub const fn top(self) -> i32 {
        self.top as i32 + LOW
    }
}

/// The recurrent state of some channels, `[channels/16][d_state][16]`.
#[derive(Debug)]
pub enum SsmState<'a> {
    /// 15 bits and sign.
    I16(&'a mut [i16]),
    /// 29 bits and sign.
    I32(&'a mut [i32]),
}

impl SsmState<'_> {
    /// Reborrows for a shorter lifetime.
    pub(crate) const fn reborrow(&mut self) -> SsmState<'_> {
        match self {
            Self::I16(state) => SsmState::I16(state),
            Self::I32(state) => SsmState::I32(state),
        }
    }

    /// No channels, of the same kind.
    pub(crate) const fn none(&self) -> SsmState<'static> {
        match self {
            Self::I16(_) => SsmState::I16(&mut []),
            Self::I32(_) => SsmState::I32(&mut []),
        }
    }
}

/// What all channels of a scan share.
#[derive(Clone, Debug)]
pub struct ScanInput<'a> {
    /// Tokens in the chunk, `T`.
    pub tokens: usize,
    /// The tokens of the sequence whose state is given.
    pub range: core::ops::Range<usize>,
    /// States of a channel, `N`.
    pub d_state: usize,
    /// Mantissas of B within +-16383, `[N/16][T][16]`, the last panel padded.
    pub b: &'a [i16],
    /// Of C.
    pub c: &'a [i16],
    /// Exponents of B, `[T]`.
    pub b_exponents: &'a [i32],
    /// Of C.
    pub c_exponents: &'a [i32],
}

/// Mantissas of some panels of a chunk, `[panels][T][16]` within +-2^30, and their exponents, `[panels][T]`.
#[derive(Clone, Copy, Debug)]
pub struct Wide<'a> {
    /// Mantissas.
    pub m: &'a [i32],
    /// Exponents.
    pub e: &'a [i32],
}

/// The same, to be written.
#[derive(Debug)]
pub struct WideMut<'a> {
    /// Mantissas.
    pub m: &'a mut [i32],
    /// Exponents.
    pub e: &'a mut [i32],
}

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

/// What is written for each instruction set: at least the dot products of a group of 32 columns with `T` tokens, 16 rows for
/// each, exactly. `sums` are the sums of `x`.
pub(crate) trait Dot: Copy + Send + Sync + 'static {
    const NAME: &'static str;
    /// Whether sixteen lanes side by side are faster than one after the other.
    const VECTORS: bool;

    /// `w` is eight tiles: byte `4 r + j` of tile `k` is row `r`, column `4 k + j`.
    fn dot_i8<const T: usize>(self, w: &[[u8; TILE]; TILES], x: &[Activations; T]) -> [Row; T];

    /// `w` is four pairs of tiles: the low half of byte `4 r + j` of pair `k` is row `r`, column `8 k + j`, the high half
    /// column `8 k + 4 + j`; each nibble less 8.
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[Activations; T],
        sums: &[Group; T],
    ) -> [Row; T];

    /// Two rows as a group of activations, each times `2^up` as [`elementwise::narrow_one`] does it. Returns their sum.
    #[inline(always)]
    fn activations(self, rows: [&Row; 2], up: [i32; 2], q: &mut Activations) -> i32 {
        elementwise::activations(rows, up, q)
    }

    /// Whether 4-bit weights meet one token's activations faster in two bytes each, see [`Dot::split`].
    const SPLITS: bool = false;

    /// 32 activations for [`Dot::dot_split`]. This is done once for many rows.
    #[inline(always)]
    fn split(self, x: &Activations) -> Activations {
        *x
    }

    /// [`Dot::dot_u4`] of one token with activations from [`Dot::split`].
    #[inline(always)]
    fn dot_split(self, w: &[[u8; TILE]; TILES / 2], x: &Activations, sums: &Group) -> Row {
        let [row] = self.dot_u4(w, array::from_ref(x), array::from_ref(sums));
        row
    }

    /// With vectors: sixteen f16 as [`scale`] decodes them.
    #[inline(always)]
    fn scales(self, ws: &[u8; 32]) -> Row {
        matmul::scales(ws)
    }

    /// With vectors: `sums[r] += (dots[r] 2^-down) scales[r]`, rounded half up. The sums may lie in any order that
    /// [`Dot::in_order`] undoes.
    #[inline(always)]
    fn add_scaled(self, dots: &Row, scales: &Row, down: u32, sums: &mut Sums) {
        matmul::add_scaled(dots, scales, down, sums);
    }

    /// Sums of [`Dot::add_scaled`], row by row.
    #[inline(always)]
    fn in_order(self, sums: &Sums) -> Sums {
        *sums
    }

    /// A token of up to sixteen states of sixteen channels. Adds the sums of their products with C to `steps.y` and joins their
    /// magnitudes with `steps.largest`.
    #[inline(always)]
    fn sixteen<H: Hold>(self, steps: &mut Steps, a: &[[u8; 64]], h: &mut [[H; 16]], b: &[i16], c: &[i16]) {
        steps.sixteen(a, h, b, c);
    }

    /// Without vectors: the sums of the rows of a panel of int8 with token `t`; false where they need another way.
    #[inline(always)]
    fn sums_i8(self, _panel: &Panel<'_>, _x: &Input<'_>, _t: usize, _sums: &mut Quarters) -> bool {
        false
    }

    /// The same of 4-bit values.
    #[inline(always)]
    fn sums_u4(self, _panel: &Panel<'_>, _x: &Input<'_>, _t: usize, _sums: &mut Quarters) -> bool {
        false
    }

    /// Without vectors: the least `b` with all sums within `2^b`.
    #[inline(always)]
    fn bits(self, sums: &Quarters) -> i32 {
        lanes::bits(sums)
    }

    /// Without vectors: sums times `2^up`, rounded half up; they fit.
    #[inline(always)]
    fn shifted(self, sums: &Quarters, up: i32, y: &mut Row) {
        lanes::shifted(sums, up, y);
    }

    /// `a b / 2^32`, rounded half up.
    #[inline(always)]
    fn mul_high(self, a: i32, b: i32) -> i32 {
        fixed::mul_high(a, b)
    }

    /// Without vectors: `m 2^-by`, rounded half up, for `by` from 1 on.
    #[inline(always)]
    fn shift_right(self, m: i32, by: i32) -> i32 {
        fixed::shift_right(m, by)
    }

    /// `m 2^-by`, cut, for `by` from 0 on.
    #[inline(always)]
    fn cut(self, m: i32, by: i32) -> i32 {
        fixed::cut(m, by)
    }

    /// Without vectors: a convolution of a token of sixteen channels, their mantissas and exponents, where the instruction set does it
    /// by hand.
    #[inline(always)]
    fn convolve(self, _weights: &[[u8; 64]], _taps: &[Tap<'_>], _u: &mut Row, _e: &mut Row) -> bool {
        false
    }

    /// `x` within an i16.
    #[inline(always)]
    fn within_half(self, x: i32) -> i32 {
        x.clamp(-0x8000, 0x7fff)
    }

    /// `x` from 0 to 15.
    #[inline(always)]
    fn within_nibble(self, x: i32) -> i32 {
        x.clamp(0, 15)
    }

    /// An exponent within its limits.
    #[inline(always)]
    fn exponent(self, e: i32) -> i32 {
        e.clamp(LOW, HIGH)
    }

    /// A shift within 0 to 31.
    #[inline(always)]
    fn within_word(self, by: i32) -> i32 {
        fixed::within_word(by)
    }

    /// [`Num::normal`] of what is within 2^30.
    #[inline(always)]
    fn normal(self, v: Num) -> Num {
        v.normal()
    }

    /// [`functions::softplus_log2`].
    #[inline(always)]
    fn softplus_log2(self, v: Num) -> (u32, i32) {
        functions::softplus_log2(v)
    }

    /// [`functions::silu`] of what is within 2^30.
    #[inline(always)]
    fn silu(self, v: Num) -> Num {
        functions::silu(v)
    }

    /// Bytes by which one token's kernels ask for what they read next from memory, as in the float path.
    const AHEAD: usize = 0;

    /// Asks for the cache line `ahead` bytes behind the start of `from`. It need not exist.
    #[inline(always)]
    fn prefetch(self, _from: &u8, _ahead: usize) {}
}

/// Implements [`Kernels`] for a token by compiling every body with the instruction set's features.
macro_rules! instantiate {
    ($isa:ty $(, #[$features:meta])?) => {
        impl $crate::kernels::fixed::Kernels for $isa {
            fn name(&self) -> &'static str {
                <$isa as $crate::kernels::fixed::Dot>::NAME
            }
            instantiate!(@method $isa, [$(#[$features])?], elementwise::rms_inv,
                rms_inv(x: &[i32], e: $crate::kernels::fixed::Exponents<'_>, tokens: usize, first: usize, n: u32, eps: u32,
                    inv: &mut [$crate::kernels::fixed::Inverse]));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::normalize,
                normalize(x: &[i32], e: &[i32], weight: &[u8], inv: &[$crate::kernels::fixed::Inverse], q: &mut [i16],
                    groups: &mut [$crate::kernels::fixed::Group]));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::rescale,
                rescale(x: $crate::kernels::fixed::WideMut<'_>, inv: &[$crate::kernels::fixed::Inverse]));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::narrow,
                narrow(tokens: usize, x: $crate::kernels::fixed::Wide<'_>, q: &mut [i16],
                    groups: &mut [$crate::kernels::fixed::Group]));
            instantiate!(@method $isa, [$(#[$features])?], matmul::matmul,
                matmul(shape: &$crate::format::MatrixShape, panels: &[u8], x: &$crate::kernels::fixed::Input<'_>,
                    y: $crate::kernels::fixed::WideMut<'_>));
            instantiate!(@method $isa, [$(#[$features])?], matmul::logits,
                logits(shape: &$crate::format::MatrixShape, panels: &[u8], x: &$crate::kernels::fixed::Input<'_>,
                    y: &mut [i32]));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::conv_silu,
                conv_silu(d_conv: usize, tokens: usize, range: core::ops::Range<usize>, panels: &[u8], state: &mut [i32], exponents: &mut [u16],
                    x: $crate::kernels::fixed::Wide<'_>, u: $crate::kernels::fixed::WideMut<'_>));
            instantiate!(@method $isa, [$(#[$features])?], scan::scan,
                scan(panels: &[u8], state: $crate::kernels::fixed::SsmState<'_>,
                    ranges: &mut [$crate::kernels::fixed::Range], input: &$crate::kernels::fixed::ScanInput<'_>,
                    dt: $crate::kernels::fixed::Wide<'_>, z: $crate::kernels::fixed::Wide<'_>,
                    u: $crate::kernels::fixed::WideMut<'_>));
            instantiate!(@method $isa, [$(#[$features])?], elementwise::add,
                add(x: &mut [i32], from: &[i32], to: &[i32], y: $crate::kernels::fixed::Wide<'_>));
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

/// The names of the kernels for this architecture that are chosen at run time, whether this CPU has them or not: tests print
/// which did not run.
pub const NAMES: &[&str] = {
    #[cfg(target_arch = "x86_64")]
    let names = &[Avx2::NAME];
    #[cfg(target_arch = "aarch64")]
    let names = &[Neon::NAME];
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
    if let Some(isa) = Avx2::detect() {
        visit(isa);
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(isa) = Neon::detect() {
        visit(isa);
    }
    #[cfg(all(target_arch = "arm", any(target_feature = "thumb2", feature = "thumb2")))]
    visit(&Thumb2);
    #[cfg(all(target_arch = "arm", any(target_feature = "dsp", feature = "dsp")))]
    visit(&Dsp);
}

/// The best kernels for the CPU that the program runs on: detected at run time with feature `std`, else at compile time.
#[must_use]
pub fn detect() -> &'static dyn Kernels {
    let mut best: &'static dyn Kernels = &Scalar;
    for_each_available(&mut |kernels| best = kernels);
    best
}

/// `x` as rows of sixteen; a rest shorter than that is left out.
#[inline(always)]
fn rows(x: &[i32]) -> &[Row] {
    x.as_chunks().0
}

#[inline(always)]
fn rows_mut(x: &mut [i32]) -> &mut [Row] {
    x.as_chunks_mut().0
}

/// Sixteen little-endian words, such as f32 bits, from bytes of a model file.
#[inline(always)]
fn words(bytes: &[u8; 64]) -> [u32; 16] {
    // Loops, here and elsewhere: what is made by closures is not always inlined, and then lacks the features.
    let (bytes, _) = bytes.as_chunks::<4>();
    let mut words = [0; 16];
    for i in 0..16 {
        words[i] = u32::from_le_bytes(bytes[i]);
    }
    words
}
