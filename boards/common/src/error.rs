//! What can go wrong on a board, as messages for its console.

use core::fmt;

use elapid_core::format::FormatError;
use elapid_core::format::data::DataError;
use elapid_core::generate::PromptError;
use elapid_core::model::StepError;
use elapid_core::sample::SampleError;
use elapid_core::sized::SizeError;
use elapid_core::source::SourceError;
use elapid_core::tokenizer::TokenizerError;

/// Why a board can't continue, or can't take this prompt.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is no model where one should be, or it is not one that this version can run.
    Format(FormatError),
    /// The model is larger than the memory for it.
    TooLarge {
        /// Bytes of the model.
        model: u64,
        /// Bytes of the memory.
        memory: u64,
    },
    /// There is not enough memory for the state and the working memory.
    Memory {
        /// Bytes there are.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The program was built for a model of another size.
    Size(SizeError),
    /// A part of the model is damaged or could not be read.
    Source(SourceError),
    /// The model has no tokenizer.
    NoTokenizer,
    /// The tokenizer is not valid.
    Tokenizer(TokenizerError),
    /// The generation defaults are not valid.
    Data(DataError),
    /// A token could not be computed.
    Step(StepError),
    /// A token could not be chosen.
    Sample(SampleError),
    /// A line can't be encoded.
    Prompt(PromptError),
    /// Ctrl-C was pressed while the prompt was read.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(error) => error.fmt(f),
            Self::TooLarge { model, memory } => write!(
                f,
                "the model has {model} bytes, and the memory for it {memory}: use a smaller model, or pack it with q4"
            ),
            Self::Memory { have, need } => write!(
                f,
                "the model's state and working memory need {need} bytes, and {have} are free: use a smaller model"
            ),
            Self::Size(error) => error.fmt(f),
            Self::Source(error) => error.fmt(f),
            Self::NoTokenizer => {
                f.write_str("the model has no tokenizer: pack it from a folder that has a tokenizer.json")
            }
            Self::Tokenizer(error) => error.fmt(f),
            Self::Data(error) => error.fmt(f),
            Self::Step(error) => error.fmt(f),
            // Commands refuse such values.
            Self::Sample(SampleError::Setting { name, range, .. }) => write!(f, "{name} must be {range}"),
            Self::Sample(error) => error.fmt(f),
            Self::Prompt(error) => error.fmt(f),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl core::error::Error for Error {}

macro_rules! from {
    ($($cause:ty => $variant:ident),*) => {
        $(impl From<$cause> for Error {
            fn from(cause: $cause) -> Self {
                Self::$variant(cause)
            }
        })*
    };
}
from!(FormatError => Format, SizeError => Size, SourceError => Source, TokenizerError => Tokenizer,
    DataError => Data, StepError => Step, SampleError => Sample, PromptError => Prompt);
