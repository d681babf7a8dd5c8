//! Rows of a tensor as f32: positioned reads, exact conversion, every value checked.

use std::cell::RefCell;
use std::ops::Range;

use super::shards::{self, Dtype, Shard, TensorEntry};
use crate::PackError;

/// Bytes asked of the file at a time: more than the kernel's usual read-ahead,
/// so that a disk sees large requests, and still within a core's own cache.
const READ: usize = 256 << 10;

thread_local! {
    // One buffer for each thread: concurrent readers share nothing but the file.
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads whole rows of `entry`, which lies in `shard`.
pub(super) fn read(
    shard: &Shard,
    entry: &TensorEntry,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), PackError> {
    let wanted = rows.end.checked_sub(rows.start).and_then(|count| count.checked_mul(entry.columns));
    if rows.end > entry.rows || wanted != Some(out.len()) {
        return Err(PackError::InvalidRows {
            name: entry.name.clone(),
            rows: entry.rows,
            columns: entry.columns,
            start: rows.start,
            end: rows.end,
            len: out.len(),
        });
    }
    let size = entry.dtype.size();
    let first = rows.start * entry.columns;
    BYTES.with_borrow_mut(|buffer| {
        let longest = READ.min(out.len() * size);
        if buffer.len() < longest {
            buffer.resize(longest, 0);
        }
        for (index, out) in out.chunks_mut(READ / size).enumerate() {
            let at = first + index * (READ / size);
            let offset = entry.offset + (at * size) as u64;
            let bytes = buffer.get_mut(..out.len() * size).unwrap_or_default();
            let end = offset + bytes.len() as u64;
            // The header was checked: if this finds the file's end, it has shrunk since.
            shards::read_at(&shard.path, &shard.file, bytes, offset, end)?;
            if !widen(entry.dtype, bytes, out) {
                return Err(non_finite(shard, entry, at, out));
            }
        }
        Ok(())
    })
}

/// Converts to f32, exactly. Returns whether every value is finite.
fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> bool {
    // For NaN and infinity, and only for them, this sum reaches the sign bit.
    // Or-ing sums keeps the loops free of branches, so that they vectorise.
    let probe = |bits: u32| (bits & 0x7fff_ffff) + 0x0080_0000;
    let mut seen = 0;
    match dtype {
        Dtype::F32 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                let bits = u32::from_le_bytes(bytes);
                seen |= probe(bits);
                *out = f32::from_bits(bits);
            }
        }
        Dtype::Bf16 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                let bits = u32::from(u16::from_le_bytes(bytes)) << 16;
                seen |= probe(bits);
                *out = f32::from_bits(bits);
            }
        }
        Dtype::F16 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                let bits = f16_to_f32_bits(u16::from_le_bytes(bytes));
                seen |= probe(bits);
                *out = f32::from_bits(bits);
            }
        }
    }
    seen >> 31 == 0
}

/// The f32 with the value of an f16, written so that a loop over it vectorises on any target.
#[inline(always)]
fn f16_to_f32_bits(half: u16) -> u32 {
    const REBIAS: u32 = (127 - 15) << 23;
    // 2^-14, the least normal f16.
    const LEAST: u32 = (127 - 14) << 23;
    let half = u32::from(half);
    let exponent = half & 0x7c00;
    let shifted = (half & 0x7fff) << 13;
    // A subnormal is its mantissa in units of 2^-24; put on top of 2^-14, the subtraction is exact.
    let subnormal = f32::from_bits(LEAST + shifted) - f32::from_bits(LEAST);
    let magnitude = match exponent {
        0 => subnormal.to_bits(),
        0x7c00 => shifted + 2 * REBIAS,
        _ => shifted + REBIAS,
    };
    (half & 0x8000) << 16 | magnitude
}

/// Names the first value that is not finite; `at` is the index of `out`'s first one in the tensor.
#[cold]
fn non_finite(shard: &Shard, entry: &TensorEntry, at: usize, out: &[f32]) -> PackError {
    let found = out.iter().position(|value| !value.is_finite()).unwrap_or_default();
    let columns = entry.columns.max(1);
    PackError::NonFinite {
        path: shard.path.clone(),
        name: entry.name.clone(),
        value: out.get(found).copied().unwrap_or(f32::NAN),
        row: (at + found) / columns,
        column: (at + found) % columns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_converts_exactly() {
        for bits in 0..=u16::MAX {
            let mut out = [0.0];
            let f16 = half::f16::from_bits(bits);
            assert_eq!(widen(Dtype::F16, &bits.to_le_bytes(), &mut out), f16.is_finite(), "{bits:#x}");
            assert!(
                out[0].to_bits() == f16.to_f32().to_bits() || f16.is_nan() && out[0].is_nan(),
                "{bits:#x}"
            );

            let bf16 = half::bf16::from_bits(bits);
            assert_eq!(widen(Dtype::Bf16, &bits.to_le_bytes(), &mut out), bf16.is_finite(), "{bits:#x}");
            assert!(
                out[0].to_bits() == bf16.to_f32().to_bits() || bf16.is_nan() && out[0].is_nan(),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn f32_is_copied_and_checked() {
        let mut out = [0.0; 3];
        let bytes = |values: [f32; 3]| values.map(f32::to_le_bytes).concat();
        assert!(widen(Dtype::F32, &bytes([f32::MAX, -0.0, 1e-45]), &mut out));
        assert_eq!(out.map(f32::to_bits), [f32::MAX, -0.0, 1e-45].map(f32::to_bits));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!widen(Dtype::F32, &bytes([0.0, bad, 1.0]), &mut out));
        }
    }
}
