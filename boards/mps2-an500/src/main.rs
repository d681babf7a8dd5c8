//! Elapid on Arm's MPS2 board with the Cortex-M7 image (AN500).
//!
//! The packed model lies in external memory as it would in memory-mapped flash. The state and working memory of the model
//! that this program is built for lie in fast memory; those of any other model that fits, and whatever is sized when
//! the program runs, in a heap in external memory. Logs go out by defmt over semihosting.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;

use elapid_boards::{MPS2_AN500, Memory};
use elapid_console::{Computed, Error, Shell, model};
use elapid_core::format::Config;
use elapid_core::kernels::{self, Scale, Solo, SsmState};
use elapid_core::model::{Model, Scratch, ScratchSize, Session, State, StateKind, StateSize};
use elapid_core::source::SliceSource;
use elapid_mps2::Mps2;
use embedded_alloc::LlffHeap;
use static_cell::ConstStaticCell;

elapid_core::model! {
    /// The larger bundled model.
    mod bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../../host/models/address-4m.elp");
}

/// Where the heap lies.
const MEMORY: Memory = MPS2_AN500.heap.expect("the table of boards gives mps2-an500 a heap");

const _: () = assert!(
    bundled::FILE_BYTES as u64 <= MPS2_AN500.model.bytes,
    "the bundled model does not fit its memory"
);

#[global_allocator]
static HEAP: LlffHeap = LlffHeap::empty();
static SHELL: ConstStaticCell<Shell> = ConstStaticCell::new(Shell::new());
static STATE: ConstStaticCell<bundled::State<f32>> = ConstStaticCell::new(bundled::State::new());
static SCRATCH: ConstStaticCell<bundled::Scratch> = ConstStaticCell::new(bundled::Scratch::new());

elapid_mps2::program! {
    board: MPS2_AN500,
    // UART 0 (AN500, table 3-1).
    uart: 0x4000_4000,
    hz: 25_000_000,
    run: run,
}

fn run(board: &mut Mps2, memory: &'static [u8]) -> Result<(), Error> {
    // SAFETY: the PSRAM is there on this board; nothing else refers to its lower half, and this runs once.
    unsafe { HEAP.init(MEMORY.start as usize, MEMORY.bytes as usize) };
    let (header, file) = model::find(memory)?;
    let (layout, kernels) = (header.layout(), kernels::detect());
    let config = layout.config();
    defmt::info!(
        "model of {=usize} bytes: {=u32} layers of {=u32} channels, vocabulary {=u32}; kernels {=str}",
        file.len(),
        config.n_layer,
        config.d_inner,
        config.vocab,
        kernels.name()
    );
    let model = Model::float(layout, kernels, &Solo);
    let mut checked = zeros(SliceSource::checked_words(layout))?;
    let text = model::text(file, &header, &mut checked)?;
    let mut logits = zeros(config.padded_vocab() as usize)?;

    let (state, scratch) = (STATE.take(), SCRATCH.take());
    let mut external;
    let session = match state.session(&model, scratch) {
        Ok(session) => {
            defmt::info!("state of {=usize} bytes in fast memory", size_of::<bundled::State<f32>>());
            session
        }
        Err(_) => {
            external = External::new(config)?;
            defmt::warn!("another model than this program was built for: its state lies in external memory");
            external.session(&model)?
        }
    };
    let mut source = SliceSource::new(file, &header, &mut checked)?;
    defmt::info!("{=usize} bytes of the heap in use, {=usize} free", HEAP.used(), HEAP.free());
    let mut engine = Computed::new(model, session, &mut source, &mut logits[..], 1);
    SHELL.take().run(board, &mut engine, &text);
    Ok(())
}

/// State and working memory of any model, on the heap.
struct External {
    conv: Vec<f32>,
    ssm: Vec<f32>,
    undo_conv: Vec<f32>,
    undo_ssm: Vec<f32>,
    floats: Vec<f32>,
    ints: Vec<i8>,
    scales: Vec<Scale>,
}

impl External {
    fn new(config: &Config) -> Result<Self, Error> {
        let (all, one) = (StateSize::of(config, config.n_layer as usize), StateSize::of(config, 1));
        let scratch = ScratchSize::of(config, 1);
        let bytes = [all.bytes(StateKind::F32), one.bytes(StateKind::F32), scratch.bytes()];
        let need = bytes.into_iter().fold(0, usize::saturating_add);
        if need > HEAP.free() {
            return Err(Error::Memory { have: HEAP.free(), need });
        }
        Ok(Self {
            conv: zeros(all.conv)?,
            ssm: zeros(all.ssm)?,
            undo_conv: zeros(one.conv)?,
            undo_ssm: zeros(one.ssm)?,
            floats: zeros(scratch.floats)?,
            ints: zeros(scratch.ints)?,
            scales: zeros(scratch.scales)?,
        })
    }

    fn session<'s>(&'s mut self, model: &Model<'_>) -> Result<Session<'s>, Error> {
        let state = State { conv: &mut self.conv, ssm: SsmState::F32(&mut self.ssm) };
        let undo = State { conv: &mut self.undo_conv, ssm: SsmState::F32(&mut self.undo_ssm) };
        let scratch = Scratch { floats: &mut self.floats, ints: &mut self.ints, scales: &mut self.scales };
        Ok(Session::new(model, state, undo, scratch)?)
    }
}

/// `count` elements of nothing on the heap.
fn zeros<T: Clone + Default>(count: usize) -> Result<Vec<T>, Error> {
    let (mut all, need) = (Vec::new(), count.saturating_mul(size_of::<T>()));
    all.try_reserve_exact(count).map_err(|_| Error::Memory { have: HEAP.free(), need })?;
    all.resize(count, T::default());
    Ok(all)
}
