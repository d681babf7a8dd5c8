//! GGUF files made here: good ones, and each way in which they can be wrong.

use std::fs;
use std::path::{Path, PathBuf};

use elapid_core::format::Quant;
use elapid_core::tokenizer::Tokenizer;
use elapid_test_support::gguf::{Gguf, Random, Value, kind, model, values, with_tokens};
use serde_json::Value as Json;

use crate::checkpoint::{Arch, Checkpoint, LayerTensor, TensorKind};

fn write(gguf: &Gguf, folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    fs::write(&path, gguf.to_bytes()).unwrap();
    path
}

/// Opens a file that must fail, and returns the message.
#[track_caller]
fn refusal(path: &Path) -> String {
    let error = Checkpoint::open(path).expect_err("must be refused");
    let message = error.to_string();
    assert!(!message.contains('\n'), "more than one line: {message}");
    assert_eq!(error.exit_code(), 3, "{message}");
    message
}

#[track_caller]
fn refused(gguf: &Gguf, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let message = refusal(&write(gguf, folder.path()));
    for word in words.iter().chain(&["model.gguf"]) {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

#[test]
fn both_architectures_and_versions_open() {
    let folder = tempfile::tempdir().unwrap();
    for version in [2, 3] {
        for falcon in [false, true] {
            let mut gguf = model(falcon, kind::F16);
            gguf.version = version;
            let path = write(&gguf, folder.path());
            // By its name, and as the only one in a folder.
            for path in [&*path, folder.path()] {
                let checkpoint = Checkpoint::open(path).unwrap();
                let config = checkpoint.config();
                assert_eq!(config.arch, if falcon { Arch::FalconMamba } else { Arch::Mamba });
                assert_eq!((config.d_model, config.d_inner, config.n_layer), (64, 96, 2));
                assert_eq!((config.d_state, config.d_conv, config.dt_rank, config.vocab_size), (3, 4, 5, 20));
                assert_eq!((config.norm_eps, config.mixer_rms_eps), (1e-5, falcon.then_some(1e-6)));
                assert!(config.tied && config.use_conv_bias && !config.use_bias && checkpoint.holds_a());
                let conv = checkpoint.tensor(TensorKind::Layer(1, LayerTensor::Conv)).unwrap();
                assert_eq!((conv.rows, conv.columns), (96, 4));
            }
        }
    }
}

#[test]
fn the_type_that_keeps_the_weights_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let kept = |gguf: &Gguf| Checkpoint::open(&write(gguf, folder.path())).unwrap().kept_as();
    assert_eq!(kept(&model(false, kind::F16)), None);
    assert_eq!(kept(&model(false, kind::Q8_0)), Some((Quant::Q8, None)));
    let mut gguf = model(false, kind::Q4_0);
    assert_eq!(kept(&gguf), Some((Quant::Q4, None)));
    // As the peer's quantizer leaves it: a finer head.
    let bytes = values(&mut Random(1), 20 * 64, kind::Q8_0);
    gguf.put("output.weight", &[20, 64], kind::Q8_0, bytes);
    assert_eq!(kept(&gguf), Some((Quant::Q4, Some(Quant::Q8))));
}

/// The model in two files: the first with all but the last tensor.
fn split(folder: &Path) -> [(PathBuf, Gguf); 2] {
    let mut first = model(false, kind::F16);
    let last = first.tensors.split_off(first.tensors.len() - 1);
    let mut second = Gguf { tensors: last, ..Gguf::default() };
    let total = (first.tensors.len() + 1) as i32;
    for (gguf, number) in [(&mut first, 0), (&mut second, 1)] {
        gguf.set("split.no", Value::U32(number));
        gguf.set("split.count", Value::U32(2));
        gguf.set("split.tensors.count", Value::I32(total));
    }
    let parts = [("m-00001-of-00002.gguf", first), ("m-00002-of-00002.gguf", second)];
    parts.map(|(name, gguf)| {
        fs::write(folder.join(name), gguf.to_bytes()).unwrap();
        (folder.join(name), gguf)
    })
}

#[test]
fn a_split_model_opens_by_any_of_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let [(first, mut gguf), (second, _)] = split(folder.path());
    for path in [folder.path(), &first, &second] {
        let checkpoint = Checkpoint::open(path).unwrap();
        let norm = checkpoint.tensor(TensorKind::FinalNorm).unwrap();
        assert_eq!(checkpoint.path_of(norm), second);
    }
    gguf.set("split.tensors.count", Value::I32(7));
    fs::write(&first, gguf.to_bytes()).unwrap();
    assert!(refusal(&first).contains("`split.tensors.count` is 7, but the 2 files have 22 tensors"));
    gguf.set("split.no", Value::U32(1));
    fs::write(&first, gguf.to_bytes()).unwrap();
    assert!(refusal(&first).contains("`split.no` is 1 where the file's name says 0"));
    let renamed = folder.path().join("x.gguf");
    fs::rename(&first, &renamed).unwrap();
    assert!(refusal(&renamed).contains("give it the name that it had"));
    let message = refusal(&second);
    assert!(message.contains("m-00001-of-00002.gguf: not here"), "{message}");
    gguf.set("split.count", Value::U32(100_000));
    fs::write(&renamed, gguf.to_bytes()).unwrap();
    assert!(refusal(&renamed).contains("at most 512 files"));
}

#[test]
fn several_models_in_a_folder_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = model(false, kind::F16).to_bytes();
    for name in ["a.gguf", "b.GGUF"] {
        fs::write(folder.path().join(name), &bytes).unwrap();
    }
    assert!(refusal(folder.path()).contains("give one of them: a.gguf, b.GGUF"));
}

#[test]
fn what_is_wrong_is_named() {
    let with = |key: &str, value: Value| {
        let mut gguf = model(false, kind::F16);
        gguf.set(key, value);
        gguf
    };
    for (key, value, words) in [
        ("general.architecture", Value::Text("mamba2".into()), "architecture `mamba2`"),
        ("general.architecture", Value::U32(3), "`general.architecture` must be a text"),
        ("general.type", Value::Text("adapter".into()), "an adapter"),
        ("general.alignment", Value::U32(48), "`general.alignment` is 48"),
        ("mamba.block_count", Value::U32(3), "`backbone.layers.2.norm.weight` is missing"),
        ("mamba.block_count", Value::U32(1), "the file's metadata says that there are 1 layers"),
        ("mamba.block_count", Value::U32(5000), "`mamba.block_count` is 5000"),
        ("mamba.ssm.state_size", Value::U32(4), "expected [13, 96] = [time_step_rank + 2 * state_size"),
        ("mamba.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "is NaN"),
        ("tokenizer.ggml.model", Value::Text("bert".into()), "`tokenizer.ggml.model` is bert"),
        ("tokenizer.ggml.model", Value::Text("gpt2".into()), "`tokenizer.ggml.tokens` is missing"),
    ] {
        refused(&with(key, value), &[words]);
    }
    let mut gguf = model(false, kind::F16);
    gguf.version = 1;
    refused(&gguf, &["version 1; versions 2 and 3 are read"]);
    gguf.version = 3u32.swap_bytes();
    refused(&gguf, &["big-endian"]);
    gguf.version = 3;
    gguf.tensors[3].kind = 39;
    refused(&gguf, &["`blk.0.ssm_conv1d.weight` has type MXFP4"]);
    gguf.tensors[3].kind = kind::Q8_0;
    refused(&gguf, &["rows of 4, not of whole blocks of 32"]);
    gguf.tensors[3] = gguf.tensors[4].clone();
    refused(&gguf, &["`blk.0.ssm_conv1d.bias` is there twice"]);
    let mut gguf = model(false, kind::F16);
    gguf.metadata.push(gguf.metadata[0].clone());
    refused(&gguf, &["key `general.architecture` is there twice"]);
    let mut gguf = model(false, kind::F16);
    gguf.tensors[1].kind = kind::Q8_0;
    refused(&gguf, &["Q8_0, which only matrices may have"]);
}

/// Counts, lengths and places that no file can have.
#[test]
fn claims_beyond_the_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = model(false, kind::F16).to_bytes();
    let path = folder.path().join("model.gguf");
    let edit = |at: usize, bytes: &[u8], words: &str| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, file).unwrap();
        let message = refusal(&path);
        assert!(message.contains(words), "{words:?} is not in: {message}");
    };
    let huge = (1u64 << 60).to_le_bytes();
    edit(8, &huge, "claims 1152921504606846976 tensors");
    edit(16, &huge, "claims 1152921504606846976 metadata keys");
    edit(24, &huge, "a key of 1152921504606846976 bytes");
    let find = |text: &str| good.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
    edit(find("mamba.context_length") + 20, &99u32.to_le_bytes(), "`mamba.context_length` is of type 99");
    edit(find("made by a test") - 8, &huge, "`general.name` of 1152921504606846976 bytes");
    edit(find("made by a test"), b"\xff", "`general.name` is not UTF-8");
    let info = find("blk.0.attn_norm.weight") + 22;
    edit(info, &5u32.to_le_bytes(), "5 dimensions");
    edit(info + 4, &huge, "truncated");
    edit(info + 4, &u64::MAX.to_le_bytes(), "larger than any file");
    edit(info + 4 + 8 + 4, &u64::MAX.to_le_bytes(), "larger than any file");
    edit(info + 4 + 8 + 4, &1u64.to_le_bytes(), "no multiple of 32");
    edit(info + 4 + 8 + 4, &0u64.to_le_bytes(), "`blk.0.attn_norm.weight` and `token_embd.weight` overlap");
    edit(info + 4 + 8 + 4, &(1u64 << 40).to_le_bytes(), "truncated");

    let mut gguf = model(false, kind::F16);
    gguf.set("tokenizer.ggml.tokens", Value::Texts(vec![String::new(); 3]));
    let file = gguf.to_bytes();
    let at = file.windows(21).position(|bytes| bytes == b"tokenizer.ggml.tokens").unwrap() + 21 + 8;
    for (count, words) in [(1u64 << 60, "truncated"), (u64::MAX, "truncated"), (4, "")] {
        let mut file = file.clone();
        file[at..at + 8].copy_from_slice(&count.to_le_bytes());
        fs::write(&path, file).unwrap();
        let message = refusal(&path);
        assert!(message.contains(words), "{message}");
    }
}

/// The tokenizer.json that stands for a file's tokenizer.
fn tokenizer_json(gguf: &Gguf) -> Json {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&write(gguf, folder.path())).unwrap();
    serde_json::from_slice(&checkpoint.tokenizer_json().unwrap().unwrap()).unwrap()
}

#[test]
fn the_tokenizer_comes_from_the_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let mut gguf = with_tokens(model(false, kind::F16), "gpt2");
    let path = write(&gguf, folder.path());
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.generation().eos, [257]);
    assert_eq!((checkpoint.generation().bos, checkpoint.generation().pad), (None, None));
    assert!(
        checkpoint.notes()[0].contains("bos_token_id` is 1048576, beyond the 260 rows"),
        "{:?}",
        checkpoint.notes()
    );
    let template = checkpoint.chat_template(&[("eos_token".into(), "<|end|>".into())]).unwrap().unwrap();
    assert!(template.jinja.contains("messages[0]"));
    let json = checkpoint.tokenizer_json().unwrap().unwrap();
    let compiled = crate::tokenizer::compile_beside(&json, &checkpoint.beside_tokenizer().unwrap()).unwrap();
    let tokenizer = Tokenizer::parse(&compiled.table).unwrap();
    assert_eq!(tokenizer.id_of(b"ab"), Some(256));
    assert_eq!(tokenizer.id_of(b"<|end|>"), Some(257));
    assert_eq!(tokenizer.id_of(b"[PAD]"), None);
    assert_eq!(compiled.named, [("eos_token".to_owned(), "<|end|>".to_owned())]);
    assert!(compiled.around.is_empty());

    gguf.set("tokenizer.ggml.add_eos_token", Value::Bool(true));
    let json = tokenizer_json(&gguf);
    assert_eq!(json["post_processor"]["single"][1]["SpecialToken"]["id"], "<|end|>");
    gguf.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    refused(&gguf, &["`tokenizer.ggml.add_bos_token` is true, but there is no bos token"]);
}

#[test]
fn the_name_of_the_splitting_is_known_or_refused() {
    let mut gguf = with_tokens(model(false, kind::F16), "gpt2");
    for (pre, path, value) in [
        ("olmo", "/normalizer/type", "NFC"),
        ("gpt-2", "/pre_tokenizer/type", "ByteLevel"),
        ("falcon", "/pre_tokenizer/pretokenizers/0/type", "Punctuation"),
        ("starcoder", "/pre_tokenizer/pretokenizers/0/type", "Digits"),
        ("llama-bpe", "/pre_tokenizer/pretokenizers/1/type", "ByteLevel"),
        ("qwen2", "/pre_tokenizer/pretokenizers/0/type", "Split"),
    ] {
        gguf.set("tokenizer.ggml.pre", Value::Text(pre.into()));
        assert_eq!(tokenizer_json(&gguf).pointer(path).unwrap(), value, "{pre}");
    }
    gguf.set("tokenizer.ggml.pre", Value::Text("tekken".into()));
    refused(&gguf, &["`tokenizer.ggml.pre` is tekken", "pack from the original checkpoint"]);
    gguf.metadata.retain(|(key, _)| key != "tokenizer.ggml.pre");
    assert_eq!(tokenizer_json(&gguf)["normalizer"]["type"], "NFC");
    gguf.set("mamba.ssm.dt_b_c_rms", Value::Bool(true));
    assert_eq!(tokenizer_json(&gguf)["pre_tokenizer"]["type"], "Sequence");
}

/// Scores become an order of merges: of all ways to put a token together, the token with the highest score first.
#[test]
fn scores_become_merges() {
    let mut gguf = with_tokens(model(false, kind::F16), "llama");
    let texts = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc", "abc"].map(String::from);
    gguf.set("tokenizer.ggml.tokens", Value::Texts(texts.to_vec()));
    gguf.set("tokenizer.ggml.token_type", Value::I32s(vec![2, 3, 3, 1, 1, 1, 1, 1, 1]));
    gguf.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    gguf.set("tokenizer.ggml.eos_token_id", Value::U32(2));
    refused(&gguf, &["`tokenizer.ggml.scores` is missing"]);
    let scores = [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0];
    gguf.set("tokenizer.ggml.scores", Value::F32s(scores.to_vec()));
    let json = tokenizer_json(&gguf);
    let merges = serde_json::json!([["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]);
    assert_eq!(json["model"]["merges"], merges);
    assert_eq!(json["model"]["unk_token"], "<unk>");
    assert_eq!(json["model"]["byte_fallback"], true);
    assert_eq!(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    gguf.set("tokenizer.ggml.scores", Value::F32s(vec![0.0]));
    refused(&gguf, &["1 elements for 9 tokens"]);
}
