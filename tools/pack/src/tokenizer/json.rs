//! `tokenizer.json`: what of it is supported, in the form that the table is built from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use elapid_core::tokenizer::chars::{Chars, MARK, Words};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

use super::CompileError;
use super::added::{AddedToken, Normalization, add};
use super::auto::{self, Auto, Beside, Class};
use super::parts::{sequence, type_of};
use super::pre_tokenizer::{self, PreTokenizer};
use super::sentencepiece::{Parts, Treatment, byte_of, is_unjoined};
use super::tokens::{Token, invalid, unsupported};

/// A tokenizer as its file describes it, checked and in bytes.
pub struct Description {
    pub pre_tokenizer: PreTokenizer,
    pub nfc: bool,
    /// A word that is in the vocabulary is that token, whatever the merges say.
    pub ignore_merges: bool,
    /// The vocabulary and the added tokens, by id.
    pub tokens: BTreeMap<u32, Token>,
    /// Left, right and merged token, by rank.
    pub merges: Vec<[u32; 3]>,
    /// Tokens before and after a text.
    pub template: [Vec<u32>; 2],
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    padding: Value,
    model: Bpe,
}

/// What tells whether the rest can be read: nothing else of the file is kept.
#[derive(Deserialize)]
struct Kind {
    model: ModelKind,
}

#[derive(Deserialize)]
struct ModelKind {
    r#type: Option<String>,
    merges: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Bpe {
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// Two tokens that become one, in either spelling.
enum Merge {
    Line(String),
    Pair(String, String),
}

/// By hand: serde's untagged enums would hold each of a million merges twice, and in pieces.
impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens, with a space between them or in an array")
            }
            fn visit_str<E>(self, line: &str) -> Result<Merge, E> {
                Ok(Merge::Line(line.to_owned()))
            }
            fn visit_string<E>(self, line: String) -> Result<Merge, E> {
                Ok(Merge::Line(line))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Merge, A::Error> {
                let mut next = |at| items.next_element()?.ok_or_else(|| A::Error::invalid_length(at, &self));
                let pair = Merge::Pair(next(0)?, next(1)?);
                match items.next_element::<IgnoredAny>()? {
                    None => Ok(pair),
                    Some(_) => Err(A::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Reads a `tokenizer.json`, alone or with the files beside it.
pub fn read(json: &[u8], beside: Option<&Beside>) -> Result<(Description, Option<Auto>), CompileError> {
    let Kind { model } = serde_json::from_slice(json)?;
    match model.r#type.as_deref() {
        Some("BPE") => {}
        // Old files leave the type out where it is BPE.
        None if model.merges.is_some() => {}
        other => return unsupported(format!("model of type {}", other.unwrap_or("(none)"))),
    }
    let file: File = serde_json::from_slice(json)?;
    let model = file.model;
    let parts =
        Parts { normalizer: &file.normalizer, pre_tokenizer: &file.pre_tokenizer, decoder: &file.decoder };
    let of_characters = parts.is_of_characters()?;
    model.check(of_characters)?;
    if let Some(token) = file.added_tokens.iter().find(|token| token.id.is_none()) {
        return invalid(format!("the added token {:?} has no id", token.content));
    }

    let mut template = template(&file.post_processor)?;
    let mut ignore_merges = model.ignore_merges.unwrap_or(false);
    let mut own = file.added_tokens.as_slice();
    let padding = file.padding.get("pad_token").and_then(Value::as_str);
    let mut auto =
        beside.map(|beside| auto::read(beside, own, &model.vocab, padding, of_characters)).transpose()?;
    let llama = auto.as_ref().and_then(|auto| auto.llama);
    if let (Some(llama), Some(auto)) = (llama, auto.as_mut())
        && parts.read().ok() != Some(llama.treatment())
    {
        auto.overridden.push("normalizer, pre_tokenizer and decoder");
    }
    let (mut nfc, pre_tokenizer, mut tokens, merges) = if of_characters {
        let treatment = match llama {
            Some(llama) => llama.treatment(),
            None => parts.read()?,
        };
        let tokens = characters(&model.vocab, treatment.byte_tokens)?;
        let merges = merges(&model, &tokens)?;
        let chars = model.chars(treatment, &tokens, &merges, llama.is_some())?;
        (false, PreTokenizer::Chars(chars), tokens, merges)
    } else {
        let nfc = normalizer(&file.normalizer)?;
        let pre_tokenizer = pre_tokenizer::read(&file.pre_tokenizer)?;
        decoder(&file.decoder)?;
        let tokens = vocabulary(&model.vocab)?;
        let merges = merges(&model, &tokens)?;
        (nfc, pre_tokenizer, tokens, merges)
    };
    if let Some(auto) = auto.as_mut().filter(|auto| auto.class != Class::AsItIs) {
        auto.check_rebuilt(&pre_tokenizer, own)?;
        auto.override_part("normalizer", &mut nfc, auto.class == Class::GptNeoX);
        auto.override_part("model.ignore_merges", &mut ignore_merges, false);
        if auto.class == Class::GptNeoX {
            auto.override_part("post_processor", &mut template, Default::default());
        }
        own = &[];
    }

    let later = auto.as_ref().map_or(&[][..], |auto| &auto.add);
    add(&mut tokens, &model.vocab, own, later, normalization(nfc, &pre_tokenizer))?;
    for id in template.iter().flatten() {
        if !tokens.contains_key(id) {
            return invalid(format!("post_processor puts in token {id}, which does not exist"));
        }
    }
    Ok((Description { pre_tokenizer, nfc, ignore_merges, tokens, merges, template }, auto))
}

/// Whether text is normalised to NFC.
fn normalizer(part: &Value) -> Result<bool, CompileError> {
    let parts = sequence(part, "normalizers")?;
    for part in &parts {
        if type_of(part) != "NFC" {
            return unsupported(format!("normalizer {}", type_of(part)));
        }
    }
    Ok(!parts.is_empty())
}

fn decoder(part: &Value) -> Result<(), CompileError> {
    for part in sequence(part, "decoders")? {
        if type_of(part) != "ByteLevel" {
            return unsupported(format!("decoder {}", type_of(part)));
        }
    }
    Ok(())
}

/// The tokens that the post-processor puts before and after a text.
fn template(part: &Value) -> Result<[Vec<u32>; 2], CompileError> {
    let mut ids = [Vec::new(), Vec::new()];
    for part in sequence(part, "processors")? {
        match type_of(part) {
            // It changes offsets only.
            "ByteLevel" => continue,
            "TemplateProcessing" if ids.iter().all(Vec::is_empty) => {}
            other => return unsupported(format!("post_processor {other}")),
        }
        let Some(pieces) = part["single"].as_array() else {
            return invalid("post_processor TemplateProcessing without single");
        };
        let mut side = 0;
        for piece in pieces {
            if !piece["Sequence"].is_null() {
                if side == 1 || piece["Sequence"]["id"] != "A" {
                    return unsupported("post_processor TemplateProcessing with more than one sequence");
                }
                side = 1;
                continue;
            }
            let name = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
            let Some(special) = part["special_tokens"][name]["ids"].as_array() else {
                return invalid(format!(
                    "post_processor TemplateProcessing names the unknown token {name:?}"
                ));
            };
            for id in special {
                match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
                    Some(id) => ids[side].push(id),
                    None => return invalid(format!("post_processor TemplateProcessing has the id {id}")),
                }
            }
        }
        if side == 0 {
            return unsupported("post_processor TemplateProcessing without the text");
        }
    }
    Ok(ids)
}

impl Bpe {
    /// How characters are treated with this vocabulary.
    fn chars(
        &self,
        treatment: Treatment,
        tokens: &BTreeMap<u32, Token>,
        merges: &[[u32; 3]],
        llama: bool,
    ) -> Result<Chars, CompileError> {
        let Treatment { mut chars, byte_tokens } = treatment;
        let bytes = tokens.values().filter(|token| token.byte).count();
        chars.byte_fallback = llama || self.byte_fallback == Some(true);
        chars.fuse_unknown = llama || self.fuse_unk == Some(true);
        if chars.byte_fallback && (bytes != 256 || !byte_tokens) {
            return unsupported(format!(
                "model.byte_fallback with tokens for {bytes} bytes; all 256 and the decoder ByteFallback are needed"
            ));
        }
        // Without bytes to fall back to.
        chars.unknown = match &self.unk_token {
            Some(unknown) if !chars.byte_fallback => match self.vocab.get(unknown) {
                Some(&id) => Some(id),
                None => return invalid(format!("model.unk_token {unknown:?} is not in the vocabulary")),
            },
            _ => None,
        };
        let merged = || merges.iter().filter_map(|[.., id]| tokens.get(id)).map(|token| &*token.bytes);
        // Where unknown characters are left out, what is beside them is merged.
        let all_stay = chars.byte_fallback || chars.unknown.is_some();
        if chars.words == Words::Whole && all_stay && self.vocab.contains_key(MARK) && is_unjoined(merged()) {
            chars.words = Words::Unjoined;
        }
        Ok(chars)
    }

    fn check(&self, of_characters: bool) -> Result<(), CompileError> {
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return unsupported("model.dropout");
        }
        if self.continuing_subword_prefix.as_deref().is_some_and(|prefix| !prefix.is_empty()) {
            return unsupported("model.continuing_subword_prefix");
        }
        if self.end_of_word_suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
            return unsupported("model.end_of_word_suffix");
        }
        if of_characters {
            if self.ignore_merges == Some(true) {
                return unsupported("model.ignore_merges with SentencePiece's BPE");
            }
            return Ok(());
        }
        if self.byte_fallback == Some(true) {
            return unsupported("model.byte_fallback without the decoder ByteFallback");
        }
        // Bytes that UTF-8 has: letters and spaces must be there, others may be left out of a text if nothing is to
        // stand for them.
        let letters = byte_letters();
        for (c, byte) in letters.iter().filter(|(_, byte)| !matches!(byte, 0xc0 | 0xc1 | 0xf5..)) {
            if self.vocab.contains_key(c.encode_utf8(&mut [0; 4]) as &str) {
                continue;
            }
            if matches!(byte, b' '..=b'~') {
                return unsupported(format!(
                    "a vocabulary that is not byte-level: byte 0x{byte:02x} has no token"
                ));
            }
            if let Some(unknown) = &self.unk_token {
                return unsupported(format!(
                    "model.unk_token {unknown:?} for byte 0x{byte:02x}, which has no token"
                ));
            }
        }
        Ok(())
    }
}

/// Whether added tokens are matched in a text that has been changed.
fn normalization(nfc: bool, pre_tokenizer: &PreTokenizer) -> Normalization {
    match pre_tokenizer {
        PreTokenizer::Chars(chars) if chars.normalized_first => {
            if chars.spaces {
                Normalization::Marks
            } else {
                Normalization::Prefix
            }
        }
        _ if nfc => Normalization::Nfc,
        _ => Normalization::None,
    }
}

/// The vocabulary of a tokenizer whose words consist of characters.
fn characters(vocab: &HashMap<String, u32>, bytes: bool) -> Result<BTreeMap<u32, Token>, CompileError> {
    let mut tokens = BTreeMap::new();
    for (text, &id) in vocab {
        let byte = byte_of(text).filter(|_| bytes);
        let token = Token {
            bytes: byte.map_or_else(|| text.clone().into_bytes(), |byte| vec![byte]),
            word: byte.is_none(),
            byte: byte.is_some(),
            added: None,
        };
        if token.bytes.is_empty() {
            return invalid(format!("token {id} of the vocabulary is empty"));
        }
        if tokens.insert(id, token).is_some() {
            return invalid(format!("two tokens of the vocabulary have the id {id}"));
        }
    }
    Ok(tokens)
}

/// The letter that stands for each byte in a vocabulary: itself where it is printable in Latin-1, or else the next one
/// from U+0100 on (GPT-2's `bytes_to_unicode`).
fn byte_letters() -> HashMap<char, u8> {
    let mut next = 0x100;
    let mut letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    };
    (0..=255).map(|byte| (letter(byte), byte)).collect()
}

fn vocabulary(vocab: &HashMap<String, u32>) -> Result<BTreeMap<u32, Token>, CompileError> {
    let letters = byte_letters();
    let mut tokens = BTreeMap::new();
    for (text, &id) in vocab {
        let bytes: Option<Vec<u8>> = text.chars().map(|c| letters.get(&c).copied()).collect();
        let word = bytes.is_some();
        // What is not spelt in letters of bytes can't come from a text, and is shown as it is.
        let bytes = bytes.unwrap_or_else(|| text.clone().into_bytes());
        if bytes.is_empty() {
            return invalid(format!("token {id} of the vocabulary is empty"));
        }
        if tokens.insert(id, Token { bytes, word, byte: false, added: None }).is_some() {
            return invalid(format!("two tokens of the vocabulary have the id {id}"));
        }
    }
    Ok(tokens)
}

fn merges(model: &Bpe, tokens: &BTreeMap<u32, Token>) -> Result<Vec<[u32; 3]>, CompileError> {
    let mut pairs = Vec::with_capacity(model.merges.len());
    for merge in &model.merges {
        match merge {
            Merge::Pair(left, right) => pairs.push((left.as_str(), right.as_str())),
            Merge::Line(line) if line.starts_with("#version") => {}
            Merge::Line(line) => match line.split_once(' ').filter(|(_, right)| !right.contains(' ')) {
                Some(pair) => pairs.push(pair),
                None => return invalid(format!("merge {line:?} is not two tokens")),
            },
        }
    }
    let mut out = Vec::with_capacity(pairs.len());
    for (left, right) in pairs {
        let merged = format!("{left}{right}");
        let find = |text: &str| model.vocab.get(text).copied();
        let (Some(l), Some(r), Some(m)) = (find(left), find(right), find(&merged)) else {
            return invalid(format!(
                "merge {left:?} {right:?} uses or makes a token that is not in the vocabulary"
            ));
        };
        if ![l, r, m].iter().all(|id| tokens.get(id).is_some_and(|token| token.word)) {
            return unsupported(format!(
                "merge {left:?} {right:?} of tokens that are not spelt in byte-level letters, or stand for a byte"
            ));
        }
        out.push([l, r, m]);
    }
    // Of a pair that is listed twice, the last rank counts.
    let mut seen = HashSet::new();
    let mut out: Vec<[u32; 3]> =
        out.into_iter().rev().filter(|merge| seen.insert([merge[0], merge[1]])).collect();
    out.reverse();
    Ok(out)
}
