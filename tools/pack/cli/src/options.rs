//! Values of options.

use elapid_args::size;

/// The size of a block.
pub(crate) fn block_bytes(text: &str) -> Result<u32, String> {
    let bytes = size(text).and_then(|bytes| u32::try_from(bytes).ok());
    bytes
        .filter(|b| (16 << 10..=1 << 20).contains(b) && b.is_multiple_of(16 << 10))
        .ok_or_else(|| "give a multiple of 16K from 16K to 1M, such as 64K".into())
}
