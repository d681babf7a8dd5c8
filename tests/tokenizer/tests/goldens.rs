//! Vocabularies of GGUF files and the ids that others wrote down for their texts: llama.cpp's `ggml-vocab-*.gguf` with `.inp`
//! and `.out`.
//!
//! They are large and so not part of the project: `ELAPID_GOLDENS` names their folder. Without it, `shared/data/tokenizer`
//! beside the project is used, and the test says that it is skipped where that is not there.

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use elapid_core::tokenizer::{EncodeOptions, Tokenizer};
use elapid_pack::tokenizer::compile;
use elapid_tests::tokenizer_json::{character_kinds, kinds};
use serde_json::{Map, Value, json};
use support::{assert_same, decode, encode_with};

const VOCABULARIES: [(&str, &str); 7] = [
    ("llama-spm", "Llama"),
    ("llama-bpe", "Llama 3"),
    ("gpt-2", "GPT-2"),
    ("qwen2", "Qwen2"),
    ("starcoder", "StarCoder"),
    ("falcon", "Falcon"),
    ("gpt-neox", "GPT-NeoX"),
];

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("ELAPID_GOLDENS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tokenizer"),
        PathBuf::from,
    );
    if folder.join("ggml-vocab-gpt-2.gguf").is_file() {
        return Some(folder);
    }
    println!("skipped: no vocabularies in {}", folder.display());
    None
}

/// The metadata of a GGUF file that the test itself trusts.
struct Gguf<'b>(&'b [u8]);

impl<'b> Gguf<'b> {
    fn take(&mut self, len: usize) -> &'b [u8] {
        let (part, rest) = self.0.split_at(len);
        self.0 = rest;
        part
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            4 => json!(self.u32()),
            5 => json!(self.u32() as i32),
            6 => json!(f32::from_bits(self.u32())),
            7 => json!(self.take(1)[0] != 0),
            8 => json!(self.text()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).map(|_| self.value(kind)).collect()
            }
            other => panic!("metadata of type {other}"),
        }
    }

    fn metadata(mut self) -> HashMap<String, Value> {
        assert_eq!(self.take(4), b"GGUF");
        assert_eq!((self.u32(), self.u64()), (3, 0));
        let count = self.u64();
        (0..count)
            .map(|_| {
                let key = self.text();
                let kind = self.u32();
                (key, self.value(kind))
            })
            .collect()
    }
}

/// The merges that SentencePiece's scores stand for: every pair of tokens that makes one, best score first.
fn merges_of_scores(tokens: &[&str], scores: &[Value]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let mut pairs: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(left, right)| Some((ids.get(left)?, ids.get(right)?, left, right)))
            .collect();
        pairs.sort_unstable();
        let score = score.as_f64().unwrap();
        merges.extend(pairs.into_iter().map(|(.., left, right)| (score, json!([left, right]))));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, merge)| merge).collect()
}

/// The tokenizer.json that a vocabulary stands for.
fn tokenizer_json(metadata: &HashMap<String, Value>, kind: &str) -> Value {
    let list = |key: &str| metadata[&format!("tokenizer.ggml.{key}")].as_array().unwrap();
    let tokens: Vec<&str> = list("tokens").iter().map(|token| token.as_str().unwrap()).collect();
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(list("token_type")).enumerate() {
        // Rows of the embedding without a token.
        if *token == format!("[PAD{id}]") {
            continue;
        }
        vocab.insert((*token).to_owned(), json!(id));
        if kind != 1 && kind != 6 {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != 4,
            }));
        }
    }
    let parts = kinds().into_iter().chain(character_kinds()).find(|(name, _)| *name == kind).unwrap().1;
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "ignore_merges": kind == "Llama 3", "vocab": vocab},
    });
    if kind == "Llama" {
        json["model"]["merges"] = merges_of_scores(&tokens, list("scores")).into();
    } else {
        json["model"]["merges"] = list("merges").clone().into();
    }
    for (key, part) in parts.as_object().unwrap() {
        match (key.as_str(), part) {
            ("model", Value::Object(more)) => {
                more.iter().for_each(|(key, value)| json["model"][key] = value.clone());
            }
            _ => json[key] = part.clone(),
        }
    }
    json
}

#[test]
fn texts_give_the_ids_that_others_wrote_down() {
    let Some(folder) = folder() else { return };
    for (name, kind) in VOCABULARIES {
        let file = |end: &str| folder.join(format!("ggml-vocab-{name}.gguf{end}"));
        let bytes = fs::read(file("")).unwrap();
        let json = serde_json::to_vec(&tokenizer_json(&Gguf(&bytes).metadata(), kind)).unwrap();
        let oracle = support::oracle(&json);
        let table = compile(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
        let tokenizer = Tokenizer::parse(&table).unwrap();
        // GPT-NeoX's has no ids: it is compared with the oracle on the texts of another.
        let has_ids = file(".inp").is_file();
        let source = if has_ids { file(".inp") } else { folder.join("ggml-vocab-gpt-2.gguf.inp") };
        let texts = fs::read_to_string(source).unwrap();
        let ids = if has_ids { fs::read_to_string(file(".out")).unwrap() } else { String::new() };
        let mut texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        assert_eq!(texts.pop(), Some(""), "each text ends with the separator");
        let options = EncodeOptions { add_special: false, parse_special: false };
        let mut lines = ids.lines();
        for text in &texts {
            assert_same(name, &oracle, &tokenizer, text);
            let found = encode_with(&tokenizer, text, options);
            if has_ids {
                let wanted: Vec<u32> =
                    lines.next().unwrap().split_whitespace().map(|id| id.parse().unwrap()).collect();
                assert_eq!(found, wanted, "{name}: {text:?}");
            }
            assert_eq!(decode(&tokenizer, &found, false), oracle.decode(&found, false).unwrap(), "{name}");
        }
        assert_eq!(lines.next(), None, "{name}");
        println!(
            "{name}: {} texts, {} bytes, of them {} of automata",
            texts.len(),
            table.len(),
            tokenizer.header().patterns_len
        );
    }
}
