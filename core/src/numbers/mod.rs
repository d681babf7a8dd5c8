//! Numbers: the functions of the float path and of the fixed path, the sizes that formats and kernels share, and the checksum.

pub mod checksum;
pub mod fixed;
pub mod float;

/// Lanes of the virtual vector in which every kernel is defined, and rows in a packed panel.
pub const LANES: usize = 16;
/// Columns that share one scale.
pub const GROUP: usize = 32;
/// Bytes of a tile of int8: 16 rows by 4 columns. A pair of tiles of 4-bit values is as large.
pub const TILE: usize = 64;
/// Tiles of int8 in a group of columns.
pub const TILES: usize = GROUP / 4;
