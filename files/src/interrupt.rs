//! Ctrl-C and the other signals that ask a program to end.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

/// Whether the first signal is for [`check`] to see.
static LISTENING: AtomicBool = AtomicBool::new(false);
/// The last signal, or 0. The handler itself sets it: a program that ends before [`receive`] runs still knows of the signal.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// Whether [`receive`] has had a signal.
static RECEIVED: AtomicBool = AtomicBool::new(false);

/// What a thread needs that only waits for signals.
const STACK: usize = 128 << 10;

/// Handles signals from now on: call it once, when the program starts.
///
/// SIGINT, SIGTERM and SIGHUP end the program at once, with the exit code that a shell gives to a program that died of the
/// signal (130, 143, 129) and without leaving unfinished [`crate::Output`]s; see [`listen`] for a softer end. A write beyond the
/// limit on file sizes becomes an error.
///
/// # Errors
/// If the system refuses. Signals then have their usual effect.
pub fn handle() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    let (tell, told) = mpsc::channel();
    // The thread registers itself: if it can't be started, signals keep their usual effect.
    let work = move || match register() {
        Ok(mut signals) => {
            let _ = tell.send(Ok(()));
            signals.forever().for_each(receive);
        }
        Err(error) => drop(tell.send(Err(error))),
    };
    thread::Builder::new().name("elapid-signals".into()).stack_size(STACK).spawn(work)?;
    told.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

/// Registers for the signals: they set [`SIGNAL`] at once, and the result gives them to [`receive`].
fn register() -> io::Result<Signals> {
    let received = Signals::new(signals())?;
    for signal in signals() {
        signal_hook::flag::register_usize(signal, Arc::clone(&SIGNAL), signal as usize)?;
    }
    Ok(received)
}

/// The signals that end the program. A program that is started by `nohup` outlives its terminal.
fn signals() -> impl Iterator<Item = i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let heard = move |signal: &i32| *signal != SIGHUP || ignored >> (SIGHUP - 1) & 1 == 0;
    [SIGINT, SIGTERM, SIGHUP].into_iter().filter(heard)
}

fn receive(signal: i32) {
    let first = !RECEIVED.swap(true, Ordering::Relaxed);
    if first && LISTENING.load(Ordering::Relaxed) {
        return;
    }
    // Nobody finishes a file any more.
    let _unfinished = crate::output::remove_unfinished();
    std::process::exit(i32::from(code(signal as usize)));
}

/// What a shell reports of a program that a signal ended.
fn code(signal: usize) -> u8 {
    128 | signal as u8
}

/// From now on, the first signal is for [`check`] to see. The second one ends the program.
pub fn listen() {
    LISTENING.store(true, Ordering::Relaxed);
}

/// From now on, a signal ends the program at once, as before [`listen`]: for while it waits for input.
pub fn end_at_once() {
    LISTENING.store(false, Ordering::Relaxed);
}

/// [`ControlFlow::Break`] after a signal.
pub fn check() -> ControlFlow<()> {
    match exit_code() {
        Some(_) => ControlFlow::Break(()),
        None => ControlFlow::Continue(()),
    }
}

/// Forgets a SIGINT, so that the next one is a first one again: for a program that goes on after what was interrupted. Other signals
/// stay.
pub fn forget() {
    if SIGNAL.load(Ordering::Relaxed) != SIGINT as usize {
        return;
    }
    // The thread that receives it may not have run yet: it would take the next one for a second one.
    for _ in 0..100 {
        if RECEIVED.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let forgotten = SIGNAL.compare_exchange(SIGINT as usize, 0, Ordering::Relaxed, Ordering::Relaxed);
    if forgotten.is_ok() {
        RECEIVED.store(false, Ordering::Relaxed);
    }
}

/// The exit code of a program that ends because of a signal, if there was one.
#[must_use]
pub fn exit_code() -> Option<u8> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(code(signal)),
    }
}
