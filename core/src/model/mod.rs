//! The Mamba step: from tokens to logits, over borrowed weights, state and working memory.
//!
//! ```text
//! let model = Model::new(header.layout(), kernels::detect(), &Solo);
//! let mut session = Session::new(&model, state, undo, scratch)?;
//! model.forward(&mut session, &mut source, &[1, 2, 3])?;          // any number of tokens up to the chunk's capacity
//! model.logits(&mut session, &mut source, Rows::Last, &mut out)?; // of the last one
//! ```
//!
//! A chunk of tokens gives the same bits as its tokens one by one.

mod error;
mod run;
mod scratch;
mod session;
mod spread;
mod state;
mod step;

pub use error::StepError;
pub use scratch::{Scratch, ScratchSize};
pub use session::{MAX_SLOTS, Position, Session};
pub use state::{State, StateKind, StateSize};
pub use step::{Model, Rows};

pub(crate) use run::{embedding_panel, for_each_run};
pub(crate) use spread::cost;
