//! Why a command failed: errors of the library, with the options that help, and errors of the program itself.

use std::io;
use std::path::PathBuf;

use elapid::{Error as LibraryError, ExitClass};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// The library's reason.
    Library(LibraryError),
    /// A request that makes no sense.
    Usage(String),
    /// Some of a file's blocks don't have the checksums that they had when the file was written.
    Damaged {
        /// The model's file or name.
        model: String,
        /// The first fault.
        first: String,
        /// How many more there are.
        others: usize,
    },
    /// The task failed.
    Failed(String),
    /// A model could not be packed.
    #[cfg(feature = "hub")]
    Pack(Box<elapid_pack::PackError>),
    /// The reader of the output has closed it. Nothing is printed.
    ClosedOutput,
}

impl From<LibraryError> for Error {
    fn from(error: LibraryError) -> Self {
        Self::Library(error)
    }
}

#[cfg(feature = "hub")]
impl From<elapid_pack::PackError> for Error {
    fn from(error: elapid_pack::PackError) -> Self {
        Self::Pack(Box::new(error))
    }
}

impl Error {
    /// Whether the program was asked to end, and did.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::ClosedOutput | Self::Library(LibraryError::Interrupted) => true,
            #[cfg(feature = "hub")]
            Self::Pack(error) => matches!(**error, elapid_pack::PackError::Cancelled),
            _ => false,
        }
    }

    /// An error of reading or writing `path`.
    pub(crate) fn file(path: impl Into<PathBuf>, action: &'static str, cause: io::Error) -> Self {
        Self::Library(LibraryError::File { path: path.into(), action, cause })
    }

    /// The program's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Library(error) => error.class() as u8,
            Self::Usage(_) => ExitClass::Usage as u8,
            Self::Damaged { .. } => ExitClass::BadModel as u8,
            Self::Failed(_) => ExitClass::Failure as u8,
            #[cfg(feature = "hub")]
            Self::Pack(error) => error.exit_code(),
            Self::ClosedOutput => 0,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Library(LibraryError::NoBundled) => f.write_str(
                "this elapid was built without its bundled model: name a model file, such as `elapid run model.elp`",
            ),
            Self::Library(error) => write!(f, "{error}{}", advice(error)),
            Self::Usage(text) | Self::Failed(text) => f.write_str(text),
            Self::Damaged { model, first, others } => {
                let more = match others {
                    0 => String::new(),
                    1 => " (and one more fault)".into(),
                    n => format!(" (and {n} more faults)"),
                };
                write!(f, "{model}: {first}{more}: copy the file again, or pack the model again")
            }
            #[cfg(feature = "hub")]
            Self::Pack(_) if self.is_end() => f.write_str("interrupted"),
            #[cfg(feature = "hub")]
            Self::Pack(error) => error.fmt(f),
            Self::ClosedOutput => f.write_str("the output was closed"),
        }
    }
}

/// The options and commands that help, for the end of the error's line.
fn advice(error: &LibraryError) -> String {
    match error {
        LibraryError::Folder { path } => {
            format!(": pack it with `elapid-pack {} -o model.elp`", path.display())
        }
        LibraryError::NoTokenizer { .. } => ", or give token ids with `logits --tokens`".into(),
        LibraryError::Memory { smaller_state: Some(state), .. } => format!(", or --state {state}"),
        LibraryError::UnknownMemory => ", such as --ram 512M".into(),
        LibraryError::Cap { least, smaller_state, .. } => {
            let smaller =
                smaller_state.map_or(String::new(), |state| format!(" (--state {state} needs less)"));
            format!(", give --ram {}M{smaller}", least.div_ceil(1 << 20))
        }
        LibraryError::Threads { .. } | LibraryError::StartThread { .. } => " with -t".into(),
        LibraryError::File { cause, .. } if cause.kind() == io::ErrorKind::OutOfMemory => {
            ", or read it piece by piece with --ram".into()
        }
        _ => String::new(),
    }
}

/// Why a command failed, and a hint about its arguments.
pub(crate) struct Failure {
    pub error: Error,
    pub hint: String,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), hint: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_options_that_help() {
        let model = || "m.elp".to_owned();
        let cap = |smaller_state| LibraryError::Cap { model: model(), cap: 1, least: 5 << 20, smaller_state };
        let start =
            |kind: io::ErrorKind| LibraryError::StartThread { thread: 2, threads: 3, cause: kind.into() };
        for (error, says) in [
            (
                LibraryError::Folder { path: "d".into() },
                "d: a folder, not a model file: pack it with `elapid-pack d -o model.elp`",
            ),
            (
                LibraryError::NoTokenizer { model: model() },
                "m.elp: the file has no tokenizer: pack a folder that has tokenizer.json, or give token ids with `logits --tokens`",
            ),
            (
                LibraryError::NoBundled,
                "this elapid was built without its bundled model: name a model file, such as `elapid run model.elp`",
            ),
            (
                LibraryError::Memory { what: "the state", bytes: 9, smaller_state: Some("f16") },
                "not enough memory: the state needs 9 bytes: close other programs, or use a smaller model, or --state f16",
            ),
            (
                LibraryError::Memory { what: "the state", bytes: 9, smaller_state: None },
                "not enough memory: the state needs 9 bytes: close other programs, or use a smaller model",
            ),
            (
                LibraryError::UnknownMemory,
                "this system does not say how much memory is free: give a size, such as --ram 512M",
            ),
            (
                cap(Some("f16")),
                "m.elp: it cannot run in 1 bytes of memory: it needs 5 MiB at least, give --ram 5M (--state f16 needs less)",
            ),
            (cap(None), "m.elp: it cannot run in 1 bytes of memory: it needs 5 MiB at least, give --ram 5M"),
            (LibraryError::Threads { given: 0, most: 64 }, "cannot run on 0 threads: give 1 to 64 with -t"),
            (
                start(io::ErrorKind::WouldBlock),
                "cannot start thread 2 of 3: operation would block: use fewer with -t",
            ),
            (
                LibraryError::File {
                    path: "m.elp".into(),
                    action: "map",
                    cause: io::ErrorKind::OutOfMemory.into(),
                },
                "m.elp: cannot map: out of memory: close other programs, or read it piece by piece with --ram",
            ),
        ] {
            assert_eq!(Error::Library(error).to_string(), says);
        }
    }
}
