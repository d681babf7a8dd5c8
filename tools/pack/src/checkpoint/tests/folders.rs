//! What is given in place of a checkpoint's folder.

use super::*;

#[track_caller]
fn says(path: &Path, code: u8, words: &[&str]) {
    let (message, found) = refusal(path);
    assert_eq!(found, code, "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

#[test]
fn a_name_on_the_hub_is_recognized() {
    let advice = if cfg!(feature = "hub") {
        "is hf:state-spaces/mamba-130m-hf"
    } else {
        "hf download state-spaces/mamba-130m-hf --local-dir mamba-130m-hf"
    };
    for name in [
        "state-spaces/mamba-130m-hf",
        "hf:state-spaces/mamba-130m-hf",
        "https://huggingface.co/state-spaces/mamba-130m-hf",
    ] {
        if cfg!(feature = "hub") && name.starts_with("hf:") {
            continue;
        }
        says(Path::new(name), 1, &[name, advice]);
    }
    // A folder that is here, and names that are none of the hub's.
    for name in ["src/none", "./a/b", "a/b/c", "/a/b", "none", "../a", "-a/b"] {
        let (message, _) = refusal(Path::new(name));
        assert!(message.contains("No such file") && !message.contains("download"), "{message}");
    }
}

#[test]
fn a_file_is_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    says(&file("model.gguf", b""), 3, &["truncated: 0 bytes"]);
    says(&file("model.gguf", b"GGML\x01\0\0\0"), 3, &["does not begin with `GGUF`"]);
    // Whatever its name is.
    says(&file("model.bin", b"GGUF\x03\0\0\0"), 3, &["truncated: 8 bytes"]);
    says(&file("other.bin", b"GGUB\x03\0\0\0"), 1, &["no config.json beside", "or a GGUF file"]);
    says(&file("model.elp", b""), 1, &["run it with elapid"]);
    says(&file("x.safetensors", b""), 1, &["no config.json beside this file"]);
    file("config.json", b"{}");
    let folder = format!("the folder that holds it, {}", dir.path().display());
    says(&file("model.txt", b""), 1, &[&folder]);
}

#[test]
fn a_file_of_safetensors_opens_beside_its_config() {
    let dir = Fixture::new("mamba").write();
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let (usual, other) = (dir.path().join("model.safetensors"), dir.path().join("best.safetensors"));
    Checkpoint::open(&usual).unwrap();
    fs::rename(usual, &other).unwrap();
    says(dir.path(), 3, &["no model.safetensors"]);
    let checkpoint = Checkpoint::open(&other).unwrap();
    assert_eq!(checkpoint.path_of(checkpoint.tensor(TensorKind::FinalNorm).unwrap()), other);
    assert_eq!(checkpoint.tokenizer_json().unwrap().as_deref(), Some(&b"{}"[..]));
}

#[test]
fn the_root_of_a_cache_names_its_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models--o--m");
    let snapshot = |revision: &str| {
        let path = root.join("snapshots").join(revision);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let empty = snapshot("0000");
    says(&root, 3, &["no config.json here", "give a Hugging Face folder"]);
    let (first, main) = (snapshot("1111"), snapshot("2222"));
    for path in [&first, &main] {
        fs::write(path.join("config.json"), "{}").unwrap();
    }
    let advice = |path: &Path| format!("it is in {}: give that folder", path.display());
    says(&root, 3, &[&advice(&first)]);
    says(&root.join("snapshots"), 3, &[&advice(&first)]);
    fs::create_dir(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), "2222\n").unwrap();
    says(&root, 3, &["no config.json here", &advice(&main)]);
    says(&empty, 3, &["give a Hugging Face folder"]);
}
