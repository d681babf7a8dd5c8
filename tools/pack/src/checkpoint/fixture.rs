//! Small checkpoints written for tests, right until a test makes them wrong.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tensor's type, shape and bytes.
pub(crate) type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// A checkpoint in memory.
pub(crate) struct Fixture {
    /// config.json.
    pub(crate) config: Value,
    /// The tensors by name.
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

/// Values in f32, as bytes.
pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl Fixture {
    /// Two layers, d_model 8, d_inner 12, state 4, conv 3, rank 2, vocabulary 10, tied, in F32.
    /// Element i of a tensor is i / 8, so that any mix-up of rows shows.
    pub(crate) fn new(model_type: &str) -> Self {
        let config = json!({
            "model_type": model_type, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12,
            "state_size": 4, "conv_kernel": 3, "time_step_rank": 2, "vocab_size": 10, "expand": 16,
            "use_bias": false, "use_conv_bias": true, "hidden_act": "silu", "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": true, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": null,
        });
        let mut fixture = Self { config, tensors: BTreeMap::new() };
        fixture.put("backbone.embeddings.weight", &[10, 8]);
        fixture.put("backbone.norm_f.weight", &[8]);
        for layer in 0..2 {
            let mut put = |name: &str, shape: &[usize]| {
                fixture.put(&format!("backbone.layers.{layer}.{name}"), shape);
            };
            put("norm.weight", &[8]);
            put("mixer.in_proj.weight", &[24, 8]);
            put("mixer.conv1d.weight", &[12, 1, 3]);
            put("mixer.conv1d.bias", &[12]);
            put("mixer.x_proj.weight", &[10, 12]);
            put("mixer.dt_proj.weight", &[12, 2]);
            put("mixer.dt_proj.bias", &[12]);
            put("mixer.A_log", &[12, 4]);
            put("mixer.D", &[12]);
            put("mixer.out_proj.weight", &[8, 12]);
        }
        fixture
    }

    /// Adds a tensor, or replaces it.
    pub(crate) fn put(&mut self, name: &str, shape: &[usize]) {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| i as f32 / 8.0).collect();
        self.tensors.insert(name.into(), (Dtype::F32, shape.into(), f32_bytes(&values)));
    }

    /// A model whose embedding has this shape, type and data.
    pub(crate) fn with_embedding(rows: usize, columns: usize, dtype: Dtype, bytes: Vec<u8>) -> Self {
        let mut fixture = Self::new("mamba");
        fixture.config["hidden_size"] = json!(columns);
        fixture.config["vocab_size"] = json!(rows);
        for layer in 0..2 {
            fixture.put(&format!("backbone.layers.{layer}.norm.weight"), &[columns]);
            fixture.put(&format!("backbone.layers.{layer}.mixer.in_proj.weight"), &[24, columns]);
            fixture.put(&format!("backbone.layers.{layer}.mixer.out_proj.weight"), &[columns, 12]);
        }
        fixture.put("backbone.norm_f.weight", &[columns]);
        fixture.tensors.insert("backbone.embeddings.weight".into(), (dtype, vec![rows, columns], bytes));
        fixture
    }

    /// The file model.safetensors, or a shard with the tensors whose names pass.
    pub(crate) fn safetensors(&self, filter: impl Fn(&str) -> bool) -> Vec<u8> {
        let views =
            self.tensors.iter().filter(|(name, _)| filter(name)).map(|(name, (dtype, shape, bytes))| {
                (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            });
        safetensors::serialize(views, None).unwrap()
    }

    /// Writes config.json and model.safetensors to a new folder.
    pub(crate) fn write(&self) -> TempDir {
        let dir = self.write_config();
        std::fs::write(dir.path().join("model.safetensors"), self.safetensors(|_| true)).unwrap();
        dir
    }

    /// Writes config.json alone to a new folder.
    pub(crate) fn write_config(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        dir
    }

    /// Writes config.json, an index and a shard for each layer and for the rest.
    pub(crate) fn write_sharded(&self) -> TempDir {
        let dir = self.write_config();
        let shard_of = |name: &str| match name {
            _ if name.starts_with("backbone.layers.0.") => "model-00001-of-00003.safetensors",
            _ if name.starts_with("backbone.layers.1.") => "model-00002-of-00003.safetensors",
            _ => "model-00003-of-00003.safetensors",
        };
        let weight_map: BTreeMap<&str, &str> =
            self.tensors.keys().map(|name| (name.as_str(), shard_of(name))).collect();
        for shard in weight_map.values() {
            let bytes = self.safetensors(|name| shard_of(name) == *shard);
            std::fs::write(dir.path().join(shard), bytes).unwrap();
        }
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        dir
    }
}
