//! What all handlers share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use elapid::core::tokenizer::Tokenizer;
use elapid::{ChatTemplate, Constraint, Error, Grammar, Grammars, Model, PrefixCache, SessionOptions};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use crate::engine::Engine;
use crate::error::ApiError;

/// Bytes for cached prefixes, if there is room.
const CACHE: usize = 64 << 20;

/// How models are served.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServeOptions {
    /// The address to listen on. Default: 127.0.0.1.
    pub host: String,
    /// The port; 0 takes a free one. Default: 8080.
    pub port: u16,
    /// API keys: a request must have one of them. Default: none is needed.
    pub api_keys: Vec<String>,
    /// Origins whose web pages may use the server; `*` is any. Default: only its own page.
    pub origins: Vec<String>,
    /// Certificates and private key (PEM) for TLS. Default: plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The number of texts that are generated together, 1 to 64. Default: 8.
    pub slots: usize,
    /// The number of requests that may wait; more are refused. Default: 256.
    pub queue: usize,
    /// Bytes for cached prefixes, for each model. Default: 64 MiB, or an eighth of a memory cap if that is less.
    pub cache: Option<usize>,
    /// Folder and bytes for the states that are in the cache when the server ends, for the next one: see
    /// [`PrefixCache::on_disk`](elapid::PrefixCache::on_disk). Default: none.
    pub prompt_cache: Option<(PathBuf, u64)>,
    /// Called with what is wrong with files of that folder; the server works without them. Default: does nothing.
    pub on_warning: fn(&Error),
    /// The longest prompt in tokens. Default: 131,072.
    pub max_prompt: usize,
    /// The limit of tokens of a text if its request has none. Default: 1024.
    pub max_tokens: usize,
    /// The longest body of a request in bytes. Default: 8 MiB.
    pub max_body: usize,
    /// Connections at once. Default: 16,384.
    pub connections: usize,
    /// The longest time until a response begins. Default: an hour.
    pub timeout: Duration,
    /// The numbers that sequences are computed with, and the chunk of their prompts.
    pub session: SessionOptions,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            api_keys: Vec::new(),
            origins: Vec::new(),
            tls: None,
            slots: 8,
            queue: 256,
            cache: None,
            prompt_cache: None,
            on_warning: |_| {},
            max_prompt: 128 << 10,
            max_tokens: 1024,
            max_body: 8 << 20,
            connections: 16 << 10,
            timeout: Duration::from_secs(3600),
            session: SessionOptions::default(),
        }
    }
}

/// A model that is served.
#[derive(Debug)]
pub(crate) struct Served {
    pub name: String,
    pub model: Model,
    pub template: Option<ChatTemplate>,
    /// Special tokens by the names that templates use.
    pub names: BTreeMap<String, String>,
    pub engine: Arc<Engine>,
    grammars: OnceLock<Result<Grammars, String>>,
    /// Seconds since 1970 when the server started.
    pub created: u64,
}

impl Served {
    pub(crate) fn new(name: String, model: Model, options: &ServeOptions) -> Result<Self, Error> {
        let (template, names) = (model.chat_template()?, model.special_names()?);
        let session = options.session.rows(true);
        let eighth = model.cap().map_or(usize::MAX, |cap| usize::try_from(cap / 8).unwrap_or(usize::MAX));
        // What is remembered of files is no part of what was asked for.
        let beside = if options.prompt_cache.is_some() { PrefixCache::BESIDE_FILES } else { 0 };
        let mut cache = PrefixCache::new(options.cache.unwrap_or(CACHE.min(eighth)).saturating_add(beside));
        if let Some((folder, bytes)) = &options.prompt_cache {
            cache = cache.on_disk(folder, *bytes)?;
        }
        let (slots, queue) = (options.slots, options.queue);
        let engine = Engine::start(&model, slots, queue, cache, &session, options.on_warning)?;
        Ok(Self {
            name,
            model,
            template,
            names,
            engine: Arc::new(engine),
            grammars: OnceLock::new(),
            created: crate::clock::now().as_secs(),
        })
    }

    /// The model's tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer<'_>, ApiError> {
        Ok(self.model.tokenizer()?)
    }

    /// Compiles what a text must match.
    pub(crate) fn constraint(&self, grammar: &Grammar) -> Result<Constraint, ApiError> {
        let grammars =
            self.grammars.get_or_init(|| Grammars::new(&self.model).map_err(|error| error.to_string()));
        let grammars = grammars.as_ref().map_err(|error| ApiError::failed(error.clone()))?;
        grammars.constraint(grammar).map_err(|error| ApiError::bad(error.to_string()).code("invalid_schema"))
    }
}

/// The number of an API key, not 0: 64 bits of its SHA-256. Whoever reads it can test guesses, so keys must be long and random.
fn owner_of(key: &str) -> u64 {
    let hash = digest(&SHA256, key.as_bytes());
    hash.as_ref().first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes).max(1))
}

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub options: ServeOptions,
    /// A number for each API key, which is the same in every process.
    owners: Vec<u64>,
    /// The models, once they are open.
    pub models: OnceLock<Vec<Arc<Served>>>,
    pub started: Instant,
}

impl App {
    pub(crate) fn new(options: ServeOptions) -> Self {
        let owners = options.api_keys.iter().map(|key| owner_of(key)).collect();
        Self { options, owners, models: OnceLock::new(), started: Instant::now() }
    }

    /// The models, or an error while they are opened.
    pub(crate) fn models(&self) -> Result<&[Arc<Served>], ApiError> {
        self.models.get().map(Vec::as_slice).ok_or_else(|| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the model is loading: try again in a moment")
                .code("loading")
        })
    }

    /// The model of a name, with or without `:latest`; the first one without a name.
    pub(crate) fn model(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let models = self.models()?;
        let found = match name.filter(|name| !name.is_empty()) {
            None => models.first(),
            Some(name) => {
                let plain = name.strip_suffix(":latest").unwrap_or(name);
                models.iter().find(|served| served.name == name || served.name == plain)
            }
        };
        found.cloned().ok_or_else(|| {
            let known: Vec<_> = models.iter().map(|served| served.name.as_str()).collect();
            let name: String = name.unwrap_or_default().chars().take(100).collect();
            let message =
                format!("the model {name:?} is not served here: choose one of {}", known.join(", "));
            ApiError::new(StatusCode::NOT_FOUND, message).code("model_not_found")
        })
    }

    /// Who sends a key: a number for each key, 0 where none is needed.
    pub(crate) fn owner(&self, key: Option<&str>) -> Result<u64, ApiError> {
        if self.options.api_keys.is_empty() {
            return Ok(0);
        }
        let given = key.unwrap_or_default().as_bytes();
        let mut owner = 0;
        // All keys are compared, whichever it is.
        for (key, number) in self.options.api_keys.iter().zip(&self.owners) {
            if bool::from(key.as_bytes().ct_eq(given)) {
                owner = *number;
            }
        }
        if owner > 0 {
            return Ok(owner);
        }
        let message = match key {
            None => "an API key is needed: send it as `Authorization: Bearer KEY`",
            Some(_) => "the API key is not one of this server's",
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key"))
    }
}
