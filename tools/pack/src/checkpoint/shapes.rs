//! What the tensors' shapes say of the model.

use super::entry::TensorEntry;
use super::names::{LayerTensor, TensorKind};

/// What the tensors say of the model; nothing where there are none.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    pub(super) d_model: Option<usize>,
    pub(super) n_layer: Option<usize>,
    pub(super) d_inner: Option<usize>,
    pub(super) d_state: Option<usize>,
    pub(super) d_conv: Option<usize>,
    pub(super) dt_rank: Option<usize>,
    pub(super) vocab: Option<usize>,
    pub(super) bias: Option<bool>,
    pub(super) conv_bias: Option<bool>,
    /// Where no head is stored.
    pub(super) tied: Option<bool>,
}

impl Shapes {
    pub(super) fn of(entries: &[TensorEntry]) -> Self {
        let mut shapes = Self::default();
        for entry in entries {
            let (rows, columns) = (Some(entry.rows), Some(entry.columns));
            match entry.kind {
                Some(TensorKind::Embedding) => (shapes.vocab, shapes.d_model) = (rows, columns),
                Some(TensorKind::Head) => {
                    shapes.vocab = shapes.vocab.or(rows);
                    shapes.d_model = shapes.d_model.or(columns);
                }
                Some(TensorKind::Layer(layer, tensor)) => {
                    shapes.n_layer = shapes.n_layer.max(Some(layer + 1));
                    match tensor {
                        LayerTensor::D => shapes.d_inner = shapes.d_inner.or(rows),
                        LayerTensor::ALog => shapes.d_state = shapes.d_state.or(columns),
                        LayerTensor::Conv => shapes.d_conv = shapes.d_conv.or(columns),
                        LayerTensor::DtProj => shapes.dt_rank = shapes.dt_rank.or(columns),
                        _ => {}
                    }
                }
                Some(TensorKind::FinalNorm) | None => {}
            }
        }
        let has = |kind: fn(LayerTensor) -> bool| {
            let is =
                |kind_of: Option<TensorKind>| matches!(kind_of, Some(TensorKind::Layer(_, t)) if kind(t));
            shapes.n_layer.map(|_| entries.iter().any(|entry| is(entry.kind)))
        };
        let bias = |tensor| matches!(tensor, LayerTensor::InProjBias | LayerTensor::OutProjBias);
        let (bias, conv_bias) = (has(bias), has(|tensor| tensor == LayerTensor::ConvBias));
        let headless = !entries.iter().any(|entry| entry.kind == Some(TensorKind::Head));
        let tied = (headless && shapes.vocab.is_some()).then_some(true);
        Self { bias, conv_bias, tied, ..shapes }
    }
}
