//! Tables that are damaged, and tokenizers that are refused.

use std::sync::LazyLock;

use elapid_core::tokenizer::table::{Header, PreTokenizer};
use elapid_core::tokenizer::{Decoder, EncodeOptions, Encoder, Tokenizer, TokenizerError};
use elapid_pack::tokenizer::{CompileError, compile};
use elapid_tests::tokenizer_json::{character_kinds, characters, kinds, sample};
use proptest::prelude::*;
use serde_json::{Value, json};

fn compiled(value: &Value) -> Result<Vec<u8>, CompileError> {
    compile(&serde_json::to_vec(value).unwrap())
}

const TEXT: &str = "the  thing<|end|> foo bar e\u{301}! aaaaaaa 12345 \u{1100}\u{1161}\u{11a8}x\u{315}\u{301} 한 ²\n\n a\u{323}\u{307}";

fn encode(tokenizer: &Tokenizer<'_>, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut scratch = Vec::new();
    let mut encoder = Encoder::new(text, EncodeOptions::default());
    while let Err(error) = encoder.run(tokenizer, &mut scratch, &mut |id| ids.push(id)) {
        if matches!(error, TokenizerError::TooManySteps { .. }) {
            break;
        }
        let TokenizerError::ScratchTooSmall { needed, given } = error else { panic!("{error}") };
        assert!(needed > given && needed < 1 << 20, "{needed} of {given}");
        scratch.resize(needed, 0);
    }
    ids
}

/// Uses a table in every way there is.
fn exercise(table: &[u8]) -> bool {
    let Ok(tokenizer) = Tokenizer::parse(table) else { return false };
    let long = format!("{}{TEXT}{}", "a".repeat(300), "e\u{301}".repeat(100));
    for text in [TEXT, &long] {
        let ids = encode(&tokenizer, text);
        let mut decoder = Decoder::new();
        for id in ids.into_iter().chain(0..300) {
            let _ = decoder.push(&tokenizer, id, &mut |_| {});
            let _ = tokenizer.token_bytes(id).map(|bytes| tokenizer.id_of(bytes));
        }
        decoder.finish(&mut |_| {});
    }
    let _ = tokenizer.special_tokens().count();
    true
}

#[test]
fn sample_is_as_the_oracle() {
    let value = sample();
    let mut oracle = tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&value).unwrap()).unwrap();
    oracle.with_truncation(None).unwrap();
    let table = compiled(&value).unwrap();
    let tokenizer = Tokenizer::parse(&table).unwrap();
    for text in [
        TEXT,
        "",
        " ",
        "foo bar",
        "fooe\u{301}!foo bar!",
        "<|end|><|end|>",
        "foo ba\u{301}r",
        "foo bar\u{301}",
    ] {
        assert_eq!(encode(&tokenizer, text), oracle.encode(text, true).unwrap().get_ids(), "{text:?}");
    }
    let mut plain = Vec::new();
    let options = EncodeOptions { add_special: false, ..EncodeOptions::default() };
    tokenizer.encode("the", options, &mut [], &mut |id| plain.push(id)).unwrap();
    assert_eq!(plain, oracle.encode("the", false).unwrap().get_ids());
    let header = Header::parse(&table).unwrap();
    assert_eq!((header.pre_tokenizer, header.nfc), (PreTokenizer::Gpt2, true));
    assert_eq!((header.prefix, header.suffix, header.added_normalized), (1, 0, 3));
    assert_eq!(header.layout().unwrap().len(), table.len());
}

#[test]
fn a_wide_table_is_as_a_narrow_one() {
    let mut value = sample();
    let narrow = compiled(&value).unwrap();
    // More tokens than 16 bits count; none of them is in the text. Those that are added come after the vocabulary.
    let vocab = value["model"]["vocab"].as_object_mut().unwrap();
    for id in vocab.len()..70_000 {
        vocab.insert(format!("ĠĠĠ{id}"), json!(id));
    }
    for i in 1..4 {
        value["added_tokens"][i]["id"] = json!(70_000 + i - 1);
    }
    let wide = compiled(&value).unwrap();
    assert!(Header::parse(&wide).unwrap().wide && !Header::parse(&narrow).unwrap().wide);
    let (narrow, wide) = (Tokenizer::parse(&narrow).unwrap(), Tokenizer::parse(&wide).unwrap());
    let bytes = |tokenizer: &Tokenizer<'_>| -> Vec<Vec<u8>> {
        encode(tokenizer, TEXT).iter().map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect()
    };
    assert_eq!(bytes(&narrow), bytes(&wide));
}

/// Why a tokenizer is refused.
fn refusal(value: &Value) -> String {
    match compiled(value) {
        Ok(_) => "nothing".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn expressions_that_an_automaton_cannot_follow_are_refused_by_name() {
    let split = |regex: &str, behavior: &str| {
        let mut value = sample();
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        value["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
        value
    };
    for (regex, behavior, name) in [
        ("^a", "Isolated", "assertion"),
        ("a$", "Isolated", "assertion"),
        (r"a\b", "Isolated", "assertion"),
        (r"\w+", "Isolated", r"\w"),
        (r"(a)\1", "Isolated", "not known"),
        ("(?<=a)b", "Isolated", "not known"),
        ("(?<!a)b", "Isolated", "not known"),
        ("(?>a|ab)c", "Isolated", "not known"),
        ("(?=ab)a", "Isolated", "look-ahead"),
        ("a(?!", "Isolated", "look-ahead"),
        ("(?x)a b", "Isolated", "flags"),
        ("(?m:a)", "Isolated", "flags"),
        ("[[:alpha:]]", "Isolated", "POSIX"),
        ("[a--b]", "Isolated", "in a class"),
        ("a*", "Isolated", "matches where nothing is"),
        ("(a*)+b", "Isolated", "what may be empty"),
        ("(?:ab)++a", "Isolated", "possessive"),
        ("[ab]++a", "Isolated", "possessive"),
        ("a{2}{3}", "Isolated", "repetition of a repetition"),
        ("a{1001}", "Isolated", "1000"),
        ("(?:a{999}b){999}", "Isolated", "too large"),
        ("(?:a|b)*a(?:a|b){12}", "Isolated", "too large"),
        ("[", "Isolated", "not known"),
        ("ab", "Contiguous", "Contiguous"),
        ("a", "Whatever", "Whatever"),
    ] {
        let message = refusal(&split(regex, behavior));
        assert!(message.contains(name) && !message.contains('\n'), "{regex}: {message}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let set = |pointer: &str, to: Value| {
        let mut value = sample();
        match value.pointer_mut(pointer) {
            Some(at) => *at = to,
            None => {
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                value.pointer_mut(parent).unwrap()[name] = to;
            }
        }
        value
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    let cases = [
        (set("/model/type", json!("WordPiece")), "WordPiece"),
        (set("/model/type", json!("Unigram")), "Unigram"),
        (set("/model/dropout", json!(0.1)), "dropout"),
        (set("/model/byte_fallback", json!(true)), "byte_fallback"),
        (set("/model/continuing_subword_prefix", json!("##")), "continuing_subword_prefix"),
        (set("/model/end_of_word_suffix", json!("</w>")), "end_of_word_suffix"),
        (set("/normalizer", json!({"type": "Lowercase"})), "Lowercase"),
        (set("/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}]})), "NFKC"),
        (set("/pre_tokenizer", json!({"type": "Metaspace"})), "NFC before SentencePiece"),
        (set("/pre_tokenizer", Value::Null), "no pre_tokenizer"),
        (set("/pre_tokenizer/add_prefix_space", json!(true)), "add_prefix_space"),
        (
            set(
                "/pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": [byte_level, {"type": "Digits"}]}),
            ),
            "ByteLevel, Digits",
        ),
        (
            set(
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated"}),
            ),
            "Split without ByteLevel",
        ),
        (set("/decoder", json!({"type": "WordPiece"})), "WordPiece"),
        (set("/post_processor", json!({"type": "BertProcessing"})), "BertProcessing"),
        (set("/added_tokens/1/lstrip", json!(true)), "lstrip"),
        (set("/added_tokens/1/rstrip", json!(true)), "rstrip"),
        (set("/added_tokens/1/single_word", json!(true)), "single_word"),
        (set("/added_tokens/1/id", json!(5_000)), "5000"),
        (set("/added_tokens/3/content", json!("e\u{301}!")), "NFC"),
        (set("/model/merges/0", json!("Ġ nosuchtoken")), "nosuchtoken"),
        (set("/model/merges/0", json!("Ġ t x")), "not two tokens"),
        (set("/model/vocab/he", json!(3)), "id 3"),
    ];
    for (value, name) in cases {
        let message = refusal(&value);
        assert!(message.contains(name), "{message:?} does not say {name:?}");
        assert!(!message.contains('\n'), "{message:?}");
    }
    let mut value = sample();
    value["model"]["vocab"].as_object_mut().unwrap().remove("x");
    assert!(compiled(&value).unwrap_err().to_string().contains("0x78"));
    let mut value = sample();
    let vocab = value["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove("Ģ").unwrap();
    vocab.insert("ĢĢĢ".into(), id);
    compiled(&value).expect("control characters may be left out");
    value["model"]["unk_token"] = json!("<|end|>");
    assert!(compiled(&value).unwrap_err().to_string().contains("unk_token"));
    assert!(matches!(compile(b"{"), Err(CompileError::Json(_))));
    // Truncation, padding, and what changes nothing, are accepted.
    for value in [
        set("/padding", json!({"strategy": "BatchLongest"})),
        set("/post_processor", Value::Null),
        set("/normalizer", Value::Null),
        set("/model/unk_token", json!("<|end|>")),
    ] {
        compiled(&value).unwrap();
    }
}

#[test]
fn ignore_merges_takes_words_whole() {
    let mut value = sample();
    let id = value["model"]["vocab"].as_object().unwrap().len() as u32;
    value["model"]["vocab"]["xyz"] = json!(id);
    for i in 1..4 {
        value["added_tokens"][i]["id"] = json!(id + i as u32);
    }
    for ignore in [false, true] {
        value["model"]["ignore_merges"] = json!(ignore);
        let oracle = tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&value).unwrap()).unwrap();
        let table = compiled(&value).unwrap();
        let found = encode(&Tokenizer::parse(&table).unwrap(), "xyz");
        assert_eq!(found, oracle.encode("xyz", true).unwrap().get_ids());
        assert_eq!(found.len(), if ignore { 2 } else { 4 });
    }
}

/// A tokenizer with stages, and with added tokens that have rules.
fn staged() -> Value {
    let mut value = sample();
    let kind = kinds().into_iter().find(|(name, _)| *name == "DeepSeek").unwrap().1;
    value["pre_tokenizer"] = kind["pre_tokenizer"].clone();
    value["normalizer"] = Value::Null;
    for (i, rule) in ["lstrip", "rstrip", "single_word"].iter().enumerate() {
        value["added_tokens"][i][rule] = json!(true);
    }
    value
}

/// SentencePiece's BPE of a kind.
fn of_characters(kind: &str) -> Value {
    let (vocab, merges) = characters(&"the thing foo bar aaaa é12345한 ".repeat(30), 30, true);
    let parts = character_kinds().into_iter().find(|(name, _)| *name == kind).unwrap().1;
    let mut value = json!({
        "added_tokens": [
            {"id": 2, "content": "</s>", "normalized": false, "special": true},
            {"id": vocab.as_object().unwrap().len(), "content": "foo bar", "normalized": true, "special": false},
        ],
        "decoder": parts["decoder"], "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    for key in ["normalizer", "pre_tokenizer"] {
        value[key] = parts[key].clone();
    }
    parts["model"].as_object().unwrap().iter().for_each(|(key, part)| value["model"][key] = part.clone());
    value
}

#[test]
fn a_damaged_table_of_characters_does_no_harm() {
    for kind in ["Llama", "Metaspace, split", "unknown left out"] {
        let table = compiled(&of_characters(kind)).unwrap();
        assert!(exercise(&table), "{kind}");
        let (mut accepted, mut tried) = (0, 0);
        for at in 0..table.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = table.clone();
                damaged[at] ^= flip;
                tried += 1;
                accepted += usize::from(exercise(&damaged));
            }
        }
        println!("{kind}: {accepted} of {tried} damaged tables are accepted, and harmless");
    }
}

#[test]
fn characters_that_are_not_supported_are_refused_by_name() {
    let set = |kind: &str, key: &str, to: Value| {
        let mut value = of_characters(kind);
        *value.pointer_mut(key).unwrap() = to;
        value
    };
    let llama = |key: &str, to: Value| set("Llama", key, to);
    let space = |content: &str| json!({"type": "Replace", "pattern": {"String": " "}, "content": content});
    let metaspace = |replacement: &str| json!({"type": "Metaspace", "replacement": replacement, "prepend_scheme": "always"});
    for (value, name) in [
        (llama("/normalizer/normalizers/0/prepend", json!("_")), "Prepend of \"_\""),
        (llama("/normalizer", space("_")), "by \"_\""),
        (llama("/normalizer/normalizers/0", json!({"type": "NFKC"})), "NFKC"),
        (
            llama("/normalizer/normalizers/0", json!({"type": "Precompiled", "precompiled_charsmap": ""})),
            "Precompiled",
        ),
        (llama("/pre_tokenizer", metaspace("▁")), "Metaspace with"),
        (llama("/pre_tokenizer", json!({"type": "Whitespace"})), "Whitespace"),
        (set("Metaspace, split", "/pre_tokenizer", metaspace("_")), "\"_\""),
        (set("Metaspace, split", "/pre_tokenizer/prepend_scheme", json!("last")), "last"),
        (
            set("Metaspace, split", "/model/byte_fallback", json!(true)),
            "byte_fallback with tokens for 0 bytes",
        ),
        (set("Metaspace, split", "/model/unk_token", json!("<none>")), "<none>"),
        (llama("/decoder/decoders/0/content", json!("_")), "decoder of Replace"),
        (llama("/decoder", json!({"type": "ByteFallback"})), "decoder of ByteFallback"),
        (llama("/decoder/decoders/3/start", json!(2)), "Strip"),
        (llama("/model/merges/0", json!(["<0x41>", "<0x42>"])), "not in the vocabulary"),
        (llama("/added_tokens/1/normalized", json!(true)), "nothing"),
    ] {
        let message = refusal(&value);
        assert!(message.contains(name) && !message.contains('\n'), "{message:?} does not say {name:?}");
    }
    let mut value = of_characters("Llama");
    value["model"]["ignore_merges"] = json!(true);
    assert!(refusal(&value).contains("ignore_merges"));
    value["model"]["ignore_merges"] = json!(false);
    value["model"]["vocab"].as_object_mut().unwrap().remove("<0x41>");
    assert!(refusal(&value).contains("255 bytes"));
}

#[test]
fn a_damaged_automaton_does_no_harm() {
    let table = compiled(&staged()).unwrap();
    assert!(exercise(&table));
    let header = Header::parse(&table).unwrap();
    assert_eq!((header.version(), header.pre_tokenizer), (2, PreTokenizer::Patterns));
    let patterns = header.layout().unwrap().patterns;
    assert_eq!(patterns.end, table.len());
    // Of the classes of characters, a part; of the automata, all.
    let (mut accepted, mut tried) = (0, 0);
    for at in
        patterns.clone().filter(|at| at - patterns.start < 256 || at % 37 == 0 || table.len() - at < 1500)
    {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = table.clone();
            damaged[at] ^= flip;
            tried += 1;
            accepted += usize::from(exercise(&damaged));
        }
    }
    println!("{accepted} of {tried} damaged automata are accepted, and harmless");
    for len in patterns.clone().step_by(61) {
        assert!(Tokenizer::parse(&table[..len]).is_err(), "cut to {len}");
    }
    // A release that knows version 1 alone refuses the table by name: here, as one with a version that is not known.
    let mut later = table.clone();
    later[4..6].copy_from_slice(&3u16.to_le_bytes());
    assert_eq!(Tokenizer::parse(&later).unwrap_err(), TokenizerError::Version { found: 3 });
    // As version 1, it asks for what that does not have.
    later[4..6].copy_from_slice(&1u16.to_le_bytes());
    assert!(matches!(Tokenizer::parse(&later).unwrap_err(), TokenizerError::Unsupported { .. }));
}

#[test]
fn expressions_that_look_too_far_end_with_an_error() {
    let mut value = sample();
    value["normalizer"] = Value::Null;
    let split =
        json!({"type": "Split", "pattern": {"Regex": "a+b|a"}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    value["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
    let table = compiled(&value).unwrap();
    let tokenizer = Tokenizer::parse(&table).unwrap();
    let mut ids = 0;
    let mut run =
        |text: &str| tokenizer.encode(text, EncodeOptions::default(), &mut [0; 1 << 16], &mut |_| ids += 1);
    run(&"a".repeat(100)).unwrap();
    let error = run(&"a".repeat(100_000)).unwrap_err();
    assert_eq!(error, TokenizerError::TooManySteps { bytes: 100_000 });
    assert!(error.to_string().contains("100000 bytes"), "{error}");
}

#[test]
fn every_single_damaged_byte() {
    let table = compiled(&sample()).unwrap();
    assert!(exercise(&table));
    let mut accepted = 0;
    for at in 0..table.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = table.clone();
            damaged[at] ^= flip;
            accepted += usize::from(exercise(&damaged));
        }
    }
    // Slots, flags and bit sets can't all be checked; most of the rest is.
    println!("{accepted} of {} damaged tables are accepted, and harmless", 3 * table.len());
    for len in 0..table.len() {
        assert!(Tokenizer::parse(&table[..len]).is_err(), "cut to {len}");
    }
    let mut longer = table.clone();
    longer.extend_from_slice(&[0; 100]);
    assert!(exercise(&longer));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_tables_do_no_harm(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        which in 0..4usize,
    ) {
        static TABLES: LazyLock<[Vec<u8>; 4]> = LazyLock::new(|| {
            [sample(), staged(), of_characters("Llama"), of_characters("Llama 2, new")].map(|json| compiled(&json).unwrap())
        });
        let mut table = TABLES[which].clone();
        for (at, byte) in edits {
            let at = at.index(table.len());
            table[at] = byte;
        }
        exercise(&table);
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        exercise(&bytes);
        let mut header = compiled(&sample()).unwrap()[..8].to_vec();
        header.extend_from_slice(&bytes);
        exercise(&header);
    }

    #[test]
    fn any_text_comes_back(text in "\\PC*") {
        let mut value = sample();
        value["normalizer"] = Value::Null;
        let table = compiled(&value).unwrap();
        let tokenizer = Tokenizer::parse(&table).unwrap();
        let mut out = String::new();
        let mut decoder = Decoder::new();
        // Without the template's token in front.
        for &id in encode(&tokenizer, &text).iter().skip(1) {
            decoder.push(&tokenizer, id, &mut |piece| out.push_str(piece)).unwrap();
        }
        decoder.finish(&mut |piece| out.push_str(piece));
        prop_assert_eq!(out, text);
    }
}
