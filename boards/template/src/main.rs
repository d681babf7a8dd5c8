//! A board's program to start from. docs/porting.md goes through it in the order in which one brings a board up.
#![no_std]
#![no_main]

use core::fmt;
use core::panic::PanicInfo;

use cortex_m_rt::entry;
use elapid_console::Platform;

/// Where the packed model lies: memory-mapped flash, or RAM that a loader has filled.
const MODEL_AT: usize = 0x0010_0000;
const MODEL_BYTES: usize = 1 << 20;

/// Your board: what the program needs of it.
struct MyBoard;

impl fmt::Write for MyBoard {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for _byte in text.bytes() {
            // 1. Wait until the UART takes a byte, and give it this one.
        }
        Ok(())
    }
}

impl Platform for MyBoard {
    fn poll(&mut self) -> Option<u8> {
        // 2. A byte from the UART, if one has come. Called after every layer too: feed the watchdog here.
        None
    }

    fn ticks(&mut self) -> u64 {
        // 3. A counter that only goes up.
        0
    }

    fn ticks_a_second(&self) -> u32 {
        // 4. Its rate in Hz, for the speed that the program prints; 0 prints none.
        0
    }
}

#[entry]
fn main() -> ! {
    // 5. Clocks, memory controller, UART.
    let mut board = MyBoard;
    // SAFETY: 6. this memory is there and readable, and nothing writes to it while the program runs.
    let memory: &'static [u8] = unsafe { core::slice::from_raw_parts(MODEL_AT as *const u8, MODEL_BYTES) };
    if let Err(error) = elapid_tiny::run(&mut board, memory) {
        let _ = fmt::Write::write_fmt(&mut board, format_args!("error: {error}\n"));
    }
    stop()
}

fn stop() -> ! {
    loop {
        cortex_m::asm::wfi();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // Nothing of the board can be relied on here but what is set up again.
    let _ = fmt::Write::write_fmt(&mut MyBoard, format_args!("error: stopped: {info}\n"));
    stop()
}
