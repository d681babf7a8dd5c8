//! Small tokenizers as Hugging Face's `tokenizer.json` has them.

use serde_json::{Value, json};

/// The letter that stands for a byte in a vocabulary.
pub fn letter(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if plain(byte) {
        return char::from(byte);
    }
    char::from_u32(0x100 + (0..byte).filter(|&b| !plain(b)).count() as u32).expect("a character")
}

/// A small tokenizer with something of everything.
pub fn sample() -> Value {
    let mut tokens: Vec<String> = vec!["<|end|>".into()];
    tokens.extend((0..=255).map(|byte| letter(byte).to_string()));
    let merges =
        [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("a", "a"), ("aa", "aa"), ("Ã", "©"), ("i", "n"), ("in", "g")];
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let next = tokens.len();
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [
            {"id": 0, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": next, "content": "  ", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": true, "special": false},
            {"id": next + 1, "content": "foo bar", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": true, "special": false},
            {"id": next + 2, "content": "é!", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": true, "special": false},
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": merges.map(|(left, right)| format!("{left} {right}"))},
    })
}

/// The pre-tokenizer of the Falcon models.
pub fn falcon() -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        {"type": "Digits", "individual_digits": false},
        {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": false},
    ]})
}
