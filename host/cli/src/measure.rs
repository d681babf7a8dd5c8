//! What measurements of speed share.

use std::time::Duration;

use elapid::core::sample::{Sampler, Settings};
use elapid::core::tokenizer::Tokenizer;
use elapid::{Model, Session};

use super::error::Error;

/// The model's tokenizer, if it has one.
pub(super) fn tokenizer(model: &Model) -> Result<Option<Tokenizer<'_>>, Error> {
    match model.tokenizer() {
        Err(elapid::Error::NoTokenizer { .. }) => Ok(None),
        tokenizer => Ok(Some(tokenizer?)),
    }
}

/// The most likely next token, as `elapid run --temp 0` takes it.
pub(super) fn most_likely(session: &mut Session, tokenizer: Option<&Tokenizer<'_>>) -> Result<u32, Error> {
    let sampled = |cause| Error::Library(elapid::Error::Sample { cause });
    let mut greedy = Sampler::new(Settings::GREEDY, 0).map_err(sampled)?;
    let logits = session.logits()?;
    if let Some(tokenizer) = tokenizer {
        tokenizer.mask(logits);
    }
    greedy.sample(logits, &[]).map_err(sampled)
}

/// The middle one of some times, in seconds.
pub(super) fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64)
}
