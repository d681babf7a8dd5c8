//! Why the program fails, and with which exit code.

use elapid_pack::PackError;

/// Why the program failed.
pub(crate) enum Error {
    /// The library's reason.
    Pack(PackError),
    /// A request that makes no sense.
    Usage(String),
    /// What was inspected will be refused, as was said.
    Refused,
    /// Standard output could not be written.
    Output(std::io::Error),
}

impl From<PackError> for Error {
    fn from(error: PackError) -> Self {
        Self::Pack(error)
    }
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Pack(error) => error.exit_code(),
            Self::Usage(_) => 2,
            Self::Refused => 3,
            Self::Output(_) => 1,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pack(error @ PackError::TooLarge { .. }) => write!(f, "{error} (--quant f32)"),
            Self::Pack(error) => error.fmt(f),
            Self::Usage(text) => f.write_str(text),
            Self::Refused => f.write_str("this can't be packed, for the reasons above"),
            Self::Output(cause) => write!(f, "standard output: {cause}{}", elapid_files::advice(cause)),
        }
    }
}
