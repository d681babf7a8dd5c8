//! State and working memory of a size that the compiler knows, so that they can live in a `static`: no allocator, nothing
//! large on the stack, and a program that does not fit its board is refused by the linker.
//!
//! ```
//! elapid_core::model! {
//!     /// The model that this program is made for.
//!     mod tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
//! }
//! # use elapid_core::{format::Header, kernels::{self, Solo}, model::Model};
//! # fn f(file: &'static [u8]) -> Result<(), Box<dyn std::error::Error>> {
//! // On a board: two `static`s of static_cell's `ConstStaticCell`, which give them out once.
//! let (mut state, mut scratch) = (tiny::State::<u16>::new(), tiny::Scratch::new());
//! let header = Header::parse(file)?;
//! let model = Model::float(header.layout(), kernels::detect(), &Solo);
//! let session = state.session(&model, &mut scratch)?; // refused if the file is of another size
//! # Ok(()) }
//! ```

use core::fmt;

use crate::format::{Config, Header};
use crate::kernels::{GROUP, Scale, SsmState};
use crate::model::{self, Model, ScratchSize, Session, StateSize, StepError};

mod fixed;

pub use fixed::{FixedScratch, FixedState, Mantissa};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u16 {}
}

/// An element of the recurrent state: `f32`, or `u16` for the bits of an f16.
pub trait Element: Copy + sealed::Sealed {
    /// Zero.
    const ZERO: Self;
    /// The elements as the step takes them.
    fn borrow(elements: &mut [Self]) -> SsmState<'_>;
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    fn borrow(elements: &mut [Self]) -> SsmState<'_> {
        SsmState::F32(elements)
    }
}

impl Element for u16 {
    const ZERO: Self = 0;
    fn borrow(elements: &mut [Self]) -> SsmState<'_> {
        SsmState::F16(elements)
    }
}

/// What a state is sized by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Layers.
    pub layers: usize,
    /// Channels, `d_inner` padded to 32.
    pub inner: usize,
    /// States of a channel, `d_state`.
    pub state: usize,
    /// Inputs that the convolution keeps, `d_conv - 1`.
    pub conv: usize,
}

impl Dimensions {
    /// Those of a model.
    #[must_use]
    pub const fn of(config: &Config) -> Self {
        let f = config.fields();
        Self {
            layers: f.n_layer as usize,
            inner: config.padded_inner() as usize,
            state: f.d_state as usize,
            conv: f.d_conv as usize - 1,
        }
    }
}

impl fmt::Display for Dimensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, inner, state, conv } = self;
        write!(f, "{layers} layers of {inner} channels with {state} states and {conv} kept inputs")
    }
}

/// The memory is for a model of another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SizeError {
    /// The state.
    State {
        /// What it is for.
        have: Dimensions,
        /// What the model needs.
        need: Dimensions,
    },
    /// The working memory.
    Scratch {
        /// Bytes that it has.
        have: usize,
        /// Bytes that the model needs for one token.
        need: usize,
    },
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State { have, need } => write!(
                f,
                "this program was built for a model of {have}, and this one has {need}: build it for this model, or \
                 give it the one it was built for"
            ),
            Self::Scratch { have, need } => write!(
                f,
                "this program was built with {} bytes of working memory, and the model needs {}: build it for this \
                 model, or give it the one it was built for",
                have, need
            ),
        }
    }
}

impl core::error::Error for SizeError {}

/// The state of a sequence, with the undo copy of one layer. All zeros: a `static` of it takes no space in flash.
///
/// `INNER` is `d_inner` padded to 32, `CONV` the inputs that the convolution keeps (`d_conv - 1`). Nested arrays stand
/// for the flat ones of [`model::State`]: a product of parameters can't be an array's length. Their order within a
/// layer is the step's own, `[d_inner/16][…][16]`.
#[derive(Debug)]
pub struct State<const LAYERS: usize, const INNER: usize, const STATE: usize, const CONV: usize, T> {
    conv: [[[f32; CONV]; INNER]; LAYERS],
    ssm: [[[T; STATE]; INNER]; LAYERS],
    undo_conv: [[f32; CONV]; INNER],
    undo_ssm: [[T; STATE]; INNER],
}

impl<const LAYERS: usize, const INNER: usize, const STATE: usize, const CONV: usize, T: Element>
    State<LAYERS, INNER, STATE, CONV, T>
{
    /// What it is for.
    pub const DIMENSIONS: Dimensions = {
        assert!(LAYERS > 0 && INNER > 0 && STATE > 0, "a state without layers, channels or states");
        assert!(INNER.is_multiple_of(GROUP), "channels are padded to 32");
        Dimensions { layers: LAYERS, inner: INNER, state: STATE, conv: CONV }
    };

    /// A state that remembers nothing.
    #[must_use]
    pub const fn new() -> Self {
        let _ = Self::DIMENSIONS;
        Self {
            conv: [[[0.0; CONV]; INNER]; LAYERS],
            ssm: [[[T::ZERO; STATE]; INNER]; LAYERS],
            undo_conv: [[0.0; CONV]; INNER],
            undo_ssm: [[T::ZERO; STATE]; INNER],
        }
    }

    /// A session in this memory, of a new sequence.
    ///
    /// # Errors
    /// [`SizeError`] with both sizes if it is for another model.
    pub fn session<'s, const FLOATS: usize, const INTS: usize, const SCALES: usize>(
        &'s mut self,
        model: &Model<'_>,
        scratch: &'s mut Scratch<FLOATS, INTS, SCALES>,
    ) -> Result<Session<'s>, SizeError> {
        let (have, need) = (Self::DIMENSIONS, Dimensions::of(model.config()));
        if have != need {
            return Err(SizeError::State { have, need });
        }
        let mut state = model::State {
            conv: self.conv.as_flattened_mut().as_flattened_mut(),
            ssm: T::borrow(self.ssm.as_flattened_mut().as_flattened_mut()),
        };
        state.clear();
        let undo = model::State {
            conv: self.undo_conv.as_flattened_mut(),
            ssm: T::borrow(self.undo_ssm.as_flattened_mut()),
        };
        debug_assert_eq!(state.size(), StateSize::of(model.config(), LAYERS));
        let (have, need) = (scratch.size().bytes(), ScratchSize::of(model.config(), 1).bytes());
        // The state fits: what can still be refused is the working memory.
        Session::new(model, state, undo, scratch.borrow())
            .map_err(|_: StepError| SizeError::Scratch { have, need })
    }
}

impl<const LAYERS: usize, const INNER: usize, const STATE: usize, const CONV: usize, T: Element> Default
    for State<LAYERS, INNER, STATE, CONV, T>
{
    fn default() -> Self {
        Self::new()
    }
}

/// The working memory of a step, sized by [`ScratchSize`].
#[derive(Debug)]
pub struct Scratch<const FLOATS: usize, const INTS: usize, const SCALES: usize> {
    floats: [f32; FLOATS],
    ints: [i8; INTS],
    scales: [Scale; SCALES],
}

impl<const FLOATS: usize, const INTS: usize, const SCALES: usize> Scratch<FLOATS, INTS, SCALES> {
    /// All zeros.
    #[must_use]
    pub const fn new() -> Self {
        let scales = [const { Scale { scale: 0.0, sum: 0 } }; SCALES];
        Self { floats: [0.0; FLOATS], ints: [0; INTS], scales }
    }

    /// Elements.
    #[must_use]
    pub const fn size(&self) -> ScratchSize {
        ScratchSize { floats: FLOATS, ints: INTS, scales: SCALES }
    }

    /// As the step takes it.
    pub fn borrow(&mut self) -> model::Scratch<'_> {
        model::Scratch { floats: &mut self.floats, ints: &mut self.ints, scales: &mut self.scales }
    }
}

impl<const FLOATS: usize, const INTS: usize, const SCALES: usize> Default for Scratch<FLOATS, INTS, SCALES> {
    fn default() -> Self {
        Self::new()
    }
}

/// The configuration of a packed file, in the compiler: what is no packed file does not compile.
#[must_use]
pub const fn config(file: &[u8]) -> Config {
    let Some(header) = file.first_chunk::<{ Header::BYTES }>() else {
        panic!("the file is too short for a packed model");
    };
    match Header::config(header) {
        Ok(config) => config,
        Err(_) => panic!("the file is no packed model of this version: `elapid info` says why"),
    }
}

/// Words of the bitmap that [`crate::source::SliceSource`] marks checked blocks of a packed file in.
///
/// The number of blocks is the length of the first section in the table, a word each.
#[must_use]
pub const fn checked_words(file: &[u8]) -> usize {
    let Some((_, table)) = file.split_at_checked(Header::BYTES + 16) else {
        panic!("the file is too short for a packed model");
    };
    let Some(length) = table.first_chunk::<8>() else { panic!("the file is too short for a packed model") };
    (u64::from_le_bytes(*length) / 4).div_ceil(32) as usize
}

/// Turns a packed file into a module with its sizes and the types of its state and working memory.
///
/// ```text
/// elapid_core::model! { mod tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/tiny.elp"); }
/// ```
///
/// The module has `CONFIG`, `FILE_BYTES`, `VOCAB` (padded, the length of a row of logits), `CHECKED` (words of a source's
/// bitmap), `State<T>` and `Scratch` (for one token at a time), `FixedState<T>` and `FixedScratch`. The file itself does not become part of the program.
#[macro_export]
macro_rules! model {
    ($(#[$meta:meta])* $vis:vis mod $name:ident = $file:expr;) => {
        $(#[$meta])*
        #[allow(dead_code)]
        $vis mod $name {
            const FILE: &[u8] = include_bytes!($file);
            const SCRATCH: $crate::model::ScratchSize = $crate::model::ScratchSize::of(&CONFIG, 1);
            const FIXED: $crate::fixed::ScratchSize = $crate::fixed::ScratchSize::of(&CONFIG, 1);
            const DIMENSIONS: $crate::sized::Dimensions = $crate::sized::Dimensions::of(&CONFIG);

            /// The model's configuration.
            pub const CONFIG: $crate::format::Config = $crate::sized::config(FILE);
            /// Bytes of the file.
            pub const FILE_BYTES: usize = FILE.len();
            /// Logits of a token, padding included.
            pub const VOCAB: usize = CONFIG.padded_vocab() as usize;
            /// Words of a source's bitmap of checked blocks.
            pub const CHECKED: usize = $crate::sized::checked_words(FILE);

            /// The state of a sequence, its recurrent part kept as `T`.
            pub type State<T> = $crate::sized::State<
                { DIMENSIONS.layers },
                { DIMENSIONS.inner },
                { DIMENSIONS.state },
                { DIMENSIONS.conv },
                T,
            >;
            /// Working memory for one token at a time.
            pub type Scratch =
                $crate::sized::Scratch<{ SCRATCH.floats }, { SCRATCH.ints }, { SCRATCH.scales }>;

            /// The state of a sequence in the fixed path, its recurrent part kept as `T`.
            pub type FixedState<T> = $crate::sized::FixedState<
                { DIMENSIONS.layers },
                { DIMENSIONS.inner },
                { DIMENSIONS.inner / 16 },
                { DIMENSIONS.state },
                { DIMENSIONS.conv },
                T,
            >;
            /// Working memory for one token at a time in the fixed path.
            pub type FixedScratch =
                $crate::sized::FixedScratch<{ FIXED.words }, { FIXED.halves }, { FIXED.groups }>;
        }
    };
}
