//! The processor: start-up, memory map, caches, exceptions, and the other cores.
#![allow(unsafe_code)]

mod cores;
mod exception;
mod memory;
mod mmu;
mod stack;

pub use cores::{CORES, Cores, EventCount, Workers};
pub use memory::free_memory;
pub use stack::used as stack_used;

use core::arch::{asm, global_asm};
use core::time::Duration;

global_asm!(include_str!("boot.s"));

/// Which CPU this is: bits 4 to 15 of MIDR_EL1.
#[must_use]
pub fn cpu_part() -> u32 {
    let midr: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {}, midr_el1", out(reg) midr, options(nomem, nostack, preserves_flags)) };
    (midr as u32 >> 4) & 0xfff
}

/// Stops this core for ever.
pub fn stop() -> ! {
    loop {
        // SAFETY: waits for an event; that changes nothing.
        unsafe { asm!("wfe", options(nomem, nostack, preserves_flags)) };
    }
}

/// Time since the firmware started the counter.
#[must_use]
pub fn now() -> Duration {
    let (ticks, rate): (u64, u64);
    // SAFETY: reads the counter and its rate; the barrier keeps it from being read early.
    unsafe {
        asm!("isb", "mrs {}, cntpct_el0", "mrs {}, cntfrq_el0", out(reg) ticks, out(reg) rate,
            options(nomem, nostack, preserves_flags));
    }
    let rate = rate.max(1);
    Duration::new(ticks / rate, ((ticks % rate) * 1_000_000_000 / rate) as u32)
}

/// Does nothing for at least this long.
pub fn wait(time: Duration) {
    let start = now();
    while now().saturating_sub(start) < time {
        core::hint::spin_loop();
    }
}

/// Writes what the caches hold of some memory back, and drops it from them: before and after another device than a CPU
/// looks at it.
pub fn flush(bytes: &[u8]) {
    const LINE: usize = 64;
    let start = bytes.as_ptr() as usize & !(LINE - 1);
    for line in (start..bytes.as_ptr() as usize + bytes.len()).step_by(LINE) {
        // SAFETY: cache maintenance by address changes no contents.
        unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}
