//! How far a long computation is, on standard error, if that is a terminal.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

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

    /// `done` of `total` is done.
    pub(super) fn set(&self, done: u64, total: u64) {
        if self.start.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_init(|| {
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
        });
        bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
