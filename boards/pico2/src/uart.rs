//! A serial port on UART 0: GPIO 0 sends and GPIO 1 receives, 115200 baud, 8 data bits, no parity.

use core::fmt;

use elapid_console::Platform;
use rp235x_hal::fugit::{ExtU32, HertzU32, RateExtU32};
use rp235x_hal::gpio::{FunctionUart, Pin, PullDown, bank0};
use rp235x_hal::timer::CopyableTimer0;
use rp235x_hal::uart::{DataBits, Enabled, StopBits, UartConfig, UartPeripheral};
use rp235x_hal::{Timer, Watchdog, pac};

/// What ends a program that succeeded, for whoever reads the port: the ASCII control character "end of transmission".
const SUCCESS: u8 = 4;
/// The same for one that failed: "cancel".
const FAILURE: u8 = 24;

type Sends = Pin<bank0::Gpio0, FunctionUart, PullDown>;
type Receives = Pin<bank0::Gpio1, FunctionUart, PullDown>;

/// The board as `elapid-console` wants it.
pub struct Pico2 {
    uart: UartPeripheral<Enabled, pac::UART0, (Sends, Receives)>,
    timer: Timer<CopyableTimer0>,
    watchdog: Watchdog,
}

impl Pico2 {
    /// The board with its port open. `None` if the clock can't give the rate.
    pub fn new(
        uart: pac::UART0,
        pins: (Sends, Receives),
        clock: HertzU32,
        resets: &mut pac::RESETS,
        timer: Timer<CopyableTimer0>,
        mut watchdog: Watchdog,
    ) -> Option<Self> {
        let config = UartConfig::new(115_200.Hz(), DataBits::Eight, None, StopBits::One);
        let uart = UartPeripheral::new(uart, pins, resets).enable(config, clock).ok()?;
        watchdog.start(crate::WATCHDOG_SECONDS.secs());
        Some(Self { uart, timer, watchdog })
    }
}

impl fmt::Write for Pico2 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        crate::with_line_ends(text, |bytes| {
            self.watchdog.feed();
            self.uart.write_full_blocking(bytes);
        });
        Ok(())
    }
}

impl Platform for Pico2 {
    fn poll(&mut self) -> Option<u8> {
        self.watchdog.feed();
        let mut byte = [0];
        // A byte that was damaged on the line is lost.
        self.uart.read_raw(&mut byte).is_ok_and(|count| count == 1).then_some(byte[0])
    }

    /// Microseconds.
    fn ticks(&mut self) -> u64 {
        self.timer.get_counter().ticks()
    }

    fn ticks_a_second(&self) -> u32 {
        1_000_000
    }

    fn exit(&mut self, success: bool) {
        self.uart.write_full_blocking(&[if success { SUCCESS } else { FAILURE }]);
    }
}
