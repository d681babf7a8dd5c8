//! What transformers' AutoTokenizer (5.24) makes of the files beside a tokenizer.json: the class that reads it, and the
//! tokens that are added to its own.
//!
//! The tests hold this against AutoTokenizer itself on made-up folders (`tests/data/autotokenizer.py`). What it does and
//! the packed table can't express is refused with the file and the key.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::CompileError;
use super::added::{AddedToken, Origin};
use super::pre_tokenizer::PreTokenizer;
use super::sentencepiece::Llama;

const CLASS: &str = "tokenizer_class";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
const DECODER: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
const ADDITIONAL: &str = "additional_special_tokens";
const EOS: &str = "eos_token";

/// The names of the special tokens that every tokenizer has, in transformers' order.
const NAMES: [&str; 7] = ["bos_token", EOS, "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The files beside a tokenizer.json.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// tokenizer_config.json; empty where there is none.
    pub config: Map<String, Value>,
    /// special_tokens_map.json, read where tokenizer_config.json has no `added_tokens_decoder`.
    pub special_tokens_map: Map<String, Value>,
    /// added_tokens.json, read where tokenizer_config.json has no `added_tokens_decoder`.
    pub added_tokens: Map<String, Value>,
    /// `tokenizer_class` of config.json.
    pub model_class: Option<Value>,
    /// Whether config.json is Hugging Face's: a tokenizer without a class is then a GPTNeoXTokenizer.
    pub hugging_face: bool,
}

/// How a tokenizer.json is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// As it is.
    AsItIs,
    /// Only vocabulary, merges and post-processor count.
    Gpt2,
    /// Only vocabulary and merges count; text is normalised to NFC.
    GptNeoX,
    /// SentencePiece's BPE: only vocabulary, merges and post-processor count.
    Llama,
}

impl Class {
    /// The class's name in transformers.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsItIs => "PreTrainedTokenizerFast",
            Self::Gpt2 => "GPT2Tokenizer",
            Self::GptNeoX => "GPTNeoXTokenizer",
            Self::Llama => "LlamaTokenizer",
        }
    }

    /// The special tokens that a class has where no file names them.
    fn defaults(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Self::AsItIs => &[],
            Self::Llama => &[("unk_token", "<unk>"), ("bos_token", "<s>"), (EOS, "</s>")],
            Self::Gpt2 => &[("unk_token", END), ("bos_token", END), (EOS, END)],
            Self::GptNeoX => {
                &[("unk_token", END), ("bos_token", END), (EOS, END), ("pad_token", "<|padding|>")]
            }
        }
    }
}

/// What the files beside a tokenizer.json ask for.
pub struct Auto {
    /// How tokenizer.json is read.
    pub class: Class,
    /// Tokens to add after those of tokenizer.json, in this order.
    pub add: Vec<AddedToken>,
    /// The special tokens by name.
    pub named: Vec<(String, String)>,
    /// The end token that a file names.
    pub eos: Option<AddedToken>,
    /// The settings of a LlamaTokenizer of SentencePiece's BPE.
    pub llama: Option<Llama>,
    /// Parts of tokenizer.json that the class leaves out.
    pub overridden: Vec<&'static str>,
}

impl Auto {
    /// Refuses where a class that builds a tokenizer of its own would cut text in other words than tokenizer.json
    /// does, or leave out tokens of it.
    pub fn check_rebuilt(
        &self,
        pre_tokenizer: &PreTokenizer,
        own: &[AddedToken],
    ) -> Result<(), CompileError> {
        let name = self.class.name();
        if self.class != Class::Llama && *pre_tokenizer != PreTokenizer::Gpt2 {
            let reason = format!(
                "makes this a {name}, which has another pre_tokenizer than tokenizer.json; PreTrainedTokenizerFast takes tokenizer.json as it is"
            );
            return refuse(CONFIG, CLASS, reason);
        }
        let left_out = own.iter().find(|own| self.add.iter().all(|added| added.content != own.content));
        match left_out {
            Some(token) => refuse(
                CONFIG,
                DECODER,
                format!(
                    "lacks {:?} of tokenizer.json, which a {name} then leaves out; declare it there, or make `{CLASS}` PreTrainedTokenizerFast, which takes tokenizer.json as it is",
                    token.content
                ),
            ),
            None => Ok(()),
        }
    }

    /// Gives a part the value that the class has for it, and keeps its name where that is another.
    pub fn override_part<T: PartialEq>(&mut self, name: &'static str, part: &mut T, value: T) {
        if *part != value {
            *part = value;
            self.overridden.push(name);
        }
    }
}

fn refuse<T>(
    file: &'static str,
    key: impl Into<String>,
    reason: impl Into<String>,
) -> Result<T, CompileError> {
    Err(CompileError::Beside { file, key: key.into(), reason: reason.into() })
}

/// Reads the files beside a tokenizer.json, whose own added tokens, vocabulary and token for padding are given.
pub fn read(
    beside: &Beside,
    own: &[AddedToken],
    vocab: &HashMap<String, u32>,
    padding: Option<&str>,
    of_characters: bool,
) -> Result<Auto, CompileError> {
    let class = class(beside, of_characters)?;
    refuse_settings(&beside.config, of_characters)?;
    let settings = Settings::read(beside)?;
    let declared = declared(beside, &settings, own)?;

    // Two names for one token are one; a later value takes the place of an earlier one.
    let mut named: Vec<(String, AddedToken)> = Vec::new();
    let mut put = |name: &str, token: AddedToken| match named.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = token,
        None => named.push((name.to_owned(), token)),
    };
    let padding = padding.filter(|_| class == Class::AsItIs).map(|token| ("pad_token", token));
    for name in NAMES {
        let default = || class.defaults().iter().copied().chain(padding).find(|(known, _)| *known == name);
        match settings.named.get(name) {
            Some(Some(token)) => put(name, token.clone()),
            Some(None) => {}
            None => default().into_iter().for_each(|(_, text)| {
                put(name, AddedToken::special(text, Origin::new(CONFIG, name)));
            }),
        }
    }
    settings.specific.iter().for_each(|(name, token)| put(name, token.clone()));

    let mut add: Vec<AddedToken> = declared.into_values().collect();
    let declared = add.len();
    let mut unordered = 0;
    for (token, specific) in named
        .iter()
        .map(|(name, token)| (token, !NAMES.contains(&name.as_str())))
        .chain(settings.extra.iter().map(|token| (token, false)))
    {
        let same = |other: &AddedToken| other.content == token.content;
        let known = class == Class::AsItIs && own.iter().any(same) || add.iter().take(declared).any(same);
        // One that is described otherwise is added again, and changes what was there.
        if known || add.iter().any(|other| other.is_same(token)) {
            continue;
        }
        unordered += u32::from(specific && !vocab.contains_key(&token.content) && !add.iter().any(same));
        if unordered > 1 {
            let reason = "is one of several new tokens whose ids depend on the order of the keys; give them in added_tokens_decoder";
            return refuse(token.origin.file, &token.origin.key, reason);
        }
        add.push(token.clone());
    }
    for token in &mut add {
        token.special |= named.iter().any(|(_, named)| named.content == token.content);
    }
    let named = named.into_iter().map(|(name, token)| (name, token.content)).collect();
    let eos = settings.named.get(EOS).cloned().flatten();
    let set = |key: &str, default: bool| match beside.config.get(key) {
        None | Some(Value::Null) => default,
        Some(value) => is_truthy(value),
    };
    let llama = Llama { legacy: set("legacy", false), add_prefix_space: set("add_prefix_space", true) };
    let llama = Some(llama).filter(|_| class == Class::Llama);
    Ok(Auto { class, add, named, eos, llama, overridden: Vec::new() })
}

/// The class that reads the tokenizer.json, from the first file that names one.
fn class(beside: &Beside, of_characters: bool) -> Result<Class, CompileError> {
    let truthy = |value: &&Value| !value.is_null() && *value != "";
    let of_config = beside.config.get(CLASS).filter(truthy).map(|value| (CONFIG, value));
    let named = of_config.or_else(|| Some(("config.json", beside.model_class.as_ref().filter(truthy)?)));
    let Some((file, name)) = named else {
        return Ok(if beside.hugging_face { Class::GptNeoX } else { Class::AsItIs });
    };
    let Some(name) = name.as_str() else {
        return refuse(file, CLASS, format!("is {name}; it must be the name of a class"));
    };
    match name.strip_suffix("Fast").unwrap_or(name) {
        "LlamaTokenizer" if of_characters => Ok(Class::Llama),
        "PreTrainedTokenizer"
        | "TokenizersBackend"
        | "PythonBackend"
        | "BloomTokenizer"
        | "LlamaTokenizer" => Ok(Class::AsItIs),
        "GPT2Tokenizer" => Ok(Class::Gpt2),
        "GPTNeoXTokenizer" => Ok(Class::GptNeoX),
        _ => refuse(
            file,
            CLASS,
            format!(
                "is {name}, and what that class makes of tokenizer.json is not known; known are PreTrainedTokenizerFast (tokenizer.json as it is), GPTNeoXTokenizer and GPT2Tokenizer"
            ),
        ),
    }
}

/// Refuses the keys that would give other tokens.
fn refuse_settings(config: &Map<String, Value>, of_characters: bool) -> Result<(), CompileError> {
    if !of_characters && config.get("add_prefix_space").is_some_and(is_truthy) {
        return refuse(
            CONFIG,
            "add_prefix_space",
            "is true: a space before a text is not supported; false leaves it out",
        );
    }
    if config.get("split_special_tokens").is_some_and(is_truthy) {
        return refuse(
            CONFIG,
            "split_special_tokens",
            "is true: special tokens in a text are always one token here",
        );
    }
    if config.get("auto_map").is_some_and(|map| map.is_array() || map.get("AutoTokenizer").is_some()) {
        return refuse(CONFIG, "auto_map", "names a tokenizer with code of its own, which is not run");
    }
    let files = config.get("fast_tokenizer_files").and_then(Value::as_array);
    if let Some(other) = files.into_iter().flatten().find(|file| **file != "tokenizer.json") {
        return refuse(
            CONFIG,
            "fast_tokenizer_files",
            format!(
                "names {other}, and only tokenizer.json is read; remove the key if that is the right one"
            ),
        );
    }
    Ok(())
}

/// The special tokens that the files name.
struct Settings {
    /// By the names that every tokenizer has; `None` for null, which is no token, not even the class's.
    named: BTreeMap<&'static str, Option<AddedToken>>,
    /// By other names, in transformers' order but for keys of one file, whose order is not known here.
    specific: Vec<(String, AddedToken)>,
    /// Without a name.
    extra: Vec<AddedToken>,
    /// What added_tokens.json takes for special.
    special: Vec<String>,
}

impl Settings {
    fn read(beside: &Beside) -> Result<Self, CompileError> {
        let mut values: BTreeMap<String, (Value, &'static str)> =
            beside.config.iter().map(|(key, value)| (key.clone(), (value.clone(), CONFIG))).collect();
        let none = |found: Option<&(Value, &str)>| found.is_none_or(|(value, _)| !is_truthy(value));
        if none(values.get(EXTRA)) {
            rename(&mut values, ADDITIONAL, EXTRA);
        }
        let mut explicit = Vec::new();
        for (key, (value, file)) in
            values.iter().filter(|(key, (value, _))| is_own_name(key) && value.is_string())
        {
            explicit.extend(token(value, file, key)?.map(|token| (key.clone(), token)));
        }
        values.retain(|key, (value, _)| !(is_own_name(key) && value.is_string()));
        explicit.append(&mut take_names(&mut values)?);
        if !beside.config.contains_key(DECODER) {
            merge_special_tokens_map(&mut values, &beside.special_tokens_map);
            explicit.append(&mut take_names(&mut values)?);
        }

        let mut named = BTreeMap::new();
        for name in NAMES {
            if let Some((value, file)) = values.get(name) {
                named.insert(name, token(value, file, name)?);
            }
        }
        let mut extra = extras(&values)?;
        // At this point transformers has not read objects of tokenizer_config.json.
        let is_read = |token: &&AddedToken| token.plain || token.origin.file == SPECIAL;
        let special = named.values().flatten().chain(&extra).filter(is_read);
        let special = special.map(|token| token.content.clone()).collect();
        if !values.contains_key(EXTRA) {
            rename(&mut values, ADDITIONAL, EXTRA);
            extra = extras(&values)?;
        }
        let mut specific = Vec::new();
        for (key, (value, file)) in values.iter().filter(|(key, _)| is_own_name(key)) {
            if value.is_string() || value.get("__type").is_some() {
                specific.extend(token(value, file, key)?.map(|token| (key.clone(), token)));
            }
        }
        specific.append(&mut explicit);
        Ok(Self { named, specific, extra, special })
    }
}

/// Whether a key names a special token that only some tokenizers have, such as `image_token`.
fn is_own_name(key: &str) -> bool {
    key.ends_with("_token") && !NAMES.contains(&key)
}

/// Whether Python takes a value for true.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

fn rename(values: &mut BTreeMap<String, (Value, &'static str)>, from: &str, to: &str) {
    if let Some(value) = values.remove(from) {
        values.insert(to.to_owned(), value);
    }
}

/// Takes `extra_special_tokens` out where it is an object: names of tokens.
fn take_names(
    values: &mut BTreeMap<String, (Value, &'static str)>,
) -> Result<Vec<(String, AddedToken)>, CompileError> {
    let Some((Value::Object(names), file)) = values.get(EXTRA).cloned() else { return Ok(Vec::new()) };
    values.remove(EXTRA);
    let mut tokens = Vec::new();
    for (name, value) in names {
        match token(&value, file, &format!("{EXTRA}.{name}"))? {
            Some(token) => tokens.push((name, token)),
            None => return refuse(file, format!("{EXTRA}.{name}"), "is null; it must be a token"),
        }
    }
    Ok(tokens)
}

/// The tokens without names.
fn extras(values: &BTreeMap<String, (Value, &'static str)>) -> Result<Vec<AddedToken>, CompileError> {
    let (list, file) = match values.get(EXTRA) {
        None | Some((Value::Null, _)) => return Ok(Vec::new()),
        Some((Value::Array(list), file)) => (list, *file),
        Some((_, file)) => {
            return refuse(file, EXTRA, "must be a list of tokens, or an object of named ones");
        }
    };
    let one = |value| match token(value, file, EXTRA)? {
        Some(token) => Ok(token),
        None => refuse(file, EXTRA, "has a null; it must be a list of tokens"),
    };
    list.iter().map(one).collect()
}

/// Puts the values of special_tokens_map.json over those of tokenizer_config.json.
fn merge_special_tokens_map(values: &mut BTreeMap<String, (Value, &'static str)>, map: &Map<String, Value>) {
    let typed = |value: &Value| match value {
        Value::Object(token) => {
            let mut token = token.clone();
            token.insert("__type".into(), "AddedToken".into());
            token.insert("special".into(), true.into());
            Value::Object(token)
        }
        other => other.clone(),
    };
    for (key, value) in map {
        let merged = match value {
            Value::Object(_) if key != EXTRA => typed(value),
            Value::Array(more) if key == EXTRA => {
                let mut list = match values.get(EXTRA) {
                    Some((Value::Array(list), _)) => list.clone(),
                    _ => Vec::new(),
                };
                for value in more.iter().map(typed) {
                    if !list.contains(&value) {
                        list.push(value);
                    }
                }
                Value::Array(list)
            }
            other => other.clone(),
        };
        values.insert(key.clone(), (merged, SPECIAL));
    }
}

/// A token as a file spells it: a text, or an object that says that it is one. `None` for null.
fn token(value: &Value, file: &'static str, key: &str) -> Result<Option<AddedToken>, CompileError> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(AddedToken::special(text, Origin::new(file, key)))),
        Value::Object(object) if object.get("__type").is_some_and(|kind| kind == "AddedToken") => {
            added_token(value, Origin::new(file, key)).map(Some)
        }
        _ => refuse(
            file,
            key,
            format!("is {value}; a token is a text, or an object with `\"__type\": \"AddedToken\"`"),
        ),
    }
}

fn added_token(value: &Value, origin: Origin) -> Result<AddedToken, CompileError> {
    match serde_json::from_value::<AddedToken>(value.clone()) {
        Ok(token) => Ok(AddedToken { id: None, origin, ..token }),
        Err(error) => refuse(origin.file, origin.key, format!("is not an added token: {error}")),
    }
}

/// The tokens that are declared with their ids, by id.
fn declared(
    beside: &Beside,
    settings: &Settings,
    own: &[AddedToken],
) -> Result<BTreeMap<u32, AddedToken>, CompileError> {
    let mut declared = BTreeMap::new();
    match beside.config.get(DECODER) {
        Some(Value::Object(tokens)) => {
            for (id, value) in tokens {
                let key = format!("{DECODER}.{id}");
                let Ok(id) = id.parse::<u32>() else { return refuse(CONFIG, key, "has a key that is no id") };
                let token = added_token(value, Origin::new(CONFIG, &key))?;
                if declared.insert(id, AddedToken { id: Some(id), ..token }).is_some() {
                    return refuse(CONFIG, key, "declares an id a second time");
                }
            }
        }
        Some(_) => return refuse(CONFIG, DECODER, "must be an object from ids to tokens"),
        None => {
            for (content, id) in &beside.added_tokens {
                let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    return refuse(ADDED, content, format!("is {id}; it must be an id"));
                };
                let special = settings.special.contains(content);
                let origin = Origin::new(ADDED, content);
                let token = AddedToken { special, id: Some(id), ..AddedToken::special(content, origin) };
                if let Some(other) = declared.insert(id, token) {
                    let reason = format!("has the id {id}, which {:?} has too", other.content);
                    return refuse(ADDED, content, reason);
                }
            }
            for token in own {
                let id = token.id.unwrap_or_default();
                match declared.insert(id, token.clone()) {
                    Some(other) if other.content != token.content => {
                        let reason =
                            format!("has the id {id}, which {:?} of tokenizer.json has", token.content);
                        return refuse(ADDED, other.content, reason);
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(declared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PackError;

    #[test]
    fn a_class_that_is_not_known_is_told_on_one_line() {
        let config = Map::from_iter([(CLASS.to_owned(), Value::from("Mine\nand more"))]);
        let source = class(&Beside { config, ..Beside::default() }, false).unwrap_err();
        let error = PackError::Tokenizer { path: "tokenizer.json".into(), source }.to_string();
        assert!(error.contains("is Mine\\nand more, and what") && !error.contains('\n'), "{error}");
    }
}
