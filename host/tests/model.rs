//! The library over the bundled models: what must not change a bit doesn't, and damage is found.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use elapid::core::fixed;
use elapid::core::format::{
    Arch, Config, DataSizes, Fields, Header, Layout, PerMatrix, Quant, Quants, Section, emit_header,
};
use elapid::core::kernels::for_each_available;
use elapid::core::model::{StateKind, StepError};
use elapid::core::tokenizer::EncodeOptions;
use elapid::{
    Damage, Error, ExitClass, GenerateOptions, Model, ModelOptions, Numbers, Ram, SessionOptions, encode,
    verify,
};

const TOKENS: [u32; 11] = [5, 900, 0, 33, 33, 1023, 7, 512, 4, 18, 256];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

fn open(threads: usize, kernels: Option<&str>) -> Model {
    let options = ModelOptions::default().threads(threads);
    let options = kernels.into_iter().fold(options, ModelOptions::kernels);
    Model::open(&path("address-300k.elp"), &options).unwrap()
}

/// The bits of the logits of every token.
fn all_bits(model: &Model, options: &SessionOptions) -> Vec<Vec<u32>> {
    let mut sequence = model.session(options).unwrap();
    let mut rows = Vec::new();
    let mut each = |place: usize, row: &[f32]| {
        assert_eq!(place, rows.len());
        rows.push(row.iter().map(|x| x.to_bits()).collect());
        Ok::<(), Error>(())
    };
    sequence.feed_each(&TOKENS, &mut |_| ControlFlow::Continue(()), &mut each).unwrap();
    let last: Vec<u32> = sequence.logits().unwrap().iter().map(|x| x.to_bits()).collect();
    assert_eq!(rows.last(), Some(&last), "the last row is what logits gives");
    rows
}

#[test]
fn threads_kernels_and_chunks_change_no_bit() {
    let mut kernels = Vec::new();
    for_each_available(&mut |k| kernels.push(k.name()));
    for state in [StateKind::F32, StateKind::F16] {
        let expected = all_bits(
            &open(1, Some("scalar")),
            &SessionOptions::default().numbers(Numbers::Float(state)).chunk(1),
        );
        assert_eq!((expected.len(), expected[0].len()), (TOKENS.len(), 1024));
        for name in &kernels {
            for (threads, chunk) in [(1, 3), (2, 1), (3, 11), (5, 256)] {
                let rows = all_bits(
                    &open(threads, Some(name)),
                    &SessionOptions::default().numbers(Numbers::Float(state)).chunk(chunk),
                );
                assert!(rows == expected, "{name}, {threads} threads, chunks of {chunk}, {state:?}");
            }
        }
    }
    let f16 = all_bits(&open(1, None), &SessionOptions::default().numbers(Numbers::Float(StateKind::F16)));
    let f32 = all_bits(&open(1, None), &SessionOptions::default());
    assert!(f16 != f32, "the state's type is used");
    fixed_path(&f32);
    eprintln!("ran {} kernels: {}", kernels.len(), kernels.join(", "));
}

/// The same in the fixed path, whose logits are near those of the float path.
fn fixed_path(float: &[Vec<u32>]) {
    let mut kinds = Vec::new();
    for fixed in [fixed::StateKind::I16, fixed::StateKind::I32] {
        let expected = all_bits(
            &open(1, Some("scalar")),
            &SessionOptions::default().numbers(Numbers::Fixed(fixed)).chunk(1),
        );
        for (threads, chunk) in [(1, 3), (2, 1), (3, 256)] {
            let options = SessionOptions::default().numbers(Numbers::Fixed(fixed)).chunk(chunk);
            let rows = all_bits(&open(threads, None), &options);
            assert!(rows == expected, "{threads} threads, chunks of {chunk}, {fixed:?}");
        }
        for (fixed, float) in expected.iter().flatten().zip(float.iter().flatten()) {
            let (fixed, float) = (f32::from_bits(*fixed), f32::from_bits(*float));
            assert!((fixed - float).abs() < 0.5, "{fixed} beside {float}");
        }
        kinds.push(expected);
    }
    assert!(kinds[0] != kinds[1] && kinds[0] != float, "path and state are used");
}

#[test]
fn sequences_step_together_with_the_bits_of_each_alone() {
    for numbers in [Numbers::Float(StateKind::F32), Numbers::Fixed(fixed::StateKind::I16)] {
        step_together(&SessionOptions::default().numbers(numbers));
    }
}

fn step_together(options: &SessionOptions) {
    let model = open(2, None);
    let mut batch = model.batch(3, &options.chunk(2)).unwrap();
    assert_eq!(batch.sequences(), 3);
    batch.feed(0, &TOKENS[..3]).unwrap();
    batch.feed(2, &TOKENS[3..8]).unwrap();
    let mut got = Vec::new();
    let mut each = |sequence: usize, logits: &mut [f32]| {
        got.push((sequence, logits.to_vec()));
        Ok::<(), Error>(())
    };
    batch.step(&[(0, TOKENS[3]), (2, TOKENS[8])], &mut each).unwrap();
    batch.clear(0).unwrap();
    batch.step(&[(0, 5), (1, 6), (2, TOKENS[9])], &mut each).unwrap();
    for at in [3, 5] {
        assert!(matches!(batch.step(&[(at, 1)], |_, _| Ok(())), Err(Error::Step { .. })));
    }
    assert!(matches!(batch.feed(3, &[1]), Err(Error::Step { .. })));
    assert!(matches!(batch.feed(0, &[1, 1 << 20]), Err(Error::Step { .. })));
    let alone: [(usize, &[u32]); 5] =
        [(0, &TOKENS[..4]), (2, &TOKENS[3..9]), (0, &[5]), (1, &[6]), (2, &TOKENS[3..10])];
    for ((sequence, logits), (number, tokens)) in got.iter().zip(alone) {
        assert_eq!(*sequence, number);
        let mut one = model.session(options).unwrap();
        one.feed(tokens).unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(one.logits().unwrap()) == bits(logits), "sequence {number} after {tokens:?}");
    }
    assert_eq!(got.len(), alone.len());
}

#[test]
fn a_call_that_is_refused_has_fed_nothing() {
    let model = open(2, None);
    let mut session = model.session(&SessionOptions::default()).unwrap();
    session.feed(&TOKENS[..3]).unwrap();
    assert!(matches!(session.feed(&[1, 1 << 20]), Err(Error::Step { .. })));
    assert_eq!(session.resume(&mut |_| ControlFlow::Continue(())).unwrap(), 0);
    session.feed(&TOKENS[..3]).unwrap();
    let options = GenerateOptions::default();
    let mut generation = session.generate(&[1 << 20], &options).unwrap();
    assert!(generation.next().unwrap().is_err());
    assert_eq!(generation.generated().fed, 0);
}

#[test]
fn a_tokenizer_that_was_checked_is_the_same() {
    let model = open(1, None);
    let [first, again] = [(); 2].map(|()| model.tokenizer().unwrap());
    let text = "My fellow citizens, ça va?";
    let [a, b] = [&first, &again].map(|t| encode(t, text, EncodeOptions::default()).unwrap());
    assert_eq!((a, first.missing()), (b, again.missing()));
}

#[test]
fn a_session_serves_one_sequence_after_the_other() {
    let model = open(2, None);
    let mut session = model.session(&SessionOptions::default()).unwrap();
    let mut results = Vec::new();
    for _ in 0..2 {
        session.feed(&TOKENS[..4]).unwrap();
        session.feed(&TOKENS[4..]).unwrap();
        results.push(session.logits().unwrap().to_vec());
        session.clear();
        assert!(matches!(session.logits(), Err(Error::Step { cause: StepError::NotReady, .. })));
    }
    assert!(results.iter().all(|r| *r == results[0]));
}

/// Sessions own what they need: they go to other threads, and keep the model open.
#[test]
fn sessions_run_side_by_side_in_threads() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn owned<T: Send + 'static>() {}
    shared::<Model>();
    owned::<elapid::Session>();
    owned::<elapid::Batch>();
    owned::<Error>();
    let model = open(1, None);
    let mut expected = model.session(&SessionOptions::default()).unwrap();
    expected.feed(&TOKENS).unwrap();
    let expected = expected.logits().unwrap().to_vec();
    let sessions: Vec<_> = (0..4).map(|_| model.session(&SessionOptions::default()).unwrap()).collect();
    drop(model);
    let threads = sessions.into_iter().map(|mut session| {
        std::thread::spawn(move || {
            // From one thread to the next in the middle of a sequence.
            session.feed(&TOKENS[..5]).unwrap();
            session
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        let mut session = thread.join().unwrap();
        session.feed(&TOKENS[5..]).unwrap();
        assert_eq!(session.logits().unwrap(), expected);
    }
}

#[test]
fn sessions_share_a_cap_and_give_it_back() {
    let file = path("address-300k.elp");
    let open = |cap| Model::open(&file, &ModelOptions::default().threads(1).ram(Ram::Bytes(cap))).unwrap();
    let options = SessionOptions::default().chunk(8);
    let Err(Error::Cap { least, .. }) = open(1 << 20).session(&options) else { panic!("a model in 1 MiB") };
    let model = open(least + (2 << 20));
    let plan = model.plan(&options).unwrap().unwrap();
    assert!(plan.mapped && plan.session_bytes < 1 << 20, "{plan:?}");
    let mut sessions = Vec::new();
    let (needs, left) = loop {
        match model.session(&options) {
            Ok(session) => sessions.push(session),
            Err(Error::Session { needs, left, cap, .. }) => {
                assert_eq!(cap, least + (2 << 20));
                break (needs, left);
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert!(sessions.len() > 2, "the file is counted once");
    assert!(needs > left && needs <= plan.session_bytes && left < plan.session_bytes, "{needs}, {left}");
    let error = model.session(&options).unwrap_err();
    assert_eq!(error.class(), ExitClass::Memory);
    assert!(error.to_string().contains(&format!("needs at least {needs} bytes")), "{error}");
    for session in &mut sessions {
        session.feed(&TOKENS).unwrap();
    }
    // One goes, another comes, and not two.
    sessions.pop();
    sessions.push(model.session(&options).unwrap());
    assert!(matches!(model.session(&options), Err(Error::Session { .. })));
    // What fails gives its share back.
    sessions.clear();
    for _ in 0..100 {
        assert!(model.batch(65, &options).is_err(), "64 step together at most");
    }
    assert_eq!(model.plan(&options).unwrap().unwrap(), plan);
}

#[test]
fn errors_keep_their_cause_and_name_no_option() {
    use std::error::Error as _;
    let error = Model::open("/no/such/model".as_ref(), &ModelOptions::default()).unwrap_err();
    let cause = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    assert_eq!(cause.map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));
    let error = open_bytes(b"nothing").unwrap_err();
    assert!(error.source().is_some_and(|cause| cause.is::<elapid::core::format::FormatError>()));
    let mut session = open(1, None).session(&SessionOptions::default()).unwrap();
    assert!(session.feed(&[1 << 20]).unwrap_err().source().is_some_and(|cause| cause.is::<StepError>()));
    let few = ModelOptions::default().threads(0);
    let capped = ModelOptions::default().ram(Ram::Bytes(1 << 20));
    let file = path("address-300k.elp");
    for error in [
        Model::open(&file, &few).unwrap_err(),
        Model::open(&file, &capped).unwrap().session(&SessionOptions::default()).unwrap_err(),
        Model::open("/".as_ref(), &ModelOptions::default()).unwrap_err(),
    ] {
        assert!(!error.to_string().contains(" -"), "{error}");
    }
}

#[test]
fn bad_tokens_are_refused_before_any_is_fed() {
    let model = open(1, None);
    let mut sequence = model.session(&SessionOptions::default().chunk(2)).unwrap();
    let error = sequence.feed(&[1, 2, 3, 1024]).unwrap_err();
    assert_eq!(error.class(), ExitClass::Usage);
    assert!(error.to_string().contains("token 1024 at position 3"), "{error}");
    assert!(sequence.logits().is_err(), "nothing was fed");
    assert_eq!(sequence.feed(&[]).unwrap_err().class(), ExitClass::Usage);
}

#[test]
fn an_interrupted_sequence_can_be_cleared() {
    let model = open(1, None);
    let mut sequence = model.session(&SessionOptions::default()).unwrap();
    let mut layers = 0;
    let fed = sequence.feed_watched(&TOKENS, &mut |progress| {
        assert_eq!(progress.total, TOKENS.len() as u64 * 4);
        layers += 1;
        if layers == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(fed, Err(Error::Interrupted)));
    assert!(sequence.feed(&TOKENS).is_err());
    sequence.clear();
    sequence.feed(&TOKENS).unwrap();
    let again = sequence.logits().unwrap().to_vec();
    let mut fresh = model.session(&SessionOptions::default()).unwrap();
    fresh.feed(&TOKENS).unwrap();
    assert_eq!(fresh.logits().unwrap(), again);
}

#[test]
#[cfg(feature = "bundled")]
fn the_bundled_model_is_the_file() {
    let model = Model::bundled(&ModelOptions::default()).unwrap();
    assert_eq!(model.bytes().unwrap(), fs::read(path("address-4m.elp")).unwrap());
    assert_eq!(model.bytes().unwrap().as_ptr().addr() % 64, 0);
    assert!(model.tokenizer().is_ok());
}

/// Opens a file of these bytes.
fn open_bytes(bytes: &[u8]) -> Result<Model, Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.elp");
    fs::write(&file, bytes).unwrap();
    // The mapping outlives the name.
    Model::open(&file, &ModelOptions::default().threads(1))
}

#[track_caller]
fn assert_bad(bytes: &[u8], what: &str) -> String {
    let error = open_bytes(bytes).err().unwrap_or_else(|| panic!("{what} was opened"));
    assert_eq!(error.class(), ExitClass::BadModel, "{what}: {error}");
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains("model.elp"), "{what}: {text}");
    text
}

#[test]
fn a_cut_file_is_refused_at_any_length() {
    let whole = fs::read(path("address-300k.elp")).unwrap();
    assert!(open_bytes(&whole).is_ok());
    let lengths = (0..600).chain((600..whole.len()).step_by(9973)).chain([whole.len() - 1]);
    for length in lengths {
        assert_bad(&whole[..length], &format!("the first {length} bytes"));
    }
    assert_bad(&[&whole[..], b"x"].concat(), "a byte too many");
}

#[test]
fn a_flipped_bit_in_header_or_tables_is_refused() {
    let whole = fs::read(path("address-300k.elp")).unwrap();
    let model = open_bytes(&whole).unwrap();
    let table = model.layout().section(Section::Checksums);
    let header = 0..model.layout().header_bytes() as usize;
    let sums = table.offset as usize..(table.offset + table.length) as usize;
    for at in header.chain(sums) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        assert_bad(&bytes, &format!("byte {at} flipped"));
    }
}

#[test]
fn a_newer_version_is_named() {
    let mut bytes = fs::read(path("address-300k.elp")).unwrap();
    bytes[8] = 9;
    let text = assert_bad(&bytes, "version 9");
    assert!(text.contains("version 9") && text.contains("newer elapid"), "{text}");
}

#[test]
fn absurd_dimensions_are_refused_without_memory_for_them() {
    let q = Quant::F32;
    let quants = Quants { embedding: q, in_proj: q, x_proj: q, dt_proj: q, out_proj: q, head: q };
    let fields = Fields {
        arch: Arch::Mamba,
        d_model: 32,
        d_inner: 1 << 17,
        d_state: 256,
        d_conv: 8,
        dt_rank: 32,
        n_layer: 512,
        vocab: 1 << 20,
        norm_eps: 1e-5,
        bcdt_eps: None,
        tied: true,
        bias: false,
        conv_bias: true,
        compact: false,
        quants,
        exponents: PerMatrix::default(),
        logit_exponent: 0,
        block_bytes: 1 << 20,
        data: DataSizes::default(),
    };
    let mut small = fields;
    small.d_inner = 1 << 10;
    let layout = Layout::new(Config::new(small).unwrap()).unwrap();
    let mut bytes = vec![0; 1 << 16];
    bytes[..Header::BYTES].copy_from_slice(&emit_header(&layout, 0, 0));
    let text = assert_bad(&bytes, "a header without its file");
    assert!(text.contains("cut short"), "{text}");
    assert!(Layout::new(Config::new(fields).unwrap()).is_err(), "a panel larger than a block");
}

#[test]
fn every_damaged_block_is_found_and_named() {
    let whole = fs::read(path("address-300k.elp")).unwrap();
    let model = open_bytes(&whole).unwrap();
    let layout = *model.layout();
    assert_eq!(verify(&model, &|_| ControlFlow::Continue(())).unwrap(), []);
    let blocks = layout.sections().flat_map(|s| (0..layout.section(s).blocks).map(move |b| (s, b)));
    for (section, block) in blocks.collect::<Vec<_>>() {
        let place = layout.block(section, block).unwrap();
        let mut bytes = whole.clone();
        bytes[(place.offset + place.length - 1) as usize] ^= 0x80;
        let model = open_bytes(&bytes).unwrap();
        let found = verify(&model, &|_| ControlFlow::Continue(())).unwrap();
        let (offset, length) = (place.offset, place.length);
        assert_eq!(found, [Damage::Block { section, block, offset, length }]);
        assert!(
            found[0].to_string().contains(&format!("block {block} of section {section} (offset {offset}"))
        );

        // Whatever uses the block refuses it; nothing else minds.
        let class = match section {
            Section::Tokenizer => model.tokenizer().err(),
            Section::Generation => model.generation().err(),
            Section::ChatTemplate | Section::RoleTable => model.data_section(section).err(),
            _ => {
                let mut sequence = model.session(&SessionOptions::default()).unwrap();
                let fed = sequence.feed(&(0..1024).collect::<Vec<u32>>());
                fed.and_then(|()| sequence.logits().map(|_| ())).err()
            }
        };
        assert_eq!(class.map(|e| e.class()), Some(ExitClass::BadModel), "{section} {block}");
    }
}

#[test]
fn padding_that_is_not_zero_is_found() {
    let whole = fs::read(path("address-300k.elp")).unwrap();
    let layout = *open_bytes(&whole).unwrap().layout();
    let end = |s| layout.section(s).offset + layout.section(s).length;
    let places = [(None, layout.header_bytes()), (Some(Section::Layer(1)), end(Section::Layer(1)))];
    for (after, offset) in places {
        let mut bytes = whole.clone();
        bytes[offset as usize] = 1;
        let found = verify(&open_bytes(&bytes).unwrap(), &|_| ControlFlow::Continue(())).unwrap();
        assert_eq!(found, [Damage::Padding { after, offset }]);
    }
}
