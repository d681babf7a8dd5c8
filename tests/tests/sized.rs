//! State and working memory of a size known to the compiler: the same bits as on the heap, and refused where they don't fit.

use elapid::{ModelOptions, Numbers, SessionOptions};
use elapid_core::fixed;
use elapid_core::format::Header;
use elapid_core::kernels::fixed::{Group, Inverse, Range, SsmState};
use elapid_core::kernels::{self, Solo, detect};
use elapid_core::model::{Model, Rows, ScratchSize, StateKind, StateSize};
use elapid_core::sized::{Dimensions, Scratch, SizeError, State};
use elapid_core::source::SliceSource;

elapid_core::model! {
    mod tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
}
elapid_core::model! {
    mod larger = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-4m.elp");
}

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
const TOKENS: [u32; 12] = [5, 900, 17, 3, 3, 250, 611, 44, 1023, 0, 8, 77];

/// Logits after each token, in memory from a `static`'s type.
fn sized<T: elapid_core::sized::Element>(file: &[u8]) -> Vec<f32> {
    let mut state = Box::new(tiny::State::<T>::new());
    let mut scratch = Box::new(tiny::Scratch::new());
    let mut checked = [0; tiny::CHECKED];
    let header = Header::parse(file).unwrap();
    let model = Model::float(header.layout(), detect(), &Solo);
    let mut session = state.session(&model, &mut scratch).unwrap();
    let mut source = SliceSource::new(file, &header, &mut checked).unwrap();
    let (mut all, mut row) = (Vec::new(), [0.0; tiny::VOCAB]);
    for token in TOKENS {
        model.forward(&mut session, &mut source, &[token]).unwrap();
        model.logits(&mut session, &mut source, Rows::Last, &mut row).unwrap();
        all.extend(row);
    }
    all
}

/// Logits after each token in the fixed path, in memory from a `static`'s type.
fn sized_fixed<T: elapid_core::sized::Mantissa>(file: &[u8]) -> Vec<i32> {
    let mut state = Box::new(tiny::FixedState::<T>::new());
    let mut scratch = Box::new(tiny::FixedScratch::new());
    let header = Header::parse(file).unwrap();
    let model = fixed::Model::fixed(header.layout(), kernels::fixed::detect(), &Solo).unwrap();
    let session = state.session(&model, &mut scratch).unwrap();
    logits_fixed(file, &header, &model, session)
}

/// The same in memory from the heap.
fn heap_fixed(file: &[u8], kind: fixed::StateKind) -> Vec<i32> {
    let header = Header::parse(file).unwrap();
    let model = fixed::Model::fixed(header.layout(), kernels::fixed::detect(), &Solo).unwrap();
    let (all, one) = (fixed::StateSize::of(&tiny::CONFIG, 4), fixed::StateSize::of(&tiny::CONFIG, 1));
    let size = fixed::ScratchSize::of(&tiny::CONFIG, 1);
    let wide = |n| vec![0; if kind == fixed::StateKind::I32 { n } else { 0 }];
    let narrow = |n| vec![0; if kind == fixed::StateKind::I16 { n } else { 0 }];
    let (mut ssm32, mut ssm16) = (wide(all.ssm), narrow(all.ssm));
    let (mut undo32, mut undo16) = (wide(one.ssm), narrow(one.ssm));
    fn ssm<'a>(kind: fixed::StateKind, wide: &'a mut [i32], narrow: &'a mut [i16]) -> SsmState<'a> {
        if kind == fixed::StateKind::I32 { SsmState::I32(wide) } else { SsmState::I16(narrow) }
    }
    let (mut conv, mut undo_conv) = (vec![0; all.conv], vec![0; one.conv]);
    let (mut e, mut undo_e) = (vec![0; all.conv_exponents], vec![0; one.conv_exponents]);
    let (mut ranges, mut undo_ranges) = (vec![Range::ZERO; all.ranges], vec![Range::ZERO; one.ranges]);
    let state = fixed::State {
        conv: &mut conv,
        conv_exponents: &mut e,
        ssm: ssm(kind, &mut ssm32, &mut ssm16),
        ranges: &mut ranges,
    };
    let undo = fixed::State {
        conv: &mut undo_conv,
        conv_exponents: &mut undo_e,
        ssm: ssm(kind, &mut undo32, &mut undo16),
        ranges: &mut undo_ranges,
    };
    let (mut words, mut halves) = (vec![0; size.words], vec![0; size.halves]);
    let (mut groups, mut inverses) =
        (vec![Group::default(); size.groups], vec![Inverse::default(); size.tokens]);
    let scratch = fixed::Scratch {
        words: &mut words,
        halves: &mut halves,
        groups: &mut groups,
        inverses: &mut inverses,
    };
    let session = fixed::Session::new(&model, state, undo, scratch).unwrap();
    logits_fixed(file, &header, &model, session)
}

fn logits_fixed(
    file: &[u8],
    header: &Header,
    model: &fixed::Model<'_>,
    mut session: fixed::Session<'_>,
) -> Vec<i32> {
    let mut checked = [0; tiny::CHECKED];
    let mut source = SliceSource::new(file, header, &mut checked).unwrap();
    let (mut all, mut row) = (Vec::new(), [0; tiny::VOCAB]);
    for token in TOKENS {
        model.forward(&mut session, &mut source, &[token]).unwrap();
        model.logits(&mut session, &mut source, Rows::Last, &mut row).unwrap();
        all.extend(row);
    }
    all
}

/// The same by the host, as one chunk.
fn on_heap(state: StateKind) -> Vec<f32> {
    let model = elapid::Model::open(TINY.as_ref(), &ModelOptions::default()).unwrap();
    let mut sequence = model.session(&SessionOptions::default().numbers(Numbers::Float(state))).unwrap();
    let mut all = Vec::new();
    let mut keep = |_: usize, row: &[f32]| {
        all.extend(row);
        Ok::<(), elapid::Error>(())
    };
    sequence.feed_each(&TOKENS, &mut |_| std::ops::ControlFlow::Continue(()), &mut keep).unwrap();
    all
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_static_state_gives_the_same_bits() {
    let file = std::fs::read(TINY).unwrap();
    assert_eq!(bits(&sized::<f32>(&file)), bits(&on_heap(StateKind::F32)));
    assert_eq!(bits(&sized::<u16>(&file)), bits(&on_heap(StateKind::F16)));
}

#[test]
fn a_static_state_gives_the_same_bits_in_the_fixed_path() {
    let file = std::fs::read(TINY).unwrap();
    assert_eq!(sized_fixed::<i16>(&file), heap_fixed(&file, fixed::StateKind::I16));
    assert_eq!(sized_fixed::<i32>(&file), heap_fixed(&file, fixed::StateKind::I32));
}

#[test]
fn constants_are_those_of_the_file() {
    for (path, constant, checked, bytes) in [
        (TINY, tiny::CONFIG, tiny::CHECKED, tiny::FILE_BYTES),
        (&TINY.replace("300k", "4m"), larger::CONFIG, larger::CHECKED, larger::FILE_BYTES),
    ] {
        let file = std::fs::read(path).unwrap();
        let header = Header::parse(&file).unwrap();
        assert_eq!(constant, *header.layout().config());
        assert_eq!(checked, SliceSource::checked_words(header.layout()));
        assert_eq!(bytes, file.len());
    }
    let state = StateSize::of(&tiny::CONFIG, 4).bytes(StateKind::F16);
    let undo = StateSize::of(&tiny::CONFIG, 1).bytes(StateKind::F16);
    assert_eq!(size_of::<tiny::State<u16>>(), state + undo);
    assert_eq!(size_of::<tiny::Scratch>().next_multiple_of(4), size_of::<tiny::Scratch>());
    let both = size_of::<tiny::State<u16>>() + size_of::<tiny::Scratch>();
    println!("state in f16 and working memory of the 300K model: {both} bytes");
    assert!(both < 64 << 10, "{both}");
    let both = size_of::<tiny::FixedState<i16>>() + size_of::<tiny::FixedScratch>();
    println!("fixed state in i16 and working memory of the 300K model: {both} bytes");
    assert!(both < 64 << 10, "{both}");
    let state = fixed::StateSize::of(&tiny::CONFIG, 4).bytes(fixed::StateKind::I16);
    let undo = fixed::StateSize::of(&tiny::CONFIG, 1).bytes(fixed::StateKind::I16);
    assert_eq!(size_of::<tiny::FixedState<i16>>(), state + undo);
    assert_eq!(size_of::<tiny::FixedScratch>(), fixed::ScratchSize::of(&tiny::CONFIG, 1).bytes());
}

#[test]
fn a_model_of_another_size_is_refused_with_both_sizes() {
    let file = std::fs::read(TINY.replace("300k", "4m")).unwrap();
    let header = Header::parse(&file).unwrap();
    let model = Model::float(header.layout(), detect(), &Solo);
    let (mut state, mut scratch) = (tiny::State::<u16>::new(), tiny::Scratch::new());
    let error = state.session(&model, &mut scratch).unwrap_err();
    let need = Dimensions { layers: 6, inner: 512, state: 16, conv: 3 };
    assert_eq!(error, SizeError::State { have: tiny::State::<u16>::DIMENSIONS, need });
    let text = error.to_string();
    assert!(text.contains("4 layers of 192 channels") && text.contains("6 layers of 512"), "{text}");

    let model_fixed = fixed::Model::fixed(header.layout(), kernels::fixed::detect(), &Solo).unwrap();
    let (mut state, mut scratch) = (tiny::FixedState::<i16>::new(), tiny::FixedScratch::new());
    let error = state.session(&model_fixed, &mut scratch).unwrap_err();
    assert_eq!(error, SizeError::State { have: tiny::FixedState::<i16>::DIMENSIONS, need });

    let mut state = larger::State::<u16>::new();
    let mut scratch = Scratch::<100, 512, 16>::new();
    let error = state.session(&model, &mut scratch).unwrap_err();
    let need = ScratchSize::of(&larger::CONFIG, 1);
    assert_eq!(error, SizeError::Scratch { have: scratch.size().bytes(), need: need.bytes() });
    assert!(error.to_string().contains(&need.bytes().to_string()), "{error}");
}

/// Sizes are refused dimension by dimension: products that happen to agree are not enough.
#[test]
fn equal_bytes_are_not_an_equal_size() {
    let file = std::fs::read(TINY).unwrap();
    let header = Header::parse(&file).unwrap();
    let model = Model::float(header.layout(), detect(), &Solo);
    let mut scratch = tiny::Scratch::new();
    // Half of the layers, twice the channels.
    let mut state = State::<2, 384, 16, 3, f32>::new();
    assert!(matches!(state.session(&model, &mut scratch), Err(SizeError::State { .. })));
}
