//! The fixed path on a microcontroller, for the test of its bits: the model and the tokens that the emulator put into
//! memory, one token at a time, then a checksum of all logits and what a token took. One program for two CPUs: Arm's MPS2
//! boards with the Cortex-M3 (AN385) and Cortex-M7 (AN500) images agree in the addresses that it uses.
#![no_std]
#![no_main]

mod memory;

use core::fmt::Write as _;

use cortex_m_rt::entry;
use crc32fast::Hasher;
use elapid_console::{Error, Platform, model};
use elapid_core::fixed::Model;
use elapid_core::kernels::{Solo, fixed as kernels};
use elapid_core::model::Rows;
use elapid_core::source::SliceSource;
use elapid_mps2::{Mps2, Uart, halt};
use memory::Memory;
use static_cell::ConstStaticCell;

/// UART 0 (AN385 and AN500, table 3-1).
const UART0: usize = 0x4000_4000;
/// The system clock of both, in Hz.
const CLOCK: u32 = 25_000_000;
/// The upper half of the RAM: a packed model, then tokens, their number first.
const MODEL_AT: usize = 0x2020_0000;
const MODEL_BYTES: usize = 0x0018_0000;
const TOKENS_AT: usize = MODEL_AT + MODEL_BYTES;
const TOKENS_MOST: usize = 1024;

elapid_mps2::handlers!(UART0);

static MEMORY: ConstStaticCell<Memory> = ConstStaticCell::new(Memory::new());

#[entry]
fn main() -> ! {
    let Some(core) = cortex_m::Peripherals::take() else { halt() };
    // SAFETY: both boards have a CMSDK UART there; this is its only owner.
    let mut board = Mps2::new(unsafe { Uart::new(UART0) }, core.SYST, CLOCK);
    // SAFETY: the RAM is there and readable, no part of what the linker places, and nothing writes to it.
    let (file, tokens) = unsafe {
        (
            core::slice::from_raw_parts(MODEL_AT as *const u8, MODEL_BYTES),
            core::slice::from_raw_parts(TOKENS_AT as *const u32, TOKENS_MOST + 1),
        )
    };
    let count = tokens.first().map_or(0, |count| *count as usize);
    let tokens = tokens.get(1..=count).unwrap_or_default();
    match run(&mut board, file, tokens) {
        Ok(()) => board.exit(true),
        Err(error) => board.fail(&error),
    }
    halt()
}

fn run(board: &mut Mps2, file: &'static [u8], tokens: &[u32]) -> Result<(), Error> {
    let (header, file) = model::find(file)?;
    let kernels = kernels::detect();
    let model = Model::fixed(header.layout(), kernels, &Solo)?;
    let memory = MEMORY.take();
    let (mut session, checked, logits) = memory.borrow(&model)?;
    let mut source = SliceSource::new(file, &header, checked)?;
    let (mut sum, mut ticks) = (Hasher::new(), 0);
    for token in tokens {
        let start = board.ticks();
        model.forward(&mut session, &mut source, &[*token])?;
        model.logits(&mut session, &mut source, Rows::Last, logits)?;
        ticks += board.ticks() - start;
        for logit in logits.iter().take(model.config().vocab as usize) {
            sum.update(&logit.to_le_bytes());
        }
    }
    let (name, count, sum) = (kernels.name(), tokens.len(), sum.finalize());
    let (ticks, stack) = (ticks / tokens.len().max(1) as u64, board.stack_used().unwrap_or(0));
    let report = format_args!(
        "--- kernels {name}\n--- tokens {count}\n--- logits {sum:08x}\n--- ticks {ticks}\n--- stack {stack}\n"
    );
    // Writing to a UART does not fail.
    let _ = board.write_fmt(report);
    Ok(())
}
