//! Rows of a tensor as f32: positioned reads, exact conversion, every value checked.

use std::cell::RefCell;
use std::ops::Range;

use super::entry::{Dtype, Shard, TensorEntry};
use super::ggml::StoredGroup;
use super::{LayerTensor, TensorKind};
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
    let (start, length) = (rows.start, out.len());
    check(entry, rows, length)?;
    if let Some(strides) = &entry.strides {
        return read_view(shard, entry, strides, start, out);
    }
    let (piece, _) = entry.dtype.piece();
    let mut out = out;
    read_bytes(shard, entry, start, length, |at, bytes| {
        let (now, later) = std::mem::take(&mut out).split_at_mut(bytes.len() / entry.dtype.piece().1 * piece);
        out = later;
        if widen(entry.dtype, bytes, now) || saturate(entry, now) {
            Ok(())
        } else {
            Err(non_finite(shard, entry, at, now))
        }
    })
}

/// Reads rows of a view, a run of adjacent elements at a time: along columns, or else along rows.
fn read_view(
    shard: &Shard,
    entry: &TensorEntry,
    strides: &[usize],
    start: usize,
    out: &mut [f32],
) -> Result<(), PackError> {
    let columns = entry.columns.max(1);
    let down = strides.first().copied().unwrap_or(0);
    // Elements from a row's first to that of a column: the indices of all dimensions but the first.
    let across = |mut column: usize| {
        let dimensions = entry.shape.iter().zip(strides).skip(1).rev();
        dimensions.fold(0, |sum: usize, (&size, &stride)| {
            let index = column % size.max(1);
            column /= size.max(1);
            sum + index * stride
        })
    };
    let whole_rows = (1..columns).all(|column| across(column) == column);
    let rows = out.len() / columns;
    let size = entry.dtype.piece().1;
    let run = |row: usize, column: usize, count: usize, values: &mut [f32]| {
        let element = (start + row) as u64 * down as u64 + across(column) as u64;
        let offset = entry.offset + element * size as u64;
        BYTES.with_borrow_mut(|buffer| {
            if buffer.len() < count * size {
                buffer.resize(count * size, 0);
            }
            let bytes = buffer.get_mut(..count * size).unwrap_or_default();
            shard.read_at(bytes, offset, offset + bytes.len() as u64)?;
            if widen(entry.dtype, bytes, values) || saturate(entry, values) {
                return Ok(());
            }
            // Within a run the other index stays.
            let bad = values.iter().position(|value| !value.is_finite()).unwrap_or_default();
            let at = if count == columns && whole_rows {
                row * columns + bad
            } else {
                (row + bad) * columns + column
            };
            Err(non_finite(shard, entry, start * columns + at, &values[bad..]))
        })
    };
    if whole_rows {
        // Rows lie apart, or over each other.
        for (row, out) in out.chunks_exact_mut(columns).enumerate() {
            run(row, 0, columns, out)?;
        }
        return Ok(());
    }
    let at_once = if down == 1 { rows } else { 1 };
    let mut values = vec![0.0; at_once];
    for column in 0..columns {
        for first in (0..rows).step_by(at_once.max(1)) {
            run(first, column, at_once, &mut values)?;
            for (row, value) in values.iter().enumerate() {
                out[(first + row) * columns + column] = *value;
            }
        }
    }
    Ok(())
}

/// Reads the groups of whole rows of `entry`.
pub(super) fn read_groups(
    shard: &Shard,
    entry: &TensorEntry,
    rows: Range<usize>,
    out: &mut Vec<StoredGroup>,
) -> Result<(), PackError> {
    let (start, length) = (rows.start, rows.len().saturating_mul(entry.columns));
    check(entry, rows, length)?;
    let Dtype::Block(block) = entry.dtype else {
        return Err(PackError::NoGroups { name: entry.name.clone() });
    };
    out.clear();
    read_bytes(shard, entry, start, length, |at, bytes| {
        for (index, bytes) in bytes.chunks_exact(block.piece().1).enumerate() {
            let group = block.group(bytes).ok_or_else(|| PackError::NoGroups { name: entry.name.clone() })?;
            if !group.scale.is_finite() {
                return Err(non_finite(
                    shard,
                    entry,
                    at + index * group.integers.len(),
                    &[group.scale.to_f32()],
                ));
            }
            out.push(group);
        }
        Ok(())
    })
}

/// Checks that rows are there, and have so many values.
fn check(entry: &TensorEntry, rows: Range<usize>, length: usize) -> Result<(), PackError> {
    let wanted = rows.end.checked_sub(rows.start).and_then(|count| count.checked_mul(entry.columns));
    if rows.end > entry.rows || wanted != Some(length) {
        return Err(PackError::InvalidRows {
            name: entry.name.clone(),
            rows: entry.rows,
            columns: entry.columns,
            start: rows.start,
            end: rows.end,
            len: length,
        });
    }
    Ok(())
}

/// Reads `length` values from a row on, which are whole pieces, and hands out the bytes a part at a time, each with the index of
/// its first value in the tensor.
fn read_bytes(
    shard: &Shard,
    entry: &TensorEntry,
    row: usize,
    length: usize,
    mut take: impl FnMut(usize, &[u8]) -> Result<(), PackError>,
) -> Result<(), PackError> {
    let (piece, piece_bytes) = entry.dtype.piece();
    let first = row * entry.columns;
    let at_once = READ / piece_bytes * piece;
    BYTES.with_borrow_mut(|buffer| {
        let longest = at_once.min(length) / piece * piece_bytes;
        if buffer.len() < longest {
            buffer.resize(longest, 0);
        }
        for done in (0..length).step_by(at_once) {
            let at = first + done;
            let offset = entry.offset + (at / piece * piece_bytes) as u64;
            let count = at_once.min(length - done) / piece * piece_bytes;
            let bytes = buffer.get_mut(..count).unwrap_or_default();
            let end = offset + bytes.len() as u64;
            // The header was checked: if this finds the file's end, it has shrunk since.
            shard.read_at(bytes, offset, end)?;
            take(at, bytes)?;
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
        Dtype::F64 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f64::from_le_bytes(bytes) as f32;
                seen |= probe(out.to_bits());
            }
        }
        Dtype::Block(block) => {
            block.dequantize(bytes, out);
            out.iter().for_each(|value| seen |= probe(value.to_bits()));
        }
    }
    seen >> 31 == 0
}

/// Makes infinite values of A, or of its logarithm, the largest numbers: a converter's exp may have overflowed, and the state decays
/// at once. Returns whether the values that are not finite may be there.
#[cold]
fn saturate(entry: &TensorEntry, values: &mut [f32]) -> bool {
    match entry.kind {
        Some(TensorKind::Layer(_, LayerTensor::ALog)) => {
            values.iter_mut().for_each(|value| *value = value.clamp(f32::MIN, f32::MAX));
            !values.iter().any(|value| value.is_nan())
        }
        // Rows of tokens that are never to be drawn: the reader sees to them.
        Some(TensorKind::Head) => !values.iter().any(|value| value.is_nan() || *value == f32::INFINITY),
        _ => false,
    }
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
