//! Every kind of tokenizer in use, small and made here, against the `tokenizers` crate.
//!
//! `ELAPID_FULL=1` takes 100,000 random texts for each kind.

use crate::support::{Random, assert_same, assert_same_plain, decode, encode, oracle, random_text};
use elapid_core::tokenizer::chars::Words;
use elapid_core::tokenizer::{EncodeOptions, Tokenizer};
use elapid_pack::tokenizer::compile;
use elapid_tests::tokenizer_json::{byte_level, character_kinds, characters, kinds};
use serde_json::{Value, json};

/// Random texts of each kind.
fn texts() -> usize {
    if elapid_test_support::effort::full() { 100_000 } else { 3_000 }
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
                    assert_same_plain(name, &mut oracle, &tokenizer, &text);
                }
                rules += 1;
            }
        }
    }
    println!("{rules} texts with added tokens");
}

/// What `decode` gives where the oracle's decoder takes a run of byte tokens for whole characters or for nothing: here, characters
/// that are whole stay. Ids whose runs have both are left out of the comparison.
fn is_mixed(tokenizer: &Tokenizer<'_>, ids: &[u32]) -> bool {
    ids.chunk_by(|a, b| tokenizer.is_byte(*a) && tokenizer.is_byte(*b)).any(|run| {
        let bytes: Vec<u8> =
            run.iter().filter_map(|&id| tokenizer.token_bytes(id)).flatten().copied().collect();
        let valid: usize = bytes.utf8_chunks().map(|chunk| chunk.valid().len()).sum();
        tokenizer.is_byte(run[0]) && valid > 0 && valid < bytes.len()
    })
}

#[test]
fn characters_are_merged_and_shown_as_the_oracle_does() {
    let mut random = Random(21);
    let mut sample: String =
        elapid_test_support::data::text("text/moby-dick.txt").chars().take(100_000).collect();
    (0..3_000).for_each(|_| sample.push_str(&text(&mut random)));
    let mut mixed = 0;
    for (words, (vocab, merges)) in [true, false].map(|words| (words, characters(&sample, 1_500, words))) {
        let next = vocab.as_object().unwrap().len();
        for ((name, parts), normalized) in
            character_kinds().into_iter().flat_map(|kind| [(kind.clone(), false), (kind, true)])
        {
            let mut tokens: Vec<Value> = [(0, "<unk>"), (1, "<s>"), (2, "</s>")]
                .map(|(id, content)| added(id, content, &[], normalized, true))
                .to_vec();
            tokens.push(added(next, "the end", &[], normalized, false));
            tokens.push(added(next + 1, "<|x|>", if normalized { &[] } else { &["rstrip"] }, false, false));
            tokens.push(added(next + 2, "|▁|", &[], normalized, false));
            let mut json = json!({
                "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens, "normalizer": null,
                "pre_tokenizer": null, "decoder": parts["decoder"],
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
                },
                "model": {"type": "BPE", "vocab": vocab, "merges": merges},
            });
            for key in ["normalizer", "pre_tokenizer"] {
                json[key] = parts[key].clone();
            }
            parts["model"]
                .as_object()
                .unwrap()
                .iter()
                .for_each(|(key, value)| json["model"][key] = value.clone());
            let json = serde_json::to_vec(&json).unwrap();
            let mut oracle = oracle(&json);
            let table = compile(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
            let tokenizer = Tokenizer::parse(&table).unwrap();
            let cut = tokenizer.header().chars.unwrap().words;
            assert!(
                cut == Words::EachMark || (cut == Words::Unjoined) == (words && name != "unknown left out"),
                "{name}: {cut:?}"
            );
            let mut random = Random(22);
            for i in 0..texts() {
                let mut text = text(&mut random);
                for _ in 0..random.below(4) {
                    text.push_str(random.pick(&[
                        "▁", " ▁", "▁ ", "  ", "<s>", " <s>", "the end", " the end", "<|x|>  a", "|▁|",
                        "| |", "<0x0A>", " the",
                    ]));
                    if random.below(2) == 0 {
                        text.insert_str(0, random.pick(&[" ", "▁", "<s>", "the end", "<|x|> "]));
                    }
                }
                assert_same(name, &oracle, &tokenizer, &text);
                let ids = encode(&tokenizer, &text);
                for skip in [false, true] {
                    assert_eq!(
                        decode(&tokenizer, &ids, skip),
                        oracle.decode(&ids, skip).unwrap(),
                        "{name}: {text:?}"
                    );
                }
                if i % 4 == 0 {
                    assert_same_plain(name, &mut oracle, &tokenizer, &text);
                }
                // Any tokens, and many bytes.
                let skip = i % 2 == 0;
                let ids: Vec<u32> = (0..random.below(12))
                    .map(|_| if random.below(2) == 0 { 3 + random.below(256) } else { random.below(next + 3) } as u32)
                    .filter(|&id| !(skip && tokenizer.is_special(id)))
                    .collect();
                if is_mixed(&tokenizer, &ids) {
                    mixed += 1;
                    continue;
                }
                assert_eq!(
                    decode(&tokenizer, &ids, skip),
                    oracle.decode(&ids, skip).unwrap(),
                    "{name}: {ids:?}"
                );
            }
        }
    }
    println!("{mixed} lists of ids with a run of bytes that is partly text");
}

#[test]
fn long_words_of_characters_take_no_quadratic_time() {
    let (vocab, merges) = characters("the the aa aa aaaa the ▁▁▁▁ ".repeat(40).as_str(), 20, true);
    let kind = character_kinds().into_iter().find(|(name, _)| *name == "Llama").unwrap().1;
    let mut json = json!({"added_tokens": [], "normalizer": kind["normalizer"], "pre_tokenizer": null, "post_processor": null,
        "decoder": kind["decoder"], "version": "1.0", "truncation": null, "padding": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges}});
    kind["model"].as_object().unwrap().iter().for_each(|(key, value)| json["model"][key] = value.clone());
    let json = serde_json::to_vec(&json).unwrap();
    let (oracle, table) = (oracle(&json), compile(&json).unwrap());
    let tokenizer = Tokenizer::parse(&table).unwrap();
    for piece in ["a", " ", "▁", "é", "a ", "the", "\u{1f642}"] {
        assert_same("long", &oracle, &tokenizer, &piece.repeat(3_000));
        let text = piece.repeat((1 << 20) / piece.len());
        let start = std::time::Instant::now();
        assert!(!encode(&tokenizer, &text).is_empty());
        // A quadratic way takes minutes.
        assert!(start.elapsed().as_secs() < 10, "1 MiB of {piece:?}");
    }
    // What a text takes depends on its longest word.
    let text = "the aa  the é🙂 thethethethe ".repeat(1_000);
    let mut scratch = vec![0; tokenizer.scratch_for(16)];
    let mut ids = Vec::new();
    tokenizer.encode(&text, EncodeOptions::default(), &mut scratch, &mut |id| ids.push(id)).unwrap();
    assert_eq!(ids, encode(&tokenizer, &text));
    assert!(scratch.len() < 2_000, "{} bytes", scratch.len());
}
