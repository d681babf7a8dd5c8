//! Files that are missing, damaged or of another kind.

use super::*;

#[test]
fn other_types_are_named() {
    let mut fixture = Fixture::new("mamba");
    let tensor = (StDtype::F64, vec![12], vec![0; 96]);
    fixture.tensors.insert("backbone.layers.1.mixer.D".into(), tensor);
    refused(&fixture, &["backbone.layers.1.mixer.D", "F64", "BF16"]);
    let tensor = (StDtype::F8_E4M3, vec![12], vec![0; 12]);
    fixture.tensors.insert("backbone.layers.1.mixer.D".into(), tensor);
    refused(&fixture, &["backbone.layers.1.mixer.D", "F8_E4M3"]);
}

#[test]
fn invalid_json_is_located() {
    let dir = Fixture::new("mamba").write();
    fs::write(dir.path().join("config.json"), "{\n  \"model_type\": mamba\n}").unwrap();
    refused_at(dir.path(), &["config.json", "invalid JSON", "line 2"]);
    fs::write(dir.path().join("config.json"), "[1]").unwrap();
    refused_at(dir.path(), &["config.json", "object"]);
    fs::write(dir.path().join("config.json"), "[".repeat(100_000)).unwrap();
    refused_at(dir.path(), &["config.json", "recursion"]);
    fs::write(dir.path().join("config.json"), " ".repeat(5 << 20)).unwrap();
    refused_at(dir.path(), &["config.json", "bytes, more than"]);
}

#[test]
fn files_that_are_not_there_are_named() {
    let (message, code) = refusal(Path::new("/no/such/folder"));
    assert_eq!(code, 1);
    assert!(message.contains("/no/such/folder"), "{message}");

    refused_at(tempfile::tempdir().unwrap().path(), &["no config.json"]);
    let dir = Fixture::new("mamba").write_config();
    refused_at(dir.path(), &["no model.safetensors"]);
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    refused_at(dir.path(), &["pytorch_model.bin", "from transformers import AutoModelForCausalLM"]);
}

#[test]
fn a_missing_shard_is_named() {
    let dir = Fixture::new("mamba").write_sharded();
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    refused_at(dir.path(), &["model-00002-of-00003.safetensors", "missing shard", "backbone.layers.1."]);
}

#[test]
fn an_index_that_is_wrong_is_refused() {
    let dir = Fixture::new("mamba").write_sharded();
    let path = dir.path().join("model.safetensors.index.json");
    let good = fs::read_to_string(&path).unwrap();
    let edits = [
        ("/etc/passwd", "plain file name"),
        ("../model-00001-of-00003.safetensors", "plain file name"),
        ("..", "plain file name"),
        ("model-00003-of-00003.safetensors", "is missing"),
    ];
    for (file, word) in edits {
        let mut index: Value = serde_json::from_str(&good).unwrap();
        index["weight_map"]["backbone.layers.0.mixer.D"] = json!(file);
        fs::write(&path, index.to_string()).unwrap();
        refused_at(dir.path(), &[word]);
    }
    fs::write(&path, "{}").unwrap();
    refused_at(dir.path(), &["index.json", "`weight_map`"]);
}

#[test]
fn damaged_safetensors_are_refused() {
    let fixture = Fixture::new("mamba");
    let dir = fixture.write_config();
    let good = fixture.safetensors(|_| true);
    let path = dir.path().join("model.safetensors");
    // Every kind of cut: the length, the header, the data.
    for keep in [0, 7, 8, 100, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..keep]).unwrap();
        refused_at(dir.path(), &["model.safetensors", "truncated", &format!("{keep} bytes")]);
    }
    let cases: [(Vec<u8>, &str); 6] = [
        ([&good[..], b"x"].concat(), "1 bytes follow"),
        ([&u64::MAX.to_le_bytes()[..], &good[8..]].concat(), "header claims 18446744073709551615"),
        ([&(17u64 << 20).to_le_bytes()[..], &good[8..]].concat(), "header claims"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
        ([&4u64.to_le_bytes()[..], b"{]}}"].concat(), "header: "),
        (
            [
                &76u64.to_le_bytes()[..],
                br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}  "#,
            ]
            .concat(),
            "header: ",
        ),
    ];
    for (bytes, word) in cases {
        fs::write(&path, bytes).unwrap();
        refused_at(dir.path(), &["model.safetensors", word]);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused_at(dir.path(), &["regular file"]);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_reported() {
    let dir = Fixture::new("mamba").write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let path = dir.path().join("model.safetensors");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let entry = checkpoint.tensor(TensorKind::FinalNorm).unwrap();
    let error = checkpoint.read_all(entry, &mut [0.0; 8]).unwrap_err();
    assert!(matches!(error, PackError::Truncated { found: 100, .. }), "{error}");
}
