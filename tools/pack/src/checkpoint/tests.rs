//! Whole checkpoints: good ones, and each way in which their contents can be wrong.

use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype as StDtype;
use serde_json::{Value, json};

use super::fixture::{Fixture, f32_bytes};
use super::*;

mod architectures;
mod bad;
mod files;
mod folders;
mod kinds;

/// Opens a folder that must fail, and returns the message and the exit code.
#[track_caller]
fn refusal(dir: &Path) -> (String, u8) {
    let error = Checkpoint::open(dir).expect_err("must be refused");
    let message = error.to_string();
    assert!(!message.contains('\n'), "more than one line: {message}");
    (message, error.exit_code())
}

/// Asserts that a fixture is refused as a bad checkpoint, in these words.
#[track_caller]
fn refused(fixture: &Fixture, words: &[&str]) {
    refused_at(fixture.write().path(), words);
}

#[track_caller]
fn refused_at(dir: &Path, words: &[&str]) {
    let (message, code) = refusal(dir);
    assert_eq!(code, 3, "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

#[test]
fn both_architectures_open() {
    let mamba = Fixture::new("mamba").write();
    let checkpoint = Checkpoint::open(mamba.path()).unwrap();
    let expected = ModelConfig {
        arch: Arch::Mamba,
        d_model: 8,
        n_layer: 2,
        d_inner: 12,
        d_state: 4,
        d_conv: 3,
        dt_rank: 2,
        vocab_size: 10,
        norm_eps: 1e-5,
        mixer_rms_eps: None,
        use_bias: false,
        use_conv_bias: true,
        tied: true,
    };
    assert_eq!(*checkpoint.config(), expected);
    assert_eq!(*checkpoint.generation(), GenerationDefaults { eos: vec![1], bos: Some(0), pad: None });
    assert!(checkpoint.tensor(TensorKind::Head).is_none());
    assert!(checkpoint.tensor(TensorKind::Layer(2, LayerTensor::D)).is_none());
    assert!(checkpoint.tensor(TensorKind::Layer(0, LayerTensor::InProjBias)).is_none());
    let conv = checkpoint.tensor(TensorKind::Layer(1, LayerTensor::Conv)).unwrap();
    assert_eq!((conv.rows, conv.columns), (12, 3));

    let falcon = Fixture::new("falcon_mamba").write();
    let checkpoint = Checkpoint::open(falcon.path()).unwrap();
    let expected = ModelConfig { arch: Arch::FalconMamba, mixer_rms_eps: Some(1e-6), ..expected };
    assert_eq!(*checkpoint.config(), expected);
}

#[test]
fn rows_are_read_from_every_place_and_type() {
    let mut fixture = Fixture::new("mamba");
    let values: Vec<f32> = (0..80).map(|i| i as f32 / 8.0).collect();
    let f16: Vec<u8> = values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bf16: Vec<u8> = values.iter().take(8).flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    fixture.tensors.insert("backbone.embeddings.weight".into(), (StDtype::F16, vec![10, 8], f16));
    fixture.tensors.insert("backbone.norm_f.weight".into(), (StDtype::BF16, vec![8], bf16));
    for dir in [fixture.write(), fixture.write_sharded()] {
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let kinds = LayerTensor::ALL.map(|tensor| TensorKind::Layer(1, tensor));
        for kind in kinds.into_iter().chain([TensorKind::Embedding, TensorKind::FinalNorm]) {
            let Some(entry) = checkpoint.tensor(kind) else { continue };
            let mut all = vec![f32::NAN; entry.rows * entry.columns];
            checkpoint.read_all(entry, &mut all).unwrap();
            let expected: Vec<f32> = (0..all.len()).map(|i| i as f32 / 8.0).collect();
            assert_eq!(all, expected, "{kind}");
            let rows = entry.rows / 3..entry.rows - 1;
            let mut some = vec![f32::NAN; rows.len() * entry.columns];
            checkpoint.read_rows(entry, rows.clone(), &mut some).unwrap();
            assert_eq!(some, expected[rows.start * entry.columns..rows.end * entry.columns], "{kind}");
        }
    }
}

#[test]
fn a_request_that_does_not_fit_is_an_error() {
    let dir = Fixture::new("mamba").write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let entry = checkpoint.tensor(TensorKind::Embedding).unwrap();
    let backwards = Range { start: 5, end: 3 };
    for (rows, len) in [(0..11, 88), (10..12, 16), (0..1, 7), (0..1, 9), (backwards, 0), (0..usize::MAX, 0)] {
        let error = checkpoint.read_rows(entry, rows, &mut vec![0.0; len]).unwrap_err();
        assert!(matches!(error, PackError::InvalidRows { .. }), "{error}");
    }
    checkpoint.read_rows(entry, 10..10, &mut []).unwrap();
}

/// Larger than the reading buffer, so that its seams are crossed, from two threads at once.
#[test]
fn two_threads_read_a_large_tensor() {
    let (rows, columns) = (5000, 48);
    for dtype in [StDtype::F32, StDtype::F16, StDtype::BF16] {
        let value = |i: usize| ((i * 37 + i / 131_072) % 251) as f32;
        let bytes = (0..rows * columns).flat_map(|i| match dtype {
            StDtype::F32 => value(i).to_le_bytes().to_vec(),
            StDtype::F16 => half::f16::from_f32(value(i)).to_le_bytes().to_vec(),
            _ => half::bf16::from_f32(value(i)).to_le_bytes().to_vec(),
        });
        let dir = Fixture::with_embedding(rows, columns, dtype, bytes.collect()).write();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let entry = checkpoint.tensor(TensorKind::Embedding).unwrap();
        std::thread::scope(|scope| {
            for range in [0..4999, 1..5000] {
                let checkpoint = &checkpoint;
                scope.spawn(move || {
                    let mut out = vec![f32::NAN; range.len() * columns];
                    checkpoint.read_rows(entry, range.clone(), &mut out).unwrap();
                    let first = range.start * columns;
                    assert!(out.iter().enumerate().all(|(i, &found)| found == value(first + i)));
                });
            }
        });
    }
}

#[test]
fn a_value_that_is_not_finite_is_named() {
    for (bad, text) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let mut fixture = Fixture::new("mamba");
        let name = "backbone.layers.1.mixer.x_proj.weight";
        let mut values = [0.5; 120];
        values[7 * 12 + 5] = bad;
        fixture.tensors.insert(name.into(), (StDtype::F32, vec![10, 12], f32_bytes(&values)));
        let dir = fixture.write();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let entry = checkpoint.tensor(TensorKind::Layer(1, LayerTensor::XProj)).unwrap();
        let mut out = [0.0; 48];
        checkpoint.read_rows(entry, 0..4, &mut out).unwrap();
        let error = checkpoint.read_rows(entry, 6..10, &mut out).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        assert!(message.contains(&format!("`{name}` holds {text} at [7, 5]")), "{message}");
    }
}

/// Past the reading buffer's first seam, which is in the middle of a row.
#[test]
fn a_value_that_is_not_finite_is_named_far_into_a_tensor() {
    let (rows, columns) = (3000, 48);
    let mut values = vec![0.5; rows * columns];
    values[2900 * columns + 17] = f32::INFINITY;
    let dir = Fixture::with_embedding(rows, columns, StDtype::F32, f32_bytes(&values)).write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let entry = checkpoint.tensor(TensorKind::Embedding).unwrap();
    let message = checkpoint.read_all(entry, &mut values).unwrap_err().to_string();
    assert!(message.contains("holds inf at [2900, 17]"), "{message}");
}

#[test]
fn other_architectures_are_named() {
    for other in ["mamba2", "jamba", "llama"] {
        let fixture = Fixture::new(other);
        refused(&fixture, &["config.json", &format!("`{other}`"), "`mamba` and `falcon_mamba`"]);
    }
    // As Mamba-2's config.json is in fact written.
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("config.json"),
        r#"{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}"#,
    )
    .unwrap();
    refused_at(dir.path(), &["`mamba2`"]);
    let mut fixture = Fixture::new("mamba");
    fixture.config["model_type"] = Value::Null;
    refused(&fixture, &["`model_type`", "missing"]);
}

#[test]
fn what_changes_the_arithmetic_is_refused_by_name() {
    let mut fixture = Fixture::new("mamba");
    fixture.config["hidden_act"] = json!("gelu");
    refused(&fixture, &["config.json", "`hidden_act`"]);
    // Keys of the original's, which mean nothing in Hugging Face's file.
    for (key, value) in [
        ("rms_norm", json!(false)),
        ("attn_layer_idx", json!([3])),
        ("d_intermediate", json!(64)),
        ("ssm_cfg", json!({ "layer": "Mamba2" })),
    ] {
        let mut original = json!({ "d_model": 8, "n_layer": 2, "vocab_size": 10, "ssm_cfg": {} });
        original[key] = value.clone();
        let mut fixture = Fixture { config: original, ..Fixture::new("") };
        refused(&fixture, &["config.json", if key == "ssm_cfg" { "ssm_cfg.layer" } else { key }]);
        fixture.config = Fixture::new("mamba").config;
        fixture.config[key] = value;
        Checkpoint::open(fixture.write().path()).unwrap();
    }
}

#[test]
fn bad_values_in_the_configuration_are_named() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(65_537)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!(-8)),
        ("hidden_size", json!("auto")),
        ("num_hidden_layers", json!(4097)),
        ("intermediate_size", json!(131_073)),
        ("state_size", json!(257)),
        ("conv_kernel", json!(9)),
        ("time_step_rank", json!(65_537)),
        ("time_step_rank", json!("many")),
        ("vocab_size", json!(1_048_577)),
        ("vocab_size", json!(10.5)),
        ("layer_norm_epsilon", json!(-1e-5)),
        ("layer_norm_epsilon", json!(1e300)),
        ("layer_norm_epsilon", json!("1e-5")),
        ("mixer_rms_eps", json!({ "__float__": "Infinity" })),
        ("use_bias", json!("no")),
        ("tie_word_embeddings", json!(1)),
        ("eos_token_id", json!(1.5)),
        ("eos_token_id", json!([0, "x"])),
    ] {
        let mut fixture = Fixture::new("falcon_mamba");
        fixture.config[key] = value;
        refused(&fixture, &["config.json", &format!("`{key}`")]);
    }
}

#[test]
fn a_dimension_that_the_tensors_deny_is_shown_with_both_shapes() {
    for (key, value, words) in [
        ("vocab_size", json!(11), ["[10, 8]", "[11, 8]", "vocab_size"]),
        ("intermediate_size", json!(16), ["[12, 4]", "[16, 4]", "intermediate_size"]),
        ("state_size", json!(5), ["[12, 4]", "[12, 5]", "state_size"]),
        ("conv_kernel", json!(4), ["[12, 1, 3]", "[12, 1, 4]", "conv_kernel"]),
        ("time_step_rank", json!("auto"), ["[12, 2]", "[12, 1]", "time_step_rank"]),
    ] {
        let mut fixture = Fixture::new("mamba");
        fixture.config[key] = value;
        refused(&fixture, &words);
    }
}

#[test]
fn a_missing_intermediate_size_comes_from_the_tensors() {
    let mut fixture = Fixture::new("falcon_mamba");
    fixture.config.as_object_mut().unwrap().remove("intermediate_size");
    let dir = fixture.write();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().config().d_inner, 12);
}

#[test]
fn a_rank_left_to_the_default_is_a_sixteenth_rounded_up() {
    let mut fixture = Fixture::new("mamba");
    fixture.config["time_step_rank"] = json!("auto");
    for layer in 0..2 {
        fixture.put(&format!("backbone.layers.{layer}.mixer.x_proj.weight"), &[9, 12]);
        fixture.put(&format!("backbone.layers.{layer}.mixer.dt_proj.weight"), &[12, 1]);
    }
    let dir = fixture.write();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().config().dt_rank, 1);
}

#[test]
fn missing_and_left_over_tensors_are_named() {
    for name in [
        "backbone.embeddings.weight",
        "backbone.norm_f.weight",
        "backbone.layers.1.mixer.A_log",
        "backbone.layers.0.mixer.conv1d.bias",
    ] {
        let mut fixture = Fixture::new("mamba");
        fixture.tensors.remove(name);
        refused(&fixture, &[name, "missing"]);
    }
    for (name, shape) in [
        ("backbone.layers.0.mixer.in_proj.bias", &[24][..]),
        ("backbone.layers.0.mixer.dt_layernorm.weight", &[2]),
        ("backbone.layers.2.mixer.D", &[12]),
        ("backbone.embedding.weight", &[10, 8]),
        ("score.weight", &[2, 8]),
    ] {
        let mut fixture = Fixture::new("mamba");
        fixture.put(name, shape);
        let message = refusal(fixture.write().path()).0;
        // Of the two spellings of the embedding, either may be the one too many.
        assert!(message.contains(name) || message.contains("there twice"), "{message}");
    }
    let mut fixture = Fixture::new("mamba");
    fixture.config["use_bias"] = json!(true);
    refused(&fixture, &["backbone.layers.0.mixer.in_proj.bias", "use_bias"]);
}

#[test]
fn biases_are_used_where_both_files_agree() {
    let mut fixture = Fixture::new("mamba");
    fixture.config["use_bias"] = json!(true);
    for layer in 0..2 {
        fixture.put(&format!("backbone.layers.{layer}.mixer.in_proj.bias"), &[24]);
        fixture.put(&format!("backbone.layers.{layer}.mixer.out_proj.bias"), &[8]);
    }
    let dir = fixture.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.config().use_bias);
    assert_eq!(checkpoint.tensor(TensorKind::Layer(1, LayerTensor::OutProjBias)).unwrap().rows, 8);
}

#[test]
fn a_head_is_tied_untied_or_a_copy() {
    let mut fixture = Fixture::new("mamba");
    fixture.config["tie_word_embeddings"] = json!(false);
    refused(&fixture, &["`lm_head.weight`", "tie_word_embeddings"]);
    fixture.put("lm_head.weight", &[10, 8]);
    let dir = fixture.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(!checkpoint.config().tied && checkpoint.tensor(TensorKind::Head).is_some());

    fixture.config["tie_word_embeddings"] = json!(true);
    let dir = fixture.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.config().tied && checkpoint.tensor(TensorKind::Head).is_none());

    fixture.tensors.get_mut("lm_head.weight").unwrap().2[319] ^= 1;
    let dir = fixture.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(!checkpoint.config().tied && checkpoint.tensor(TensorKind::Head).is_some());
}

#[test]
fn the_original_spelling_opens() {
    let mut fixture = Fixture::new("");
    fixture.config = json!({
        "d_model": 8, "n_layer": 2, "vocab_size": 9, "pad_vocab_size_multiple": 5, "rms_norm": true,
        "residual_in_fp32": true, "fused_add_norm": true,
        "ssm_cfg": { "d_state": 4, "d_conv": 3, "dt_rank": 2 },
    });
    let embedding = fixture.tensors.remove("backbone.embeddings.weight").unwrap();
    fixture.tensors.insert("lm_head.weight".into(), embedding.clone());
    fixture.tensors.insert("backbone.embedding.weight".into(), embedding);
    let dir = fixture.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.arch, config.vocab_size, config.d_inner, config.tied), (Arch::Mamba, 10, 12, true));
    assert_eq!(*checkpoint.generation(), GenerationDefaults::default());

    fixture.config["ssm_cfg"]["layer"] = json!("Mamba2");
    refused(&fixture, &["Mamba2"]);
}

#[test]
fn generation_defaults_come_key_by_key() {
    let fixture = Fixture::new("mamba");
    let dir = fixture.write();
    let path = dir.path().join("generation_config.json");
    fs::write(&path, r#"{"eos_token_id": [3, 2, 3], "pad_token_id": -1}"#).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let expected = GenerationDefaults { eos: vec![3, 2], bos: Some(0), pad: None };
    assert_eq!(*checkpoint.generation(), expected);
    fs::write(&path, r#"{"eos_token_id": "1"}"#).unwrap();
    refused_at(dir.path(), &["generation_config.json", "`eos_token_id`", "is \"1\""]);
}

#[test]
fn the_tokenizer_and_template_are_optional() {
    let dir = Fixture::new("mamba").write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tokenizer_json().unwrap(), None);
    assert_eq!(checkpoint.tokenizer_config().unwrap(), None);
    assert_eq!(checkpoint.chat_template(&[]).unwrap(), None);

    fs::write(dir.path().join("tokenizer.json"), b"{}").unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": "in the config"}"#).unwrap();
    assert_eq!(checkpoint.tokenizer_json().unwrap().as_deref(), Some(&b"{}"[..]));
    assert_eq!(checkpoint.chat_template(&[]).unwrap().unwrap().jinja, "in the config");
    fs::write(dir.path().join("chat_template.jinja"), "in the file").unwrap();
    assert_eq!(checkpoint.chat_template(&[]).unwrap().unwrap().jinja, "in the file");
    fs::write(dir.path().join("chat_template.jinja"), b"fine\n\xff").unwrap();
    let message = checkpoint.chat_template(&[]).unwrap_err().to_string();
    assert!(message.contains("chat_template.jinja") && message.contains("line 2"), "{message}");
}

#[test]
fn the_bundled_models_open() {
    for (name, arch, d_model, n_layer, d_inner, vocab_size) in [
        ("address-300k", Arch::Mamba, 96, 4, 192, 1024),
        ("address-4m", Arch::FalconMamba, 256, 6, 512, 4096),
    ] {
        let dir = elapid_test_support::data::path(&format!("models/{name}"));
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let config = checkpoint.config();
        assert_eq!((config.arch, config.d_model, config.n_layer), (arch, d_model, n_layer));
        assert_eq!((config.d_inner, config.vocab_size, config.tied), (d_inner, vocab_size, true));
        assert_eq!(checkpoint.generation().eos, [0]);
        let layers = (0..n_layer).flat_map(|n| LayerTensor::ALL.map(|tensor| TensorKind::Layer(n, tensor)));
        let mut read = 0;
        for kind in layers.chain([TensorKind::Embedding, TensorKind::FinalNorm]) {
            let Some(entry) = checkpoint.tensor(kind) else { continue };
            let mut out = vec![0.0; entry.rows * entry.columns];
            checkpoint.read_all(entry, &mut out).unwrap();
            assert!(out.iter().any(|&value| value != 0.0), "{kind}");
            read += 1;
        }
        // Ten of a layer: all but the biases of in_proj and out_proj.
        assert_eq!(read, 10 * n_layer + 2);
        assert_eq!(checkpoint.chat_template(&[]).unwrap(), None);
    }
}
