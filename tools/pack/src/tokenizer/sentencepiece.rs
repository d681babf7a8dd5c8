//! SentencePiece's BPE in a tokenizer.json: words of characters, with `▁` for spaces.

use elapid_core::tokenizer::chars::{Chars, MARK, Prepend, Strip, Words};
use serde_json::Value;

use super::CompileError;
use super::parts::{flag, sequence, type_of};
use super::tokens::{invalid, unsupported};

/// The parts of a tokenizer.json that treat the text.
pub struct Parts<'v> {
    pub normalizer: &'v Value,
    pub pre_tokenizer: &'v Value,
    pub decoder: &'v Value,
}

/// Settings of LlamaTokenizer in tokenizer_config.json, which take the place of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Llama {
    pub legacy: bool,
    pub add_prefix_space: bool,
}

/// What is known of the treatment before the vocabulary is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Treatment {
    pub chars: Chars,
    /// The decoder reads tokens such as `<0x0A>` as bytes.
    pub byte_tokens: bool,
}

impl Llama {
    /// What the class makes, whatever tokenizer.json has.
    pub fn treatment(self) -> Treatment {
        let prepend = match self {
            Self { add_prefix_space: false, .. } => Prepend::Never,
            Self { legacy: true, .. } => Prepend::Missing,
            Self { legacy: false, .. } => Prepend::First,
        };
        let strip = if self.add_prefix_space { Strip::Space } else { Strip::Nothing };
        Treatment { chars: Chars { prepend, strip, ..plain() }, byte_tokens: true }
    }
}

/// `Metaspace` without a `▁` before the text.
const fn plain() -> Chars {
    Chars {
        byte_fallback: false,
        fuse_unknown: false,
        spaces: true,
        normalized_first: false,
        prepend: Prepend::Never,
        words: Words::Whole,
        strip: Strip::Nothing,
        unknown: None,
    }
}

impl Parts<'_> {
    /// Whether words consist of characters.
    pub fn is_of_characters(&self) -> Result<bool, CompileError> {
        let has = |part, list, types: &[&str]| -> Result<bool, CompileError> {
            Ok(sequence(part, list)?.iter().any(|part| types.contains(&type_of(part))))
        };
        Ok(has(self.normalizer, "normalizers", &["Prepend", "Replace"])?
            || has(self.pre_tokenizer, "pretokenizers", &["Metaspace"])?
            || has(self.decoder, "decoders", &["ByteFallback", "Metaspace"])?)
    }

    /// Reads the treatment of characters.
    pub fn read(&self) -> Result<Treatment, CompileError> {
        let mut chars = Chars { spaces: false, ..plain() };
        for part in sequence(self.normalizer, "normalizers")? {
            match type_of(part) {
                "Prepend" if part["prepend"] == MARK && chars.prepend != Prepend::Always => {
                    chars.prepend = Prepend::Always;
                }
                "Replace" if is_space_to_mark(part) => chars.spaces = true,
                "Prepend" => return unsupported(format!("normalizer Prepend of {}", part["prepend"])),
                "Replace" => {
                    return unsupported(format!(
                        "normalizer Replace of {} by {}",
                        part["pattern"], part["content"]
                    ));
                }
                other => return unsupported(format!("normalizer {other} before SentencePiece's BPE")),
            }
            chars.normalized_first = true;
        }
        for part in sequence(self.pre_tokenizer, "pretokenizers")? {
            match type_of(part) {
                "Metaspace" if !chars.normalized_first && !chars.spaces => metaspace(part, &mut chars)?,
                // There are no spaces left.
                "Split" if chars.spaces && chars.normalized_first && part["pattern"]["String"] == " " => {}
                other => return unsupported(format!("pre_tokenizer {other} with SentencePiece's BPE")),
            }
        }
        let (byte_tokens, strip) = decoder(self.decoder)?;
        Ok(Treatment { chars: Chars { strip, ..chars }, byte_tokens })
    }
}

/// Whether a `Replace` makes spaces `▁`.
fn is_space_to_mark(part: &Value) -> bool {
    part["pattern"]["String"] == " " && part["content"] == MARK
}

fn metaspace(part: &Value, chars: &mut Chars) -> Result<(), CompileError> {
    if part["replacement"] != MARK {
        return unsupported(format!("pre_tokenizer Metaspace with {}", part["replacement"]));
    }
    let scheme = part.get("prepend_scheme").and_then(Value::as_str).unwrap_or("always");
    chars.prepend = match scheme {
        "always" => Prepend::Missing,
        "first" => Prepend::First,
        "never" => Prepend::Never,
        other => return invalid(format!("pre_tokenizer Metaspace with prepend_scheme {other}")),
    };
    if scheme != "never" && part.get("add_prefix_space").is_some_and(|add| *add == false) {
        return invalid("pre_tokenizer Metaspace with prepend_scheme and without add_prefix_space");
    }
    chars.spaces = true;
    if flag(part, "split", true) {
        chars.words = Words::EachMark;
    }
    Ok(())
}

/// Whether tokens are read as bytes, and what is left out at the start.
fn decoder(part: &Value) -> Result<(bool, Strip), CompileError> {
    let parts = sequence(part, "decoders")?;
    let types: Vec<&str> = parts.iter().map(|part| type_of(part)).collect();
    let refuse = || unsupported(format!("decoder of {} with SentencePiece's BPE", types.join(", ")));
    match types[..] {
        ["Metaspace"] => {
            let part = parts[0];
            let scheme = part.get("prepend_scheme").and_then(Value::as_str).unwrap_or("always");
            if part["replacement"] != MARK {
                return refuse();
            }
            Ok((false, if scheme == "never" { Strip::Nothing } else { Strip::FirstToken }))
        }
        ["Replace", "ByteFallback", "Fuse"] | ["Replace", "ByteFallback", "Fuse", "Strip"] => {
            if parts[0]["pattern"]["String"] != MARK || parts[0]["content"] != " " {
                return refuse();
            }
            let Some(strip) = parts.get(3) else { return Ok((true, Strip::Nothing)) };
            match (strip["content"] == " ", strip["start"].as_u64(), strip["stop"].as_u64()) {
                (true, Some(1), Some(0)) => Ok((true, Strip::Space)),
                (_, Some(0), Some(0)) => Ok((true, Strip::Nothing)),
                _ => refuse(),
            }
        }
        _ => refuse(),
    }
}

/// The byte that the name of a token stands for, such as `<0x0A>`.
pub fn byte_of(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (name == format!("<{byte:#04X}>")).then_some(byte)
}

/// Whether no merge joins a `▁` to another character before it: where that holds, text may be cut there.
pub fn is_unjoined<'m>(mut merged: impl Iterator<Item = &'m [u8]>) -> bool {
    let mark = MARK.as_bytes();
    merged
        .all(|token| (1..token.len()).all(|at| !token[at..].starts_with(mark) || token[..at].ends_with(mark)))
}
