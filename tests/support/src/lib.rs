//! What tests of several crates share.
#![forbid(unsafe_code)]

pub mod data;
pub mod effort;
pub mod gguf;
pub mod hub;
pub mod process;
