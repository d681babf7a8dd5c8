//! Packs Mamba checkpoints into Elapid files, ahead of time.
//!
//! Memory is bounded by a block for each thread, whatever the model: tensors are read by positioned reads, a panel's rows
//! at a time (calibration on text takes more, see [`calibrate`]), and the file is written under a temporary name that is replaced by its own when it is complete.
#![forbid(unsafe_code)]

pub mod calibrate;
pub mod chat;
pub mod checkpoint;
pub mod error;
mod findings;
pub mod pack;
pub mod quantize;
pub mod random;
mod sections;
pub mod tokenizer;
pub mod weights;
pub mod write;

pub use error::PackError;
pub use pack::{Options, Plan};
