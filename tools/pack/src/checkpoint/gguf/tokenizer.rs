//! The tokenizer of a GGUF file, as the tokenizer.json and tokenizer_config.json that a Hugging Face folder would have.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use crate::PackError;
use crate::checkpoint::Faults;

/// GPT-2's splitting, with every byte as a letter.
const GPT2: &str = "gpt-2";
/// Falcon's.
const FALCON: &str = "falcon";

/// The longest token of SentencePiece that is taken apart, in bytes; the longest in use have 48.
const LONGEST: usize = 128;

/// How words end in Llama 3's and Qwen's expressions, after the digits.
const CL100K: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// What a GGUF file says of texts.
#[derive(Debug, Clone)]
pub(in crate::checkpoint) struct Texts {
    /// The file.
    pub(in crate::checkpoint) path: PathBuf,
    /// A tokenizer.json of the same tokenizer.
    pub(in crate::checkpoint) tokenizer: Option<Vec<u8>>,
    /// Whether the file has a tokenizer that can't be read: a fault that was listed.
    pub(in crate::checkpoint) is_refused: bool,
    /// A tokenizer_config.json with the special tokens and the chat template.
    pub(in crate::checkpoint) config: Map<String, Value>,
    /// What the user should know.
    pub(in crate::checkpoint) notes: Vec<String>,
}

/// GGUF's types of tokens.
mod kind {
    pub(super) const NORMAL: u32 = 1;
    pub(super) const UNKNOWN: u32 = 2;
    pub(super) const CONTROL: u32 = 3;
    pub(super) const USER_DEFINED: u32 = 4;
    pub(super) const UNUSED: u32 = 5;
}

impl Texts {
    pub(super) fn read(metadata: &Metadata, faults: &mut Faults) -> Result<Self, PackError> {
        let mut texts = Self {
            path: metadata.path.clone(),
            tokenizer: None,
            is_refused: false,
            config: Map::new(),
            notes: Vec::new(),
        };
        texts.config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        if let Some(template) = faults.or(metadata.text("tokenizer.chat_template"), None)? {
            texts.config.insert("chat_template".into(), template.into());
        }
        let read = texts.read_tokenizer(metadata, faults);
        texts.is_refused = read.is_err();
        faults.or(read, ())?;
        Ok(texts)
    }

    /// Reads the tokenizer, up to a fault that hides the rest of it.
    fn read_tokenizer(&mut self, metadata: &Metadata, faults: &mut Faults) -> Result<(), PackError> {
        let model = match metadata.text("tokenizer.ggml.model")? {
            None | Some("none" | "no_vocab") => return Ok(()),
            Some(model) => model,
        };
        if !matches!(model, "gpt2" | "llama") {
            let reason = format!(
                "is {model}; `gpt2` and `llama` are read: pack from the original checkpoint, or remove its tokenizer to pack without one"
            );
            return Err(metadata.invalid("tokenizer.ggml.model", reason));
        }
        let vocab = Vocabulary::read(metadata, faults)?;
        for (key, name) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad")] {
            // That it is no number is said where ids are read.
            if let Ok(Some((_, text))) = vocab.named(key) {
                self.config.insert(format!("{name}_token"), text.into());
            }
        }
        let tokenizer = match model {
            "llama" => sentence_piece(&vocab, faults)?,
            _ => byte_level(&vocab, &mut self.notes, faults)?,
        };
        self.tokenizer = Some(tokenizer.to_string().into_bytes());
        Ok(())
    }
}

/// The tokens, checked.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    kinds: Option<&'a [u32]>,
    /// Ids by text, without those that are not used.
    ids: HashMap<&'a str, u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata, faults: &mut Faults) -> Result<Self, PackError> {
        let (tokens_key, kinds_key) = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type");
        let tokens =
            metadata.texts(tokens_key)?.ok_or_else(|| metadata.invalid(tokens_key, "is missing".into()))?;
        let kinds = metadata.integers(kinds_key).and_then(|kinds| match kinds {
            Some(kinds) if kinds.len() != tokens.len() => {
                let reason = format!("has {} elements for {} tokens", kinds.len(), tokens.len());
                Err(metadata.invalid(kinds_key, reason))
            }
            kinds => Ok(kinds),
        });
        let kinds = faults.or(kinds, None)?;
        let mut this = Self { metadata, tokens, kinds, ids: HashMap::new() };
        for (id, text) in (0..).zip(tokens) {
            if this.kind(id) == kind::UNUSED {
                continue;
            }
            if let Some(other) = this.ids.insert(text, id) {
                let reason =
                    format!("has {text:?} twice, as {other} and {id}: the file is damaged, convert it again");
                faults.meet(metadata.invalid(tokens_key, reason))?;
            }
        }
        Ok(this)
    }

    fn kind(&self, id: u32) -> u32 {
        self.kinds.and_then(|kinds| kinds.get(id as usize)).copied().unwrap_or(kind::NORMAL)
    }

    /// The special token of a name, if the metadata name one that exists.
    fn named(&self, name: &str) -> Result<Option<(u32, &'a str)>, PackError> {
        let id = self.metadata.whole(&format!("tokenizer.ggml.{name}_token_id"))?;
        let id = id.and_then(|id| u32::try_from(id).ok());
        Ok(id.and_then(|id| Some((id, self.tokens.get(id as usize)?.as_str()))))
    }

    /// The added tokens: those that are found in a text before it is split.
    fn added(&self) -> Vec<Value> {
        let tokens = (0..).zip(self.tokens).filter_map(|(id, text)| {
            let special = match self.kind(id) {
                kind::CONTROL | kind::UNKNOWN => true,
                kind::USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        });
        tokens.collect()
    }

    /// The tokens put before and after a text.
    fn around(&self, bos_by_default: bool, faults: &mut Faults) -> Result<Value, PackError> {
        let mut pieces = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
        let mut special = Map::new();
        for (name, default) in [("bos", bos_by_default), ("eos", false)] {
            let key = format!("tokenizer.ggml.add_{name}_token");
            if !faults.or(self.metadata.boolean(&key), None)?.unwrap_or(default) {
                continue;
            }
            let Some((id, text)) = self.named(name)? else {
                faults.meet(self.metadata.invalid(&key, format!("is true, but there is no {name} token")))?;
                continue;
            };
            special.insert(text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }));
            let piece = json!({ "SpecialToken": { "id": text, "type_id": 0 } });
            if name == "bos" { pieces.insert(0, piece) } else { pieces.push(piece) }
        }
        Ok(match special.is_empty() {
            true => Value::Null,
            false => json!({
                "type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": special,
            }),
        })
    }

    fn vocab(&self) -> BTreeMap<&str, u32> {
        self.ids.iter().map(|(text, id)| (*text, *id)).collect()
    }
}

/// Byte-level BPE, split as the name `pre` says.
fn byte_level(
    vocab: &Vocabulary<'_>,
    notes: &mut Vec<String>,
    faults: &mut Faults,
) -> Result<Value, PackError> {
    let (pre_key, merges_key) = ("tokenizer.ggml.pre", "tokenizer.ggml.merges");
    let metadata = vocab.metadata;
    let merges = metadata.texts(merges_key);
    let merges =
        merges.and_then(|merges| merges.ok_or_else(|| metadata.invalid(merges_key, "is missing".into())));
    let merges = faults.or(merges, &[])?;
    let pre = match faults.or(metadata.text(pre_key), Some(GPT2))? {
        None | Some("default") => {
            // Files of before the key: those of this architecture had one of two tokenizers.
            // That it is no truth value is said where the configuration is read.
            let falcon = metadata.boolean("mamba.ssm.dt_b_c_rms").ok().flatten().unwrap_or(false);
            let pre = if falcon { FALCON } else { "olmo" };
            let of = if falcon { "Falcon" } else { "GPT-NeoX" };
            notes.push(format!(
                "`{pre_key}` does not say how the tokenizer splits a text: packed as that of {of}"
            ));
            pre
        }
        Some(pre) => pre,
    };
    let byte_level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let split = |expression: &str| {
        json!({
            "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false,
        })
    };
    let sequence = |parts: Vec<Value>| json!({ "type": "Sequence", "pretokenizers": parts });
    let words = |digits: &str| sequence(vec![split(&CL100K.join(digits)), byte_level(false)]);
    // Whether text is brought to NFC, and whether whole words go before merges, too.
    let (pre_tokenizer, nfc, ignore_merges) = match pre {
        GPT2 | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "mellum" | "jais" | "trillion" | "exaone4" => {
            (byte_level(true), false, false)
        }
        // GPT-NeoX's tokenizer.
        "olmo" | "mpt" => (byte_level(true), true, false),
        FALCON => (
            sequence(vec![
                json!({ "type": "Punctuation", "behavior": "Contiguous" }),
                byte_level(true),
                json!({ "type": "Digits", "individual_digits": false }),
                split("[0-9][0-9][0-9]"),
            ]),
            false,
            false,
        ),
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" => (
            sequence(vec![json!({ "type": "Digits", "individual_digits": true }), byte_level(true)]),
            false,
            false,
        ),
        "llama-bpe" | "llama-v3" | "llama3" | "falcon3" | "falcon-h1" | "pixtral" => {
            (words(r"\p{N}{1,3}"), false, true)
        }
        "dbrx" | "smaug-bpe" => (words(r"\p{N}{1,3}"), false, false),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" | "megrez" => (words(r"\p{N}"), true, false),
        other => {
            let reason = format!(
                "is {other}, and how that splits a text is not known here: pack from the original checkpoint with its tokenizer.json"
            );
            faults.meet(metadata.invalid(pre_key, reason))?;
            (byte_level(true), false, false)
        }
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocab.added(),
        "normalizer": if nfc { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer,
        "post_processor": vocab.around(false, faults)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "vocab": vocab.vocab(), "merges": merges, "ignore_merges": ignore_merges,
        },
    }))
}

/// SentencePiece's BPE: of two neighbours those are merged whose whole has the highest score.
fn sentence_piece(vocab: &Vocabulary<'_>, faults: &mut Faults) -> Result<Value, PackError> {
    let metadata = vocab.metadata;
    let scores_key = "tokenizer.ggml.scores";
    let scores = metadata.floats(scores_key).and_then(|scores| {
        let scores = scores.ok_or_else(|| metadata.invalid(scores_key, "is missing".into()))?;
        let reason = || format!("has {} elements for {} tokens", scores.len(), vocab.tokens.len());
        let fits = scores.len() == vocab.tokens.len();
        if fits { Ok(scores) } else { Err(metadata.invalid(scores_key, reason())) }
    });
    let scores = faults.or(scores, &[])?;
    let mut merges = Vec::new();
    for ((id, text), score) in (0..).zip(vocab.tokens).zip(scores) {
        if vocab.kind(id) != kind::NORMAL {
            continue;
        }
        if text.len() > LONGEST {
            let reason = format!("has a token of {} bytes, at most {LONGEST} are possible: {id}", text.len());
            faults.meet(metadata.invalid("tokenizer.ggml.tokens", reason))?;
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(l), Some(r)) = (vocab.ids.get(left), vocab.ids.get(right)) {
                merges.push((*score, *l, *r));
            }
        }
    }
    merges.sort_by(|(a, l, r), (b, other_l, other_r)| b.total_cmp(a).then((l, r).cmp(&(other_l, other_r))));
    let text = |id: u32| vocab.tokens.get(id as usize).map_or("", String::as_str);
    let merges: Vec<[&str; 2]> = merges.iter().map(|&(_, l, r)| [text(l), text(r)]).collect();
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if faults.or(metadata.boolean("tokenizer.ggml.add_space_prefix"), None)?.unwrap_or(true) {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown =
        (0..).zip(vocab.tokens).find(|(id, _)| vocab.kind(*id) == kind::UNKNOWN).map(|(_, text)| text);
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocab.added(),
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": vocab.around(true, faults)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab.vocab(), "merges": merges,
        },
    }))
}
