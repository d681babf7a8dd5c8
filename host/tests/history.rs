//! A session's past: saved and read, undone and copied, with the bits of a session that was never touched.

use std::fs;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use elapid::core::format::checksum;
use elapid::core::sample::Settings;
use elapid::{
    Error, GenerateOptions, Message, Model, ModelOptions, Numbers, Ram, SaveOptions, Session, SessionFault,
    SessionOptions, Storage,
};

const TOKENS: [u32; 11] = [5, 900, 0, 33, 33, 1023, 7, 512, 4, 18, 256];
const ALL: [Numbers; 4] = Numbers::ALL;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

fn open(name: &str) -> Model {
    Model::open(&path(name), &ModelOptions::default().threads(2)).unwrap()
}

/// A model's file that can only be read.
struct Bytes(Vec<u8>);

impl Storage for Bytes {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (&self.0[(offset as usize).min(self.0.len())..]).read(buffer)
    }
}

/// A model that is streamed, with the least memory that a session works in.
fn streamed(name: &str, session: &SessionOptions) -> Model {
    let bytes = Arc::new(Bytes(fs::read(path(name)).unwrap()));
    let open = |cap| {
        let options = ModelOptions::default().threads(1).ram(Ram::Bytes(cap));
        Model::open_storage(name, bytes.clone(), &options).unwrap()
    };
    match open(1 << 20).session(session) {
        Err(Error::Cap { least, .. }) => open(least),
        other => panic!("a model in 1 MiB: {other:?}"),
    }
}

/// Some tokens of any number.
fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 22).collect()
}

fn bits(session: &mut Session) -> Vec<u32> {
    session.logits().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// The bytes of the session's file: state, logits and all.
fn saved(session: &mut Session) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session");
    session.save(&file, &SaveOptions::default()).unwrap();
    fs::read(file).unwrap()
}

#[test]
fn a_session_that_was_saved_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["address-300k.elp", "address-4m.elp"] {
        let mapped = open(name);
        for numbers in ALL {
            let options = SessionOptions::default().numbers(numbers);
            let streamed = streamed(name, &options.chunk(3));
            let mut never = mapped.session(&options).unwrap();
            never.feed(&TOKENS).unwrap();
            let before = bits(&mut never);
            let file = folder.path().join(format!("{name}-{}", numbers.state_name()));
            let messages = [Message { role: "user".into(), content: "Grüße\n".into() }];
            never.save(&file, &SaveOptions::default().messages(messages.clone())).unwrap();
            never.feed(&[7]).unwrap();
            let after = bits(&mut never);
            let mut streams = 0;
            for model in [&mapped, &streamed] {
                let mut session = model.session(&options.chunk(3)).unwrap();
                streams += usize::from(session.read_by().is_some());
                session.feed(&[1, 2]).unwrap();
                let loaded = session.load(&file).unwrap();
                assert_eq!((loaded.messages, loaded.half), (messages.to_vec(), false));
                assert_eq!(session.tokens(), TOKENS);
                assert_eq!(bits(&mut session), before, "the stored logits serve");
                // What was loaded is what is saved again, on any way to the weights.
                let again = folder.path().join("again");
                session.save(&again, &SaveOptions::default().messages(messages.clone())).unwrap();
                assert!(fs::read(&again).unwrap() == fs::read(&file).unwrap());
                let mut computed = 0;
                let mut count = |progress: elapid::Progress| {
                    computed = progress.done;
                    ControlFlow::Continue(())
                };
                session.feed_watched(&[7], &mut count).unwrap();
                assert_eq!(computed, u64::from(model.config().n_layer), "one token is computed");
                assert_eq!(bits(&mut session), after, "{name} {numbers:?}");
                assert!(saved(&mut session) == saved(&mut never));
            }
            assert_eq!(streams, 1);
        }
    }
}

/// The same numbers on every machine: this test runs on x86 and on emulated ARM, so a file of one is one of the other.
#[test]
fn session_files_are_the_same_on_every_machine() {
    let model = open("address-300k.elp");
    let mut found = Vec::new();
    for numbers in ALL {
        let mut session = model.session(&SessionOptions::default().numbers(numbers)).unwrap();
        session.feed(&TOKENS).unwrap();
        let file = saved(&mut session);
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("session");
        fs::write(&place, &file).unwrap();
        let mut other = model.session(&SessionOptions::default().numbers(numbers)).unwrap();
        other.load(&place).unwrap();
        other.feed(&[7, 8]).unwrap();
        found.push((numbers.state_name(), file.len(), checksum(&file), checksum(&saved(&mut other))));
    }
    let expected = [
        ("f32", 63_000, 2_525_368_786, 747_439_476),
        ("f16", 38_424, 695_814_376, 4_171_158_188),
        ("i16", 42_104, 678_637_903, 3_172_836_119),
        ("i32", 66_684, 2_391_206_783, 2_371_571_453),
    ];
    assert_eq!(found, expected);
}

#[test]
fn prompts_of_all_lengths_leave_the_same_state_in_one_call_or_two() {
    let model = open("address-300k.elp");
    for numbers in ALL {
        let options = SessionOptions::default().numbers(numbers).chunk(8);
        for n in [1, 2, 3, 4, 7, 8, 9, 15, 16, 17] {
            let prompt = tokens(n);
            let mut one = model.session(&options.chunk(1)).unwrap();
            prompt.iter().for_each(|token| one.feed(&[*token]).unwrap());
            let expected = saved(&mut one);
            let mut whole = model.session(&options).unwrap();
            whole.feed(&prompt).unwrap();
            assert!(saved(&mut whole) == expected, "{n} tokens in one call");
            for cut in [1, n / 2, n - 1].into_iter().filter(|cut| (1..n).contains(cut)) {
                let mut two = model.session(&options).unwrap();
                two.feed(&prompt[..cut]).unwrap();
                let file = tempfile::NamedTempFile::new().unwrap();
                two.save(file.path(), &SaveOptions::default()).unwrap();
                two.feed(&prompt[cut..]).unwrap();
                assert!(saved(&mut two) == expected, "{cut} of {n} tokens, then the others");
                let mut three = model.session(&options).unwrap();
                three.load(file.path()).unwrap();
                three.feed(&prompt[cut..]).unwrap();
                assert!(saved(&mut three) == expected, "{cut} of {n} tokens, saved, then the others");
            }
        }
    }
}

#[test]
fn what_is_undone_never_was() {
    let model = open("address-300k.elp");
    let all = tokens(3000);
    for numbers in [ALL[0], ALL[2]] {
        let options = SessionOptions::default().numbers(numbers).chunk(64);
        let fresh = |n: usize| {
            let mut session = model.session(&options).unwrap();
            session.feed(&all[..n]).unwrap();
            saved(&mut session)
        };
        // Room for forty marks.
        let each = saved(&mut model.session(&options).unwrap()).len() + 4 * 1024;
        let mut session = model.session(&options.marks(40 * each)).unwrap();
        session.feed(&all[..2000]).unwrap();
        assert!(session.marks().count() >= 2, "a long prompt is marked on the way");
        for end in [2100, 2300, 2350] {
            session.mark().unwrap();
            session.feed(&all[session.tokens().len()..end]).unwrap();
        }
        session.mark().unwrap();
        let mut fork = session.fork().unwrap();
        assert_eq!(session.undo().unwrap(), 2300);
        assert!(saved(&mut session) == fresh(2300));
        assert_eq!(session.truncate(2100).unwrap(), 0, "it was marked");
        assert!(saved(&mut session) == fresh(2100));
        let replayed = session.truncate(900).unwrap();
        assert!(replayed > 0 && replayed < 900, "{replayed}");
        assert!(saved(&mut session) == fresh(900));
        assert_eq!(session.truncate(5000).unwrap(), 0);
        session.feed(&all[900..1000]).unwrap();
        assert!(saved(&mut session) == fresh(1000));
        // The fork is as the session was.
        assert_eq!(fork.tokens(), &all[..2350]);
        assert!(saved(&mut fork) == fresh(2350));
        // Another history: what is common stays, equal ones cost nothing.
        let mut other = all[..2320].to_vec();
        other.extend([1, 2, 3]);
        let reused = fork.feed_to(&other, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((reused.cached, reused.computed), (2300, 23));
        let again = fork.feed_to(&other, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((again.cached, again.computed), (2323, 0));
        let mut expected = model.session(&options).unwrap();
        expected.feed(&other).unwrap();
        assert!(saved(&mut fork) == saved(&mut expected));
        assert_eq!(fork.truncate(0).unwrap(), 0);
        assert!(matches!(fork.logits(), Err(Error::Step { .. })));
    }
    // Without marks, all before a point is computed again.
    let mut session = model.session(&SessionOptions::default()).unwrap();
    session.feed(&all[..40]).unwrap();
    session.mark().unwrap();
    assert_eq!((session.marks().count(), session.truncate(30).unwrap()), (0, 30));
}

#[test]
fn an_interrupted_step_is_undone_or_finished() {
    let model = open("address-300k.elp");
    let all = tokens(700);
    let options = SessionOptions::default().chunk(64);
    let mut session = model.session(&options.marks(64 << 20)).unwrap();
    session.feed(&all[..10]).unwrap();
    session.mark().unwrap();
    // In the middle of a step.
    let mut left = 22;
    let stopped = session.feed_watched(&all[10..], &mut |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let taken = session.tokens().len();
    let refused = session.save(&std::env::temp_dir().join("never"), &SaveOptions::default());
    assert!(matches!(refused, Err(Error::Step { .. })), "{refused:?}");
    let mut fresh = model.session(&options).unwrap();
    fresh.feed(&all[..10]).unwrap();
    let ten = saved(&mut fresh);
    fresh.feed(&all[10..taken]).unwrap();
    assert_eq!(session.resume(&mut |_| ControlFlow::Continue(())).unwrap(), taken - 10);
    assert!(saved(&mut session) == saved(&mut fresh));
    let stopped = session.feed_watched(&all[taken..], &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(session.truncate(10).unwrap(), 0);
    assert!(saved(&mut session) == ten);
}

#[test]
fn a_text_goes_on_as_if_it_had_not_ended() {
    let model = open("address-4m.elp");
    let settings = Settings { temperature: 0.9, top_p: 0.95, repeat_penalty: 1.2, ..Settings::MODEL };
    let prompt = model.encode("My fellow citizens").unwrap();
    let options = GenerateOptions::default().settings(settings).seed(11).go_on(true);
    let text = |session: &mut Session, prompt: &[u32], n| {
        let options = options.clone().max_tokens(n);
        let pieces = session.generate(prompt, &options).unwrap();
        pieces.map(|piece| piece.unwrap().text).collect::<String>()
    };
    let mut whole = model.session(&SessionOptions::default()).unwrap();
    let expected = text(&mut whole, &prompt, 40);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session");
    let mut session = model.session(&SessionOptions::default()).unwrap();
    let mut parts = text(&mut session, &prompt, 1);
    for n in [12, 1, 26] {
        session.save(&file, &SaveOptions::default()).unwrap();
        session = model.session(&SessionOptions::default()).unwrap();
        session.load(&file).unwrap();
        assert_eq!(session.pending().len(), 1);
        parts.push_str(&text(&mut session, &[], n));
    }
    assert_eq!(parts, expected);
    assert_eq!((session.tokens(), session.seed()), (whole.tokens(), Some(11)));
}

/// A session file, and where its checksums lie.
fn sum_again(file: &mut [u8]) {
    let sum = checksum(&file[..60]);
    file[60..64].copy_from_slice(&sum.to_le_bytes());
    for block in file[64..].chunks_mut((64 << 10) + 4) {
        let content = block.len() - 4;
        let sum = checksum(&block[..content]);
        block[content..].copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn bad_files_are_refused_and_change_nothing() {
    let model = open("address-300k.elp");
    let mut session = model.session(&SessionOptions::default()).unwrap();
    let prompt = model.encode("My fellow citizens").unwrap();
    let options = GenerateOptions::default().max_tokens(5).seed(3);
    assert_eq!(session.generate(&prompt, &options).unwrap().filter(Result::is_err).count(), 0);
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("session");
    let messages = [("system", "Be short."), ("user", "Hi"), ("assistant", "")]
        .map(|(role, content)| Message { role: role.into(), content: content.into() });
    session.save(&place, &SaveOptions::default().messages(messages)).unwrap();
    let file = fs::read(&place).unwrap();
    let mut other = model.session(&SessionOptions::default()).unwrap();
    other.feed(&TOKENS).unwrap();
    let there = saved(&mut other);

    let mut seed = 77_u64;
    let mut below = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let refused = |other: &mut Session, bytes: &[u8], what: &str| {
        fs::write(&place, bytes).unwrap();
        let error = other.load(&place).map(|_| what.to_owned()).unwrap_err();
        let line = error.to_string();
        assert!(line.starts_with(&place.display().to_string()) && !line.contains('\n'), "{line}");
        assert_eq!(other.tokens(), TOKENS, "{line}");
        line
    };
    for i in 0..2000 {
        let mut bytes = file.clone();
        match i % 4 {
            0 => bytes.truncate(below(file.len())),
            1 => bytes.extend(vec![0; 1 + below(100)]),
            // The front is hit as often as all the rest.
            2 => bytes[below(256)] ^= 1 << below(8),
            _ => bytes[below(file.len())] ^= 1 << below(8),
        }
        refused(&mut other, &bytes, "a mutated file was taken");
    }
    assert!(saved(&mut other) == there, "what was there stays as it was");
    // With the right checksums of its blocks, it is still an error, or what the bytes say.
    let (mut errors, mut taken) = (0, 0);
    for _ in 0..3000 {
        let mut bytes = file.clone();
        for _ in 0..=below(2) {
            let at = if below(2) == 0 { 8 + below(300) } else { 8 + below(file.len() - 8) };
            bytes[at] = [0, 1, 0xff, 0x7f, below(256) as u8][below(5)];
        }
        sum_again(&mut bytes);
        fs::write(&place, &bytes).unwrap();
        match other.load(&place) {
            Err(_) => errors += 1,
            Ok(loaded) => {
                taken += 1;
                let again = folder.path().join("again");
                other.save(&again, &SaveOptions::default().messages(loaded.messages)).unwrap();
                assert!(fs::read(&again).unwrap() == bytes, "it is what the bytes say");
                other.clear();
                other.feed(&TOKENS).unwrap();
            }
        }
    }
    assert!(errors > 300 && taken > 100, "{errors} errors, {taken} taken");
    assert!(saved(&mut other) == there, "what was there stays as it was");

    let line = refused(
        &mut other,
        b"ELAPID\r\n, a model perhaps, and certainly longer than a header would be",
        "taken",
    );
    assert!(line.ends_with("not a session file: give one that this program saved"), "{line}");
    let mut newer = file.clone();
    newer[8] = 2;
    assert!(refused(&mut other, &newer, "taken").contains("version 2"));
    fs::write(&place, &file).unwrap();
    let mut larger = open("address-4m.elp").session(&SessionOptions::default()).unwrap();
    let line = larger.load(&place).unwrap_err().to_string();
    assert!(line.contains("saved with another model file"), "{line}");
    let mut fixed = model.session(&SessionOptions::default().numbers(ALL[2])).unwrap();
    let line = fixed.load(&place).unwrap_err().to_string();
    assert!(line.contains("its state is kept in f32, this session's in i16"), "{line}");
    let missing = folder.path().join("none/session");
    assert!(matches!(other.load(&missing), Err(Error::File { .. })));
    assert!(matches!(other.save(&missing, &SaveOptions::default()), Err(Error::File { .. })));
    assert!(matches!(
        other.load(&path("address-4m.elp")),
        Err(Error::SessionFile { cause: SessionFault::NotSession, .. })
    ));
}

#[test]
fn half_a_state_goes_on_nearly_the_same() {
    let model = open("address-4m.elp");
    let mut session = model.session(&SessionOptions::default()).unwrap();
    session.feed(&tokens(200)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [whole, half] = ["whole", "half"].map(|name| folder.path().join(name));
    session.save(&whole, &SaveOptions::default()).unwrap();
    session.save(&half, &SaveOptions::default().half(true)).unwrap();
    let [large, small] = [&whole, &half].map(|file| fs::metadata(file).unwrap().len());
    assert!(small * 10 < large * 7, "{small} of {large} bytes");
    session.feed(&[7]).unwrap();
    let exact = session.logits().unwrap().to_vec();
    assert!(session.load(&half).unwrap().half);
    session.feed(&[7]).unwrap();
    let near = session.logits().unwrap();
    let largest = exact.iter().zip(&*near).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest > 0.0 && largest < 0.05, "{largest}");
}
