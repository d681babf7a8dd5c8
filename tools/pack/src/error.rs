//! What can go wrong while packing.

use std::path::{Path, PathBuf};

use elapid_core::format::FormatError;
use elapid_core::format::data::DataError;
use elapid_core::model::StepError;

use crate::tokenizer::CompileError;

/// An error while packing: says what, where and what to do, on one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file is a link to a file that is not there, as in a cache whose blobs were removed.
    #[error("{}: a link to {}, which is not there: download the file again", path.display(), target.display())]
    DanglingLink {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A file is only Git LFS's note of where the file is.
    #[error("{}: a Git LFS pointer, not the file itself: fetch it with `git lfs pull`", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// What was given is not a folder.
    #[error("{}: {reason}", path.display())]
    NotAFolder {
        /// What was given.
        path: PathBuf,
        /// What it is and what to give.
        reason: String,
    },
    /// The folder lacks a file that every checkpoint has.
    #[error("{}: no {missing} here: {advice}", path.display())]
    NotACheckpoint {
        /// The folder.
        path: PathBuf,
        /// The file that is not there.
        missing: &'static str,
        /// What to give.
        advice: String,
    },
    /// The weights are there, but only as a pickle, which can run code when it is read.
    #[error("{}: only PyTorch weights ({found}); convert them to safetensors first: {how}", path.display())]
    PickleOnly {
        /// The folder.
        path: PathBuf,
        /// The file that was found instead.
        found: &'static str,
        /// A command that converts it.
        how: String,
    },
    /// A JSON file does not parse or lacks the expected structure.
    #[error("{}: invalid JSON: {reason}; download the file again or correct it", path.display())]
    InvalidJson {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A file that is read whole is larger than any sensible one.
    #[error("{}: {size} bytes, more than the {limit} that such a file may have: is it the right file?", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The largest size accepted.
        limit: u64,
    },
    /// The checkpoint is of another architecture.
    #[error("{}: architecture `{found}` is not supported; supported are `mamba` and `falcon_mamba`", path.display())]
    UnsupportedArch {
        /// config.json.
        path: PathBuf,
        /// Its `model_type`.
        found: String,
    },
    /// config.json asks for something that would change the arithmetic.
    #[error("{}: `{key}`: {reason}; no packed file can express this model", path.display())]
    UnsupportedFeature {
        /// config.json.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it asks for.
        reason: String,
    },
    /// Two keys of config.json name different architectures.
    #[error(
        "{}: `{key}` contradicts {against}: Mamba and Falcon Mamba have the same tensors and compute otherwise (Falcon Mamba normalises dt, B and C); correct the one that is wrong",
        path.display()
    )]
    ArchConflict {
        /// config.json.
        path: PathBuf,
        /// The key and its value.
        key: String,
        /// What it contradicts.
        against: &'static str,
    },
    /// A value in a configuration file is missing, of the wrong type or out of range.
    #[error("{}: `{key}` {reason}", path.display())]
    InvalidConfig {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A shard that the index names is not in the folder.
    #[error("{}: missing shard, named by model.safetensors.index.json (it holds `{tensor}`): download it", path.display())]
    MissingShard {
        /// The shard.
        path: PathBuf,
        /// One of the tensors that it should hold.
        tensor: String,
    },
    /// A file is not well-formed safetensors.
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    InvalidSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file ends before the tensors that its header lists.
    #[error("{}: truncated: {found} bytes, but its tensors need {needed}; download it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The size that the header implies, in bytes.
        needed: u64,
        /// The size that the file has, in bytes.
        found: u64,
    },
    /// A tensor that the configuration demands is nowhere in the checkpoint.
    #[error("{}: tensor `{name}` is missing ({reason})", path.display())]
    MissingTensor {
        /// The folder, or the shard that should hold the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What demands it.
        reason: String,
    },
    /// A tensor that has no place in the model that config.json describes.
    #[error("{}: tensor `{name}` does not belong to this model: {reason}", path.display())]
    UnexpectedTensor {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why it does not belong.
        reason: String,
    },
    /// A tensor's shape is not the one that follows from config.json.
    #[error(
        "{}: tensor `{name}` has shape {found:?}, expected {expected:?} = {meaning} from config.json: correct config.json or download the weights again",
        path.display()
    )]
    WrongShape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that config.json implies.
        expected: Vec<usize>,
        /// The same in the configuration's terms.
        meaning: &'static str,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that is not read.
    #[error("{}: tensor `{name}` has type {dtype}; supported are F32, F16 and BF16: convert the checkpoint to one of them", path.display())]
    UnsupportedDtype {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type, as safetensors spells it.
        dtype: String,
    },
    /// A weight is NaN or infinite.
    #[error("{}: tensor `{name}` holds {value} at [{row}, {column}]: the checkpoint is damaged, download it again", path.display())]
    NonFinite {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// `NaN`, `inf` or `-inf`.
        value: f32,
        /// The element's row.
        row: usize,
        /// The element's column.
        column: usize,
    },
    /// The caller asked for rows that a tensor does not have, or gave a buffer of another size.
    #[error(
        "tensor `{name}` has {rows} rows of {columns}; rows {start}..{end} into {len} values is not a valid request"
    )]
    InvalidRows {
        /// The tensor.
        name: String,
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Values that the caller's buffer holds.
        len: usize,
    },
    /// The chat template is not valid Jinja.
    #[error("{}: chat template, line {line}: {reason}", path.display())]
    InvalidTemplate {
        /// The file that holds the template.
        path: PathBuf,
        /// The line within the template, from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// The tokenizer is of a kind that is not supported, or damaged.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// tokenizer.json.
        path: PathBuf,
        /// What is wrong with it.
        source: CompileError,
    },
    /// Generation defaults or role table are out of the packed format's limits.
    #[error("the model can't be packed: {0}")]
    Data(#[source] DataError),
    /// The model is out of the packed format's limits.
    #[error("the model can't be packed: {0}")]
    Format(#[source] FormatError),
    /// The configuration states other sizes of the data sections than they have.
    #[error("the data sections have {sizes:?} bytes where the configuration states {stated:?}")]
    DataSizes {
        /// What they have.
        sizes: [u64; 4],
        /// What the configuration states.
        stated: [u64; 4],
    },
    /// A weight is too large for the type that it is to be stored in.
    #[error("{tensor}: the value {value} at [{row}, {col}] is too large for {quant}: pack it as f32")]
    TooLarge {
        /// The tensor's name.
        tensor: String,
        /// The value's row.
        row: usize,
        /// Its column, or its group's first.
        col: usize,
        /// The value.
        value: f32,
        /// The type.
        quant: &'static str,
    },
    /// The model could not compute the calibration's text.
    #[error("calibration: {0}")]
    Step(#[source] StepError),
    /// The calibration's text can't be used.
    #[error("{}: {reason}", path.display())]
    Calibration {
        /// The text.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The user gave up.
    #[error("interrupted; nothing was written")]
    Cancelled,
}

impl PackError {
    /// The exit code of a program that ends with this error: 1 for a failure of
    /// the machine or of the request, 3 for a checkpoint that is at fault.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { .. } | Self::NotAFolder { .. } | Self::InvalidRows { .. } | Self::Cancelled => 1,
            _ => 3,
        }
    }

    /// Attaches a path to an operating system's error.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
