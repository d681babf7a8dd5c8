//! Texts that must match a JSON schema or a grammar: `llguidance` says which tokens may come next.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::{Error, Model};

/// What marks a special token's text, which no grammar can ask for.
const SPECIAL: u8 = 0xff;
/// The longest token in bytes that a grammar can choose, and bytes of all tokens: `toktrie` takes little more.
const LONGEST: usize = 1000;
const MOST_BYTES: usize = 1 << 22;
/// The longest schema or grammar in bytes.
const LIMIT: usize = 256 << 10;
/// The longest reason in characters.
const REASON: usize = 300;

/// What a text must match.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema. The text has no white space between the tokens of JSON, because small models could go on with it for ever;
    /// a schema's own `x-guidance` can allow it.
    JsonSchema(String),
    /// A grammar in Lark's notation, as `llguidance` extends it.
    Lark(String),
}

/// Compiles grammars for the tokens of one model.
///
/// ```
/// # fn main() -> Result<(), elapid::Error> {
/// use elapid::{GenerateOptions, Grammar, Grammars, Model, ModelOptions, SessionOptions};
///
/// let model = Model::bundled(&ModelOptions::default())?;
/// let schema = r#"{ "type": "array", "items": { "enum": ["war", "peace"] }, "minItems": 2, "maxItems": 3 }"#;
/// let constraint = Grammars::new(&model)?.constraint(&Grammar::JsonSchema(schema.into()))?;
/// let mut session = model.session(&SessionOptions::default())?;
/// let prompt = model.encode("My fellow citizens")?;
/// let options = GenerateOptions::default().constraint(constraint);
/// let pieces: Result<Vec<_>, _> = session.generate(&prompt, &options)?.collect();
/// let text: String = pieces?.into_iter().map(|piece| piece.text).collect();
/// assert!(text.starts_with("[\"war\",") || text.starts_with("[\"peace\","));
/// # Ok(())
/// # }
/// ```
pub struct Grammars {
    factory: ParserFactory,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Prepares the model's vocabulary for grammars, which takes some tenths of a second for 65,000 tokens.
    ///
    /// # Errors
    /// What [`Model::tokenizer`] and [`Model::generation`] return, and [`Error::Grammar`] for a vocabulary that can't be used.
    pub fn new(model: &Model) -> Result<Self, Error> {
        let tokenizer = model.tokenizer()?;
        let vocab = model.config().vocab;
        let words: Vec<Vec<u8>> = (0..vocab)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).filter(|bytes| bytes.len() <= LONGEST);
                let bytes = bytes.unwrap_or_default();
                let special = tokenizer.is_special(id).then_some(SPECIAL);
                special.into_iter().chain(bytes.iter().copied()).collect()
            })
            // Ends a text where the model has no token that does.
            .chain([vec![SPECIAL, b'e', b'n', b'd']])
            .collect();
        if words.iter().map(Vec::len).sum::<usize>() >= MOST_BYTES {
            return Err(unusable("the model's vocabulary is too large"));
        }
        let mut ends: Vec<u32> =
            model.generation()?.map_or(Vec::new(), |defaults| defaults.eos.iter().collect());
        ends.push(vocab);
        let trie = TokTrie::from(&TokRxInfo::new(vocab + 1, ends[0]), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(unusable)?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory })
    }

    /// Compiles a grammar.
    ///
    /// # Errors
    /// [`Error::Grammar`] for one that is damaged, too large or can't be met.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, Error> {
        let short = |text: &str| {
            let long = format!("it is longer than {} KiB", LIMIT >> 10);
            if text.len() > LIMIT { Err(Error::Grammar { cause: long }) } else { Ok(()) }
        };
        let grammar = match grammar {
            Grammar::JsonObject => TopLevelGrammar::from_json_schema(compact(json!({ "type": "object" }))),
            Grammar::JsonSchema(text) => {
                short(text)?;
                let schema = serde_json::from_str(text)
                    .map_err(|error| unusable(format!("it is not JSON: {error}")))?;
                TopLevelGrammar::from_json_schema(compact(schema))
            }
            Grammar::Lark(text) => {
                short(text)?;
                TopLevelGrammar::from_lark(text.clone())
            }
        };
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(unusable(error));
        }
        // A grammar that nothing matches is known at once.
        let mask = matcher.compute_mask().map_err(unusable)?;
        Ok(Constraint { matcher, mask: Some(mask) })
    }
}

/// Without free white space between the tokens of JSON.
fn compact(mut schema: Value) -> Value {
    if schema == true {
        schema = json!({});
    }
    if let Some(object) = schema.as_object_mut() {
        object.entry("x-guidance").or_insert_with(|| json!({ "whitespace_flexible": false }));
    }
    schema
}

/// The error of a grammar, in one line that is not too long.
fn unusable(cause: impl std::fmt::Display) -> Error {
    let mut line: String = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(REASON) {
        line.truncate(end);
        line.push('…');
    }
    Error::Grammar { cause: line }
}

/// What may come next in one text. [`GenerateOptions::constraint`](crate::GenerateOptions::constraint) takes one that was not advanced;
/// with a [`Batch`](crate::Batch), mask the logits of every token and advance by what is chosen.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    /// Which tokens may come next, once it is computed.
    mask: Option<SimpleVob>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// Computes which tokens may come next, such as while the model's step runs. [`Constraint::mask`] does so where it was not done.
    pub fn prepare(&mut self) {
        if self.mask.is_none() {
            // A failure is told when the mask is needed.
            self.mask = self.matcher.compute_mask_or_eos().ok();
        }
    }

    /// Makes all other tokens impossible: their logits `[vocab]` become negative infinity.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the grammar turns out to be too complex.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), Error> {
        let mask = match &mut self.mask {
            Some(mask) => mask,
            none => none.insert(self.matcher.compute_mask_or_eos().map_err(unusable)?),
        };
        for (id, logit) in (0..).zip(logits) {
            if id as usize >= mask.len() || !mask.is_allowed(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the token that was chosen. True if the text is complete, and nothing can follow.
    ///
    /// # Errors
    /// [`Error::Grammar`] for a token that may not come next, or if the grammar turns out to be too complex.
    pub fn advance(&mut self, token: u32) -> Result<bool, Error> {
        self.mask = None;
        self.matcher.consume_token(token).map_err(unusable)?;
        Ok(self.matcher.is_stopped())
    }

    /// Whether the text may end here.
    #[must_use]
    pub fn is_complete(&mut self) -> bool {
        let stopped = self.matcher.is_stopped() && !self.matcher.is_error();
        stopped || self.matcher.is_accepting().unwrap_or(false)
    }
}
