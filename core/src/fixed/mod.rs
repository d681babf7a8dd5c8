//! The Mamba step in integers: no floating point, and the same bits wherever it runs. Specified in `docs/numerics.md`.
//!
//! It reads the same packed files as [`mod@crate::model`] and works over the same [`LayerSource`](crate::source::LayerSource)s, in
//! the same way: a session borrows its state and its working memory, and a step can be resumed after a source failed.
//!
//! ```text
//! let model = Model::new(header.layout(), kernels::detect(), &Solo)?;
//! let mut session = Session::new(&model, state, undo, scratch)?;
//! model.forward(&mut session, &mut source, &[1, 2, 3])?;
//! model.logits(&mut session, &mut source, Rows::Last, &mut out)?; // in units of 2^-16
//! ```
//!
//! Three formats, all of a mantissa and an exponent:
//! * wide: 16 mantissas of 30 bits with one exponent; the residual stream has one exponent a token;
//! * activations, which meet matrices: 32 mantissas of 14 bits with one exponent;
//! * state: mantissas of 15 or 29 bits with an exponent a channel.

pub mod functions;
pub mod kernels;
pub(crate) mod num;
mod scratch;
mod session;
mod state;
mod step;

pub use num::{Num, saturated};
pub use scratch::{Scratch, ScratchSize};
pub use session::{Position, Session};
pub use state::{State, StateKind, StateSize};
pub use step::{LOGIT_BITS, Model};
