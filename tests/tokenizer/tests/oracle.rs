//! The tokenizer against the `tokenizers` crate, token for token.

use std::time::Instant;

use crate::support::{Random, assert_same, data, decode, encode, encode_with, oracle, random_text};
use elapid_core::tokenizer::{Decoder, EncodeOptions, Tokenizer, TokenizerError};
use elapid_pack::tokenizer::compile;

const TOKENIZERS: [&str; 4] = [
    "tokenizer/falcon-tokenizer.json",
    "tokenizer/gpt-neox-tokenizer.json",
    "models/address-300k/tokenizer.json",
    "models/address-4m/tokenizer.json",
];

/// Every tokenizer: name, oracle and compiled table.
fn all() -> impl Iterator<Item = (&'static str, tokenizers::Tokenizer, Vec<u8>)> {
    TOKENIZERS.into_iter().map(|name| {
        let json = data(name);
        (name, oracle(&json), compile(&json).unwrap())
    })
}

/// Texts that are easy to get wrong, and the ids that the Python package `tokenizers` 0.22 gives for them.
fn golden() -> serde_json::Value {
    serde_json::from_slice(&data("tokenizer/golden.json")).unwrap()
}

#[test]
fn golden_texts() {
    let golden = golden();
    let texts = golden["texts"].as_array().unwrap();
    assert!(texts.len() >= 60, "{} texts", texts.len());
    for (name, oracle, table) in all() {
        let tokenizer = Tokenizer::parse(&table).unwrap();
        let ids = golden["ids"][name].as_array().unwrap();
        assert_eq!(ids.len(), texts.len(), "{name}");
        for (text, ids) in texts.iter().zip(ids) {
            let text = text.as_str().unwrap();
            assert_same(name, &oracle, &tokenizer, text);
            let found = serde_json::json!(encode(&tokenizer, text));
            assert_eq!(found, *ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn whole_files() {
    for (name, oracle, table) in all() {
        let tokenizer = Tokenizer::parse(&table).unwrap();
        let files = ["text/sotu.txt", "text/moby-dick.txt"].map(elapid_test_support::data::path);
        // A text with more than English: wiki.test.raw of wikitext-2, for example.
        for file in files.into_iter().chain(std::env::var_os("ELAPID_TEXT").map(Into::into)) {
            let text = std::fs::read_to_string(&file).unwrap();
            let file = file.display();
            let start = Instant::now();
            let found = encode(&tokenizer, &text);
            let took = start.elapsed();
            // The oracle takes memory for each token: by parts, cut where every pre-tokenizer cuts too.
            let mut rest = text.as_str();
            let mut wanted = Vec::new();
            while !rest.is_empty() {
                let near = rest.char_indices().map(|(i, _)| i).find(|&i| i >= 1 << 14).unwrap_or(rest.len());
                let cut = rest[near..].find("e ").map_or(rest.len(), |i| near + i + 1);
                wanted.extend_from_slice(oracle.encode_fast(&rest[..cut], true).unwrap().get_ids());
                rest = &rest[cut..];
            }
            assert!(found == wanted, "{name}: {file} differs");
            assert_eq!(decode(&tokenizer, &found, false), text, "{name}: {file}");
            println!(
                "{name}: {file}: {} tokens, {:.1} MB/s",
                found.len(),
                text.len() as f64 / 1e6 / took.as_secs_f64()
            );
        }
    }
}

#[test]
fn random_unicode() {
    let (mut texts, mut not_nfc) = (0, 0);
    for (name, oracle, table) in all() {
        let tokenizer = Tokenizer::parse(&table).unwrap();
        let mut random = Random(1);
        for _ in 0..30_000 {
            let text = random_text(&mut random);
            assert_same(name, &oracle, &tokenizer, &text);
            let ids = encode(&tokenizer, &text);
            let decoded = decode(&tokenizer, &ids, false);
            assert_eq!(decoded, oracle.decode(&ids, false).unwrap(), "{name}: {text:?}");
            assert_eq!(
                decode(&tokenizer, &ids, true),
                oracle.decode(&ids, true).unwrap(),
                "{name}: {text:?}"
            );
            if tokenizer.header().nfc {
                not_nfc += usize::from(decoded != text);
            }
            texts += 1;
        }
    }
    println!("{texts} random texts, {not_nfc} of them changed by NFC");
    assert!(texts == 0 || not_nfc > 1000, "the random texts hardly need NFC: {not_nfc}");
}

#[test]
fn special_tokens_as_text() {
    for (name, mut oracle, table) in all() {
        oracle.set_encode_special_tokens(true);
        let tokenizer = Tokenizer::parse(&table).unwrap();
        let options = EncodeOptions { parse_special: false, ..EncodeOptions::default() };
        let mut random = Random(2);
        for i in 0..3_000 {
            let text = if i == 0 { "a<|endoftext|>>>TITLE<<   b".into() } else { random_text(&mut random) };
            let wanted = oracle.encode(text.as_str(), true).unwrap();
            let found = encode_with(&tokenizer, &text, options);
            assert_eq!(found, wanted.get_ids(), "{name}: {text:?}");
            assert!(!found.iter().any(|&id| tokenizer.is_special(id)), "{name}: {text:?}");
        }
    }
}

#[test]
fn vocabulary_as_the_oracle() {
    for (name, oracle, table) in all() {
        let tokenizer = Tokenizer::parse(&table).unwrap();
        assert_eq!(tokenizer.vocab_size() as usize, oracle.get_vocab_size(true), "{name}");
        let added = oracle.get_added_tokens_decoder();
        for id in 0..tokenizer.vocab_size() {
            let bytes = tokenizer.token_bytes(id).unwrap();
            // Added tokens come first: NeoX has runs of spaces both there and in its vocabulary.
            let found = tokenizer.id_of(bytes).unwrap();
            assert_eq!(tokenizer.token_bytes(found), Some(bytes), "{name}: {id}");
            assert!(
                found == id || (tokenizer.is_added(found) && !tokenizer.is_added(id)),
                "{name}: {id}, {found}"
            );
            assert_eq!(tokenizer.is_added(id), added.contains_key(&id), "{name}: {id}");
            assert_eq!(
                tokenizer.is_special(id),
                added.get(&id).is_some_and(|token| token.special),
                "{name}: {id}"
            );
            let wanted = oracle.decode(&[id], false).unwrap();
            assert_eq!(String::from_utf8_lossy(bytes), wanted, "{name}: {id}");
        }
        assert_eq!(tokenizer.special_tokens().next(), Some(0), "{name}");
        assert_eq!(tokenizer.id_of(b"<|no such token|>"), None);
        // The padded vocabulary of a model goes on.
        let mut decoder = Decoder::new();
        let beyond = tokenizer.vocab_size();
        let error = decoder.push(&tokenizer, beyond, &mut |_| panic!("it is no text")).unwrap_err();
        assert_eq!(error, TokenizerError::UnknownId { id: beyond, vocab_size: beyond });
    }
}

#[test]
fn streams_of_any_tokens_decode_as_the_whole() {
    for (name, _, table) in all() {
        let tokenizer = Tokenizer::parse(&table).unwrap();
        // The tokens of single bytes, of which most sequences are not UTF-8.
        let single: Vec<u32> =
            (0..tokenizer.vocab_size()).filter(|&id| tokenizer.token_bytes(id).unwrap().len() == 1).collect();
        let mut random = Random(3);
        let mut invalid = 0;
        for _ in 0..20_000 {
            let mut bytes = Vec::new();
            let mut ids = Vec::new();
            for _ in 0..random.below(12) {
                let id = if random.below(3) == 0 {
                    random.below(tokenizer.vocab_size() as usize) as u32
                } else {
                    single[random.below(single.len())]
                };
                bytes.extend_from_slice(tokenizer.token_bytes(id).unwrap());
                ids.push(id);
            }
            let wanted = String::from_utf8_lossy(&bytes);
            invalid += usize::from(wanted.contains('\u{fffd}'));
            assert_eq!(decode(&tokenizer, &ids, false), wanted, "{name}: {bytes:x?}");
        }
        assert!(invalid > 5_000, "{name}: {invalid}");
    }
    // Every sequence of two bytes and many of more, a byte at a time and cut anywhere.
    let mut random = Random(4);
    let leads =
        [0x00, 0x41, 0x80, 0xbf, 0xc2, 0xe0, 0xe2, 0xed, 0xef, 0xf0, 0xf4, 0xf5, 0xff, 0x9f, 0xa0, 0x90];
    for _ in 0..200_000 {
        let bytes: Vec<u8> = (0..random.below(9)).map(|_| leads[random.below(leads.len())]).collect();
        let mut out = String::new();
        let mut decoder = Decoder::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(1 + random.below(rest.len()));
            decoder.push_bytes(piece, &mut |text| out.push_str(text));
            rest = after;
        }
        decoder.finish(&mut |text| out.push_str(text));
        assert_eq!(out, String::from_utf8_lossy(&bytes), "{bytes:x?}");
    }
}

#[test]
fn long_words_take_no_quadratic_time() {
    for (name, oracle, table) in all() {
        let tokenizer = Tokenizer::parse(&table).unwrap();
        // Long enough for the tournament, short enough for the oracle's regular expressions.
        let mut texts: Vec<String> =
            ["a", " ", "ab", "\n", "7", "=", "é", "e\u{301}", "\u{301}", "한", "👍", "\u{fb2c}"]
                .iter()
                .flat_map(|piece| [33, 100, 5_000].map(|count| piece.repeat(count)))
                .collect();
        let mut random = Random(5);
        texts.extend((0..200).map(|_| {
            let alphabet = random.pick(&["etaoin", "ab", "0123456789", "=-+", "ñáéí"]);
            let letters: Vec<char> = alphabet.chars().collect();
            (0..33 + random.below(300)).map(|_| letters[random.below(letters.len())]).collect()
        }));
        for text in &texts {
            assert_same(name, &oracle, &tokenizer, text);
        }
        for piece in ["a", " ", "7", "\u{301}\u{323}", "e\u{301}", "\u{1161}", "\n x"] {
            let text = piece.repeat((1 << 20) / piece.len());
            let start = Instant::now();
            let ids = encode(&tokenizer, &text);
            let took = start.elapsed();
            assert!(!ids.is_empty());
            // A quadratic way takes minutes.
            assert!(took.as_secs() < 10, "{name}: 1 MiB of {piece:?} took {took:?}");
        }
    }
}

#[test]
fn scratch_depends_on_the_longest_word_alone() {
    for (name, _, table) in all() {
        let tokenizer = Tokenizer::parse(&table).unwrap();
        let mut random = Random(6);
        // No run of these has more than 40 characters of up to 4 bytes between the spaces.
        let mut text = String::new();
        for _ in 0..20_000 {
            text.push_str(&random_text(&mut random).chars().take(40).collect::<String>());
            text.push_str(" x ");
        }
        let mut scratch = vec![0; tokenizer.scratch_for(600)];
        let mut ids = Vec::new();
        tokenizer.encode(&text, EncodeOptions::default(), &mut scratch, &mut |id| ids.push(id)).unwrap();
        assert_eq!(ids, encode(&tokenizer, &text), "{name}");
        // Short words need none, and NFC text is used where it lies.
        let plain = "Call me Ishmael. Some years ago, naïvely: 1234567 — \n\n  and so on".repeat(100);
        tokenizer.encode(&plain, EncodeOptions::default(), &mut [], &mut |_| {}).unwrap();
        let long = "x".repeat(1000);
        let error =
            tokenizer.encode(&long, EncodeOptions::default(), &mut [0; 100], &mut |_| {}).unwrap_err();
        assert_eq!(error, TokenizerError::ScratchTooSmall { needed: 16_000, given: 100 }, "{name}");
        assert!(error.to_string().contains("16000"), "{error}");
    }
}

#[test]
fn compiling_is_deterministic_and_compact() {
    for name in TOKENIZERS {
        let json = data(name);
        let table = compile(&json).unwrap();
        assert_eq!(table, compile(&json).unwrap(), "{name}");
        let limit = if name.contains("300k") { 25_000 } else { 2_500_000 };
        println!("{name}: {} bytes", table.len());
        assert!(table.len() < limit, "{name}: {} bytes", table.len());
    }
}

#[test]
fn the_bundled_model_has_the_table_that_is_compiled_today() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/models");
    let table = compile(&data("models/address-4m/tokenizer.json")).unwrap();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let starts = |file: &[u8]| file.windows(4).any(|bytes| bytes == b"eBPE");
    let mut packed = files.filter(|file| starts(file)).peekable();
    assert!(packed.peek().is_some(), "no packed model");
    assert!(
        packed.any(|file| file.windows(table.len()).any(|bytes| bytes == table)),
        "the table has other bytes"
    );
}
