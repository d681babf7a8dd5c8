//! A serial port over USB, and a watchdog that is fed as long as the program gets on.

use core::fmt;

use elapid_console::Platform;
use heapless::Deque;
use rp235x_hal::clocks::UsbClock;
use rp235x_hal::fugit::ExtU32;
use rp235x_hal::timer::CopyableTimer0;
use rp235x_hal::usb::UsbBus;
use rp235x_hal::{Timer, Watchdog, pac};
use static_cell::StaticCell;
use usb_device::UsbError;
use usb_device::bus::UsbBusAllocator;
use usb_device::device::{StringDescriptors, UsbDevice, UsbDeviceBuilder, UsbVidPid};
use usbd_serial::{SerialPort, USB_CLASS_CDC};

/// pid.codes' pair for tests: a product needs its own.
const TEST_ID: UsbVidPid = UsbVidPid(0x1209, 0x0001);
/// Microseconds after which text that no terminal takes is dropped, rather than the program hangs.
const PATIENCE: u64 = 500_000;

static BUS: StaticCell<UsbBusAllocator<UsbBus>> = StaticCell::new();

/// The board as `elapid-console` wants it.
pub struct Pico2 {
    device: UsbDevice<'static, UsbBus>,
    serial: SerialPort<'static, UsbBus>,
    timer: Timer<CopyableTimer0>,
    watchdog: Watchdog,
    typed: Deque<u8, 256>,
}

impl Pico2 {
    /// The board with its port on the bus. Once: there is one bus.
    pub fn new(
        usb: pac::USB,
        memory: pac::USB_DPRAM,
        clock: UsbClock,
        resets: &mut pac::RESETS,
        timer: Timer<CopyableTimer0>,
        mut watchdog: Watchdog,
    ) -> Self {
        let bus = BUS.init(UsbBusAllocator::new(UsbBus::new(usb, memory, clock, true, resets)));
        let serial = SerialPort::new(bus);
        let strings = StringDescriptors::default().manufacturer("Elapid").product("Elapid on RP2350");
        let builder = || UsbDeviceBuilder::new(bus, TEST_ID).device_class(USB_CLASS_CDC);
        // Refused only for more languages than there is room for: there is one.
        let device = builder().strings(&[strings]).unwrap_or_else(|_| builder()).build();
        watchdog.start(crate::WATCHDOG_SECONDS.secs());
        Self { device, serial, timer, watchdog, typed: Deque::new() }
    }

    /// Lets USB work until a program opens the port.
    pub fn wait_for_terminal(&mut self) {
        while !self.serial.dtr() {
            self.work();
        }
    }

    fn now(&self) -> u64 {
        self.timer.get_counter().ticks()
    }

    /// Lets USB work, and keeps what was typed.
    fn work(&mut self) {
        self.watchdog.feed();
        if self.device.poll(&mut [&mut self.serial]) {
            let mut bytes = [0; 64];
            if let Ok(count) = self.serial.read(&mut bytes) {
                for byte in &bytes[..count.min(bytes.len())] {
                    // Whoever types faster than is read loses what is typed.
                    let _ = self.typed.push_back(*byte);
                }
            }
        }
    }

    /// Sends bytes, or drops them if there is nobody, or nobody takes them for a while.
    fn send(&mut self, mut bytes: &[u8]) {
        let start = self.now();
        while !bytes.is_empty() && self.serial.dtr() && self.now() - start < PATIENCE {
            match self.serial.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(UsbError::WouldBlock) => {}
                Err(_) => return,
            }
            self.work();
        }
    }
}

impl fmt::Write for Pico2 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        crate::with_line_ends(text, |bytes| self.send(bytes));
        Ok(())
    }
}

impl Platform for Pico2 {
    fn poll(&mut self) -> Option<u8> {
        self.work();
        self.typed.pop_front()
    }

    /// Microseconds.
    fn ticks(&mut self) -> u64 {
        self.now()
    }

    fn ticks_a_second(&self) -> u32 {
        1_000_000
    }
}
