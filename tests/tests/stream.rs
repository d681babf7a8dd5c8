//! Weights streamed under a cap: the same bits as from memory, whatever the cap and whatever the storage does; and never a
//! wrong one.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use elapid::core::fixed;
use elapid::core::format::{Quant, Section};
use elapid::core::model::{StateKind, StepError};
use elapid::core::source::{Fault, SourceError};
use elapid::{Error, ExitClass, Model, Numbers, SessionOptions, Verify};
use elapid_tests::fixture::fixture;
use elapid_tests::runner::{pack, quant};
use elapid_tests::storage::{Act, Fake, Read, Throttled};
use elapid_tests::streamed::{MIB, TOKENS, all, bits, expected, file, least, open, options, place, run};

const EIO: i32 = 5;
const STALL: Duration = Duration::from_millis(1500);

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
                    let model = open(&fake, least + extra * MIB, verify);
                    let plan = model
                        .plan(&SessionOptions::default().numbers(Numbers::Float(state)))
                        .expect("a plan");
                    streamed.push(plan.expect("a cap").streamed_bytes);
                    assert!(
                        run(&model, state).expect("logits") == expected,
                        "{tied} {state:?} {extra} {verify:?}"
                    );
                    assert_eq!(model.incidents(), Default::default());
                }
            }
            assert!(streamed[0] > 0 && streamed.last() == Some(&0), "{streamed:?}");
            assert!(streamed.iter().any(|bytes| (1..streamed[0]).contains(bytes)), "{streamed:?}");
        }
        assert_eq!(fake.broken(), Vec::<String>::new());
    }
}

/// The caps that are named, over models and options: they work, and a MiB less does not.
#[test]
fn the_least_cap_that_is_named_works_and_less_does_not() {
    let options = [
        (1, SessionOptions::default()),
        (1, SessionOptions::default().numbers(Numbers::Float(StateKind::F16))),
        (1, SessionOptions::default().numbers(Numbers::Fixed(fixed::StateKind::I16))),
        (1, SessionOptions::default().numbers(Numbers::Fixed(fixed::StateKind::I32)).rows(true)),
        (1, SessionOptions::default().rows(true).chunk(64)),
        (1, SessionOptions::default().held(5 << 20)),
        (16, SessionOptions::default()),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let named = |error: Error| match error {
        Error::Cap { least, smaller_state, .. } => (least, smaller_state),
        other => panic!("{other}"),
    };
    let (mut mapped, mut streamed, mut hints) = (0, 0, std::collections::BTreeSet::new());
    let small = ["mamba-odd", "falcon-odd"].map(|name| {
        let fixture = fixture(name);
        pack(&fixture.checkpoint, folder.path(), &quant(Quant::Q8))
    });
    let large = [false, true].map(|tied| {
        let path = folder.path().join(format!("{tied}.elp"));
        std::fs::write(&path, file(tied, Quant::Q8)).expect("a file");
        path
    });
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-4m.elp").into();
    for path in small.iter().chain(&large).chain([&bundled]) {
        for from_path in [true, false] {
            let open = |cap| {
                let options = elapid_tests::streamed::options(cap, Verify::Auto);
                if from_path {
                    return Model::open(path, &options);
                }
                let storage = Fake::new(std::fs::read(path).expect("the file"));
                Model::open_storage("fake", Arc::new(storage), &options)
            };
            for (sequences, options) in options {
                // What is wrong with a session, or a batch, under this cap.
                let try_in = |cap| -> Result<(), Error> {
                    let model = open(cap)?;
                    if sequences > 1 {
                        return model.batch(sequences, &options)?.feed(sequences - 1, &[1, 2, 3]);
                    }
                    model.session(&options)?.feed(&[1, 2, 3])
                };
                let name = format!("{} {from_path} {options:?}", path.display());
                let (least, hint) = named(try_in(1 << 10).expect_err("a model in 1 KiB"));
                assert_eq!(least % MIB, 0, "{name}");
                match try_in(least) {
                    Ok(()) => {}
                    // Types that the fixed path does not take.
                    Err(Error::Step { .. }) if matches!(options.numbers, Numbers::Fixed(_)) => {}
                    Err(error) => panic!("{name}: {error}"),
                }
                let plan = open(least).and_then(|model| model.plan(&options));
                if let Some(plan) = plan.unwrap_or_else(|error| panic!("{name}: {error}")) {
                    *(if plan.mapped { &mut mapped } else { &mut streamed }) += 1;
                }
                // However little there is, the same is named.
                for cap in [MIB, least - MIB] {
                    assert_eq!(named(try_in(cap).expect_err(&name)), (least, hint), "{name}: {cap}");
                }
                let smallest = [Numbers::Float(StateKind::F16), Numbers::Fixed(fixed::StateKind::I16)];
                assert!(hint.is_none() || !smallest.contains(&options.numbers), "{name}: {hint:?}");
                hints.insert(hint);
            }
        }
    }
    assert!(mapped > 10 && streamed > 10, "{mapped} mapped, {streamed} streamed");
    assert!(hints.contains(&None) && hints.contains(&Some("f16")), "{hints:?}");
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
            let model = open(&fake, least + extra * MIB, Verify::Auto);
            let faults = Arc::clone(&faults);
            fake.set_faults(move |read| faults(read));
            let start = Instant::now();
            assert!(run(&model, StateKind::F32).expect(name) == expected, "{name}");
            let was = model.incidents();
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
        let model = open(&fake, least + extra * MIB, Verify::Auto);
        fake.set_faults(move |read| if read.covers(damage) { Act::Error(EIO) } else { Act::Read });
        let mut session = model.session(&SessionOptions::default().chunk(4)).expect("a session");
        let error = session.feed(&TOKENS[..6]).expect_err("the storage fails");
        let Error::Storage { section: Section::Layer(7), offset, cause, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(cause.raw_os_error(), Some(EIO));
        assert!((damage - 16384..=damage).contains(offset), "{offset}");
        assert_eq!(error.class(), ExitClass::Failure);
        let text = error.to_string();
        assert!(text.contains("layer 7") && text.contains(&format!("offset {offset}")), "{text}");
        assert!(model.incidents().retried >= 4);

        // It fails again, and then it is well again: the step goes on where it was.
        let mut keep = |_| ControlFlow::Continue(());
        assert!(matches!(session.resume(&mut keep), Err(Error::Storage { .. })));
        fake.set_faults(|_| Act::Read);
        let fed = session.resume(&mut keep).expect("the storage is well");
        assert_eq!(fed, 4, "the first chunk");
        session.feed(&TOKENS[fed..6]).expect("the storage is well");
        let mut out = bits(session.logits().expect("logits"));
        for token in &TOKENS[6..] {
            session.feed(&[*token]).expect("the storage is well");
            out.extend(bits(session.logits().expect("logits")));
        }
        assert!(out == expected);
    }
}

#[test]
fn a_storage_that_panics_is_an_error() {
    let bytes = file(false, Quant::Q8);
    let (cap, expected) = (least(&bytes) + MIB, expected(&bytes, StateKind::F32));
    let bad = place(&bytes, 7);
    let fake = Arc::new(Fake::new(bytes));
    let model = open(&fake, cap, Verify::Auto);
    fake.set_faults(move |read| if read.covers(bad) { panic!("as the test wants it") } else { Act::Read });
    let mut session = model.session(&SessionOptions::default()).expect("a session");
    // Those readers that are left bring nothing any more.
    for _ in 0..8 {
        session.clear();
        let error = all(&mut session).expect_err("nobody reads it");
        assert!(matches!(error, Error::Storage { .. }) && error.to_string().contains("panicked"), "{error}");
    }
    // A new session has new readers.
    drop(session);
    fake.set_faults(|_| Act::Read);
    assert!(run(&model, StateKind::F32).expect("logits") == expected);
}

#[test]
fn damage_is_read_again_and_then_refused() {
    let bytes = file(false, Quant::Q4);
    let least = least(&bytes);
    for layer in [0, 6, 11] {
        let damage = place(&bytes, layer);
        for extra in [0, 2] {
            let fake = Arc::new(Fake::new(bytes.clone()));
            let model = open(&fake, least + extra * MIB, Verify::Auto);
            fake.set_faults(move |_| Act::Flip(damage));
            match run(&model, StateKind::F32) {
                Err(error @ Error::Step { cause: StepError::Source(source), .. }) => {
                    assert!(matches!(
                        source,
                        SourceError { fault: Fault::Checksum, section: Section::Layer(l), .. } if l == layer
                    ));
                    assert_eq!(error.class(), ExitClass::BadModel);
                }
                other => panic!("{:?}", other.map(|logits| logits.len())),
            }
            assert!(model.incidents().reread >= 2);
        }
    }
    // Unless nobody looks: the bit then makes other logits.
    let fake = Arc::new(Fake::new(bytes.clone()));
    let model = open(&fake, least, Verify::Never);
    let damage = place(&bytes, 6);
    fake.set_faults(move |_| Act::Flip(damage));
    assert!(run(&model, StateKind::F32).expect("logits") != expected(&bytes, StateKind::F32));
}

#[test]
fn a_file_cut_short_or_overwritten_is_refused() {
    let (bytes, other) = (file(false, Quant::Q8), file(false, Quant::Q4));
    let least = least(&bytes);
    let fake = Arc::new(Fake::new(bytes.clone()));
    let model = open(&fake, least, Verify::Auto);
    let mut session = model.session(&SessionOptions::default()).expect("a session");
    session.feed(&TOKENS).expect("the file is whole");
    session.logits().expect("logits");
    fake.change(|bytes| bytes.truncate(bytes.len() / 2 + 1000));
    let error = session.feed(&TOKENS).expect_err("half of the file is gone");
    assert!(
        matches!(&error, Error::Storage { cause, .. } if cause.kind() == io::ErrorKind::UnexpectedEof),
        "{error}"
    );
    session.clear();
    fake.change(|bytes| {
        bytes.clear();
        bytes.extend_from_slice(&other);
        bytes.resize(bytes.len().max(MIB as usize * 8), 0);
    });
    for _ in 0..2 {
        session.clear();
        let error = session.feed(&TOKENS).and_then(|()| session.logits().map(|_| ()));
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
    session.clear();
    assert!(all(&mut session).expect("logits") == expected(&bytes, StateKind::F32));
}

#[test]
fn what_is_kept_is_read_once() {
    let bytes = file(false, Quant::Q4);
    let expected = expected(&bytes, StateKind::F32);
    for verify in [Verify::Auto, Verify::Always] {
        let fake = Arc::new(Fake::new(bytes.clone()));
        let model = open(&fake, least(&bytes) + 64 * MIB, verify);
        let mut session = model.session(&SessionOptions::default().chunk(4)).expect("a session");
        assert!(all(&mut session).expect("logits") == expected);
        let reads = fake.reads();
        session.clear();
        assert!(all(&mut session).expect("logits") == expected);
        // Only panels of the embedding were read: one a token.
        assert!(fake.reads() - reads <= TOKENS.len() as u64, "{verify:?}");
    }
}

/// Each session has a reader and a part of the cap; what one takes is free again when it is dropped.
#[test]
fn sessions_stream_side_by_side_within_a_cap() {
    let bytes = file(false, Quant::Q4);
    let expected = expected(&bytes, StateKind::F32);
    let open = |cap, sessions| {
        let options = options(cap, Verify::Auto).sessions(sessions);
        Model::open_storage("fake", Arc::new(Fake::new(bytes.clone())), &options).expect("a model")
    };
    let session = SessionOptions::default().chunk(4);
    let Err(Error::Cap { least: two, .. }) = open(MIB, 2).session(&session) else { panic!("2 in 1 MiB") };
    assert!(two > least(&bytes), "{two}");
    let model = open(two, 2);
    let (mut one, mut other) = (model.session(&session).expect("one"), model.session(&session).expect("two"));
    assert!(one.read_by().is_some() && other.read_by().is_some());
    let refused = |model: &Model| match model.session(&session) {
        Err(Error::Session { needs, left, .. }) => assert!(needs > left, "{needs} of {left}"),
        other => panic!("{other:?}"),
    };
    refused(&model);
    // In turn, token by token.
    for session in [&mut one, &mut other] {
        session.feed(&TOKENS[..3]).expect("it can be fed");
    }
    for session in [&mut one, &mut other] {
        session.clear();
        assert!(all(session).expect("logits") == expected);
    }
    drop(one);
    let _again = model.session(&session).expect("its part is free");
    refused(&model);
    // Planned for one, the first takes all.
    let model = open(two, 1);
    let _all = model.session(&session).expect("one");
    refused(&model);
}

#[test]
fn a_slow_drive_is_kept_busy() {
    let bytes = file(false, Quant::Q4);
    let cap = least(&bytes) + MIB;
    for rate in [23e6, 45e6] {
        let storage = Arc::new(Throttled::new(Fake::new(bytes.clone()), rate));
        let model = Model::open_storage("slow", storage, &options(cap, Verify::Auto)).expect("a model");
        let mut session = model.session(&SessionOptions::default()).expect("a session");
        session.feed(&TOKENS[..1]).expect("a token");
        session.logits().expect("logits");
        let (start, before) = (Instant::now(), session.read_bytes());
        let least_time = Duration::from_secs(1);
        while start.elapsed() < least_time {
            session.feed(&[7]).expect("a token");
            session.logits().expect("logits");
        }
        let reached = (session.read_bytes() - before) as f64 / start.elapsed().as_secs_f64();
        // The margin is for a test machine that is busy with other tests; docs/streaming.md has what a quiet one reaches.
        assert!(reached > 0.6 * rate && reached < 1.2 * rate, "{reached} of {rate} bytes/s");
    }
}
