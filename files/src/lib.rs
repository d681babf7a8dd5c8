//! File and signal handling that the programs share.
//!
//! * [`Output`] replaces a file when it is complete, or leaves it as it was.
//! * [`open_regular`] and [`read_stream`] open what is to be read, without waiting for what never comes.
//! * [`advice`] says what to do about an error of the system.
//! * [`interrupt`] ends a program on Ctrl-C with the exit code that a shell expects, and removes unfinished files.
#![forbid(unsafe_code)]

mod advice;
mod input;
#[cfg(feature = "interrupt")]
pub mod interrupt;
#[cfg(feature = "output")]
mod output;

pub use advice::advice;
pub use input::{open_regular, open_regular_with, read_stream};
#[cfg(feature = "output")]
pub use output::{Output, same_file};
