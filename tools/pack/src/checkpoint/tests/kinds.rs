//! Checkpoints as people have them that transformers reads: keys left over by conversions, names of wrappers, ids of larger
//! vocabularies, heads stored in any way, tensors that are no weights.

use super::*;

/// Opens what must be read, and reads all of its tensors.
#[track_caller]
fn opens(fixture: &Fixture) -> Checkpoint {
    reads(fixture.write().path())
}

#[track_caller]
fn reads(dir: &Path) -> Checkpoint {
    let checkpoint = Checkpoint::open(dir).unwrap_or_else(|error| panic!("{error}"));
    let layers = (0..checkpoint.config().n_layer)
        .flat_map(|layer| LayerTensor::ALL.map(|tensor| TensorKind::Layer(layer, tensor)));
    for kind in layers.chain([TensorKind::Embedding, TensorKind::FinalNorm, TensorKind::Head]) {
        let Some(entry) = checkpoint.tensor(kind) else { continue };
        let mut values = vec![f32::NAN; entry.rows * entry.columns];
        checkpoint.read_all(entry, &mut values).unwrap();
        // What all tensors of a fixture hold.
        assert!(values.iter().enumerate().all(|(i, value)| *value == i as f32 / 8.0), "{kind}");
    }
    checkpoint
}

#[test]
fn keys_that_a_conversion_left_over_mean_nothing() {
    let plain = opens(&Fixture::new("mamba")).config().clone();
    for (key, value) in [
        ("d_inner", json!(36)),
        ("d_model", json!(16)),
        ("n_layer", json!(7)),
        ("expand", json!(16)),
        ("d_state", json!(64)),
        ("d_conv", json!(2)),
        ("dt_rank", json!("auto")),
        ("bias", json!(true)),
        ("conv_bias", json!(false)),
        ("tie_embeddings", json!(false)),
        ("pad_vocab_size_multiple", json!(8)),
        ("rms_norm", json!(false)),
        ("attn_layer_idx", json!([1])),
        ("attn_cfg", json!({ "num_heads": 4 })),
        ("d_intermediate", json!(64)),
        ("ssm_cfg", json!({ "layer": "Mamba2", "d_state": 128 })),
        ("time_step_limit", json!([0.0, { "__float__": "Infinity" }])),
        ("dtype", json!("bfloat16")),
        ("torch_dtype", json!("float8_e4m3fn")),
        ("quantization_config", Value::Null),
    ] {
        let mut fixture = Fixture::new("mamba");
        fixture.config[key] = value;
        assert_eq!(*opens(&fixture).config(), plain, "{key}");
    }
}

/// Each key of Hugging Face's may be missing, or be there in the original's spelling only: the tensors tell.
#[test]
fn what_no_key_says_the_tensors_do() {
    let plain = opens(&Fixture::new("mamba")).config().clone();
    for (key, original) in [
        ("hidden_size", "d_model"),
        ("intermediate_size", "d_inner"),
        ("num_hidden_layers", "n_layer"),
        ("state_size", "d_state"),
        ("conv_kernel", "d_conv"),
        ("time_step_rank", "dt_rank"),
        ("vocab_size", "vocab"),
        ("use_bias", "bias"),
        ("use_conv_bias", "conv_bias"),
        ("tie_word_embeddings", "tie_embeddings"),
    ] {
        let mut fixture = Fixture::new("mamba");
        let value = fixture.config.as_object_mut().unwrap().remove(key).unwrap();
        assert_eq!(*opens(&fixture).config(), plain, "{key}");
        fixture.config[original] = value;
        assert_eq!(*opens(&fixture).config(), plain, "{original}");
    }
    // Without tensors only keys tell: a model of random weights.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.json");
    let config = json!({ "model_type": "mamba", "d_model": 8, "n_layer": 2, "d_inner": 12, "vocab_size": 10, "bias": true });
    fs::write(&path, config.to_string()).unwrap();
    let config = ModelConfig::from_file(&path).unwrap();
    assert_eq!((config.d_model, config.n_layer, config.d_inner, config.use_bias), (8, 2, 12, true));
}

/// Hugging Face's spelling, with the tokenizer's count in place of the padded one.
#[test]
fn a_padded_vocabulary_counts_by_its_rows() {
    for (vocab, multiple) in [(9, json!(5)), (10, json!(16)), (10, json!(1))] {
        let mut fixture = Fixture::new("mamba");
        fixture.config["vocab_size"] = json!(vocab);
        fixture.config["pad_vocab_size_multiple"] = multiple;
        assert_eq!(opens(&fixture).config().vocab_size, 10);
    }
    let mut fixture = Fixture::new("mamba");
    fixture.config["vocab_size"] = json!(9);
    refused(&fixture, &["[10, 8]", "[9, 8]"]);
}

#[test]
fn any_epsilon_from_0_is_read() {
    for epsilon in [0.0, 1e-45, 1e-12, 1.0, 3.5] {
        let mut fixture = Fixture::new("falcon_mamba");
        fixture.config["layer_norm_epsilon"] = json!(epsilon);
        fixture.config["mixer_rms_eps"] = json!(epsilon);
        let config = opens(&fixture).config().clone();
        assert_eq!((config.norm_eps, config.mixer_rms_eps), (epsilon as f32, Some(epsilon as f32)));
    }
}

#[test]
fn an_id_beyond_the_vocabulary_is_left_out_with_a_note() {
    for key in ["eos_token_id", "bos_token_id", "pad_token_id"] {
        for (value, left) in [
            (json!(10), None),
            (json!(u64::MAX), None),
            (json!([10, 3]), Some(3)),
            (json!([3, 11]), Some(3)),
            (json!([null, 3]), Some(3)),
            (json!(-1), None),
            (json!([]), None),
        ] {
            let mut fixture = Fixture::new("mamba");
            fixture.config[key] = value.clone();
            let checkpoint = opens(&fixture);
            let GenerationDefaults { eos, bos, pad } = checkpoint.generation();
            let found = match key {
                "eos_token_id" => eos.first().copied(),
                "bos_token_id" => *bos,
                _ => *pad,
            };
            assert_eq!(found, left, "{key} {value}");
            let notes = checkpoint.notes().join("\n");
            let beyond = value.to_string().contains('1') && value != json!(-1);
            assert_eq!(
                notes.contains(&format!("config.json: `{key}` is ")) && notes.contains("beyond the 10 rows"),
                beyond,
                "{key} {value}: {notes}"
            );
        }
    }
    let dir = Fixture::new("mamba").write();
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 99], "top_p": NaN}"#)
        .unwrap();
    let checkpoint = reads(dir.path());
    assert_eq!(checkpoint.generation().eos, [1]);
    assert!(checkpoint.notes()[0].starts_with("generation_config.json: `eos_token_id` is 99"));
}

#[test]
fn names_with_what_wrappers_add_or_leave_out_are_read() {
    let renamed = |name: &dyn Fn(&str) -> String| {
        let fixture = Fixture::new("mamba");
        let tensors = fixture.tensors.iter().map(|(key, tensor)| (name(key), tensor.clone())).collect();
        Fixture { tensors, ..fixture }
    };
    for prefix in
        ["module.", "_orig_mod.", "model.", "base_model.model.", "module._orig_mod.", "_forward_module."]
    {
        opens(&renamed(&|name| format!("{prefix}{name}")));
    }
    opens(&renamed(&|name| name.replace("backbone.", "")));
    opens(&renamed(&|name| format!("module.{}", name.replace("backbone.", ""))));
    opens(&renamed(&|name| name.replace(".mixer.", "._orig_mod.mixer.")));
    opens(&renamed(&|name| name.replace("embeddings", "embedding")));
    refused(&renamed(&|name| format!("encoder.{name}")), &["encoder.backbone.embeddings.weight"]);
    // One tensor under two names.
    let mut fixture = Fixture::new("mamba");
    fixture.put("module.backbone.norm_f.weight", &[8]);
    refused(&fixture, &["there twice", "backbone.norm_f.weight", "module.backbone.norm_f.weight"]);
}

/// A tied model of which only the head was saved: the writer kept one of two shared tensors.
#[test]
fn a_head_alone_is_the_embedding_too() {
    let mut fixture = Fixture::new("mamba");
    let embedding = fixture.tensors.remove("backbone.embeddings.weight").unwrap();
    fixture.tensors.insert("lm_head.weight".into(), embedding);
    let checkpoint = opens(&fixture);
    assert!(checkpoint.config().tied && checkpoint.tensor(TensorKind::Head).is_none());
    assert_eq!(checkpoint.tensor(TensorKind::Embedding).unwrap().name, "lm_head.weight");
    fixture.config["tie_word_embeddings"] = json!(false);
    refused(&fixture, &["`backbone.embeddings.weight` is missing"]);
}

#[test]
fn tensors_that_are_no_weights_are_left_out() {
    let mut fixture = Fixture::new("mamba");
    for (name, dtype, bytes) in [
        ("backbone.position_ids", StDtype::I64, 24),
        ("backbone.layers.0.mixer.steps", StDtype::I32, 12),
        ("mask", StDtype::U8, 3),
        ("flags", StDtype::BOOL, 3),
    ] {
        fixture.tensors.insert(name.into(), (dtype, vec![3], vec![1; bytes]));
    }
    fixture.tensors.insert("empty".into(), (StDtype::F32, vec![0, 7], Vec::new()));
    opens(&fixture);
    fixture.put("backbone.layers.0.mixer.dt_layernorm.weight", &[2]);
    refused(&fixture, &["dt_layernorm", "no such tensor"]);
}

#[test]
fn all_numbers_are_read_as_f64_too() {
    let mut fixture = Fixture::new("mamba");
    for (dtype, _, bytes) in fixture.tensors.values_mut() {
        *dtype = StDtype::F64;
        let values = bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
        *bytes = values.flat_map(f64::to_le_bytes).collect();
    }
    opens(&fixture);
}

/// Steps that decay the state at once: exp of 89 is more than f32 holds.
#[test]
fn a_logarithm_of_a_that_overflows_is_read() {
    let mut fixture = Fixture::new("mamba");
    let name = "backbone.layers.0.mixer.A_log";
    let mut values = [0.5f32; 48];
    (values[0], values[1], values[2]) = (89.0, f32::INFINITY, f32::NEG_INFINITY);
    fixture.tensors.insert(name.into(), (StDtype::F32, vec![12, 4], f32_bytes(&values)));
    let dir = fixture.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let entry = checkpoint.tensor(TensorKind::Layer(0, LayerTensor::ALog)).unwrap();
    let mut found = [0.0; 48];
    checkpoint.read_all(entry, &mut found).unwrap();
    assert_eq!(found[..4], [89.0, f32::MAX, f32::MIN, 0.5]);
    values[0] = f32::NAN;
    fixture.tensors.insert(name.into(), (StDtype::F32, vec![12, 4], f32_bytes(&values)));
    let dir = fixture.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let entry = checkpoint.tensor(TensorKind::Layer(0, LayerTensor::ALog)).unwrap();
    let message = checkpoint.read_all(entry, &mut found).unwrap_err().to_string();
    assert!(message.contains("`backbone.layers.0.mixer.A_log` holds NaN at [0, 0]"), "{message}");
}

#[test]
fn an_index_may_name_folders_below_and_decides_between_copies() {
    let fixture = Fixture::new("mamba");
    let dir = fixture.write_sharded();
    let path = dir.path().join("model.safetensors.index.json");
    let first = "model-00001-of-00003.safetensors";
    let good: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let write = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut index = good.clone();
        change(index["weight_map"].as_object_mut().unwrap());
        fs::write(&path, index.to_string()).unwrap();
    };
    let moved = |map: &mut serde_json::Map<String, Value>, to: &str| {
        map.values_mut().filter(|file| **file == first).for_each(|file| *file = to.into());
    };
    write(&|map| moved(map, &format!("./{first}")));
    reads(dir.path());
    fs::create_dir(dir.path().join("shards")).unwrap();
    fs::rename(dir.path().join(first), dir.path().join("shards").join(first)).unwrap();
    for name in [format!("shards/{first}"), format!("./shards//./{first}")] {
        write(&|map| moved(map, &name));
        reads(dir.path());
    }
    // A stale copy of a tensor where the index does not look for it.
    let mut stale = Fixture { tensors: Default::default(), ..Fixture::new("mamba") };
    stale.put("backbone.norm_f.weight", &[8]);
    let name = "backbone.layers.0.mixer.D";
    stale.tensors.insert(name.into(), (StDtype::F32, vec![12], f32_bytes(&[7.0; 12])));
    for key in Fixture::new("mamba").tensors.keys().filter(|key| !key.starts_with("backbone.layers.")) {
        stale.tensors.insert(key.clone(), fixture.tensors[key].clone());
    }
    fs::write(dir.path().join("model-00003-of-00003.safetensors"), stale.safetensors(|_| true)).unwrap();
    reads(dir.path());
    // A tensor that the index does not list counts where it lies.
    write(&|map| {
        moved(map, &format!("shards/{first}"));
        map.remove("backbone.norm_f.weight").unwrap();
    });
    reads(dir.path());
    write(&|map| {
        moved(map, &format!("shards/{first}"));
        map.remove(name).unwrap();
    });
    refused_at(dir.path(), &[name, "there twice", "shards", "model-00003-of-00003.safetensors"]);
}
