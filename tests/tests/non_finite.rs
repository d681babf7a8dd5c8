//! An infinity or a NaN ends the step with the error that names the layer, whichever instruction set computes it.

use std::path::Path;

use elapid_core::format::{Header, Part, Quant, Section};
use elapid_core::kernels::{Kernels, Solo};
use elapid_core::model::{StateKind, StepError};
use elapid_tests::fixture::fixture;
use elapid_tests::forge::forge;
use elapid_tests::runner::{Runner, pack, quant};
use elapid_tests::sets::available;

const TOKENS: [u32; 5] = [0, 1, 2, 3, 4];

/// What becomes wrong, and the section that must be named.
struct Damage {
    section: Section,
    part: Part,
    /// Bytes from the part's start.
    at: u64,
    named: Section,
}

/// A float of every part of the second layer, of the embedding's first row and of the final norm.
///
/// Left out are A and the bias of dt: softplus of minus infinity and exp of minus infinity have a limit, so what is
/// infinite there may rightly pass.
fn damages(header: &Header) -> Vec<Damage> {
    let (layout, config) = (header.layout(), header.layout().config());
    let layer = Section::Layer(1);
    let in_layer = |part, row: u32| Damage { section: layer, part, at: 64 * u64::from(row), named: layer };
    vec![
        in_layer(Part::Norm, 0),
        in_layer(Part::InProj, 0),
        in_layer(Part::Conv, config.d_conv),
        in_layer(Part::XProj, 0),
        in_layer(Part::Scan, config.d_state),
        in_layer(Part::OutProj, 0),
        Damage { section: Section::Embedding, part: Part::Embedding, at: 0, named: Section::Layer(0) },
        Damage { section: Section::FinalNorm, part: Part::FinalNorm, at: 0, named: layout.head().0 },
    ]
}

/// The first number of a part is a float or the scale of a group, an f16.
fn width(header: &Header, part: Part) -> usize {
    let config = header.layout().config();
    let shape = match part {
        Part::InProj => config.in_proj(),
        Part::XProj => config.x_proj(),
        Part::OutProj => config.out_proj(),
        Part::Embedding => config.embedding(),
        _ => return 4,
    };
    if shape.quant() == Quant::F32 { 4 } else { 2 }
}

fn outcome(path: &Path, kind: StateKind, kernels: &(dyn Kernels + 'static)) -> Result<Vec<u32>, StepError> {
    let logits = Runner::open(path, kind, 2).all_logits(kernels, &Solo, &TOKENS)?;
    Ok(logits.iter().map(|x| x.to_bits()).collect())
}

#[test]
fn every_instruction_set_names_the_layer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let damaged = folder.path().join("damaged.elp");
    let (mut refused, sets) = (std::collections::BTreeMap::new(), available());
    for name in ["mamba-odd", "falcon-odd"] {
        let fixture = fixture(name);
        for as_quant in Quant::ALL {
            let path = pack(&fixture.checkpoint, folder.path(), &quant(as_quant));
            let file = std::fs::read(&path).expect("the packed file");
            let header = Header::parse(&file).expect("a valid file");
            // The canary: without the damage there are logits.
            for &kernels in &sets {
                assert!(outcome(&path, StateKind::F32, kernels).is_ok(), "{name} {}", kernels.name());
            }
            for Damage { section, part, at, named } in damages(&header) {
                for (value, half) in
                    [(f32::NAN, 0x7e00u16), (f32::INFINITY, 0x7c00), (f32::NEG_INFINITY, 0xfc00)]
                {
                    let place = header.layout().section(section).offset + header.layout().part(part).offset;
                    let place = (place + at) as usize;
                    let mut file = file.clone();
                    match width(&header, part) {
                        4 => file[place..][..4].copy_from_slice(&value.to_le_bytes()),
                        _ => file[place..][..2].copy_from_slice(&half.to_le_bytes()),
                    }
                    forge(&mut file, &header);
                    std::fs::write(&damaged, &file).expect("the damaged file");
                    for kind in [StateKind::F32, StateKind::F16] {
                        for &kernels in &sets {
                            let found = outcome(&damaged, kind, kernels);
                            assert_eq!(
                                found.err(),
                                Some(StepError::NonFinite { section: named }),
                                "{name} {} {kind:?}: {value} in {part:?} of {section}, on {}",
                                as_quant.name(),
                                kernels.name()
                            );
                            *refused.entry(kernels.name()).or_insert(0) += 1;
                        }
                    }
                }
            }
        }
    }
    println!("steps refused: {refused:?}");
}
