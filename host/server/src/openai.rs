//! OpenAI's interface: models, chat completions and completions.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use elapid::core::generate::End;
use elapid::core::tokenizer::Tokenizer;
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::app::{App, Served};
use crate::engine::{Chosen, Event};
use crate::error::ApiError;
use crate::job::{Accepted, Told, Wish, normalize, render, shape_of, tokens_of};
use crate::request::{Json, Owner, parse};
use crate::tools::{Reader, Tools};

/// The time between comments while nothing else is sent: clients and proxies give up on silence.
const ALIVE: Duration = Duration::from_secs(5);

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(no_embeddings))
        .route("/v1/images/generations", post(no_images))
}

async fn no_embeddings() -> ApiError {
    ApiError::bad("this server generates text: it has no embeddings").code("unsupported")
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

/// One text, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a text, or a list of texts")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn list(this: Option<Self>) -> Vec<String> {
        match this {
            None => Vec::new(),
            Some(Self::One(text)) => vec![text],
            Some(Self::Many(texts)) => texts,
        }
    }
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
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<Value>,
    grammar: Option<String>,
    ignore_eos: Option<bool>,
}

impl Common {
    fn wish(&mut self) -> Result<Wish, ApiError> {
        let mut shape = shape_of(self.response_format.as_ref())?;
        if let Some(grammar) = self.grammar.take().filter(|grammar| !grammar.is_empty()) {
            if shape.is_some() {
                return Err(ApiError::field("grammar", "give a grammar or a response_format, not both"));
            }
            if grammar.len() > crate::grammar::LIMIT {
                return Err(ApiError::field("grammar", "it is longer than 256 KiB"));
            }
            shape = Some(crate::grammar::Shape::Lark(grammar));
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
            shape,
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

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<Value>,
    max_completion_tokens: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a text, a list of texts, a list of tokens, or a list of such lists")]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: Prompt,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
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

/// Counts the tokens of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub prompt: usize,
    pub completion: usize,
    pub cached: usize,
}

impl Usage {
    pub(crate) fn object(self) -> Value {
        let Self { prompt, completion, cached } = self;
        json!({
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }

    /// Takes what an event says. Only the first text after a prompt says how much of it was cached.
    pub(crate) fn count(&mut self, told: &Told, choices: usize) {
        match &told.event {
            Event::Read { cached, .. } if told.index.is_multiple_of(choices) => self.cached += cached,
            Event::End(finished) => self.completion += finished.tokens,
            _ => {}
        }
    }
}

pub(crate) fn reason(end: End) -> &'static str {
    match end {
        End::Length | End::Interrupted => "length",
        _ => "stop",
    }
}

/// Runs what takes time on a thread that may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::failed("the request could not be prepared")))
}

/// A stream of server-sent events; comments in between while there are none.
pub(crate) fn events(events: impl Stream<Item = Sent> + Send + 'static) -> Response {
    let stream = events.map(Ok::<_, Infallible>);
    let mut response =
        Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE).text("working")).into_response();
    let headers = response.headers_mut();
    // Proxies are not to wait for the end.
    headers.insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

fn data(value: &Value) -> Sent {
    Sent::default().data(value.to_string())
}

/// All events of accepted requests, one after the other.
pub(crate) fn told(accepted: Accepted) -> impl Stream<Item = Told> + Send {
    stream::unfold((accepted.events, accepted.texts), |(mut events, left)| async move {
        if left == 0 {
            return None;
        }
        let told = events.recv().await?;
        let ended = matches!(told.event, Event::End(_) | Event::Failed(_));
        Some((told, (events, left - usize::from(ended))))
    })
}

/// The bytes of a token, and its text as far as it is one.
fn token_json(tokenizer: &Tokenizer<'_>, id: u32, logprob: f32) -> Value {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    json!({ "token": String::from_utf8_lossy(bytes), "logprob": finite(logprob), "bytes": bytes })
}

/// JSON has no infinities.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

fn chat_logprob(tokenizer: &Tokenizer<'_>, chosen: &Chosen) -> Value {
    let mut object = token_json(tokenizer, chosen.id, chosen.logprob);
    let top: Vec<_> = chosen.top.iter().map(|(id, logprob)| token_json(tokenizer, *id, *logprob)).collect();
    object["top_logprobs"] = Value::Array(top);
    object
}

/// A text of a chat as it comes in.
#[derive(Debug, Default)]
struct ChatChoice {
    reader: Reader,
    content: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
    finish: &'static str,
}

async fn chat(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    Json(body): Json<Value>,
) -> Result<Response, ApiError> {
    let (request, mut common): (ChatRequest, Common) = (parse(&body)?, parse(&body)?);
    let served = app.model(common.model.as_deref())?;
    let (streams, usage_asked) = (common.streams(), common.usage());
    let mut wish = common.wish()?;
    wish.max_tokens = request.max_completion_tokens.or(wish.max_tokens);
    wish.logprobs = request.logprobs.unwrap_or(false).then_some(request.top_logprobs.unwrap_or(0));
    let tools = Tools::new(request.tools.as_ref(), request.tool_choice.as_ref())?;
    if let Some(shape) = tools.shape() {
        if wish.shape.is_some() {
            return Err(ApiError::field(
                "tool_choice",
                "a required call and a response_format exclude each other",
            ));
        }
        wish.shape = Some(shape);
    }
    let messages = normalize(request.messages)?;
    let choices = wish.choices;
    let accepted = {
        let (app, served, tools) = (Arc::clone(&app), Arc::clone(&served), tools.clone());
        blocking(move || {
            let text = render(&served, &messages, tools.given())?;
            let tokens = tokens_of(&served, &text, served.template.is_none())?;
            wish.submit(&app, &served, owner, vec![tokens])
        })
        .await?
    };
    let mut usage = Usage { prompt: accepted.prompt_tokens, ..Usage::default() };
    let choice = move || ChatChoice { reader: Reader::new(&tools), ..ChatChoice::default() };
    if streams {
        let head = Head::new("chatcmpl", "chat.completion.chunk", &served);
        return Ok(events(chat_stream(accepted, served, head, usage_asked, choices, choice)));
    }
    let head = Head::new("chatcmpl", "chat.completion", &served);
    let mut texts: BTreeMap<usize, ChatChoice> = (0..choices).map(|i| (i, choice())).collect();
    let mut all = std::pin::pin!(told(accepted));
    while let Some(told) = all.next().await {
        usage.count(&told, choices);
        let Some(text) = texts.get_mut(&told.index) else { continue };
        match told.event {
            Event::Read { .. } => {}
            Event::Token { text: piece, chosen, .. } => {
                text.content.push_str(&text.reader.push(&piece));
                if let Some(chosen) = chosen {
                    text.logprobs.push(with_tokenizer(&served, |tokenizer| chat_logprob(tokenizer, &chosen)));
                }
            }
            Event::End(finished) => {
                let (rest, calls) = text.reader.finish();
                text.content.push_str(&rest);
                text.finish = if calls.is_empty() { reason(finished.end) } else { "tool_calls" };
                text.calls = calls;
            }
            Event::Failed(error) => return Err(ApiError::failed(error)),
        }
    }
    let choices: Vec<_> = texts
        .into_iter()
        .map(|(index, text)| {
            let called = !text.calls.is_empty();
            let content =
                if called && text.content.is_empty() { Value::Null } else { Value::String(text.content) };
            let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
            if called {
                message["tool_calls"] = Value::Array(text.calls);
            }
            let logprobs = request.logprobs.unwrap_or(false).then(|| json!({ "content": text.logprobs }));
            json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": text.finish })
        })
        .collect();
    Ok(Answer(head.with(Value::Array(choices), Some(usage.object()))).into_response())
}

/// What a function of the tokenizer gives. It was checked when the model was opened.
fn with_tokenizer(served: &Served, make: impl FnOnce(&Tokenizer<'_>) -> Value) -> Value {
    served.model.tokenizer().map_or(Value::Null, |tokenizer| make(&tokenizer))
}

fn chat_stream(
    accepted: Accepted,
    served: Arc<Served>,
    head: Head,
    usage_asked: bool,
    choices: usize,
    choice: impl Fn() -> ChatChoice,
) -> impl Stream<Item = Sent> + Send + 'static {
    let mut usage = Usage { prompt: accepted.prompt_tokens, ..Usage::default() };
    let mut texts: Vec<ChatChoice> = (0..choices).map(|_| choice()).collect();
    let chunk = move |head: &Head, index: usize, delta: Value, logprobs: Value, finish: Option<&str>| {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        data(&head.with(json!([choice]), usage_asked.then_some(Value::Null)))
    };
    let last = Closing { head: head.clone(), asked: usage_asked };
    let parts = told(accepted).map(move |told| {
        usage.count(&told, choices);
        let index = told.index;
        let mut out = Vec::new();
        let Some(text) = texts.get_mut(index) else { return (out, usage) };
        match told.event {
            Event::Read { .. } => {
                out.push(chunk(&head, index, json!({ "role": "assistant", "content": "" }), Value::Null, None));
            }
            Event::Token { text: piece, chosen, .. } => {
                let content = text.reader.push(&piece);
                let logprobs = chosen.map_or(Value::Null, |chosen| {
                    json!({ "content": [with_tokenizer(&served, |tokenizer| chat_logprob(tokenizer, &chosen))] })
                });
                if !content.is_empty() || !logprobs.is_null() {
                    out.push(chunk(&head, index, json!({ "content": content }), logprobs, None));
                }
            }
            Event::End(finished) => {
                let (rest, calls) = text.reader.finish();
                if !rest.is_empty() {
                    out.push(chunk(&head, index, json!({ "content": rest }), Value::Null, None));
                }
                let finish = if calls.is_empty() { reason(finished.end) } else { "tool_calls" };
                for (place, mut call) in calls.into_iter().enumerate() {
                    call["index"] = place.into();
                    out.push(chunk(&head, index, json!({ "tool_calls": [call] }), Value::Null, None));
                }
                out.push(chunk(&head, index, json!({}), Value::Null, Some(finish)));
            }
            Event::Failed(error) => out.push(data(&ApiError::failed(error).object())),
        }
        (out, usage)
    });
    last.after(parts)
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
                    let usage = self.asked.then(|| data(&self.head.with(json!([]), Some(usage.object()))));
                    usage.into_iter().chain([Sent::default().data("[DONE]")]).collect()
                }
            })
        })
    }
}

/// A text of a completion as it comes in.
#[derive(Debug, Default)]
struct Completion {
    text: String,
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
    /// Characters before the next token.
    offset: usize,
    finish: &'static str,
}

impl Completion {
    /// Adds a token to the lists of log probabilities.
    fn add(&mut self, tokenizer: &Tokenizer<'_>, id: u32, chosen: Option<&Chosen>) {
        let text =
            |id: u32| String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned();
        let own = text(id);
        self.offsets.push(self.offset);
        self.offset += own.chars().count();
        self.tokens.push(Value::String(own));
        self.logprobs.push(chosen.map_or(Value::Null, |chosen| json!(finite(chosen.logprob))));
        self.top.push(chosen.map_or(Value::Null, |chosen| {
            let top = chosen.top.iter().map(|(id, logprob)| (text(*id), json!(finite(*logprob))));
            Value::Object(top.collect())
        }));
    }

    /// The lists, and none again.
    fn take(&mut self) -> Value {
        let (tokens, logprobs) = (std::mem::take(&mut self.tokens), std::mem::take(&mut self.logprobs));
        let (top, offsets) = (std::mem::take(&mut self.top), std::mem::take(&mut self.offsets));
        json!({ "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets })
    }
}

async fn completions(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    Json(body): Json<Value>,
) -> Result<Response, ApiError> {
    let (request, mut common): (CompletionRequest, Common) = (parse(&body)?, parse(&body)?);
    let served = app.model(common.model.as_deref())?;
    let (streams, usage_asked) = (common.streams(), common.usage());
    let echo = request.echo.unwrap_or(false);
    if request.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::field("suffix", "this model does not fill in the middle"));
    }
    let mut wish = common.wish()?;
    wish.logprobs = request.logprobs;
    wish.prompt_logprobs = echo && request.logprobs.is_some();
    let choices = wish.choices;
    let prompt = request.prompt;
    let (accepted, prompts) = {
        let (app, served) = (Arc::clone(&app), Arc::clone(&served));
        blocking(move || {
            let text = |text: &String| tokens_of(&served, text, true);
            let prompts = match prompt {
                Prompt::Text(prompt) => vec![text(&prompt)?],
                Prompt::Texts(prompts) => prompts.iter().map(text).collect::<Result<_, _>>()?,
                Prompt::Tokens(tokens) => vec![tokens],
                Prompt::TokenLists(lists) => lists,
            };
            if prompts.is_empty() {
                return Err(ApiError::field("prompt", "give one text at least"));
            }
            let kept = if echo { prompts.clone() } else { Vec::new() };
            Ok((wish.submit(&app, &served, owner, prompts)?, kept))
        })
        .await?
    };
    let mut usage = Usage { prompt: accepted.prompt_tokens, ..Usage::default() };
    let texts = accepted.texts;
    let mut all: Vec<Completion> = (0..texts).map(|_| Completion::default()).collect();
    let asked = request.logprobs.is_some();
    let head = Head::new("cmpl", "text_completion", &served);
    // Takes an event, and gives the text that it adds.
    let mut take = move |told: Told| -> Result<(usize, String, Option<&'static str>, Value), ApiError> {
        let index = told.index;
        let text = all.get_mut(index).ok_or_else(|| ApiError::failed("an answer without a place"))?;
        let tokenizer = served.model.tokenizer().map_err(|error| ApiError::failed(error.to_string()))?;
        let (mut piece, mut finish) = (String::new(), None);
        match told.event {
            Event::Read { prompt, .. } => {
                if let Some(tokens) = prompts.get(index / choices) {
                    piece = spell(&tokenizer, tokens);
                    if asked {
                        let chosen = std::iter::once(None).chain(prompt.iter().map(Some));
                        tokens.iter().zip(chosen).for_each(|(id, chosen)| text.add(&tokenizer, *id, chosen));
                    }
                }
            }
            Event::Token { text: more, id, chosen } => {
                piece = more;
                if chosen.is_some() {
                    text.add(&tokenizer, id, chosen.as_ref());
                }
            }
            Event::End(finished) => finish = Some(reason(finished.end)),
            Event::Failed(error) => return Err(ApiError::failed(error)),
        }
        let logprobs = if asked && streams { text.take() } else { Value::Null };
        if !streams {
            text.text.push_str(&piece);
            text.finish = finish.unwrap_or_default();
            if let (true, Some(_)) = (asked, finish) {
                let whole = std::mem::take(&mut text.text);
                return Ok((index, whole, finish, text.take()));
            }
            let whole = if finish.is_some() { std::mem::take(&mut text.text) } else { String::new() };
            return Ok((index, whole, finish, Value::Null));
        }
        Ok((index, piece, finish, logprobs))
    };
    let object = |index: usize, text: String, finish: Option<&str>, logprobs: Value| json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish });
    if streams {
        let closing = Closing { head: head.clone(), asked: usage_asked };
        let parts = told(accepted).map(move |told| {
            usage.count(&told, choices);
            let sent = match take(told) {
                Err(error) => vec![data(&error.object())],
                Ok((_, text, None, logprobs)) if text.is_empty() && logprobs.is_null() => Vec::new(),
                Ok((index, text, finish, logprobs)) => {
                    let choices = json!([object(index, text, finish, logprobs)]);
                    vec![data(&head.with(choices, usage_asked.then_some(Value::Null)))]
                }
            };
            (sent, usage)
        });
        return Ok(events(closing.after(parts)));
    }
    let mut done = BTreeMap::new();
    let mut all = std::pin::pin!(told(accepted));
    while let Some(told) = all.next().await {
        usage.count(&told, choices);
        if let (index, text, Some(finish), logprobs) = take(told)? {
            done.insert(index, object(index, text, Some(finish), logprobs));
        }
    }
    Ok(Answer(head.with(done.into_values().collect(), Some(usage.object()))).into_response())
}

/// The text of a prompt's tokens.
pub(crate) fn spell(tokenizer: &Tokenizer<'_>, tokens: &[u32]) -> String {
    let bytes: Vec<u8> =
        tokens.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap_or_default()).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
