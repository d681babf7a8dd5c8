//! Where the packer gets weights from, and which rows go into which panel.

use std::ops::Range;

use elapid_core::format::{Config, Part, Quant, Section};

use crate::PackError;
pub use crate::checkpoint::StoredGroup;
use crate::checkpoint::{Checkpoint, LayerTensor, TensorKind};

/// Tensors by role, read a few rows at a time from any number of threads.
pub trait Weights: Sync {
    /// Whether there is such a tensor: biases may be missing.
    fn has(&self, kind: TensorKind) -> bool;

    /// Reads whole rows of `columns` floats into `out`.
    ///
    /// # Errors
    /// If the tensor can't be read or holds NaN or infinity.
    fn read(
        &self,
        kind: TensorKind,
        rows: Range<usize>,
        columns: usize,
        out: &mut [f32],
    ) -> Result<(), PackError>;

    /// Says that these rows will be read soon, so that the storage can begin.
    fn expect(&self, _kind: TensorKind, _rows: Range<usize>) {}

    /// Whether [`LayerTensor::ALog`] is A itself, and not ln(-A).
    fn holds_a(&self) -> bool {
        false
    }

    /// The types that can hold a tensor's groups as they are stored, integers and scales: none for one that is not stored in
    /// groups.
    fn kept_as(&self, _kind: TensorKind) -> &'static [Quant] {
        &[]
    }

    /// Reads the groups of whole rows of a tensor that [`Weights::kept_as`] something.
    ///
    /// # Errors
    /// If the tensor can't be read, is not stored in groups, or has a scale that is NaN or infinite.
    fn read_groups(
        &self,
        kind: TensorKind,
        rows: Range<usize>,
        out: &mut Vec<StoredGroup>,
    ) -> Result<(), PackError> {
        let (_, _) = (rows, out);
        Err(PackError::NoGroups { name: self.name(kind) })
    }

    /// The ids that must never be drawn, when all of the head was read: its rows for them are -inf, and were read as zeros.
    fn never_drawn(&self) -> Vec<u32> {
        Vec::new()
    }

    /// How messages call the tensor.
    fn name(&self, kind: TensorKind) -> String;
}

impl Weights for Checkpoint {
    fn has(&self, kind: TensorKind) -> bool {
        self.tensor(kind).is_some()
    }

    fn read(
        &self,
        kind: TensorKind,
        rows: Range<usize>,
        _columns: usize,
        out: &mut [f32],
    ) -> Result<(), PackError> {
        match self.tensor(kind) {
            Some(entry) => self.read_rows(entry, rows, out),
            None => {
                out.fill(0.0);
                Ok(())
            }
        }
    }

    fn expect(&self, kind: TensorKind, rows: Range<usize>) {
        if let Some(entry) = self.tensor(kind) {
            self.expect_rows(entry, rows);
        }
    }

    fn holds_a(&self) -> bool {
        self.holds_a()
    }

    fn kept_as(&self, kind: TensorKind) -> &'static [Quant] {
        self.tensor(kind).map_or(&[], |entry| entry.kept_as())
    }

    fn read_groups(
        &self,
        kind: TensorKind,
        rows: Range<usize>,
        out: &mut Vec<StoredGroup>,
    ) -> Result<(), PackError> {
        match self.tensor(kind) {
            Some(entry) => self.read_groups(entry, rows, out),
            None => Err(PackError::NoGroups { name: format!("{kind:?}") }),
        }
    }

    fn never_drawn(&self) -> Vec<u32> {
        self.never_drawn()
    }

    fn name(&self, kind: TensorKind) -> String {
        self.tensor(kind).map_or_else(|| format!("{kind:?}"), |entry| entry.name.clone())
    }
}

/// Consecutive rows of a tensor that start a panel of their own.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// The first row in the tensor.
    pub first: usize,
    /// Rows.
    pub rows: usize,
    /// Rows in the panels, padding included.
    pub padded: usize,
}

/// The matrix that a part holds: its tensor, its bias, and how rows are spread over panels.
#[derive(Debug, Clone, Copy)]
pub struct MatrixSource {
    /// The weights.
    pub weight: TensorKind,
    /// The bias, which may not exist.
    pub bias: Option<TensorKind>,
    /// Columns in the tensor.
    pub columns: usize,
    segments: [Segment; 3],
}

impl MatrixSource {
    /// The matrix in a part; `None` for parts that are not matrices.
    #[must_use]
    pub fn of(config: &Config, section: Section, part: Part) -> Option<Self> {
        let layer = section.index() as usize;
        let tensor = |tensor| TensorKind::Layer(layer, tensor);
        let [d_model, d_inner, d_state, dt_rank, vocab] =
            [config.d_model, config.d_inner, config.d_state, config.dt_rank, config.vocab]
                .map(|d| d as usize);
        let [model, inner, state, rank, words] = [
            config.padded_model(),
            config.padded_inner(),
            config.padded_state(),
            config.padded_rank(),
            config.padded_vocab(),
        ]
        .map(|d| d as usize);
        let segment = |first, rows, padded| Segment { first, rows, padded };
        let none = segment(0, 0, 0);
        let all = |rows, padded| [segment(0, rows, padded), none, none];
        let (weight, bias, columns, segments) = match part {
            Part::Embedding => (TensorKind::Embedding, None, d_model, all(vocab, words)),
            Part::Head => (TensorKind::Head, None, d_model, all(vocab, words)),
            Part::InProj => (
                tensor(LayerTensor::InProj),
                Some(tensor(LayerTensor::InProjBias)),
                d_model,
                [segment(0, d_inner, inner), segment(d_inner, d_inner, inner), none],
            ),
            Part::XProj => (
                tensor(LayerTensor::XProj),
                None,
                d_inner,
                [
                    segment(0, dt_rank, rank),
                    segment(dt_rank, d_state, state),
                    segment(dt_rank + d_state, d_state, state),
                ],
            ),
            Part::DtProj => (
                tensor(LayerTensor::DtProj),
                Some(tensor(LayerTensor::DtProjBias)),
                dt_rank,
                all(d_inner, inner),
            ),
            Part::OutProj => (
                tensor(LayerTensor::OutProj),
                Some(tensor(LayerTensor::OutProjBias)),
                d_inner,
                all(d_model, model),
            ),
            Part::Norm | Part::Conv | Part::Scan | Part::FinalNorm => return None,
        };
        Some(Self { weight, bias, columns, segments })
    }

    /// The tensor's rows in a panel: none in a panel of padding.
    #[must_use]
    pub fn rows(&self, panel: usize) -> Range<usize> {
        let mut row = panel * 16;
        for segment in self.segments {
            if row < segment.padded {
                let (start, end) = (row.min(segment.rows), (row + 16).min(segment.rows));
                return segment.first + start..segment.first + end;
            }
            row -= segment.padded;
        }
        0..0
    }
}
