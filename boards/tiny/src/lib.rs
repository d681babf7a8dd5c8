//! The program of boards without a heap: the bundled model of 300,000 parameters in the fixed path, everything in
//! `static`s. What it needs of memory is known when it is linked; a board gives console, clock, and the memory in which
//! the packed file lies.
#![no_std]
#![forbid(unsafe_code)]

use elapid_console::{Computed, Error, FixedLogits, Platform, Shell, model};
use elapid_core::fixed::Model;
use elapid_core::kernels::{Solo, fixed as kernels};
use elapid_core::source::SliceSource;
use static_cell::ConstStaticCell;

elapid_core::model! {
    /// The model that the program is built for.
    pub mod bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../../host/models/address-300k.elp");
}

static STATE: ConstStaticCell<bundled::FixedState<i16>> = ConstStaticCell::new(bundled::FixedState::new());
static SCRATCH: ConstStaticCell<bundled::FixedScratch> = ConstStaticCell::new(bundled::FixedScratch::new());
static LOGITS: ConstStaticCell<[i32; bundled::VOCAB]> = ConstStaticCell::new([0; bundled::VOCAB]);
static SAMPLED: ConstStaticCell<[f32; bundled::VOCAB]> = ConstStaticCell::new([0.0; bundled::VOCAB]);
static CHECKED: ConstStaticCell<[u32; bundled::CHECKED]> = ConstStaticCell::new([0; bundled::CHECKED]);
static SHELL: ConstStaticCell<Shell> = ConstStaticCell::new(Shell::new());

/// What the step itself needs: the limit that the project set itself.
const _: () = assert!(
    size_of::<bundled::FixedState<i16>>() + size_of::<bundled::FixedScratch>() < 64 << 10,
    "state and working memory of the 300K model must stay under 64 KB"
);

/// Runs the model that begins `memory`, until the platform's exit returns. Call it once.
///
/// # Errors
/// If there is no model, or not one of the size that the program was built for, or it is damaged.
pub fn run(platform: &mut dyn Platform, memory: &'static [u8]) -> Result<(), Error> {
    let (header, file) = model::find(memory)?;
    let model = Model::fixed(header.layout(), kernels::detect(), &Solo)?;
    let (state, scratch) = (STATE.take(), SCRATCH.take());
    let session = state.session(&model, scratch)?;
    let checked = CHECKED.take();
    let text = model::text(file, &header, checked)?;
    let mut source = SliceSource::new(file, &header, checked)?;
    let logits = FixedLogits { integers: LOGITS.take(), floats: SAMPLED.take() };
    let mut engine = Computed::new(model, session, &mut source, logits, 1);
    SHELL.take().run(platform, &mut engine, &text);
    Ok(())
}
