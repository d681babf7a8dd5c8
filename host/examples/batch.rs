//! Continues several prompts together, so that the weights are read once for all: `cargo run --release -p elapid --example batch`

use elapid::core::sample::{Sampler, Settings};
use elapid::{Error, Model, ModelOptions, SessionOptions};

const PROMPTS: [&str; 3] = ["My fellow citizens", "Call me", "The whale"];
const TOKENS: usize = 24;

fn main() -> Result<(), Error> {
    let model = Model::bundled(&ModelOptions::default())?;
    let tokenizer = model.tokenizer()?;
    let mut greedy = Sampler::new(Settings::GREEDY, 0).map_err(|cause| Error::Sample { cause })?;
    let mut choose = |logits: &mut [f32]| {
        tokenizer.mask(logits);
        greedy.sample(logits, &[]).map_err(|cause| Error::Sample { cause })
    };
    let mut batch = model.batch(PROMPTS.len(), &SessionOptions::default())?;
    let mut texts = PROMPTS.map(|prompt| prompt.as_bytes().to_vec());
    // The token of each sequence that is fed next.
    let mut next = Vec::new();
    for (sequence, prompt) in PROMPTS.iter().enumerate() {
        batch.feed(sequence, &model.encode(prompt)?)?;
        next.push((sequence, choose(batch.logits()?)?));
    }
    for _ in 0..TOKENS {
        for &(sequence, token) in &next {
            texts[sequence].extend(tokenizer.token_bytes(token).unwrap_or_default());
        }
        let mut chosen = Vec::new();
        batch.step(&next, |sequence, logits| {
            chosen.push((sequence, choose(logits)?));
            Ok::<(), Error>(())
        })?;
        next = chosen;
    }
    for text in &texts {
        println!("{}\n", String::from_utf8_lossy(text));
    }
    Ok(())
}
