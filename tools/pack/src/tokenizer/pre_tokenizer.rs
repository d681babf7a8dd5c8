//! `pre_tokenizer` of a tokenizer.json: built in, or in stages.

use elapid_core::tokenizer::chars::Chars;
use elapid_core::tokenizer::pattern::Pieces;
use elapid_core::tokenizer::unicode::{NUMBER, PUNCTUATION, kind};
use serde_json::Value;

use super::CompileError;
use super::automaton::Stage;
use super::expression::{self, Expression, Set};
use super::parts::{flag, sequence, type_of};
use super::tokens::{invalid, unsupported};

/// How text is cut into words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreTokenizer {
    /// `ByteLevel` with its regular expression.
    Gpt2,
    /// That of the Falcon models.
    Falcon,
    /// Each stage cuts the pieces of the one before it.
    Stages(Vec<Stage>),
    /// SentencePiece's BPE.
    Chars(Chars),
}

/// The regular expression of `ByteLevel`.
const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Reads the pre-tokenizer of a byte-level tokenizer.
pub fn read(part: &Value) -> Result<PreTokenizer, CompileError> {
    let mut parts = Vec::new();
    flatten(part, &mut parts)?;
    let types: Vec<&str> = parts.iter().map(|part| type_of(part)).collect();
    match (types.iter().position(|kind| *kind == "ByteLevel"), parts.len()) {
        (_, 0) => return unsupported("no pre_tokenizer"),
        (None, _) => {
            return unsupported(format!("pre_tokenizer of {} without ByteLevel", types.join(", ")));
        }
        (Some(at), count) if at + 1 < count && !is_falcon(&parts) => {
            return unsupported(format!("pre_tokenizer of {} in this order", types.join(", ")));
        }
        _ => {}
    }
    if let Some(part) = parts.iter().find(|part| type_of(part) == "ByteLevel")
        && flag(part, "add_prefix_space", true)
    {
        return unsupported("pre_tokenizer ByteLevel with add_prefix_space");
    }
    if is_falcon(&parts) {
        return Ok(PreTokenizer::Falcon);
    }
    if parts.len() == 1 && flag(parts[0], "use_regex", true) {
        return Ok(PreTokenizer::Gpt2);
    }
    let mut stages = Vec::new();
    for part in parts {
        let lines = stages.contains(&stage(&Expression::One(line_ends()), "Isolated", false)?);
        match type_of(part) {
            "ByteLevel" if flag(part, "use_regex", true) => {
                stages.push(stage(&expression::parse(GPT2, false)?, "Isolated", false)?);
            }
            "ByteLevel" => {}
            "Split" => stages.push(split(part, lines)?),
            "Digits" => {
                let set = Set::of(|c| kind(c) == NUMBER);
                let individual = flag(part, "individual_digits", false);
                let digits = if individual { Expression::One(set) } else { Expression::run(&set) };
                stages.push(stage(&digits, "Isolated", false)?);
            }
            "Punctuation" => {
                let set = Expression::One(Set::of(|c| kind(c) == PUNCTUATION));
                stages.push(stage(&set, part["behavior"].as_str().unwrap_or("Isolated"), false)?);
            }
            other => return unsupported(format!("pre_tokenizer {other}")),
        }
    }
    Ok(PreTokenizer::Stages(stages))
}

/// The parts of sequences in sequences.
fn flatten<'v>(part: &'v Value, into: &mut Vec<&'v Value>) -> Result<(), CompileError> {
    if type_of(part) != "Sequence" {
        into.extend(Some(part).filter(|part| !part.is_null()));
        return Ok(());
    }
    sequence(part, "pretokenizers")?.into_iter().try_for_each(|part| flatten(part, into))
}

fn is_falcon(parts: &[&Value]) -> bool {
    let types: Vec<&str> = parts.iter().map(|part| type_of(part)).collect();
    types == ["Punctuation", "ByteLevel", "Digits", "Split"]
        && parts[0]["behavior"] == "Contiguous"
        && flag(parts[1], "use_regex", true)
        && !flag(parts[2], "individual_digits", false)
        && parts[3]["pattern"]["Regex"] == "[0-9][0-9][0-9]"
        && parts[3]["behavior"] == "Isolated"
        && !flag(parts[3], "invert", false)
}

/// `[\r\n]`.
fn line_ends() -> Set {
    Set(vec![(0x0a, 0x0a), (0x0d, 0x0d)])
}

fn split(part: &Value, lines: bool) -> Result<Stage, CompileError> {
    let expression = match (part["pattern"]["Regex"].as_str(), part["pattern"]["String"].as_str()) {
        (Some(regex), None) => expression::parse(regex, lines)?,
        (None, Some("")) | (None, None) | (Some(_), Some(_)) => {
            return invalid(format!("pre_tokenizer Split at {}", part["pattern"]));
        }
        (None, Some(text)) => Expression::literal(text),
    };
    let Some(behavior) = part["behavior"].as_str() else {
        return invalid("pre_tokenizer Split without a behavior");
    };
    stage(&expression, behavior, flag(part, "invert", false))
}

/// A stage that does with the matches of an expression what a behaviour says.
fn stage(expression: &Expression, behavior: &str, invert: bool) -> Result<Stage, CompileError> {
    let with = |expression: Expression, pieces| Ok(Stage { expression, pieces });
    let pieces = match (behavior, invert) {
        ("Isolated", _) => Pieces::All,
        ("Removed", false) => Pieces::Between,
        ("Removed", true) => Pieces::Matches,
        ("Contiguous" | "MergedWithPrevious" | "MergedWithNext", false) => {
            let Expression::One(set) = expression else {
                return unsupported(format!(
                    "pre_tokenizer Split with {behavior} at more than one character"
                ));
            };
            let others = Expression::run(&set.negated());
            let before = Expression::Either(vec![others.clone(), Expression::Empty]);
            let one = expression.clone();
            return match behavior {
                "Contiguous" => with(Expression::run(set), Pieces::All),
                "MergedWithPrevious" => {
                    let merged = Expression::Concat(vec![before, one]);
                    with(Expression::Either(vec![merged, others]), Pieces::All)
                }
                _ => {
                    let merged = Expression::Concat(vec![one, before]);
                    with(Expression::Either(vec![merged, others]), Pieces::All)
                }
            };
        }
        _ => {
            let inverted = if invert { ", inverted" } else { "" };
            return unsupported(format!("pre_tokenizer Split with behavior {behavior}{inverted}"));
        }
    };
    with(expression.clone(), pieces)
}
