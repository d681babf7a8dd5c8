//! What can be wrong with a packed file.

use core::fmt;

use super::config::Limit;

/// Why bytes are not a packed model that this version can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than a header.
    Short {
        /// Bytes there are.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// The first bytes are not those of a packed model.
    NotElp,
    /// A version that this program does not know.
    Version {
        /// The file's version.
        found: u16,
        /// The newest known here.
        known: u16,
    },
    /// The header's checksum does not match.
    HeaderChecksum,
    /// The section table's checksum does not match, the table contradicts the header, or bytes of the header that must be 0
    /// are not.
    Table,
    /// The checksum table's checksum does not match.
    ChecksumTable,
    /// A header field has a value that is not known.
    Unknown {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// A header field is out of its range.
    OutOfRange(Limit),
    /// One panel of a matrix does not fit a block.
    Block {
        /// The part of the file.
        part: &'static str,
        /// Bytes of a panel.
        panel: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// The file's size is not the one that its header demands.
    Length {
        /// Bytes there are.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const AGAIN: &str = "copy the file again, or pack the model again";
        match *self {
            Self::Short { have, need } => {
                write!(f, "the file has {have} bytes, too few for a header of {need}: {AGAIN}")
            }
            Self::NotElp => {
                write!(f, "not a packed model (it does not start with ELAPID): pack one with elapid-pack")
            }
            Self::Version { found, known } => write!(
                f,
                "the file has format version {found}, this program knows up to {known}: use a newer elapid, or pack \
                 the model again"
            ),
            Self::HeaderChecksum => write!(f, "the header is damaged (its checksum does not match): {AGAIN}"),
            Self::Table => write!(f, "the section table or the header's unused bytes are damaged: {AGAIN}"),
            Self::ChecksumTable => write!(f, "the table of checksums is damaged: {AGAIN}"),
            Self::Unknown { field, value } => {
                write!(
                    f,
                    "header field {field} has the unknown value {value}: use a newer elapid, or pack the model again"
                )
            }
            Self::OutOfRange(Limit { field, value, min, max }) => {
                write!(f, "{field} is {value}, outside {min} to {max}: pack the model again")
            }
            Self::Block { part, panel, block } => write!(
                f,
                "a panel of 16 rows of {part} has {panel} bytes and does not fit a block of {block}: pack with a \
                 larger --block or a smaller type"
            ),
            Self::Length { have, need } if have < need => {
                write!(f, "the file is cut short: it has {have} bytes of {need}: {AGAIN}")
            }
            Self::Length { have, need } => {
                write!(f, "the file has {have} bytes, but its header says {need}: {AGAIN}")
            }
        }
    }
}

impl core::error::Error for FormatError {}
