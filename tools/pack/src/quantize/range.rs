//! Integers of a range times a scale: what a group of weights comes to, on its own.

use elapid_core::kernels::GROUP;
use half::f16;

use crate::checkpoint::StoredGroup;

/// A group of weights that shares a scale.
pub(super) type Group = [f32; GROUP];

/// `1.5 * 2^23`: adding and taking it away rounds to an integer, ties to even.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// To the nearest integer, ties to even, for magnitudes up to 2^22.
#[inline]
pub(super) fn round(x: f32) -> f32 {
    (x + ROUND_MAGIC) - ROUND_MAGIC
}

/// Range of the integers of a quantized type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) low: f32,
    pub(super) high: f32,
    /// The largest scale.
    pub(super) most: f32,
    /// Scales that are tried: the group's largest element is put at `low`, or at `-low`, times these.
    pub(super) tried: &'static [f32],
}

/// The largest scale of what the fixed path computes with: the last f16 below 2, which its integers hold.
const MOST_FIXED: f32 = 2.0 - 1.0 / 1024.0;

/// int8 without -128.
pub(super) const Q8: Range =
    Range { low: -127.0, high: 127.0, most: MOST_FIXED, tried: &[1.0, 0.998, 0.995, 0.99] };
/// Nibbles. The range is lopsided, so the sign of the scale matters and both are tried.
pub(super) const Q4: Range = Range {
    low: -8.0,
    high: 7.0,
    most: MOST_FIXED,
    tried: &[
        1.12, 1.08, 1.04, 1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8, 0.77, 0.74, 0.71, 0.68, 0.64,
    ],
};

/// As nibbles, with twice the range.
pub(super) const Q5: Range = Range {
    low: -16.0,
    high: 15.0,
    most: f16::MAX.to_f32_const(),
    tried: &[1.06, 1.04, 1.02, 1.0, 0.98, 0.96, 0.94, 0.92, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8, 0.77],
};
/// As nibbles, with half the range.
pub(super) const Q3: Range = Range {
    low: -4.0,
    high: 3.0,
    most: f16::MAX.to_f32_const(),
    tried: &[
        1.24, 1.18, 1.12, 1.06, 1.0, 0.96, 0.92, 0.89, 0.86, 0.83, 0.8, 0.77, 0.74, 0.71, 0.68, 0.65, 0.62,
        0.58, 0.54,
    ],
};

impl Range {
    /// Whether the range is not the same on both sides of 0, so that a scale's sign matters.
    pub(super) fn is_lopsided(&self) -> bool {
        self.low != -self.high
    }

    /// A group as it is stored, in a row with this exponent; `None` if the range or its scales don't hold it exactly.
    pub(super) fn keep(&self, group: &StoredGroup, exponent: i32) -> Option<(f16, [i8; GROUP])> {
        let wanted = group.scale.to_f32() * (-exponent as f32).exp2();
        let scale = f16::from_f32(wanted);
        let holds = |q: &i8| (self.low..=self.high).contains(&f32::from(*q));
        let exact = scale.to_f32() == wanted && wanted.abs() <= self.most;
        (exact && group.integers.iter().all(holds)).then_some((scale, group.integers))
    }

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
    pub(super) fn fit(&self, w: &Group) -> (f16, [i8; GROUP]) {
        let extreme = w.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        if extreme == 0.0 {
            return (f16::ZERO, [0; GROUP]);
        }
        let (mut best, mut best_scale) = (f32::NEG_INFINITY, extreme / self.low);
        for &factor in self.tried {
            for end in [self.low, -self.low] {
                let (_, wq, qq) = self.integers(w, end * factor / extreme);
                if qq > 0.0 && wq * wq > best * qq {
                    (best, best_scale) = (wq * wq / qq, wq / qq);
                }
                if !self.is_lopsided() {
                    break;
                }
            }
        }
        let scale = f16::from_f32(best_scale.clamp(-self.most, self.most));
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        let (q, _, _) = self.integers(w, inverse);
        (scale, q.map(|q| q as i8))
    }
}
