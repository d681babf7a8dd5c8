//! The bodies of the fuzz targets, run by libFuzzer (`fuzz/`) and by proptest (`tests/tests/fuzz.rs`) alike.
//!
//! A target turns bytes into an input by `arbitrary`, makes a valid file of it, damages that as the input says and mends the
//! checksums. It panics if the project breaks a promise; an error that the project reports is not one.

pub mod data;
pub mod edit;
pub mod model;
pub mod pack;
pub mod session;
pub mod tokenizer;

use std::fmt::Debug;
use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Runs it on the input that these bytes stand for, and says how far that came.
    pub run: fn(&[u8]) -> &'static str,
    /// That input, for messages.
    pub show: fn(&[u8]) -> String,
}

impl Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All targets.
pub const TARGETS: [Target; 5] = [
    Target { name: "model", run: |bytes| with(bytes, model::run), show: |bytes| show::<model::Input>(bytes) },
    Target {
        name: "tokenizer",
        run: |bytes| with(bytes, tokenizer::run),
        show: |bytes| show::<tokenizer::Input>(bytes),
    },
    Target { name: "data", run: |bytes| with(bytes, data::run), show: |bytes| show::<data::Input>(bytes) },
    Target { name: "pack", run: |bytes| with(bytes, pack::run), show: |bytes| show::<pack::Input>(bytes) },
    Target {
        name: "session",
        run: |bytes| with(bytes, session::run),
        show: |bytes| show::<session::Input>(bytes),
    },
];

fn with<'a, T: Arbitrary<'a>>(bytes: &'a [u8], run: fn(&T) -> &'static str) -> &'static str {
    T::arbitrary_take_rest(Unstructured::new(bytes)).map_or("no input", |input| run(&input))
}

/// Up to `most` elements, all counts as likely.
fn up_to<'a, T: Arbitrary<'a>>(u: &mut Unstructured<'a>, most: usize) -> arbitrary::Result<Vec<T>> {
    let count = u.int_in_range(0..=most)?;
    (0..count).map(|_| u.arbitrary()).collect()
}

/// `usual` in all but one of eight inputs.
fn mostly<'a, T: Arbitrary<'a>>(u: &mut Unstructured<'a>, usual: T) -> arbitrary::Result<T> {
    if u.ratio(1, 8)? { u.arbitrary() } else { Ok(usual) }
}

fn show<'a, T: Arbitrary<'a> + Debug>(bytes: &'a [u8]) -> String {
    format!("{:#?}", T::arbitrary_take_rest(Unstructured::new(bytes)))
}

/// Whether a fault is planted in this target (by the environment variable `ELAPID_FUZZ_FAULT`): a run must then find it.
fn planted(target: &str) -> bool {
    static PLANTED: OnceLock<Option<String>> = OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("ELAPID_FUZZ_FAULT").ok()).as_deref() == Some(target)
}

/// Asserts that an error is told on one line.
fn assert_one_line(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains(['\n', '\r']), "not one line: {text:?}");
}
