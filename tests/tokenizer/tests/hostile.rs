//! Tables that are damaged, and tokenizers that are refused.

use elapid_core::tokenizer::table::{Header, PreTokenizer};
use elapid_core::tokenizer::{Decoder, EncodeOptions, Encoder, Tokenizer, TokenizerError};
use elapid_pack::tokenizer::{CompileError, compile};
use elapid_tests::tokenizer_json::sample;
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
        (set("/pre_tokenizer", json!({"type": "Metaspace"})), "Metaspace"),
        (set("/pre_tokenizer", Value::Null), "no pre_tokenizer"),
        (set("/pre_tokenizer/add_prefix_space", json!(true)), "add_prefix_space"),
        (set("/pre_tokenizer/use_regex", json!(false)), "use_regex"),
        (
            set(
                "/pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": [{"type": "Digits"}, byte_level]}),
            ),
            "Digits, ByteLevel",
        ),
        (
            set(
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated"}),
            ),
            "x+",
        ),
        (set("/decoder", json!({"type": "WordPiece"})), "WordPiece"),
        (set("/post_processor", json!({"type": "BertProcessing"})), "BertProcessing"),
        (set("/added_tokens/0/lstrip", json!(true)), "lstrip"),
        (set("/added_tokens/0/rstrip", json!(true)), "rstrip"),
        (set("/added_tokens/0/single_word", json!(true)), "single_word"),
        (set("/added_tokens/1/id", json!(5_000)), "5000"),
        (set("/added_tokens/3/content", json!("e\u{301}!")), "NFC"),
        (set("/model/merges/0", json!("Ġ nosuchtoken")), "nosuchtoken"),
        (set("/model/merges/0", json!("Ġ t x")), "not two tokens"),
        (set("/model/vocab/he", json!(3)), "id 3"),
    ];
    for (value, name) in cases {
        let message = compiled(&value).expect_err(name).to_string();
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
    fn damaged_tables_do_no_harm(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut table = compiled(&sample()).unwrap();
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
