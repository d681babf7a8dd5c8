//! Ollama's interface: what Home Assistant and most desktop programs speak.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::header;
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use chrono::{DateTime, SecondsFormat, Utc};
use elapid::Grammar;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::{no_embeddings, reason};
use crate::app::{App, Served};
use crate::clock::now;
use crate::conversation::{normalize, prompt, tokens_of};
use crate::engine::{Event, Finished};
use crate::error::ApiError;
use crate::grammar::json_schema;
use crate::job::Wish;
use crate::request::{Json, OneOrMany, Owner};
use crate::tools::{Reader, Tools};

/// The version of Ollama whose interface this is: clients ask for it.
const VERSION: &str = "0.9.0";

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/version", get(async || Answer(json!({ "version": VERSION }))))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(ps))
        .route("/api/show", post(show))
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/embed", post(no_embeddings))
        .route("/api/embeddings", post(no_embeddings))
        .layer(map_response(plain_errors))
}

/// An error of ours as this interface has it: only its text.
async fn plain_errors(response: Response) -> Response {
    if response.status().is_success() {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let text = match axum::body::to_bytes(body, 64 << 10).await {
        Ok(bytes) => {
            let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            object.pointer("/error/message").and_then(Value::as_str).map(str::to_owned)
        }
        Err(_) => None,
    };
    head.headers.remove(header::CONTENT_LENGTH);
    let text = text.unwrap_or_else(|| head.status.to_string());
    Response::from_parts(head, Body::from(json!({ "error": text }).to_string()))
}

/// A time since 1970 as RFC 3339 has it.
fn rfc3339(time: Duration) -> String {
    DateTime::<Utc>::from(UNIX_EPOCH + time).to_rfc3339_opts(SecondsFormat::Nanos, true)
}

fn details(served: &Served) -> Value {
    let quant = served.model.config().quants.in_proj.name();
    json!({
        "parent_model": "", "format": "elp", "family": "mamba", "families": ["mamba"],
        "parameter_size": "", "quantization_level": quant,
    })
}

fn listed(served: &Served) -> Value {
    json!({
        "name": format!("{}:latest", served.name), "model": format!("{}:latest", served.name),
        "modified_at": rfc3339(Duration::from_secs(served.created)), "size": served.model.layout().file_bytes(),
        "digest": served.model.header().fingerprint().to_string(),
        "details": details(served),
    })
}

async fn tags(State(app): State<Arc<App>>) -> Result<Answer<Value>, ApiError> {
    let models: Vec<_> = app.models()?.iter().map(|served| listed(served)).collect();
    Ok(Answer(json!({ "models": models })))
}

async fn ps(State(app): State<Arc<App>>) -> Result<Answer<Value>, ApiError> {
    let models: Vec<_> = app
        .models()?
        .iter()
        .map(|served| {
            let mut object = listed(served);
            object["expires_at"] = "9999-12-31T23:59:59Z".into();
            object["size_vram"] = 0.into();
            object["running"] = served.engine.counters.running.load(Ordering::Relaxed).into();
            object
        })
        .collect();
    Ok(Answer(json!({ "models": models })))
}

#[derive(Debug, Deserialize)]
struct Show {
    model: Option<String>,
    name: Option<String>,
}

async fn show(State(app): State<Arc<App>>, Json(request): Json<Show>) -> Result<Answer<Value>, ApiError> {
    let served = app.model(request.model.or(request.name).as_deref())?;
    let config = served.model.config();
    let mut capabilities = vec!["completion"];
    if served.template.is_some() {
        capabilities.push("tools");
    }
    Ok(Answer(json!({
        "modelfile": "", "parameters": "", "template": "", "details": details(&served),
        "model_info": {
            "general.architecture": "mamba",
            "mamba.block_count": config.n_layer,
            "mamba.embedding_length": config.d_model,
            "mamba.vocab_size": config.vocab,
            "mamba.context_length": app.options.max_prompt,
        },
        "capabilities": capabilities,
        "modified_at": rfc3339(Duration::from_secs(served.created)),
    })))
}

#[derive(Debug, Default, Deserialize)]
struct Options {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    /// -1 and -2 mean that there is no limit.
    num_predict: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct ChatRequest {
    model: Option<String>,
    #[serde(default)]
    messages: Vec<Value>,
    tools: Option<Value>,
    format: Option<Value>,
    options: Option<Options>,
    stream: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct GenerateRequest {
    model: Option<String>,
    #[serde(default)]
    prompt: String,
    system: Option<String>,
    #[serde(default)]
    raw: bool,
    format: Option<Value>,
    options: Option<Options>,
    stream: Option<bool>,
    images: Option<Vec<Value>>,
}

fn wish(options: Option<Options>, format: Option<Value>) -> Result<Wish, ApiError> {
    let options = options.unwrap_or_default();
    let grammar = match format {
        None | Some(Value::Null) => None,
        Some(Value::String(format)) if format.is_empty() => None,
        Some(Value::String(format)) if format == "json" => Some(Grammar::JsonObject),
        Some(schema) if schema.is_object() => Some(json_schema(&schema)),
        Some(_) => return Err(ApiError::field("format", "give \"json\" or a JSON schema")),
    };
    Ok(Wish {
        max_tokens: options.num_predict.and_then(|most| usize::try_from(most).ok()),
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        repeat_penalty: options.repeat_penalty,
        frequency_penalty: options.frequency_penalty,
        presence_penalty: options.presence_penalty,
        seed: options.seed.map(i64::cast_unsigned),
        stop: OneOrMany::list(options.stop),
        choices: 1,
        grammar,
        ..Wish::default()
    })
}

/// How the parts of an answer hold their text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Chat,
    Generate,
}

impl Form {
    fn part(self, served: &Served, text: &str, calls: &[Value]) -> Value {
        let mut part = json!({ "model": served.name, "created_at": rfc3339(now()) });
        match self {
            Self::Generate => part["response"] = text.into(),
            Self::Chat => {
                part["message"] = json!({ "role": "assistant", "content": text });
                if !calls.is_empty() {
                    part["message"]["tool_calls"] = calls.iter().map(call).collect();
                }
            }
        }
        part["done"] = false.into();
        part
    }
}

/// A call as this interface has it: arguments are an object.
fn call(call: &Value) -> Value {
    let function = &call["function"];
    let arguments = function["arguments"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    json!({ "function": { "name": function["name"], "arguments": arguments.unwrap_or_else(|| json!({})) } })
}

fn done(mut part: Value, finished: &Finished, prompt: usize) -> Value {
    let nanos = |time: Duration| time.as_nanos() as u64;
    part["done"] = true.into();
    part["done_reason"] = reason(finished.end).into();
    part["total_duration"] = nanos(finished.waited + finished.prompt_time + finished.time).into();
    part["load_duration"] = nanos(finished.waited).into();
    part["prompt_eval_count"] = prompt.into();
    part["prompt_eval_duration"] = nanos(finished.prompt_time).into();
    part["eval_count"] = finished.tokens.into();
    part["eval_duration"] = nanos(finished.time).into();
    part
}

/// Answers with one object, or with one in each line as they come.
async fn answer(
    app: Arc<App>,
    served: Arc<Served>,
    owner: u64,
    wish: Wish,
    tools: Tools,
    form: Form,
    streams: bool,
    tokens: impl FnOnce(&Served) -> Result<Vec<u32>, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let mut reader = Reader::new(&tools);
    let accepted = wish.ask(&app, &served, owner, move |served| Ok(vec![tokens(served)?])).await?;
    if !streams {
        let (mut text, mut calls, mut end) = (String::new(), Vec::new(), None);
        let usage = accepted.each(|_, event| match event {
            Event::Text { text: piece, .. } => text.push_str(&reader.push(&piece)),
            Event::End(finished) => {
                let (rest, called) = reader.finish();
                text.push_str(&rest);
                (calls, end) = (called, Some(finished));
            }
            Event::Read { .. } | Event::Failed(_) => {}
        });
        let usage = usage.await?;
        let finished = end.ok_or_else(|| ApiError::failed("the model gave no answer"))?;
        return Ok(Answer(done(form.part(&served, &text, &calls), &finished, usage.prompt)).into_response());
    }
    let lines = accepted.stream().map(move |(told, usage)| match told.event {
        Event::Read { .. } => Vec::new(),
        Event::Text { text, .. } => {
            let text = reader.push(&text);
            if text.is_empty() { Vec::new() } else { vec![form.part(&served, &text, &[])] }
        }
        Event::End(finished) => {
            let (rest, calls) = reader.finish();
            let mut parts = Vec::new();
            if !rest.is_empty() || !calls.is_empty() {
                parts.push(form.part(&served, &rest, &calls));
            }
            parts.push(done(form.part(&served, "", &[]), &finished, usage.prompt));
            parts
        }
        Event::Failed(error) => vec![json!({ "error": error })],
    });
    let lines = lines.flat_map(stream::iter).map(|line| Ok::<_, Infallible>(format!("{line}\n")));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

async fn chat(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    Json(request): Json<ChatRequest>,
) -> Result<Response, ApiError> {
    let served = app.model(request.model.as_deref())?;
    if request.messages.is_empty() {
        return Ok(loaded(&served, Form::Chat));
    }
    let wish = wish(request.options, request.format)?;
    let tools = Tools::new(request.tools.as_ref(), None)?;
    let messages = normalize(request.messages)?;
    let given = tools.clone();
    let tokens = move |served: &Served| prompt(served, &messages, given.given());
    answer(app, served, owner, wish, tools, Form::Chat, request.stream.unwrap_or(true), tokens).await
}

async fn generate(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    Json(request): Json<GenerateRequest>,
) -> Result<Response, ApiError> {
    let served = app.model(request.model.as_deref())?;
    if request.images.is_some_and(|images| !images.is_empty()) {
        return Err(ApiError::field("images", "this model reads text only: leave images out"));
    }
    if request.prompt.is_empty() {
        return Ok(loaded(&served, Form::Generate));
    }
    let wish = wish(request.options, request.format)?;
    let GenerateRequest { prompt: text, system, raw, .. } = request;
    let tokens = move |served: &Served| {
        if raw || served.template.is_none() {
            return tokens_of(served, &text, true);
        }
        let system = system.map(|text| json!({ "role": "system", "content": text }));
        let messages: Vec<_> =
            system.into_iter().chain([json!({ "role": "user", "content": text })]).collect();
        prompt(served, &messages, None)
    };
    answer(app, served, owner, wish, Tools::default(), Form::Generate, request.stream.unwrap_or(true), tokens)
        .await
}

/// The answer to a request without a prompt, by which clients load a model: it is there.
fn loaded(served: &Served, form: Form) -> Response {
    let mut part = form.part(served, "", &[]);
    part["done"] = true.into();
    part["done_reason"] = "load".into();
    Answer(part).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_796_000_000, "2026-11-30T00:53:20.000000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), date);
        }
    }
}
