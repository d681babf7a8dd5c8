//! Texts that must match a JSON schema or a grammar: `llguidance` says which tokens may come next.

use std::sync::Arc;

use elapid::Model;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::error::ApiError;

/// What marks a special token's text, which no grammar can ask for.
const SPECIAL: u8 = 0xff;
/// The longest schema or grammar, in bytes of JSON or text.
pub(crate) const LIMIT: usize = 256 << 10;

/// What a text must match.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// Any JSON object.
    Object,
    /// JSON of a schema.
    Schema(Value),
    /// A grammar in Lark's notation, as `llguidance` extends it.
    Lark(String),
}

/// The shape that a `response_format` asks for.
pub(crate) fn shape_of(format: Option<&Value>) -> Result<Option<Shape>, ApiError> {
    let wrong = |what: &str| Err(ApiError::field("response_format", what));
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    if format.to_string().len() > LIMIT {
        return wrong("the schema is longer than 256 KiB");
    }
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => {
            Ok(Some(format.get("schema").map_or(Shape::Object, |schema| Shape::Schema(schema.clone()))))
        }
        Some("json_schema") => {
            let schema = format.pointer("/json_schema/schema").or_else(|| format.get("schema"));
            match schema {
                Some(schema) if schema.is_object() || schema.is_boolean() => {
                    Ok(Some(Shape::Schema(schema.clone())))
                }
                _ => wrong("json_schema.schema must be a JSON schema"),
            }
        }
        _ => wrong("type must be text, json_object or json_schema"),
    }
}

/// Compiles constraints for the tokens of one model.
pub(crate) struct Grammars {
    factory: ParserFactory,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Takes some tenths of a second for a vocabulary of 65,000 tokens.
    pub(crate) fn new(model: &Model) -> Result<Self, String> {
        let tokenizer = model.tokenizer().map_err(|error| error.to_string())?;
        let vocab = model.config().vocab;
        let words: Vec<Vec<u8>> = (0..vocab)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                let special = tokenizer.is_special(id).then_some(SPECIAL);
                special.into_iter().chain(bytes.iter().copied()).collect()
            })
            // Ends a text where the model has no token that does.
            .chain([vec![SPECIAL, b'e', b'n', b'd']])
            .collect();
        let ends = model.generation().map_err(|error| error.to_string())?;
        let mut ends: Vec<u32> = ends.map_or(Vec::new(), |defaults| defaults.eos.iter().collect());
        ends.push(vocab);
        let trie = TokTrie::from(&TokRxInfo::new(vocab + 1, ends[0]), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory })
    }

    /// Compiles a shape; the reason why it can't be met or is too large otherwise.
    pub(crate) fn constraint(&self, shape: &Shape) -> Result<Constraint, String> {
        let grammar = match shape {
            Shape::Object => TopLevelGrammar::from_json_schema(compact(json!({ "type": "object" }))),
            Shape::Schema(schema) => TopLevelGrammar::from_json_schema(compact(schema.clone())),
            Shape::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        match matcher.get_error() {
            Some(error) => Err(one_line(&error)),
            None => {
                // A shape that nothing matches is known at once.
                matcher.compute_mask().map_err(|error| one_line(&error.to_string()))?;
                Ok(Constraint { matcher, mask: Err("no mask was computed".into()) })
            }
        }
    }
}

/// Without free white space between the tokens of JSON: small models could go on with it for ever.
fn compact(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.entry("x-guidance").or_insert_with(|| json!({ "whitespace_flexible": false }));
    }
    schema
}

fn one_line(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(300) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// What may come next in one text.
#[derive(Clone)]
pub(crate) struct Constraint {
    matcher: Matcher,
    mask: Result<SimpleVob, String>,
}

impl Constraint {
    /// Computes which tokens may come next.
    pub(crate) fn prepare(&mut self) {
        self.mask = self.matcher.compute_mask_or_eos().map_err(|error| one_line(&error.to_string()));
    }

    /// Makes all others impossible.
    pub(crate) fn mask(&self, logits: &mut [f32]) -> Result<(), String> {
        let mask = self.mask.as_ref().map_err(|error| format!("the grammar failed: {error}"))?;
        for (id, logit) in (0..).zip(logits) {
            if !mask.is_allowed(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the token that was chosen. True if nothing can follow.
    pub(crate) fn advance(&mut self, token: u32) -> Result<bool, String> {
        let taken = self.matcher.consume_token(token);
        taken.map_err(|error| format!("the grammar failed: {}", one_line(&error.to_string())))?;
        Ok(self.matcher.is_stopped())
    }
}
