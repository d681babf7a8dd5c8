//! The Mamba step: from tokens to logits, over borrowed weights, state and working memory.
//!
//! ```text
//! let model = Model::float(header.layout(), kernels::detect(), &Solo);
//! let mut session = Session::new(&model, state, undo, scratch)?;
//! model.forward(&mut session, &mut source, &[1, 2, 3])?;          // any number of tokens up to the chunk's capacity
//! model.logits(&mut session, &mut source, Rows::Last, &mut out)?; // of the last one
//! ```
//!
//! A chunk of tokens gives the same bits as its tokens one by one.
//!
//! The equations are in `step.rs`, once for both kinds of [`Numbers`]: [`Float`], and [`Fixed`], whose state and working memory are
//! in [`fixed`]. `operations.rs` names the operations that each of them gives.

mod error;
pub mod fixed;
mod float;
mod operations;
mod parts;
mod session;
pub mod snapshot;
mod span;
mod spread;
mod step;

pub use error::StepError;
pub use float::{Scratch, ScratchSize, State, StateKind, StateSize};
pub use operations::{Fixed, Float, MAX_SLOTS, Model, Rows};
pub use parts::{Element, Stored};
pub use session::{Position, Session};

use crate::format::{Layout, Quant, Section};
use crate::kernels::Team;
use crate::source::LayerSource;
use operations::{Buffers, LayerState, Members, Operations, Pass, Undo};

/// The numbers that a model is computed with: [`Float`] or [`Fixed`].
pub trait Numbers: Operations {}
impl Numbers for Float {}
impl Numbers for Fixed {}

impl<'m> Model<'m, Float> {
    /// A model in floating point, computed by `kernels` on the threads of `team`; neither changes a bit of the results.
    #[must_use]
    pub const fn float(
        layout: &'m Layout,
        kernels: &'m (dyn crate::kernels::Kernels + 'static),
        team: &'m dyn Team,
    ) -> Self {
        Self { layout, kernels, team }
    }

    /// Lets tokens pass one layer outside of any session, for tools that work on a model layer by layer.
    ///
    /// `x` is the residual stream `[d_model/16][T][16]`, replaced by what leaves the layer; `state` is that of all layers, of
    /// which this one's is used.
    ///
    /// # Errors
    /// [`StepError::NoTokens`] or [`StepError::Buffer`] before anything is changed; after any other, `x` and `state` mean
    /// nothing.
    pub fn pass_layer(
        &self,
        source: &mut dyn LayerSource,
        layer: u32,
        x: &mut [f32],
        state: &mut State<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), StepError> {
        let config = self.config();
        let width = config.padded_model() as usize;
        let tokens = x.len() / width;
        if tokens == 0 {
            return Err(StepError::NoTokens);
        }
        let (have, need) = (state.size(), StateSize::of(config, config.n_layer as usize));
        let (space, least) = (scratch.size(), ScratchSize::of(config, tokens));
        let fits = [
            ("the residual stream", x.len(), tokens * width, x.len() == tokens * width),
            ("the convolution state", have.conv, need.conv, have.conv == need.conv),
            ("the recurrent state", have.ssm, need.ssm, have.ssm == need.ssm),
            ("the working memory", space.floats, least.floats, scratch.fits(config, tokens)),
        ];
        if let Some((name, have, need, _)) = fits.into_iter().find(|(.., fits)| !fits) {
            return Err(StepError::Buffer { name, have, need });
        }
        let all = State { conv: state.conv, ssm: state.ssm.reborrow() };
        let undo = Undo::new(State { conv: &mut [], ssm: all.ssm.none() });
        let mut state = LayerState { all, undo, members: Members::One(0), layer: layer as usize };
        let mut buffers = Buffers { x, ..scratch.cut(config, tokens) };
        let mut pass = Pass { model: *self, source, section: Section::Layer(layer), tokens };
        step::layer(&mut pass, &mut state, &mut buffers)
    }
}

impl<'m> Model<'m, Fixed> {
    /// A model in integers, computed by `kernels` on the threads of `team`; neither changes a bit of the results.
    ///
    /// # Errors
    /// [`StepError::Type`] for a matrix that is neither q8 nor q4.
    pub fn fixed(
        layout: &'m Layout,
        kernels: &'m (dyn crate::kernels::fixed::Kernels + 'static),
        team: &'m dyn Team,
    ) -> Result<Self, StepError> {
        let q = &layout.config().quants;
        let matrices = [
            ("the embedding", q.embedding),
            ("in_proj", q.in_proj),
            ("x_proj", q.x_proj),
            ("dt_proj", q.dt_proj),
            ("out_proj", q.out_proj),
            ("the head", q.head),
        ];
        for (matrix, quant) in matrices {
            match quant {
                Quant::Q8 | Quant::Q4 => {}
                Quant::F32 | Quant::F16 | Quant::Q5 | Quant::Q3 => {
                    return Err(StepError::Type { matrix, quant });
                }
            }
        }
        Ok(Self { layout, kernels, team })
    }
}
