//! Packed files are untrusted: whatever their bytes, opening and running them gives an error or logits, never a panic.

use elapid_core::fixed::StateKind as FixedState;
use elapid_core::format::{FormatError, Header, Part, Quant, Section};
use elapid_core::kernels::{self, Scale, Solo, SsmState, Team, fixed as fixed_kernels};
use elapid_core::model::{
    Model, Rows, Scratch, ScratchSize, Session, State, StateKind, StateSize, StepError,
};
use elapid_core::source::{Fault, SliceSource};
use elapid_tests::fixed::FixedRunner;
use elapid_tests::fixture::fixture;
use elapid_tests::forge::{forge, forge_header};
use elapid_tests::runner::{Runner, pack, quant};
use elapid_tests::scaled::scaled;
use proptest::prelude::*;

/// What came of running a file.
#[derive(Debug, PartialEq)]
enum Outcome {
    Format(FormatError),
    Step(StepError),
    Logits(Vec<u32>),
}

/// Three threads, started for every job.
struct Three;

impl Team for Three {
    fn size(&self) -> usize {
        3
    }
    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for member in 0..self.size() {
                scope.spawn(move || job(member));
            }
        });
    }
    fn grain(&self) -> usize {
        1
    }
}

/// Opens a file and feeds it a few tokens.
fn run(file: &[u8]) -> Outcome {
    run_by(&Solo, file)
}

/// The same by a team.
fn run_by(team: &dyn Team, file: &[u8]) -> Outcome {
    let header = match Header::parse(file) {
        Ok(header) => header,
        Err(error) => return Outcome::Format(error),
    };
    let layout = header.layout();
    let mut checked = vec![0; SliceSource::checked_words(layout)];
    let mut source = match SliceSource::new(file, &header, &mut checked) {
        Ok(source) => source.checked_by(team),
        Err(error) => return Outcome::Format(error),
    };
    let config = layout.config();
    let (all, one) = (StateSize::of(config, config.n_layer as usize), StateSize::of(config, 1));
    let size = ScratchSize::of(config, 4);
    let (mut conv, mut ssm) = (vec![0.0; all.conv], vec![0.0; all.ssm]);
    let (mut undo_conv, mut undo_ssm) = (vec![0.0; one.conv], vec![0.0; one.ssm]);
    let (mut floats, mut ints) = (vec![0.0; size.floats], vec![0; size.ints]);
    let mut scales = vec![Scale::default(); size.scales];
    let model = Model::float(layout, kernels::detect(), team);
    let step = || {
        let state = State { conv: &mut conv, ssm: SsmState::F32(&mut ssm) };
        let undo = State { conv: &mut undo_conv, ssm: SsmState::F32(&mut undo_ssm) };
        let scratch = Scratch { floats: &mut floats, ints: &mut ints, scales: &mut scales };
        let mut session = Session::new(&model, state, undo, scratch)?;
        model.forward(&mut session, &mut source, &[0, 1, 2])?;
        model.forward(&mut session, &mut source, &[3])?;
        let mut logits = vec![0.0; config.padded_vocab() as usize];
        model.logits(&mut session, &mut source, Rows::Last, &mut logits)?;
        Ok(logits.iter().map(|x| x.to_bits()).collect())
    };
    let mut step = step;
    step().map_or_else(Outcome::Step, Outcome::Logits)
}

/// A small file of a fixture, cut in the smallest blocks.
fn valid(name: &str, as_quant: Quant) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture(name);
    let options = elapid_pack::Options { block_bytes: 16 << 10, ..quant(as_quant) };
    std::fs::read(pack(&fixture.checkpoint, folder.path(), &options)).expect("the packed file")
}

#[test]
fn a_file_cut_at_any_length_is_refused() {
    let file = valid("mamba-odd", Quant::Q8);
    assert!(matches!(run(&file), Outcome::Logits(_)), "{:?}", run(&file));
    let lengths = (0..2048).chain((2048..file.len()).step_by(509)).chain([file.len() - 1]);
    for length in lengths {
        match run(&file[..length]) {
            Outcome::Format(FormatError::Short { .. } | FormatError::Length { .. } | FormatError::NotElp) => {
            }
            other => panic!("cut at {length}: {other:?}"),
        }
    }
    let mut longer = file;
    longer.push(0);
    assert!(matches!(run(&longer), Outcome::Format(FormatError::Length { .. })));
}

#[test]
fn any_flipped_bit_of_the_header_is_found() {
    let file = valid("falcon-odd", Quant::Q4);
    let header = Header::parse(&file).expect("a valid file");
    for bit in 0..8 * header.layout().header_bytes() as usize {
        let mut file = file.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(run(&file), Outcome::Format(_)), "bit {bit}");
    }
}

#[test]
fn a_newer_version_is_named() {
    let mut file = valid("mamba-odd", Quant::Q8);
    file[8] = 9;
    let error = Outcome::Format(FormatError::Version { found: 9, known: 1 });
    assert_eq!(run(&file), error);
}

#[test]
fn every_damaged_block_is_named_whoever_checks_it() {
    let file = valid("falcon-odd", Quant::Q8);
    let header = Header::parse(&file).expect("a valid file");
    let layout = header.layout();
    let sound = run(&file);
    assert!(matches!(sound, Outcome::Logits(_)), "{sound:?}");
    assert_eq!(run_by(&Three, &file), sound);
    let layers = (0..layout.config().n_layer).map(Section::Layer);
    let mut blocks = 0;
    for section in layers.chain([Section::FinalNorm, layout.head().0]) {
        for number in 0..layout.section(section).blocks {
            let block = layout.block(section, number).expect("a block");
            // The first byte is a weight's, the last one perhaps of the padding.
            for at in [block.offset, block.offset + block.length - 1] {
                let mut damaged = file.clone();
                damaged[at as usize] ^= 0x10;
                for team in [&Solo as &dyn Team, &Three] {
                    let Outcome::Step(StepError::Source(error)) = run_by(team, &damaged) else {
                        panic!("not found: byte {at}, block {number} of section {section}");
                    };
                    let found = (error.section, error.block, error.offset, error.fault);
                    assert_eq!(found, (section, number, block.offset, Fault::Checksum));
                }
            }
            blocks += 1;
        }
    }
    assert!(blocks > layout.config().n_layer * 7, "{blocks} blocks");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Header fields of any value, with a matching checksum.
    #[test]
    fn forged_headers_do_no_harm(changes in prop::collection::vec((8usize..252, any::<u8>()), 1..6)) {
        thread_local!(static FILE: Vec<u8> = valid("mamba-odd", Quant::Q8));
        FILE.with(|file| {
            let mut file = file.clone();
            for (at, value) in changes {
                file[at] = value;
            }
            forge_header(&mut file);
            // Only fields that change no size can pass.
            let _ = run(&file);
        });
    }

    /// Weights of any value, with matching checksums: logits, or an error that names the layer.
    #[test]
    fn forged_weights_do_no_harm(
        as_quant in prop::sample::select(Quant::ALL.to_vec()),
        changes in prop::collection::vec((0.0f64..1.0, any::<[u8; 8]>()), 1..20),
    ) {
        thread_local!(static FILES: Vec<(Quant, Vec<u8>)> =
            Quant::ALL.into_iter().map(|q| (q, valid("falcon-odd", q))).collect());
        let outcome = FILES.with(|files| {
            let (_, file) = files.iter().find(|(q, _)| *q == as_quant)?;
            let mut file = file.clone();
            let header = Header::parse(&file).expect("a valid file");
            let start = header.layout().section(Section::Embedding).offset as usize;
            for (place, bytes) in changes {
                let at = start + (place * (file.len() - start - 8) as f64) as usize;
                file[at..at + 8].copy_from_slice(&bytes);
            }
            forge(&mut file, &header);
            Some(run(&file))
        });
        let allowed = matches!(
            outcome,
            Some(Outcome::Logits(_) | Outcome::Step(StepError::NonFinite { .. }))
        );
        prop_assert!(allowed, "{outcome:?}");
    }

    /// Any bytes anywhere: found, unless they fell on padding that nothing reads.
    #[test]
    fn flipped_bytes_are_found(place in 0.0f64..1.0, flip in 1u8..) {
        thread_local!(static FILE: (Vec<u8>, Vec<u32>) = {
            let file = valid("mamba-odd", Quant::F16);
            let Outcome::Logits(logits) = run(&file) else { panic!("a valid file") };
            (file, logits)
        });
        FILE.with(|(file, logits)| {
            let mut file = file.clone();
            let at = (place * file.len() as f64) as usize;
            file[at] ^= flip;
            match run(&file) {
                Outcome::Logits(found) => prop_assert_eq!(&found, logits),
                Outcome::Format(_) | Outcome::Step(StepError::Source(_)) => {}
                other => prop_assert!(false, "byte {at}: {other:?}"),
            }
            Ok(())
        })?;
    }
}

/// Exponents of any value, in a file whose checksums fit: both paths give logits, or the float path an error that names where it
/// failed.
#[test]
fn forged_exponents_do_no_harm() {
    let fixture = fixture("mamba-bias");
    let folder = tempfile::tempdir().expect("a temporary folder");
    // All matrices have exponents: those of weights by 2^-20.
    let exponent = |name: &str, _: &[usize], _: usize| {
        let matrix =
            ["proj.weight", "embeddings.weight", "lm_head.weight"].iter().any(|end| name.ends_with(end));
        if matrix { -20 } else { 0 }
    };
    let checkpoint = scaled(&fixture.checkpoint, folder.path(), "scaled", &exponent, 0);
    let path = pack(&checkpoint, folder.path(), &quant(Quant::Q8));
    let file = std::fs::read(&path).expect("the file");
    let header = Header::parse(&file).expect("a valid file");
    let layout = header.layout();
    assert_eq!(layout.config().exponents.all(), [true; 6]);
    let parts =
        [Part::InProj, Part::XProj, Part::DtProj, Part::OutProj].map(|part| (Section::Layer(1), part));
    let parts = [&parts[..], &[(Section::Embedding, Part::Embedding), (Section::Head, Part::Head)]].concat();
    let mut logits = 0;
    for (section, part) in parts {
        let geometry = layout.part(part);
        for value in [i32::MIN, -127, -126, -1, 0, 64, 65, 1 << 20, i32::MAX] {
            let mut forged = file.clone();
            let start = (layout.section(section).offset + geometry.offset) as usize;
            for panel in 0..geometry.panels as usize {
                let end = start + (panel + 1) * geometry.panel_bytes as usize;
                // Every other row keeps its own.
                for exponent in forged[end - 64..end].as_chunks_mut::<4>().0.iter_mut().step_by(2) {
                    *exponent = value.to_le_bytes();
                }
            }
            forge(&mut forged, &header);
            std::fs::write(&path, &forged).expect("the file");
            let mut runner = Runner::open(&path, StateKind::F32, 7);
            match runner.all_logits(kernels::detect(), &Solo, &fixture.tokens[..16]) {
                Ok(_) => logits += 1,
                Err(StepError::NonFinite { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            for kind in [FixedState::I16, FixedState::I32] {
                let mut runner = FixedRunner::open(&path, kind, 7);
                let found = runner.all_logits(fixed_kernels::detect(), &Solo, &fixture.tokens[..16]);
                let found = found.expect("the fixed path has no infinity");
                let mut runner = FixedRunner::open(&path, kind, 1);
                let portable = runner.all_logits(&fixed_kernels::Scalar, &Solo, &fixture.tokens[..16]);
                assert!(portable.expect("as above") == found, "{value} in {}: other bits", part.name());
            }
        }
    }
    assert!(logits > 30, "only {logits} files gave logits");
}

/// A header that says of exponents what no file may say.
#[test]
fn headers_are_checked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let parse = |quant_as: Quant, at: usize, value: u8| {
        let fixture = fixture("mamba-odd");
        let mut file =
            std::fs::read(pack(&fixture.checkpoint, folder.path(), &quant(quant_as))).expect("a file");
        file[at] = value;
        forge_header(&mut file);
        Header::parse(&file).map(|header| *header.layout().config())
    };
    let unknown = |field, value| Err(FormatError::Unknown { field, value });
    assert_eq!(parse(Quant::Q8, 18, 0x40), unknown("row exponents", 0x40));
    assert_eq!(parse(Quant::Q8, 18, 0xff), unknown("row exponents", 0xff));
    assert_eq!(parse(Quant::Q8, 18, 1), unknown("row exponents of a tied head", 0));
    for exponent in [i8::MIN, -101, 113, i8::MAX] {
        assert_eq!(
            parse(Quant::Q8, 19, exponent as u8),
            unknown("logit exponent", u32::from(exponent as u8))
        );
    }
    for (exponent, unit) in [(-100, 2f32.powi(-116)), (0, 1.0 / 65536.0), (112, 2f32.powi(96))] {
        let config = parse(Quant::Q8, 19, exponent as u8).expect("a valid header");
        assert_eq!((config.logit_exponent, config.logit_unit()), (exponent, unit));
    }
}
