//! The fuzz targets, run on random inputs without libFuzzer: what a stable toolchain has.
//!
//! `ELAPID_FUZZ_ROUNDS` says how many rounds of inputs, of about a second each, and `ELAPID_FUZZ_SEED` which.
//! `cargo xtask fuzz` runs more of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use elapid_tests::fuzz::{TARGETS, Target};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestError, TestRunner};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes of an input at most.
const LENGTH: usize = 4096;
/// A case that takes longer hangs.
const HANG: Duration = Duration::from_secs(120);
/// Bytes that a case may take at a time: files of a few MB are made at most.
const MOST_MEMORY: usize = 256 << 20;

fn number<N: std::str::FromStr>(variable: &str, otherwise: N) -> N {
    std::env::var(variable).ok().map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number"))
    })
}

/// Runs a target; ends the program, naming the input, if it does not return.
fn guarded(target: &Target, bytes: &[u8]) -> &'static str {
    std::thread::scope(|scope| {
        let (done, wait) = channel::<()>();
        scope.spawn(move || {
            if wait.recv_timeout(HANG) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{} hangs on {}", target.name, (target.show)(bytes));
                std::process::abort();
            }
        });
        // Dropped on a panic too.
        let _done = done;
        (target.run)(bytes)
    })
}

/// The last panic, with its place.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// Keeps panics in [`PANIC`] instead of printing them: making an input smaller takes hundreds.
struct Quiet(Option<Hook>);

impl Quiet {
    fn new() -> Self {
        let before = take_hook();
        set_hook(Box::new(|info| *locked(&PANIC) = info.to_string()));
        Self(Some(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            set_hook(before);
        }
    }
}

/// Runs `each` inputs a round.
fn drive(name: &str, each: u32) {
    // One at a time: memory is counted for the whole process.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = locked(&TURN);
    let target = TARGETS.into_iter().find(|target| target.name == name).expect("a target");
    let (rounds, seed) = (number("ELAPID_FUZZ_ROUNDS", 1u32), number("ELAPID_FUZZ_SEED", 0));
    let cases = rounds.saturating_mul(each);
    println!("{name}: {cases} inputs, ELAPID_FUZZ_SEED={seed}");
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    });
    let quiet = Quiet::new();
    let (most, outcomes) = (Cell::new(0), RefCell::new(BTreeMap::new()));
    let ran = runner.run(&prop::collection::vec(any::<u8>(), 0..LENGTH), |bytes| {
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let outcome = guarded(&target, &bytes);
        *outcomes.borrow_mut().entry(outcome).or_insert(0) += 1;
        let taken = MEMORY.peak_usage() - before;
        most.set(most.get().max(taken));
        prop_assert!(taken < MOST_MEMORY, "{taken} bytes of memory");
        Ok(())
    });
    drop(quiet);
    if let Err(TestError::Fail(reason, bytes)) = &ran {
        let panic = locked(&PANIC);
        panic!("{name}, ELAPID_FUZZ_SEED={seed}: {reason}\n{panic}\n{}", (target.show)(bytes));
    }
    ran.expect("all inputs are taken");
    println!("{name}: {:?}, at most {} KiB of memory", outcomes.into_inner(), most.get() >> 10);
}

macro_rules! targets {
    ($($name:ident: $each:literal,)*) => {
        $(#[test]
        fn $name() {
            drive(stringify!($name), $each);
        })*

        #[test]
        fn every_target_is_driven() {
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),*]);
        }
    };
}
targets!(model: 150, tokenizer: 2000, data: 1000, pack: 350, session: 350,);
