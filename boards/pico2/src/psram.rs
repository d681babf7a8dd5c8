//! PSRAM on the RP2350's second chip select: finding it, and mapping it (APS6404L and its like).
//!
//! While the QSPI interface is in direct mode flash can't be read, so everything that runs then lies in RAM and calls
//! nothing. Register fields: RP2350 datasheet, 12.14.

/// Where it is mapped.
pub const AT: usize = 0x1100_0000;

const QMI: usize = 0x400d_0000;
const DIRECT_CSR: *mut u32 = QMI as *mut u32;
const DIRECT_TX: *mut u32 = (QMI + 0x04) as *mut u32;
const DIRECT_RX: *mut u32 = (QMI + 0x08) as *mut u32;
const M1_TIMING: *mut u32 = (QMI + 0x20) as *mut u32;
const M1_RFMT: *mut u32 = (QMI + 0x24) as *mut u32;
const M1_RCMD: *mut u32 = (QMI + 0x28) as *mut u32;
const M1_WFMT: *mut u32 = (QMI + 0x2c) as *mut u32;
const M1_WCMD: *mut u32 = (QMI + 0x30) as *mut u32;
const XIP_CTRL: *mut u32 = 0x400c_8000 as *mut u32;

/// Fields of DIRECT_CSR.
const ENABLE: u32 = 1;
const BUSY: u32 = 1 << 1;
const SELECT_1: u32 = 1 << 3;
/// Slow enough for a device in any mode: the system clock divided by 30.
const SLOW: u32 = 30 << 22;

/// Fields of DIRECT_TX: four wires, and driving them.
const QUAD: u32 = 2 << 16;
const OUTPUT: u32 = 1 << 19;

/// What every good device answers.
const KNOWN_GOOD: u8 = 0x5d;

/// Commands of the device.
mod command {
    pub(super) const EXIT_QUAD: u32 = 0xf5;
    pub(super) const READ_ID: u32 = 0x9f;
    pub(super) const RESET_ENABLE: u32 = 0x66;
    pub(super) const RESET: u32 = 0x99;
    pub(super) const ENTER_QUAD: u32 = 0x35;
    pub(super) const QUAD_READ: u32 = 0xeb;
    pub(super) const QUAD_WRITE: u32 = 0x38;
}

/// At a system clock of 150 MHz: SCK at half of it; read data sampled a cycle later; at most 8 us selected (in units of 64
/// cycles), at least 50 ns not selected; a new command at each page of 1024 bytes.
const TIMING: u32 = 1 << 30 | 2 << 28 | 18 << 17 | 7 << 12 | 2 << 8 | 2;
/// Four wires for prefix, address, suffix, dummy cycles and data; a prefix of 8 bits.
const FORMAT: u32 = 2 | 2 << 2 | 2 << 4 | 2 << 6 | 2 << 8 | 1 << 12;
/// 24 bits of dummy on four wires: the 6 cycles that the device needs before it answers.
const DUMMY: u32 = 6 << 16;
const WRITABLE_M1: u32 = 1 << 11;

/// Looks for a device and maps it. Returns its bytes.
///
/// # Safety
/// Nothing else may use flash or PSRAM meanwhile: one core, no interrupts. The chip select's pin must be set up.
pub unsafe fn start() -> Option<usize> {
    // SAFETY: the caller's promise; both functions leave direct mode before they return.
    let (good, density) = unsafe { read_id() };
    if good != KNOWN_GOOD {
        return None;
    }
    let bytes = match density >> 5 {
        0 => 2 << 20,
        1 => 4 << 20,
        _ => 8 << 20,
    };
    // SAFETY: as above.
    unsafe { map() };
    Some(bytes)
}

/// Sends a byte in direct mode and returns what came back.
///
/// # Safety
/// Direct mode must be on.
#[inline(always)]
unsafe fn exchange(word: u32) -> u32 {
    // SAFETY: registers of the RP2350; in direct mode only this code uses them.
    unsafe {
        DIRECT_TX.write_volatile(word);
        while DIRECT_CSR.read_volatile() & BUSY != 0 {}
        DIRECT_RX.read_volatile()
    }
}

/// The device's answer to "are you good", and its density.
#[unsafe(link_section = ".data.psram")]
#[inline(never)]
unsafe fn read_id() -> (u8, u8) {
    // SAFETY: see `start`.
    unsafe {
        DIRECT_CSR.write_volatile(SLOW | ENABLE);
        while DIRECT_CSR.read_volatile() & BUSY != 0 {}
        // It may be in quad mode since before a reset.
        DIRECT_CSR.write_volatile(SLOW | ENABLE | SELECT_1);
        exchange(OUTPUT | QUAD | command::EXIT_QUAD);
        DIRECT_CSR.write_volatile(SLOW | ENABLE);

        DIRECT_CSR.write_volatile(SLOW | ENABLE | SELECT_1);
        // Three bytes of address and the manufacturer come first.
        exchange(command::READ_ID);
        exchange(0xff);
        exchange(0xff);
        exchange(0xff);
        exchange(0xff);
        let good = exchange(0xff) as u8;
        let density = exchange(0xff) as u8;
        DIRECT_CSR.write_volatile(0);
        (good, density)
    }
}

/// Resets the device, brings it to quad mode and maps it, writable.
#[unsafe(link_section = ".data.psram")]
#[inline(never)]
unsafe fn map() {
    // SAFETY: see `start`.
    unsafe {
        DIRECT_CSR.write_volatile(SLOW | ENABLE);
        while DIRECT_CSR.read_volatile() & BUSY != 0 {}
        send(command::RESET_ENABLE);
        send(command::RESET);
        send(command::ENTER_QUAD);
        DIRECT_CSR.write_volatile(0);

        M1_TIMING.write_volatile(TIMING);
        M1_RFMT.write_volatile(FORMAT | DUMMY);
        M1_RCMD.write_volatile(command::QUAD_READ);
        M1_WFMT.write_volatile(FORMAT);
        M1_WCMD.write_volatile(command::QUAD_WRITE);
        XIP_CTRL.write_volatile(XIP_CTRL.read_volatile() | WRITABLE_M1);
    }
}

/// One command, with the chip selected for it alone and time for it to act.
///
/// # Safety
/// As [`exchange`].
#[inline(always)]
unsafe fn send(command: u32) {
    // SAFETY: as in `exchange`.
    unsafe {
        DIRECT_CSR.write_volatile(SLOW | ENABLE | SELECT_1);
        exchange(command);
        DIRECT_CSR.write_volatile(SLOW | ENABLE);
        for _ in 0..200 {
            core::hint::spin_loop();
        }
    }
}
