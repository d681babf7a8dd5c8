//! Tokenizers that ask for more than any has: compiled or refused in bounded time and memory.

use elapid_core::tokenizer::Tokenizer;
use elapid_pack::PackError;
use elapid_pack::tokenizer::compile;
use serde_json::{Value, json};

/// A byte-level tokenizer of the 256 bytes and `aa`.
fn tokenizer(merges: Value, pre_tokenizer: Value) -> Vec<u8> {
    let bytes: Vec<char> = (0..=255u8)
        .scan(256, |next, byte| {
            Some(match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
                _ => char::from_u32(std::mem::replace(next, *next + 1)).unwrap(),
            })
        })
        .collect();
    let mut vocab: serde_json::Map<String, Value> =
        bytes.iter().enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    vocab.insert("aa".into(), 256.into());
    let decoder = json!({ "type": "ByteLevel" });
    json!({ "pre_tokenizer": pre_tokenizer, "decoder": decoder,
        "model": { "type": "BPE", "vocab": vocab, "merges": merges } })
    .to_string()
    .into_bytes()
}

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex })
}

#[test]
fn a_million_merges_of_one_byte_are_one() {
    for merge in [json!("a a"), json!(["a", "a"])] {
        let json = tokenizer(vec![merge; 1_000_000].into(), byte_level(true));
        let table = compile(&json).unwrap();
        assert_eq!(Tokenizer::parse(&table).unwrap().header().merges, 1);
        assert!(table.len() < 10_000);
    }
    for merge in [json!(["a"]), json!(["a", "a", "a"]), json!([]), json!(7), json!(["a", 7])] {
        let message = compile(&tokenizer(json!([merge]), byte_level(true))).unwrap_err().to_string();
        assert!(message.contains("line 1 column"), "{message}");
    }
}

#[test]
fn expressions_that_do_not_fit_are_refused() {
    let classes: Vec<String> =
        (0..3000).map(|i| char::from_u32(0x4e00 + i).unwrap().to_string().repeat(20)).collect();
    for (expression, says) in [
        ("(?:a{1000}){1000}", "too large"),
        (r"(?:\p{L}{200}\p{N}{200}){50}", "too large"),
        (&r"\p{L}".repeat(5000), "too large"),
        ("[ab]*a[ab]{30}", "too large"),
        (&classes.join("|"), "too many classes"),
        (&format!("{}a{}", "(".repeat(5000), ")".repeat(5000)), "not known"),
        (r"(a)\1", "backreferences"),
    ] {
        let split = json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
        let parts = json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] });
        let source = compile(&tokenizer(json!([]), parts)).unwrap_err();
        let message = PackError::Tokenizer { path: "t.json".into(), source }.to_string();
        assert!(message.contains(says) && message.contains("docs/tokenizer.md"), "{says}: {message}");
        assert!(message.len() < 1200, "{} bytes", message.len());
    }
}
