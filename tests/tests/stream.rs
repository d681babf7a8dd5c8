//! Weights streamed under a cap: the same bits as from memory, whatever the cap and whatever the storage does; and never a
//! wrong one.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use elapid::core::format::{Header, Quant, Section};
use elapid::core::model::{StateKind, StepError};
use elapid::core::source::{Fault, SourceError};
use elapid::{Engine, EngineOptions, Error, ExitClass, MemoryOptions, Ram, Sequence, Verify};
use elapid_pack::checkpoint::{Arch, ModelConfig};
use elapid_tests::storage::{Act, Fake, Read, Throttled};

const TOKENS: [u32; 9] = [5, 300, 0, 33, 33, 17, 7, 299, 4];
const EIO: i32 = 5;
const MIB: u64 = 1 << 20;
const STALL: Duration = Duration::from_millis(1500);

/// A model of some MiB with blocks of 16 KiB: random weights, with a head of its own or not.
fn file(tied: bool, quant: Quant) -> Vec<u8> {
    sized(tied, quant, 96, 12, 3001)
}

fn sized(tied: bool, quant: Quant, d_model: usize, n_layer: usize, vocab_size: usize) -> Vec<u8> {
    let config = ModelConfig {
        arch: if tied { Arch::Mamba } else { Arch::FalconMamba },
        d_model,
        n_layer,
        d_inner: 2 * d_model,
        d_state: 16,
        d_conv: 4,
        dt_rank: 6,
        vocab_size,
        norm_eps: 1e-5,
        mixer_rms_eps: if tied { None } else { Some(1e-6) },
        use_bias: tied,
        use_conv_bias: true,
        tied,
    };
    let options = elapid_pack::Options { quant, block_bytes: 16 << 10, ..Default::default() };
    let plan = elapid_pack::Plan::random(&config, 7, &options).expect("a valid configuration");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.elp");
    plan.write(&path, &options, &()).expect("a packed file");
    std::fs::read(path).expect("the packed file")
}

fn options(cap: u64, verify: Verify) -> EngineOptions {
    EngineOptions { threads: Some(2), ram: Some(Ram::Bytes(cap)), verify, ..Default::default() }
}

fn open(storage: &Arc<Fake>, cap: u64, verify: Verify) -> Engine {
    let storage = Arc::clone(storage);
    Engine::open_storage("fake", storage, &options(cap, verify)).expect("the file is a model")
}

/// The least cap that a model works with.
fn least(bytes: &[u8]) -> u64 {
    let engine = open(&Arc::new(Fake::new(bytes.to_vec())), MIB, Verify::Auto);
    match engine.memory(&MemoryOptions::default()) {
        Err(Error::Cap { cap, least, .. }) => {
            assert_eq!(cap, MIB);
            least
        }
        other => panic!("a model in 1 MiB: {other:?}"),
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// What must come out, computed from memory.
fn expected(bytes: &[u8], state: StateKind) -> Vec<u32> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.elp");
    std::fs::write(&path, bytes).expect("a file");
    let engine = Engine::open(&path, &EngineOptions { threads: Some(1), ..Default::default() });
    let engine = engine.expect("the file is a model");
    let mut memory = engine.memory(&MemoryOptions { state, ..Default::default() }).expect("memory");
    let mut sequence = memory.sequence(&engine).expect("a sequence");
    all(&mut sequence).expect("logits")
}

/// A prompt, then tokens one by one: the logits after each of the latter.
fn all(sequence: &mut Sequence<'_>) -> Result<Vec<u32>, Error> {
    let (prompt, rest) = TOKENS.split_at(6);
    sequence.feed(prompt)?;
    let mut out = bits(sequence.logits()?);
    for token in rest {
        sequence.feed(&[*token])?;
        out.extend(bits(sequence.logits()?));
    }
    Ok(out)
}

fn run(engine: &Engine, state: StateKind) -> Result<Vec<u32>, Error> {
    let mut memory = engine.memory(&MemoryOptions { state, chunk: Some(4), ..Default::default() })?;
    let mut sequence = memory.sequence(engine)?;
    all(&mut sequence)
}

/// A byte of a layer's in_proj that is neither scale nor padding.
fn place(bytes: &[u8], layer: u32) -> u64 {
    let header = Header::parse(bytes).expect("a model");
    header.layout().block(Section::Layer(layer), 1).expect("a block").offset + 200
}

#[test]
fn every_cap_gives_the_same_bits() {
    for (tied, quant) in [(false, Quant::Q4), (true, Quant::Q8)] {
        let bytes = file(tied, quant);
        let least = least(&bytes);
        let fake = Arc::new(Fake::new(bytes.clone()));
        for state in [StateKind::F32, StateKind::F16] {
            let expected = expected(&bytes, state);
            let mut streamed = Vec::new();
            for extra in [0, 1, 2, 3, 64] {
                for verify in [Verify::Auto, Verify::Always, Verify::Never] {
                    let engine = open(&fake, least + extra * MIB, verify);
                    let plan = engine.plan(&MemoryOptions { state, ..Default::default() }).expect("a plan");
                    streamed.push(plan.expect("a cap").streamed_bytes);
                    assert!(
                        run(&engine, state).expect("logits") == expected,
                        "{tied} {state:?} {extra} {verify:?}"
                    );
                    assert_eq!(engine.incidents(), Default::default());
                }
            }
            assert!(streamed[0] > 0 && streamed.last() == Some(&0), "{streamed:?}");
            assert!(streamed.iter().any(|bytes| (1..streamed[0]).contains(bytes)), "{streamed:?}");
        }
        assert_eq!(fake.broken(), Vec::<String>::new());
    }
}

#[test]
fn the_fake_storage_enforces_its_rules() {
    use elapid::Storage;
    let fake = Fake::new(vec![0; 8192]);
    let mut buffer = vec![0; 3 * 4096];
    let start = buffer.as_ptr().addr().next_multiple_of(4096) - buffer.as_ptr().addr();
    assert!(fake.read_at(&mut buffer[start..start + 4096], 4096).is_ok());
    assert!(fake.read_at(&mut buffer[start..start + 4096], 512).is_err());
    assert!(fake.read_at(&mut buffer[start..start + 100], 0).is_err());
    assert!(fake.read_at(&mut buffer[start + 8..start + 8 + 4096], 0).is_err());
    assert_eq!(fake.broken().len(), 3);
}

#[test]
fn a_bad_moment_changes_no_bit() {
    let bytes = file(false, Quant::Q8);
    let (least, expected) = (least(&bytes), expected(&bytes, StateKind::F32));
    let damage = place(&bytes, 5);
    type Faults = Arc<dyn Fn(Read) -> Act + Send + Sync>;
    // Beside each: reads that were partial, repeated, and read again for a checksum.
    let cases: Vec<(&str, Faults, [bool; 3])> = vec![
        ("short reads", Arc::new(|read| Act::Short(4096 + read.len / 3)), [true, false, false]),
        (
            "reads shorter than the alignment, now and then",
            Arc::new(|read| if read.again % 2 == 0 { Act::Short(100) } else { Act::Read }),
            [true, false, false],
        ),
        (
            "interruptions",
            Arc::new(|read| if read.again % 3 != 2 { Act::Error(4) } else { Act::Read }),
            [true, false, false],
        ),
        (
            "EIO once",
            Arc::new(
                move |read| if read.covers(damage) && read.again == 0 { Act::Error(EIO) } else { Act::Read },
            ),
            [false, true, false],
        ),
        (
            "a flipped bit once",
            Arc::new(
                move |read| {
                    if read.covers(damage) && read.again == 0 { Act::Flip(damage) } else { Act::Read }
                },
            ),
            [false, false, true],
        ),
        (
            "a flipped bit at every other read",
            Arc::new(move |read| if read.again % 2 == 0 { Act::Flip(read.offset + 77) } else { Act::Read }),
            [false, false, true],
        ),
        (
            "a stall",
            Arc::new(
                move |read| {
                    if read.covers(damage) && read.again == 0 { Act::Stall(STALL) } else { Act::Read }
                },
            ),
            [false, false, false],
        ),
    ];
    for (name, faults, seen) in cases {
        for extra in [0, 2] {
            let fake = Arc::new(Fake::new(bytes.clone()));
            let engine = open(&fake, least + extra * MIB, Verify::Auto);
            let faults = Arc::clone(&faults);
            fake.set_faults(move |read| faults(read));
            let start = Instant::now();
            assert!(run(&engine, StateKind::F32).expect(name) == expected, "{name}");
            let was = engine.incidents();
            assert_eq!([was.partial > 0, was.retried > 0, was.reread > 0], seen, "{name}: {was:?}");
            assert!(name != "a stall" || start.elapsed() > STALL, "the stall was not seen");
            assert_eq!(fake.broken(), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn storage_that_fails_for_ever_is_an_error_and_the_session_goes_on() {
    let bytes = file(true, Quant::Q4);
    let (least, expected) = (least(&bytes), expected(&bytes, StateKind::F32));
    let damage = place(&bytes, 7);
    for extra in [0, 1, 2] {
        let fake = Arc::new(Fake::new(bytes.clone()));
        let engine = open(&fake, least + extra * MIB, Verify::Auto);
        fake.set_faults(move |read| if read.covers(damage) { Act::Error(EIO) } else { Act::Read });
        let mut memory =
            engine.memory(&MemoryOptions { chunk: Some(4), ..Default::default() }).expect("memory");
        let mut sequence = memory.sequence(&engine).expect("a sequence");
        let error = sequence.feed(&TOKENS[..6]).expect_err("the storage fails");
        let Error::Storage { section: Section::Layer(7), offset, cause, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(cause.raw_os_error(), Some(EIO));
        assert!((damage - 16384..=damage).contains(offset), "{offset}");
        assert_eq!(error.class(), ExitClass::Failure);
        let text = error.to_string();
        assert!(text.contains("layer 7") && text.contains(&format!("offset {offset}")), "{text}");
        assert!(engine.incidents().retried >= 4);

        // It fails again, and then it is well again: the step goes on where it was.
        let mut keep = |_| ControlFlow::Continue(());
        assert!(matches!(sequence.resume(&mut keep), Err(Error::Storage { .. })));
        fake.set_faults(|_| Act::Read);
        let fed = sequence.resume(&mut keep).expect("the storage is well");
        assert_eq!(fed, 4, "the first chunk");
        sequence.feed(&TOKENS[fed..6]).expect("the storage is well");
        let mut out = bits(sequence.logits().expect("logits"));
        for token in &TOKENS[6..] {
            sequence.feed(&[*token]).expect("the storage is well");
            out.extend(bits(sequence.logits().expect("logits")));
        }
        assert!(out == expected);
    }
}

#[test]
fn damage_is_read_again_and_then_refused() {
    let bytes = file(false, Quant::Q4);
    let least = least(&bytes);
    for layer in [0, 6, 11] {
        let damage = place(&bytes, layer);
        for extra in [0, 2] {
            let fake = Arc::new(Fake::new(bytes.clone()));
            let engine = open(&fake, least + extra * MIB, Verify::Auto);
            fake.set_faults(move |_| Act::Flip(damage));
            match run(&engine, StateKind::F32) {
                Err(error @ Error::Step { cause: StepError::Source(source), .. }) => {
                    assert!(matches!(
                        source,
                        SourceError { fault: Fault::Checksum, section: Section::Layer(l), .. } if l == layer
                    ));
                    assert_eq!(error.class(), ExitClass::BadModel);
                }
                other => panic!("{:?}", other.map(|logits| logits.len())),
            }
            assert!(engine.incidents().reread >= 2);
        }
    }
    // Unless nobody looks: the bit then makes other logits.
    let fake = Arc::new(Fake::new(bytes.clone()));
    let engine = open(&fake, least, Verify::Never);
    let damage = place(&bytes, 6);
    fake.set_faults(move |_| Act::Flip(damage));
    assert!(run(&engine, StateKind::F32).expect("logits") != expected(&bytes, StateKind::F32));
}

#[test]
fn a_file_cut_short_or_overwritten_is_refused() {
    let (bytes, other) = (file(false, Quant::Q8), file(false, Quant::Q4));
    let least = least(&bytes);
    let fake = Arc::new(Fake::new(bytes.clone()));
    let engine = open(&fake, least, Verify::Auto);
    let mut memory = engine.memory(&MemoryOptions::default()).expect("memory");
    let mut sequence = memory.sequence(&engine).expect("a sequence");
    sequence.feed(&TOKENS).expect("the file is whole");
    sequence.logits().expect("logits");
    fake.change(|bytes| bytes.truncate(bytes.len() / 2 + 1000));
    let error = sequence.feed(&TOKENS).expect_err("half of the file is gone");
    assert!(
        matches!(&error, Error::Storage { cause, .. } if cause.kind() == io::ErrorKind::UnexpectedEof),
        "{error}"
    );
    sequence.clear();
    fake.change(|bytes| {
        bytes.clear();
        bytes.extend_from_slice(&other);
        bytes.resize(bytes.len().max(MIB as usize * 8), 0);
    });
    for _ in 0..2 {
        sequence.clear();
        let error = sequence.feed(&TOKENS).and_then(|()| sequence.logits().map(|_| ()));
        assert!(
            matches!(
                error,
                Err(Error::Step { cause: StepError::Source(SourceError { fault: Fault::Checksum, .. }), .. })
            ),
            "{error:?}"
        );
    }
    // And well again, in the same session.
    fake.change(|now| now.clone_from(&bytes));
    sequence.clear();
    assert!(all(&mut sequence).expect("logits") == expected(&bytes, StateKind::F32));
}

#[test]
fn what_is_kept_is_read_once() {
    let bytes = file(false, Quant::Q4);
    let expected = expected(&bytes, StateKind::F32);
    for verify in [Verify::Auto, Verify::Always] {
        let fake = Arc::new(Fake::new(bytes.clone()));
        let engine = open(&fake, least(&bytes) + 64 * MIB, verify);
        let mut memory =
            engine.memory(&MemoryOptions { chunk: Some(4), ..Default::default() }).expect("memory");
        assert!(all(&mut memory.sequence(&engine).expect("a sequence")).expect("logits") == expected);
        let reads = fake.reads();
        assert!(all(&mut memory.sequence(&engine).expect("a sequence")).expect("logits") == expected);
        // Only panels of the embedding were read: one a token.
        assert!(fake.reads() - reads <= TOKENS.len() as u64, "{verify:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn ten_thousand_starts_and_stops_leak_nothing() {
    let bytes = sized(true, Quant::Q4, 32, 4, 101);
    let fake = Arc::new(Fake::new(bytes.clone()));
    let engine = open(&fake, least(&bytes) + MIB, Verify::Auto);
    // Other tests run beside this one and come and go: what is counted is by name, or by size.
    let count = || {
        let ours = |entry: std::io::Result<std::fs::DirEntry>| {
            let name = std::fs::read_to_string(entry.ok()?.path().join("comm")).ok()?;
            name.starts_with("elapid-read").then_some(())
        };
        std::fs::read_dir("/proc/self/task").expect("tasks").filter_map(ours).count()
    };
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("descriptors").count();
    let mut before = None;
    let make = || engine.memory(&MemoryOptions { chunk: Some(2), ..Default::default() }).expect("memory");
    let mut memory = make();
    for round in 0..10_000u32 {
        // The readers and their buffers are those of the memory: they start and stop with it.
        if round % 10 == 0 {
            memory = make();
        }
        let mut sequence = memory.sequence(&engine).expect("a sequence");
        // It stops after any number of layers, in the middle of reading ahead.
        let mut left = round % 9;
        let stopped = sequence.feed_watched(&[5, 33, 17], &mut |_| {
            left = left.saturating_sub(1);
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Ok(()) | Err(Error::Interrupted)), "{stopped:?}");
        if round == 500 {
            before = Some((resident(), descriptors()));
        }
    }
    let (resident_before, descriptors_before) = before.expect("rounds");
    // A memory's ring and what it keeps are 256 KiB and more: 950 of them would be 240 MB and 3,800 threads.
    assert!(resident() < resident_before + 64 * MIB, "{} after {resident_before}", resident());
    assert!(descriptors() < descriptors_before + 100);
    // Readers of other tests may live.
    assert!(count() < 100, "{} readers", count());
}

#[test]
fn a_slow_drive_is_kept_busy() {
    let bytes = file(false, Quant::Q4);
    let cap = least(&bytes) + MIB;
    for rate in [23e6, 45e6] {
        let storage = Arc::new(Throttled::new(Fake::new(bytes.clone()), rate));
        let engine = Engine::open_storage("slow", storage, &options(cap, Verify::Auto)).expect("a model");
        let mut memory = engine.memory(&MemoryOptions::default()).expect("memory");
        let mut sequence = memory.sequence(&engine).expect("a sequence");
        sequence.feed(&TOKENS[..1]).expect("a token");
        sequence.logits().expect("logits");
        let (start, before) = (Instant::now(), sequence.read_bytes());
        let least_time = Duration::from_secs(1);
        while start.elapsed() < least_time {
            sequence.feed(&[7]).expect("a token");
            sequence.logits().expect("logits");
        }
        let reached = (sequence.read_bytes() - before) as f64 / start.elapsed().as_secs_f64();
        // The margin is for a test machine that is busy with other tests; docs/streaming.md has what a quiet one reaches.
        assert!(reached > 0.6 * rate && reached < 1.2 * rate, "{reached} of {rate} bytes/s");
    }
}
