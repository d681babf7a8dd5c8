//! defmt's frames by way of semihosting's console, which QEMU keeps apart from the UART. A debugger must be there: without
//! one the CPU faults at the first frame.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use cortex_m_semihosting::{nr, syscall};
use critical_section::RestoreState;
use defmt::Encoder;

#[defmt::global_logger]
struct Logger;

/// What [`Logger`] works with while a frame is being written.
struct Frame {
    taken: AtomicBool,
    restore: UnsafeCell<RestoreState>,
    encoder: UnsafeCell<Encoder>,
}

// SAFETY: the cells are used only between `acquire` and `release`, in a critical section.
unsafe impl Sync for Frame {}

static FRAME: Frame = Frame {
    taken: AtomicBool::new(false),
    restore: UnsafeCell::new(RestoreState::invalid()),
    encoder: UnsafeCell::new(Encoder::new()),
};

// SAFETY: one frame at a time: `acquire` enters a critical section, which `release` leaves, and stops if a frame is being
// written already.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        // SAFETY: `release` restores it.
        let restore = unsafe { critical_section::acquire() };
        if FRAME.taken.swap(true, Ordering::Relaxed) {
            // A panic here would not be reported, as nothing is in the middle of a frame.
            crate::halt();
        }
        // SAFETY: the only access, as `taken` was false.
        unsafe {
            *FRAME.restore.get() = restore;
            (*FRAME.encoder.get()).start_frame(send);
        }
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: between `acquire` and `release` there is no other access.
        unsafe {
            (*FRAME.encoder.get()).end_frame(send);
            let restore = *FRAME.restore.get();
            FRAME.taken.store(false, Ordering::Relaxed);
            critical_section::release(restore);
        }
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: as in `release`.
        unsafe { (*FRAME.encoder.get()).write(bytes, send) };
    }
}

fn send(bytes: &[u8]) {
    for byte in bytes {
        // SAFETY: WRITEC reads the byte that it is given the address of.
        unsafe { syscall(nr::WRITEC, byte) };
    }
}
