//! What can go wrong, as one line that says what, where and what to do.

use std::io;
use std::path::PathBuf;

use elapid_core::format::{FormatError, Section};
use elapid_core::model::StepError;
use elapid_core::model::snapshot::SnapshotError;
use elapid_core::sample::SampleError;
use elapid_core::source::{Fault, SourceError};
use elapid_core::tokenizer::TokenizerError;

/// The code of a [`Fault::Storage`] for which the system gave none.
pub(crate) const NO_CODE: i32 = 0;
/// The code of a [`Fault::Storage`] whose reader panicked: no system's.
pub(crate) const PANICKED: i32 = i32::MIN;

/// What kind of failure an error is. The numbers are the exit codes of the program `elapid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum ExitClass {
    /// The task failed.
    Failure = 1,
    /// A request that can't be met or makes no sense.
    Usage = 2,
    /// The model file is damaged, of another version, or not a model.
    BadModel = 3,
    /// Not enough memory.
    Memory = 4,
}

/// What is wrong with a session file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionFault {
    /// It could not be read.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// It is something else.
    #[error("not a session file: give one that this program saved")]
    NotSession,
    /// A version that this program does not know.
    #[error(
        "the session file has version {found}, but this program knows versions up to {known}: use a newer elapid"
    )]
    Version {
        /// The file's version.
        found: u16,
        /// The newest known here.
        known: u16,
    },
    /// The header is damaged.
    #[error("the header of the session file is damaged: use another copy")]
    Header,
    /// The file is longer or shorter than its header says.
    #[error("the session file has {have} bytes, but its header says {need}: use another copy")]
    Length {
        /// Bytes there are.
        have: u64,
        /// Bytes there should be.
        need: u64,
    },
    /// A block's checksum does not match.
    #[error("block {block} of the session file is damaged: use another copy")]
    Block {
        /// Which.
        block: u64,
    },
    /// It holds something that no session can have.
    #[error("the session file is damaged or forged: {0}: use another copy")]
    Contents(&'static str),
    /// The state can't be used.
    #[error("{0}")]
    State(#[source] SnapshotError<std::convert::Infallible>),
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: cannot {action}: {cause}{hint}", path = path.display(), hint = elapid_files::advice(cause))]
    File {
        /// The file.
        path: PathBuf,
        /// What was to be done with it.
        action: &'static str,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// A folder was given as a model file.
    #[error("{path}: a folder, not a model file", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A model file is not one that this program can run.
    #[error("{model}: {cause}")]
    Format {
        /// The model's file or name.
        model: String,
        /// What is wrong.
        #[source]
        cause: FormatError,
    },
    /// A step could not be computed.
    #[error("{model}: {cause}")]
    Step {
        /// The model's file or name.
        model: String,
        /// Why.
        #[source]
        cause: StepError,
    },
    /// A section that can't be used.
    #[error("{model}: {cause}")]
    Section {
        /// The model's file or name.
        model: String,
        /// Which section, and what is wrong with it.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A text could not be encoded.
    #[error("the text cannot be tokenized: {cause}")]
    Tokenizer {
        /// Why.
        #[source]
        cause: TokenizerError,
    },
    /// A chat template that can't be used, or that refuses a conversation.
    #[cfg(feature = "chat")]
    #[error("{model}: {cause}")]
    Template {
        /// The model's file or name.
        model: String,
        /// Why.
        #[source]
        cause: crate::template::TemplateError,
    },
    /// No token could be chosen.
    #[error("{cause}")]
    Sample {
        /// Why.
        #[source]
        cause: SampleError,
    },
    /// A grammar that can't be used.
    #[cfg(feature = "grammar")]
    #[error("the schema or grammar can't be used: {cause}")]
    Grammar {
        /// Why.
        cause: String,
    },
    /// The model has no tokenizer.
    #[error("{model}: the file has no tokenizer: pack a folder that has tokenizer.json")]
    NoTokenizer {
        /// The model's file or name.
        model: String,
    },
    /// The library carries no model.
    #[error("there is no bundled model here: open a model file, or build with the feature `bundled`")]
    NoBundled,
    /// The system refused memory.
    #[error("not enough memory: {what} needs {bytes} bytes: close other programs, or use a smaller model")]
    Memory {
        /// What needs it.
        what: &'static str,
        /// Bytes.
        bytes: usize,
        /// The type of a recurrent state that takes less, such as `f16`.
        smaller_state: Option<&'static str>,
    },
    /// The system does not say how much memory is free, which [`Ram::Auto`](crate::Ram::Auto) asks for.
    #[error("this system does not say how much memory is free: give a size")]
    UnknownMemory,
    /// The model can't run within the cap.
    #[error("{model}: it cannot run in {cap} bytes of memory: it needs {mib} MiB at least", mib = least.div_ceil(1 << 20))]
    Cap {
        /// The model's file or name.
        model: String,
        /// The cap.
        cap: u64,
        /// The least cap that works.
        least: u64,
        /// The type of a recurrent state with which less works, such as `f16`.
        smaller_state: Option<&'static str>,
    },
    /// A session file that can't be used.
    #[error("{path}: {cause}", path = path.display())]
    SessionFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        cause: SessionFault,
    },
    /// A session for which the open ones leave no room within the cap.
    #[error(
        "{model}: another session needs at least {needs} bytes of memory, but only {left} of the model's {cap} are left: \
         close a session, or open the model with more memory"
    )]
    Session {
        /// The model's file or name.
        model: String,
        /// The cap.
        cap: u64,
        /// Bytes that the session needs at least.
        needs: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// Weights could not be read. A session that was being fed can go on, see [`crate::Session::resume`].
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
        #[source]
        cause: io::Error,
    },
    /// A number of threads that is not possible.
    #[error("cannot run on {given} threads: give 1 to {most}")]
    Threads {
        /// The number.
        given: usize,
        /// The largest possible number.
        most: usize,
    },
    /// The system refused a thread.
    #[error("cannot start thread {thread} of {threads}: {cause}: use fewer")]
    StartThread {
        /// Which.
        thread: usize,
        /// How many were wanted.
        threads: usize,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// Kernels that this program or this CPU does not have.
    #[error("no kernels named {name:?} for this CPU: choose one of {known}")]
    Kernels {
        /// The name given.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// The task was interrupted before it was complete.
    #[error("interrupted")]
    Interrupted,
}

fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::UnexpectedEof => "it was cut short while in use, copy it again",
        io::ErrorKind::BrokenPipe => "open the model again, and report the panic's message",
        _ => "check the drive or card and its cable, or copy the file to another one",
    }
}

impl Error {
    /// What kind of failure it is.
    #[must_use]
    pub fn class(&self) -> ExitClass {
        match self {
            Self::Format { .. } | Self::Section { .. } => ExitClass::BadModel,
            Self::Step { cause: StepError::Source(_), .. } => ExitClass::BadModel,
            Self::Step {
                cause: StepError::Token { .. } | StepError::NoTokens | StepError::Type { .. },
                ..
            } => ExitClass::Usage,
            Self::Folder { .. }
            | Self::UnknownMemory
            | Self::Threads { .. }
            | Self::Kernels { .. }
            | Self::NoBundled => ExitClass::Usage,
            Self::Sample { cause: SampleError::Setting { .. } } => ExitClass::Usage,
            #[cfg(feature = "grammar")]
            Self::Grammar { .. } => ExitClass::Usage,
            Self::SessionFile {
                cause: SessionFault::State(SnapshotError::Numbers { .. } | SnapshotError::OtherModel),
                ..
            } => ExitClass::Usage,
            Self::Memory { .. } | Self::Cap { .. } | Self::Session { .. } => ExitClass::Memory,
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
