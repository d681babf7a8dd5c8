//! Packs Mamba checkpoints into Elapid files, ahead of time.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use elapid_pack::{Options, Plan};
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/falcon-even");
//! # let out = tempfile::tempdir()?;
//! # let file = out.path().join("model.elp");
//!
//! let options = Options::default(); // q8, in blocks of 1 MiB
//! let plan = Plan::checkpoint(folder.as_ref(), &options)?; // a folder as the Hugging Face hub has them
//! let layout = plan.write(&file, &options, &())?;
//! assert_eq!(std::fs::metadata(&file)?.len(), layout.file_bytes());
//! # Ok(())
//! # }
//! ```
//!
//! Memory is bounded by a block for each thread, whatever the model: tensors are read by positioned reads, a panel's rows
//! at a time (calibration on text takes more, see [`calibrate`]), and the file is written under a temporary name that is replaced by its own when it is complete.
#![forbid(unsafe_code)]

mod block;
pub mod calibrate;
pub mod chat;
pub mod checkpoint;
mod contents;
pub mod error;
mod findings;
mod inspect;
mod journal;
pub mod pack;
mod progress;
pub mod quantize;
pub mod random;
mod sections;
mod threads;
pub mod tokenizer;
pub mod weights;
pub mod write;

#[cfg(feature = "hub")]
pub use checkpoint::hub;
pub use contents::Contents;
pub use error::PackError;
pub use inspect::{Inspection, Packed, inspect, inspect_in};
pub use pack::{Options, Plan};
