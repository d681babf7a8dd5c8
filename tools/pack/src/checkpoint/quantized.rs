//! Tensors that tell of quantized weights or of an adapter, by the names that the tools give them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::PackError;

/// The ends of names, and who quantized.
const QUANTIZED: &[(&[&str], &str)] = &[
    (&["qweight", "qzeros", "g_idx"], "GPTQ or AWQ"),
    (&["absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB", "weight_format"], "bitsandbytes"),
    (&["weight_packed", "weight_shape", "weight_zero_point"], "compressed-tensors"),
    (
        &["weight_scale", "weight_scale_inv", "input_scale", "output_scale"],
        "scales beside the weights, as of fp8",
    ),
    (&["scales", "biases"], "scales beside the weights, as of MLX"),
    (&["W_q", "_data", "_scale", "codebooks", "codes"], "HQQ, quanto or AQLM"),
];

/// What is in the names of an adapter's tensors.
const ADAPTER: [&str; 8] = [
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "vera_lambda_b",
    "prompt_embeddings",
    "base_layer",
];

/// The fault that a name tells of.
pub(super) fn fault(path: &Path, name: &str) -> Option<PackError> {
    let path = || path.to_path_buf();
    if name.split('.').any(|part| ADAPTER.contains(&part)) {
        return Some(PackError::Adapter { path: path(), base: None });
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    let by = QUANTIZED.iter().find(|(ends, _)| ends.contains(&last)).map(|(_, by)| *by);
    let by = by.or_else(|| name.contains(".quant_state.").then_some("bitsandbytes"))?;
    Some(PackError::Quantized { path: path(), how: format!("tensor `{name}`: {by}") })
}

/// The error for the configuration of an adapter.
pub(super) fn adapter(path: PathBuf, values: &Map<String, Value>) -> PackError {
    let base = values.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
    PackError::Adapter { path, base }
}
