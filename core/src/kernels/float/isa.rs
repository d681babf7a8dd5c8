//! What a kernel needs of an instruction set: sixteen lanes and an exact int8 dot product.

use super::operands::Scale;
use crate::numbers::float::{self, Float};
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// An instruction set: a zero-sized token that can only be had where the CPU supports it.
///
/// `F` and `I` hold sixteen lanes. Methods compile to vector instructions only inside a function that enables the
/// instruction set's features (see `instantiate!`), so they are always inlined.
///
/// # Safety
/// A value of the type exists only where the CPU has every instruction that the features of its kernels allow: having a
/// value is the proof on which all `unsafe` blocks of its methods, and `instantiate!`, rely.
pub unsafe trait Isa: Float + Send + Sync + 'static {
    /// Exponentials of sixteen lanes that the scan computes in lockstep: 1, 2 or 4. See [`exp_each`](crate::numbers::float::exp_each).
    const LOCKSTEP: usize;

    /// Tokens that the scan takes at once: 4, or 1 where the lanes are in no registers and code must be small.
    const SCAN_BLOCK: usize = 4;

    /// The name shown to users.
    const NAME: &'static str;

    /// Sixteen floats from memory.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Sixteen floats to memory.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Sixteen f16 (as bits) from memory, widened exactly.
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    /// Sixteen floats rounded to f16 (ties to even). The caller keeps them within +-65504.
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]);
    /// Sixteen little-endian floats from bytes of a model file.
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> Self::F;
    /// Sixteen little-endian f16 from bytes of a model file, widened exactly.
    fn load_f16_bytes(self, from: &[u8; 2 * LANES]) -> Self::F;

    /// Sixteen integers of magnitude under 2^24 as floats, exactly.
    fn int_to_float(self, x: Self::I) -> Self::F;
    /// Rounds to integers, ties to even, and stores the low bytes. Lanes are within +-127.
    fn store_rounded_i8(self, x: Self::F, to: &mut [i8; LANES]);
    /// Rounds a group as [`Isa::store_rounded_i8`] does its halves, and returns the sum of what it stored.
    #[inline(always)]
    fn store_rounded_group(self, low: Self::F, high: Self::F, to: &mut [i8; GROUP]) -> i32 {
        if let [a, b] = to.as_chunks_mut::<LANES>().0 {
            self.store_rounded_i8(low, a);
            self.store_rounded_i8(high, b);
        }
        to.iter().map(|&q| i32::from(q)).sum()
    }
    /// Lane-wise maximum of `bits & 0x7fff_ffff` and the integers of `acc`, none of which has its top bit set.
    fn accumulate_abs_bits(self, acc: Self::I, x: Self::F) -> Self::I;
    /// The largest lane of integers without their top bit set.
    fn max_bits(self, x: Self::I) -> u32;
    /// Zero in every lane.
    fn zero_bits(self) -> Self::I;

    /// [`float::exp`] of sixteen lanes. This and the next two are methods so that an instruction set whose registers don't hold
    /// sixteen lanes can call a function for one of them.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        float::exp(self, x)
    }
    /// [`float::softplus`] of sixteen lanes.
    #[inline(always)]
    fn softplus(self, x: Self::F) -> Self::F {
        float::softplus(self, x)
    }
    /// [`float::silu`] of sixteen lanes.
    #[inline(always)]
    fn silu(self, x: Self::F) -> Self::F {
        float::silu(self, x)
    }
}

/// The exact dot products of int8 of an instruction set, of which matrix products are made.
///
/// # Safety
/// As for [`Isa`].
pub unsafe trait Dot: Isa {
    /// Tokens whose sums fit the registers beside a panel's weights: 1, 2, 3, 4 or 12.
    const BLOCK: usize;

    /// Prefetch distance in bytes of kernels that read weights from memory; 0 if they don't prefetch.
    const PREFETCH_DISTANCE: usize = 0;
    /// Loads that one token's kernel adds to each cache line of a panel, which it then reads in the order of its bytes, scales
    /// first, and does not prefetch; 0 if it doesn't.
    const TOUCHES: usize = 0;

    /// Loads a byte and drops it.
    #[inline(always)]
    fn touch(self, _from: &u8) {}

    /// Prefetches the cache line `distance` bytes behind the start of `from`. It need not exist.
    #[inline(always)]
    fn prefetch(self, _from: &u8, _distance: usize) {}

    /// Dot products of a group of 32 columns of int8 with `T` tokens: 16 rows for each token, exactly.
    ///
    /// `w` is eight tiles: byte `4 r + j` of tile `k` is row `r`, column `4 k + j`. `sums` are the sums of `x`.
    fn dot_i8<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T];

    /// The same for 4-bit weights, each nibble less 8.
    ///
    /// `w` is four pairs of tiles: the low half of byte `4 r + j` of pair `k` is row `r`, column `8 k + j`, the high half
    /// column `8 k + 4 + j`.
    fn dot_u4<const T: usize>(
        self,
        w: &[[u8; TILE]; TILES / 2],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T];

    /// The same for 3-bit weights, each less 4.
    ///
    /// `w` is two lines of low bits and one of high bits: bits `2 i` and `2 i + 1` of byte `4 r + j` of line `p` belong to row
    /// `r`, column `16 p + 4 i + j`; bit `k` of byte `4 r + j` of the last line to row `r`, column `4 k + j`.
    fn dot_u3<const T: usize>(
        self,
        w: &[[u8; TILE]; 3],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T];

    /// The same for 5-bit weights, each less 16.
    ///
    /// `w` is four pairs of tiles with the lower four bits, as in [`Dot::dot_u4`], and a line with the fifth: bit `k` of byte
    /// `4 r + j` of that belongs to row `r`, column `4 k + j`.
    fn dot_u5<const T: usize>(
        self,
        w: &[[u8; TILE]; 5],
        x: &[[i8; GROUP]; T],
        sums: &[Scale; T],
    ) -> [Self::I; T];

    /// `acc[t] + dot[t] ws xs[t]`: a group's dot products with `T` tokens, times the scales of its weights (sixteen f16) and of
    /// its activations.
    #[inline(always)]
    fn add_scaled<const T: usize>(
        self,
        acc: &mut [Self::F; T],
        dot: [Self::I; T],
        ws: &[u8; 2 * LANES],
        xs: &[Scale; T],
    ) {
        let ws = self.load_f16_bytes(ws);
        for t in 0..T {
            let scale = self.mul(ws, self.splat(xs[t].scale));
            acc[t] = self.fma(self.int_to_float(dot[t]), scale, acc[t]);
        }
    }
}

/// Columns `4 k .. 4 k + 4` of a group of activations.
#[inline(always)]
pub(super) fn four(x: &[i8; GROUP], k: usize) -> &[i8; 4] {
    &x.as_chunks::<4>().0[k & (TILES - 1)]
}

/// The same as the bytes of a 32-bit word.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn word(x: &[i8; GROUP], k: usize) -> i32 {
    i32::from_le_bytes(four(x, k).map(|x| x as u8))
}
