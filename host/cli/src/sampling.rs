//! How tokens are chosen: options of `run` and `chat`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use elapid::SAMPLING;
use elapid::core::sample::{SampleError, Sampler, Settings};
use elapid_args::whole;

/// Options of the sampler.
#[derive(clap::Args)]
pub(super) struct SamplingArgs {
    /// Sampling temperature: 0 always takes the most likely token, 1 samples from the model's own distribution
    #[arg(long, default_value_t = SAMPLING.temperature, value_name = "T", value_parser = setting(|s| &mut s.temperature), allow_hyphen_values = true)]
    temp: f32,
    /// Sample from the K most likely tokens only (0 disables it)
    #[arg(long, default_value_t = SAMPLING.top_k, value_name = "K", value_parser = whole::<u32>(0..=u32::MAX.into()), allow_hyphen_values = true)]
    top_k: u32,
    /// Sample from the most likely tokens that together reach probability P (1 disables it)
    #[arg(long, default_value_t = SAMPLING.top_p, value_name = "P", value_parser = setting(|s| &mut s.top_p), allow_hyphen_values = true)]
    top_p: f32,
    /// Sample from tokens that are at least P times as likely as the most likely one (0 disables it)
    #[arg(long, default_value_t = SAMPLING.min_p, value_name = "P", value_parser = setting(|s| &mut s.min_p), allow_hyphen_values = true)]
    min_p: f32,
    /// Penalty for tokens that occur among the last 256 (1 disables it)
    #[arg(long, default_value_t = SAMPLING.repeat_penalty, value_name = "R", value_parser = setting(|s| &mut s.repeat_penalty), allow_hyphen_values = true)]
    repeat_penalty: f32,
    /// Seed of the sampler: equal seeds give equal texts. Default: from the clock
    #[arg(long, value_name = "S", value_parser = whole::<u64>(0..=u64::MAX), allow_hyphen_values = true)]
    seed: Option<u64>,
}

impl SamplingArgs {
    pub(super) fn settings(&self) -> Settings {
        Settings {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
        }
    }

    /// The seed that was given, or one from the clock.
    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(seed_from_clock)
    }

    /// Whether a seed was given.
    pub(super) fn seeded(&self) -> bool {
        self.seed.is_some()
    }
}

/// A parser of one of the sampler's settings, with the sampler's own range.
pub(super) fn setting(
    field: fn(&mut Settings) -> &mut f32,
) -> impl Fn(&str) -> Result<f32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let mut settings = Settings::MODEL;
        let value = text.parse().unwrap_or(f32::NAN);
        *field(&mut settings) = value;
        check(settings, "").map(|()| value)
    }
}

/// The sampler's own ranges: what is wrong, with `name` before it.
pub(super) fn check(settings: Settings, name: &str) -> Result<(), String> {
    match Sampler::new(settings, 0) {
        Ok(_) => Ok(()),
        Err(SampleError::Setting { range, .. }) => Err(format!("{name}give a number: {range}")),
        Err(error) => Err(error.to_string()),
    }
}

/// A seed that differs from run to run, short enough to type.
fn seed_from_clock() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    (time.as_nanos() / 1000 % 1_000_000_000) as u64
}
