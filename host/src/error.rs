//! What can go wrong, as one line that says what, where and what to do.

use std::io;
use std::path::PathBuf;

use elapid_core::format::{FormatError, Section};
use elapid_core::model::StepError;
use elapid_core::sample::SampleError;
use elapid_core::source::{Fault, SourceError};
use elapid_core::tokenizer::TokenizerError;

use crate::pool::MAX_THREADS;
use crate::residency::{NO_CODE, PANICKED};

/// What a caller, or the shell, should make of an error: the program's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitClass {
    /// The task failed.
    Failure = 1,
    /// The program was asked for something that does not exist or makes no sense.
    Usage = 2,
    /// The model file is damaged, of another version, or not a model.
    BadModel = 3,
    /// Not enough memory.
    Memory = 4,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: cannot {action}: {cause}{hint}", path = path.display(), hint = hint(cause))]
    File {
        /// The file.
        path: PathBuf,
        /// What was to be done with it.
        action: &'static str,
        /// The system's reason.
        cause: io::Error,
    },
    /// A model file is not one that this program can run.
    #[error("{model}: {cause}")]
    Format {
        /// The model's file or name.
        model: String,
        /// What is wrong.
        cause: FormatError,
    },
    /// A step could not be computed.
    #[error("{model}: {cause}")]
    Step {
        /// The model's file or name.
        model: String,
        /// Why.
        cause: StepError,
    },
    /// A section is there and can't be used.
    #[error("{model}: {cause}")]
    Section {
        /// The model's file or name.
        model: String,
        /// What is wrong with which.
        cause: String,
    },
    /// A text could not be encoded.
    #[error("the text cannot be tokenized: {cause}")]
    Tokenizer {
        /// Why.
        cause: TokenizerError,
    },
    /// No token could be chosen.
    #[error("{cause}")]
    Sample {
        /// Why.
        cause: SampleError,
    },
    /// Some of a file's blocks don't have the checksums that they had when the file was written.
    #[error("{model}: {first}{more}: copy the file again, or pack the model again", more = more(*others))]
    Damaged {
        /// The model's file or name.
        model: String,
        /// The first fault.
        first: String,
        /// How many more there are.
        others: usize,
    },
    /// The model has no tokenizer.
    #[error(
        "{model}: the file has no tokenizer: pack a folder that has tokenizer.json, or give token ids with `logits --tokens`"
    )]
    NoTokenizer {
        /// The model's file or name.
        model: String,
    },
    /// The program carries no model.
    #[error(
        "this elapid was built without its bundled model: name a model file, such as `elapid run model.elp`"
    )]
    NoBundled,
    /// Memory that the system refused.
    #[error(
        "not enough memory: {what} needs {bytes} bytes: close other programs, or take a smaller model{}",
        also(", or ", hint, "")
    )]
    Memory {
        /// What it was wanted for.
        what: &'static str,
        /// Bytes.
        bytes: usize,
        /// An option that helps; empty if there is none.
        hint: &'static str,
    },
    /// A model that does not work within a cap.
    #[error(
        "{model}: it cannot run in {cap} bytes of memory: it needs {mib} MiB at least, give --ram {mib}M{}",
        also(" (", hint, " needs less)"),
        mib = least.div_ceil(1 << 20)
    )]
    Cap {
        /// The model's file or name.
        model: String,
        /// The cap.
        cap: u64,
        /// The least cap that works.
        least: u64,
        /// An option with which less works; empty if there is none.
        hint: &'static str,
    },
    /// Weights could not be read. A sequence that was being fed can go on, see [`crate::Sequence::resume`].
    #[error(
        "{model}: block {block} of section {section} (offset {offset}) cannot be read: {cause}: {}",
        advice(cause)
    )]
    Storage {
        /// The model's file or name.
        model: String,
        /// The section.
        section: Section,
        /// The block, counted within the section.
        block: u32,
        /// Its offset in the file.
        offset: u64,
        /// The system's reason.
        cause: io::Error,
    },
    /// Several sequences were to step together in the fixed path.
    #[error(
        "sequences step together in floating point only: give each a memory of its own in the fixed path"
    )]
    FixedBatch,
    /// A number of threads that can't be.
    #[error("cannot run on {given} threads: give 1 to {MAX_THREADS} with -t")]
    Threads {
        /// The number.
        given: usize,
    },
    /// The system refused a thread.
    #[error("cannot start thread {member} of {threads}: {cause}: give fewer with -t")]
    StartThread {
        /// Which.
        member: usize,
        /// How many were wanted.
        threads: usize,
        /// The system's reason.
        cause: io::Error,
    },
    /// Kernels that this program or this CPU does not have.
    #[error("no kernels named {name:?} for this CPU: choose one of {known}")]
    Kernels {
        /// The name given.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The task was interrupted before it was complete.
    #[error("interrupted")]
    Interrupted,
    /// The reader of the output has gone. Not worth a word.
    #[error("the output was closed")]
    ClosedOutput,
}

fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => ": check the path",
        io::ErrorKind::PermissionDenied => ": check its permissions",
        io::ErrorKind::StorageFull => ": free some space",
        io::ErrorKind::OutOfMemory => ": close other programs, or read it piece by piece with --ram",
        _ => "",
    }
}

/// A hint and what is around it, if there is one.
fn also(before: &str, hint: &str, after: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("{before}{hint}{after}") }
}

fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::UnexpectedEof => "it was cut short while in use, copy it again",
        io::ErrorKind::BrokenPipe => "open the model again, and report what the panic says",
        _ => "check the drive or card and its cable, or copy the file to another one",
    }
}

fn more(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => " (and one more fault)".into(),
        n => format!(" (and {n} more faults)"),
    }
}

impl Error {
    /// What the program's exit code says of it.
    #[must_use]
    pub fn class(&self) -> ExitClass {
        match self {
            Self::Format { .. } | Self::Section { .. } | Self::Damaged { .. } => ExitClass::BadModel,
            Self::Step { cause: StepError::Source(_), .. } => ExitClass::BadModel,
            Self::Step {
                cause: StepError::Token { .. } | StepError::NoTokens | StepError::Type { .. },
                ..
            } => ExitClass::Usage,
            Self::Usage(_)
            | Self::FixedBatch
            | Self::Threads { .. }
            | Self::Kernels { .. }
            | Self::NoBundled => ExitClass::Usage,
            Self::Sample { cause: SampleError::Setting { .. } } => ExitClass::Usage,
            Self::Memory { .. } | Self::Cap { .. } => ExitClass::Memory,
            Self::File { cause, .. } | Self::Storage { cause, .. }
                if cause.kind() == io::ErrorKind::OutOfMemory =>
            {
                ExitClass::Memory
            }
            _ => ExitClass::Failure,
        }
    }

    /// An error of a source, with the model's name.
    pub(crate) fn source(model: &str, error: SourceError) -> Self {
        let SourceError { section, block, offset, fault } = error;
        let cause = match fault {
            Fault::Storage(NO_CODE) => io::Error::other("the storage gave no reason"),
            Fault::Storage(PANICKED) => {
                io::Error::new(io::ErrorKind::BrokenPipe, "the thread that reads it panicked")
            }
            Fault::Storage(code) => io::Error::from_raw_os_error(code),
            Fault::Truncated => io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before it"),
            _ => return Self::Step { model: model.into(), cause: StepError::Source(error) },
        };
        Self::Storage { model: model.into(), section, block, offset, cause }
    }

    /// An error of reading or writing `path`.
    pub(crate) fn file(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::File { path: path.into(), action, cause }
    }
}
