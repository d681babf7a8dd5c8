//! A sequence's state as bytes, in the core alone: the same bits after it, and no bytes that change a session or overflow a step.

use std::fmt::Debug;

use elapid_core::fixed;
use elapid_core::format::{Fingerprint, Header, checksum};
use elapid_core::kernels::{self, Solo, detect};
use elapid_core::model::snapshot::{About, Cut, Sink, SnapshotError, snapshot_bytes};
use elapid_core::model::{Element, Float, Model, Numbers, Rows, Session, StepError, Stored};
use elapid_core::source::SliceSource;
use elapid_tests::steps::Bits;

elapid_core::model! {
    mod tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
}

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
const BEFORE: [u32; 5] = [5, 900, 17, 3, 3];
const AFTER: [u32; 3] = [250, 611, 44];

/// Bytes that are written.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Sink for Bytes {
    type Error = Cut;
    fn write(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        self.0.extend(bytes);
        Ok(())
    }
}

/// A model with a session and its weights.
struct Run<'r, N: Numbers> {
    model: Model<'r, N>,
    session: Session<'r, N>,
    source: SliceSource<'r>,
    fingerprint: Fingerprint,
}

impl<N: Numbers> Run<'_, N>
where
    N::Logit: Bits + Default + Stored,
{
    /// Feeds tokens one by one, and returns the logits after the last one.
    fn feed(&mut self, tokens: &[u32]) -> Vec<N::Logit> {
        let mut logits = vec![N::Logit::default(); tiny::VOCAB];
        for token in tokens {
            self.model.forward(&mut self.session, &mut self.source, &[*token]).expect("the step succeeds");
        }
        self.model.logits(&mut self.session, &mut self.source, Rows::Last, &mut logits).expect("logits");
        logits
    }

    fn about(&self, tokens: u64) -> About {
        About { fingerprint: self.fingerprint, tokens, half: false }
    }

    fn save(&mut self, about: &About, logits: &[N::Logit]) -> Vec<u8> {
        let mut bytes = Bytes::default();
        self.session.save(0, about, Some(logits), &mut bytes).expect("it is saved");
        bytes.0
    }

    fn check(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError<Cut>> {
        let fingerprint = self.fingerprint;
        self.session.check_saved(&fingerprint, &mut bytes).map(|_| ())
    }

    fn load(&mut self, mut bytes: &[u8]) -> Result<(u64, Vec<N::Logit>), SnapshotError<Cut>> {
        let mut logits = vec![N::Logit::default(); tiny::VOCAB];
        let fingerprint = self.fingerprint;
        let saved = self.session.load(0, &fingerprint, &mut bytes, &mut logits)?;
        assert!(bytes.is_empty(), "all of it is read");
        Ok((saved.about.tokens, logits))
    }
}

fn bits<L: Bits + Copy>(logits: &[L]) -> Vec<u32> {
    logits.iter().map(|logit| logit.bits()).collect()
}

/// Random numbers: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// Where the elements of each part lie, and how many bytes one has.
fn parts(bytes: &[u8]) -> Vec<(std::ops::Range<usize>, usize)> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four")) as usize;
    let (mut at, mut parts) = (64, Vec::new());
    while at < bytes.len() {
        let width = if [2, 3, 5].contains(&word(at + 16)) { 2 } else { 4 };
        let count: usize = (0..4).map(|i| word(at + 20 + 4 * i)).filter(|n| *n > 0).product();
        let start = at + 36;
        parts.push((start..start + count * width, width));
        at = start + count * width + 4;
    }
    parts
}

/// Gives a mutated snapshot the checksums that it would have.
fn sum_again(bytes: &mut [u8], parts: &[(std::ops::Range<usize>, usize)]) {
    let head = checksum(&bytes[..60]);
    bytes[60..64].copy_from_slice(&head.to_le_bytes());
    for (range, _) in parts {
        let sum = checksum(&bytes[range.start - 36..range.end]);
        bytes[range.end..range.end + 4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// All that a path must do with each kind of its states.
fn holds<N: Numbers>(mut run: Run<'_, N>, other: &str)
where
    N::Logit: Bits + Default + Stored + PartialEq + Debug,
{
    let start = run.feed(&BEFORE);
    let about = run.about(BEFORE.len() as u64);
    let saved = run.save(&about, &start);
    let after = run.feed(&AFTER);
    // Back, and on again.
    let (tokens, logits) = run.load(&saved).expect("it is loaded");
    assert_eq!((tokens, bits(&logits)), (5, bits(&start)));
    let not_ready = run.model.logits(&mut run.session, &mut run.source, Rows::Last, &mut logits.clone());
    assert_eq!(not_ready, Err(StepError::NotReady), "the working memory is of another step");
    assert_eq!(run.save(&about, &logits), saved, "the same bytes");
    assert_eq!(bits(&run.feed(&AFTER)), bits(&after), "the same bits");

    // Bytes that can't be used change nothing.
    let there = run.save(&about, &after);
    let mut random = Random(9);
    for len in (0..64).chain((0..200).map(|_| random.below(saved.len()))) {
        assert_eq!(run.check(&saved[..len]), Err(SnapshotError::Stream(Cut)), "cut to {len}");
    }
    for _ in 0..1500 {
        let mut bytes = saved.clone();
        bytes[random.below(saved.len())] ^= 1 << random.below(8);
        assert!(run.check(&bytes).is_err());
    }
    let all = parts(&saved);
    assert_eq!(all.last().map(|(range, _)| range.end + 4), Some(saved.len()));
    // With the right checksums it is an error, or the state that the bytes say, which steps go on from.
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..1500 {
        let mut bytes = saved.clone();
        for _ in 0..=random.below(3) {
            let (range, width) = &all[random.below(all.len())];
            let at = range.start + random.below(range.len() / width) * width;
            for byte in &mut bytes[at..at + width] {
                *byte = [0, 0xff, 0x7f, 0x80, random.below(256) as u8][random.below(5)];
            }
        }
        sum_again(&mut bytes, &all);
        if run.check(&bytes).is_err() {
            refused += 1;
            continue;
        }
        taken += 1;
        let (_, logits) = run.load(&bytes).expect("it was checked");
        assert!(run.save(&about, &logits) == bytes, "the state that the bytes say");
        // A step may find that values grow without bound, and nothing else.
        let stepped = run.model.forward(&mut run.session, &mut run.source, &[1]);
        assert!(matches!(stepped, Ok(()) | Err(StepError::NonFinite { .. })), "{stepped:?}");
        if stepped.is_err() {
            run.session.clear();
        }
        run.load(&there).expect("the session goes on");
    }
    assert!(refused > 50 && taken > 50, "{refused} refused, {taken} taken");
    assert!(run.save(&about, &after) == there, "refused bytes change nothing");

    // A session of something else.
    let mut bytes = saved.clone();
    bytes[10] = if other == "f32" { 1 } else { 3 };
    sum_again(&mut bytes, &all);
    assert!(
        matches!(run.check(&bytes), Err(SnapshotError::Numbers { found, .. }) if found == other),
        "{:?}",
        run.check(&bytes)
    );
    bytes.clone_from(&saved);
    bytes[12] ^= 1;
    sum_again(&mut bytes, &all);
    assert_eq!(run.check(&bytes), Err(SnapshotError::OtherModel));
    bytes[8] = 2;
    assert_eq!(run.check(&bytes), Err(SnapshotError::Version { found: 2, known: 1 }));
    bytes[0] = 0;
    assert_eq!(run.check(&bytes), Err(SnapshotError::NotSnapshot));
    assert!(run.save(&about, &after) == there, "refused bytes change nothing");

    // Within a step there is nothing to save.
    run.model.begin(&mut run.session, &mut run.source, &[1]).expect("it begins");
    let suspended = Err(SnapshotError::Session(StepError::Suspended));
    assert_eq!(run.session.save(0, &about, Some(&after), &mut Bytes::default()), suspended);
    assert_eq!(run.check(&saved), suspended);
    // Before the first token there are no logits.
    run.session.clear();
    let empty = run.about(0);
    let mut bytes = Bytes::default();
    run.session.save(0, &empty, None, &mut bytes).expect("nothing is saved");
    assert_eq!(run.load(&bytes.0).expect("and loaded").0, 0);
    let missing = run.session.save(0, &about, None, &mut Bytes::default());
    assert_eq!(missing, Err(SnapshotError::Logits { have: 0, need: tiny::VOCAB }));
}

#[test]
fn float_states_come_back_bit_for_bit() {
    let file = std::fs::read(TINY).expect("the model");
    let header = Header::parse(&file).expect("a model");
    let model = Model::float(header.layout(), detect(), &Solo);
    fn one<T: elapid_core::sized::Element>(file: &[u8], header: &Header, model: Model<'_>) {
        let mut state = Box::new(tiny::State::<T>::new());
        let (mut scratch, mut checked) = (Box::new(tiny::Scratch::new()), [0; tiny::CHECKED]);
        let session = state.session(&model, &mut scratch).expect("it fits");
        let source = SliceSource::new(file, header, &mut checked).expect("the file is whole");
        holds(Run { model, session, source, fingerprint: header.fingerprint() }, "i16");
    }
    one::<f32>(&file, &header, model);
    one::<u16>(&file, &header, model);
}

#[test]
fn fixed_states_come_back_bit_for_bit() {
    let file = std::fs::read(TINY).expect("the model");
    let header = Header::parse(&file).expect("a model");
    let model = fixed::Model::fixed(header.layout(), kernels::fixed::detect(), &Solo).expect("it is q8");
    fn one<T: elapid_core::sized::Mantissa>(file: &[u8], header: &Header, model: fixed::Model<'_>) {
        let mut state = Box::new(tiny::FixedState::<T>::new());
        let (mut scratch, mut checked) = (Box::new(tiny::FixedScratch::new()), [0; tiny::CHECKED]);
        let session = state.session(&model, &mut scratch).expect("it fits");
        let source = SliceSource::new(file, header, &mut checked).expect("the file is whole");
        holds(Run { model, session, source, fingerprint: header.fingerprint() }, "f32");
    }
    one::<i16>(&file, &header, model);
    one::<i32>(&file, &header, model);
}

#[test]
fn half_the_size_loses_bits_and_no_more() {
    let file = std::fs::read(TINY).expect("the model");
    let header = Header::parse(&file).expect("a model");
    let model = Model::float(header.layout(), detect(), &Solo);
    let (mut state, mut scratch) = (Box::new(tiny::State::<f32>::new()), Box::new(tiny::Scratch::new()));
    let mut checked = [0; tiny::CHECKED];
    let session = state.session(&model, &mut scratch).expect("it fits");
    let source = SliceSource::new(&file, &header, &mut checked).expect("the file is whole");
    let mut run = Run { model, session, source, fingerprint: header.fingerprint() };
    let logits = run.feed(&BEFORE);
    let about = run.about(5);
    let whole = run.save(&about, &logits);
    let half = run.save(&About { half: true, ..about }, &logits);
    let one = header.layout().config();
    let (mut conv, mut ssm) = (vec![0.0; one.conv_state_len()], vec![0.0; one.ssm_state_len()]);
    let mut layer = elapid_core::model::State { conv: &mut conv, ssm: kernels::SsmState::F32(&mut ssm) };
    for (bytes, halved) in [(&whole, false), (&half, true)] {
        assert_eq!(snapshot_bytes::<Float>(one, &mut layer, halved, true), bytes.len() as u64);
    }
    run.load(&half).expect("it is loaded");
    let (exact, near) = (parts(&whole), parts(&half));
    let value = |bytes: &[u8], range: &std::ops::Range<usize>, i: usize| {
        f32::from_le_bytes(bytes[range.start + 4 * i..][..4].try_into().expect("four"))
    };
    let again = run.save(&about, &logits);
    let (mut different, mut halves) = (0, 0);
    for ((range, _), (_, width)) in exact.iter().zip(&near) {
        for i in 0..range.len() / 4 {
            let (was, is) = (value(&whole, range, i), value(&again, range, i));
            if *width == 2 {
                assert!((was - is).abs() <= was.abs() / 2048.0 + 3e-8, "{was} became {is}");
                halves += 1;
                different += usize::from(was != is);
            } else {
                assert_eq!(was.to_bits(), is.to_bits());
            }
        }
    }
    assert!(different > halves / 2, "{different} of {halves}");
    assert_eq!(Element::F16.name(), "f16");
}
