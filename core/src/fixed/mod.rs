//! The Mamba step in integers: [`Fixed`](crate::model::Fixed). State and working memory are in [`mod@crate::model::fixed`].

pub mod functions;
pub mod kernels;
pub(crate) mod num;

pub use crate::model::fixed::{Scratch, ScratchSize, State, StateKind, StateSize};
pub use kernels::LOGIT_BITS;
pub use num::{Num, saturated};

/// A model in integers: [`Model::fixed`](crate::model::Model::fixed).
pub type Model<'m> = crate::model::Model<'m, crate::model::Fixed>;
/// Sequences of a model in integers.
pub type Session<'s> = crate::model::Session<'s, crate::model::Fixed>;
