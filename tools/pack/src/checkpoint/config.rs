//! The model's configuration, from config.json in Hugging Face's or the original spelling.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::entry::TensorEntry;
use super::faults::Faults;
use super::place::{Folder, Place};
use super::shapes::Shapes;
use super::{folder, json, quantized};
use crate::PackError;

/// The architecture of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// Mamba-1, as Gu and Dao published it.
    Mamba,
    /// Mamba-1 with dt, B and C normalised by RMSNorms without weights.
    FalconMamba,
}

/// The dimensions and constants of a model, checked against its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub arch: Arch,
    /// Width of the residual stream, 1 to 65536.
    pub d_model: usize,
    /// Number of layers, 1 to 4096.
    pub n_layer: usize,
    /// Channels of the mixer, 1 to 131072.
    pub d_inner: usize,
    /// States of a channel, 1 to 256.
    pub d_state: usize,
    /// Taps of the convolution, 1 to 8.
    pub d_conv: usize,
    /// Rank of dt before its projection, 1 to 65536.
    pub dt_rank: usize,
    /// Rows of the embedding (and of the head), 1 to 1048576.
    pub vocab_size: usize,
    /// Epsilon of the norm before each mixer and of the final one.
    pub norm_eps: f32,
    /// Epsilon of the norms of dt, B and C; `None` where there are none.
    pub mixer_rms_eps: Option<f32>,
    /// Whether in_proj and out_proj have biases.
    pub use_bias: bool,
    /// Whether the convolution has a bias.
    pub use_conv_bias: bool,
    /// Whether the head is the embedding. [`Checkpoint::open`](super::Checkpoint::open)
    /// clears it if the checkpoint holds a head that differs from the embedding, as transformers does.
    pub tied: bool,
}

impl ModelConfig {
    /// Reads a config.json alone, for a model without weights; whatever is not in it takes its default.
    ///
    /// # Errors
    /// If the file can't be read or is not the configuration of a supported model.
    pub fn from_file(path: &Path) -> Result<Self, PackError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let faults = &mut Faults::First;
        ConfigFile::parse(&Folder::of(path), name, faults)?
            .ok_or_else(|| PackError::io(path)(ErrorKind::NotFound.into()))?
            .finish(&[], faults)
    }
}

/// config.json, before the tensors are known.
pub(super) struct ConfigFile {
    path: PathBuf,
    pub(super) values: Map<String, Value>,
    arch: Arch,
    /// Hugging Face's spelling, and not that of the original release.
    pub(super) is_hugging_face: bool,
}

impl ConfigFile {
    /// Reads config.json and settles the architecture.
    pub(super) fn read(place: &dyn Place, faults: &mut Faults) -> Result<Self, PackError> {
        match Self::parse(place, "config.json", faults)? {
            Some(file) => Ok(file),
            None => Err(folder::without_config(place)?),
        }
    }

    /// Reads a file and settles the architecture; `None` if there is no such file.
    fn parse(place: &dyn Place, name: &str, faults: &mut Faults) -> Result<Option<Self>, PackError> {
        let Some(values) = json::read_object(place, name, json::CONFIG_LIMIT)? else { return Ok(None) };
        let path = place.path(name);
        let (arch, is_hugging_face) = match values.get("model_type").map(Value::as_str) {
            Some(Some("mamba")) => (Arch::Mamba, true),
            Some(Some("falcon_mamba")) => (Arch::FalconMamba, true),
            None if values.contains_key("ssm_cfg") || values.contains_key("n_layer") => (Arch::Mamba, false),
            Some(Some(other)) => return Err(PackError::UnsupportedArch { path, found: other.to_owned() }),
            Some(None) | None if values.contains_key("peft_type") => {
                return Err(quantized::adapter(path, &values));
            }
            Some(None) | None => {
                return Err(PackError::InvalidConfig {
                    path,
                    key: "model_type".into(),
                    reason: "is missing or not a string; it must be `mamba` or `falcon_mamba`".into(),
                });
            }
        };
        let file = Self { path, values, arch, is_hugging_face };
        faults.or(file.refuse_other_architectures(), ())?;
        file.refuse_unsupported(faults)?;
        Ok(Some(file))
    }

    /// Refuses by name the keys that contradict the architecture: nothing in the tensors tells Mamba from Falcon Mamba.
    fn refuse_other_architectures(&self) -> Result<(), PackError> {
        let falcon = self.arch == Arch::FalconMamba;
        let against = match (self.arch, self.is_hugging_face) {
            (Arch::FalconMamba, _) => "`model_type` falcon_mamba",
            (Arch::Mamba, true) => "`model_type` mamba",
            (Arch::Mamba, false) => "the original Mamba's spelling of this file",
        };
        let conflict = |key: String| Err(PackError::ArchConflict { path: self.path.clone(), key, against });
        // Mamba2ForCausalLM is another model, MambaLMHeadModel the original's name.
        let is_mamba = |name: &str| {
            name.strip_prefix("Mamba").is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let fits = |name: &str| (name.starts_with("FalconMamba"), is_mamba(name)) == (falcon, !falcon);
        let classes = match self.get("architectures") {
            None => &[],
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        for class in classes {
            let Some(name) = class.as_str() else {
                return Err(
                    self.invalid("architectures", format!("has {class}; it must be names of classes"))
                );
            };
            if !fits(name) {
                return conflict(format!("architectures: {name}"));
            }
        }
        // Code of the model's own is not run, but the name of its class may tell.
        for path in self.get("auto_map").and_then(Value::as_object).into_iter().flat_map(Map::values) {
            let name = path.as_str().and_then(|path| path.rsplit('.').next()).unwrap_or_default();
            if (name.starts_with("FalconMamba") || name.starts_with("Mamba"))
                && !fits(name.trim_end_matches("Config"))
            {
                return conflict(format!("auto_map: {name}"));
            }
        }
        // transformers' Falcon Mamba alone has the first, the second is mlx-lm's.
        if !falcon && let Some((_, value)) = self.find(&["mixer_rms_eps"]) {
            return conflict(format!("mixer_rms_eps: {value}"));
        }
        if self.find(&["use_bcdt_rms"]).is_some()
            && self.boolean(["use_bcdt_rms"; 2], None, falcon)? != falcon
        {
            return conflict(format!("use_bcdt_rms: {}", !falcon));
        }
        Ok(())
    }

    /// Refuses by name what would change the arithmetic. The keys that are not looked at
    /// (`time_step_*` but the rank, `use_mambapy`, `residual_in_fp32`, …) concern training or speed. Hugging Face's models
    /// have none of the original's keys: there these are left over, and mean nothing.
    fn refuse_unsupported(&self, faults: &mut Faults) -> Result<(), PackError> {
        let mut unsupported = |key: &str, reason: String| {
            let (path, key) = (self.path.clone(), key.to_owned());
            faults.meet(PackError::UnsupportedFeature { path, key, reason })
        };
        match self.get("hidden_act").map(|value| value.as_str().unwrap_or_default()) {
            None | Some("silu" | "swish") => {}
            Some(other) => unsupported("hidden_act", format!("the activation `{other}` is not silu"))?,
        }
        if !self.is_hugging_face {
            if self.get("rms_norm") == Some(&Value::Bool(false)) {
                unsupported("rms_norm", "false asks for LayerNorm, only RMSNorm is known".into())?;
            }
            if self.get("d_intermediate").is_some_and(|value| value.as_u64() != Some(0)) {
                unsupported("d_intermediate", "MLP layers between the mixers are not known".into())?;
            }
            let attention = self.get("attn_layer_idx");
            if attention.is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
                unsupported("attn_layer_idx", "attention layers are not known".into())?;
            }
            match self.ssm("layer").map(|value| value.as_str().unwrap_or_default()) {
                None | Some("Mamba1") => {}
                Some(other) => faults.meet(PackError::UnsupportedArch {
                    path: self.path.clone(),
                    found: format!("ssm_cfg.layer {other}"),
                })?,
            }
        }
        // The second is compressed-tensors' old key, the third MLX's.
        for key in ["quantization_config", "compression_config", "quantization"] {
            let Some(value) = self.get(key) else { continue };
            let text = |name: &str| value.get(name).and_then(Value::as_str);
            let how =
                text("quant_method").or_else(|| text("mode")).unwrap_or("a method that it does not name");
            let how = format!("`{key}`: {how}");
            faults.meet(PackError::Quantized { path: self.path.clone(), how })?;
        }
        Ok(())
    }

    /// Completes the configuration with what only the tensors' shapes tell.
    ///
    /// The file's own spelling counts, then the tensors, and only then the other spelling: a key that a conversion has left
    /// behind may be wrong.
    pub(super) fn finish(
        &self,
        entries: &[TensorEntry],
        faults: &mut Faults,
    ) -> Result<ModelConfig, PackError> {
        let shapes = Shapes::of(entries);
        let mut dimension = |keys: [&'static str; 2], shape: Option<usize>, default, limit| {
            faults.or(self.dimension(keys, shape, default, limit), shape.unwrap_or(1).clamp(1, limit))
        };
        let d_model = dimension(["hidden_size", "d_model"], shapes.d_model, None, 65_536)?;
        // Never `expand`: Falcon Mamba's says 16 where the tensors say 2.
        let d_inner = dimension(["intermediate_size", "d_inner"], shapes.d_inner, None, 131_072)?;
        let n_layer = dimension(["num_hidden_layers", "n_layer"], shapes.n_layer, None, 4096)?;
        let d_state = dimension(["state_size", "d_state"], shapes.d_state, Some(16), 256)?;
        let d_conv = dimension(["conv_kernel", "d_conv"], shapes.d_conv, Some(4), 8)?;
        let rank = Some(d_model.div_ceil(16));
        let dt_rank = dimension(["time_step_rank", "dt_rank"], shapes.dt_rank, rank, 65_536)?;
        let vocab_limit = 1 << 20;
        let mut vocab_size = dimension(["vocab_size"; 2], shapes.vocab, None, vocab_limit)?;
        // The original counts the tokenizer's entries and pads the embedding.
        let padded = !self.is_hugging_face || self.get("pad_vocab_size_multiple").is_some();
        if padded && shapes.vocab != Some(vocab_size) {
            let multiple = dimension(["pad_vocab_size_multiple"; 2], None, Some(8), vocab_limit)?;
            let rows = vocab_size.next_multiple_of(multiple);
            if !self.is_hugging_face || shapes.vocab == Some(rows) {
                vocab_size = rows;
            }
        }
        let mut epsilon = |key, default| faults.or(self.epsilon(key, default), default);
        let norm_eps = epsilon("layer_norm_epsilon", 1e-5)?;
        let mixer_rms_eps = match self.arch {
            Arch::Mamba => None,
            Arch::FalconMamba => Some(epsilon("mixer_rms_eps", 1e-6)?),
        };
        let mut boolean = |keys: [&'static str; 2], tensors: Option<bool>, default| {
            faults.or(self.boolean(keys, tensors, default), default)
        };
        Ok(ModelConfig {
            arch: self.arch,
            d_model,
            n_layer,
            d_inner,
            d_state,
            d_conv,
            dt_rank,
            vocab_size,
            norm_eps,
            mixer_rms_eps,
            use_bias: boolean(["use_bias", "bias"], shapes.bias, false)?,
            use_conv_bias: boolean(["use_conv_bias", "conv_bias"], shapes.conv_bias, true)?,
            tied: boolean(["tie_word_embeddings", "tie_embeddings"], shapes.tied, true)?,
        })
    }

    /// A value at the top level; `null` counts as absent, as it does in transformers.
    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A value of the original configuration's `ssm_cfg`.
    fn ssm(&self, key: &str) -> Option<&Value> {
        self.get("ssm_cfg")?.get(key).filter(|value| !value.is_null())
    }

    /// A value under any of several keys: at the top level, or in the original's `ssm_cfg`.
    fn find<'a>(&self, keys: &[&'a str]) -> Option<(&'a str, &Value)> {
        let in_ssm = |key: &str| if self.is_hugging_face { None } else { self.ssm(key) };
        keys.iter().find_map(|&key| Some((key, self.get(key).or_else(|| in_ssm(key))?)))
    }

    /// Hugging Face's key and the original's in the order in which they count: this file's spelling first.
    fn spellings(&self, [hugging_face, original]: [&'static str; 2]) -> [&'static str; 2] {
        if self.is_hugging_face { [hugging_face, original] } else { [original, hugging_face] }
    }

    fn invalid(&self, key: &str, reason: String) -> PackError {
        PackError::InvalidConfig { path: self.path.clone(), key: key.to_owned(), reason }
    }

    /// A dimension within 1 to `limit`, which `shape` is by the tensors; the string `auto` means `default`.
    fn dimension(
        &self,
        keys: [&'static str; 2],
        shape: Option<usize>,
        default: Option<usize>,
        limit: usize,
    ) -> Result<usize, PackError> {
        let [own, other] = self.spellings(keys);
        let by_shape = || shape.is_none().then_some(other);
        let found = self.find(&[own]).or_else(|| self.find(&[by_shape()?]));
        let (key, found) = match found {
            Some((key, Value::String(text))) if text == "auto" && default.is_some() => (key, Err(default)),
            Some((key, value)) => (key, Ok(value)),
            None => (own, Err(shape.or(default))),
        };
        let value = match found {
            Ok(value) => value.as_u64().and_then(|value| usize::try_from(value).ok()),
            Err(value) => {
                Some(value.ok_or_else(|| self.invalid(key, "is missing; it must be a number".into()))?)
            }
        };
        value.filter(|value| (1..=limit).contains(value)).ok_or_else(|| {
            let found = match found {
                Ok(value) => value.to_string(),
                Err(value) => format!("{} by the tensors", value.unwrap_or_default()),
            };
            self.invalid(key, format!("is {found}; it must be a whole number from 1 to {limit}"))
        })
    }

    /// A number from 0.
    fn epsilon(&self, key: &str, default: f32) -> Result<f32, PackError> {
        let Some(found) = self.get(key) else { return Ok(default) };
        let value = found.as_f64().map(|value| value as f32);
        value
            .filter(|value| value.is_finite() && *value >= 0.0)
            .ok_or_else(|| self.invalid(key, format!("is {found}; it must be a number from 0, such as 1e-5")))
    }

    /// A truth value, which is `tensors` by the tensors.
    fn boolean(
        &self,
        keys: [&'static str; 2],
        tensors: Option<bool>,
        default: bool,
    ) -> Result<bool, PackError> {
        let [own, other] = self.spellings(keys);
        let by_tensors = || tensors.is_none().then_some(other);
        let Some((key, value)) = self.find(&[own]).or_else(|| self.find(&[by_tensors()?])) else {
            return Ok(tensors.unwrap_or(default));
        };
        value.as_bool().ok_or_else(|| self.invalid(key, format!("is {value}; it must be true or false")))
    }
}
