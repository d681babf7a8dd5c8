//! A device's registers.

/// A range of device registers of 32 bits.
pub(super) struct Registers {
    base: usize,
    length: usize,
}

impl Registers {
    /// # Safety
    /// `base..base + length` must be device memory whose registers may be read and written in any order as far as memory
    /// safety goes: none of them makes the device write to memory that is the program's.
    pub(super) const unsafe fn new(base: usize, length: usize) -> Self {
        Self { base, length }
    }

    pub(super) fn read(&self, offset: usize) -> u32 {
        debug_assert!(offset < self.length && offset.is_multiple_of(4));
        // SAFETY: a register, by the contract of `new`.
        unsafe { core::ptr::with_exposed_provenance::<u32>(self.base + offset).read_volatile() }
    }

    pub(super) fn write(&self, offset: usize, value: u32) {
        debug_assert!(offset < self.length && offset.is_multiple_of(4));
        // SAFETY: as above.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(self.base + offset).write_volatile(value) };
    }

    /// Writes `value` where `mask` has ones.
    pub(super) fn update(&self, offset: usize, mask: u32, value: u32) {
        self.write(offset, self.read(offset) & !mask | value & mask);
    }
}
