//! From rows of floats to the bytes of a panel.

use elapid_core::format::{MatrixShape, Quant};
use elapid_core::kernels::{GROUP, LANES};
use half::f16;

/// Why a value can't be stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TooLarge {
    /// The value's row, counted within the panel.
    pub row: usize,
    /// Its column.
    pub col: usize,
    /// The value.
    pub value: f32,
}

/// A group of weights that shares a scale.
type Group = [f32; GROUP];

/// `1.5 * 2^23`: adding and taking it away rounds to an integer, ties to even.
const ROUND_MAGIC: f32 = 12_582_912.0;

#[inline]
fn round(x: f32) -> f32 {
    (x + ROUND_MAGIC) - ROUND_MAGIC
}

/// Range of the integers of a quantized type.
#[derive(Debug, Clone, Copy)]
struct Range {
    low: f32,
    high: f32,
    /// Scales that are tried: the group's largest element is put at `low`, or at `-low`, times these.
    tried: &'static [f32],
}

/// int8 without -128.
const Q8: Range = Range { low: -127.0, high: 127.0, tried: &[1.0, 0.998, 0.995, 0.99] };
/// Nibbles. The range is lopsided, so the sign of the scale matters and both are tried.
const Q4: Range = Range {
    low: -8.0,
    high: 7.0,
    tried: &[
        1.12, 1.08, 1.04, 1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8, 0.77, 0.74, 0.71, 0.68, 0.64,
    ],
};

impl Range {
    /// The nearest integers for `w * inverse`, with the sums of `w q` and `q q`.
    #[inline]
    fn integers(&self, w: &Group, inverse: f32) -> (Group, f32, f32) {
        let mut q = [0.0; GROUP];
        let (mut wq, mut qq) = ([0.0f32; 8], [0.0f32; 8]);
        for i in 0..GROUP {
            q[i] = round((w[i] * inverse).clamp(self.low, self.high));
            wq[i % 8] += w[i] * q[i];
            qq[i % 8] += q[i] * q[i];
        }
        (q, wq.iter().sum(), qq.iter().sum())
    }

    /// The scale and integers with the least squared error among those tried.
    ///
    /// For given integers the best scale is `sum(w q) / sum(q q)`, and the error `sum(w w) - sum(w q)^2 / sum(q q)`;
    /// what is left is the search over integers, by dividing by trial scales.
    fn fit(&self, w: &Group) -> (f16, [i8; GROUP]) {
        let extreme = w.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        if extreme == 0.0 {
            return (f16::ZERO, [0; GROUP]);
        }
        let (mut best, mut best_scale) = (f32::NEG_INFINITY, extreme / self.low);
        let lopsided = self.low != -self.high;
        for &factor in self.tried {
            for end in [self.low, -self.low] {
                let (_, wq, qq) = self.integers(w, end * factor / extreme);
                if qq > 0.0 && wq * wq > best * qq {
                    (best, best_scale) = (wq * wq / qq, wq / qq);
                }
                if !lopsided {
                    break;
                }
            }
        }
        let scale = f16::from_f32(best_scale);
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        let (q, _, _) = self.integers(w, inverse);
        (scale, q.map(|q| q as i8))
    }
}

/// Writes the panel of `shape` that holds up to 16 rows of `columns` floats, and 16 biases where the shape has them.
///
/// `rows` may be fewer than 16 and narrower than the shape: the rest is zeros. `panel` is overwritten whole.
///
/// # Errors
/// [`TooLarge`] for a value that f16, or a scale in f16, can't hold.
pub fn write_panel(
    shape: &MatrixShape,
    rows: &[f32],
    columns: usize,
    bias: &[f32],
    panel: &mut [u8],
) -> Result<(), TooLarge> {
    panel.fill(0);
    let (scales, rest) = panel.split_at_mut(shape.scale_bytes() as usize);
    let (weights, bias_out) = rest.split_at_mut(shape.weight_bytes() as usize);
    for (r, row) in rows.chunks_exact(columns).enumerate() {
        match shape.quant() {
            Quant::F32 => {
                for (c, w) in row.iter().enumerate() {
                    weights[(c * LANES + r) * 4..][..4].copy_from_slice(&w.to_le_bytes());
                }
            }
            Quant::F16 => {
                for (c, w) in row.iter().enumerate() {
                    let half = f16::from_f32(*w);
                    if half.is_infinite() {
                        return Err(TooLarge { row: r, col: c, value: *w });
                    }
                    weights[(c * LANES + r) * 2..][..2].copy_from_slice(&half.to_le_bytes());
                }
            }
            Quant::Q8 | Quant::Q4 => {
                for (g, group) in row.chunks(GROUP).enumerate() {
                    let mut w = [0.0; GROUP];
                    w[..group.len()].copy_from_slice(group);
                    let is_q8 = shape.quant() == Quant::Q8;
                    let (scale, q) = if is_q8 { Q8.fit(&w) } else { Q4.fit(&w) };
                    if !scale.is_finite() {
                        let larger = |a: usize, b: usize| if w[b].abs() > w[a].abs() { b } else { a };
                        let extreme = (0..GROUP).fold(0, larger);
                        return Err(TooLarge { row: r, col: g * GROUP + extreme, value: w[extreme] });
                    }
                    scales[(g * LANES + r) * 2..][..2].copy_from_slice(&scale.to_le_bytes());
                    if is_q8 {
                        put_bytes(&mut weights[g * GROUP * LANES..][..GROUP * LANES], r, &q);
                    } else {
                        put_nibbles(&mut weights[g * GROUP * LANES / 2..][..GROUP * LANES / 2], r, &q);
                    }
                }
            }
        }
    }
    if shape.quant() == Quant::Q4 {
        fill_nibbles(weights, rows.len() / columns.max(1), columns.div_ceil(GROUP));
    }
    for (to, bias) in bias_out.chunks_exact_mut(4).zip(bias) {
        to.copy_from_slice(&bias.to_le_bytes());
    }
    Ok(())
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

/// Padding rows and groups of nibbles hold zeros too, which are stored as 8.
fn fill_nibbles(weights: &mut [u8], rows: usize, groups: usize) {
    for (g, group) in weights.chunks_exact_mut(GROUP * LANES / 2).enumerate() {
        for pair in group.chunks_exact_mut(4 * LANES) {
            let from = if g < groups { 4 * rows } else { 0 };
            pair[from..].fill(0x88);
        }
    }
}

#[cfg(test)]
mod tests {
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
        let shape = MatrixShape::new(rows, columns, quant, true);
        let w = weights((rows * columns) as usize, 7);
        let bias: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let mut panel = vec![0xff; shape.panel_bytes() as usize];
        write_panel(&shape, &w, columns as usize, &bias, &mut panel).unwrap();
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
        let shape = MatrixShape::new(16, 32, Quant::F16, false);
        let mut w = vec![0.0; 64];
        w[33] = 1e6;
        let mut panel = vec![0; shape.panel_bytes() as usize];
        let found = write_panel(&shape, &w, 32, &[], &mut panel);
        assert_eq!(found, Err(TooLarge { row: 1, col: 1, value: 1e6 }));
    }
}
