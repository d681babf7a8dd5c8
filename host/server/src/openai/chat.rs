//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::response::sse::Event as Sent;
use axum::response::{IntoResponse, Response};
use elapid::core::tokenizer::Tokenizer;
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Closing, Common, Head, data, finite, usage_object};
use crate::answer::{events, reason};
use crate::app::{App, Served};
use crate::conversation::{normalize, prompt};
use crate::engine::{Chosen, Event};
use crate::error::ApiError;
use crate::job::Accepted;
use crate::request::{Body, Owner};
use crate::tools::{Reader, Tools};

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<Value>,
    max_completion_tokens: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
}

/// The bytes of a token, and its text as far as it is one.
fn token_json(tokenizer: &Tokenizer<'_>, id: u32, logprob: f32) -> Value {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    json!({ "token": String::from_utf8_lossy(bytes), "logprob": finite(logprob), "bytes": bytes })
}

/// A token that was chosen, and the most likely ones.
fn logprob(served: &Served, chosen: &Chosen) -> Value {
    // It was checked when the model was opened.
    let Ok(tokenizer) = served.tokenizer() else { return Value::Null };
    let mut object = token_json(&tokenizer, chosen.id, chosen.logprob);
    let top = chosen.top.iter().map(|(id, logprob)| token_json(&tokenizer, *id, *logprob));
    object["top_logprobs"] = top.collect();
    object
}

pub(super) async fn chat(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    body: Body,
) -> Result<Response, ApiError> {
    let (request, mut common): (ChatRequest, Common) = (body.parse()?, body.parse()?);
    let served = app.model(common.model.as_deref())?;
    let mut wish = common.wish()?;
    wish.max_tokens = request.max_completion_tokens.or(wish.max_tokens);
    let logprobs = request.logprobs.unwrap_or(false);
    wish.logprobs = logprobs.then_some(request.top_logprobs.unwrap_or(0));
    let tools = Tools::new(request.tools.as_ref(), request.tool_choice.as_ref())?;
    if let Some(grammar) = tools.grammar() {
        if wish.grammar.is_some() {
            let message = "a required call and a response_format exclude each other";
            return Err(ApiError::field("tool_choice", message));
        }
        wish.grammar = Some(grammar);
    }
    let messages = normalize(request.messages)?;
    let reader = Reader::new(&tools);
    let prompts = move |served: &Served| Ok(vec![prompt(served, &messages, tools.given())?]);
    let accepted = wish.ask(&app, &served, owner, prompts).await?;
    if common.streams() {
        let head = Head::new("chatcmpl", "chat.completion.chunk", &served);
        return Ok(events(stream(accepted, served, head, common.usage(), reader)));
    }
    let head = Head::new("chatcmpl", "chat.completion", &served);
    let mut texts = vec![Whole { reader, ..Whole::default() }; accepted.choices];
    let usage = accepted.each(|index, event| texts[index].take(&served, event)).await?;
    let choices = texts.into_iter().enumerate().map(|(index, text)| text.object(index, logprobs)).collect();
    Ok(Answer(head.with(choices, Some(usage_object(usage)))).into_response())
}

/// A text of a chat that is given as a whole.
#[derive(Clone, Debug, Default)]
struct Whole {
    reader: Reader,
    content: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
    finish: &'static str,
}

impl Whole {
    fn take(&mut self, served: &Served, event: Event) {
        match event {
            Event::Text { text, chosen } => {
                self.content.push_str(&self.reader.push(&text));
                self.logprobs.extend(chosen.map(|chosen| logprob(served, &chosen)));
            }
            Event::End(finished) => {
                let (rest, calls) = self.reader.finish();
                self.content.push_str(&rest);
                self.finish = if calls.is_empty() { reason(finished.end) } else { "tool_calls" };
                self.calls = calls;
            }
            Event::Read { .. } | Event::Failed(_) => {}
        }
    }

    fn object(self, index: usize, logprobs: bool) -> Value {
        let called = !self.calls.is_empty();
        let content =
            if called && self.content.is_empty() { Value::Null } else { Value::String(self.content) };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
        if called {
            message["tool_calls"] = Value::Array(self.calls);
        }
        let logprobs = logprobs.then(|| json!({ "content": self.logprobs }));
        json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": self.finish })
    }
}

/// A stream of the parts of all texts.
fn stream(
    accepted: Accepted,
    served: Arc<Served>,
    head: Head,
    usage_asked: bool,
    reader: Reader,
) -> impl Stream<Item = Sent> + Send + 'static {
    let mut readers = vec![reader; accepted.choices];
    let closing = Closing { head: head.clone(), asked: usage_asked };
    let chunk = move |index: usize, delta: Value, logprobs: Value, finish: Option<&str>| {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        data(&head.with(json!([choice]), usage_asked.then_some(Value::Null)))
    };
    let parts = accepted.stream().map(move |(told, usage)| {
        let index = told.index;
        let reader = &mut readers[index];
        let mut parts = Vec::new();
        match told.event {
            Event::Read { .. } => {
                parts.push(chunk(index, json!({ "role": "assistant", "content": "" }), Value::Null, None));
            }
            Event::Text { text, chosen } => {
                let content = reader.push(&text);
                let logprobs =
                    chosen.map_or(Value::Null, |chosen| json!({ "content": [logprob(&served, &chosen)] }));
                if !content.is_empty() || !logprobs.is_null() {
                    parts.push(chunk(index, json!({ "content": content }), logprobs, None));
                }
            }
            Event::End(finished) => {
                let (rest, calls) = reader.finish();
                if !rest.is_empty() {
                    parts.push(chunk(index, json!({ "content": rest }), Value::Null, None));
                }
                let finish = if calls.is_empty() { reason(finished.end) } else { "tool_calls" };
                for (place, mut call) in calls.into_iter().enumerate() {
                    call["index"] = place.into();
                    parts.push(chunk(index, json!({ "tool_calls": [call] }), Value::Null, None));
                }
                parts.push(chunk(index, json!({}), Value::Null, Some(finish)));
            }
            Event::Failed(error) => parts.push(data(&ApiError::failed(error).object())),
        }
        (parts, usage)
    });
    closing.after(parts)
}
