//! Files of torch.save (tests/data/torch_save.py), whole and damaged, and pickles that ask for more than tensors.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;

use super::*;
use crate::checkpoint::rows;

const NEW: &[u8] = include_bytes!("../../../tests/data/torch_save.bin");
const OLD: &[u8] = include_bytes!("../../../tests/data/torch_save_old.bin");
const VALUES: &[u8] = include_bytes!("../../../tests/data/torch_save.safetensors");

fn open(folder: &Path, bytes: &[u8]) -> Result<Shards, PackError> {
    let path = folder.join("pytorch_model.bin");
    fs::write(&path, bytes).unwrap();
    let mut shards = Shards::default();
    let file = Box::new(fs::File::open(&path).unwrap());
    add(&mut shards, Shard { path, file }, &mut Faults::First)?;
    Ok(shards)
}

/// A file that must be refused, and in which words.
#[track_caller]
fn refused(bytes: &[u8], words: &str) {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path(), bytes).expect_err("must be refused");
    let message = error.to_string();
    assert!(!message.contains('\n') && error.exit_code() == 3, "{message}");
    assert!(
        message.contains("pytorch_model.bin") && message.contains(words),
        "{words:?} is not in: {message}"
    );
}

#[test]
fn tensors_of_all_kinds_have_the_values_of_torch() {
    let folder = tempfile::tempdir().unwrap();
    let values = SafeTensors::deserialize(VALUES).unwrap();
    for file in [NEW, OLD] {
        let shards = open(folder.path(), file).unwrap();
        // All but the counter and the empty one.
        assert_eq!(shards.entries.len(), values.len() - 2);
        for entry in &shards.entries {
            let view = values.tensor(&entry.name).unwrap();
            assert_eq!(entry.shape, view.shape(), "{}", entry.name);
            let wanted: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let mut all = vec![f32::NAN; wanted.len()];
            rows::read(&shards.files[0], entry, 0..entry.rows, &mut all).unwrap();
            assert_eq!(all, wanted, "{}", entry.name);
            // Any rows alone.
            for row in 0..entry.rows {
                let mut some = vec![f32::NAN; entry.columns];
                rows::read(&shards.files[0], entry, row..row + 1, &mut some).unwrap();
                assert_eq!(some, wanted[row * entry.columns..][..entry.columns], "{} {row}", entry.name);
            }
        }
    }
}

#[test]
fn a_value_of_a_view_that_is_not_finite_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = NEW.to_vec();
    let plain = open(folder.path(), &file).unwrap();
    let whole = plain.entries.iter().find(|entry| entry.name == "whole").unwrap();
    // Element [2, 7] of the storage's 6 by 10.
    let at = whole.offset as usize + 4 * 27;
    file[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let shards = open(folder.path(), &file).unwrap();
    for (name, words) in [("whole", "[2, 7]"), ("transposed", "[7, 2]"), ("narrow", "[1, 4]")] {
        let entry = shards.entries.iter().find(|entry| entry.name == name).unwrap();
        let mut all = vec![0.0; entry.rows * entry.columns];
        let error = rows::read(&shards.files[0], entry, 0..entry.rows, &mut all).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}` holds NaN at {words}")), "{error}");
    }
}

/// A file of torch.save with this pickle: a zip file of one stored file.
fn zipped(pickle: &[u8], method: u16, claimed: u32) -> Vec<u8> {
    let name = b"x/data.pkl";
    let mut fields =
        [20u16.to_le_bytes(), [0; 2], method.to_le_bytes(), [0; 2], [0; 2], [0; 2], [0; 2]].concat();
    fields.extend((pickle.len() as u32).to_le_bytes());
    fields.extend(claimed.to_le_bytes());
    fields.extend((name.len() as u16).to_le_bytes());
    fields.extend([0; 2]);
    let mut file = [b"PK\x03\x04", &fields[..], name, pickle].concat();
    let start = file.len() as u32;
    let directory = [b"PK\x01\x02\x14\0", &fields[..], &[0; 10], &0u32.to_le_bytes(), name].concat();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0; 2]);
    file
}

fn pickled(pickle: &[u8]) -> Vec<u8> {
    zipped(pickle, 0, pickle.len() as u32)
}

/// What a pickle could run is refused by its name.
#[test]
fn instructions_and_classes_that_no_tensor_needs_are_named() {
    for (pickle, words) in [
        (&b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R."[..], "names `os.system`"),
        (b"\x80\x02c__builtin__\neval\n.", "names `__builtin__.eval`"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "names `posix.system`"),
        (b"\x80\x02(ios\nsystem\n.", "the instruction INST"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
        (b"\x80\x02\xff.", "the instruction 0xff"),
        (b"\x80\x02P1\n.", "the instruction PERSID"),
        (b"\x80\x02}", "ends within an instruction"),
        (b"\x80\x02.", "takes a value that is not there"),
        (b"\x80\x02h\x05.", "recalls value 5"),
        (b"\x80\x02t.", "closes what was not opened"),
        (b"\x80\x02K\x01K\x01a.", "appends to what is no list"),
        (b"\x80\x02](K\x01u.", "puts keys into what has none"),
        (b"\x80\x02}(K\x01u.", "puts a key without a value"),
        (b"\x80\x02K\x01}b.", "sets attributes of what is no dictionary"),
        (b"\x80\x02X\xff\xff\xff\xff.", "has a text of 4294967295 bytes"),
        (b"\x80\x02K\x01Q.", "refers to a storage in an unknown way"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "makes an object in a way that is not known"),
        (b"\x80\x02K\x01.", "holds no dictionary of tensors"),
        // A list that holds itself.
        (b"\x80\x02]q\0h\0a.", "holds no dictionary of tensors"),
    ] {
        refused(&pickled(pickle), words);
    }
    let many = [&b"\x80\x02"[..], &vec![b'N'; 5 << 20]].concat();
    refused(&pickled(&many), "makes more than 4194304 values");
}

/// A tensor of this size and strides at an offset of a storage of ten.
fn tensor(offset: &[u8], size: &[u8], stride: &[u8]) -> Vec<u8> {
    let start = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x0atQ";
    [&start[..], offset, b"(", size, b"t(", stride, b"t\x89Ntq\x01Rs."].concat()
}

#[test]
fn views_that_leave_their_storage_are_refused() {
    let negative = b"J\xff\xff\xff\xff";
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    for (file, words) in [
        (tensor(b"K\x00", b"K\x0b", b"K\x01"), "at 0 of a storage of 10 elements, which it leaves"),
        (tensor(b"K\x01", b"K\x0a", b"K\x01"), "which it leaves"),
        (tensor(b"K\x00", b"K\x02K\x05", b"K\x06K\x01"), "which it leaves"),
        (tensor(b"K\x00", huge, b"K\x01"), "which it leaves"),
        (tensor(huge, b"K\x01", b"K\x01"), "which it leaves"),
        (tensor(b"K\x00", b"K\x02", huge), "which it leaves"),
        (tensor(negative, b"K\x01", b"K\x01"), "has a tensor at -1"),
        (tensor(b"K\x00", negative, b"K\x01"), "no whole numbers"),
        (tensor(b"K\x00", b"K\x02", negative), "no whole numbers"),
        (tensor(b"K\x00", b"K\x02", b""), "strides []"),
        (tensor(b"K\x00", b"K\x0a", b"K\x01"), "storage `0` is not in the file"),
    ] {
        refused(&pickled(&file), words);
    }
}

#[test]
fn zip_files_of_other_kinds_are_refused() {
    refused(&zipped(&[0; 10], 8, 1 << 30), "`x/data.pkl` is compressed");
    refused(&zipped(&[0; 10], 0, 1 << 30), "`x/data.pkl` is compressed");
    refused(b"PK\x03\x04", "without an end record");
    refused(b"", "does not begin as a file of torch.save does");
    refused(b"<!DOCTYPE html>", "an HTML page");
    refused(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull");
    let other = pickled(b"").iter().map(|byte| if *byte == b'x' { b'/' } else { *byte }).collect::<Vec<_>>();
    refused(&other, "without the one data.pkl");
    // torch.save writes a zip64 end record, a locator and an end record.
    let record = NEW.len() - 22 - 20 - 56;
    assert!(NEW[record..].starts_with(b"PK\x06\x06"));
    for (at, bytes, words) in [
        (record + 40, &[0xff; 4][..], "its directory claims 4294967295 bytes"),
        (record + 48, &[0xff; 8], "its directory leaves the file"),
        (record + 32, &[0xff; 8], "the zip file's directory ends"),
        (record, &[0xff; 4], "there is no end record"),
        (record + 56 + 8, &[0xff; 8], "end record is not there"),
    ] {
        let mut file = NEW.to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&file, words);
    }
}

/// Cut at any length, and with any bytes changed: refused on one line or read, never a panic.
#[test]
fn damaged_files_are_refused_on_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut seed = 3u64;
    let mut random = move |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % limit
    };
    let (mut opened, mut failed) = (0, 0);
    for file in [NEW, OLD] {
        for length in (0..file.len()).step_by(7) {
            let error = open(folder.path(), &file[..length]).expect_err("a cut file").to_string();
            assert!(!error.contains('\n'), "{error}");
        }
        for _ in 0..1500 {
            let mut file = file.to_vec();
            for _ in 0..=random(3) {
                let at = random(file.len());
                match random(3) {
                    0 => file[at] = random(256) as u8,
                    1 => file[at] ^= 1 << random(8),
                    _ => file.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xff),
                }
            }
            match open(folder.path(), &file) {
                Ok(shards) => {
                    opened += 1;
                    for entry in
                        shards.entries.iter().filter(|entry| entry.rows.saturating_mul(entry.columns) < 1000)
                    {
                        let mut all = vec![0.0; entry.rows * entry.columns];
                        let _ = rows::read(&shards.files[0], entry, 0..entry.rows, &mut all);
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(!error.contains('\n'), "{error}");
                    failed += 1;
                }
            }
        }
    }
    assert!(opened > 100 && failed > 500, "{opened} opened, {failed} failed");
}
