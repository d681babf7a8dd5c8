//! The tokenizer against the `tokenizers` crate, token for token.

use std::time::Instant;

use elapid_core::tokenizer::{Decoder, EncodeOptions, Encoder, Tokenizer, TokenizerError};
use elapid_pack::tokenizer::compile;

const TOKENIZERS: [&str; 4] = [
    "tokenizer/falcon-tokenizer.json",
    "tokenizer/gpt-neox-tokenizer.json",
    "models/address-300k/tokenizer.json",
    "models/address-4m/tokenizer.json",
];

/// A file of the test data.
fn data(name: &str) -> Vec<u8> {
    let path = elapid_test_support::data::path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The oracle without truncation or padding: a runtime encodes the whole text.
fn oracle(json: &[u8]) -> tokenizers::Tokenizer {
    let mut oracle = tokenizers::Tokenizer::from_bytes(json).unwrap();
    oracle.with_truncation(None).unwrap();
    oracle.with_padding(None);
    oracle
}

/// Every tokenizer: name, oracle and compiled table.
fn all() -> impl Iterator<Item = (&'static str, tokenizers::Tokenizer, Vec<u8>)> {
    TOKENIZERS.into_iter().map(|name| {
        let json = data(name);
        (name, oracle(&json), compile(&json).unwrap())
    })
}

/// Encodes, and gives scratch exactly as much as each error asks for.
fn encode_with(tokenizer: &Tokenizer<'_>, text: &str, options: EncodeOptions) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut scratch = Vec::new();
    let mut encoder = Encoder::new(text, options);
    while let Err(error) = encoder.run(tokenizer, &mut scratch, &mut |id| ids.push(id)) {
        let TokenizerError::ScratchTooSmall { needed, given } = error else { panic!("{error}") };
        assert_eq!(given, scratch.len());
        assert!(needed > given, "{needed} needed of {given}");
        scratch.resize(needed, 0xa5);
    }
    ids
}

fn encode(tokenizer: &Tokenizer<'_>, text: &str) -> Vec<u32> {
    encode_with(tokenizer, text, EncodeOptions::default())
}

fn decode(tokenizer: &Tokenizer<'_>, ids: &[u32], skip_special: bool) -> String {
    let mut out = String::new();
    let mut decoder = Decoder::new().skip_special(skip_special);
    for &id in ids {
        decoder.push(tokenizer, id, &mut |text| out.push_str(text)).unwrap();
    }
    decoder.finish(&mut |text| out.push_str(text));
    out
}

#[track_caller]
fn assert_same(name: &str, oracle: &tokenizers::Tokenizer, tokenizer: &Tokenizer<'_>, text: &str) {
    let wanted = oracle.encode(text, true).unwrap();
    let found = encode(tokenizer, text);
    if found != wanted.get_ids() {
        let at = found.iter().zip(wanted.get_ids()).take_while(|(a, b)| a == b).count();
        let near = |ids: &[u32]| ids[at.min(ids.len())..(at + 8).min(ids.len())].to_vec();
        let text: String = text.chars().take(200).collect();
        panic!("{name}: {text:?}: token {at}: {:?} is not {:?}", near(&found), near(wanted.get_ids()));
    }
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

/// A small generator of pseudorandom numbers (SplitMix64), so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Ranges of characters with trouble of their own: Latin with marks, Greek, combining marks, Hebrew and Arabic, Indic,
/// Hangul letters and syllables, spaces and format characters, symbols, kana and CJK, compatibility ideographs, next to
/// the surrogates, mathematical digits, musical symbols that decompose, emoji, tags, and all of Unicode.
const RANGES: [(u32, u32); 22] = [
    (0x20, 0x7e),
    (0x00, 0x1f),
    (0x80, 0x17f),
    (0x1e00, 0x1fff),
    (0x300, 0x36f),
    (0x370, 0x52f),
    (0x591, 0x6ff),
    (0x900, 0xdff),
    (0x1100, 0x11ff),
    (0xac00, 0xac80),
    (0x2000, 0x206f),
    (0x2070, 0x27bf),
    (0x3000, 0x30ff),
    (0x4e00, 0x4e40),
    (0xf900, 0xfb4f),
    (0xd780, 0xe010),
    (0xfe00, 0xffff),
    (0x1d7ce, 0x1d7ff),
    (0x1d150, 0x1d1d0),
    (0x1f300, 0x1faff),
    (0x2f800, 0x2fa1d),
    (0, 0x10_ffff),
];

const PIECES: [&str; 34] = [
    " ",
    "  ",
    "   ",
    "\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{85}",
    "\u{2028}",
    "'s",
    "'ll",
    "'",
    "'re",
    "'S",
    "123",
    "1234567",
    "²³¹",
    "½1",
    "٣٤٥",
    "\u{200d}",
    "\u{fe0f}",
    "👨\u{200d}👩\u{200d}👧",
    "<|endoftext|>",
    "<|padding|>",
    ">>TITLE<<",
    ">>",
    "<<",
    "                          ",
    "e\u{301}\u{323}",
    "\u{1100}\u{1161}\u{11a8}",
    "the",
    " of",
    "!?",
];

fn random_text(random: &mut Random) -> String {
    let mut text = String::new();
    for _ in 0..1 + random.below(12) {
        if random.below(3) == 0 {
            text.push_str(random.pick(&PIECES));
            continue;
        }
        let (low, high) = RANGES[random.below(RANGES.len())];
        for _ in 0..1 + random.below(6) {
            let c = low + random.below((high - low) as usize + 1) as u32;
            text.extend(char::from_u32(c));
            if random.below(8) == 0 {
                text.extend(char::from_u32(0x300 + random.below(0x70) as u32));
            }
        }
    }
    text
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
