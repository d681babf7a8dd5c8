//! Target `tokenizer`: a compiled tokenizer, damaged, and any text through it and back.

use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};
use elapid_core::tokenizer::table::HEADER_LEN;
use elapid_core::tokenizer::{Decoder, EncodeOptions, Encoder, Tokenizer, TokenizerError};
use elapid_pack::tokenizer::compile;
use serde_json::{Value, json};

use super::edit::ByteEdit;
use super::{assert_one_line, mostly, planted, up_to};
use crate::tokenizer_json::{character_kinds, characters, falcon, kinds, sample};

/// Scratch that any text of a case does with, for each byte of it.
const SCRATCH: usize = 128;
/// Bytes that one byte of a text can become in NFC.
const NFC: usize = 3;

/// A tokenizer, its damage and a text.
#[derive(Arbitrary, Debug)]
pub struct Input {
    base: u8,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 3))]
    edits: Vec<ByteEdit>,
    /// Damage to the header's numbers, which tables rarely survive.
    #[arbitrary(with = |u: &mut Unstructured<'_>| mostly(u, None))]
    header: Option<ByteEdit>,
    add_special: bool,
    parse_special: bool,
    scratch: u16,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 12))]
    text: Vec<Piece>,
}

/// A piece of a text.
#[derive(Arbitrary, Debug)]
enum Piece {
    Text(String),
    /// One that some rule treats in its own way.
    Known(u8),
    Again(char, u8),
}

const KNOWN: [&str; 24] = [
    "<|end|>",
    "<|end",
    "the",
    " the",
    "foo bar",
    "  ",
    "\n\n",
    "é!",
    "e\u{301}!",
    "e\u{301}\u{315}",
    "\u{1100}\u{1161}\u{11a8}",
    "a\u{323}\u{307}",
    "123",
    "12345",
    "'s",
    "'ll",
    "²",
    "한",
    "🐍",
    "\u{200b}",
    "\u{0}",
    "aaaaaaaa",
    "ing",
    "\r\n",
];

/// How many kinds of tokenizers there are: of two built-in pre-tokenizers, with NFC and without; of stages, in the same way;
/// of characters, with spaces replaced before and after added tokens are looked for; and with wide indices.
const KINDS: usize = 10;
/// The first of them, whose indices have 16 bits.
const NARROW: usize = 8;
/// The first of them, whose words are of bytes.
const BYTES: usize = 6;
/// The first of them that have a built-in pre-tokenizer.
const BUILT_IN: usize = 4;

/// The compiled tokenizer of a kind. A wide one takes seconds to make where code is instrumented.
fn base(kind: usize) -> &'static [u8] {
    static TABLES: [OnceLock<Vec<u8>>; KINDS] = [const { OnceLock::new() }; KINDS];
    TABLES[kind].get_or_init(|| {
        let mut json = sample();
        if kind % 2 == 1 {
            json["pre_tokenizer"] = falcon();
        }
        if (BYTES..NARROW).contains(&kind) {
            make_of_characters(&mut json, if kind == BYTES { "Llama" } else { "Llama 2, new" });
        }
        if (BUILT_IN..BYTES).contains(&kind) {
            let name = if kind == BUILT_IN { "Qwen2" } else { "DeepSeek" };
            let staged = kinds().into_iter().find(|(known, _)| *known == name).expect("a known kind").1;
            json["pre_tokenizer"] = staged["pre_tokenizer"].clone();
        }
        if (2..BUILT_IN).contains(&kind) || kind == BUILT_IN + 1 || kind >= NARROW {
            json["normalizer"] = Value::Null;
        }
        if kind >= NARROW {
            widen(&mut json);
        }
        let json = serde_json::to_vec(&json).expect("JSON");
        compile(&json).expect("a tokenizer that is supported")
    })
}

/// Makes a tokenizer one of SentencePiece's kind.
fn make_of_characters(json: &mut Value, kind: &str) {
    let (vocab, merges) = characters(&KNOWN.concat().repeat(30), 40, true);
    let parts = character_kinds().into_iter().find(|(name, _)| *name == kind).expect("a known kind").1;
    let mut next = vocab.as_object().expect("a vocabulary").len();
    for token in json["added_tokens"].as_array_mut().expect("a list") {
        let known = token["content"].as_str().and_then(|content| vocab.get(content)).cloned();
        next += usize::from(known.is_none());
        token["id"] = known.unwrap_or(json!(next - 1));
    }
    json["post_processor"] = Value::Null;
    json["model"] = json!({"type": "BPE", "vocab": vocab, "merges": merges});
    for key in ["normalizer", "pre_tokenizer", "decoder"] {
        json[key] = parts[key].clone();
    }
    for (key, part) in parts["model"].as_object().expect("an object") {
        json["model"][key] = part.clone();
    }
}

/// Adds more tokens than 16 bits count.
fn widen(json: &mut Value) {
    let vocab = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    for id in vocab.len()..66_000 {
        vocab.insert(format!("ĠĠĠ{id}"), json!(id));
    }
    for i in 1..4 {
        json["added_tokens"][i]["id"] = json!(66_000 + i - 1);
    }
}

impl Input {
    fn table(&self) -> (Vec<u8>, bool) {
        // Wide tables are large, so less frequent.
        let kind = usize::from(self.base) % (2 * KINDS);
        let mut table = base(if kind < KINDS { kind } else { kind % NARROW }).to_vec();
        let whole = self.edits.is_empty() && self.header.is_none();
        let mut rest = table.split_off(HEADER_LEN);
        self.edits.iter().for_each(|edit| edit.apply(&mut rest));
        // Magic and version stay.
        let mut numbers = table.split_off(8);
        self.header.iter().for_each(|edit| edit.apply(&mut numbers));
        table.extend(numbers);
        table.extend(rest);
        (table, whole)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for piece in &self.text {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Known(i) => text.push_str(KNOWN[usize::from(*i) % KNOWN.len()]),
                Piece::Again(c, count) => text.extend(std::iter::repeat_n(*c, usize::from(*count))),
            }
        }
        text
    }
}

/// Encodes with a scratch that grows from `scratch` bytes on. `longest` are the bytes of the longest token. `None` where a
/// damaged automaton looks at too much.
fn encode(
    tokenizer: &Tokenizer<'_>,
    longest: usize,
    text: &str,
    options: EncodeOptions,
    scratch: usize,
) -> Option<Vec<u32>> {
    let most = SCRATCH * text.len() + 4 * longest + 4096;
    let (mut ids, mut scratch) = (Vec::new(), vec![0; scratch]);
    let mut encoder = Encoder::new(text, options);
    while let Err(error) = encoder.run(tokenizer, &mut scratch, &mut |id| ids.push(id)) {
        if matches!(error, TokenizerError::TooManySteps { .. }) {
            return None;
        }
        let TokenizerError::ScratchTooSmall { needed, given } = error else { panic!("{error}") };
        assert!(needed > given && needed <= most, "{needed} bytes of scratch, given {given}, at most {most}");
        scratch.resize(needed, 0);
    }
    let header = tokenizer.header();
    let around = if options.add_special { (header.prefix + header.suffix) as usize } else { 0 };
    assert!(ids.len() <= NFC * text.len() + around, "{} tokens for {} bytes", ids.len(), text.len());
    Some(ids)
}

/// Decodes, and compares with the standard library's way.
fn decode(tokenizer: &Tokenizer<'_>, ids: impl Iterator<Item = u32>) -> String {
    let (mut text, mut bytes) = (String::new(), Vec::new());
    let mut decoder = Decoder::new();
    for id in ids {
        match decoder.push(tokenizer, id, &mut |piece| text.push_str(piece)) {
            Ok(()) => bytes.extend_from_slice(tokenizer.token_bytes(id).expect("it was decoded")),
            Err(error) => {
                assert!(matches!(error, TokenizerError::UnknownId { .. }), "{error}");
                assert!(tokenizer.token_bytes(id).is_none());
            }
        }
    }
    decoder.finish(&mut |piece| text.push_str(piece));
    if tokenizer.header().chars.is_none() {
        assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
    text
}

/// Runs the target, and says how far the input came.
pub fn run(input: &Input) -> &'static str {
    let (table, whole) = input.table();
    let tokenizer = match Tokenizer::parse(&table) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            assert!(!whole, "{error}");
            assert_one_line(&error);
            return "refused";
        }
    };
    let text = input.text();
    let options = EncodeOptions { add_special: input.add_special, parse_special: input.parse_special };
    let tokens = (0..tokenizer.vocab_size()).filter_map(|id| tokenizer.token_bytes(id));
    let longest = tokens.map(<[u8]>::len).max().unwrap_or(0);
    let encode = |text: &str, scratch| encode(&tokenizer, longest, text, options, scratch);
    let plenty = SCRATCH * text.len() + (1 << 20);
    let (ids, again) = (encode(&text, input.scratch.into()), encode(&text, plenty));
    let (Some(ids), Some(again)) = (ids, again) else {
        assert!(!whole, "too many steps");
        return "damaged";
    };
    assert_eq!(ids, again, "the size of the scratch changes the tokens");
    if whole {
        // The sample's template puts a token in front, and all bytes have one: all but NFC is undone.
        let ids =
            ids.into_iter().skip(if options.add_special { tokenizer.header().prefix as usize } else { 0 });
        let mut back = decode(&tokenizer, ids);
        if planted("tokenizer") && text.contains("12") {
            back.pop();
        }
        if tokenizer.header().chars.is_some() {
            let letters = |text: &str| text.replace([' ', '▁'], "");
            assert_eq!(letters(&back), letters(&text));
        } else if tokenizer.header().nfc {
            let again = encode(&back, 0).unwrap_or_default().into_iter().skip(options.add_special.into());
            assert_eq!(decode(&tokenizer, again), back, "NFC of NFC");
        } else {
            assert_eq!(back, text);
        }
    } else {
        decode(&tokenizer, ids.into_iter().chain(0..300));
    }
    for id in tokenizer.special_tokens() {
        assert!(tokenizer.is_special(id));
    }
    let _ = (0..300).filter_map(|id| tokenizer.id_of(tokenizer.token_bytes(id)?)).count();
    if whole { "whole" } else { "damaged" }
}
