//! Small tokenizers as Hugging Face's `tokenizer.json` has them.

use std::collections::HashMap;

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

/// A byte-level vocabulary and merges, trained on a text whose words are not cut: merges cross the boundaries of words.
pub fn byte_level(sample: &str, merges: usize) -> (Value, Value) {
    let tokens = (0..=255).map(|byte| letter(byte).to_string()).collect();
    train(tokens, sample.bytes().map(u32::from).collect(), merges, |_, _| true)
}

/// A vocabulary of characters and merges, as SentencePiece has it. With `words`, no merge joins a `▁` to what is before it but
/// another one. Characters that are rare in the sample have no token.
pub fn characters(sample: &str, merges: usize, words: bool) -> (Value, Value) {
    let mut counts: HashMap<char, usize> = HashMap::new();
    let sample = sample.replace(' ', "▁");
    sample.chars().for_each(|c| *counts.entry(c).or_default() += 1);
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255u8).map(|byte| format!("<{byte:#04X}>")));
    let mut known: Vec<char> = counts.iter().filter(|(_, count)| **count > 20).map(|(c, _)| *c).collect();
    known.sort_unstable();
    let ids: HashMap<char, u32> = (tokens.len() as u32..).zip(&known).map(|(id, c)| (*c, id)).collect();
    tokens.extend(known.iter().map(char::to_string));
    let text = sample.chars().map(|c| ids.get(&c).copied().unwrap_or(u32::MAX)).collect();
    train(tokens, text, merges, |left, right| !words || !right.starts_with('▁') || left.ends_with('▁'))
}

fn train(
    mut tokens: Vec<String>,
    mut text: Vec<u32>,
    merges: usize,
    allowed: impl Fn(&str, &str) -> bool,
) -> (Value, Value) {
    let mut vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mut list = Vec::new();
    // Several merges a round: those that are most frequent.
    while list.len() < merges {
        let mut counts: HashMap<[u32; 2], usize> = HashMap::new();
        text.windows(2)
            .filter(|pair| !pair.contains(&u32::MAX))
            .for_each(|pair| *counts.entry([pair[0], pair[1]]).or_default() += 1);
        let mut best: Vec<(usize, [u32; 2])> =
            counts.into_iter().map(|(pair, count)| (count, pair)).collect();
        best.sort_unstable_by(|a, b| b.cmp(a));
        let mut made: HashMap<[u32; 2], u32> = HashMap::new();
        for &(_, pair) in best.iter().take(50) {
            let [left, right] = pair.map(|id| tokens[id as usize].clone());
            let token = format!("{left}{right}");
            if !vocab.contains_key(&token) && allowed(&left, &right) {
                made.insert(pair, tokens.len() as u32);
                vocab.insert(token.clone(), json!(tokens.len()));
                tokens.push(token);
                list.push(json!([left, right]));
            }
        }
        if made.is_empty() {
            break;
        }
        let mut next = Vec::with_capacity(text.len());
        let mut rest = &text[..];
        while let [first, after @ ..] = rest {
            let merged = after.first().and_then(|second| made.get(&[*first, *second]));
            next.push(*merged.unwrap_or(first));
            rest = if merged.is_some() { &after[1..] } else { after };
        }
        text = next;
    }
    (Value::Object(vocab), Value::Array(list))
}

/// The pre-tokenizers in use, with the normalisers that they come with.
pub fn kinds() -> Vec<(&'static str, Value)> {
    let regex = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes =
        || json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let gpt2 =
        || json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
    let of = |parts: Vec<Value>| json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}});
    let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let llama3 = format!(
        r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let qwen2 = llama3.replace(r"\p{N}{1,3}", r"\p{N}");
    let cl100k = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
    let o200k = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let deepseek3 = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
    let removed =
        json!({"type": "Split", "pattern": {"Regex": cl100k}, "behavior": "Removed", "invert": true});
    let string = |text: &str, behavior: &str| json!({"type": "Split", "pattern": {"String": text}, "behavior": behavior, "invert": false});
    let nfc = |mut kind: Value| {
        kind["normalizer"] = json!({"type": "NFC"});
        kind
    };
    vec![
        ("GPT-2", json!({"pre_tokenizer": gpt2()})),
        (
            "GPT-2 as an expression",
            of(vec![
                regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
                bytes(),
            ]),
        ),
        ("GPT-NeoX", nfc(json!({"pre_tokenizer": gpt2()}))),
        ("Falcon", json!({"pre_tokenizer": falcon()})),
        ("GPT-4", of(vec![regex(cl100k), bytes()])),
        ("GPT-4, inverted", of(vec![removed, bytes()])),
        ("GPT-4o", of(vec![regex(o200k), bytes()])),
        ("Llama 3", of(vec![regex(&llama3), bytes()])),
        ("Qwen2", nfc(of(vec![regex(&qwen2), bytes()]))),
        ("StarCoder", of(vec![digits(true), gpt2()])),
        ("StarCoder with NFC", nfc(of(vec![digits(true), gpt2()]))),
        ("runs of digits", of(vec![digits(false), gpt2()])),
        (
            "DeepSeek",
            of(vec![
                regex(r"[\r\n]"),
                regex(
                    "\\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{370}-\u{373}\u{376}\u{377}\u{37f}\u{386}\u{388}-\u{3ff}\u{400}-\u{481}\u{48a}-\u{52f}\u{1d00}-\u{1d2b}\u{1e00}-\u{1fff}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}]+",
                ),
                regex(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                regex(r"\s+$"),
                regex("[一-龥\u{800}-一가-\u{d7ff}]+"),
                digits(true),
                bytes(),
            ]),
        ),
        (
            "DeepSeek 3",
            of(vec![regex(r"\p{N}{1,3}"), regex("[一-龥\u{3040}-ゟ゠-ヿ]+"), regex(deepseek3), bytes()]),
        ),
        ("Bloom", of(vec![regex(" ?[^(\\s|[.,!?…。，、।۔،])]+"), bytes()])),
        ("punctuation", of(vec![json!({"type": "Punctuation", "behavior": "MergedWithPrevious"}), bytes()])),
        ("spaces with what follows", of(vec![string(" ", "MergedWithNext"), bytes()])),
        ("spaces left out", of(vec![string(" ", "Removed"), bytes()])),
        ("a text apart", of(vec![string("ab", "Isolated"), bytes()])),
        ("nothing apart", json!({"pre_tokenizer": bytes()})),
    ]
}

/// SentencePiece's BPE in the forms in use: the parts of a tokenizer.json.
pub fn character_kinds() -> Vec<(&'static str, Value)> {
    let prepend = || json!({"type": "Prepend", "prepend": "▁"});
    let replace = || json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let back = || json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let strip = || json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let decoder = |strips: bool| {
        let mut parts = vec![back(), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        parts.extend(strips.then(strip));
        json!({"type": "Sequence", "decoders": parts})
    };
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let bytes = || json!({"byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>"});
    let unknown = |fuse: bool| json!({"byte_fallback": false, "fuse_unk": fuse, "unk_token": "<unk>"});
    let normalizers = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
    vec![
        (
            "Llama",
            json!({"normalizer": normalizers(vec![prepend(), replace()]), "decoder": decoder(true), "model": bytes()}),
        ),
        (
            "Llama, replaced first",
            json!({"normalizer": normalizers(vec![replace(), prepend()]), "decoder": decoder(true), "model": bytes()}),
        ),
        (
            "Llama 2, new",
            json!({"pre_tokenizer": metaspace("first", false), "decoder": decoder(true), "model": bytes()}),
        ),
        (
            "Metaspace always",
            json!({"pre_tokenizer": metaspace("always", false), "decoder": decoder(true), "model": bytes()}),
        ),
        (
            "Metaspace never",
            json!({"pre_tokenizer": metaspace("never", false), "decoder": decoder(false), "model": bytes()}),
        ),
        (
            "Metaspace, split",
            json!({"pre_tokenizer": metaspace("always", true), "decoder": metaspace("always", true), "model": unknown(false)}),
        ),
        (
            "Metaspace, split at the first",
            json!({"pre_tokenizer": metaspace("first", true), "decoder": metaspace("first", true), "model": unknown(true)}),
        ),
        (
            "Metaspace never, unknown fused",
            json!({"pre_tokenizer": metaspace("never", false), "decoder": metaspace("never", false), "model": unknown(true)}),
        ),
        (
            "Gemma",
            json!({
                "normalizer": replace(),
                "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false},
                "decoder": decoder(false), "model": bytes(),
            }),
        ),
        (
            "unknown left out",
            json!({
                "pre_tokenizer": metaspace("first", false), "decoder": metaspace("first", false),
                "model": {"byte_fallback": false, "fuse_unk": false, "unk_token": null},
            }),
        ),
    ]
}
