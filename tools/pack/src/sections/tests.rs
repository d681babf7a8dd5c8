//! Folders whose files disagree about tokens, or lack a tokenizer.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::fixture::Fixture;

/// The tokenizer.json of the tests against AutoTokenizer: 261 tokens.
fn tokenizer_json() -> Value {
    let data: Value = serde_json::from_str(include_str!("../../tests/data/autotokenizer.json")).unwrap();
    data["base"].clone()
}

fn write(dir: &Path, name: &str, value: &Value) {
    fs::write(dir.join(name), value.to_string()).unwrap();
}

/// A folder with a tokenizer, whose model has this many rows.
fn folder(rows: usize, tokenizer_config: &Value) -> TempDir {
    let dir = Fixture::with_embedding(rows, 8, Dtype::F32, vec![0; rows * 8 * 4]).write();
    write(dir.path(), "tokenizer.json", &tokenizer_json());
    write(dir.path(), "tokenizer_config.json", tokenizer_config);
    dir
}

fn read(dir: &Path) -> Result<(DataSections, Vec<String>), PackError> {
    let Sections { data, mut notes, without_tokenizer } =
        data_sections(&Checkpoint::open(dir)?, &mut Faults::First)?;
    notes.extend(without_tokenizer);
    Ok((data, notes))
}

/// The end tokens and the notes.
fn ends(dir: &Path) -> (Vec<u32>, Vec<String>) {
    let (data, notes) = read(dir).unwrap();
    let generation = Generation::parse(&data.generation, 1 << 20).unwrap();
    (generation.eos.iter().collect(), notes)
}

#[test]
fn an_end_token_that_only_the_tokenizer_names_is_used_and_told() {
    let declared = |named: Value| {
        json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": named,
            "added_tokens_decoder": { "261": { "content": "<|im_end|>", "special": true } } })
    };
    let dir = folder(270, &declared(json!("<|im_end|>")));
    write(dir.path(), "generation_config.json", &json!({ "eos_token_id": [0, 5] }));
    let (eos, notes) = ends(dir.path());
    assert_eq!(eos, [0, 5, 261]);
    assert_eq!(notes.len(), 1);
    for part in ["tokenizer_config.json", "\"<|im_end|>\" (id 261)", "0, 5"] {
        assert!(notes[0].contains(part), "{notes:?}");
    }
    // Where no file names another, or the same, there is nothing to tell.
    for (others, expected) in [(json!(-1), vec![261]), (json!([261, 3]), vec![261, 3])] {
        write(dir.path(), "generation_config.json", &json!({ "eos_token_id": others }));
        assert_eq!(ends(dir.path()), (expected, vec![]));
    }
    // Null is no end token, and the class's own is not the model's.
    write(dir.path(), "generation_config.json", &json!({ "eos_token_id": 7 }));
    write(dir.path(), "tokenizer_config.json", &declared(Value::Null));
    assert_eq!(ends(dir.path()), (vec![7], vec![]));
}

#[test]
fn an_end_token_of_special_tokens_map_is_used() {
    let dir = folder(270, &json!({ "tokenizer_class": "PreTrainedTokenizerFast" }));
    write(dir.path(), "special_tokens_map.json", &json!({ "eos_token": "<|im_end|>" }));
    let (eos, notes) = ends(dir.path());
    assert_eq!(eos, [1, 261]);
    assert!(notes[0].starts_with("special_tokens_map.json"), "{notes:?}");
}

#[test]
fn a_full_list_of_end_tokens_stays() {
    let dir = folder(270, &json!({ "tokenizer_class": "TokenizersBackend", "eos_token": "<|im_end|>" }));
    let full: Vec<u32> = (0..64).collect();
    write(dir.path(), "generation_config.json", &json!({ "eos_token_id": full }));
    let (eos, notes) = ends(dir.path());
    assert_eq!(eos, full);
    assert!(notes[0].contains("is left out"), "{notes:?}");
}

#[test]
fn tokens_beyond_the_embedding_are_told() {
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]",
        "extra_special_tokens": ["<|a|>"] });
    for (rows, says) in [
        (261, Some("ids 261 (\"[PAD]\") to 262 (\"<|a|>\") beyond the 261 rows")),
        (262, Some("id 262 (\"<|a|>\") beyond the 262 rows")),
        (263, None),
    ] {
        let (_, notes) = read(folder(rows, &config).path()).unwrap();
        assert_eq!(notes.len(), usize::from(says.is_some()), "{notes:?}");
        assert!(says.is_none_or(|says| notes[0].contains(says)), "{notes:?}");
    }
    // An end token without a row is none.
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>" });
    let (eos, notes) = ends(folder(261, &config).path());
    assert_eq!((eos, notes.len()), (vec![1], 1));
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    let refused = |dir: &Path| {
        let error = read(dir).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        assert!(message.contains("tokenizer.json: ") && message.contains("260 rows"), "{message}");
    };
    refused(folder(260, &config).path());
    // Only an added token has no row, but every text begins with it.
    let dir = folder(260, &config);
    let mut tokenizer = tokenizer_json();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    vocab.remove("lo");
    tokenizer["model"]["merges"].as_array_mut().unwrap().pop();
    tokenizer["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "id": 260, "content": "<s>", "special": true }));
    write(dir.path(), "tokenizer.json", &tokenizer);
    assert_eq!(read(dir.path()).unwrap().1.len(), 1);
    tokenizer["post_processor"] = json!({ "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<s>" } }, { "Sequence": { "id": "A" } }],
        "special_tokens": { "<s>": { "ids": [260] } } });
    write(dir.path(), "tokenizer.json", &tokenizer);
    refused(dir.path());
}

#[test]
fn a_file_beside_the_tokenizer_is_named_with_its_folder() {
    let dir = folder(270, &json!({ "tokenizer_class": "GPTNeoXTokenizerFast", "add_prefix_space": true }));
    let error = read(dir.path()).unwrap_err();
    let expected =
        format!("{}: `add_prefix_space` is true", dir.path().join("tokenizer_config.json").display());
    assert!(error.to_string().starts_with(&expected) && error.exit_code() == 3, "{error}");
}

#[test]
fn what_a_class_leaves_out_is_told() {
    let (_, notes) = read(folder(270, &json!({})).path()).unwrap();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("normalizer") && notes[0].contains("GPTNeoXTokenizer"), "{notes:?}");
    let (_, notes) = read(folder(270, &json!({ "tokenizer_class": "GPT2Tokenizer" })).path()).unwrap();
    assert_eq!(notes, [""; 0]);
}

#[test]
fn a_folder_without_a_tokenizer_says_so() {
    let dir = Fixture::new("mamba").write();
    let note = || {
        let (data, notes) = read(dir.path()).unwrap();
        assert!(data.tokenizer.is_empty());
        assert_eq!(notes.len(), 1);
        notes[0].clone()
    };
    assert!(note().starts_with("no tokenizer.json here: "));
    for file in ["tokenizer.model", "vocab.json", "merges.txt"] {
        fs::write(dir.path().join(file), "").unwrap();
        if file != "merges.txt" {
            assert!(note().contains(file), "{}", note());
        }
    }
    assert!(note().contains("vocab.json and merges.txt is not read"), "{}", note());
}

#[test]
fn links_that_lead_nowhere_are_refused() {
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
        "config.json",
        "model.safetensors",
        "vocab.json",
    ] {
        let dir = folder(270, &json!({ "tokenizer_class": "PreTrainedTokenizerFast" }));
        let path = dir.path().join(name);
        if name == "vocab.json" {
            fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        }
        let _ = fs::remove_file(&path);
        symlink("../../blobs/gone", &path).unwrap();
        let error = read(dir.path()).unwrap_err();
        let expected = format!("{}: a link to ../../blobs/gone, which is not there", path.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert_eq!(error.exit_code(), 3);
    }
}

#[test]
fn lfs_pointers_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "config.json",
        "model.safetensors",
    ] {
        let dir = folder(270, &json!({ "tokenizer_class": "PreTrainedTokenizerFast" }));
        fs::write(dir.path().join(name), pointer).unwrap();
        let message = read(dir.path()).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("`git lfs pull`"), "{message}");
    }
}

#[test]
fn templates_see_the_tokens_that_any_file_names() {
    let dir = folder(270, &json!({ "tokenizer_class": "PreTrainedTokenizerFast" }));
    write(dir.path(), "special_tokens_map.json", &json!({ "bos_token": { "content": "<|begin|>" } }));
    let template =
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ";
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let (data, _) = read(dir.path()).unwrap();
    assert_eq!(RoleTable::parse(&data.role_table).unwrap().start, "<|begin|>");
}

/// Rows of -inf in the head: their tokens are known in a text, and never drawn. Ids without a token need no mark.
#[test]
fn rows_of_minus_infinity_are_never_drawn() {
    use elapid_core::format::{Header, Section};

    let rows = 270;
    let head = |never: &[usize]| {
        let mut values = vec![0.25f32; rows * 8];
        never.iter().for_each(|row| values[8 * row..][..8].fill(f32::NEG_INFINITY));
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()
    };
    let pack = |never: &[usize], tokenizer: bool| {
        let mut fixture = Fixture::with_embedding(rows, 8, Dtype::F32, vec![0; rows * 8 * 4]);
        fixture.config["tie_word_embeddings"] = json!(false);
        fixture.tensors.insert("lm_head.weight".into(), (Dtype::F32, vec![rows, 8], head(never)));
        let dir = fixture.write();
        if tokenizer {
            write(dir.path(), "tokenizer.json", &tokenizer_json());
            let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
            write(dir.path(), "tokenizer_config.json", &config);
        }
        let (options, target) = (crate::Options::default(), dir.path().join("m.elp"));
        let plan = crate::Plan::checkpoint(dir.path(), &options).unwrap();
        assert_eq!(plan.never_drawn(), [0; 0]);
        plan.write(&target, &options, &()).unwrap();
        (plan.never_drawn(), fs::read(target).unwrap())
    };
    let (plain, never) = (pack(&[], true), pack(&[0, 7, 260, 265], true));
    assert_eq!((&plain.0[..], &never.0[..]), (&[][..], &[0, 7, 260, 265][..]));
    let tokenizer = |file: &[u8]| {
        let header = Header::parse(file).unwrap();
        let place = header.layout().section(Section::Tokenizer);
        file[place.offset as usize..][..place.length as usize].to_vec()
    };
    let (plain, never) = (tokenizer(&plain.1), tokenizer(&never.1));
    let (plain, never) = (Tokenizer::parse(&plain).unwrap(), Tokenizer::parse(&never).unwrap());
    let masked = |tokenizer: &Tokenizer<'_>| {
        let mut logits = vec![0.0f32; rows];
        tokenizer.mask(&mut logits);
        (0..rows).filter(|id| logits[*id] == f32::NEG_INFINITY).collect::<Vec<_>>()
    };
    let without_token = masked(&plain);
    assert!(without_token.contains(&265) && !without_token.contains(&0));
    let mut expected = [&without_token[..], &[0, 7, 260]].concat();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(masked(&never), expected);
    for id in 0..261 {
        assert_eq!(never.token_bytes(id), plain.token_bytes(id));
        assert!(!never.is_byte(id));
    }
    // Where there is no tokenizer nothing can be marked.
    assert_eq!(pack(&[3], false).0, [3]);
}

/// In the head alone, and no other value that is not a number.
#[test]
fn other_infinities_are_refused() {
    for (name, value) in [
        ("lm_head.weight", f32::NAN),
        ("lm_head.weight", f32::INFINITY),
        ("backbone.embeddings.weight", f32::NEG_INFINITY),
        ("backbone.layers.0.mixer.in_proj.weight", f32::NEG_INFINITY),
    ] {
        let mut fixture = Fixture::new("mamba");
        fixture.config["tie_word_embeddings"] = json!(false);
        fixture.put("lm_head.weight", &[10, 8]);
        fixture.tensors.get_mut(name).unwrap().2[32..36].copy_from_slice(&value.to_le_bytes());
        let dir = fixture.write();
        let options = crate::Options::default();
        let plan = crate::Plan::checkpoint(dir.path(), &options).unwrap();
        let error = plan.write(&dir.path().join("m.elp"), &options, &()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("[1, 0]"), "{error}");
    }
}
