//! OpenAI's `/v1/responses`, as an adapter: text in, text out. Nothing is stored.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::sse::Event as Sent;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json as Answer, Router};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::{events, is_cut_off};
use crate::app::{App, Served};
use crate::conversation::{normalize, prompt};
use crate::engine::{Event, Finished};
use crate::error::ApiError;
use crate::grammar::grammar_of;
use crate::job::{Usage, Wish};
use crate::request::{Json, Owner};

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/responses", post(responses))
}

#[derive(Debug, Deserialize)]
struct Request {
    model: Option<String>,
    input: Value,
    instructions: Option<String>,
    max_output_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stream: Option<bool>,
    text: Option<Value>,
    tools: Option<Vec<Value>>,
    previous_response_id: Option<String>,
}

/// The messages of an input: a text, or a list of messages.
fn messages_of(input: Value, instructions: Option<String>) -> Result<Vec<Value>, ApiError> {
    let system = instructions.map(|text| json!({ "role": "system", "content": text }));
    let messages = match input {
        Value::String(text) => vec![json!({ "role": "user", "content": text })],
        Value::Array(items) => {
            if items.iter().any(|item| item.get("type").is_some_and(|kind| kind != "message")) {
                return Err(ApiError::field("input", "this server takes messages only"));
            }
            items
        }
        _ => return Err(ApiError::field("input", "must be a text, or a list of messages")),
    };
    let developer = |mut message: Value| {
        if message["role"] == "developer" {
            message["role"] = "system".into();
        }
        message
    };
    normalize(system.into_iter().chain(messages).map(developer).collect())
}

/// The answer as an object, as far as it is known.
#[derive(Clone, Debug)]
struct Object {
    id: String,
    message: String,
    model: String,
    created: u64,
}

impl Object {
    fn item(&self, text: &str, status: &str) -> Value {
        json!({
            "type": "message", "id": self.message, "status": status, "role": "assistant",
            "content": [{ "type": "output_text", "text": text, "annotations": [] }],
        })
    }

    fn with(&self, status: &str, text: Option<&str>, usage: Option<Usage>) -> Value {
        let output: Vec<_> = text.map(|text| self.item(text, status)).into_iter().collect();
        let usage = usage.map(|Usage { prompt, completion, cached }| {
            json!({
                "input_tokens": prompt, "input_tokens_details": { "cached_tokens": cached },
                "output_tokens": completion, "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": prompt + completion,
            })
        });
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model,
            "error": null, "incomplete_details": incomplete, "output": output, "usage": usage,
            "parallel_tool_calls": false, "tool_choice": "none", "tools": [], "metadata": {},
        })
    }
}

async fn responses(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    Json(request): Json<Request>,
) -> Result<Response, ApiError> {
    let served = app.model(request.model.as_deref())?;
    if request.previous_response_id.is_some() {
        return Err(ApiError::field(
            "previous_response_id",
            "nothing is stored here: send the whole conversation",
        ));
    }
    if request.tools.is_some_and(|tools| !tools.is_empty()) {
        return Err(ApiError::field("tools", "this path has no tools: use /v1/chat/completions"));
    }
    // Here the schema lies beside its type.
    let format = request.text.as_ref().and_then(|text| text.get("format"));
    let wish = Wish {
        max_tokens: request.max_output_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        choices: 1,
        grammar: grammar_of(format)?,
        ..Wish::default()
    };
    let messages = messages_of(request.input, request.instructions)?;
    let now = crate::clock::now();
    let object = Object {
        id: format!("resp_{:x}", now.as_nanos()),
        message: format!("msg_{:x}", now.as_nanos()),
        model: served.name.clone(),
        created: now.as_secs(),
    };
    let prompts = move |served: &Served| Ok(vec![prompt(served, &messages, None)?]);
    let accepted = wish.ask(&app, &served, owner, prompts).await?;
    let status = |finished: &Finished| if is_cut_off(finished.end) { "incomplete" } else { "completed" };
    let mut text = String::new();
    if !request.stream.unwrap_or(false) {
        let mut end = None;
        let usage = accepted.each(|_, event| match event {
            Event::Text { text: piece, .. } => text.push_str(&piece),
            Event::End(finished) => end = Some(status(&finished)),
            Event::Read { .. } | Event::Failed(_) => {}
        });
        let usage = usage.await?;
        let status = end.ok_or_else(|| ApiError::failed("the model gave no answer"))?;
        return Ok(Answer(object.with(status, Some(&text), Some(usage))).into_response());
    }
    let mut number = 0;
    let mut sent = move |kind: &str, mut data: Value| {
        data["type"] = kind.into();
        data["sequence_number"] = number.into();
        number += 1;
        Sent::default().event(kind).data(data.to_string())
    };
    let place = json!({ "item_id": object.message, "output_index": 0, "content_index": 0 });
    let with = move |key: &str, value: Value| {
        let mut data = place.clone();
        data[key] = value;
        data
    };
    let part = |text: &str| json!({ "type": "output_text", "text": text, "annotations": [] });
    let parts = accepted.stream().map(move |(told, usage)| match told.event {
        Event::Read { .. } => {
            let begun = object.with("in_progress", None, None);
            let mut item = object.item("", "in_progress");
            item["content"] = json!([]);
            vec![
                sent("response.created", json!({ "response": begun })),
                sent("response.in_progress", json!({ "response": begun })),
                sent("response.output_item.added", json!({ "output_index": 0, "item": item })),
                sent("response.content_part.added", with("part", part(""))),
            ]
        }
        Event::Text { text: piece, .. } if piece.is_empty() => Vec::new(),
        Event::Text { text: piece, .. } => {
            text.push_str(&piece);
            vec![sent("response.output_text.delta", with("delta", piece.into()))]
        }
        Event::End(finished) => {
            let status = status(&finished);
            let whole = object.with(status, Some(&text), Some(usage));
            let item = json!({ "output_index": 0, "item": object.item(&text, status) });
            vec![
                sent("response.output_text.done", with("text", text.as_str().into())),
                sent("response.content_part.done", with("part", part(&text))),
                sent("response.output_item.done", item),
                sent(&format!("response.{status}"), json!({ "response": whole })),
            ]
        }
        Event::Failed(error) => {
            vec![sent("error", json!({ "code": "server_error", "message": error, "param": null }))]
        }
    });
    Ok(events(parts.flat_map(stream::iter)))
}
