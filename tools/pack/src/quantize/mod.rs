//! From rows of floats to the bytes of a panel.

mod exponent;
mod feedback;
mod gram;
mod objective;
mod range;

use elapid_core::format::{MatrixShape, Quant};
use elapid_core::kernels::{GROUP, LANES};
use half::f16;

use crate::checkpoint::StoredGroup;
use exponent::Row;
pub(crate) use exponent::exponent_of;
pub(crate) use gram::Gram;
pub use objective::Objective;
use range::{Q3, Q4, Q5, Q8};

/// Why a panel can't be stored.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Unfit {
    /// A value is too large for any exponent.
    TooLarge {
        /// The value's row, counted within the panel.
        row: usize,
        /// Its column.
        col: usize,
        /// The value.
        value: f32,
    },
    /// A row needs an exponent, and the shape has none.
    NeedsExponents,
}

/// Writes the panel of `shape` that holds up to 16 rows of `columns` floats, and 16 biases where the shape has them.
///
/// `rows` may be fewer than 16 and narrower than the shape: the rest is zeros. `panel` is overwritten whole. With an
/// `objective`, of as many columns as the shape, q4 and q3 are chosen for what comes of the weights rather than for the
/// weights themselves. `stored` are the groups that `rows` come from, row after row: those that the shape can hold are kept as they
/// are; none to choose all anew.
///
/// # Errors
/// [`Unfit`] where f16, or a scale in f16, can't hold a row.
pub fn write_panel(
    shape: &MatrixShape,
    rows: &[f32],
    columns: usize,
    bias: &[f32],
    objective: Option<&Objective>,
    stored: &[StoredGroup],
    panel: &mut [u8],
) -> Result<(), Unfit> {
    let exponents = exponents(shape, rows, columns, bias, stored)?;
    let (divided_rows, divided_bias);
    let (rows, bias) = if exponents == [0; LANES] {
        (rows, bias)
    } else {
        let divisors = exponents.map(|exponent| f32::from_bits(((127 - exponent) as u32) << 23));
        let row = |(row, divisor): (&[f32], f32)| row.iter().map(move |w| w * divisor).collect::<Vec<_>>();
        divided_rows = rows.chunks_exact(columns).zip(divisors).flat_map(row).collect::<Vec<_>>();
        divided_bias = bias.iter().zip(divisors).map(|(b, divisor)| b * divisor).collect::<Vec<_>>();
        (&*divided_rows, &*divided_bias)
    };
    panel.fill(0);
    let (scales, rest) = panel.split_at_mut(shape.scale_bytes() as usize);
    let (weights, rest) = rest.split_at_mut(shape.weight_bytes() as usize);
    let mut integers = Integers { rows, columns, stored, exponents, scales, weights };
    match shape.quant() {
        Quant::F32 => {
            for (r, row) in rows.chunks_exact(columns).enumerate() {
                for (c, w) in row.iter().enumerate() {
                    weights[(c * LANES + r) * 4..][..4].copy_from_slice(&w.to_le_bytes());
                }
            }
        }
        Quant::F16 => {
            for (r, row) in rows.chunks_exact(columns).enumerate() {
                for (c, w) in row.iter().enumerate() {
                    weights[(c * LANES + r) * 2..][..2].copy_from_slice(&f16::from_f32(*w).to_le_bytes());
                }
            }
        }
        Quant::Q8 => integers.write(&Q8, None, put_bytes),
        Quant::Q4 => {
            // Rows that are padding hold zeros too, which are stored as 8.
            integers.weights.fill(0x88);
            integers.write(&Q4, objective, put_nibbles);
        }
        Quant::Q3 => {
            // As above: stored as 4, whose only bit is in the third line.
            for line in integers.weights.chunks_exact_mut(4 * LANES).skip(2).step_by(3) {
                line.fill(0xff);
            }
            integers.write(&Q3, objective, put_three_bits);
        }
        Quant::Q5 => {
            // As above: stored as 16, whose only bit is in the fifth line.
            for line in integers.weights.chunks_exact_mut(4 * LANES).skip(4).step_by(5) {
                line.fill(0xff);
            }
            integers.write(&Q5, objective, put_five_bits);
        }
    }
    let mut rest = rest.chunks_exact_mut(4);
    if shape.has_bias() {
        for (to, bias) in rest.by_ref().take(LANES).zip(bias.iter().chain(&[0.0; LANES])) {
            to.copy_from_slice(&bias.to_le_bytes());
        }
    }
    for (to, exponent) in rest.zip(exponents) {
        to.copy_from_slice(&exponent.to_le_bytes());
    }
    Ok(())
}

/// The exponents that the rows of a panel need to be held by f16: 0 for those that need none.
///
/// # Errors
/// As [`write_panel`].
pub fn exponents(
    shape: &MatrixShape,
    rows: &[f32],
    columns: usize,
    bias: &[f32],
    stored: &[StoredGroup],
) -> Result<[i32; LANES], Unfit> {
    let mut exponents = [0; LANES];
    let mut stored = stored.chunks(columns.div_ceil(GROUP).max(1));
    for (r, (row, to)) in rows.chunks_exact(columns).zip(&mut exponents).enumerate() {
        let stored = stored.next().unwrap_or_default();
        let found = Row::of(shape.quant(), row, bias.get(r).copied().unwrap_or_default(), stored);
        if found.exponent > *MatrixShape::EXPONENTS.end() {
            return Err(Unfit::TooLarge { row: r, col: found.largest, value: row[found.largest] });
        }
        *to = found.exponent;
    }
    if exponents != [0; LANES] && !shape.has_exponents() {
        return Err(Unfit::NeedsExponents);
    }
    Ok(exponents)
}

/// A panel of integers to be written.
struct Integers<'a> {
    rows: &'a [f32],
    columns: usize,
    stored: &'a [StoredGroup],
    exponents: [i32; LANES],
    scales: &'a mut [u8],
    weights: &'a mut [u8],
}

impl Integers<'_> {
    /// Quantizes all groups; `put` stores row `r` of one in the bytes of its 16 rows.
    fn write(
        &mut self,
        range: &range::Range,
        objective: Option<&Objective>,
        put: fn(&mut [u8], usize, &[i8; GROUP]),
    ) {
        let groups = self.columns.div_ceil(GROUP);
        let bytes = self.weights.len() / groups;
        let fitted = objective.map(|objective| {
            let mut w = vec![[0.0; LANES]; groups * GROUP];
            for (r, row) in self.rows.chunks_exact(self.columns).enumerate() {
                for (w, x) in w.iter_mut().zip(row) {
                    w[r] = *x;
                }
            }
            range.fit_panel(objective, &w)
        });
        for (r, row) in self.rows.chunks_exact(self.columns).enumerate() {
            for (g, group) in row.chunks(GROUP).enumerate() {
                let kept =
                    self.stored.get(r * groups + g).and_then(|group| range.keep(group, self.exponents[r]));
                let (scale, q) = match (kept, &fitted) {
                    (Some(kept), _) => kept,
                    (None, Some(fitted)) => fitted.group(g, r),
                    (None, None) => {
                        let mut w = [0.0; GROUP];
                        w[..group.len()].copy_from_slice(group);
                        range.fit(&w)
                    }
                };
                self.scales[(g * LANES + r) * 2..][..2].copy_from_slice(&scale.to_le_bytes());
                put(&mut self.weights[g * bytes..][..bytes], r, &q);
            }
        }
    }
}

/// Row `r` of a group of int8: tiles of 16 rows by 4 columns, the columns of a row adjacent.
fn put_bytes(group: &mut [u8], r: usize, q: &[i8; GROUP]) {
    for (tile, q) in group.chunks_exact_mut(4 * LANES).zip(q.chunks_exact(4)) {
        for (to, q) in tile[4 * r..].iter_mut().zip(q) {
            *to = *q as u8;
        }
    }
}

/// Row `r` of a group of nibbles: pairs of tiles, the first in the low halves. A value is stored 8 higher.
fn put_nibbles(group: &mut [u8], r: usize, q: &[i8; GROUP]) {
    for (pair, q) in group.chunks_exact_mut(4 * LANES).zip(q.chunks_exact(8)) {
        for j in 0..4 {
            pair[4 * r + j] = (q[j] + 8) as u8 | ((q[j + 4] + 8) as u8) << 4;
        }
    }
}

/// Row `r` of a group of 3 bits: two lines with the lower two bits of 16 columns each, then one with the third bit of all 32.
/// A value is stored 4 higher.
fn put_three_bits(group: &mut [u8], r: usize, q: &[i8; GROUP]) {
    for line in group.chunks_exact_mut(4 * LANES) {
        line[4 * r..][..4].fill(0);
    }
    for (c, q) in q.iter().enumerate() {
        let (tile, at, stored) = (c / 4, 4 * r + c % 4, (q + 4) as u8);
        group[tile / 4 * 64 + at] |= (stored & 3) << (2 * (tile % 4));
        group[128 + at] |= (stored >> 2) << tile;
    }
}

/// Row `r` of a group of 5 bits: the lower four as nibbles, then a line with the fifth of all columns. A value is stored 16
/// higher.
fn put_five_bits(group: &mut [u8], r: usize, q: &[i8; GROUP]) {
    let (nibbles, high) = group.split_at_mut(GROUP * LANES / 2);
    put_nibbles(nibbles, r, &q.map(|q| ((q + 16) & 15) - 8));
    high[4 * r..][..4].fill(0);
    for (c, q) in q.iter().enumerate() {
        high[4 * r + c % 4] |= ((q + 16) as u8 >> 4) << (c / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::range::round;
    use super::*;

    /// Pseudo-random weights, roughly normal.
    fn weights(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| (next() + next() + next() + next()) * 0.04).collect()
    }

    fn error(quant: Quant) -> f64 {
        let (rows, columns) = (13, 75);
        let shape = MatrixShape::new(rows, columns, quant, true).unwrap();
        let w = weights((rows * columns) as usize, 7);
        let bias: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let mut panel = vec![0xff; shape.panel_bytes() as usize];
        write_panel(&shape, &w, columns as usize, &bias, None, &[], &mut panel).unwrap();
        let (mut error, mut total) = (0.0, 0.0);
        for r in 0..16 {
            for c in 0..shape.cols() {
                let stored = shape.element(&panel, r, c);
                let inside = r < rows && c < columns;
                let wanted = if inside { w[(r * columns + c) as usize] } else { 0.0 };
                assert!(inside || stored == 0.0, "padding at {r}, {c} holds {stored}");
                error += f64::from(stored - wanted).powi(2);
                total += f64::from(wanted).powi(2);
            }
        }
        (error / total).sqrt()
    }

    #[test]
    fn panels_read_back() {
        assert_eq!(error(Quant::F32), 0.0);
        assert!(error(Quant::F16) < 3e-4);
        assert!(error(Quant::Q8) < 6e-3);
        let q4 = error(Quant::Q4);
        assert!((0.03..0.085).contains(&q4), "q4 error {q4}");
        let q5 = error(Quant::Q5);
        assert!((0.015..0.043).contains(&q5), "q5 error {q5}");
        let q3 = error(Quant::Q3);
        assert!((0.06..0.19).contains(&q3), "q3 error {q3}");
    }

    #[test]
    fn searching_beats_the_largest_element() {
        let w = weights(GROUP * 100, 3);
        let (mut searched, mut plain) = (0.0, 0.0);
        for group in w.as_chunks::<GROUP>().0 {
            let (scale, q) = Q4.fit(group);
            let extreme = group.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
            let simple = extreme / -8.0;
            for i in 0..GROUP {
                searched += (group[i] - f32::from(q[i]) * scale.to_f32()).powi(2);
                plain += (group[i] - round((group[i] / simple).clamp(-8.0, 7.0)) * simple).powi(2);
            }
        }
        assert!(searched < 0.9 * plain, "{searched} {plain}");
    }

    #[test]
    fn too_large_is_named() {
        let shape = MatrixShape::new(16, 32, Quant::F16, false).unwrap();
        let mut w = vec![0.0; 64];
        let mut write = |shape: MatrixShape, value: f32| {
            w[33] = value;
            write_panel(&shape, &w, 32, &[], None, &[], &mut vec![0; shape.panel_bytes() as usize])
        };
        assert_eq!(write(shape, 1e6), Err(Unfit::NeedsExponents));
        let shape = shape.with_exponents(true);
        assert_eq!(write(shape, 1e6), Ok(()));
        assert_eq!(write(shape, 1e30), Err(Unfit::TooLarge { row: 1, col: 1, value: 1e30 }));
    }

    /// What is far too small or large for f16 is held as well as what is not, and the same bits where only the exponent differs.
    #[test]
    fn exponents_hold_what_f16_does_not() {
        let (rows, columns) = (13usize, 75usize);
        let w = weights(rows * columns, 7);
        for quant in Quant::ALL.into_iter().filter(|quant| *quant != Quant::F32) {
            let shape = MatrixShape::new(rows as u32, columns as u32, quant, true).unwrap();
            // Every fourth row is as it was.
            let shifts = [-40, 30, 0, -100];
            let shift = |r: usize| (shifts[r % 4] as f32).exp2();
            let scaled: Vec<f32> = w.iter().enumerate().map(|(i, w)| w * shift(i / columns)).collect();
            let bias: Vec<f32> = (0..16).map(|r| (r as f32 + 0.5) * shift(r)).collect();
            let mut panel = vec![0xff; shape.panel_bytes() as usize];
            let found = write_panel(&shape, &scaled, columns, &bias, None, &[], &mut panel);
            assert_eq!(found, Err(Unfit::NeedsExponents), "{}", quant.name());
            let mut plain = panel.clone();
            write_panel(&shape, &w, columns, &bias, None, &[], &mut plain).unwrap();
            let wide = shape.with_exponents(true);
            let mut panel = vec![0xff; wide.panel_bytes() as usize];
            write_panel(&wide, &scaled, columns, &bias, None, &[], &mut panel).unwrap();
            for r in 0..rows {
                let exponent = wide.exponent(&panel, r as u32);
                assert_eq!(exponent == 0, r % 4 == 2, "{}: {exponent} of row {r}", quant.name());
                let stored = f32::from_le_bytes(wide.biases(&panel)[r]);
                assert_eq!(stored * (exponent as f32).exp2(), bias[r]);
                for c in 0..columns {
                    let want = shape.element(&plain, r as u32, c as u32) * shift(r);
                    if quant == Quant::F16 && w[r * columns + c].abs() < 1.0 / 16384.0 {
                        continue; // A subnormal f16 where the row has no exponent.
                    }
                    assert_eq!(wide.element(&panel, r as u32, c as u32), want, "{} {r} {c}", quant.name());
                }
            }
        }
    }
}
