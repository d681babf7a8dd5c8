//! From logits to a token.
//!
//! [`Sampler`] applies, in the order of Hugging Face transformers: repetition penalty, temperature, top-k, top-p,
//! min-p. Each filter sees what the one before it left. Then it draws one token from what remains.
//!
//! A seed gives the same tokens on every target: weights come from additions and multiplications of `f32` in a fixed
//! order, are turned into integers, and are summed and drawn from as integers, whose order of summation is free.
//! Nothing is sorted and no memory is needed beside the logits: the filters find their threshold digit by digit
//! (`select`), which takes a few passes whatever the distribution.

mod pcg;
mod select;

use core::fmt;

use pcg::Pcg32;
use select::{Cut, cut};

/// The most logits that can be sampled from: the sum of their masses fits 64 bits.
pub const MAX_VOCAB: usize = 1 << 23;
/// The sign of a float in its bits.
const SIGN: u32 = 1 << 31;
/// Mass of the most likely token. A token less likely than it by more than this factor is never drawn.
const ONE: f32 = (1u64 << 40) as f32;
/// `1.5 * 2^23`: adding it rounds to an integer (ties to even) in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Logits are divided by it. 0 always takes the most likely token.
    pub temperature: f32,
    /// Only this many of the most likely tokens can be drawn; 0 means all.
    pub top_k: u32,
    /// Only the most likely tokens that together reach this probability can be drawn; 1 means all.
    /// "Nucleus sampling", Holtzman et al. 2019 (arXiv 1904.09751).
    pub top_p: f32,
    /// Only tokens of at least this fraction of the largest probability can be drawn; 0 means all.
    /// Nguyen et al. 2024 (arXiv 2407.01082).
    pub min_p: f32,
    /// Positive logits of tokens in the history are divided by it, negative ones multiplied; 1 changes nothing.
    /// Keskar et al. 2019 (CTRL, arXiv 1909.05858), section 4.1.
    pub repeat_penalty: f32,
}

impl Settings {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, ..Self::MODEL };
    /// The model's own distribution.
    pub const MODEL: Self = Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0 };

    /// # Errors
    /// [`SampleError::Setting`] for the first value that is out of its range.
    fn check(&self) -> Result<(), SampleError> {
        let in_range = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more, and finite"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1"),
            ("repeat-penalty", self.repeat_penalty, self.repeat_penalty > 0.0, "above 0, and finite"),
        ];
        for (name, value, good, range) in in_range {
            if !good || !value.is_finite() {
                return Err(SampleError::Setting { name, value, range });
            }
        }
        Ok(())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::MODEL
    }
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum SampleError {
    /// A setting is out of its range.
    Setting {
        /// Which.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// There are no logits, or more than [`MAX_VOCAB`].
    Vocabulary {
        /// How many there are.
        have: usize,
    },
    /// A logit is NaN or positive infinity.
    NotFinite {
        /// The token.
        token: u32,
        /// Its logit.
        logit: f32,
    },
    /// Every logit is negative infinity.
    Nothing,
}

impl fmt::Display for SampleError {
    // Inlined where a variant is ruled out: on boards, printing an `f32` would take a tenth of the program.
    #[inline]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Setting { name, value, range } => write!(f, "{name} is {value}: it must be {range}"),
            Self::Vocabulary { have } => {
                write!(f, "{have} logits to sample from: pass one for each token, 1 to {MAX_VOCAB}")
            }
            Self::NotFinite { token, logit } => write!(
                f,
                "the logit of token {token} is {}: the model's weights or its state are damaged; verify the file \
                 and start the session again",
                if logit.is_nan() { "NaN" } else { "inf" }
            ),
            Self::Nothing => write!(
                f,
                "no token can be chosen, every logit is negative infinity: allow at least one token, or use a tokenizer that \
                 has the model's tokens"
            ),
        }
    }
}

impl core::error::Error for SampleError {}

/// Draws tokens from logits, reproducibly.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: Settings,
    rng: Pcg32,
}

impl Sampler {
    /// Bytes of a sampler that is saved.
    pub const BYTES: usize = 28;

    /// A sampler whose draws follow from `seed`.
    ///
    /// # Errors
    /// [`SampleError::Setting`] if a setting is out of its range.
    pub fn new(settings: Settings, seed: u64) -> Result<Self, SampleError> {
        settings.check()?;
        Ok(Self { settings, rng: Pcg32::new(seed) })
    }

    /// The settings, and where the generator stands: all that the next draws follow from, to be saved.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let Settings { temperature, top_k, top_p, min_p, repeat_penalty } = self.settings;
        let words =
            [temperature.to_bits(), top_k, top_p.to_bits(), min_p.to_bits(), repeat_penalty.to_bits()];
        let mut bytes = [0; Self::BYTES];
        let (settings, state) = bytes.split_at_mut(4 * words.len());
        for (to, word) in settings.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        state.copy_from_slice(&self.rng.state().to_le_bytes());
        bytes
    }

    /// The sampler that was saved by [`Sampler::to_bytes`].
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Self, SampleError> {
        let word = |i: usize| {
            let word = bytes.get(4 * i..4 * i + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, u32::from_le_bytes)
        };
        let float = |i| f32::from_bits(word(i));
        let settings = Settings {
            temperature: float(0),
            top_k: word(1),
            top_p: float(2),
            min_p: float(3),
            repeat_penalty: float(4),
        };
        settings.check()?;
        Ok(Self { settings, rng: Pcg32::at(u64::from(word(5)) | u64::from(word(6)) << 32) })
    }

    /// The settings.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Draws a token. `logits` has one element for each token, without padding, and is overwritten; a token whose
    /// logit is negative infinity is never drawn. [`crate::tokenizer::Tokenizer::mask`] does that to ids without a token.
    ///
    /// `history` holds the tokens that the repetition penalty applies to, once each however often they occur; ids
    /// past the vocabulary are ignored. Its cost grows with the square of its length: a window of some hundred recent
    /// tokens is meant.
    ///
    /// Equally likely tokens count as ordered by their id, the lowest first. Every call draws once from the generator,
    /// unless the temperature is 0 or it fails.
    ///
    /// # Errors
    /// [`SampleError::Vocabulary`], [`SampleError::NotFinite`] or [`SampleError::Nothing`].
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32, SampleError> {
        if logits.is_empty() || logits.len() > MAX_VOCAB {
            return Err(SampleError::Vocabulary { have: logits.len() });
        }
        penalize(logits, history, self.settings.repeat_penalty);
        let (token, largest) = most_likely(logits)?;
        if self.settings.temperature == 0.0 {
            return Ok(token);
        }
        self.weigh(logits, largest);
        let total: u64 = logits.iter().map(|&w| mass(w)).sum();
        let mut draw = self.rng.below(total);
        for (&weight, token) in logits.iter().zip(0..) {
            let mass = mass(weight);
            if draw < mass {
                return Ok(token);
            }
            draw -= mass;
        }
        Ok(token)
    }

    /// Replaces logits by weights: 1 for the most likely token, in proportion for the others, 0 for what a filter
    /// removes.
    fn weigh(&self, logits: &mut [f32], largest: f32) {
        let Settings { temperature, top_k, top_p, min_p, .. } = self.settings;
        if top_k > 0 && (top_k as usize) < logits.len() {
            let by_logit = logits.iter().map(|&l| ordered_bits(l));
            let cut = cut(by_logit, |_| 1, u64::from(top_k));
            remove(logits, cut, ordered_bits, f32::NEG_INFINITY);
        }
        let weights = logits;
        for w in weights.iter_mut() {
            *w = exp((*w - largest) / temperature);
        }
        if top_p < 1.0 {
            let total: u64 = weights.iter().map(|&w| mass(w)).sum();
            let part = (u128::from(total) * u128::from((top_p * 4_294_967_296.0) as u64)) >> 32;
            let by_weight = weights.iter().map(|w| w.to_bits());
            let cut = cut(by_weight, |bits| mass(f32::from_bits(bits)), part.max(1) as u64);
            remove(weights, cut, f32::to_bits, 0.0);
        }
        if min_p > 0.0 {
            for w in weights.iter_mut() {
                *w = if *w < min_p { 0.0 } else { *w };
            }
        }
    }
}

/// Makes the tokens of `history` less likely, each one once.
fn penalize(logits: &mut [f32], history: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    for (i, token) in history.iter().enumerate() {
        let first = !history.iter().take(i).any(|earlier| earlier == token);
        if let Some(logit) = logits.get_mut(*token as usize).filter(|l| first && l.is_finite()) {
            let penalized = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            *logit = penalized.clamp(f32::MIN, f32::MAX);
        }
    }
}

/// The token with the largest logit, the lowest id of equals, and that logit.
fn most_likely(logits: &[f32]) -> Result<(u32, f32), SampleError> {
    // Bits as signed integers have the largest logit as their largest where that is above 0, at less than `order` takes.
    let mut pass = Pass::over(logits, |bits| bits as i32);
    if pass.largest <= 0 {
        pass = Pass::over(logits, order);
    }
    if pass.bad {
        for (&logit, token) in logits.iter().zip(0..) {
            if logit.is_nan() || logit == f32::INFINITY {
                return Err(SampleError::NotFinite { token, logit });
            }
        }
    }
    let some = logits.get(pass.start..).unwrap_or_default();
    match some.iter().zip(pass.start as u32..).find(|(logit, _)| order(logit.to_bits()) == pass.largest) {
        Some((&logit, token)) if logit > f32::NEG_INFINITY => Ok((token, logit)),
        _ => Err(SampleError::Nothing),
    }
}

/// What one pass over logits finds, many at a time.
struct Pass {
    /// The largest key.
    largest: i32,
    /// Where the first stretch of logits begins that has it.
    start: usize,
    /// Whether a logit is NaN or positive infinity.
    bad: bool,
}

impl Pass {
    /// `key` of a logit's bits must be the bits where they are those of a positive number or NaN.
    fn over(logits: &[f32], key: impl Fn(u32) -> i32) -> Self {
        const SOME: usize = 64;
        let (mut largest, mut start, mut most_bits) = (i32::MIN, 0, 0);
        for (some, at) in logits.chunks(SOME).zip((0..).step_by(SOME)) {
            let mut most = i32::MIN;
            for logit in some {
                most = most.max(key(logit.to_bits()));
                most_bits = most_bits.max(logit.to_bits());
            }
            if most > largest {
                (largest, start) = (most, at);
            }
        }
        // As unsigned integers, only negative NaNs are beyond negative infinity.
        let bad = largest >= f32::INFINITY.to_bits() as i32 || most_bits > f32::NEG_INFINITY.to_bits();
        Self { largest, start, bad }
    }
}

/// Integers that order as logits do that are not NaN: what is negative counts down from zero, and both zeros are equal.
fn order(bits: u32) -> i32 {
    (if bits & SIGN == 0 { bits } else { SIGN.wrapping_sub(bits) }) as i32
}

/// Writes `nothing` over what lies beyond the cut in the order of `key`, largest first, equals by id.
fn remove(values: &mut [f32], mut cut: Cut, key: impl Fn(f32) -> u32, nothing: f32) {
    for value in values {
        if !cut.keeps(key(*value)) {
            *value = nothing;
        }
    }
}

/// Bits that are ordered as unsigned integers as `x` is ordered; both zeros are equal.
fn ordered_bits(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}

/// The integer that stands for a weight in sums and draws; exact for weights of 2^-17 and more, cut below.
fn mass(weight: f32) -> u64 {
    (weight * ONE) as u64
}

/// `e^x` for `x <= 0`, 0 where the mass would be: `2^n e^r` with `|r| <= ln 2 / 2`, `e^r` by its Taylor polynomial of
/// degree 7 (relative error 5e-9), relative error under 3e-6 in all, from the rounding of `x log2 e`.
///
/// [`crate::numbers::float::exp`] is for the model's step: it needs fma, which costs a call here, a vocabulary long.
fn exp(x: f32) -> f32 {
    let y = x * core::f32::consts::LOG2_E;
    // Also where y is minus infinity, so that nothing below depends on it.
    let y = if y < -41.0 { -41.0 } else { y };
    let shifted = y + ROUND_MAGIC;
    let r = (y - (shifted - ROUND_MAGIC)) * core::f32::consts::LN_2;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if y <= -41.0 { 0.0 } else { scaled }
}

#[cfg(test)]
mod tests;
