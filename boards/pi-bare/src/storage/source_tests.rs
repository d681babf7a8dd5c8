//! The streaming source against the file, with a reader on a thread of its own and a card that fails when it is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, LazyLock, Mutex};
use std::time::{Duration, Instant};

use elapid_core::format::{Header, Section};
use elapid_core::source::{Fault, LayerSource, SliceSource, slice};

use super::{Bell, Channel, WeightSource, place_of};
use crate::storage::Plan;

#[derive(Default)]
struct ThreadBell {
    count: Mutex<u64>,
    rung: Condvar,
}

impl Bell for ThreadBell {
    fn count(&self) -> u64 {
        *self.count.lock().unwrap()
    }
    fn ring(&self) {
        *self.count.lock().unwrap() += 1;
        self.rung.notify_all();
    }
    fn wait(&self, seen: u64) {
        drop(self.rung.wait_while(self.count.lock().unwrap(), |count| *count == seen).unwrap());
    }
}

/// Time since the first call.
fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

fn model(name: &str) -> (Vec<u8>, Header) {
    let path = format!("{}/../../host/models/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let header = Header::parse(&bytes).unwrap();
    (bytes, header)
}

/// Runs `work` with a source that holds what fits `memory`, over a card that calls `fault` for every read and fails with
/// what it returns, or delivers a wrong bit for `Some(0)`.
fn with_source<R>(
    (bytes, header): &(Vec<u8>, Header),
    memory: u64,
    fault: impl Fn(u64) -> Option<i32> + Sync,
    work: impl FnOnce(&mut WeightSource<'_, '_, ThreadBell>) -> R,
) -> R {
    let layout = header.layout();
    let plan = Plan::new(layout, memory).unwrap();
    let mut held = vec![None; layout.config().n_layer as usize + 3];
    for section in layout.sections().filter(|section| plan.holds(layout, *section)) {
        let place = layout.section(section);
        held[place_of(layout, section).unwrap()] = slice(bytes, place.offset..place.offset + place.length);
    }
    let place = layout.section(Section::Checksums);
    let checksums = slice(bytes, place.offset..place.offset + place.length).unwrap();
    let mut buffers: Vec<_> = plan.buffers(layout).map(|size| vec![0; size]).collect();
    let mut urgent = vec![0; plan.urgent as usize];
    let mut channel = Channel::new(ThreadBell::default(), ThreadBell::default(), now);
    let holds = |section| plan.holds(layout, section);
    let (reader, stream) =
        channel.split(layout, checksums, holds, buffers.iter_mut().map(Vec::as_mut_slice), Some(&mut urgent));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            reader.run(|offset, into| {
                let wrong = fault(offset);
                if let Some(code) = wrong.filter(|code| *code != 0) {
                    return Err(code);
                }
                into.copy_from_slice(&bytes[offset as usize..offset as usize + into.len()]);
                if wrong.is_some() {
                    into[100] ^= 4;
                }
                Ok(())
            });
        });
        let stream = plan.streams().then_some(stream);
        work(&mut WeightSource::new(layout, &held, stream))
    })
}

/// What a token reads: a row of the embedding, the layers, the norm and the head.
fn token(
    header: &Header,
    source: &mut dyn LayerSource,
    row: u32,
    head: bool,
) -> Result<Vec<u8>, super::SourceError> {
    let layout = header.layout();
    let mut all = source.borrow(Section::Embedding, row..row + 1)?.to_vec();
    let layers = (0..layout.config().n_layer).map(Section::Layer);
    let rest = if head { vec![Section::FinalNorm, layout.head().0] } else { Vec::new() };
    for section in layers.chain(rest) {
        for block in 0..layout.section(section).blocks {
            all.extend_from_slice(source.borrow(section, block..block + 1)?);
        }
    }
    Ok(all)
}

#[test]
fn streamed_weights_are_those_of_the_file() {
    for name in ["address-4m.elp", "address-300k.elp"] {
        let file = model(name);
        let layout = *file.1.layout();
        let rows = layout.section(Section::Embedding).blocks;
        let mut expected = Vec::new();
        for i in 0..6 {
            let mut source = SliceSource::new(&file.0, &file.1, &mut []).unwrap();
            expected.push(token(&file.1, &mut source, i % rows, i % 3 != 1).unwrap());
        }
        let least = Plan::new(&layout, 0).unwrap_err();
        let mut streamed = 0;
        for memory in [least, least + 300_000, least + 1_000_000, 3 << 20, 8 << 20] {
            with_source(
                &file,
                memory,
                |_| None,
                |source| {
                    streamed += u32::from(source.stream.is_some());
                    for (i, expected) in (0..).zip(&expected) {
                        let found = token(&file.1, source, i % rows, i % 3 != 1).unwrap();
                        assert!(found == *expected, "{name}, {memory} bytes, token {i}");
                    }
                    if let Some(stream) = &source.stream {
                        let figures = stream.figures();
                        assert!(figures.early + figures.late > 0 && figures.reading > Duration::ZERO);
                    }
                },
            );
        }
        assert!(streamed > 0, "{name}");
    }
}

#[test]
fn faults_are_told_and_pass() {
    let file = model("address-4m.elp");
    let layout = *file.1.layout();
    let least = Plan::new(&layout, 0).unwrap_err();
    let bad = layout.block(Section::Layer(1), 1).unwrap().offset;
    let mut expected = SliceSource::new(&file.0, &file.1, &mut []).unwrap();
    let expected = token(&file.1, &mut expected, 0, true).unwrap();
    // How often it is read: every block is read twice if its checksum does not match.
    for (code, times, fault) in [(0, 2, Some(Fault::Checksum)), (0, 1, None), (5, 1, Some(Fault::Storage(5)))]
    {
        let reads = AtomicU64::new(0);
        let fail = |offset| (offset == bad && reads.fetch_add(1, Ordering::SeqCst) < times).then_some(code);
        with_source(&file, least, fail, |source| {
            let first = token(&file.1, source, 0, true);
            match fault {
                Some(fault) => {
                    let error = first.unwrap_err();
                    assert_eq!((error.section, error.block, error.offset), (Section::Layer(1), 1, bad));
                    assert_eq!(error.fault, fault);
                    assert!(token(&file.1, source, 0, true).unwrap() == expected);
                }
                None => assert!(first.unwrap() == expected),
            }
        });
    }
}

#[test]
fn the_card_is_read_while_others_compute() {
    let file = model("address-4m.elp");
    let layout = *file.1.layout();
    let least = Plan::new(&layout, 0).unwrap_err();
    let reads = AtomicU64::new(0);
    let count = |_| {
        reads.fetch_add(1, Ordering::SeqCst);
        None
    };
    with_source(&file, least, count, |source| {
        let mut borrowed = 0;
        for section in (0..layout.config().n_layer).map(Section::Layer) {
            for block in 0..layout.section(section).blocks {
                source.borrow(section, block..block + 1).unwrap();
                borrowed += 1;
                // The computation: for as long as it takes, the next block must come by itself.
                let start = now();
                while reads.load(Ordering::SeqCst) <= borrowed {
                    assert!(now() - start < Duration::from_secs(60), "block {borrowed} is not read ahead");
                    std::thread::yield_now();
                }
            }
        }
        assert!(borrowed > 20);
    });
}
