//! State and working memory of a size known to the compiler: the same bits as on the heap, and refused where they don't fit.

use elapid::{Engine, EngineOptions, MemoryOptions};
use elapid_core::format::Header;
use elapid_core::kernels::{Solo, detect};
use elapid_core::model::{Model, Rows, ScratchSize, StateKind, StateSize};
use elapid_core::sized::{Dimensions, Scratch, SizeError, State};
use elapid_core::source::SliceSource;

elapid_core::model! {
    mod tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/address-300k.elp");
}
elapid_core::model! {
    mod larger = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/address-4m.elp");
}

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/address-300k.elp");
const TOKENS: [u32; 12] = [5, 900, 17, 3, 3, 250, 611, 44, 1023, 0, 8, 77];

/// Logits after each token, in memory from a `static`'s type.
fn sized<T: elapid_core::sized::Element>(file: &[u8]) -> Vec<f32> {
    let mut state = Box::new(tiny::State::<T>::new());
    let mut scratch = Box::new(tiny::Scratch::new());
    let mut checked = [0; tiny::CHECKED];
    let header = Header::parse(file).unwrap();
    let model = Model::new(header.layout(), detect(), &Solo);
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

/// The same by the host's engine, as one chunk.
fn on_heap(state: StateKind) -> Vec<f32> {
    let engine = Engine::open(TINY.as_ref(), &EngineOptions::default()).unwrap();
    let mut memory = engine.memory(&MemoryOptions { state, ..MemoryOptions::default() }).unwrap();
    let mut sequence = memory.sequence(&engine).unwrap();
    let mut all = Vec::new();
    let mut keep = |_: usize, row: &[f32]| {
        all.extend(row);
        Ok(())
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
}

#[test]
fn a_model_of_another_size_is_refused_with_both_sizes() {
    let file = std::fs::read(TINY.replace("300k", "4m")).unwrap();
    let header = Header::parse(&file).unwrap();
    let model = Model::new(header.layout(), detect(), &Solo);
    let (mut state, mut scratch) = (tiny::State::<u16>::new(), tiny::Scratch::new());
    let error = state.session(&model, &mut scratch).unwrap_err();
    let need = Dimensions { layers: 6, inner: 512, state: 16, conv: 3 };
    assert_eq!(error, SizeError::State { have: tiny::State::<u16>::DIMENSIONS, need });
    let text = error.to_string();
    assert!(text.contains("4 layers of 192 channels") && text.contains("6 layers of 512"), "{text}");

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
    let model = Model::new(header.layout(), detect(), &Solo);
    let mut scratch = tiny::Scratch::new();
    // Half of the layers, twice the channels.
    let mut state = State::<2, 384, 16, 3, f32>::new();
    assert!(matches!(state.session(&model, &mut scratch), Err(SizeError::State { .. })));
}
