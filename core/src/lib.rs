//! The part of Elapid that runs everywhere: `no_std`, no allocator.
//!
//! * [`cpu`]: what the CPU has.
//! * [`numbers`]: the functions of either path, sizes that formats and kernels share, the checksum.
//! * [`format`]: the packed file, read in place.
//! * [`kernels`]: the inner loops, for each instruction set, with the same bits.
//! * [`mod@model`]: the Mamba step over borrowed weights, state and scratch.
//! * [`fixed`]: the same step in integers.
//! * [`sized`]: state and working memory of a size known to the compiler, for a `static`.
//! * [`source`]: where the weights come from.
//! * [`tokenizer`], [`sample`]: text to tokens and back, logits to a token.
#![no_std]
#[cfg(feature = "std")]
extern crate std;

pub mod cpu;
pub mod fixed;
pub mod format;
pub mod kernels;
pub mod model;
pub mod numbers;
pub mod sample;
pub mod sized;
pub mod source;
pub mod tokenizer;
