//! Values of options.

use elapid_args::size;
use elapid_core::format::Quant;

/// A type of weights.
pub(crate) fn quant(text: &str) -> Result<Quant, String> {
    let known = Quant::ALL.into_iter().find(|q| q.name() == text);
    known.ok_or_else(|| "choose f32, f16, q8, q5, q4 or q3".into())
}

/// The size of a block.
pub(crate) fn block_bytes(text: &str) -> Result<u32, String> {
    let bytes = size(text).and_then(|bytes| u32::try_from(bytes).ok());
    bytes
        .filter(|b| (16 << 10..=1 << 20).contains(b) && b.is_multiple_of(16 << 10))
        .ok_or_else(|| "give a multiple of 16K from 16K to 1M, such as 64K".into())
}
