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
use elapid::{Damage, Engine, EngineOptions, Error, ExitClass, MemoryOptions, verify};

const TOKENS: [u32; 11] = [5, 900, 0, 33, 33, 1023, 7, 512, 4, 18, 256];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models").join(name)
}

fn open(threads: usize, kernels: Option<&str>) -> Engine {
    let options =
        EngineOptions { threads: Some(threads), kernels: kernels.map(Into::into), ..Default::default() };
    Engine::open(&path("address-300k.elp"), &options).unwrap()
}

/// The bits of the logits of every token.
fn all_bits(engine: &Engine, options: &MemoryOptions) -> Vec<Vec<u32>> {
    let mut memory = engine.memory(options).unwrap();
    let mut sequence = memory.sequence(engine).unwrap();
    let mut rows = Vec::new();
    let mut each = |place: usize, row: &[f32]| {
        assert_eq!(place, rows.len());
        rows.push(row.iter().map(|x| x.to_bits()).collect());
        Ok(())
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
            &MemoryOptions { state, chunk: Some(1), ..Default::default() },
        );
        assert_eq!((expected.len(), expected[0].len()), (TOKENS.len(), 1024));
        for name in &kernels {
            for (threads, chunk) in [(1, 3), (2, 1), (3, 11), (5, 256)] {
                let rows = all_bits(
                    &open(threads, Some(name)),
                    &MemoryOptions { state, chunk: Some(chunk), ..Default::default() },
                );
                assert!(rows == expected, "{name}, {threads} threads, chunks of {chunk}, {state:?}");
            }
        }
    }
    let f16 = all_bits(&open(1, None), &MemoryOptions { state: StateKind::F16, ..Default::default() });
    let f32 = all_bits(&open(1, None), &MemoryOptions::default());
    assert!(f16 != f32, "the state's type is used");
    fixed_path(&f32);
    eprintln!("ran {} kernels: {}", kernels.len(), kernels.join(", "));
}

/// The same in the fixed path, whose logits are near those of the float path.
fn fixed_path(float: &[Vec<u32>]) {
    let mut kinds = Vec::new();
    for fixed in [fixed::StateKind::I16, fixed::StateKind::I32].map(Some) {
        let expected = all_bits(
            &open(1, Some("scalar")),
            &MemoryOptions { fixed, chunk: Some(1), ..Default::default() },
        );
        for (threads, chunk) in [(1, 3), (2, 1), (3, 256)] {
            let options = MemoryOptions { fixed, chunk: Some(chunk), ..Default::default() };
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
    let engine = open(2, None);
    let mut memory =
        engine.memory(&MemoryOptions { sequences: 3, chunk: Some(2), ..Default::default() }).unwrap();
    let mut batch = memory.batch(&engine).unwrap();
    assert_eq!(batch.sequences(), 3);
    batch.feed(0, &TOKENS[..3]).unwrap();
    batch.feed(2, &TOKENS[3..8]).unwrap();
    let mut got = Vec::new();
    let mut each = |sequence: usize, logits: &mut [f32]| {
        got.push((sequence, logits.to_vec()));
        Ok(())
    };
    batch.step(&[(0, TOKENS[3]), (2, TOKENS[8])], &mut each).unwrap();
    batch.clear(0).unwrap();
    batch.step(&[(0, 5), (1, 6), (2, TOKENS[9])], &mut each).unwrap();
    for at in [3, 5] {
        assert!(matches!(batch.step(&[(at, 1)], &mut |_, _| Ok(())), Err(Error::Step { .. })));
    }
    assert!(matches!(batch.feed(3, &[1]), Err(Error::Step { .. })));
    assert!(matches!(batch.feed(0, &[1, 1 << 20]), Err(Error::Step { .. })));
    let alone: [(usize, &[u32]); 5] =
        [(0, &TOKENS[..4]), (2, &TOKENS[3..9]), (0, &[5]), (1, &[6]), (2, &TOKENS[3..10])];
    for ((sequence, logits), (number, tokens)) in got.iter().zip(alone) {
        assert_eq!(*sequence, number);
        let mut memory = engine.memory(&MemoryOptions::default()).unwrap();
        let mut one = memory.sequence(&engine).unwrap();
        one.feed(tokens).unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(one.logits().unwrap()) == bits(logits), "sequence {number} after {tokens:?}");
    }
    assert_eq!(got.len(), alone.len());
}

#[test]
fn a_memory_serves_one_sequence_after_the_other() {
    let engine = open(2, None);
    let mut memory = engine.memory(&MemoryOptions::default()).unwrap();
    let mut results = Vec::new();
    for _ in 0..2 {
        let mut sequence = memory.sequence(&engine).unwrap();
        sequence.feed(&TOKENS[..4]).unwrap();
        sequence.feed(&TOKENS[4..]).unwrap();
        results.push(sequence.logits().unwrap().to_vec());
        sequence.clear();
        assert!(matches!(sequence.logits(), Err(Error::Step { cause: StepError::NotReady, .. })));
        sequence.feed(&TOKENS).unwrap();
        results.push(sequence.logits().unwrap().to_vec());
    }
    assert!(results.iter().all(|r| *r == results[0]));
}

#[test]
fn bad_tokens_are_refused_before_any_is_fed() {
    let engine = open(1, None);
    let mut memory = engine.memory(&MemoryOptions { chunk: Some(2), ..Default::default() }).unwrap();
    let mut sequence = memory.sequence(&engine).unwrap();
    let error = sequence.feed(&[1, 2, 3, 1024]).unwrap_err();
    assert_eq!(error.class(), ExitClass::Usage);
    assert!(error.to_string().contains("token 1024 at position 3"), "{error}");
    assert!(sequence.logits().is_err(), "nothing was fed");
    assert_eq!(sequence.feed(&[]).unwrap_err().class(), ExitClass::Usage);
}

#[test]
fn an_interrupted_sequence_can_be_cleared() {
    let engine = open(1, None);
    let mut memory = engine.memory(&MemoryOptions::default()).unwrap();
    let mut sequence = memory.sequence(&engine).unwrap();
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
    let mut fresh = engine.memory(&MemoryOptions::default()).unwrap();
    let mut fresh = fresh.sequence(&engine).unwrap();
    fresh.feed(&TOKENS).unwrap();
    assert_eq!(fresh.logits().unwrap(), again);
}

#[test]
#[cfg(feature = "bundled")]
fn the_bundled_model_is_the_file() {
    let engine = Engine::bundled(&EngineOptions::default()).unwrap();
    assert_eq!(engine.bytes().unwrap(), fs::read(path("address-4m.elp")).unwrap());
    assert_eq!(engine.bytes().unwrap().as_ptr().addr() % 64, 0);
    assert!(engine.tokenizer().is_ok());
}

/// Opens a file of these bytes.
fn open_bytes(bytes: &[u8]) -> Result<Engine, Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.elp");
    fs::write(&file, bytes).unwrap();
    // The mapping outlives the name.
    Engine::open(&file, &EngineOptions { threads: Some(1), ..Default::default() })
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
    let engine = open_bytes(&whole).unwrap();
    let table = engine.layout().section(Section::Checksums);
    let header = 0..engine.layout().header_bytes() as usize;
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
    let engine = open_bytes(&whole).unwrap();
    let layout = *engine.layout();
    assert_eq!(verify(&engine, &|_| ControlFlow::Continue(())).unwrap(), []);
    let blocks = layout.sections().flat_map(|s| (0..layout.section(s).blocks).map(move |b| (s, b)));
    for (section, block) in blocks.collect::<Vec<_>>() {
        let place = layout.block(section, block).unwrap();
        let mut bytes = whole.clone();
        bytes[(place.offset + place.length - 1) as usize] ^= 0x80;
        let engine = open_bytes(&bytes).unwrap();
        let found = verify(&engine, &|_| ControlFlow::Continue(())).unwrap();
        let (offset, length) = (place.offset, place.length);
        assert_eq!(found, [Damage::Block { section, block, offset, length }]);
        assert!(
            found[0].to_string().contains(&format!("block {block} of section {section} (offset {offset}"))
        );

        // Whatever uses the block refuses it; nothing else minds.
        let class = match section {
            Section::Tokenizer => engine.tokenizer().err(),
            Section::Generation => engine.generation().err(),
            Section::ChatTemplate | Section::RoleTable => engine.data_section(section).err(),
            _ => {
                let mut memory = engine.memory(&MemoryOptions::default()).unwrap();
                let mut sequence = memory.sequence(&engine).unwrap();
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
