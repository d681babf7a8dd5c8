//! Exceptions and panics: print what is known, and stop.

use core::arch::asm;
use core::fmt::Write;
use core::panic::PanicInfo;

use crate::board::Uart;

/// As `boot.s` saves them: x0 to x30, and the stack pointer.
#[repr(C)]
struct Registers([u64; 32]);

macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reads a register that every core has at EL1.
        unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// What the class of an exception means (ESR_EL1, bits 26 to 31).
fn meaning(class: u64) -> &'static str {
    match class {
        0x00 => "an instruction that does not exist",
        0x07 => "floating point, which is off",
        0x15 => "a system call",
        0x20 | 0x21 => "an instruction at an address that is not mapped or may not be run",
        0x22 => "a program counter that is not aligned",
        0x24 | 0x25 => {
            "an access to an address that is not mapped or may not be written (a stack that overflowed, \
                        perhaps), or one that is not aligned"
        }
        0x26 => "a stack pointer that is not aligned",
        0x2f => "an error on the bus",
        0x3c => "a breakpoint",
        _ => "an exception of another class",
    }
}

#[unsafe(no_mangle)]
extern "C" fn exception(vector: u64, registers: &Registers) -> ! {
    let (esr, far, elr) = (read!("esr_el1"), read!("far_el1"), read!("elr_el1"));
    let (core, spsr) = (read!("mpidr_el1") & 3, read!("spsr_el1"));
    let mut out = Uart::for_last_words();
    let kind = ["synchronous", "interrupt", "fast interrupt", "asynchronous error"][vector as usize & 3];
    let _ = writeln!(out, "\nexception on core {core} ({kind}, vector {vector}): {}", meaning(esr >> 26));
    let _ = writeln!(out, "esr {esr:08x}  far {far:016x}  elr {elr:016x}  spsr {spsr:08x}");
    for (i, four) in registers.0[..31].chunks(4).enumerate() {
        for (j, value) in four.iter().enumerate() {
            let _ = write!(out, "x{:<2} {value:016x}  ", 4 * i + j);
        }
        let _ = writeln!(out);
    }
    let _ = writeln!(out, "sp  {:016x}\nstopped", registers.0[31]);
    super::stop()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Uart::for_last_words(), "\n{info}\non core {}\nstopped", read!("mpidr_el1") & 3);
    super::stop()
}
