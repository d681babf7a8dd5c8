//! GGUF files, packed: what is kept bit for bit, and files that are damaged.

use std::fs;
use std::path::{Path, PathBuf};

use elapid_core::format::{Header, MatrixShape, Part, Quant, Section};
use elapid_pack::checkpoint::{Block, Checkpoint};
use elapid_pack::{Options, PackError, Plan};
use elapid_test_support::gguf::{Gguf, Random, Value, kind, model, with_tokens};
use half::f16;

fn write(gguf: &Gguf, folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    fs::write(&path, gguf.to_bytes()).unwrap();
    path
}

/// The values of a tensor of blocks, as ggml has them.
fn stored(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    let (size, zero) = match tensor.kind {
        kind::Q8_0 => (34, 0),
        kind::Q4_0 => (18, 8),
        _ => (22, 16),
    };
    let block = |block: &[u8]| {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let data = &block[size.min(block.len()) - if size == 34 { 32 } else { 16 }..];
        let integer = |i: usize| match tensor.kind {
            kind::Q8_0 => i32::from(data[i] as i8),
            _ => {
                let nibble = i32::from(data[i % 16] >> (i / 16 * 4) & 15);
                let fifth = if size == 22 { i32::from(block[2 + i / 8] >> (i % 8) & 1) << 4 } else { 0 };
                (nibble | fifth) - zero
            }
        };
        (0..32).map(|i| integer(i) as f32 * scale).collect::<Vec<_>>()
    };
    tensor.bytes.chunks_exact(size).flat_map(block).collect()
}

/// Packs a file and gives every element of a matrix, as it is packed.
fn packed(gguf: &Gguf, quant: Quant, section: Section, part: Part) -> (MatrixShape, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let (options, target) = (Options { quant, ..Options::default() }, folder.path().join("m.elp"));
    let plan = Plan::checkpoint(&write(gguf, folder.path()), &options).unwrap();
    plan.write(&target, &options, &()).unwrap();
    let file = fs::read(target).unwrap();
    let header = Header::parse(&file).unwrap();
    let (layout, config) = (header.layout(), header.layout().config());
    let shape = match part {
        Part::InProj => config.in_proj(),
        Part::OutProj => config.out_proj(),
        Part::XProj => config.x_proj(),
        _ => config.embedding(),
    };
    let geometry = layout.part(part);
    let mut all = Vec::new();
    for block in geometry.block_range() {
        let place = layout.block(section, block).unwrap();
        let bytes = &file[place.offset as usize..][..place.length as usize];
        for panel in
            bytes.chunks_exact(geometry.panel_bytes as usize).take(geometry.panels_in(block) as usize)
        {
            for row in 0..16 {
                all.extend((0..shape.cols()).map(|column| shape.element(panel, row, column)));
            }
        }
    }
    (shape, all)
}

/// Q8_0, Q4_0 and Q5_0 are not quantized again: the weights are those of the file, bit for bit, also in a finer type.
#[test]
fn groups_are_kept_bit_for_bit() {
    for (of, block, quants) in [
        (kind::Q8_0, Block::Q8_0, &[Quant::Q8][..]),
        (kind::Q4_0, Block::Q4_0, &[Quant::Q4, Quant::Q5, Quant::Q8]),
        (kind::Q5_0, Block::Q5_0, &[Quant::Q5, Quant::Q8]),
    ] {
        let mut gguf = model(false, of);
        // Rows of scales that need an exponent: smaller and larger ones.
        for (index, tensor) in gguf.tensors.iter_mut().enumerate().filter(|(_, tensor)| tensor.kind == of) {
            if index > 5 {
                let factor = if index > 15 { 512.0 } else { 1.0 / 4096.0 };
                for bytes in tensor.bytes.chunks_exact_mut(block.piece().1) {
                    let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32() * factor;
                    bytes[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                }
            }
        }
        for &quant in quants {
            for (name, section, part) in [
                ("token_embd.weight", Section::Embedding, Part::Embedding),
                ("blk.0.ssm_in.weight", Section::Layer(0), Part::InProj),
                ("blk.1.ssm_out.weight", Section::Layer(1), Part::OutProj),
            ] {
                let tensor = gguf.tensors.iter().find(|tensor| tensor.name == name).unwrap();
                let columns = tensor.shape[1] as usize;
                let wanted = stored(&gguf, name);
                let (shape, found) = packed(&gguf, quant, section, part);
                let width = shape.cols() as usize;
                // in_proj has two halves, each of whole panels; 96 rows are.
                for (row, wanted) in wanted.chunks_exact(columns).enumerate() {
                    let found = &found[row * width..][..columns];
                    assert_eq!(found, wanted, "{name} row {row} as {}", quant.name());
                }
            }
        }
    }
}

/// What a type can't hold is chosen anew: -128, which q8 does not have.
#[test]
fn a_group_that_does_not_fit_is_quantized() {
    let mut gguf = model(false, kind::Q8_0);
    let tensor = &mut gguf.tensors[0];
    tensor.bytes[..34].fill(0x80);
    tensor.bytes[..2].copy_from_slice(&f16::from_f32(0.01).to_le_bytes());
    let (_, found) = packed(&gguf, Quant::Q8, Section::Embedding, Part::Embedding);
    assert!(found[..32].iter().all(|value| (value + 1.28).abs() < 0.01), "{:?}", &found[..32]);
}

#[test]
fn a_is_not_taken_for_its_logarithm() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = model(true, kind::F16);
    let options = Options { quant: Quant::F32, ..Options::default() };
    let target = folder.path().join("m.elp");
    let plan = Plan::checkpoint(&write(&gguf, folder.path()), &options).unwrap();
    assert!(plan.notes()[0].contains("epsilon of the norms of dt, B and C"), "{:?}", plan.notes());
    plan.write(&target, &options, &()).unwrap();
    let file = fs::read(target).unwrap();
    let header = Header::parse(&file).unwrap();
    let geometry = header.layout().part(Part::Scan);
    let place = header.layout().block(Section::Layer(1), geometry.block_range().start).unwrap();
    let tensor = gguf.tensors.iter().find(|tensor| tensor.name == "blk.1.ssm_a").unwrap();
    // Column 2 of row 5: the panel has 16 rows of each column.
    let packed = &file[place.offset as usize + (2 * 16 + 5) * 4..][..4];
    assert_eq!(packed, &tensor.bytes[(5 * 3 + 2) * 4..][..4]);
}

/// Cut at any length, and with any bytes changed: refused on one line or packed, never a panic.
#[test]
fn damaged_files_are_refused_on_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut gguf = with_tokens(model(true, kind::Q4_0), "gpt2");
    gguf.set("tokenizer.ggml.pre", Value::Text("falcon".into()));
    let good = gguf.to_bytes();
    let header = good.len() - gguf.tensors.iter().map(|t| t.bytes.len().next_multiple_of(32)).sum::<usize>();
    for length in (0..300).chain((300..header + 200).step_by(13)).chain([good.len() / 2, good.len() - 1]) {
        fs::write(&path, &good[..length]).unwrap();
        let message = Checkpoint::open(&path).expect_err("must be refused").to_string();
        assert!(message.contains("truncated"), "{length}: {message}");
    }
    let mut random = Random(99);
    let (mut opened, mut failed) = (0, 0);
    for _ in 0..1500 {
        let mut file = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(header);
            match random.below(3) {
                0 => file[at] = random.next() as u8,
                1 => file[at] ^= 1 << random.below(8),
                _ => file[at..(at + 8).min(header)].fill([0, 0xff, 0x7f][random.below(3)]),
            }
        }
        fs::write(&path, &file).unwrap();
        match Plan::checkpoint(&path, &Options::default()) {
            Ok(_) => opened += 1,
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !message.contains('\n') && !matches!(error, PackError::InvalidRows { .. }),
                    "{message}"
                );
                failed += 1;
            }
        }
    }
    assert!(opened > 50 && failed > 500, "{opened} opened, {failed} failed");
}
