//! Elapid on Arm's MPS2 board with the Cortex-M3 image (AN385): the fixed path, everything in `static`s, no heap.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use cortex_m_rt::{ExceptionFrame, entry, exception};
use elapid_mps2::{Mps2, Uart, halt};

/// UART 0 (AN385, table 3-1).
const UART0: usize = 0x4000_4000;
/// PSRAM, 16 MB: it stands for the flash memory in which a product would hold the model.
const MODEL_AT: usize = 0x2100_0000;
const MODEL_BYTES: usize = 16 << 20;

#[entry]
fn main() -> ! {
    let Some(core) = cortex_m::Peripherals::take() else { halt() };
    // SAFETY: AN385 has a CMSDK UART there; this is its only owner.
    let mut board = Mps2::new(unsafe { Uart::new(UART0) }, core.SYST);
    // SAFETY: the PSRAM is there, readable, and nothing writes to it.
    let memory: &'static [u8] = unsafe { core::slice::from_raw_parts(MODEL_AT as *const u8, MODEL_BYTES) };
    match elapid_tiny::run(&mut board, memory) {
        Ok(()) => halt(),
        Err(error) => board.fail(&error),
    }
}

/// A bug: says where, and stops.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // SAFETY: whoever owned the UART does not come back.
    unsafe { elapid_mps2::stop(UART0, info) }
}

/// A fault: says where, and stops.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    // SAFETY: as above.
    unsafe { elapid_mps2::stop(UART0, &elapid_mps2::Fault(frame)) }
}
