//! Why the program ended the last time: USB needs the program to run, so a panic or a fault can say nothing itself. Words of
//! the watchdog that outlive the restart keep it.

use core::fmt;

use rp235x_hal::pac;

/// Marks in the first word, that no other program is likely to leave there.
const PANIC: u32 = 0xe1a9_1d01;
const FAULT: u32 = 0xe1a9_1d02;

/// How the program before this one ended.
pub enum Last {
    /// In a panic at this line of a source file.
    Panic(u32),
    /// In a fault at this address.
    Fault(u32),
    /// The watchdog was not fed.
    Hang,
}

impl Last {
    /// What is kept, forgotten with this. `None` after power was switched on.
    pub fn take() -> Option<Self> {
        // SAFETY: whoever has the watchdog leaves these words alone.
        let watchdog = unsafe { pac::WATCHDOG::steal() };
        let timeout = watchdog.reason().read().timer().bit();
        let (kind, word) = (watchdog.scratch0().read().bits(), watchdog.scratch1().read().bits());
        keep(0, 0);
        match kind {
            PANIC => Some(Self::Panic(word)),
            FAULT => Some(Self::Fault(word)),
            _ => timeout.then_some(Self::Hang),
        }
    }

    /// Keeps a panic.
    pub fn keep_panic(line: u32) {
        keep(PANIC, line);
    }

    /// Keeps a fault.
    pub fn keep_fault(pc: u32) {
        keep(FAULT, pc);
    }
}

fn keep(kind: u32, word: u32) {
    // SAFETY: as above.
    let watchdog = unsafe { pac::WATCHDOG::steal() };
    // SAFETY: any value may be there.
    watchdog.scratch0().write(|w| unsafe { w.bits(kind) });
    // SAFETY: as above.
    watchdog.scratch1().write(|w| unsafe { w.bits(word) });
}

impl fmt::Display for Last {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(line) => write!(f, "it panicked at line {line} of a source file"),
            Self::Fault(pc) => write!(f, "there was a hard fault at {pc:#010x}"),
            Self::Hang => f.write_str("it hung"),
        }
    }
}
