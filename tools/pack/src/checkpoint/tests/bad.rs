//! What is no checkpoint, or none that can be packed: refused by what it is, with what to do instead.

use super::*;

#[test]
fn quantized_checkpoints_are_refused_by_their_method() {
    let advice = "give the original checkpoint";
    for (key, value, words) in [
        ("quantization_config", json!({ "quant_method": "gptq", "bits": 4 }), "gptq"),
        ("quantization_config", json!({ "quant_method": "awq" }), "awq"),
        (
            "quantization_config",
            json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }),
            "bitsandbytes",
        ),
        ("quantization_config", json!({ "quant_method": "compressed-tensors" }), "compressed-tensors"),
        ("quantization_config", json!({ "quant_method": "fp8" }), "fp8"),
        ("quantization_config", json!({}), "does not name"),
        ("compression_config", json!({ "quant_method": "compressed-tensors" }), "compressed-tensors"),
        ("quantization", json!({ "group_size": 64, "bits": 4, "mode": "affine" }), "affine"),
    ] {
        let mut fixture = Fixture::new("mamba");
        fixture.config[key] = value;
        refused(&fixture, &["config.json", &format!("`{key}`"), words, advice]);
    }
    // By their tensors, where no key tells.
    let layer = "backbone.layers.0.mixer.in_proj";
    for (name, dtype, words) in [
        ("qweight", StDtype::I32, "GPTQ or AWQ"),
        ("qzeros", StDtype::I32, "GPTQ or AWQ"),
        ("weight.absmax", StDtype::F32, "bitsandbytes"),
        ("weight.quant_state.bitsandbytes__nf4", StDtype::U8, "bitsandbytes"),
        ("SCB", StDtype::F32, "bitsandbytes"),
        ("weight_packed", StDtype::I32, "compressed-tensors"),
        ("weight_scale", StDtype::F32, "fp8"),
        ("weight_scale_inv", StDtype::F32, "fp8"),
        ("scales", StDtype::F16, "MLX"),
    ] {
        let mut fixture = Fixture::new("mamba");
        let bytes = vec![0; 4 * dtype.bitsize() / 8];
        fixture.tensors.insert(format!("{layer}.{name}"), (dtype, vec![4], bytes));
        refused(&fixture, &[&format!("`{layer}.{name}`"), words, advice]);
    }
    for dtype in [StDtype::F8_E4M3, StDtype::I8, StDtype::U8] {
        let mut fixture = Fixture::new("mamba");
        fixture.tensors.insert(format!("{layer}.weight"), (dtype, vec![24, 8], vec![0; 192]));
        refused(&fixture, &[&format!("`{layer}.weight`"), &dtype.to_string(), "convert the checkpoint"]);
    }
}

#[test]
fn adapters_are_refused_with_their_base_model() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"peft_type": "LORA", "base_model_name_or_path": "tiiuae/falcon-mamba-7b", "r": 8}"#;
    fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let advice = ["an adapter", "`tiiuae/falcon-mamba-7b`", "merge_and_unload"];
    refused_at(dir.path(), &[&["adapter_config.json"][..], &advice].concat());
    // With the base model's configuration beside it.
    fs::write(dir.path().join("config.json"), Fixture::new("mamba").config.to_string()).unwrap();
    fs::write(dir.path().join("adapter_model.safetensors"), "").unwrap();
    refused_at(dir.path(), &advice);
    fs::write(dir.path().join("config.json"), config).unwrap();
    refused_at(dir.path(), &advice);
    let mut fixture = Fixture::new("mamba");
    fixture.put("base_model.model.backbone.layers.0.mixer.in_proj.lora_A.weight", &[2, 8]);
    refused(&fixture, &["an adapter", "its base model", "merge_and_unload"]);
}

#[test]
fn other_architectures_are_refused_with_what_they_are() {
    for (name, words) in [
        ("mamba2", "Mamba-2"),
        ("jamba", "hybrid"),
        ("zamba", "hybrid"),
        ("zamba2", "hybrid"),
        ("bamba", "hybrid"),
        ("falcon_h1", "hybrid"),
        ("granitemoehybrid", "hybrid"),
        ("nemotron_h", "hybrid"),
        ("rwkv", "recurrent state"),
        ("rwkv7", "recurrent state"),
        ("llama", "is not supported"),
    ] {
        let fixture = Fixture::new(name);
        refused(
            &fixture,
            &["config.json", &format!("`{name}`"), words, "run this one with transformers or llama.cpp"],
        );
    }
}

#[test]
fn other_gguf_files_are_refused_with_what_they_are() {
    use elapid_test_support::gguf::{Value, kind, model};
    for (key, value, words) in [
        ("general.architecture", "mamba2", "Mamba-2"),
        ("general.architecture", "jamba", "hybrid"),
        ("general.architecture", "falcon-h1", "hybrid"),
        ("general.architecture", "granitehybrid", "hybrid"),
        ("general.architecture", "nemotron_h", "hybrid"),
        ("general.architecture", "rwkv7", "recurrent state"),
        ("general.architecture", "llama", "run this one with transformers or llama.cpp"),
        ("general.type", "adapter", "an adapter"),
        ("general.type", "mmproj", "mmproj"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut gguf = model(false, kind::F16);
        gguf.set(key, Value::Text(value.into()));
        let path = dir.path().join("m.gguf");
        fs::write(&path, gguf.to_bytes()).unwrap();
        refused_at(&path, &["m.gguf", words]);
    }
}

/// What a failed or lazy download leaves in place of each file.
#[test]
fn stand_ins_for_files_are_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    for name in [
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        for (bytes, words) in [
            (&pointer[..], "git lfs pull"),
            (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page"),
            (b"\n <HTML lang=\"en\">", "an HTML page"),
        ] {
            if name == "model.safetensors" && bytes.starts_with(b"\n") {
                continue;
            }
            let dir = Fixture::new("mamba").write();
            fs::write(dir.path().join(name), bytes).unwrap();
            let opened = Checkpoint::open(dir.path());
            let error = opened.and_then(|checkpoint| {
                checkpoint.tokenizer_json()?;
                checkpoint.beside_tokenizer()
            });
            let message = error.expect_err("must be refused").to_string();
            assert!(message.contains(name) && message.contains(words), "{name}: {message}");
        }
    }
    let dir = Fixture::new("mamba").write_config();
    for name in ["model.gguf", "model.bin", "model.safetensors"] {
        for (bytes, words) in
            [(&pointer[..], "git lfs pull"), (b"<!DOCTYPE html><html></html>", "an HTML page")]
        {
            fs::write(dir.path().join(name), bytes).unwrap();
            let message = Checkpoint::open(&dir.path().join(name)).unwrap_err().to_string();
            assert!(message.contains(words), "{name}: {message}");
        }
    }
    fs::write(dir.path().join("model.safetensors"), b"PK\x03\x04zip and more").unwrap();
    refused_at(dir.path(), &["model.safetensors", "a zip file"]);
}

#[test]
fn a_folder_with_other_weights_names_them() {
    let dir = Fixture::new("mamba").write_config();
    fs::write(dir.path().join("training_args.bin"), "").unwrap();
    refused_at(dir.path(), &["no model.safetensors or pytorch_model.bin here", "give a Hugging Face folder"]);
    fs::write(dir.path().join("flax_model.msgpack"), "").unwrap();
    refused_at(dir.path(), &["flax_model.msgpack is of another format", "save_pretrained"]);
    fs::write(dir.path().join("best.safetensors"), "").unwrap();
    refused_at(dir.path(), &["give the file itself", "best.safetensors"]);
    fs::write(dir.path().join("last.pth"), "").unwrap();
    refused_at(dir.path(), &["give one of its files: best.safetensors, last.pth"]);
    fs::write(dir.path().join("a.zip"), "").unwrap();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let message = Checkpoint::open(&dir.path().join("a.zip")).unwrap_err().to_string();
    assert!(message.contains("an archive: unpack it"), "{message}");
}

/// A key that is there twice with two values: which one counts differs between readers.
#[test]
fn keys_that_are_there_twice_are_refused() {
    let dir = Fixture::new("mamba").write();
    let path = dir.path().join("config.json");
    let good = fs::read_to_string(&path).unwrap();
    let twice = |text: &str| good.replacen('{', &format!("{{\n{text},"), 1);
    fs::write(&path, twice("\"hidden_size\": 16")).unwrap();
    refused_at(dir.path(), &["config.json", "\"hidden_size\" is there twice", "line "]);
    fs::write(&path, twice("\"hidden_size\": 8")).unwrap();
    Checkpoint::open(dir.path()).unwrap();
    fs::write(&path, twice("\"x\": {\"y\": [{\"z\": 1, \"z\": 2}]}")).unwrap();
    refused_at(dir.path(), &["\"z\" is there twice"]);
}

/// A header of safetensors with these tensors, and so many bytes of data.
fn header(tensors: &str, data: usize) -> Vec<u8> {
    [&(tensors.len() as u64).to_le_bytes()[..], tensors.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn tensors_that_overlap_or_leave_the_file_are_refused() {
    let dir = Fixture::new("mamba").write_config();
    let tensor = |name: &str, shape: &str, from: &str, to: &str| {
        format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{from},{to}]}}"#)
    };
    for (tensors, data, words) in [
        (vec![tensor("a", "2", "0", "8"), tensor("b", "2", "4", "12")], 12, "header: "),
        (vec![tensor("a", "2", "0", "8"), tensor("b", "2", "0", "8")], 8, "header: "),
        (vec![tensor("a", "2", "0", "8"), tensor("b", "1", "12", "16")], 16, "header: "),
        (vec![tensor("a", "2", "8", "0")], 8, "header: "),
        (vec![tensor("a", "3", "0", "8")], 8, "header: "),
        (vec![tensor("a", "2", "0", "8")], 4, "truncated"),
        (vec![tensor("a", "4611686018427387904", "0", "8")], 8, "header: "),
        (vec![tensor("a", "2", "0", "18446744073709551616")], 8, "header: "),
        (vec![tensor("a", "2", "0", "8"), tensor("a", "2", "0", "8")], 8, "\"a\" is there twice"),
        (vec![tensor("a", "-1", "0", "8")], 8, "header: "),
        (vec![r#""a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}"#.into()], 8, "header: "),
    ] {
        let bytes = header(&format!("{{{}}}", tensors.join(",")), data);
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        refused_at(dir.path(), &["model.safetensors", words]);
    }
}

/// Links in circles end with an error, as a file that can't be opened.
#[test]
fn cycles_of_links_are_refused() {
    use std::os::unix::fs::symlink;
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let dir = Fixture::new("mamba").write();
        let path = dir.path().join(name);
        let _ = fs::remove_file(&path);
        symlink(dir.path().join("other"), &path).unwrap();
        symlink(&path, dir.path().join("other")).unwrap();
        let read =
            Checkpoint::open(dir.path()).and_then(|checkpoint| checkpoint.tokenizer_json().map(|_| ()));
        let message = read.expect_err("must be refused").to_string();
        assert!(message.contains(name), "{message}");
    }
    // A folder that contains itself.
    let dir = tempfile::tempdir().unwrap();
    symlink(dir.path(), dir.path().join("snapshots")).unwrap();
    refused_at(dir.path(), &["no config.json here"]);
}

/// Files cut at any length: a message of one line that names the file, never more.
#[test]
fn files_cut_anywhere_are_refused() {
    let dir = Fixture::new("mamba").write_sharded();
    for name in ["config.json", "model.safetensors.index.json", "model-00003-of-00003.safetensors"] {
        let path = dir.path().join(name);
        let good = fs::read(&path).unwrap();
        for keep in 0..good.len() {
            fs::write(&path, &good[..keep]).unwrap();
            let (message, code) = refusal(dir.path());
            assert!(code == 3 && message.contains(name), "{keep}: {message}");
        }
        fs::write(&path, good).unwrap();
    }
    Checkpoint::open(dir.path()).unwrap();
}
