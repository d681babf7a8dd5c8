//! Elapid on the Raspberry Pi Pico 2 and other boards with an RP2350: the fixed path over USB serial, the model in flash.
//!
//! No emulator runs it. What it computes is `elapid-tiny`, which QEMU does run, on the same core, as mps2-an505.
#![no_std]
#![no_main]

mod console;
mod psram;

use core::fmt::Write;
use core::panic::PanicInfo;

use cortex_m_rt::{ExceptionFrame, exception};
use elapid_board::Platform;
use rp235x_hal::block::ImageDef;
use rp235x_hal::clocks::init_clocks_and_plls;
use rp235x_hal::gpio::{FunctionXipCs1, Pins};
use rp235x_hal::pac;
use rp235x_hal::usb::UsbBus;
use rp235x_hal::{Sio, Timer, Watchdog, entry};
use static_cell::StaticCell;
use usb_device::bus::UsbBusAllocator;

use console::Pico2;

/// Tells the boot ROM that this is a program for the Arm cores in the secure state.
#[unsafe(link_section = ".start_block")]
#[used]
static IMAGE_DEF: ImageDef = ImageDef::secure_exe();

/// Frequency of the board's crystal, in Hz.
const CRYSTAL: u32 = 12_000_000;
/// The model partition: flash from 1 MB on.
const MODEL_AT: usize = 0x1010_0000;
const MODEL_BYTES: usize = 3 << 20;

static USB: StaticCell<UsbBusAllocator<UsbBus>> = StaticCell::new();

#[entry]
fn main() -> ! {
    let Some(mut p) = pac::Peripherals::take() else { stop() };
    let mut watchdog = Watchdog::new(p.WATCHDOG);
    let clocks =
        init_clocks_and_plls(CRYSTAL, p.XOSC, p.CLOCKS, p.PLL_SYS, p.PLL_USB, &mut p.RESETS, &mut watchdog);
    let Ok(clocks) = clocks else { stop() };
    let timer = Timer::new_timer0(p.TIMER0, &mut p.RESETS, &clocks);

    let pins = Pins::new(p.IO_BANK0, p.PADS_BANK0, Sio::new(p.SIO).gpio_bank0, &mut p.RESETS);
    let _chip_select = pins.gpio8.into_function::<FunctionXipCs1>();
    // SAFETY: once, with one core running and no interrupt enabled, so that nothing reads flash meanwhile.
    let psram = unsafe { psram::start() };

    let bus = UsbBus::new(p.USB, p.USB_DPRAM, clocks.usb_clock, true, &mut p.RESETS);
    let mut board = Pico2::new(USB.init(UsbBusAllocator::new(bus)), timer, watchdog);
    board.wait_for_terminal();
    let _ = match psram {
        Some(bytes) => writeln!(board, "PSRAM: {bytes} bytes at {:#x}", psram::AT),
        None => writeln!(board, "PSRAM: none"),
    };

    // SAFETY: flash is mapped there and is not written while this program runs.
    let memory: &'static [u8] = unsafe { core::slice::from_raw_parts(MODEL_AT as *const u8, MODEL_BYTES) };
    if let Err(error) = elapid_tiny::run(&mut board, memory) {
        // Said again for each key, for a terminal that was opened later.
        loop {
            let _ = writeln!(board, "error: {error}");
            board.read();
        }
    }
    stop()
}

/// Waits for ever.
fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// A bug. USB needs the program to run, so all that is left is the watchdog, which starts it again.
#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    stop()
}

/// A fault: as a panic.
#[exception]
unsafe fn HardFault(_frame: &ExceptionFrame) -> ! {
    stop()
}
