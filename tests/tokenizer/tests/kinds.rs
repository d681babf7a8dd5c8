//! Every kind of tokenizer in use, small and made here, against the `tokenizers` crate.
//!
//! `ELAPID_FULL=1` takes 100,000 random texts for each kind.

mod support;

use elapid_core::tokenizer::{EncodeOptions, Tokenizer};
use elapid_pack::tokenizer::compile;
use elapid_tests::tokenizer_json::{byte_level, kinds};
use serde_json::{Value, json};
use support::{Random, assert_same, decode, encode, encode_with, oracle, random_text};

/// Random texts of each kind.
fn texts() -> usize {
    if std::env::var_os("ELAPID_FULL").is_some() { 100_000 } else { 3_000 }
}

/// Texts that the expressions treat in ways of their own.
const PIECES: [&str; 40] = [
    "'s",
    "'S",
    "'LL",
    "'ſ",
    "can't",
    "I'VE",
    "x\r\n\r\n",
    "\r",
    "\n\n\n",
    " \n",
    "\n ",
    "  \n  ",
    "   ",
    "\t\tx",
    " 1234567",
    "12",
    "٣٤٥",
    "½",
    "Ⅷ",
    "camelCase",
    "HTTPServer",
    "ÉTÉ",
    "ǅ",
    "日本語",
    "こんにちは",
    "カタカナ",
    "한국어",
    "ไทย",
    "नमस्ते",
    "!!!",
    " !?\n",
    "(a)",
    "=-=",
    "|.,",
    "…。،",
    "<|a|>",
    "_x_",
    "a_b",
    "🙂🙂",
    " \u{a0} ",
];

fn text(random: &mut Random) -> String {
    let mut text = String::new();
    for _ in 0..1 + random.below(4) {
        if random.below(2) == 0 {
            text.push_str(&random_text(random));
        } else {
            (0..1 + random.below(5)).for_each(|_| text.push_str(random.pick(&PIECES)));
        }
    }
    text
}

/// A vocabulary whose merges cross the boundaries of words, so that a wrong cut gives other tokens.
fn vocabulary() -> (Value, Value) {
    let mut random = Random(11);
    let english = elapid_test_support::data::text("text/moby-dick.txt");
    let mut sample: String = english.chars().take(100_000).collect();
    (0..3_000).for_each(|_| sample.push_str(&text(&mut random)));
    byte_level(&sample, 1_500)
}

#[test]
fn words_are_cut_as_the_oracle_cuts_them() {
    let (vocab, merges) = vocabulary();
    for (name, parts) in kinds() {
        let mut json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        });
        parts.as_object().unwrap().iter().for_each(|(key, part)| json[key] = part.clone());
        let json = serde_json::to_vec(&json).unwrap();
        let oracle = oracle(&json);
        let table = compile(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
        let tokenizer = Tokenizer::parse(&table).unwrap();
        println!("{name}: {} bytes of automata", tokenizer.header().patterns_len);
        let mut random = Random(12);
        for _ in 0..texts() {
            let text = text(&mut random);
            assert_same(name, &oracle, &tokenizer, &text);
            let ids = encode(&tokenizer, &text);
            assert_eq!(
                decode(&tokenizer, &ids, false),
                oracle.decode(&ids, false).unwrap(),
                "{name}: {text:?}"
            );
        }
    }
}

/// A token as tokenizer.json has it.
fn added(id: usize, content: &str, flags: &[&str], normalized: bool, special: bool) -> Value {
    let has = |flag| flags.contains(&flag);
    json!({
        "id": id, "content": content, "single_word": has("single_word"), "lstrip": has("lstrip"),
        "rstrip": has("rstrip"), "normalized": normalized, "special": special,
    })
}

#[test]
fn added_tokens_take_the_white_space_and_the_places_that_the_oracle_gives_them() {
    let (vocab, merges) = vocabulary();
    let next = vocab.as_object().unwrap().len();
    let kinds = kinds();
    let mut rules = 0;
    for normalized in [false, true] {
        let tokens = [
            ("<l>", vec!["lstrip"], false),
            ("<r>", vec!["rstrip"], true),
            ("<b>", vec!["lstrip", "rstrip"], true),
            ("word", vec!["single_word"], false),
            ("mark", vec!["single_word", "lstrip", "rstrip"], true),
            ("  ", vec![], false),
            ("<r", vec!["single_word"], false),
        ];
        let tokens: Vec<Value> = (0..)
            .zip(tokens)
            .map(|(i, (content, flags, special))| added(next + i, content, &flags, normalized, special))
            .collect();
        for (name, parts) in
            kinds.iter().filter(|(name, _)| ["GPT-2", "Falcon", "StarCoder", "Llama 3"].contains(name))
        {
            let json = json!({
                "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens, "normalizer": null,
                "pre_tokenizer": parts["pre_tokenizer"], "post_processor": null,
                "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
                "model": {"type": "BPE", "vocab": vocab, "merges": merges},
            });
            let json = serde_json::to_vec(&json).unwrap();
            let mut oracle = oracle(&json);
            let table = compile(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
            let tokenizer = Tokenizer::parse(&table).unwrap();
            let mut random = Random(13);
            for i in 0..texts() {
                let mut text = String::new();
                for _ in 0..1 + random.below(8) {
                    text.push_str(random.pick(&[
                        "<l>", "<r>", "<b>", "word", "mark", "  ", " ", "\n", "\u{3000}", "a", "é", "_", "Ⓐ",
                        "\u{301}", "1", "-", "<r", "words", "日", "\u{200d}",
                    ]));
                }
                assert_same(name, &oracle, &tokenizer, &text);
                if i % 4 == 0 {
                    oracle.set_encode_special_tokens(true);
                    let wanted = oracle.encode(text.as_str(), true).unwrap();
                    let options = EncodeOptions { parse_special: false, ..EncodeOptions::default() };
                    assert_eq!(encode_with(&tokenizer, &text, options), wanted.get_ids(), "{name}: {text:?}");
                    oracle.set_encode_special_tokens(false);
                }
                rules += 1;
            }
        }
    }
    println!("{rules} texts with added tokens");
}
