//! One model in many forms, as people have it: the packed file is the same, bit for bit. (That the plain form is right is compared with
//! transformers in `tests/tests/reference.rs`.)

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use elapid_core::format::Quant;
use elapid_pack::{Options, Plan};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// A tensor's type, shape and bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// A checkpoint in memory.
#[derive(Clone)]
struct Model {
    config: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Model {
    /// The fixture `mamba-conv1`: four layers, tied, F32.
    fn plain() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/mamba-conv1");
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().map(|(name, view)| {
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        });
        let config = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        Self { config, tensors: tensors.collect() }
    }

    /// The file of the tensors that pass.
    fn file(&self, filter: impl Fn(&str) -> bool) -> Vec<u8> {
        let tensors = self.tensors.iter().filter(|(name, _)| filter(name));
        let views = tensors.map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn write(&self, folder: &Path) {
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        fs::write(folder.join("model.safetensors"), self.file(|_| true)).unwrap();
    }

    fn rename(&mut self, name: impl Fn(&str) -> String) {
        self.tensors =
            std::mem::take(&mut self.tensors).into_iter().map(|(key, value)| (name(&key), value)).collect();
    }

    fn set(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }
}

/// Packs a folder.
fn packed(folder: &Path) -> Vec<u8> {
    let options = Options { quant: Quant::F32, ..Options::default() };
    let file = folder.join("m.elp");
    let plan = Plan::checkpoint(folder, &options).unwrap_or_else(|error| panic!("{error}"));
    plan.write(&file, &options, &()).unwrap_or_else(|error| panic!("{error}"));
    fs::read(file).unwrap()
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "backbone.embeddings.weight";

#[test]
fn the_same_model_from_every_form() {
    type Change = fn(&mut Model);
    let changes: &[(&str, Change)] = &[
        ("without the prefix", |m| m.rename(|name| name.trim_start_matches("backbone.").to_owned())),
        ("DataParallel", |m| m.rename(|name| format!("module.{name}"))),
        ("torch.compile", |m| m.rename(|name| format!("_orig_mod.{name}"))),
        ("peft", |m| m.rename(|name| format!("base_model.model.{name}"))),
        ("the original's name", |m| m.rename(|name| name.replace("embeddings", "embedding"))),
        ("a head too", |m| {
            let embedding = m.tensors[EMBEDDING].clone();
            m.tensors.insert(HEAD.into(), embedding);
        }),
        ("only a head", |m| m.rename(|name| if name == EMBEDDING { HEAD.into() } else { name.into() })),
        ("F64", |m| {
            for (dtype, _, bytes) in m.tensors.values_mut() {
                let values = bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
                (*dtype, *bytes) = (Dtype::F64, values.flat_map(f64::to_le_bytes).collect());
            }
        }),
        ("tensors that are no weights", |m| {
            m.tensors.insert("backbone.position_ids".into(), (Dtype::I64, vec![2], vec![1; 16]));
            m.tensors.insert("mask".into(), (Dtype::U8, vec![2], vec![1; 2]));
            m.tensors.insert("empty".into(), (Dtype::F32, vec![0], Vec::new()));
        }),
        ("stale keys", |m| {
            m.set("d_inner", json!(7));
            m.set("n_layer", json!(1));
            m.set("expand", json!(16));
            m.set("rms_norm", json!(false));
            m.set("d_intermediate", json!(8));
            m.set("attn_layer_idx", json!([0]));
            m.set("ssm_cfg", json!({ "layer": "Mamba2" }));
        }),
        ("ids beyond the vocabulary", |m| {
            m.set("pad_token_id", json!(1 << 20));
            m.set("bos_token_id", json!([1 << 20]));
        }),
        ("no intermediate_size, no ranks", |m| {
            for key in
                ["intermediate_size", "time_step_rank", "state_size", "conv_kernel", "tie_word_embeddings"]
            {
                m.config.as_object_mut().unwrap().remove(key);
            }
        }),
        ("types that are not used", |m| {
            m.set("dtype", json!("bfloat16"));
            m.set("torch_dtype", json!("float16"));
            m.set("time_step_limit", json!([0.0, { "__float__": "Infinity" }]));
        }),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut plain = Model::plain();
    plain.set("pad_token_id", Value::Null);
    plain.set("bos_token_id", Value::Null);
    plain.write(folder.path());
    let expected = packed(folder.path());
    for (name, change) in changes {
        let folder = tempfile::tempdir().unwrap();
        let mut model = plain.clone();
        change(&mut model);
        model.write(folder.path());
        assert!(packed(folder.path()) == expected, "{name}");
    }
}

#[test]
fn the_same_model_from_shards_anywhere_below() {
    let folder = tempfile::tempdir().unwrap();
    let plain = Model::plain();
    plain.write(folder.path());
    let expected = packed(folder.path());

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), plain.config.to_string()).unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    let first = |name: &str| name.contains(".layers.0.") || name.contains(".layers.1.");
    let map: BTreeMap<&str, &str> = plain
        .tensors
        .keys()
        .map(|name| (&**name, if first(name) { "./a.safetensors" } else { "b/./c.safetensors" }))
        .collect();
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(folder.path().join("a.safetensors"), plain.file(first)).unwrap();
    // Stale copies that the index does not name.
    let mut stale = plain.clone();
    for (name, (_, _, bytes)) in &mut stale.tensors {
        if first(name) {
            bytes.fill(0);
        }
    }
    fs::write(folder.path().join("b/c.safetensors"), stale.file(|_| true)).unwrap();
    assert!(packed(folder.path()) == expected);
}
