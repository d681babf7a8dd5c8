//! What the file's header must say of the weights, which is known when all are packed.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use elapid_core::format::{Config, Part, PerMatrix};

use crate::quantize::exponent_of;

/// What turns out about the weights while they are packed.
#[derive(Default)]
pub(crate) struct Findings {
    /// Whether rows of embedding, in_proj, x_proj, dt_proj, out_proj, head need exponents.
    exponents: [AtomicBool; 6],
    /// The largest bound on a logit, the bits of an f32: those of magnitudes are ordered as these.
    most: AtomicU32,
}

impl Findings {
    /// Whether any row needs an exponent that it does not have.
    pub(crate) fn any(&self) -> bool {
        self.exponents.iter().any(|found| found.load(Ordering::Relaxed))
    }

    /// Notes that a row of a matrix needs one.
    pub(crate) fn note_exponents(&self, part: Part) {
        let matrices = [Part::Embedding, Part::InProj, Part::XProj, Part::DtProj, Part::OutProj, Part::Head];
        for (found, _) in self.exponents.iter().zip(matrices).filter(|(_, matrix)| *matrix == part) {
            found.store(true, Ordering::Relaxed);
        }
    }

    /// Which matrices are to have exponents: those that have them, and those of which a row needs one; `None` if there is no
    /// such row.
    pub(crate) fn exponents(&self, config: &Config) -> Option<PerMatrix<bool>> {
        let [embedding, in_proj, x_proj, dt_proj, out_proj, head] = [0, 1, 2, 3, 4, 5]
            .map(|i| config.exponents.all()[i] || self.exponents[i].load(Ordering::Relaxed));
        let head = if config.tied { embedding } else { head };
        self.any().then_some(PerMatrix { embedding, in_proj, x_proj, dt_proj, out_proj, head })
    }

    /// Notes a bound on the logits that rows of the head can give: what the norm leaves has the length `sqrt(d_model)` before its
    /// weights `norm`. Returns the largest bound of these, to be noted again ([`Self::note_largest`]).
    pub(crate) fn note_logits(&self, rows: &[f32], norm: &[f32]) -> u32 {
        let mut most = 0;
        for row in rows.chunks_exact(norm.len()) {
            let square = |(w, n): (&f32, &f32)| (f64::from(*w) * f64::from(*n)).powi(2);
            let bound = (row.iter().zip(norm).map(square).sum::<f64>() * norm.len() as f64).sqrt();
            most = most.max((bound as f32).to_bits());
        }
        self.note_largest(most);
        most
    }

    /// Notes what [`Self::note_logits`] returned of a block when it was packed.
    pub(crate) fn note_largest(&self, most: u32) {
        self.most.fetch_max(most, Ordering::Relaxed);
    }

    /// The largest bound noted.
    pub(crate) fn largest_logit(&self) -> f32 {
        f32::from_bits(self.most.load(Ordering::Relaxed))
    }
}

/// The exponent of the fixed path's logits, where `most` bounds them: 0 if 32 bits then hold them, and a quarter more for what
/// rounding weights and activations may add, and tell those near the bound to 2^-16 of it.
pub(crate) fn logit_exponent(most: f32) -> i8 {
    let most = 1.25 * most;
    if most == 0.0 || (1.0..32768.0).contains(&most) {
        return 0;
    }
    let (least, largest) = Config::LOGIT_EXPONENTS.into_inner();
    (exponent_of(most) - 14).clamp(i32::from(least), i32::from(largest)) as i8
}

#[cfg(test)]
mod tests {
    use super::logit_exponent;

    #[test]
    fn logits_fit_their_unit() {
        for most in [0.0, 0.8, 47.0, 26_214.0] {
            assert_eq!(logit_exponent(most), 0, "{most}");
        }
        for (most, exponent) in
            [(26_215.0, 1), (1e9, 16), (1e38, 112), (f32::INFINITY, 112), (0.7, -15), (1e-40, -100)]
        {
            assert_eq!(logit_exponent(most), exponent, "{most}");
        }
    }
}
