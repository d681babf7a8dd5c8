//! The memory map: every address is itself, RAM is cached, and devices are not.
//!
//! The first 2 MiB are mapped in pages of 4 KiB, so that code can't be written, data can't be run, and below every stack
//! lies a page that is not there. The rest is in blocks of 2 MiB.

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::board;

/// Addresses that are mapped: 4 GiB. A Raspberry Pi 4's memory beyond that is not used.
const GIGABYTES: usize = 4;
const BLOCK: u64 = 2 << 20;
const PAGE: u64 = 4 << 10;
const ENTRIES: usize = 512;

/// Bits of a descriptor (Arm Architecture Reference Manual, D8.3).
mod bits {
    pub const VALID: u64 = 1;
    /// A table, or at the last level a page; without it a block.
    pub const TABLE: u64 = 1 << 1;
    /// Attribute 1 of MAIR_EL1.
    pub const DEVICE: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 7;
    pub const INNER_SHAREABLE: u64 = 3 << 8;
    pub const ACCESSED: u64 = 1 << 10;
    pub const NO_EXECUTE: u64 = 3 << 53;
    pub const RAM: u64 = VALID | INNER_SHAREABLE | ACCESSED;
}

/// Attribute 0: normal memory, write-back, allocating on reads and writes. Attribute 1: device memory (nGnRE).
const MAIR: u64 = 0xff | 0x04 << 8;
/// 32 bits of address in the lower half, pages of 4 KiB, tables cached and shared as RAM is; the upper half is off.
const TCR: u64 = 32 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// MMU (0), data cache (2), instruction cache (12), stack alignment (3, 4), and the bits that must be 1.
const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 12;

#[repr(C, align(4096))]
struct Table([u64; ENTRIES]);

struct Tables {
    gigabytes: Table,
    blocks: [Table; GIGABYTES],
    pages: Table,
}

struct Shared(UnsafeCell<Tables>);
// SAFETY: core 0 writes the tables while it is alone; nothing writes them afterwards.
unsafe impl Sync for Shared {}

static TABLES: Shared = Shared(UnsafeCell::new(Tables {
    gigabytes: Table([0; ENTRIES]),
    blocks: [const { Table([0; ENTRIES]) }; GIGABYTES],
    pages: Table([0; ENTRIES]),
}));

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __stacks: u8;
    static __exception_stacks: u8;
}

fn address(symbol: *const u8) -> u64 {
    symbol as u64
}

/// What a page of the first 2 MiB is.
fn page(at: u64) -> u64 {
    let of = |symbol: *const u8| address(symbol);
    let (image, text, rodata) =
        (of(&raw const __image_start), of(&raw const __text_end), of(&raw const __rodata_end));
    let (stacks, after) = (of(&raw const __stacks), of(&raw const __exception_stacks));
    let each = (after - stacks) / super::CORES as u64;
    let kind = match at {
        _ if at < image => bits::NO_EXECUTE,
        _ if at < text => bits::READ_ONLY,
        _ if at < rodata => bits::READ_ONLY | bits::NO_EXECUTE,
        _ if at >= stacks && at < after && (at - stacks).is_multiple_of(each) => return 0,
        _ => bits::NO_EXECUTE,
    };
    at | bits::RAM | bits::TABLE | kind
}

/// Writes the tables, for all cores.
///
/// # Safety
/// Only core 0 may call it, once, before its own MMU is on and while the other cores wait for the firmware.
pub(super) unsafe fn write_tables() {
    // SAFETY: nobody else runs, by the contract above.
    let tables = unsafe { &mut *TABLES.0.get() };
    let devices = board::device_memory();
    for (i, entry) in tables.pages.0.iter_mut().enumerate() {
        write(entry, page(i as u64 * PAGE));
    }
    for (g, table) in tables.blocks.iter_mut().enumerate() {
        for (i, entry) in table.0.iter_mut().enumerate() {
            let at = (g * ENTRIES + i) as u64 * BLOCK;
            let kind =
                if devices.contains(&at) { bits::VALID | bits::ACCESSED | bits::DEVICE } else { bits::RAM };
            write(entry, at | kind | bits::NO_EXECUTE);
        }
    }
    let table = |table: &Table| &raw const *table as u64 | bits::VALID | bits::TABLE;
    write(&mut tables.blocks[0].0[0], table(&tables.pages));
    for (entry, blocks) in tables.gigabytes.0.iter_mut().zip(&tables.blocks) {
        write(entry, table(blocks));
    }
}

/// Writes one entry by one aligned access: the compiler, which may use others as soon as the MMU is on, leaves it alone.
fn write(entry: &mut u64, value: u64) {
    // SAFETY: a reference is valid for a write.
    unsafe { core::ptr::from_mut(entry).write_volatile(value) };
}

/// Turns this core's MMU and caches on.
///
/// # Safety
/// The tables must have been written.
pub(super) unsafe fn turn_on() {
    // SAFETY: takes an address; nothing is read.
    let tables = unsafe { &raw const (*TABLES.0.get()).gigabytes } as u64;
    // SAFETY: every address stays what it is, so that code, stack and data remain where they are.
    unsafe {
        asm!(
            "msr mair_el1, {mair}",
            "msr tcr_el1, {tcr}",
            "msr ttbr0_el1, {tables}",
            "dsb sy",
            "tlbi vmalle1",
            "ic iallu",
            "dsb sy",
            "isb",
            "msr sctlr_el1, {sctlr}",
            "isb",
            mair = in(reg) MAIR, tcr = in(reg) TCR, tables = in(reg) tables, sctlr = in(reg) SCTLR,
            options(nostack, preserves_flags)
        );
    }
}
