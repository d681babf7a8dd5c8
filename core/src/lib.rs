//! The part of Elapid that runs everywhere: `no_std`, no allocator.
//!
//! ```
//! use elapid_core::format::Header;
//! use elapid_core::kernels::{self, Solo};
//! use elapid_core::model::{Model, Rows};
//! use elapid_core::source::SliceSource;
//!
//! # const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
//! elapid_core::model! {
//!     // The sizes of a packed file, at compile time.
//!     mod tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let file = std::fs::read(FILE)?; // on a board: a slice of flash
//! let header = Header::parse(&file)?;
//! let mut checked = [0; tiny::CHECKED];
//! let mut source = SliceSource::new(&file, &header, &mut checked)?;
//!
//! let model = Model::float(header.layout(), kernels::detect(), &Solo);
//! let (mut state, mut scratch) = (tiny::State::<f32>::new(), tiny::Scratch::new());
//! let mut session = state.session(&model, &mut scratch)?;
//! for token in [60, 61, 62] {
//!     model.forward(&mut session, &mut source, &[token])?;
//! }
//! let mut logits = [0.0; tiny::VOCAB];
//! model.logits(&mut session, &mut source, Rows::Last, &mut logits)?;
//! # assert!(logits.iter().all(|logit| logit.is_finite()) && logits.iter().any(|logit| *logit != 0.0));
//! # Ok(())
//! # }
//! ```
//!
//! * [`format`]: the packed file, read in place.
//! * [`cpu`]: the features of the CPU.
//! * [`numbers`]: the functions of either path, sizes that formats and kernels share, the checksum.
//! * [`kernels`]: the inner loops, for each instruction set, with the same bits.
//! * [`mod@model`]: the Mamba step over borrowed weights, state and scratch.
//! * [`fixed`](mod@model::fixed): state and scratch of the same step in integers.
//! * [`sized`]: state and working memory of a size known to the compiler, for a `static`.
//! * [`source`]: where the weights come from.
//! * [`tokenizer`], [`sample`]: text to tokens and back, logits to a token.
//! * [`generate`]: the loop from a prompt to a text.
#![no_std]
#![deny(unsafe_code)]
#[cfg(feature = "std")]
extern crate std;

pub mod cpu;

pub mod format;
pub mod generate;
#[allow(unsafe_code)]
pub mod kernels;
pub mod model;
pub mod numbers;
pub mod sample;
pub mod sized;
pub mod source;
pub mod tokenizer;

pub use model::fixed;
