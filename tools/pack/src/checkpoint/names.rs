//! The tensors of a Mamba checkpoint: names and shapes.

use std::fmt;

use super::ModelConfig;

/// A tensor of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// Weight of the RMSNorm before the mixer, `[d_model]`.
    Norm,
    /// Input projection to x and z, `[2 * d_inner, d_model]`.
    InProj,
    /// Its bias, `[2 * d_inner]`.
    InProjBias,
    /// Depthwise causal convolution, `[d_inner, 1, d_conv]`, oldest tap first.
    Conv,
    /// Its bias, `[d_inner]`.
    ConvBias,
    /// Projection of x to dt, B and C, `[dt_rank + 2 * d_state, d_inner]`.
    XProj,
    /// Projection of dt from its low rank, `[d_inner, dt_rank]`.
    DtProj,
    /// Its bias, `[d_inner]`.
    DtProjBias,
    /// ln(-A), `[d_inner, d_state]`.
    ALog,
    /// The skip weight D, `[d_inner]`.
    D,
    /// Output projection, `[d_model, d_inner]`.
    OutProj,
    /// Its bias, `[d_model]`.
    OutProjBias,
}

impl LayerTensor {
    /// Every tensor that a layer can have, in the order of computation.
    pub const ALL: [Self; 12] = [
        Self::Norm,
        Self::InProj,
        Self::InProjBias,
        Self::Conv,
        Self::ConvBias,
        Self::XProj,
        Self::DtProj,
        Self::DtProjBias,
        Self::ALog,
        Self::D,
        Self::OutProj,
        Self::OutProjBias,
    ];

    /// What follows `backbone.layers.N.` in the tensor's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::Norm => "norm.weight",
            Self::InProj => "mixer.in_proj.weight",
            Self::InProjBias => "mixer.in_proj.bias",
            Self::Conv => "mixer.conv1d.weight",
            Self::ConvBias => "mixer.conv1d.bias",
            Self::XProj => "mixer.x_proj.weight",
            Self::DtProj => "mixer.dt_proj.weight",
            Self::DtProjBias => "mixer.dt_proj.bias",
            Self::ALog => "mixer.A_log",
            Self::D => "mixer.D",
            Self::OutProj => "mixer.out_proj.weight",
            Self::OutProjBias => "mixer.out_proj.bias",
        }
    }
}

/// The role of a tensor in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorKind {
    /// Embedding of the tokens, `[vocab, d_model]`.
    Embedding,
    /// Weight of the RMSNorm after the last layer, `[d_model]`.
    FinalNorm,
    /// Output head, `[vocab, d_model]`; absent where it is tied to the embedding.
    Head,
    /// A tensor of the layer with this index.
    Layer(usize, LayerTensor),
}

/// The number of a layer, as names spell it. "+1" and "01" also parse as 1, and would let two names share a role.
pub(super) fn layer_number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|layer: &usize| layer.to_string() == text)
}

/// What wrappers put before all names: `DataParallel`, Lightning, peft's merged models, and whatever calls the model so.
const WRAPPERS: [&str; 4] = ["module", "model", "base_model", "_forward_module"];
/// What wrappers of single modules put in between: `torch.compile`, FSDP, checkpointing of activations.
const WITHIN: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

impl TensorKind {
    /// Reads a tensor's name, in Hugging Face's spelling or the original one, whatever the training code has wrapped the model in.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut parts: Vec<&str> = name.split('.').filter(|part| !WITHIN.contains(part)).collect();
        let wrappers = parts.iter().take_while(|part| WRAPPERS.contains(part)).count();
        parts.drain(..wrappers);
        if parts.first() == Some(&"backbone") {
            parts.remove(0);
        }
        match parts[..] {
            ["embeddings" | "embedding", "weight"] => return Some(Self::Embedding),
            ["norm_f", "weight"] => return Some(Self::FinalNorm),
            ["lm_head", "weight"] => return Some(Self::Head),
            _ => {}
        }
        let ["layers", index, suffix @ ..] = &parts[..] else { return None };
        let layer = layer_number(index)?;
        let tensor = LayerTensor::ALL
            .into_iter()
            .find(|tensor| tensor.suffix().split('.').eq(suffix.iter().copied()))?;
        Some(Self::Layer(layer, tensor))
    }

    /// Whether a model of this configuration has the tensor, as a parameter of its own.
    pub(super) fn is_demanded(self, config: &ModelConfig) -> bool {
        match self {
            Self::Embedding | Self::FinalNorm => true,
            Self::Head => !config.tied,
            Self::Layer(_, LayerTensor::InProjBias | LayerTensor::OutProjBias) => config.use_bias,
            Self::Layer(_, LayerTensor::ConvBias) => config.use_conv_bias,
            Self::Layer(..) => true,
        }
    }

    /// The shape that follows from the configuration, and its meaning in terms of config.json.
    pub(super) fn shape(self, config: &ModelConfig) -> (Vec<usize>, &'static str) {
        let &ModelConfig { d_model, d_inner, d_state, d_conv, dt_rank, vocab_size, .. } = config;
        match self {
            Self::Embedding | Self::Head => (vec![vocab_size, d_model], "[vocab_size, hidden_size]"),
            Self::FinalNorm => (vec![d_model], "[hidden_size]"),
            Self::Layer(_, tensor) => match tensor {
                LayerTensor::Norm | LayerTensor::OutProjBias => (vec![d_model], "[hidden_size]"),
                LayerTensor::InProj => (vec![2 * d_inner, d_model], "[2 * intermediate_size, hidden_size]"),
                LayerTensor::InProjBias => (vec![2 * d_inner], "[2 * intermediate_size]"),
                LayerTensor::Conv => (vec![d_inner, 1, d_conv], "[intermediate_size, 1, conv_kernel]"),
                LayerTensor::ConvBias | LayerTensor::DtProjBias | LayerTensor::D => {
                    (vec![d_inner], "[intermediate_size]")
                }
                LayerTensor::XProj => (
                    vec![dt_rank + 2 * d_state, d_inner],
                    "[time_step_rank + 2 * state_size, intermediate_size]",
                ),
                LayerTensor::DtProj => (vec![d_inner, dt_rank], "[intermediate_size, time_step_rank]"),
                LayerTensor::ALog => (vec![d_inner, d_state], "[intermediate_size, state_size]"),
                LayerTensor::OutProj => (vec![d_model, d_inner], "[hidden_size, intermediate_size]"),
            },
        }
    }
}

/// Writes the name as Hugging Face spells it.
impl fmt::Display for TensorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("backbone.embeddings.weight"),
            Self::FinalNorm => f.write_str("backbone.norm_f.weight"),
            Self::Head => f.write_str("lm_head.weight"),
            Self::Layer(layer, tensor) => write!(f, "backbone.layers.{layer}.{}", tensor.suffix()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let mut kinds = vec![TensorKind::Embedding, TensorKind::FinalNorm, TensorKind::Head];
        for layer in [0, 1, 63, 4095] {
            kinds.extend(LayerTensor::ALL.map(|tensor| TensorKind::Layer(layer, tensor)));
        }
        for kind in kinds {
            assert_eq!(TensorKind::parse(&kind.to_string()), Some(kind));
        }
        for name in [
            "backbone.embedding.weight",
            "embeddings.weight",
            "module.backbone.embeddings.weight",
            "_orig_mod.module.embedding.weight",
            "base_model.model.backbone.embeddings.weight",
            "_forward_module.model.backbone._fsdp_wrapped_module.embedding.weight",
        ] {
            assert_eq!(TensorKind::parse(name), Some(TensorKind::Embedding), "{name}");
        }
        let d = Some(TensorKind::Layer(7, LayerTensor::D));
        for name in
            ["layers.7.mixer.D", "model.backbone.layers.7._orig_mod._checkpoint_wrapped_module.mixer.D"]
        {
            assert_eq!(TensorKind::parse(name), d, "{name}");
        }
    }

    #[test]
    fn other_names_are_not_guessed() {
        for name in [
            "",
            "backbone.layers.0",
            "backbone.layers.0.mixer.dt_layernorm.weight",
            "backbone.layers.01.mixer.D",
            "backbone.layers.+1.mixer.D",
            "backbone.layers.-1.mixer.D",
            "backbone.layers.99999999999999999999999.mixer.D",
            "model.embed_tokens.weight",
            "backbone.model.embeddings.weight",
            "encoder.layers.0.mixer.D",
            "layers.module.0.mixer.D",
        ] {
            assert_eq!(TensorKind::parse(name), None, "{name}");
        }
    }
}
