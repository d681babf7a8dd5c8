//! Ctrl-C: the first one ends what is being done, the second one the program.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What a shell reports of a program that Ctrl-C ended.
const BY_CTRL_C: i32 = 130;

/// From now on, Ctrl-C (and a request to terminate) is for [`check`] to see.
pub(super) fn listen() {
    let handler = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(BY_CTRL_C);
        }
    });
    if let Err(error) = handler {
        // Without it Ctrl-C ends the program at once, as it does by default.
        let _ = writeln!(std::io::stderr(), "warning: Ctrl-C will end the program at once: {error}");
    }
}

/// [`ControlFlow::Break`] after Ctrl-C.
pub(super) fn check() -> ControlFlow<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
