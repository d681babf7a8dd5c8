//! The conversation on a board's console.

use crc32fast::Hasher;
use elapid_core::kernels::LANES;
use elapid_core::sample::{self, Sampler};
use elapid_core::tokenizer::{Decoder, EncodeOptions};
use heapless::Vec;

use crate::line::{self, say};
use crate::model::Text;
use crate::{Engine, Error, Platform};

/// Bytes of a line, and tokens of a prompt, at most.
const LINE: usize = 256;
/// Generated tokens that a report lists at most.
const LISTED: usize = 256;
/// Bytes in which a line of [`LINE`] bytes is encoded, were it a single word to be normalised.
const SCRATCH: usize = 21 * LINE + 1024;

/// What a generation follows from. The defaults are those of `elapid run`.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Tokens to generate at most.
    pub tokens: u32,
    /// How tokens are chosen.
    pub sample: sample::Settings,
    /// What the choices follow from.
    pub seed: u64,
    /// Whether a generation ends with a report for `cargo xtask board NAME test`.
    pub check: bool,
}

impl Settings {
    /// What a board begins with.
    pub const DEFAULT: Self = Self {
        tokens: 64,
        sample: sample::Settings { temperature: 0.8, top_p: 0.95, ..sample::Settings::MODEL },
        seed: 1,
        check: false,
    };
}

/// The memory of a conversation; belongs in a `static`.
///
/// All zeros at first, settings left out: it takes no space in flash.
#[derive(Debug)]
pub struct Shell {
    line: Vec<u8, LINE>,
    prompt: Vec<u32, LINE>,
    tokens: Vec<u32, LISTED>,
    scratch: [u8; SCRATCH],
}

impl Default for Shell {
    fn default() -> Self {
        Self::new()
    }
}

impl Shell {
    /// A conversation that has not begun.
    #[must_use]
    pub const fn new() -> Self {
        Self { line: Vec::new(), prompt: Vec::new(), tokens: Vec::new(), scratch: [0; SCRATCH] }
    }

    /// Reads prompts and writes what follows them, for ever; returns only where the platform's exit does.
    ///
    /// A line that begins with `/` is a command: `/n 64`, `/seed 1`, `/temp 0.8`, `/check`, `/exit`. Whatever goes
    /// wrong is said in a line, and the next prompt is asked for.
    pub fn run(&mut self, platform: &mut dyn Platform, engine: &mut dyn Engine, text: &Text<'_>) {
        let mut settings = Settings::DEFAULT;
        loop {
            say(platform, format_args!("> "));
            match self.turn(&mut settings, platform, engine, text) {
                Ok(true) => {}
                Ok(false) => return platform.exit(true),
                Err(error) => {
                    say(platform, format_args!("error: {error}\n"));
                    if settings.check {
                        // A test wants an end, not another prompt.
                        return platform.exit(false);
                    }
                }
            }
        }
    }

    /// One line. False if it asks for the end.
    fn turn(
        &mut self,
        settings: &mut Settings,
        platform: &mut dyn Platform,
        engine: &mut dyn Engine,
        text: &Text<'_>,
    ) -> Result<bool, Error> {
        let line = line::read(platform, &mut self.line)?;
        if let Some(command) = line.strip_prefix('/') {
            return set(settings, command);
        }
        if line.is_empty() {
            return Ok(true);
        }
        self.prompt.clear();
        let (prompt, mut fits) = (&mut self.prompt, true);
        text.tokenizer.encode(line, EncodeOptions::default(), &mut self.scratch, &mut |token| {
            fits &= prompt.push(token).is_ok();
        })?;
        if !fits {
            return Err(Error::Long(LINE));
        }
        self.generate(settings, platform, engine, text).map(|()| true)
    }

    fn generate(
        &mut self,
        settings: &Settings,
        platform: &mut dyn Platform,
        engine: &mut dyn Engine,
        text: &Text<'_>,
    ) -> Result<(), Error> {
        let Settings { tokens, sample, seed, check } = *settings;
        let mut sampler = Sampler::new(sample, seed)?;
        if check {
            say(platform, format_args!("--- text\n"));
        }
        engine.clear();
        for token in &self.prompt {
            engine.feed(*token, platform)?;
        }
        self.tokens.clear();
        let mut decoder = Decoder::new().skip_special(true);
        let mut sum = Hasher::new();
        let (mut made, mut step, began) = (0, 0, platform.ticks());
        loop {
            let before = platform.ticks();
            let logits = engine.logits()?;
            if made > 0 {
                step += platform.ticks() - before;
            }
            if check {
                add(&mut sum, logits);
            }
            text.tokenizer.mask(logits);
            let token = sampler.sample(logits, &[])?;
            if text.generation.as_ref().is_some_and(|g| g.eos.contains(token)) {
                break;
            }
            made += 1;
            // A report lists as many as it can.
            let _ = self.tokens.push(token);
            // What was chosen has text: the others are masked.
            let _ = decoder.push(&text.tokenizer, token, &mut |piece| say(platform, format_args!("{piece}")));
            if made >= tokens {
                break;
            }
            // The prompt's blocks were checked as they were first read: what is measured here is the step alone.
            let before = platform.ticks();
            engine.feed(token, platform)?;
            step += platform.ticks() - before;
        }
        let end = platform.ticks();
        decoder.finish(&mut |piece| say(platform, format_args!("{piece}")));
        if check {
            // The last token that is chosen is not fed.
            self.report(platform, sum.finalize(), step.checked_div(u64::from(made.saturating_sub(1))));
        } else {
            say(platform, format_args!("\n[{made} tokens in {} ticks]\n", end - began));
        }
        Ok(())
    }

    /// What `tools/xtask/src/board/report.rs` reads.
    fn report(&self, platform: &mut dyn Platform, logits: u32, ticks: Option<u64>) {
        say(platform, format_args!("\n--- prompt"));
        for token in &self.prompt {
            say(platform, format_args!(" {token}"));
        }
        say(platform, format_args!("\n--- tokens"));
        for token in &self.tokens {
            say(platform, format_args!(" {token}"));
        }
        say(platform, format_args!("\n--- logits {logits:08x}\n"));
        if let Some(ticks) = ticks {
            say(platform, format_args!("--- ticks {ticks}\n"));
        }
        if let Some(bytes) = platform.stack_used() {
            say(platform, format_args!("--- stack {bytes}\n"));
        }
        say(platform, format_args!("--- end\n"));
    }
}

/// Adds the little-endian bytes of some logits.
fn add(sum: &mut Hasher, logits: &[f32]) {
    for row in logits.chunks(LANES) {
        let mut bytes = [[0; 4]; LANES];
        for (to, logit) in bytes.iter_mut().zip(row) {
            *to = logit.to_le_bytes();
        }
        sum.update(bytes[..row.len()].as_flattened());
    }
}

/// Follows a command. False for the end.
fn set(settings: &mut Settings, command: &str) -> Result<bool, Error> {
    let (name, value) = command.split_once(' ').unwrap_or((command, ""));
    let value = value.trim();
    match name {
        "n" => settings.tokens = value.parse().ok().filter(|n| *n > 0).ok_or(Error::Command)?,
        "seed" => settings.seed = value.parse().map_err(|_| Error::Command)?,
        "temp" => {
            let temperature = value.parse().map_err(|_| Error::Command)?;
            let sample = sample::Settings { temperature, ..settings.sample };
            // Refused here, not at the next prompt.
            Sampler::new(sample, 0)?;
            settings.sample = sample;
        }
        "check" => settings.check = true,
        "exit" => return Ok(false),
        _ => return Err(Error::Command),
    }
    Ok(true)
}
