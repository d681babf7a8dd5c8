//! Elapid on the Raspberry Pi Pico 2 and other boards with an RP2350: the fixed path, the model in flash, the console over USB
//! or, with the feature `uart`, on UART 0.
//!
//! A simulator runs it with the console on the UART. USB and PSRAM have never run.
#![no_std]
#![no_main]

mod last;
mod psram;
#[cfg(feature = "uart")]
mod uart;
#[cfg(not(feature = "uart"))]
mod usb;

use core::fmt::Write;
use core::panic::PanicInfo;

use cortex_m_rt::{ExceptionFrame, exception};
use elapid_boards::PICO2;
use elapid_console::Platform;
use rp235x_hal::block::ImageDef;
use rp235x_hal::clocks::{ClocksManager, init_clocks_and_plls};
use rp235x_hal::fugit::RateExtU32;
use rp235x_hal::gpio::{FunctionXipCs1, Pins};
use rp235x_hal::{Clock, Sio, Timer, Watchdog, entry, pac};

use last::Last;

/// Tells the boot ROM that this is a program for the Arm cores in the secure state.
#[unsafe(link_section = ".start_block")]
#[used]
static IMAGE_DEF: ImageDef = ImageDef::secure_exe();

/// Frequency of the board's crystal, in Hz.
const CRYSTAL: u32 = 12_000_000;
/// Frequency of the system clock that the HAL sets up, in MHz.
const SYSTEM_MHZ: u32 = 150;

/// A layer of the bundled model takes a few thousandths of this.
const WATCHDOG_SECONDS: u32 = 4;

#[entry]
fn main() -> ! {
    let Some(mut p) = pac::Peripherals::take() else { stop() };
    let last = Last::take();
    let mut watchdog = Watchdog::new(p.WATCHDOG);
    let clocks =
        init_clocks_and_plls(CRYSTAL, p.XOSC, p.CLOCKS, p.PLL_SYS, p.PLL_USB, &mut p.RESETS, &mut watchdog);
    let Ok(clocks) = clocks else { stop() };
    let timer = Timer::new_timer0(p.TIMER0, &mut p.RESETS, &clocks);

    // Boards that have PSRAM elsewhere (GPIO 0, 19, 47) change this line.
    let pins = Pins::new(p.IO_BANK0, p.PADS_BANK0, Sio::new(p.SIO).gpio_bank0, &mut p.RESETS);
    let _chip_select = pins.gpio8.into_function::<FunctionXipCs1>();
    let psram = start_psram(&clocks);

    #[cfg(feature = "uart")]
    let mut board = {
        let pins = (pins.gpio0.into_function(), pins.gpio1.into_function());
        let clock = clocks.peripheral_clock.freq();
        let board = uart::Pico2::new(p.UART0, pins, clock, &mut p.RESETS, timer, watchdog);
        let Some(board) = board else { stop() };
        board
    };
    #[cfg(not(feature = "uart"))]
    let mut board = {
        let mut board = usb::Pico2::new(p.USB, p.USB_DPRAM, clocks.usb_clock, &mut p.RESETS, timer, watchdog);
        board.wait_for_terminal();
        board
    };
    if let Some(last) = last {
        let _ = writeln!(board, "the program was started again: {last}");
    }
    let _ = match psram {
        Some(bytes) => writeln!(board, "PSRAM: {bytes} bytes at {:#x}", psram::AT),
        None => writeln!(board, "PSRAM: none"),
    };

    let (at, bytes) = (PICO2.model.start as usize, PICO2.model.bytes as usize);
    // SAFETY: flash is mapped there and is not written while this program runs.
    let memory: &'static [u8] = unsafe { core::slice::from_raw_parts(at as *const u8, bytes) };
    if let Err(error) = elapid_tiny::run(&mut board, memory) {
        let _ = writeln!(board, "error: {error}");
        board.exit(false);
        // Said again for each key, for a terminal that was opened later.
        loop {
            let _ = writeln!(board, "error: {error}");
            while board.poll().is_none() {}
        }
    }
    // After `/exit` the watchdog starts the program anew.
    stop()
}

/// Hands out a text with the line ends that a terminal wants.
fn with_line_ends(text: &str, mut send: impl FnMut(&[u8])) {
    for line in text.split_inclusive('\n') {
        match line.strip_suffix('\n') {
            Some(line) => {
                send(line.as_bytes());
                send(b"\r\n");
            }
            None => send(line.as_bytes()),
        }
    }
}

/// Maps the PSRAM, where there is one and the clock is the one that its timing is for.
fn start_psram(clocks: &ClocksManager) -> Option<usize> {
    if clocks.system_clock.freq() != SYSTEM_MHZ.MHz::<1, 1>() {
        return None;
    }
    // SAFETY: once, at this clock, with one core running and no interrupt enabled, so that nothing reads flash meanwhile.
    unsafe { psram::start::<SYSTEM_MHZ>() }
}

/// Waits for the watchdog, which starts the program again.
fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// A bug: kept for the next start.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    Last::keep_panic(info.location().map_or(0, |location| location.line()));
    stop()
}

/// A fault: as a panic.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    Last::keep_fault(frame.pc());
    stop()
}
