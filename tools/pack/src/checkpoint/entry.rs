//! Tensors of any source: where they lie and how they are stored.

use std::io;
use std::path::{Path, PathBuf};

use elapid_core::format::Quant;

use super::faults::Faults;
use super::ggml::{Block, SMALL};
use super::place::Ranges;
use super::{TensorKind, quantized};
use crate::PackError;

/// The type in which a checkpoint stores a tensor. All but F64 convert to f32 exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE-754 binary32.
    F32,
    /// IEEE-754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE-754 binary64, rounded when it is read.
    F64,
    /// Blocks of quantized values, of a GGUF file.
    Block(Block),
}

impl Dtype {
    /// Values and bytes of the smallest piece that can be read alone.
    #[must_use]
    pub fn piece(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::F64 => (1, 8),
            Self::Block(block) => block.piece(),
        }
    }

    /// Bytes of consecutive values, which are whole pieces; `None` beyond any file.
    #[must_use]
    pub fn bytes(self, values: usize) -> Option<u64> {
        let (length, bytes) = self.piece();
        (values as u64).div_ceil(length as u64).checked_mul(bytes as u64)
    }

    /// As the formats spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F64 => "F64",
            Self::Block(block) => block.name(),
        }
    }
}

/// Where a tensor lies and how it is stored.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// The name in the file.
    pub name: String,
    /// The type of the elements.
    pub dtype: Dtype,
    /// The shape in the file.
    pub shape: Vec<usize>,
    /// Rows: the first dimension. An element of a vector is a row of length 1.
    pub rows: usize,
    /// Values in a row: the product of the other dimensions.
    pub columns: usize,
    /// Elements from one index to the next in each dimension, where rows don't lie after rows; of whole elements only.
    pub(super) strides: Option<Vec<usize>>,
    /// Its role, if its name has one.
    pub(super) kind: Option<TensorKind>,
    /// Index of the file that holds it.
    pub(super) shard: usize,
    /// Where its data starts in that file, in bytes.
    pub(super) offset: u64,
}

impl TensorEntry {
    /// The packed types that hold the tensor's scales and integers as they are.
    pub(crate) fn kept_as(&self) -> &'static [Quant] {
        match self.dtype {
            Dtype::Block(block) if self.columns.is_multiple_of(SMALL) => block.kept_as(),
            _ => &[],
        }
    }

    /// What a file of floats stores: a tensor that has a role, or one that a model of this kind should not have. `None` for what
    /// tells nothing: empty tensors, and counters or masks that are no weights.
    ///
    /// # Errors
    /// For weights that are quantized, of an adapter, or of a type that is not read.
    pub(super) fn judge(
        path: &Path,
        name: &str,
        dtype: &str,
        shape: &[usize],
        faults: &mut Faults,
    ) -> Result<Option<(Option<TensorKind>, Dtype)>, PackError> {
        faults.count(dtype, shape);
        if let Some(fault) = quantized::fault(path, name) {
            return faults.meet(fault).map(|()| None);
        }
        let kind = TensorKind::parse(name);
        let dtype = match dtype {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::Bf16,
            "F64" => Dtype::F64,
            _ if kind.is_none() => return Ok(None),
            _ => {
                let (path, name, dtype) = (path.to_path_buf(), name.to_owned(), dtype.to_owned());
                return faults.meet(PackError::UnsupportedDtype { path, name, dtype }).map(|()| None);
            }
        };
        Ok((kind.is_some() || !shape.contains(&0)).then_some((kind, dtype)))
    }

    /// A tensor of this shape, rows after rows.
    pub(super) fn new(
        name: String,
        kind: Option<TensorKind>,
        dtype: Dtype,
        shape: Vec<usize>,
        shard: usize,
        offset: u64,
    ) -> Self {
        let rows = shape.first().copied().unwrap_or(1);
        // A header's check multiplied all dimensions, but 0 * anything passes it.
        let columns = shape.iter().skip(1).fold(1, |product: usize, &n| product.saturating_mul(n));
        Self { name, dtype, shape, rows, columns, strides: None, kind, shard, offset }
    }
}

/// An open file of tensors.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn Ranges>,
}

impl Shard {
    pub(super) fn size(&self) -> Result<u64, PackError> {
        self.file.size().map_err(PackError::io(&self.path))
    }

    /// Fills `bytes` from `offset` on. A file that ends before is reported as truncated,
    /// its tensors needing `needed` bytes.
    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64, needed: u64) -> Result<(), PackError> {
        let path = || self.path.clone();
        self.file.read_at(bytes, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                PackError::Truncated { path: path(), needed, found: self.file.size().unwrap_or(offset) }
            }
            _ => PackError::Io { path: path(), source },
        })
    }
}

/// The files of a checkpoint and every tensor in them.
#[derive(Debug, Default)]
pub(super) struct Shards {
    pub(super) files: Vec<Shard>,
    pub(super) entries: Vec<TensorEntry>,
}
