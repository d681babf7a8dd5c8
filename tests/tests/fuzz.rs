//! The fuzz targets, run on random inputs without libFuzzer: what a stable toolchain has.
//!
//! `ELAPID_FUZZ_CASES` says how many inputs of each target, `ELAPID_FUZZ_SEED` which. `cargo xtask fuzz` runs more.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use elapid_tests::fuzz::{TARGETS, Target};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Inputs of a target if nothing else is asked for: what all tests have time for.
const CASES: u32 = 64;
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

fn drive(name: &str) {
    // One at a time: memory is counted for the whole process.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let target = TARGETS.into_iter().find(|target| target.name == name).expect("a target");
    let (cases, seed) = (number("ELAPID_FUZZ_CASES", CASES), number("ELAPID_FUZZ_SEED", 0));
    println!("{name}: {cases} inputs, ELAPID_FUZZ_SEED={seed}");
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
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
    if let Err(proptest::test_runner::TestError::Fail(reason, bytes)) = &ran {
        panic!("{name}, ELAPID_FUZZ_SEED={seed}: {reason}\n{}", (target.show)(bytes));
    }
    ran.expect("all inputs are taken");
    println!("{name}: {:?}, at most {} KiB of memory", outcomes.into_inner(), most.get() >> 10);
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            drive(stringify!($name));
        })*

        #[test]
        fn every_target_is_driven() {
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),*]);
        }
    };
}
targets!(model tokenizer data pack);
