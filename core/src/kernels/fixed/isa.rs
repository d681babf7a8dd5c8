//! What a kernel needs of an instruction set, with the definition in portable code.

use core::array;

use super::narrow;
use super::operands::{Activations, Group, Input, Tap};
use super::panel::{self, Panel, Quarters, Sums};
use super::steps::{Steps, Stored};
use crate::numbers::fixed::{self, HIGH, LOW, Num, Row, functions};
use crate::numbers::{TILE, TILES};

/// What is written for each instruction set: at least the dot products of a group of 32 columns with `T` tokens, 16 rows for
/// each, exactly. `sums` are the sums of `x`.
///
/// # Safety
/// A value of the type exists only where the CPU has every instruction that the features of its kernels allow: having a
/// value is the proof on which all `unsafe` blocks of its methods, and `instantiate!`, rely.
pub(crate) unsafe trait Isa: Copy + Send + Sync + 'static {
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

    /// Two rows as a group of activations, each times `2^up` as [`narrow::narrow_one`] does it. Returns their sum.
    #[inline(always)]
    fn activations(self, rows: [&Row; 2], up: [i32; 2], q: &mut Activations) -> i32 {
        narrow::activations(rows, up, q)
    }

    /// Whether 4-bit weights meet one token's activations faster in two bytes each, see [`Isa::split`].
    const SPLITS: bool = false;

    /// 32 activations for [`Isa::dot_split`]. This is done once for many rows.
    #[inline(always)]
    fn split(self, x: &Activations) -> Activations {
        *x
    }

    /// [`Isa::dot_u4`] of one token with activations from [`Isa::split`].
    #[inline(always)]
    fn dot_split(self, w: &[[u8; TILE]; TILES / 2], x: &Activations, sums: &Group) -> Row {
        let [row] = self.dot_u4(w, array::from_ref(x), array::from_ref(sums));
        row
    }

    /// If [`Isa::VECTORS`]: sixteen f16 as [`scale`](super::panel::scale) decodes them.
    #[inline(always)]
    fn scales(self, ws: &[u8; 32]) -> Row {
        panel::scales(ws)
    }

    /// With vectors: `sums[r] += (dots[r] 2^-down) scales[r]`, rounded half up. The sums may lie in any order that
    /// [`Isa::in_order`] undoes.
    #[inline(always)]
    fn add_scaled(self, dots: &Row, scales: &Row, down: u32, sums: &mut Sums) {
        panel::add_scaled(dots, scales, down, sums);
    }

    /// Sums of [`Isa::add_scaled`], row by row.
    #[inline(always)]
    fn in_order(self, sums: &Sums) -> Sums {
        *sums
    }

    /// A token of up to sixteen states of sixteen channels. Adds the sums of their products with C to `steps.y` and joins their
    /// magnitudes with `steps.largest`.
    #[inline(always)]
    fn sixteen<H: Stored>(self, steps: &mut Steps, a: &[[u8; 64]], h: &mut [[H; 16]], b: &[i16], c: &[i16]) {
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
        panel::bits(sums)
    }

    /// Without vectors: sums times `2^up`, rounded half up; they fit.
    #[inline(always)]
    fn shifted(self, sums: &Quarters, up: i32, y: &mut Row) {
        panel::shifted(sums, up, y);
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

    /// Prefetch distance in bytes of one token's kernels, as in the float path.
    const PREFETCH_DISTANCE: usize = 0;

    /// Prefetches the cache line `distance` bytes behind the start of `from`. It need not exist.
    #[inline(always)]
    fn prefetch(self, _from: &u8, _distance: usize) {}
}
