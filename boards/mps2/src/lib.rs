//! What Arm's MPS2 boards have in common: a UART of Arm's CMSDK as console, SysTick as clock, semihosting for the end.
//!
//! The FPGA images differ in their addresses, which each board's program gives to [`program!`].
#![no_std]

#[cfg(feature = "defmt")]
mod log;
mod stack;
mod uart;

pub use stack::used as stack_used;
pub use uart::Uart;

use core::fmt;

use cortex_m::Peripherals;
use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::ExceptionFrame;
use cortex_m_semihosting::debug::{self, EXIT_FAILURE, EXIT_SUCCESS};
use elapid_boards::{Board, Memory};
use elapid_console::{Error, Platform};

/// Largest value of SysTick, a counter of 24 bits that counts down.
const RELOAD: u32 = 0x00ff_ffff;

/// An MPS2 board.
#[allow(missing_debug_implementations, reason = "SYST has none")]
pub struct Mps2 {
    uart: Uart,
    _clock: SYST,
    /// Its rate, in Hz.
    hz: u32,
    /// What SysTick showed when it was last looked at.
    last: u32,
    ticks: u64,
}

impl Mps2 {
    /// The board, with its clock of `hz` Hz started.
    #[must_use]
    pub fn new(mut uart: Uart, mut clock: SYST, hz: u32) -> Self {
        uart.enable();
        clock.set_clock_source(SystClkSource::Core);
        clock.set_reload(RELOAD);
        clock.clear_current();
        clock.enable_counter();
        let last = SYST::get_current();
        Self { uart, _clock: clock, hz, last, ticks: 0 }
    }

    /// Says why the program can't go on, and ends it.
    pub fn fail(&mut self, error: &dyn fmt::Display) -> ! {
        let _ = fmt::Write::write_fmt(self, format_args!("error: {error}\n"));
        self.exit(false);
        halt()
    }

    /// Brings `ticks` up to date. SysTick wraps after 16.8 million ticks: a layer must take less.
    fn count(&mut self) {
        let now = SYST::get_current();
        self.ticks += u64::from(self.last.wrapping_sub(now) & RELOAD);
        self.last = now;
    }
}

impl fmt::Write for Mps2 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.uart.write_str(text)
    }
}

impl Platform for Mps2 {
    fn poll(&mut self) -> Option<u8> {
        self.count();
        self.uart.poll()
    }

    fn ticks(&mut self) -> u64 {
        self.count();
        self.ticks
    }

    fn ticks_a_second(&self) -> u32 {
        self.hz
    }

    fn stack_used(&self) -> Option<usize> {
        Some(stack::used())
    }

    fn exit(&mut self, success: bool) {
        debug::exit(if success { EXIT_SUCCESS } else { EXIT_FAILURE });
    }
}

/// A board's program: what runs after reset, and what ends it after a panic or a fault.
///
/// `board` is the board in `elapid_boards`, `uart` the address of its CMSDK UART, `hz` the rate of its system clock; `run` is
/// called with the board and the memory in which the model lies.
///
/// ```text
/// elapid_mps2::program! { board: elapid_boards::MPS2_AN385, uart: 0x4000_4000, hz: 25_000_000, run: elapid_tiny::run }
/// ```
#[macro_export]
macro_rules! program {
    (board: $board:expr, uart: $uart:expr, hz: $hz:expr, run: $run:path $(,)?) => {
        #[::cortex_m_rt::entry]
        fn main() -> ! {
            // SAFETY: this is the program of that board.
            unsafe { $crate::start(&$board, $uart, $hz, |board, memory| $run(board, memory)) }
        }

        $crate::handlers!($uart);
    };
}

/// What a program does after a panic and a fault: it says so on the CMSDK UART at `uart`, and ends.
#[macro_export]
macro_rules! handlers {
    ($uart:expr) => {
        /// A bug: says where, and stops.
        #[panic_handler]
        fn panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            // SAFETY: the program's board has that UART, and whoever owned it does not come back.
            unsafe { $crate::stop($uart, info) }
        }

        /// A fault: says where, and stops.
        #[::cortex_m_rt::exception]
        unsafe fn HardFault(frame: &::cortex_m_rt::ExceptionFrame) -> ! {
            // SAFETY: as above.
            unsafe { $crate::stop($uart, &$crate::Fault(frame)) }
        }
    };
}

/// Sets the board up, calls `run` with it and the model's memory, and ends the program with what comes of it.
///
/// # Safety
/// Of the program for `board` alone, and once. There must be a CMSDK UART at `uart`.
pub unsafe fn start(
    board: &Board,
    uart: usize,
    hz: u32,
    run: impl FnOnce(&mut Mps2, &'static [u8]) -> Result<(), Error>,
) -> ! {
    let Memory { start, bytes, .. } = board.model;
    let Some(core) = Peripherals::take() else { halt() };
    // SAFETY: the caller's promise, and this is the UART's only owner.
    let mut board = Mps2::new(unsafe { Uart::new(uart) }, core.SYST, hz);
    // SAFETY: the board has that memory, and nothing writes to it while the program runs.
    let memory: &'static [u8] = unsafe { core::slice::from_raw_parts(start as *const u8, bytes as usize) };
    match run(&mut board, memory) {
        Ok(()) => halt(),
        Err(error) => board.fail(&error),
    }
}

/// Says why the program stops, and ends it: for panics and faults, where nothing else can be relied on.
///
/// # Safety
/// There must be a CMSDK UART at `uart`, and whoever owned it must not run again.
pub unsafe fn stop(uart: usize, why: &dyn fmt::Display) -> ! {
    // SAFETY: the caller's promise.
    let mut uart = unsafe { Uart::new(uart) };
    let _ = fmt::Write::write_fmt(&mut uart, format_args!("\nerror: stopped: {why}\n"));
    debug::exit(EXIT_FAILURE);
    halt()
}

/// The registers of a hard fault, for a person.
#[derive(Debug)]
pub struct Fault<'f>(pub &'f ExceptionFrame);

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = self.0;
        write!(
            f,
            "hard fault at {:#010x}, called from {:#010x}; r0 {:#010x} r1 {:#010x} r2 {:#010x} r3 {:#010x} r12 {:#010x} \
             xpsr {:#010x}",
            frame.pc(),
            frame.lr(),
            frame.r0(),
            frame.r1(),
            frame.r2(),
            frame.r3(),
            frame.r12(),
            frame.xpsr()
        )
    }
}

/// Waits for ever.
pub fn halt() -> ! {
    loop {
        cortex_m::asm::wfi();
    }
}
