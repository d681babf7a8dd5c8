//! What the tensors of a GGUF file are called.

use crate::checkpoint::names::layer_number;
use crate::checkpoint::{LayerTensor, TensorKind};

/// Reads a tensor's name.
pub(super) fn parse(name: &str) -> Option<TensorKind> {
    match name {
        "token_embd.weight" => return Some(TensorKind::Embedding),
        "output_norm.weight" => return Some(TensorKind::FinalNorm),
        "output.weight" => return Some(TensorKind::Head),
        _ => {}
    }
    let (index, suffix) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer = layer_number(index)?;
    let tensor = match suffix {
        "attn_norm.weight" => LayerTensor::Norm,
        "ssm_in.weight" => LayerTensor::InProj,
        "ssm_in.bias" => LayerTensor::InProjBias,
        "ssm_conv1d.weight" => LayerTensor::Conv,
        "ssm_conv1d.bias" => LayerTensor::ConvBias,
        "ssm_x.weight" => LayerTensor::XProj,
        "ssm_dt.weight" => LayerTensor::DtProj,
        "ssm_dt.bias" => LayerTensor::DtProjBias,
        "ssm_a" => LayerTensor::ALog,
        "ssm_d" => LayerTensor::D,
        "ssm_out.weight" => LayerTensor::OutProj,
        "ssm_out.bias" => LayerTensor::OutProjBias,
        _ => return None,
    };
    Some(TensorKind::Layer(layer, tensor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_not_guessed() {
        assert_eq!(parse("blk.12.ssm_a"), Some(TensorKind::Layer(12, LayerTensor::ALog)));
        for name in [
            "",
            "blk.0",
            "blk.01.ssm_a",
            "blk.+1.ssm_a",
            "blk.-1.ssm_a",
            "blk.0.ssm_a.weight",
            "blk.0.ssm_norm.weight",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
