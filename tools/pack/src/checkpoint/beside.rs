//! What lies beside the weights: tokenizer, special tokens and chat template.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Checkpoint;
use super::gguf::Texts;
use super::json::{self, CONFIG_LIMIT};
use super::place::{Folder, Place};
use crate::PackError;
use crate::chat::ChatTemplate;
use crate::tokenizer::Beside;

/// The largest tokenizer.json accepted, in bytes; the largest known ones have some 35 MB.
const TOKENIZER_LIMIT: u64 = 128 << 20;

/// Files that together are a tokenizer, and what to call them.
const UNREAD_TOKENIZERS: &[(&[&str], &str)] = &[
    (&["vocab.json", "merges.txt"], "vocab.json and merges.txt"),
    (&["vocab.json"], "vocab.json"),
    (&["vocab.txt"], "vocab.txt"),
    (&["tokenizer.model"], "tokenizer.model (SentencePiece)"),
    (&["spiece.model"], "spiece.model (SentencePiece)"),
    (&["sentencepiece.bpe.model"], "sentencepiece.bpe.model (SentencePiece)"),
    (&["tiktoken.model"], "tiktoken.model"),
    (&["tekken.json"], "tekken.json"),
    (&["rwkv_vocab_v20230424.txt"], "rwkv_vocab_v20230424.txt"),
];

/// Where what is not weights comes from.
#[derive(Debug)]
pub(super) enum BesideWeights {
    Files {
        place: Box<dyn Place>,
        /// `tokenizer_class` of config.json.
        tokenizer_class: Option<Value>,
        is_hugging_face: bool,
    },
    Gguf(Box<Texts>),
}

/// A tokenizer that is given apart from the checkpoint.
#[derive(Debug)]
pub(super) enum GivenTokenizer {
    /// A tokenizer.json, which is read as if it lay beside the weights.
    File(PathBuf),
    /// A folder or a model of the Hub with one and the files that belong to it.
    Place(Box<dyn Place>),
}

impl Checkpoint {
    /// Takes the tokenizer from a tokenizer.json, from a folder with one and the files that belong to it, or from a model of the Hub,
    /// in place of the checkpoint's own.
    ///
    /// # Errors
    /// If there is none.
    pub fn use_tokenizer(&mut self, path: &Path) -> Result<(), PackError> {
        #[cfg(feature = "hub")]
        if let Some(source) = super::hub::Source::named(path)? {
            return self.use_tokenizer_in(source.place, path);
        }
        if std::fs::metadata(path).map_err(PackError::io(path))?.is_dir() {
            return self.use_tokenizer_in(Box::new(Folder(path.to_path_buf())), path);
        }
        self.tokenizer = Some(GivenTokenizer::File(path.to_path_buf()));
        Ok(())
    }

    /// Takes the tokenizer from a place with a tokenizer.json.
    pub(super) fn use_tokenizer_in(&mut self, place: Box<dyn Place>, path: &Path) -> Result<(), PackError> {
        if !place.has("tokenizer.json")? {
            let (path, advice) = (path.to_path_buf(), "give a folder with one, or the file itself".into());
            return Err(PackError::NotACheckpoint { path, missing: "tokenizer.json", advice });
        }
        self.tokenizer = Some(GivenTokenizer::Place(place));
        Ok(())
    }

    /// The file that a companion of the weights is in: of a GGUF file, itself.
    #[must_use]
    pub fn path_beside(&self, name: &str) -> PathBuf {
        match &self.tokenizer {
            Some(GivenTokenizer::File(path)) if name == "tokenizer.json" => return path.clone(),
            Some(GivenTokenizer::Place(place)) => return place.path(name),
            _ => {}
        }
        match &self.beside {
            BesideWeights::Files { place, .. } => place.path(name),
            BesideWeights::Gguf(texts) => texts.path.clone(),
        }
    }

    /// The raw bytes of tokenizer.json, or `None` if there is none.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>, PackError> {
        let name = "tokenizer.json";
        match &self.tokenizer {
            Some(GivenTokenizer::Place(place)) => return json::read_file(&**place, name, TOKENIZER_LIMIT),
            Some(GivenTokenizer::File(path)) => {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                return json::read_file(&Folder::of(path), name, TOKENIZER_LIMIT);
            }
            None => {}
        }
        match &self.beside {
            BesideWeights::Files { place, .. } => json::read_file(&**place, name, TOKENIZER_LIMIT),
            BesideWeights::Gguf(texts) => Ok(texts.tokenizer.clone()),
        }
    }

    /// Whether there is a tokenizer that can't be read, which was listed as a fault.
    pub(crate) fn is_tokenizer_refused(&self) -> bool {
        self.tokenizer.is_none() && matches!(&self.beside, BesideWeights::Gguf(texts) if texts.is_refused)
    }

    /// Files of a tokenizer in a format that is not read, where there is no tokenizer.json.
    ///
    /// # Errors
    /// If that can't be told.
    pub fn unread_tokenizer(&self) -> Result<Option<&'static str>, PackError> {
        let BesideWeights::Files { place, .. } = &self.beside else { return Ok(None) };
        for (files, name) in UNREAD_TOKENIZERS {
            let mut all = true;
            for file in *files {
                all &= place.has(file)?;
            }
            if all {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// The files beside tokenizer.json that change what it means.
    ///
    /// # Errors
    /// If one of them can't be read.
    pub fn beside_tokenizer(&self) -> Result<Beside, PackError> {
        let config = self.tokenizer_config()?.unwrap_or_default();
        let (place, tokenizer_class, is_hugging_face): (&dyn Place, _, _) =
            match (&self.tokenizer, &self.beside) {
                (Some(GivenTokenizer::Place(place)), _) => (&**place, &None, &false),
                (_, BesideWeights::Files { place, tokenizer_class, is_hugging_face }) => {
                    (&**place, tokenizer_class, is_hugging_face)
                }
                (_, BesideWeights::Gguf(_)) => return Ok(Beside { config, ..Beside::default() }),
            };
        let object = |name: &str| json::read_object(place, name, CONFIG_LIMIT);
        Ok(Beside {
            config,
            special_tokens_map: object("special_tokens_map.json")?.unwrap_or_default(),
            added_tokens: object("added_tokens.json")?.unwrap_or_default(),
            model_class: tokenizer_class.clone(),
            hugging_face: *is_hugging_face,
        })
    }

    /// The object in tokenizer_config.json, or `None` if there is none.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn tokenizer_config(&self) -> Result<Option<Map<String, Value>>, PackError> {
        match (self.text_files(), &self.beside) {
            (Some(place), _) => json::read_object(place, "tokenizer_config.json", CONFIG_LIMIT),
            (None, BesideWeights::Gguf(texts)) => Ok(Some(texts.config.clone())),
            (None, BesideWeights::Files { .. }) => Ok(None),
        }
    }

    /// The chat template, or `None` for a model without one. The file chat_template.jinja
    /// goes before the key in tokenizer_config.json, as in transformers. `tokens` are the special tokens that it can
    /// name.
    ///
    /// # Errors
    /// If it can't be read or is no template.
    pub fn chat_template(&self, tokens: &[(String, String)]) -> Result<Option<ChatTemplate>, PackError> {
        let name = "chat_template.jinja";
        if let Some(place) = self.text_files()
            && let Some(bytes) = json::read_file(place, name, CONFIG_LIMIT)?
        {
            return ChatTemplate::from_bytes(bytes, tokens, &place.path(name)).map(Some);
        }
        let config = self.tokenizer_config()?.unwrap_or_default();
        ChatTemplate::from_tokenizer_config(&config, tokens, &self.path_beside("tokenizer_config.json"))
    }

    /// Where tokenizer_config.json and the chat template are; `None` for a GGUF file, which has them in itself.
    fn text_files(&self) -> Option<&dyn Place> {
        match (&self.tokenizer, &self.beside) {
            (Some(GivenTokenizer::Place(place)), _) => Some(&**place),
            (_, BesideWeights::Files { place, .. }) => Some(&**place),
            (_, BesideWeights::Gguf(_)) => None,
        }
    }

    /// Whether config.json is in the original Mamba's spelling, whose models share one tokenizer and lie without it.
    #[must_use]
    pub fn is_original(&self) -> bool {
        matches!(self.beside, BesideWeights::Files { is_hugging_face: false, .. })
    }

    /// What the user should know of how the checkpoint was read, in sentences.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}
