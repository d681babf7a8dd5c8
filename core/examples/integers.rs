//! The fixed path's step, whole, as code of its own: `cargo xtask test --only integers-m3` looks for floats and panics in it.
#![no_std]

use elapid_core::model::fixed::{Model, Session};
use elapid_core::model::{Rows, StepError};
use elapid_core::source::LayerSource;

/// Lets tokens pass a model, and computes the last one's logits.
///
/// # Errors
/// As [`Model::forward`] and [`Model::logits`](elapid_core::model::Model::logits).
#[inline(never)]
pub fn step(
    model: &Model<'_>,
    session: &mut Session<'_>,
    source: &mut dyn LayerSource,
    tokens: &[u32],
    logits: &mut [i32],
) -> Result<(), StepError> {
    model.forward(session, source, tokens)?;
    model.logits(session, source, Rows::Last, logits)
}
