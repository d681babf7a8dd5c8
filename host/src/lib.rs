//! Elapid on a host with an operating system: runs Mamba-family language models from packed files.
//!
//! ```
//! # fn main() -> Result<(), elapid::Error> {
//! use elapid::{GenerateOptions, Model, ModelOptions, SessionOptions};
//!
//! let model = Model::bundled(&ModelOptions::default())?; // or Model::open("model.elp".as_ref(), …)
//! let mut session = model.session(&SessionOptions::default())?;
//! let prompt = model.encode("My fellow citizens")?;
//! let options = GenerateOptions::default().max_tokens(20).seed(7);
//! for piece in session.generate(&prompt, &options)? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A [`Model`] is opened once, and is cheap to clone. Each [`Session`] is one sequence of tokens. It owns its memory and can move to
//! another thread. [`Session::generate`] generates text from a prompt; it is built on [`Session::feed`] and [`Session::logits`].
//! The sequences of a [`Batch`] step together and read the weights only once.
//!
//! [`ModelOptions::ram`] caps the memory of the process, including that of all sessions. A model that does not fit is streamed from
//! its file.
#![deny(unsafe_code)]

mod batch;
mod cache;
#[cfg(feature = "chat")]
mod chat;
mod error;
mod fit;
mod generate;
#[cfg(feature = "grammar")]
mod grammar;
mod heap;
mod history;
mod machine;
mod memory;
mod message;
mod model;
mod numbers;
mod options;
mod past;
mod session;
mod session_file;
mod state;
#[cfg(feature = "chat")]
mod template;
mod text;
mod threads;
mod verify;

pub use elapid_core as core;

pub use batch::Batch;
pub use cache::{CacheStats, Eviction, Prefix, PrefixCache};
#[cfg(feature = "chat")]
pub use chat::{Chat, plain_chat};
pub use error::{Error, ExitClass, SessionFault};
pub use fit::Fit;
pub use generate::{
    Autosave, End, Event, GenerateOptions, Generated, Generation, PENALTY_WINDOW, Piece, SAMPLING, TextRules,
};
#[cfg(feature = "grammar")]
pub use grammar::{Constraint, Grammar, Grammars};
pub use heap::one_heap;
pub use history::{Loaded, Reused, SaveOptions};
pub use machine::{Drive, Machine, Profile, available as available_memory};
pub use memory::{Incidents, Plan, ReadBy, Storage};
pub use message::Message;
pub use model::Model;
pub use numbers::Numbers;
pub use options::{ModelOptions, Ram, SessionOptions, Verify};
pub use session::{Progress, Session, Watch};
#[cfg(feature = "chat")]
pub use template::{ChatTemplate, TemplateError};
pub use text::encode;
pub use threads::{MAX_THREADS, Pool, default_threads};
pub use verify::{Damage, verify};
