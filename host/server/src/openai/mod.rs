//! OpenAI's interface: models, chat completions and completions.

mod chat;
mod completions;

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::sse::Event as Sent;
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use elapid::Grammar;
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::answer::no_embeddings;
use crate::app::{App, Served};
use crate::error::ApiError;
use crate::grammar::grammar_of;
use crate::job::{Usage, Wish};
use crate::request::OneOrMany;
use chat::chat;
use completions::completions;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(no_embeddings))
        .route("/v1/images/generations", post(no_images))
}

async fn no_images() -> ApiError {
    ApiError::bad("this server generates text: it makes no images").code("unsupported")
}

fn model_object(served: &Served) -> Value {
    json!({ "id": served.name, "object": "model", "created": served.created, "owned_by": "elapid" })
}

async fn models(State(app): State<Arc<App>>) -> Result<Answer<Value>, ApiError> {
    let models: Vec<_> = app.models()?.iter().map(|served| model_object(served)).collect();
    Ok(Answer(json!({ "object": "list", "data": models })))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Answer<Value>, ApiError> {
    Ok(Answer(model_object(&*app.model(Some(&name))?)))
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// What chat and completions have in common.
#[derive(Debug, Deserialize)]
struct Common {
    model: Option<String>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    logit_bias: Option<Map<String, Value>>,
    n: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<Value>,
    grammar: Option<String>,
    ignore_eos: Option<bool>,
}

impl Common {
    fn wish(&mut self) -> Result<Wish, ApiError> {
        let mut grammar = grammar_of(self.response_format.as_ref())?;
        if let Some(lark) = self.grammar.take().filter(|lark| !lark.is_empty()) {
            if grammar.is_some() {
                return Err(ApiError::field("grammar", "give a grammar or a response_format, not both"));
            }
            grammar = Some(Grammar::Lark(lark));
        }
        Ok(Wish {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty.or(self.repetition_penalty),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed.map(i64::cast_unsigned),
            stop: OneOrMany::list(self.stop.take()),
            logit_bias: self.logit_bias.take().unwrap_or_default(),
            choices: match self.n {
                Some(0) => return Err(ApiError::field("n", "ask for one text at least")),
                n => n.unwrap_or(1),
            },
            logprobs: None,
            prompt_logprobs: false,
            grammar,
            ignore_eos: self.ignore_eos.unwrap_or(false),
        })
    }

    fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    fn usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage)
    }
}

/// What the parts of an answer begin with.
#[derive(Clone, Debug)]
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Head {
    fn new(prefix: &str, object: &'static str, served: &Served) -> Self {
        let now = crate::clock::now();
        let id = format!("{prefix}-{:x}{:08x}", now.as_nanos(), std::process::id());
        Self { id, object, created: now.as_secs(), model: served.name.clone() }
    }

    fn with(&self, choices: Value, usage: Option<Value>) -> Value {
        let Self { id, object, created, model } = self;
        let mut answer = json!({
            "id": id, "object": object, "created": created, "model": model, "system_fingerprint": "elapid",
            "choices": choices,
        });
        if let Some(usage) = usage {
            answer["usage"] = usage;
        }
        answer
    }
}

/// Counts of tokens as this interface has them.
fn usage_object(usage: Usage) -> Value {
    let Usage { prompt, completion, cached } = usage;
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}

fn data(value: &Value) -> Sent {
    Sent::default().data(value.to_string())
}

/// JSON has no infinities.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// What ends a stream.
struct Closing {
    head: Head,
    /// Whether the usage was asked for.
    asked: bool,
}

impl Closing {
    /// The events of `parts`, then the usage and the end.
    fn after(
        self,
        parts: impl Stream<Item = (Vec<Sent>, Usage)> + Send + 'static,
    ) -> impl Stream<Item = Sent> + Send + 'static {
        let mut usage = Usage::default();
        let parts = parts.map(Some).chain(stream::iter([None]));
        parts.flat_map(move |part| {
            stream::iter(match part {
                Some((sent, so_far)) => {
                    usage = so_far;
                    sent
                }
                None => {
                    let usage =
                        self.asked.then(|| data(&self.head.with(json!([]), Some(usage_object(usage)))));
                    usage.into_iter().chain([Sent::default().data("[DONE]")]).collect()
                }
            })
        })
    }
}
