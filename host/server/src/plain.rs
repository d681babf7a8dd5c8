//! Paths of this server itself, named as other servers name them: tokens, templates, properties and health.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::conversation::{normalize, render, spell, tokens_of};
use crate::error::ApiError;
use crate::job::blocking;
use crate::request::Json;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/apply-template", post(apply_template))
        .route("/props", get(props))
}

/// 200 once the models are open, 503 until then.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<Answer<Value>, ApiError> {
    app.models()?;
    Ok(Answer(json!({ "status": "ok" })))
}

#[derive(Debug, Deserialize)]
struct Tokenize {
    model: Option<String>,
    #[serde(alias = "prompt")]
    content: String,
    /// Whether to add what the tokenizer adds to a text.
    #[serde(default, alias = "add_special_tokens")]
    add_special: bool,
    #[serde(default)]
    with_pieces: bool,
}

async fn tokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<Tokenize>,
) -> Result<Answer<Value>, ApiError> {
    let served = app.model(request.model.as_deref())?;
    blocking(move || {
        let tokens = tokens_of(&served, &request.content, request.add_special)?;
        let tokenizer = served.tokenizer()?;
        let piece = |id: &u32| json!({ "id": id, "piece": spell(&tokenizer, &[*id]) });
        let tokens: Vec<Value> = if request.with_pieces {
            tokens.iter().map(piece).collect()
        } else {
            tokens.iter().map(|id| json!(id)).collect()
        };
        Ok(Answer(json!({ "tokens": tokens })))
    })
    .await
}

#[derive(Debug, Deserialize)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

async fn detokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<Detokenize>,
) -> Result<Answer<Value>, ApiError> {
    let served = app.model(request.model.as_deref())?;
    let vocab = served.model.config().vocab;
    if let Some(token) = request.tokens.iter().find(|token| **token >= vocab) {
        return Err(ApiError::field(
            "tokens",
            format!("the model has no token {token}: it knows 0 to {}", vocab - 1),
        ));
    }
    let tokenizer = served.tokenizer()?;
    let text = spell(&tokenizer, &request.tokens);
    Ok(Answer(json!({ "content": text, "prompt": text })))
}

/// The special tokens that templates use, by their names.
async fn tokenizer_info(
    State(app): State<Arc<App>>,
    Query(which): Query<Which>,
) -> Result<Answer<Value>, ApiError> {
    let served = app.model(which.model.as_deref())?;
    let name = |name: &str| json!(served.names.get(name));
    Ok(Answer(json!({
        "bos_token": name("bos_token"), "eos_token": name("eos_token"), "pad_token": name("pad_token"),
    })))
}

#[derive(Debug, Deserialize)]
struct ApplyTemplate {
    model: Option<String>,
    messages: Vec<Value>,
    tools: Option<Value>,
}

async fn apply_template(
    State(app): State<Arc<App>>,
    Json(request): Json<ApplyTemplate>,
) -> Result<Answer<Value>, ApiError> {
    let served = app.model(request.model.as_deref())?;
    let messages = normalize(request.messages)?;
    blocking(move || Ok(Answer(json!({ "prompt": render(&served, &messages, request.tools.as_ref())? }))))
        .await
}

#[derive(Debug, Deserialize)]
struct Which {
    model: Option<String>,
}

async fn props(State(app): State<Arc<App>>, Query(which): Query<Which>) -> Result<Answer<Value>, ApiError> {
    let served = app.model(which.model.as_deref())?;
    let config = served.model.config();
    let state = app.options.session.numbers.state_bytes(config, config.n_layer as usize);
    let stats = served.engine.cache.stats();
    Ok(Answer(json!({
        "model": served.name,
        "chat_template": served.template.is_some(),
        "total_slots": app.options.slots,
        "max_prompt_tokens": app.options.max_prompt,
        "default_max_tokens": app.options.max_tokens,
        "vocab_size": config.vocab,
        "n_layer": config.n_layer,
        "d_model": config.d_model,
        "state_bytes": state,
        "cache": { "bytes": stats.bytes, "budget": served.engine.cache.budget(), "entries": stats.entries },
        "resident_bytes": crate::metrics::resident(),
        "version": env!("CARGO_PKG_VERSION"),
    })))
}
