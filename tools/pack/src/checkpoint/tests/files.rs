//! Files that are missing, damaged or of another kind.

use super::*;

#[test]
fn other_types_are_named() {
    let mut fixture = Fixture::new("mamba");
    let tensor = (StDtype::F8_E4M3, vec![12], vec![0; 12]);
    fixture.tensors.insert("backbone.layers.1.mixer.D".into(), tensor);
    refused(&fixture, &["backbone.layers.1.mixer.D", "F8_E4M3", "BF16"]);
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
    refused_at(dir.path(), &["config.json", "bytes, but this kind of file may have"]);
}

#[test]
fn files_that_are_not_there_are_named() {
    let (message, code) = refusal(Path::new("/no/such/folder"));
    assert_eq!(code, 1);
    assert!(message.contains("/no/such/folder"), "{message}");

    refused_at(tempfile::tempdir().unwrap().path(), &["no config.json"]);
    let dir = Fixture::new("mamba").write_config();
    refused_at(dir.path(), &["no model.safetensors"]);
    refused_at(dir.path(), &["or pytorch_model.bin here"]);
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    refused_at(dir.path(), &["pytorch_model.bin", "not a readable file of torch.save"]);
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
        ("/etc/passwd", "not in the folder"),
        ("../model-00001-of-00003.safetensors", "not in the folder"),
        ("..", "not in the folder"),
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

#[test]
fn f64_is_rounded() {
    let mut fixture = Fixture::new("mamba");
    let values: Vec<u8> = (0..12).flat_map(|i| (f64::from(i) / 3.0).to_le_bytes()).collect();
    let name = "backbone.layers.1.mixer.D";
    fixture.tensors.insert(name.into(), (StDtype::F64, vec![12], values.clone()));
    let read = |fixture: &Fixture| {
        let dir = fixture.write();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let entry = checkpoint.tensor(TensorKind::Layer(1, LayerTensor::D)).unwrap();
        let mut out = [0.0; 12];
        checkpoint.read_all(entry, &mut out).map(|()| out).map_err(|error| error.to_string())
    };
    assert_eq!(read(&fixture), Ok(std::array::from_fn(|i| (i as f64 / 3.0) as f32)));
    let beyond = [&values[..88], &1e300f64.to_le_bytes()].concat();
    fixture.tensors.insert(name.into(), (StDtype::F64, vec![12], beyond));
    assert!(read(&fixture).unwrap_err().contains("holds inf at [11, 0]"));
}

/// Shards of torch.save and their index.
#[test]
fn shards_of_torch_save_open() {
    let source = elapid_test_support::data::path("original/zip");
    let dir = tempfile::tempdir().unwrap();
    fs::copy(source.join("config.json"), dir.path().join("config.json")).unwrap();
    let shard = dir.path().join("pytorch_model-00001-of-00001.bin");
    fs::copy(source.join("pytorch_model.bin"), &shard).unwrap();
    let index = dir.path().join("pytorch_model.bin.index.json");
    let write = |tensor: &str, file: &str| {
        fs::write(&index, json!({ "weight_map": { tensor: file } }).to_string()).unwrap();
    };
    write("backbone.norm_f.weight", "pytorch_model-00001-of-00001.bin");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((checkpoint.config().vocab_size, checkpoint.config().tied), (59, true));
    // The file alone.
    Checkpoint::open(&shard).unwrap();
    write("x", "pytorch_model-00001-of-00001.bin");
    refused_at(dir.path(), &["`x` is missing (pytorch_model.bin.index.json says"]);
    write("x", "none.bin");
    refused_at(dir.path(), &["missing shard, named by pytorch_model.bin.index.json"]);
    write("x", "../none.bin");
    refused_at(dir.path(), &["not in the folder"]);
}
