//! GGUF files of the fixtures' weights against Hugging Face transformers.

use std::path::Path;

use elapid_core::format::Quant;
use elapid_core::kernels::{self, Solo};
use elapid_core::model::StateKind;
use elapid_test_support::gguf::{Gguf, Value, kind};
use elapid_tests::fixture::{Fixture, difference, fixtures};
use elapid_tests::runner::{Runner, pack, quant};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

/// The tensor's name in a GGUF file.
fn name(hugging_face: &str) -> String {
    match hugging_face {
        "backbone.embeddings.weight" => return "token_embd.weight".into(),
        "backbone.norm_f.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let (layer, suffix) = hugging_face
        .strip_prefix("backbone.layers.")
        .and_then(|rest| rest.split_once('.'))
        .expect("a layer's");
    let suffix = match suffix {
        "norm.weight" => "attn_norm.weight".to_owned(),
        "mixer.A_log" => "ssm_a".to_owned(),
        "mixer.D" => "ssm_d".to_owned(),
        other => {
            let (part, end) =
                other.strip_prefix("mixer.").and_then(|rest| rest.split_once('.')).expect("a part");
            format!("ssm_{}.{end}", part.strip_suffix("_proj").unwrap_or(part))
        }
    };
    format!("blk.{layer}.{suffix}")
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        Dtype::BF16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        other => panic!("{other:?}"),
    }
}

/// What a converter makes of a folder.
fn converted(folder: &Path) -> Gguf {
    let config = std::fs::read_to_string(folder.join("config.json")).expect("a configuration");
    let config: Json = serde_json::from_str(&config).expect("JSON");
    let number = |key: &str| Value::U32(config[key].as_u64().expect("a number") as u32);
    let mut gguf = Gguf::default();
    gguf.set("general.architecture", Value::Text("mamba".into()));
    gguf.set("mamba.embedding_length", number("hidden_size"));
    gguf.set("mamba.block_count", number("num_hidden_layers"));
    gguf.set("mamba.ssm.conv_kernel", number("conv_kernel"));
    gguf.set("mamba.ssm.inner_size", number("intermediate_size"));
    gguf.set("mamba.ssm.state_size", number("state_size"));
    gguf.set("mamba.ssm.time_step_rank", number("time_step_rank"));
    let epsilon = config["layer_norm_epsilon"].as_f64().expect("a number") as f32;
    gguf.set("mamba.attention.layer_norm_rms_epsilon", Value::F32(epsilon));
    if config["model_type"] == "falcon_mamba" {
        gguf.set("mamba.ssm.dt_b_c_rms", Value::Bool(true));
    }
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    files.retain(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("model") && name.ends_with(".safetensors"))
    });
    for path in files {
        let bytes = std::fs::read(path).expect("weights");
        for (tensor, view) in SafeTensors::deserialize(&bytes).expect("tensors").tensors() {
            let mut shape: Vec<u64> = view.shape().iter().map(|n| *n as u64).collect();
            let mut values = floats(view.dtype(), view.data());
            let name = name(&tensor);
            if name.ends_with("conv1d.weight") {
                shape.retain(|n| *n != 1);
            }
            if name.ends_with("ssm_a") {
                values.iter_mut().for_each(|a| *a = -a.exp());
            }
            gguf.put(&name, &shape, kind::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect());
        }
    }
    gguf
}

fn error(fixture: &Fixture, file: &Path, folder: &Path) -> f32 {
    let path = pack(file, folder, &quant(Quant::F32));
    let mut runner = Runner::open(&path, StateKind::F32, 7);
    let logits = runner.all_logits(kernels::detect(), &Solo, &fixture.tokens).expect("the step succeeds");
    fixture.error(&logits)
}

#[test]
fn logits_agree_with_transformers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut ran = 0;
    for fixture in fixtures() {
        let config =
            std::fs::read_to_string(fixture.checkpoint.join("config.json")).expect("a configuration");
        let config: Json = serde_json::from_str(&config).expect("JSON");
        let file = folder.path().join(format!("{}.gguf", fixture.name));
        std::fs::write(&file, converted(&fixture.checkpoint).to_bytes()).expect("a file is written");
        let error = error(&fixture, &file, folder.path());
        println!("{}: {error:.2e} of the largest logit", fixture.name);
        // No key of GGUF gives this epsilon.
        match config["mixer_rms_eps"].as_f64() {
            Some(epsilon) if epsilon != 1e-6 => assert!(error > 2e-5, "{}: {error:e}", fixture.name),
            _ => assert!(error < 2e-5, "{}: {error:e}", fixture.name),
        }
        ran += 1;
    }
    assert!(ran >= 12, "only {ran} fixtures");
}

/// Files of the peer's converter (tests/reference/make_gguf.py), whose weights transformers computed with.
#[test]
fn the_peers_files_agree_with_transformers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| elapid_test_support::data::path(&format!("gguf/{name}"));
    for name in ["mamba-conv1-f32", "falcon-even-q8_0"] {
        let expected = std::fs::read(file(&format!("{name}.safetensors"))).expect("the expected logits");
        let expected = SafeTensors::deserialize(&expected).expect("tensors");
        let of = |name: &str| expected.tensor(name).expect("a tensor").data().as_chunks().0.to_vec();
        let tokens: Vec<u32> = of("tokens").into_iter().map(u32::from_le_bytes).collect();
        let wanted: Vec<f32> = of("logits").into_iter().map(f32::from_le_bytes).collect();
        let path = pack(&file(&format!("{name}.gguf")), folder.path(), &quant(Quant::F32));
        let mut runner = Runner::open(&path, StateKind::F32, 7);
        let logits = runner.all_logits(kernels::detect(), &Solo, &tokens).expect("the step succeeds");
        assert_eq!(logits.len(), wanted.len());
        let share = difference(&logits, &wanted) / wanted.iter().fold(0.0f32, |m, value| m.max(value.abs()));
        println!("{name}: {share:.2e} of the largest logit");
        assert!(share < 2e-5, "{name}: {share:e}");
    }
}
