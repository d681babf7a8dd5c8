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
//! let load = || Ok::<_, elapid::Error>(vec![("address".to_owned(), Model::bundled(&ModelOptions::default())?)]);
//! serve(ServeOptions::default(), load, |address| println!("http://{address}"))?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod answer;
mod app;
mod clock;
mod conversation;
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
mod request;
mod responses;
mod tools;

pub use app::ServeOptions;
pub use http::{ServeError, serve, serve_until};
