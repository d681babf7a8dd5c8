//! How far a long computation is, on standard error, if that is a terminal.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use elapid::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// What takes less time than this is not worth a bar.
const PATIENCE: Duration = Duration::from_millis(400);

/// A bar that shows itself once the work has taken a moment, and removes itself when it is dropped.
///
/// indicatif draws nothing where standard error is no terminal.
pub(super) struct Bar {
    start: Instant,
    bar: OnceLock<ProgressBar>,
    label: &'static str,
    bytes: bool,
}

impl Bar {
    /// A bar for work counted in shares.
    pub(super) fn new(label: &'static str) -> Self {
        Self::with(label, false)
    }

    /// A bar for work counted in bytes.
    pub(super) fn bytes(label: &'static str) -> Self {
        Self::with(label, true)
    }

    fn with(label: &'static str, bytes: bool) -> Self {
        Self { start: Instant::now(), bar: OnceLock::new(), label, bytes }
    }

    /// A bar for work counted in shares that shows itself now: what it takes in memory is there before anything is measured.
    pub(super) fn at_once(label: &'static str, total: u64) -> Self {
        let bar = Self::new(label);
        bar.shown(total);
        bar
    }

    /// `done` of `total` is done.
    pub(super) fn set(&self, done: u64, total: u64) {
        if self.bar.get().is_some() || self.start.elapsed() >= PATIENCE {
            self.shown(total).set_position(done);
        }
    }

    /// What was done so far took no time: the rate begins anew.
    #[cfg(feature = "hub")]
    pub(super) fn forget_rate(&self) {
        if let Some(bar) = self.bar.get() {
            bar.reset_eta();
        }
    }

    fn shown(&self, total: u64) -> &ProgressBar {
        self.bar.get_or_init(|| {
            let template = if self.bytes {
                "{msg} {bar:30} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left"
            } else {
                "{msg} {bar:30} {percent}%, {eta} left"
            };
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total)
                .with_style(style)
                .with_message(self.label)
                .with_elapsed(self.start.elapsed())
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

/// A token that takes less time than this needs no word.
const TOKEN_PATIENCE: Duration = Duration::from_secs(1);
/// How often the word is renewed.
const RENEWED: Duration = Duration::from_millis(250);

/// How far a slow token is, behind the text on a terminal: layer, rate and time left. It never moves the text.
pub(super) struct Status {
    terminal: bool,
    layers: u64,
    start: Instant,
    drawn: Option<Instant>,
}

impl Status {
    /// Nothing yet; for a model of `layers` layers.
    pub(super) fn new(layers: u32) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, layers: u64::from(layers), start: Instant::now(), drawn: None }
    }

    /// A token has come so far.
    pub(super) fn set(&mut self, progress: Progress) {
        let due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= RENEWED);
        if self.terminal && due && self.start.elapsed() >= TOKEN_PATIENCE {
            self.drawn = Some(Instant::now());
            let status = status(progress, self.layers, self.start.elapsed());
            // Saves the cursor, writes without wrapping, so that nothing scrolls, and goes back.
            let _ = write!(std::io::stderr(), "\x1b7\x1b[?7l {status}\x1b[K\x1b[?7h\x1b8");
        }
    }

    /// The token is there: the status goes.
    pub(super) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(std::io::stderr(), "\x1b[J");
        }
        self.start = Instant::now();
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        self.clear();
    }
}

fn status(Progress { done, total, read }: Progress, layers: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let left = seconds / done.max(1) as f64 * total.saturating_sub(done) as f64;
    let rate = match read {
        0 => String::new(),
        read => format!(", {:.1} MB/s", read as f64 / 1e6 / seconds.max(1e-9)),
    };
    let layer = done * layers / total.max(1);
    format!("[layer {layer} of {layers}{rate}, {left:.0} s left]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_token_says_how_long_it_will_take() {
        let half = Progress { done: 16, total: 64, read: 230_000_000 };
        assert_eq!(status(half, 64, Duration::from_secs(10)), "[layer 16 of 64, 23.0 MB/s, 30 s left]");
        let mapped = Progress { done: 64, total: 64, read: 0 };
        assert_eq!(status(mapped, 64, Duration::from_secs(2)), "[layer 64 of 64, 0 s left]");
    }
}
