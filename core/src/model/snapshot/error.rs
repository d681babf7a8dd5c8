//! Why a state could not be saved or read.

use core::fmt;

use crate::model::error::StepError;

/// The layer of a part that is of none.
pub(super) const NO_LAYER: u32 = u32::MAX;

/// Why a state could not be saved or read. `E` is the error of the sink or source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError<E> {
    /// The sink or the source failed.
    Stream(E),
    /// The first bytes are not those of a snapshot.
    NotSnapshot,
    /// A version that this program does not know.
    Version {
        /// The snapshot's version.
        found: u16,
        /// The newest known here.
        known: u16,
    },
    /// The header's checksum does not match, or bytes of it that must be 0 are not.
    Header,
    /// A snapshot of another model.
    OtherModel,
    /// A state of other numbers.
    Numbers {
        /// The snapshot's.
        found: &'static str,
        /// The session's.
        have: &'static str,
    },
    /// A part is not the one that the model has at this place.
    Part {
        /// The layer.
        layer: u32,
        /// The part that belongs there.
        name: &'static str,
    },
    /// A part's checksum does not match.
    Checksum {
        /// The layer.
        layer: u32,
        /// The part.
        name: &'static str,
    },
    /// An element is infinite or NaN.
    NonFinite {
        /// The layer.
        layer: u32,
        /// The part.
        name: &'static str,
        /// Its place in the part.
        index: usize,
    },
    /// A state of the fixed path that no step can produce.
    State {
        /// The layer.
        layer: u32,
        /// What is wrong with it.
        cause: StepError,
    },
    /// The number of logits is not the model's.
    Logits {
        /// How many there are.
        have: usize,
        /// How many are needed.
        need: usize,
    },
    /// The session can't be saved or loaded now, or has no such slot.
    Session(StepError),
}

impl<E> SnapshotError<E> {
    /// The same error for a stream that can't fail: a failure of the stream becomes [`SnapshotError::NotSnapshot`].
    #[must_use]
    pub fn without_stream<F>(self) -> SnapshotError<F> {
        match self {
            Self::Stream(_) | Self::NotSnapshot => SnapshotError::NotSnapshot,
            Self::Version { found, known } => SnapshotError::Version { found, known },
            Self::Header => SnapshotError::Header,
            Self::OtherModel => SnapshotError::OtherModel,
            Self::Numbers { found, have } => SnapshotError::Numbers { found, have },
            Self::Part { layer, name } => SnapshotError::Part { layer, name },
            Self::Checksum { layer, name } => SnapshotError::Checksum { layer, name },
            Self::NonFinite { layer, name, index } => SnapshotError::NonFinite { layer, name, index },
            Self::State { layer, cause } => SnapshotError::State { layer, cause },
            Self::Logits { have, need } => SnapshotError::Logits { have, need },
            Self::Session(cause) => SnapshotError::Session(cause),
        }
    }
}

impl<E: fmt::Display> fmt::Display for SnapshotError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(error) => error.fmt(f),
            Self::NotSnapshot => f.write_str("not a saved state: its first bytes are others"),
            Self::Version { found, known } => write!(
                f,
                "version {found} of saved states, and {known} is the newest known here: update this program"
            ),
            Self::Header => f.write_str("the header of the saved state is damaged: use another copy"),
            Self::OtherModel => f.write_str(
                "it was saved with another model file: take the model that it was saved with, or begin anew",
            ),
            Self::Numbers { found, have } => write!(
                f,
                "its state is kept in {found}, this session's in {have}: take the numbers that it was saved with"
            ),
            Self::Part { layer, name } => {
                named(f, "the saved state has another part in place of ", *layer, name)?;
                f.write_str(": use another copy")
            }
            Self::Checksum { layer, name } => {
                named(f, "damaged: the checksum does not match in ", *layer, name)?;
                f.write_str(": use another copy")
            }
            Self::NonFinite { layer, name, index } => {
                named(f, "damaged: a value is infinite or NaN in ", *layer, name)?;
                write!(f, ", place {index}: use another copy")
            }
            Self::State { layer, cause } => write!(f, "layer {layer} of the saved state: {cause}"),
            Self::Logits { have, need } => {
                write!(f, "{have} logits, and the model has {need}: give or save as many")
            }
            Self::Session(cause) => cause.fmt(f),
        }
    }
}

fn named(f: &mut fmt::Formatter<'_>, text: &str, layer: u32, name: &str) -> fmt::Result {
    if layer == NO_LAYER { write!(f, "{text}{name}") } else { write!(f, "{text}{name} of layer {layer}") }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for SnapshotError<E> {}
