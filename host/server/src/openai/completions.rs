//! `/v1/completions`.

use std::fmt;
use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use elapid::core::tokenizer::Tokenizer;
use futures_util::StreamExt;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{Closing, Common, Head, data, finite, usage_object};
use crate::answer::{events, reason};
use crate::app::{App, Served};
use crate::conversation::{spell, tokens_of};
use crate::engine::{Chosen, Event};
use crate::error::ApiError;
use crate::job::Told;
use crate::request::{Body, Owner};

#[derive(Debug)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// A prompt may have very many tokens: they are read one by one, where `untagged` would keep all of them as values first.
impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(PromptVisitor)
    }
}

struct PromptVisitor;

/// What a list begins with, and so consists of.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a token, a text or a list of tokens")]
enum First {
    Token(u32),
    Text(String),
    Tokens(Vec<u32>),
}

impl<'de> Visitor<'de> for PromptVisitor {
    type Value = Prompt;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list of texts, a list of tokens, or a list of such lists")
    }

    fn visit_str<E>(self, text: &str) -> Result<Prompt, E> {
        Ok(Prompt::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompt, A::Error> {
        fn all<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
            first: T,
            mut list: A,
        ) -> Result<Vec<T>, A::Error> {
            let mut all = vec![first];
            while let Some(next) = list.next_element()? {
                all.push(next);
            }
            Ok(all)
        }
        Ok(match list.next_element()? {
            None => Prompt::Tokens(Vec::new()),
            Some(First::Token(token)) => Prompt::Tokens(all(token, list)?),
            Some(First::Text(text)) => Prompt::Texts(all(text, list)?),
            Some(First::Tokens(tokens)) => Prompt::TokenLists(all(tokens, list)?),
        })
    }
}

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: Prompt,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
}

impl Prompt {
    /// The tokens of each text.
    fn tokens(self, served: &Served) -> Result<Vec<Vec<u32>>, ApiError> {
        let text = |text: &String| tokens_of(served, text, true);
        let prompts = match self {
            Self::Text(prompt) => vec![text(&prompt)?],
            Self::Texts(prompts) => prompts.iter().map(text).collect::<Result<_, _>>()?,
            Self::Tokens(tokens) => vec![tokens],
            Self::TokenLists(lists) => lists,
        };
        Ok(prompts)
    }
}

pub(super) async fn completions(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    body: Body,
) -> Result<Response, ApiError> {
    let (request, mut common): (CompletionRequest, Common) = (body.parse()?, body.parse()?);
    let served = app.model(common.model.as_deref())?;
    if request.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::field("suffix", "this model does not fill in the middle"));
    }
    let (echo, logprobs) = (request.echo.unwrap_or(false), request.logprobs.is_some());
    let mut wish = common.wish()?;
    wish.logprobs = request.logprobs;
    wish.prompt_logprobs = echo && logprobs;
    let prompt = request.prompt;
    let accepted = wish.ask(&app, &served, owner, move |served| prompt.tokens(served)).await?;
    let head = Head::new("cmpl", "text_completion", &served);
    let mut texts = Texts {
        lists: logprobs.then(|| vec![Lists::default(); accepted.texts()]),
        echoed: if echo { accepted.prompts.clone() } else { Vec::new() },
        likelihoods: vec![Vec::new(); accepted.prompts.len()],
        choices: accepted.choices,
        served,
    };
    if common.streams() {
        let usage_asked = common.usage();
        let closing = Closing { head: head.clone(), asked: usage_asked };
        let parts = accepted.stream().map(move |(Told { index, event }, usage)| {
            let sent = if let Event::Failed(error) = event {
                Some(ApiError::failed(error).object())
            } else {
                let (text, finish) = texts.take(index, event);
                let logprobs = texts.take_lists(index);
                let is_empty = text.is_empty() && finish.is_none() && logprobs.is_null();
                let choices = || json!([object(index, &text, finish, logprobs)]);
                (!is_empty).then(|| head.with(choices(), usage_asked.then_some(Value::Null)))
            };
            (sent.iter().map(data).collect(), usage)
        });
        return Ok(events(closing.after(parts)));
    }
    let mut whole = vec![(String::new(), None); accepted.texts()];
    let usage = accepted.each(|index, event| {
        let (text, finish) = texts.take(index, event);
        whole[index].0.push_str(&text);
        whole[index].1 = finish;
    });
    let usage = usage.await?;
    let whole = whole.into_iter().enumerate();
    let choices = whole.map(|(index, (text, finish))| object(index, &text, finish, texts.take_lists(index)));
    Ok(Answer(head.with(choices.collect(), Some(usage_object(usage)))).into_response())
}

fn object(index: usize, text: &str, finish: Option<&str>, logprobs: Value) -> Value {
    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish })
}

/// The texts of a request as they come in.
struct Texts {
    served: Arc<Served>,
    /// Prompts that the texts begin with; none if they don't.
    echoed: Vec<Vec<u32>>,
    /// How likely their tokens are: the first text after each prompt says so.
    likelihoods: Vec<Vec<Chosen>>,
    /// Texts after each prompt.
    choices: usize,
    /// For each text, if log probabilities were asked for.
    lists: Option<Vec<Lists>>,
}

impl Texts {
    /// What an event adds to a text, and why the text ended if it did.
    fn take(&mut self, index: usize, event: Event) -> (String, Option<&'static str>) {
        // It was checked when the model was opened.
        let Ok(tokenizer) = self.served.tokenizer() else { return Default::default() };
        let mut lists = self.lists.as_mut().and_then(|lists| lists.get_mut(index));
        match event {
            Event::Read { prompt, .. } => {
                let at = index / self.choices;
                let Some(tokens) = self.echoed.get(at) else { return Default::default() };
                if index.is_multiple_of(self.choices) {
                    self.likelihoods[at] = prompt;
                }
                // Nothing says how likely the first token is.
                let chosen = std::iter::once(None).chain(self.likelihoods[at].iter().map(Some));
                for (id, chosen) in tokens.iter().zip(chosen) {
                    lists.iter_mut().for_each(|lists| lists.add(&tokenizer, *id, chosen));
                }
                (spell(&tokenizer, tokens), None)
            }
            Event::Text { text, chosen } => {
                if let (Some(lists), Some(chosen)) = (&mut lists, chosen) {
                    lists.add(&tokenizer, chosen.id, Some(&chosen));
                }
                (text, None)
            }
            Event::End(finished) => (String::new(), Some(reason(finished.end))),
            Event::Failed(_) => Default::default(),
        }
    }

    /// The log probabilities of the tokens that were added since the last call, or null if they were not asked for.
    fn take_lists(&mut self, index: usize) -> Value {
        let lists = self.lists.as_mut().and_then(|lists| lists.get_mut(index));
        lists.map_or(Value::Null, Lists::take)
    }
}

/// Tokens of a text, and how likely they were.
#[derive(Clone, Debug, Default)]
struct Lists {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
    /// Characters before the next token.
    offset: usize,
}

impl Lists {
    fn add(&mut self, tokenizer: &Tokenizer<'_>, id: u32, chosen: Option<&Chosen>) {
        let own = spell(tokenizer, &[id]);
        self.offsets.push(self.offset);
        self.offset += own.chars().count();
        self.tokens.push(Value::String(own));
        self.logprobs.push(chosen.map_or(Value::Null, |chosen| json!(finite(chosen.logprob))));
        self.top.push(chosen.map_or(Value::Null, |chosen| {
            let top = chosen.top.iter();
            top.map(|(id, logprob)| (spell(tokenizer, &[*id]), json!(finite(*logprob)))).collect()
        }));
    }

    /// All of them, and none again.
    fn take(&mut self) -> Value {
        let empty = Self { offset: self.offset, ..Self::default() };
        let Self { tokens, logprobs, top, offsets, .. } = std::mem::replace(self, empty);
        json!({ "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets })
    }
}
