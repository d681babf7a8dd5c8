//! What a kernel needs of an instruction set: sixteen lanes and an exact int8 dot product.

use crate::num::Float;

/// Lanes of the virtual vector in which every kernel is defined, and rows in a panel.
pub const LANES: usize = 16;
/// Columns that share one scale.
pub const GROUP: usize = 32;
/// Bytes of a tile of int8: 16 rows by 4 columns. A pair of tiles of 4-bit values is as large.
pub const TILE: usize = 64;
/// Tiles of int8 in a group of columns.
pub const TILES: usize = GROUP / 4;

/// An instruction set: a zero-sized token that can only be had where the CPU supports it.
///
/// `F` and `I` hold sixteen lanes. Methods compile to vector instructions only inside a function that enables the
/// instruction set's features (see `instantiate!`), so they are always inlined.
pub trait Isa: Float + Send + Sync + 'static {
    /// A loaded tile of 64 weights, in the form that `dot4` wants.
    type W: Copy;

    /// Whether a dozen tokens fit the registers beside a panel (otherwise two do).
    const WIDE: bool;

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
    /// Lane-wise maximum of `bits & 0x7fff_ffff` and the integers of `acc`, none of which has its top bit set.
    fn accumulate_abs_bits(self, acc: Self::I, x: Self::F) -> Self::I;
    /// The largest lane of integers without their top bit set.
    fn max_bits(self, x: Self::I) -> u32;
    /// Zero in every lane.
    fn zero_bits(self) -> Self::I;

    /// A tile of int8: byte `4 r + j` is row `r`, column `j`.
    fn load_i8(self, tile: &[u8; TILE]) -> Self::W;
    /// A pair of tiles of nibbles (0 to 15): low nibbles are columns 0 to 3, high ones columns 4 to 7.
    fn load_u4(self, pair: &[u8; TILE]) -> (Self::W, Self::W);
    /// Where an int8 dot product starts, given the sum of the group's activations.
    fn start_i8(self, sum: i32) -> Self::I;
    /// Where a nibble dot product starts, given the sum of the group's activations: `-8 sum` in every lane.
    fn start_u4(self, sum: i32) -> Self::I;
    /// `acc[r] + sum over j of w[4 r + j] x[j]`, exactly, for a tile from `load_i8`.
    fn dot4_i8(self, acc: Self::I, w: Self::W, x: &[i8; 4]) -> Self::I;
    /// The same for a tile from `load_u4`.
    fn dot4_u4(self, acc: Self::I, w: Self::W, x: &[i8; 4]) -> Self::I;
}
