//! Elapid on a host with an operating system: runs Mamba-family language models from packed files.
//!
//! An [`Engine`] is a model, opened. A [`Memory`] is what one sequence needs, and a [`Sequence`] borrows both: tokens go
//! in, logits come out. [`generate`] goes from a prompt to text.
//!
//! What the program `elapid` does, this library does; the program adds options and terminals.
#![deny(unsafe_code)]

mod batch;
mod engine;
mod error;
mod generate;
mod path;
mod pool;
mod profile;
mod residency;
mod sequence;
mod stops;
mod text;
mod verify;

pub use elapid_core as core;

pub use batch::{Batch, EachSequence};
pub use engine::{Engine, EngineOptions};
pub use error::{Error, ExitClass};
pub use generate::{End, GenerateOptions, Generated, Listener, generate};
pub use pool::{MAX_THREADS, Pool, default_threads};
pub use profile::{Board, Drive, Profile};
pub use residency::{Incidents, Plan, Ram, ReadBy, Storage, Verify, available as available_memory, one_heap};
pub use sequence::{EachRow, Memory, MemoryOptions, Progress, Sequence, Watch, memory_bytes};
pub use text::encode;
pub use verify::{Damage, verify};
