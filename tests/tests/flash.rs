//! Weights behind a flash driver: the same bits as from memory, and every fault of the driver seen.

use elapid_core::format::{FormatError, Quant, Section};
use elapid_core::kernels::{self, Solo};
use elapid_core::model::{Model, Rows, Session, StateKind, StepError};
use elapid_core::source::{Fault, FlashError, FlashSource, LayerSource, SourceError, read_header};
use elapid_tests::fixture::fixture;
use elapid_tests::runner::{Runner, pack, quant};
use embedded_storage::ReadStorage;

/// Where the file lies in the flash: behind a program.
const START: u32 = 0x1_2340;

/// A flash that refuses what lies outside it, and fails or flips a bit at a chosen read.
struct Flash {
    bytes: Vec<u8>,
    reads: usize,
    fail_at: usize,
    flip_at: usize,
}

#[derive(Debug, PartialEq)]
enum FlashFault {
    Outside(u32),
    Bus,
}

impl Flash {
    fn new(file: &[u8]) -> Self {
        let mut bytes = vec![0xff; START as usize];
        bytes.extend_from_slice(file);
        Self { bytes, reads: 0, fail_at: 0, flip_at: 0 }
    }
}

impl ReadStorage for &mut Flash {
    type Error = FlashFault;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), FlashFault> {
        self.reads += 1;
        if self.reads == self.fail_at {
            return Err(FlashFault::Bus);
        }
        let from = offset as usize;
        bytes.copy_from_slice(self.bytes.get(from..from + bytes.len()).ok_or(FlashFault::Outside(offset))?);
        if self.reads == self.flip_at {
            bytes[bytes.len() / 2] ^= 1;
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

fn code(fault: &FlashFault) -> i32 {
    match fault {
        FlashFault::Outside(_) => 1,
        FlashFault::Bus => 2,
    }
}

fn file(name: &str) -> (Vec<u8>, std::path::PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixture = fixture(name);
    let options = elapid_pack::Options { block_bytes: 16 << 10, ..quant(Quant::Q8) };
    let path = pack(&fixture.checkpoint, folder.path(), &options);
    (std::fs::read(&path).expect("the packed file"), path, folder)
}

/// Feeds two chunks and resumes what failed. Returns the logits' bits and the faults.
fn feed(
    model: &Model<'_>,
    session: &mut Session<'_>,
    source: &mut dyn LayerSource,
    logits: usize,
) -> (Vec<u32>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut note = |error| match error {
        StepError::Source(SourceError { fault, .. }) => faults.push(fault),
        other => panic!("{other}"),
    };
    for tokens in [&[1u32, 2, 3][..], &[4]] {
        let mut done = model.forward(session, source, tokens);
        while let Err(error) = done {
            note(error);
            done = match session.suspended_at() {
                Some(_) => model.resume(session, source),
                None => model.forward(session, source, tokens),
            };
        }
    }
    let mut out = vec![0.0; logits];
    while let Err(error) = model.logits(session, source, Rows::Last, &mut out) {
        note(error);
    }
    (out.iter().map(|x| x.to_bits()).collect(), faults)
}

#[test]
fn a_driver_gives_the_bits_of_memory_whatever_its_buffer() {
    for name in ["falcon-odd", "mamba-even"] {
        let (bytes, path, _folder) = file(name);
        let wanted = Runner::open(&path, StateKind::F32, 3).with(
            kernels::detect(),
            &Solo,
            |model, session, source| feed(model, session, source, model.config().padded_vocab() as usize),
        );
        assert_eq!(wanted.1, []);
        // A block, some blocks, everything.
        for buffer in [16 << 10, 40 << 10, 1 << 20] {
            let run = |fail_at, flip_at| {
                let mut flash = Flash::new(&bytes);
                let header = read_header(&mut &mut flash, START).expect("a header");
                let mut buffer = vec![0xaa; buffer];
                let source = FlashSource::new(&mut flash, START, &header, &mut buffer, code)
                    .expect("the file is whole");
                // Opening it again reads as much, the header left out.
                let opened = 2 * source.into_storage().reads - 1;
                (flash.fail_at, flash.flip_at) = (opened + 1 + fail_at, opened + 1 + flip_at);
                let mut source = FlashSource::new(&mut flash, START, &header, &mut buffer, code)
                    .expect("the file is whole");
                let result = Runner::open(&path, StateKind::F32, 3).with(
                    kernels::detect(),
                    &Solo,
                    |model, session, _| {
                        feed(model, session, &mut source, model.config().padded_vocab() as usize)
                    },
                );
                (result, source.into_storage().reads - opened)
            };
            let never = 1 << 30;
            let (result, reads) = run(never, never);
            assert!(result == wanted, "{name}, a buffer of {buffer}");
            for at in (0..reads).step_by(7) {
                let ((bits, faults), _) = run(at, never);
                assert_eq!(faults, [Fault::Storage(2)], "{name}, {buffer}, the read {at} fails");
                assert!(bits == wanted.0, "{name}, {buffer}, the read {at} fails");
                let ((bits, faults), _) = run(never, at);
                assert_eq!(faults, [Fault::Checksum], "{name}, {buffer}, a bit of read {at} flips");
                assert!(bits == wanted.0, "{name}, {buffer}, a bit of read {at} flips");
            }
        }
    }
}

#[test]
fn what_does_not_fit_or_is_damaged_is_refused() {
    let (bytes, ..) = file("falcon-odd");
    let mut flash = Flash::new(&bytes);
    let header = read_header(&mut &mut flash, START).expect("a header");
    let mut buffer = vec![0; 16 << 10];
    let new = |flash: &mut Flash, buffer: &mut [u8]| {
        FlashSource::new(flash, START, &header, buffer, code).map(|_| ()).expect_err("refused")
    };
    assert_eq!(
        new(&mut flash, &mut buffer[1..]),
        FlashError::Buffer { have: (16 << 10) - 1, need: 16 << 10 }
    );
    let need = bytes.len() as u64;
    flash.bytes.pop();
    assert_eq!(new(&mut flash, &mut buffer), FlashError::Capacity { have: need - 1, need });
    let mut flash = Flash::new(&bytes);
    flash.bytes[START as usize + 300] ^= 1;
    assert_eq!(new(&mut flash, &mut buffer), FlashError::Format(FormatError::Table));
    let mut flash = Flash::new(&bytes);
    let table = header.layout().section(Section::Checksums).offset as usize;
    flash.bytes[START as usize + table] ^= 1;
    assert_eq!(new(&mut flash, &mut buffer), FlashError::Format(FormatError::ChecksumTable));
    assert!(matches!(read_header(&mut &mut flash, 0), Err(FlashError::Format(FormatError::NotElp))));
}
