//! Added tokens: those of tokenizer.json, and those that the files beside it declare.

use std::collections::{BTreeMap, HashMap, HashSet};

use elapid_core::tokenizer::chars::MARK;
use elapid_core::tokenizer::nfc::{normalize_segment, segment_end};
use serde::Deserialize;

use super::CompileError;
use super::tokens::{Added, Token, invalid, unsupported};

/// Where a token is declared, for messages.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The file; empty for tokenizer.json.
    pub file: &'static str,
    /// The key in it.
    pub key: String,
}

impl Origin {
    pub fn new(file: &'static str, key: &str) -> Self {
        Self { file, key: key.to_owned() }
    }

    fn refuse<T>(&self, reason: String) -> Result<T, CompileError> {
        if self.file.is_empty() {
            return unsupported(reason);
        }
        let reason = format!("asks for what is not supported: {reason}");
        Err(CompileError::Beside { file: self.file, key: self.key.clone(), reason })
    }
}

/// An added token as a file describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct AddedToken {
    /// The id that the file gives it.
    pub id: Option<u32>,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    pub normalized: Option<bool>,
    #[serde(default)]
    pub special: bool,
    /// The file gives its text alone.
    #[serde(skip)]
    pub plain: bool,
    #[serde(skip)]
    pub origin: Origin,
}

impl AddedToken {
    /// A special token with nothing particular about it.
    pub fn special(content: &str, origin: Origin) -> Self {
        Self {
            id: None,
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special: true,
            plain: true,
            origin,
        }
    }

    /// Whether it is matched in the normalised text.
    fn normalized(&self) -> bool {
        self.normalized.unwrap_or(!self.special)
    }

    /// Whether Python takes two tokens for equal: texts, or objects with the same values.
    pub fn is_same(&self, other: &Self) -> bool {
        let parts = |token: &Self| {
            [token.single_word, token.lstrip, token.rstrip, token.normalized(), token.special, token.plain]
        };
        self.content == other.content && parts(self) == parts(other)
    }
}

/// What the tokenizers crate keeps of a token.
struct Known<'a> {
    id: u32,
    /// As it was added last.
    token: &'a AddedToken,
    /// It was special at any time.
    special: bool,
}

/// What is done to a text before normalised added tokens are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalization {
    /// Nothing.
    None,
    /// NFC.
    Nfc,
    /// A `▁` may be put before it.
    Prefix,
    /// The same, and spaces become `▁`.
    Marks,
}

/// Adds tokens to the vocabulary as the tokenizers crate does: those of tokenizer.json at once, then `later` ones.
pub fn add(
    tokens: &mut BTreeMap<u32, Token>,
    vocab: &HashMap<String, u32>,
    own: &[AddedToken],
    later: &[AddedToken],
    normalization: Normalization,
) -> Result<(), CompileError> {
    let mut contents = HashSet::new();
    for AddedToken { content, .. } in own.iter().filter(|token| !token.content.is_empty()) {
        if !contents.insert(content) {
            return invalid(format!("the added token {content:?} is listed twice"));
        }
    }
    let mut known: BTreeMap<&str, Known<'_>> = BTreeMap::new();
    for batch in [own, later] {
        add_batch(&mut known, vocab, batch)?;
    }
    for (content, known) in known {
        known.check(normalization)?;
        let entry = tokens.entry(known.id).or_default();
        let marked = normalization == Normalization::Marks && known.token.normalized();
        let bytes = if marked { content.replace(' ', MARK) } else { content.to_owned() }.into_bytes();
        if !entry.bytes.is_empty() && entry.bytes != bytes {
            return known
                .token
                .origin
                .refuse(format!("the added token {content:?} has the id of other bytes in the vocabulary"));
        }
        entry.bytes = bytes;
        entry.added = Some(known.added());
    }
    Ok(())
}

/// Adds tokens at once. They are numbered by the vocabulary where they are in it, or else one after the other.
fn add_batch<'a>(
    known: &mut BTreeMap<&'a str, Known<'a>>,
    vocab: &HashMap<String, u32>,
    batch: &'a [AddedToken],
) -> Result<(), CompileError> {
    let first = u32::try_from(vocab.len()).unwrap_or(u32::MAX);
    let last = known.values().map(|known| known.id).max();
    let mut next = last.map_or(first, |last| first.max(last.saturating_add(1)));
    for token in batch.iter().filter(|token| !token.content.is_empty()) {
        let content = token.content.as_str();
        let is_new = !known.contains_key(content);
        let entry = known.entry(content).or_insert_with(|| {
            let id = vocab.get(content).copied().unwrap_or(next);
            Known { id, token, special: false }
        });
        if is_new && !vocab.contains_key(content) {
            next = next.saturating_add(1);
        }
        if let Some(id) = token.id.filter(|&id| id != entry.id) {
            let expected = entry.id;
            let is = if is_new { "is next" } else { "is its id" };
            return token
                .origin
                .refuse(format!("the added token {content:?} has the id {id}, where {expected} {is}"));
        }
        entry.special |= token.special;
        entry.token = token;
    }
    Ok(())
}

impl Known<'_> {
    fn added(&self) -> Added {
        Added {
            special: self.special,
            normalized: self.token.normalized(),
            lstrip: self.token.lstrip,
            rstrip: self.token.rstrip,
            single_word: self.token.single_word,
        }
    }

    /// Refuses what the runtime does not do.
    fn check(&self, normalization: Normalization) -> Result<(), CompileError> {
        let AddedToken { content, origin, .. } = self.token;
        let changed = normalization != Normalization::None;
        if changed && self.token.normalized() && self.added().has_rules() {
            return origin.refuse(format!(
                "single_word, lstrip or rstrip of the added token {content:?}, which is matched in the normalised text"
            ));
        }
        let nfc = normalization == Normalization::Nfc;
        if nfc && self.token.normalized() && normalize(content) != content.as_bytes() {
            return origin
                .refuse(format!("the added token {content:?} is matched in NFC, and is not NFC itself"));
        }
        Ok(())
    }
}

/// A short text in NFC.
fn normalize(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    let mut scratch = vec![0; 64 * text.len()];
    while at < text.len() {
        let end = segment_end(text.as_bytes(), at, text.len());
        if let Ok(len) = normalize_segment(&text.as_bytes()[at..end], &mut scratch) {
            out.extend_from_slice(&scratch[..len]);
        }
        at = end;
    }
    out
}
