//! The same bits everywhere: every instruction set, team, chunk, and machine.
//!
//! `snapshots/bits.txt` holds a checksum of every packed file and of its logits; the same file is compared on x86-64 and
//! under emulation on AArch64. `ELAPID_OVERWRITE=1` renews it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use elapid::Pool;
use elapid_core::format::{Quant, checksum};
use elapid_core::kernels::{self, Kernels, Scalar, Solo, Team};
use elapid_core::model::StateKind;
use elapid_pack::Options;
use elapid_test_support::effort::emulated;
use elapid_tests::fixture::{Fixture, fixtures};
use elapid_tests::runner::{Runner, pack};
use elapid_tests::sets::available;

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/bits.txt");

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

fn logits_checksum(logits: &[f32]) -> u32 {
    checksum(&logits.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect::<Vec<u8>>())
}

/// Tokens to feed: those of the fixture, four times over.
fn tokens(fixture: &Fixture) -> Vec<u32> {
    fixture.tokens.iter().copied().cycle().take(256).collect()
}

/// Fewer for portable code, which takes a second for some ten tokens of the larger bundled model.
fn tokens_for_scalar(fixture: &Fixture) -> Vec<u32> {
    let mut tokens = tokens(fixture);
    let bundled = fixture.name.starts_with("address");
    tokens.truncate(match (bundled, emulated()) {
        (false, false) => 256,
        (true, false) | (false, true) => 40,
        (true, true) => 4,
    });
    tokens
}

/// Under emulation only the small models run, and fewer ways.
fn compared() -> impl Iterator<Item = Fixture> {
    fixtures().into_iter().filter(|fixture| !(emulated() && fixture.name == "address-4m"))
}

fn pack_as(
    fixture: &Fixture,
    folder: &Path,
    quant: Quant,
    head: Option<Quant>,
    block_bytes: u32,
) -> std::path::PathBuf {
    pack(&fixture.checkpoint, folder, &Options { quant, head, block_bytes, ..Options::default() })
}

#[test]
fn every_instruction_set_gives_the_bits_of_scalar() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sets = available();
    println!("instruction sets: {}", sets.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "));
    for fixture in compared() {
        for quant in Quant::ALL {
            let path = pack_as(&fixture, folder.path(), quant, None, 1 << 20);
            for kind in [StateKind::F32, StateKind::F16] {
                let run = |kernels: &(dyn Kernels + 'static)| {
                    let mut runner = Runner::open(&path, kind, 29);
                    bits(
                        &runner
                            .all_logits(kernels, &Solo, &tokens_for_scalar(&fixture))
                            .expect("the step succeeds"),
                    )
                };
                let wanted = run(&Scalar);
                for kernels in &sets {
                    let name = format!("{} {} {kind:?} {}", fixture.name, quant.name(), kernels.name());
                    assert!(run(*kernels) == wanted, "{name} differs from scalar");
                }
            }
        }
    }
}

#[test]
fn chunks_threads_and_blocks_change_no_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let small = tempfile::tempdir().expect("a temporary folder");
    let pools: Vec<Pool> = [2, 3, 7].into_iter().map(|n| Pool::new(n).expect("threads")).collect();
    for fixture in compared() {
        for quant in [Quant::Q8, Quant::Q4] {
            let path = pack_as(&fixture, folder.path(), quant, None, 1 << 20);
            let blocks = pack_as(&fixture, small.path(), quant, None, 16 << 10);
            let tokens = tokens(&fixture);
            let run = |path: &Path, chunk: usize, team: &dyn Team| {
                let mut runner = Runner::open(path, StateKind::F32, chunk);
                bits(&runner.all_logits(kernels::detect(), team, &tokens).expect("the step succeeds"))
            };
            let wanted = run(&path, 1, &Solo);
            let chunks: &[usize] = if emulated() { &[5, 64] } else { &[2, 3, 5, 12, 13, 64, 256] };
            for &chunk in chunks {
                assert!(run(&path, chunk, &Solo) == wanted, "{} in chunks of {chunk}", fixture.name);
            }
            assert!(run(&blocks, 17, &Solo) == wanted, "{} in small blocks", fixture.name);
            for pool in &pools {
                assert!(run(&path, 17, pool) == wanted, "{} on {} threads", fixture.name, pool.size());
            }
        }
    }
}

#[test]
fn every_machine_gives_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut found = BTreeMap::new();
    for fixture in compared() {
        for (quant, head) in [
            (Quant::F32, None),
            (Quant::F16, None),
            (Quant::Q8, None),
            (Quant::Q4, None),
            (Quant::Q4, Some(Quant::Q8)),
            (Quant::Q3, None),
            (Quant::Q4, Some(Quant::Q5)),
        ] {
            let path = pack_as(&fixture, folder.path(), quant, head, 64 << 10);
            let file = checksum(&std::fs::read(&path).expect("the packed file"));
            let mut runner = Runner::open(&path, StateKind::F32, 64);
            let logits =
                runner.all_logits(kernels::detect(), &Solo, &tokens(&fixture)).expect("the step succeeds");
            let head = head.map_or("", |head| head.name());
            let name = format!("{} {} {head}", fixture.name, quant.name());
            found.insert(name.trim_end().to_owned(), format!("{file:08x} {:08x}", logits_checksum(&logits)));
        }
    }
    if std::env::var_os("ELAPID_OVERWRITE").is_some() {
        let mut text = String::new();
        for (name, sums) in &found {
            writeln!(text, "{name}: {sums}").expect("a string takes everything");
        }
        std::fs::write(SNAPSHOT, text).expect("the snapshot");
        return;
    }
    let stored =
        std::fs::read_to_string(SNAPSHOT).expect("tests/snapshots/bits.txt; ELAPID_OVERWRITE=1 makes it");
    let stored: BTreeMap<&str, &str> = stored.lines().filter_map(|line| line.split_once(": ")).collect();
    for (name, sums) in &found {
        let wanted = stored.get(name.as_str()).copied();
        assert_eq!(wanted, Some(sums.as_str()), "{name}: checksums of file and logits");
    }
    println!("{} files and their logits are the stored ones", found.len());
}

/// The comparisons above must be able to fail: one flipped bit is seen.
#[test]
fn a_flipped_bit_is_seen() {
    let mut logits = vec![1.0f32; 100];
    let (before, sum) = (bits(&logits), logits_checksum(&logits));
    logits[50] = f32::from_bits(logits[50].to_bits() ^ 1);
    assert!(bits(&logits) != before);
    assert_ne!(logits_checksum(&logits), sum);
}
