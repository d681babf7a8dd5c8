//! PSRAM on the RP2350's second chip select (APS6404L and its like): finding it, and mapping it into memory.
//!
//! While the QSPI interface is in direct mode flash can't be read, so what runs then lies in RAM and calls nothing. Registers
//! and their fields: RP2350 datasheet, 12.14; commands: APS6404L-3SQR datasheet, 8.

/// Where it is mapped: the second chip select's window.
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

/// What every good device answers.
const KNOWN_GOOD: u8 = 0x5d;
/// What the first devices of 8 MB answer, whose density the other bits don't say.
const FIRST_8_MB: u8 = 0x26;

/// Nanoseconds that the device may be selected, at most, and must not be between two commands, at least.
const MAX_SELECTED: u32 = 8_000;
const MIN_DESELECTED: u32 = 50;
/// Its clock, from the system's.
const DIVIDER: u32 = 2;

/// M1_TIMING for a system clock of `MHZ`: read data sampled a cycle later than it would be; a new command at each page of 1024
/// bytes, because a burst over its end is allowed at slower clocks only.
const fn timing(mhz: u32) -> u32 {
    const COOLDOWN: u32 = 1 << 30;
    const PAGE_1024: u32 = 2 << 28;
    const READ_LATER: u32 = 2 << 8;
    // In 64 cycles, rounded down; in cycles, rounded up.
    let selected = MAX_SELECTED * mhz / 1000 / 64;
    let deselected = (MIN_DESELECTED * mhz).div_ceil(1000);
    assert!(selected > 0 && selected < 1 << 6 && deselected < 1 << 5, "no such timing");
    COOLDOWN | PAGE_1024 | selected << 17 | deselected << 12 | READ_LATER | DIVIDER
}

/// Four wires for command, address, dummy cycles and data; a command of 8 bits.
const FORMAT: u32 = 2 | 2 << 2 | 2 << 4 | 2 << 6 | 2 << 8 | 1 << 12;
/// 24 bits of dummy on four wires: the 6 cycles that the device needs before it answers.
const DUMMY: u32 = 6 << 16;
const WRITABLE_M1: u32 = 1 << 11;

/// Looks for a device and maps it. Returns its bytes, if there is one and it holds what is written to it.
///
/// # Safety
/// Nothing else may use flash or PSRAM meanwhile: one core, no interrupts. The chip select's pin must be set up, and the system
/// clock run at `MHZ`.
pub unsafe fn start<const MHZ: u32>() -> Option<usize> {
    // SAFETY: the caller's promise; both functions leave direct mode before they return.
    let (good, density) = unsafe { read_id() };
    if good != KNOWN_GOOD {
        return None;
    }
    let bytes = match (density, density >> 5) {
        (FIRST_8_MB, _) | (_, 2) => 8 << 20,
        (_, 1) => 4 << 20,
        (_, 0) => 2 << 20,
        _ => return None,
    };
    // SAFETY: as above.
    unsafe { map(const { timing(MHZ) }) };
    // SAFETY: it is mapped, and nobody has it yet.
    unsafe { holds(bytes) }.then_some(bytes)
}

/// Whether its first, its last and some words between them hold what is written to them.
///
/// # Safety
/// The device must be mapped, with this many bytes, and nothing refer to it.
unsafe fn holds(bytes: usize) -> bool {
    /// Not through the cache: its second window on the same memory.
    const UNCACHED: usize = 0x0400_0000;
    let places = || (0..bytes).step_by(bytes / 8).chain([bytes - 4]);
    let word = |at: usize| (AT + UNCACHED + at) as *mut u32;
    // Different at each place: an address wire that does nothing shows too.
    let value = |at: usize| (at as u32).wrapping_mul(0x9e37_79b9) ^ 0x5555_aaaa;
    for at in places() {
        // SAFETY: the caller's promise.
        unsafe { word(at).write_volatile(value(at)) };
    }
    // SAFETY: the caller's promise.
    places().all(|at| unsafe { word(at).read_volatile() } == value(at))
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

/// Enters direct mode, with no device selected.
///
/// # Safety
/// Flash can't be read from here on: only code in RAM may run.
#[inline(always)]
unsafe fn enter_direct() {
    // SAFETY: as in `exchange`.
    unsafe {
        DIRECT_CSR.write_volatile(SLOW | ENABLE);
        while DIRECT_CSR.read_volatile() & BUSY != 0 {}
    }
}

/// Sends one command, with the device selected for it alone and time for it to act.
///
/// # Safety
/// Direct mode must be on.
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

/// The device's answer to "are you good", and its density.
///
/// # Safety
/// See [`start`].
#[unsafe(link_section = ".data.psram")]
#[inline(never)]
unsafe fn read_id() -> (u8, u8) {
    // SAFETY: the caller's promise; this function lies in RAM.
    unsafe {
        enter_direct();
        // It may be in quad mode since before a reset.
        send(OUTPUT | QUAD | command::EXIT_QUAD);
        DIRECT_CSR.write_volatile(SLOW | ENABLE | SELECT_1);
        // Three bytes of address and the manufacturer come first.
        exchange(command::READ_ID);
        exchange(0xff);
        exchange(0xff);
        exchange(0xff);
        exchange(0xff);
        let good = exchange(0xff) as u8;
        let density = exchange(0xff) as u8;
        DIRECT_CSR.write_volatile(SLOW);
        (good, density)
    }
}

/// Resets the device, brings it to quad mode and maps it, writable.
///
/// # Safety
/// See [`start`].
#[unsafe(link_section = ".data.psram")]
#[inline(never)]
unsafe fn map(timing: u32) {
    // SAFETY: the caller's promise; this function lies in RAM.
    unsafe {
        enter_direct();
        send(command::RESET_ENABLE);
        send(command::RESET);
        send(command::ENTER_QUAD);
        DIRECT_CSR.write_volatile(SLOW);

        M1_TIMING.write_volatile(timing);
        M1_RFMT.write_volatile(FORMAT | DUMMY);
        M1_RCMD.write_volatile(command::QUAD_READ);
        M1_WFMT.write_volatile(FORMAT);
        M1_WCMD.write_volatile(command::QUAD_WRITE);
        XIP_CTRL.write_volatile(XIP_CTRL.read_volatile() | WRITABLE_M1);
    }
}
