//! Serves models over HTTP, to clients of OpenAI's and Ollama's interfaces and to a page in a browser.
//!
//! All requests of a model step together in one batch, so that the weights are read once for all of them, and go on from the longest
//! prefix of their prompts that was read before.
//!
//! ```no_run
//! use elapid::{Model, ModelOptions};
//! use elapid_server::{ServeOptions, serve};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let load = || Ok(vec![("address".to_owned(), Model::bundled(&ModelOptions::default())?)]);
//! serve(ServeOptions::default(), load, |address| println!("http://{address}"))?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod app;
mod engine;
mod error;
mod grammar;
mod http;
mod job;
mod metrics;
mod ollama;
mod openai;
mod page;
mod plain;
mod responses;
mod tools;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use app::ServeOptions;
pub use http::{ServeError, serve, serve_until};

/// The time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
