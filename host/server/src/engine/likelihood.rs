//! How likely tokens are.

/// A token, and how likely it was.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub id: u32,
    /// The natural logarithm of its probability, before temperature and penalties.
    pub logprob: f32,
    /// The most likely tokens and their log probabilities, most likely first.
    pub top: Vec<(u32, f32)>,
}

impl Chosen {
    /// The token `id` by logits, and the `top` most likely ones.
    pub(crate) fn new(logits: &[f32], id: u32, top: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let total = f64::from(largest) + sum.ln();
        let logprob = |id: u32| {
            (f64::from(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY)) - total) as f32
        };
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
        for (token, logit) in (0..).zip(logits) {
            if top > 0 && (best.len() < top || best.last().is_some_and(|(_, least)| logit > least)) {
                let place = best.partition_point(|(_, other)| other >= logit);
                best.insert(place, (token, *logit));
                best.truncate(top);
            }
        }
        let top = best.into_iter().map(|(token, _)| (token, logprob(token))).collect();
        Self { id, logprob: logprob(id), top }
    }
}
