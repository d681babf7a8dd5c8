//! The report after a text.

use core::fmt;

use crc32fast::Hasher;
use elapid_core::kernels::LANES;
use micromath::statistics::{Mean, StdDev};

use crate::{Platform, say};

/// The CRC-32 of logits, as little-endian f32, `[vocab]` for each token.
#[derive(Default)]
pub struct Checksum(Hasher);

impl Checksum {
    /// Adds the logits of a token, several at a time: a call for four bytes would cost more than its work.
    pub fn add(&mut self, logits: &[f32]) {
        for row in logits.chunks(LANES) {
            let mut bytes = [[0; 4]; LANES];
            for (to, logit) in bytes.iter_mut().zip(row) {
                *to = logit.to_le_bytes();
            }
            self.0.update(bytes[..row.len()].as_flattened());
        }
    }

    /// The checksum.
    pub fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// What a generation did.
pub struct Report<'t> {
    pub prompt: &'t [u32],
    /// The tokens of the text, as many as there was room for.
    pub tokens: &'t [u32],
    /// How many there are.
    pub made: usize,
    /// Of all logits that tokens were chosen from.
    pub logits: u32,
    /// Ticks of a token's step, the prompt's and the sampler left out.
    pub step: Option<u64>,
    /// Ticks in which the prompt was read.
    pub prompt_ticks: u64,
    /// Ticks of all.
    pub ticks: u64,
    /// Tokens a second, for each of the last tokens but the first.
    pub rates: &'t [f32],
    pub seed: u64,
    /// Why the text ended before its length, after a comma; empty if it did not.
    pub end: &'static str,
}

impl Report<'_> {
    /// What `tools/xtask/src/board/report.rs` reads.
    pub fn for_tests(&self, platform: &mut dyn Platform) {
        let Self { prompt, tokens, logits, ticks, end, .. } = self;
        say(platform, format_args!("\n--- prompt{}\n--- tokens{}\n", Numbers(prompt), Numbers(tokens)));
        say(platform, format_args!("--- logits {logits:08x}\n"));
        if let Some(step) = self.step {
            say(platform, format_args!("--- ticks {step}\n"));
        }
        say(platform, format_args!("--- time {ticks}\n"));
        if let Some(bytes) = platform.stack_used() {
            say(platform, format_args!("--- stack {bytes}\n"));
        }
        say(platform, format_args!("--- ending{end}\n--- end\n"));
    }

    /// The numbers of tokens, and how fast they came.
    pub fn for_people(&self, platform: &mut dyn Platform) {
        let Self { prompt, made, prompt_ticks, rates, seed, end, .. } = self;
        let count = prompt.len();
        let a_second = platform.ticks_a_second();
        if a_second == 0 {
            return say(
                platform,
                format_args!("\n[prompt: {count} tokens; text: {made} tokens; seed {seed}{end}]\n"),
            );
        }
        let read = Rate::new(count as f32 * a_second as f32 / (*prompt_ticks).max(1) as f32);
        let mean = Rate::new(rates.iter().copied().mean());
        let spread = Rate { value: rates.stddev(), ..mean };
        say(platform, format_args!("\n[prompt: {count} tokens, {read} tokens/s; text: {made} tokens"));
        match rates.len() {
            0 => {}
            1 => say(platform, format_args!(", {mean} tokens/s")),
            _ => say(platform, format_args!(", {mean} ± {spread} tokens/s")),
        }
        say(platform, format_args!("; seed {seed}{end}]\n"));
    }
}

/// Numbers with a space before each.
struct Numbers<'a>(&'a [u32]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|number| write!(f, " {number}"))
    }
}

/// A number with a tenth, or with thousandths. Printing a float takes a kilobyte of stack.
struct Rate {
    value: f32,
    thousandths: bool,
}

impl Rate {
    /// A rate, precise enough for one of its size.
    fn new(value: f32) -> Self {
        Self { value, thousandths: value < 1.0 }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, digits) = if self.thousandths { (1000, 3) } else { (10, 1) };
        let number = (self.value * unit as f32 + 0.5) as u32;
        write!(f, "{}.{:0digits$}", number / unit, number % unit)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Rate;
    use std::string::ToString;

    #[test]
    fn rates_are_rounded() {
        for (rate, text) in
            [(0.0, "0.000"), (0.0416, "0.042"), (1.04, "1.0"), (9.96, "10.0"), (812.25, "812.3")]
        {
            assert_eq!(Rate::new(rate).to_string(), text);
        }
    }
}
