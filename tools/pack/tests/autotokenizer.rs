//! What the packer makes of a tokenizer.json and the files beside it, against transformers' AutoTokenizer.
//!
//! `data/autotokenizer.py` and `data/autotokenizer_llama.py` made the folders and the ids.

use std::collections::BTreeMap;

use elapid_core::tokenizer::{EncodeOptions, Encoder, Tokenizer};
use elapid_pack::tokenizer::{Beside, CompileError, Compiled, compile_beside};
use serde_json::{Map, Value, json};

/// What AutoTokenizer takes and the packer refuses: the word that the message must have, beside the file's name.
const REFUSED: &[(&str, &str)] = &[
    ("Qwen2Tokenizer: nothing else", "`tokenizer_class` is Qwen2Tokenizer"),
    ("NoSuchTokenizer: nothing else", "`tokenizer_class` is NoSuchTokenizer"),
    (": add_prefix_space", "`add_prefix_space`"),
    (": added_tokens_decoder with a gap", "`added_tokens_decoder.270` "),
    (": added_tokens.json out of step", "added_tokens.json: `<|im_start|>` "),
    (
        "FAST: added_tokens_decoder without what tokenizer.json adds",
        "`added_tokens_decoder` lacks \"<|im_start|>\"",
    ),
    ("normalized is changed", "`added_tokens_decoder.261` "),
    ("split_special_tokens", "`split_special_tokens`"),
    ("two tokens of their own names", "_token` is one of several"),
    ("auto_map", "`auto_map`"),
    ("a token declared twice", "`added_tokens_decoder.262` "),
    ("the id of another token", "`added_tokens_decoder.5` "),
    ("tokens of another spelling", "`extra_special_tokens` "),
];

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// RFC 7396.
fn patch(target: &mut Value, change: &Value) {
    for (key, value) in object(change) {
        match &value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(&key)),
            Value::Object(_) if target[&key].is_object() => patch(&mut target[&key], &value),
            _ => target[&key] = value,
        }
    }
}

fn compiled(base: &Value, case: &Value) -> Result<Compiled, CompileError> {
    let mut tokenizer = base.clone();
    patch(&mut tokenizer, &case["tokenizer"]);
    let beside = Beside {
        config: object(&case["tokenizer_config"]),
        special_tokens_map: object(&case["special_tokens_map"]),
        added_tokens: object(&case["added_tokens"]),
        model_class: case.get("model_class").cloned(),
        hugging_face: true,
    };
    compile_beside(&serde_json::to_vec(&tokenizer).unwrap(), &beside)
}

fn encode(tokenizer: &Tokenizer<'_>, text: &str) -> Vec<u32> {
    let (mut ids, mut scratch) = (Vec::new(), vec![0; 1 << 12]);
    let mut encoder = Encoder::new(text, EncodeOptions::default());
    encoder.run(tokenizer, &mut scratch, &mut |id| ids.push(id)).unwrap();
    ids
}

/// Compares all cases, and gives how many there are and the messages of those that the packer refuses.
fn compare(data: &Value) -> (usize, Vec<(&str, String)>) {
    let cases = data["cases"].as_array().unwrap();
    let (mut same, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let compiled = match compiled(&data["base"], case) {
            Ok(compiled) => compiled,
            Err(error) => {
                let message = error.to_string();
                assert!(matches!(error, CompileError::Beside { .. }), "{name}: {message}");
                if case.get("error").is_none() {
                    refused.push((name, message));
                }
                continue;
            }
        };
        let tokenizer = Tokenizer::parse(&compiled.table).unwrap();
        let texts = case["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
        let ids: Vec<Vec<u32>> = texts.map(|text| encode(&tokenizer, text)).collect();
        let special: Vec<u32> = tokenizer.special_tokens().collect();
        let named: BTreeMap<String, String> = compiled.named.into_iter().collect();
        let found = json!({ "ids": ids, "special": special, "named": named });
        let wanted =
            json!({ "ids": case["ids"], "special": case["special"], "named": object(&case["named"]) });
        if found == wanted {
            same += 1;
        } else {
            wrong.push(format!("{name}: {found} is not {wanted} {:?}", case.get("error")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{same} of {} as AutoTokenizer, {} refused by name", cases.len(), refused.len());
    (same, refused)
}

#[test]
fn folders_are_read_as_by_autotokenizer() {
    let data: Value = serde_json::from_str(include_str!("data/autotokenizer.json")).unwrap();
    let (same, refused) = compare(&data);
    for (name, message) in &refused {
        let listed = REFUSED.iter().any(|(which, says)| {
            let rebuilt = name.starts_with("GPT") || name.starts_with("no class");
            let which = which.strip_prefix("FAST").map_or(Some(*which), |which| rebuilt.then_some(which));
            which.is_some_and(|which| name.ends_with(which)) && message.contains(says)
        });
        assert!(listed, "{name}: {message}");
    }
    assert!(same > 3 * refused.len() && refused.len() >= REFUSED.len(), "{same} {}", refused.len());
}

#[test]
fn folders_of_sentencepiece_are_read_as_by_autotokenizer() {
    let data: Value = serde_json::from_str(include_str!("data/autotokenizer_llama.json")).unwrap();
    let (same, refused) = compare(&data);
    assert!(same > 70 && refused.is_empty(), "{same} {refused:?}");
}
