//! Weights streamed from a real file: through io_uring, where it is there, and with threads.
#![cfg(target_os = "linux")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use elapid::core::format::{Quant, Section};
use elapid::core::model::{StateKind, StepError};
use elapid::core::source::{Fault, SourceError};
use elapid::{Error, Model, ReadBy, SessionOptions, Storage, Verify};
use elapid_tests::storage::{Act, Fake};
use elapid_tests::streamed::{MIB, TOKENS, all, expected, file, least, open, options, packed, place, run};

/// A folder on a disk: direct I/O is for disks.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

fn saved(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("model.elp");
    fs::write(&path, bytes).expect("a file");
    path
}

/// Storage that is well, and an open file for the kernel to read that is not.
struct Beside {
    well: Fake,
    file: File,
}

impl Storage for Beside {
    fn size(&self) -> io::Result<u64> {
        self.well.size()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.well.read_at(buffer, offset)
    }
    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

#[test]
fn what_the_kernel_does_not_bring_is_counted_and_read_again() {
    let bytes = file(false, Quant::Q4);
    let (least, expected) = (least(&bytes), expected(&bytes, StateKind::F32));
    let folder = folder();
    let path = saved(folder.path(), &bytes);
    let cut = folder.path().join("cut");
    fs::write(&cut, &bytes[..bytes.len() / 2 + 1000]).expect("a file");
    let damaged = folder.path().join("damaged");
    let mut flipped = bytes.clone();
    flipped[place(&bytes, 5) as usize] ^= 0x10;
    fs::write(&damaged, &flipped).expect("a file");
    let read = |path: &Path| File::open(path).expect("a file");
    // Beside each: reads that were partial, failed, and read again for a checksum.
    let cases = [
        ("nothing", read(&path), [false, false, false]),
        // A file that may only be written cannot be read: EBADF, every time.
        ("an error", OpenOptions::new().write(true).open(&path).expect("a file"), [false, true, false]),
        ("a short file", read(&cut), [true, false, false]),
        ("a flipped bit", read(&damaged), [false, false, true]),
    ];
    for (name, file, seen) in cases {
        let storage = Arc::new(Beside { well: Fake::new(bytes.clone()), file });
        let model = open(&storage, least + 2 * MIB, Verify::Auto);
        let session = model.session(&SessionOptions::default()).expect("a session");
        if session.read_by() != Some(ReadBy::IoUring) {
            println!("skipped: no io_uring here");
            return;
        }
        drop(session);
        assert!(run(&model, StateKind::F32).expect(name) == expected, "{name}");
        let was = model.incidents();
        assert_eq!([was.partial > 0, was.retried > 0, was.reread > 0], seen, "{name}: {was:?}");
    }
}

#[test]
fn buffers_stay_while_the_kernel_may_write_to_them() {
    let bytes = file(false, Quant::Q4);
    let least = least(&bytes);
    // Reads of an empty pipe stay under way until there is something in it, or it is closed.
    let (out, mut into) = io::pipe().expect("a pipe");
    let storage = Arc::new(Beside { well: Fake::new(bytes), file: OwnedFd::from(out).into() });
    let model = open(&storage, least + 2 * MIB, Verify::Auto);
    let reading = || thread::current().name().is_some_and(|name| name.starts_with("elapid-read"));
    storage.well.set_faults(move |_| if reading() { panic!("as the test wants it") } else { Act::Read });
    let mut session = model.session(&SessionOptions::default()).expect("a session");
    if session.read_by() != Some(ReadBy::IoUring) {
        println!("skipped: no io_uring here");
        return;
    }
    // A byte ends one of the reads too early. It is made again the plain way, which panics.
    into.write_all(&[1]).expect("a byte");
    let error = session.feed(&TOKENS).expect_err("nobody reads");
    assert!(matches!(error, Error::Storage { .. }) && error.to_string().contains("panicked"), "{error}");
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(session);
            gone.store(true, Ordering::Relaxed);
        });
        // Long enough for memory that does not wait to be gone.
        thread::sleep(Duration::from_millis(200));
        assert!(!gone.load(Ordering::Relaxed), "the kernel still has the buffers");
        drop(into);
    });
}

/// A model streamed from a file.
fn streamed(path: &Path, cap: u64, plain_reads: bool) -> Model {
    let options = options(cap, Verify::Auto).plain_reads(plain_reads);
    Model::open(path, &options).expect("the file is a model")
}

#[test]
fn a_file_replaced_cut_or_overwritten_while_it_is_streamed() {
    let (bytes, other) = (file(false, Quant::Q8), file(false, Quant::Q4));
    let (cap, expected) = (least(&bytes) + MIB, expected(&bytes, StateKind::F32));
    for plain_reads in [false, true] {
        let folder = folder();
        let path = saved(folder.path(), &bytes);
        let model = streamed(&path, cap, plain_reads);
        let mut session = model.session(&SessionOptions::default()).expect("a session");
        let by = session.read_by().expect("it is streamed");
        assert!(!plain_reads || by == ReadBy::Threads);
        assert!(all(&mut session).expect("logits") == expected);

        // Replaced by renaming: the file that was opened is still there.
        let kept = folder.path().join("kept.elp");
        fs::hard_link(&path, &kept).expect("a link");
        let new = folder.path().join("new.elp");
        fs::write(&new, &other).expect("a file");
        fs::rename(&new, &path).expect("renamed");
        session.clear();
        assert!(all(&mut session).expect("logits") == expected, "replaced");

        // Cut short in place.
        let file = OpenOptions::new().write(true).open(&kept).expect("the file");
        file.set_len(bytes.len() as u64 / 2 + 1000).expect("cut");
        session.clear();
        let error = all(&mut session).expect_err("half of the file is gone");
        assert!(
            matches!(&error, Error::Storage { cause, .. } if cause.kind() == io::ErrorKind::UnexpectedEof),
            "{error}"
        );

        // Overwritten in place.
        let mut longer = other.clone();
        longer.resize(bytes.len(), 0);
        fs::write(&kept, &longer).expect("overwritten");
        session.clear();
        let error = all(&mut session).expect_err("it is another file");
        let Error::Step { cause: StepError::Source(SourceError { fault: Fault::Checksum, .. }), .. } = error
        else {
            panic!("{error}")
        };

        // And well again, in the same session.
        fs::write(&kept, &bytes).expect("restored");
        session.clear();
        assert!(all(&mut session).expect("logits") == expected, "restored");
    }
}

#[test]
fn a_compact_file_is_smaller_and_gives_the_same_bits() {
    for (tied, quant) in [(false, Quant::Q4), (true, Quant::Q8)] {
        let (bytes, compact) = (file(tied, quant), packed(tied, quant, true));
        assert!(compact.len() + (100 << 10) < bytes.len(), "{} and {}", compact.len(), bytes.len());
        let expected = expected(&bytes, StateKind::F32);
        let folder = folder();
        let path = saved(folder.path(), &compact);
        let Err(Error::Cap { least: cap, .. }) =
            streamed(&path, MIB, false).session(&SessionOptions::default())
        else {
            panic!("a model in 1 MiB")
        };
        for plain_reads in [false, true] {
            let model = streamed(&path, cap, plain_reads);
            // Its blocks are not aligned as the kernel would have them for direct I/O.
            let by = model.session(&SessionOptions::default()).expect("a session").read_by();
            assert_eq!(by, Some(ReadBy::Threads), "it is streamed");
            assert!(run(&model, StateKind::F32).expect("logits") == expected, "{tied} {quant:?}");
            assert_eq!(model.incidents(), Default::default());
        }
        // Damage is found in what was padding to pages.
        let mut flipped = compact.clone();
        flipped[place(&compact, 5) as usize] ^= 0x10;
        let error = run(&streamed(&saved(folder.path(), &flipped), cap, false), StateKind::F32);
        let Err(Error::Step { cause: StepError::Source(SourceError { section, fault, .. }), .. }) = error
        else {
            panic!("{:?}", error.map(|_| "logits"))
        };
        assert_eq!((section, fault), (Section::Layer(5), Fault::Checksum));
    }
}

#[test]
fn a_model_replaced_before_it_is_mapped_is_refused() {
    let (bytes, other) = (file(false, Quant::Q8), file(false, Quant::Q4));
    let folder = folder();
    let path = saved(folder.path(), &bytes);
    let model = streamed(&path, least(&bytes) + 200 * MIB, false);
    assert!(model.plan(&SessionOptions::default()).expect("a plan").is_some_and(|plan| plan.mapped));
    let new = folder.path().join("new.elp");
    fs::write(&new, &other).expect("a file");
    fs::rename(&new, &path).expect("renamed");
    let outcome = model.session(&SessionOptions::default()).and_then(|mut session| session.feed(&TOKENS));
    assert!(matches!(outcome, Err(Error::Format { .. })), "{outcome:?}");
}
