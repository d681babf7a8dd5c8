//! Ten thousand starts and stops of a generation leave nothing behind: through io_uring where it is there, with threads on a file,
//! and on storage of the caller's. Alone in its process, so that all can be counted.
#![cfg(target_os = "linux")]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use elapid::core::format::Quant;
use elapid::{Error, Model, ReadBy, SessionOptions, Verify};
use elapid_tests::storage::Fake;
use elapid_tests::streamed::{MIB, file, least, open, options};

/// Sessions made for each kind of reading, and generations in each: together more than ten thousand.
const SESSIONS: u32 = 100;
const GENERATIONS: u32 = 34;

/// What a process has of what can leak.
#[derive(Debug, Clone, Copy)]
struct Held {
    threads: usize,
    descriptors: usize,
    /// Stretches of addresses that are mapped.
    maps: usize,
    resident: u64,
}

fn held() -> Held {
    let entries = |path: &str| fs::read_dir(path).expect("a folder of /proc").count();
    let text = |path: &str| fs::read_to_string(path).expect("a file of /proc");
    let rollup = text("/proc/self/smaps_rollup");
    let resident = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Rss");
    Held {
        threads: entries("/proc/self/task"),
        descriptors: entries("/proc/self/fd"),
        maps: text("/proc/self/maps").lines().count(),
        resident: resident.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10,
    }
}

/// Starts generations and stops each after some layers, in the middle of reading ahead. Readers, their queue and their buffers live
/// as long as the session.
fn start_and_stop(model: &Model) {
    let mut session = model.session(&SessionOptions::default().chunk(2)).expect("a session");
    assert!(session.read_by().is_some(), "nothing is streamed");
    for generation in 0..GENERATIONS {
        session.clear();
        let mut left = generation % 9;
        let stopped = session.feed_watched(&[5, 33, 17], &mut |_| {
            left = left.saturating_sub(1);
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Ok(()) | Err(Error::Interrupted)), "{stopped:?}");
    }
}

#[test]
fn ten_thousand_starts_and_stops_leave_nothing() {
    let bytes = file(true, Quant::Q8);
    let cap = least(&bytes);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let path = folder.path().join("model.elp");
    fs::write(&path, &bytes).expect("a file");
    let from_file = |plain_reads| {
        let options = options(cap, Verify::Auto).plain_reads(plain_reads);
        Model::open(Path::new(&path), &options).expect("the file is a model")
    };
    let models =
        [from_file(false), from_file(true), open(&Arc::new(Fake::new(bytes.clone())), cap, Verify::Auto)];
    for model in &models {
        // The allocator settles.
        (0..20).for_each(|_| start_and_stop(model));
        let before = held();
        (0..SESSIONS).for_each(|_| start_and_stop(model));
        let after = held();
        assert_eq!((after.threads, after.descriptors), (before.threads, before.descriptors));
        // One stretch of addresses, or one page, of each session would be a hundred of them.
        assert!(after.maps <= before.maps + 20, "{before:?}, {after:?}");
        assert!(after.resident <= before.resident + MIB, "{before:?}, {after:?}");
    }
    // The count sees what leaks.
    for model in &models {
        let before = held();
        let kept = model.session(&SessionOptions::default()).expect("a session");
        let after = held();
        assert!(after.threads > before.threads && after.maps > before.maps, "{before:?}, {after:?}");
        let queue = usize::from(kept.read_by() == Some(ReadBy::IoUring));
        assert_eq!(after.descriptors, before.descriptors + queue);
    }
}
