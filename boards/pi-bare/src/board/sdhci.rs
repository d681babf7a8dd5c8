//! The card's host controller: an SDHCI of the kind that the Raspberry Pi's chips have, driven by polling.
//!
//! SD Host Controller Simplified Specification 3.00. All registers are read and written as 32 bits: the older controller
//! (EMMC, an Arasan core) takes nothing else, and forgets a write that follows another one too soon.

use core::fmt;
use core::time::Duration;

use super::registers::Registers;
use super::{Clock, Machine, Mailbox, machine, peripheral};
use crate::arch;

/// Bytes of a block.
const BLOCK: usize = 512;

mod reg {
    pub const BLOCKS: usize = 0x04;
    pub const ARGUMENT: usize = 0x08;
    pub const COMMAND: usize = 0x0c;
    pub const RESPONSE: usize = 0x10;
    pub const DATA: usize = 0x20;
    pub const STATUS: usize = 0x24;
    pub const CONTROL_0: usize = 0x28;
    pub const CONTROL_1: usize = 0x2c;
    pub const INTERRUPT: usize = 0x30;
    pub const INTERRUPT_MASK: usize = 0x34;
    pub const INTERRUPT_ENABLE: usize = 0x38;
    pub const CAPABILITIES: usize = 0x40;
}

mod status {
    pub const COMMAND_BUSY: u32 = 1;
    pub const DATA_BUSY: u32 = 1 << 1;
}

mod control_1 {
    pub const CLOCK: u32 = 1;
    pub const CLOCK_STABLE: u32 = 1 << 1;
    pub const CLOCK_TO_CARD: u32 = 1 << 2;
    pub const DIVIDER: u32 = 0xffc0;
    pub const LONGEST_TIMEOUT: u32 = 0xe << 16;
    pub const RESET: u32 = 1 << 24;
    pub const RESET_COMMAND: u32 = 1 << 25;
    pub const RESET_DATA: u32 = 1 << 26;
}

mod interrupt {
    pub const COMMAND_DONE: u32 = 1;
    pub const DATA_DONE: u32 = 1 << 1;
    pub const WRITE_READY: u32 = 1 << 4;
    pub const READ_READY: u32 = 1 << 5;
    pub const ANY_ERROR: u32 = 0xffff_8000;
    pub const COMMAND_TIMEOUT: u32 = 1 << 16;
    pub const DATA_TIMEOUT: u32 = 1 << 20;
}

/// How a command is answered (the command register's bits 16 to 21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Answer {
    /// Not at all.
    None = 0,
    /// 136 bits, with a checksum.
    Long = 1 << 16 | 1 << 19,
    /// 48 bits, with checksum and the command's number.
    Short = 2 << 16 | 1 << 19 | 1 << 20,
    /// The same, and the card may be busy afterwards.
    ShortBusy = 3 << 16 | 1 << 19 | 1 << 20,
    /// 48 bits, without checksum and number.
    ShortUnchecked = 2 << 16,
}

/// What went wrong between host and card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A command was not answered.
    NoAnswer,
    /// Data did not come in time.
    NoData,
    /// A checksum on the wires did not match, or another error that the controller reports.
    Garbled,
    /// The controller itself does not react.
    Controller,
    /// The card is of a kind that is not supported.
    Kind,
    /// A block that the card does not have.
    Range,
}

impl Fault {
    /// A number for what can only carry a number.
    #[must_use]
    pub const fn code(self) -> i32 {
        self as i32 + 1
    }

    /// The fault of a number.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        [Self::NoAnswer, Self::NoData, Self::Garbled, Self::Controller, Self::Kind, Self::Range]
            .into_iter()
            .find(|fault| fault.code() == code)
    }

    /// What it is, and what to do.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoAnswer => "no card answers: put it in, or look at its contacts",
            Self::NoData => "the card sends no data: was it pulled out? Put it in again",
            Self::Garbled => "the card's data arrive garbled: look at its contacts, or use another card",
            Self::Controller => "the card's controller does not react: turn the board off and on",
            Self::Kind => "a card of a kind that is not supported: use an SD, SDHC or SDXC card",
            Self::Range => "past the end of the card: its partition table or its file system is damaged",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A controller that may have a card.
pub struct Host {
    name: &'static str,
    registers: Registers,
    /// The rate that the card's clock is divided from, in Hz.
    base: u32,
}

/// The controllers where the board's card may be, the likeliest first: a Raspberry Pi 4 has it at the newer one, and the
/// emulator's at the older one.
pub fn card_hosts(mailbox: &mut Mailbox) -> [Option<Host>; 2] {
    match machine() {
        Machine::Pi3 => {
            connect_pins();
            [Some(Host::new("EMMC", 0x30_0000, mailbox.rate(Clock::Emmc))), None]
        }
        Machine::Pi4 => [
            Some(Host::new("EMMC2", 0x34_0000, mailbox.rate(Clock::Emmc2))),
            Some(Host::new("EMMC", 0x30_0000, mailbox.rate(Clock::Emmc))),
        ],
    }
}

/// Gives pins 48 to 53, which lead to the card, to the EMMC controller (alternative 3), with pull-ups on all but the
/// clock.
fn connect_pins() {
    const GPIO: usize = 0x20_0000;
    const SELECT_4: usize = 0x10;
    const SELECT_5: usize = 0x14;
    const PULL: usize = 0x94;
    const PULL_CLOCK_1: usize = 0x9c;
    let gpio = peripheral(GPIO, 0x1000);
    gpio.update(SELECT_4, 0o77 << 24, 0o77 << 24);
    gpio.update(SELECT_5, 0o7777, 0o7777);
    for (pull, pins) in [(0, 1 << (48 - 32)), (2, 0b11111 << (49 - 32))] {
        gpio.write(PULL, pull);
        arch::wait(Duration::from_micros(5));
        gpio.write(PULL_CLOCK_1, pins);
        arch::wait(Duration::from_micros(5));
        gpio.write(PULL, 0);
        gpio.write(PULL_CLOCK_1, 0);
    }
}

impl Host {
    fn new(name: &'static str, offset: usize, rate: Option<u32>) -> Self {
        let registers = peripheral(offset, 0x100);
        let own = (registers.read(reg::CAPABILITIES) >> 8 & 0xff) * 1_000_000;
        let base = rate.or((own > 0).then_some(own)).unwrap_or(50_000_000);
        Self { name, registers, base }
    }

    /// The controller's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Starts over, with the card's clock at the rate at which any card begins.
    pub fn reset(&mut self) -> Result<(), Fault> {
        self.set(reg::CONTROL_0, 0);
        self.set(reg::CONTROL_1, control_1::RESET);
        self.until(reg::CONTROL_1, control_1::RESET, 0, Duration::from_millis(100))?;
        // Power at 3.3 V, for those controllers that have the switch.
        self.set(reg::CONTROL_0, 0xf << 8);
        self.set(reg::INTERRUPT_ENABLE, 0);
        self.set(reg::INTERRUPT_MASK, 0xffff_ffff);
        self.set(reg::INTERRUPT, 0xffff_ffff);
        self.set_clock(400_000)?;
        arch::wait(Duration::from_millis(2));
        Ok(())
    }

    /// Clocks the card at no more than `rate` Hz.
    pub fn set_clock(&mut self, rate: u32) -> Result<(), Fault> {
        // The rate is base / (2 divider), or base itself for 0.
        let divider = if rate >= self.base { 0 } else { self.base.div_ceil(2 * rate).min(1023) };
        let field = (divider & 0xff) << 8 | (divider >> 8) << 6;
        let keep = self.registers.read(reg::CONTROL_1) & !(control_1::DIVIDER | control_1::CLOCK_TO_CARD);
        self.set(reg::CONTROL_1, keep);
        let on = keep | field | control_1::LONGEST_TIMEOUT | control_1::CLOCK;
        self.set(reg::CONTROL_1, on);
        self.until(
            reg::CONTROL_1,
            control_1::CLOCK_STABLE,
            control_1::CLOCK_STABLE,
            Duration::from_millis(100),
        )?;
        self.set(reg::CONTROL_1, on | control_1::CLOCK_TO_CARD);
        Ok(())
    }

    /// Uses four wires for data, and the timing of fast clocks if asked for.
    pub fn widen(&mut self, fast: bool) {
        let control = self.registers.read(reg::CONTROL_0);
        self.set(reg::CONTROL_0, control | 1 << 1 | u32::from(fast) << 2);
    }

    /// Sends a command and returns its answer, the lowest word first.
    pub fn command(&mut self, number: u32, argument: u32, answer: Answer) -> Result<[u32; 4], Fault> {
        self.send(number, argument, answer, 0)?;
        if answer == Answer::ShortBusy {
            let busy = self.wait_for(interrupt::DATA_DONE, Duration::from_secs(1));
            busy.inspect_err(|_| self.recover())?;
        }
        Ok([0, 4, 8, 12].map(|at| self.registers.read(reg::RESPONSE + at)))
    }

    /// Sends a command that is answered by data, and reads these: whole blocks of 512 bytes, or one that is shorter.
    pub fn read(&mut self, number: u32, argument: u32, into: &mut [u8]) -> Result<(), Fault> {
        let (block, many) = (into.len().min(BLOCK), into.len() > BLOCK);
        let blocks = into.len() / block.max(1);
        if blocks == 0 || blocks > 0xffff || block % 4 != 0 || blocks * block != into.len() {
            return Err(Fault::Range);
        }
        self.set(reg::BLOCKS, (blocks as u32) << 16 | block as u32);
        // Data from the card; with several blocks, they are counted and followed by command 12.
        let mode = 1 << 21 | 1 << 4 | if many { 1 << 5 | 1 << 2 | 1 << 1 } else { 0 };
        self.send(number, argument, Answer::Short, mode)?;
        for bytes in into.chunks_exact_mut(block) {
            let ready = self.wait_for(interrupt::READ_READY, Duration::from_secs(1));
            ready.inspect_err(|_| self.recover())?;
            for word in bytes.as_chunks_mut::<4>().0 {
                *word = self.registers.read(reg::DATA).to_le_bytes();
            }
        }
        self.wait_for(interrupt::DATA_DONE, Duration::from_secs(1)).inspect_err(|_| self.recover())
    }

    /// Sends a command that is followed by data, and writes these: whole blocks of 512 bytes. Returns when the card has stored them.
    pub fn write(&mut self, number: u32, argument: u32, from: &[u8]) -> Result<(), Fault> {
        let (blocks, many) = (from.len() / BLOCK, from.len() > BLOCK);
        if blocks == 0 || blocks > 0xffff || blocks * BLOCK != from.len() {
            return Err(Fault::Range);
        }
        self.set(reg::BLOCKS, (blocks as u32) << 16 | BLOCK as u32);
        // Data to the card; with several blocks, they are counted and followed by command 12.
        let mode = 1 << 21 | if many { 1 << 5 | 1 << 2 | 1 << 1 } else { 0 };
        self.send(number, argument, Answer::Short, mode)?;
        for bytes in from.chunks_exact(BLOCK) {
            let ready = self.wait_for(interrupt::WRITE_READY, Duration::from_secs(1));
            ready.inspect_err(|_| self.recover())?;
            for word in bytes.as_chunks::<4>().0 {
                self.registers.write(reg::DATA, u32::from_le_bytes(*word));
            }
        }
        self.wait_for(interrupt::DATA_DONE, Duration::from_secs(2)).inspect_err(|_| self.recover())?;
        // The card is busy as long as it stores.
        self.until(reg::STATUS, status::DATA_BUSY, 0, Duration::from_secs(2)).inspect_err(|_| self.recover())
    }

    fn send(&mut self, number: u32, argument: u32, answer: Answer, mode: u32) -> Result<(), Fault> {
        let busy = status::COMMAND_BUSY | if mode != 0 { status::DATA_BUSY } else { 0 };
        self.until(reg::STATUS, busy, 0, Duration::from_millis(500)).inspect_err(|_| self.recover())?;
        self.registers.write(reg::INTERRUPT, 0xffff_ffff);
        self.set(reg::ARGUMENT, argument);
        self.registers.write(reg::COMMAND, number << 24 | answer as u32 | mode);
        self.wait_for(interrupt::COMMAND_DONE, Duration::from_millis(500)).inspect_err(|_| self.recover())
    }

    /// Waits for an event that the controller reports, and takes note of it.
    fn wait_for(&self, event: u32, patience: Duration) -> Result<(), Fault> {
        let start = arch::now();
        loop {
            let seen = self.registers.read(reg::INTERRUPT);
            if seen & interrupt::ANY_ERROR != 0 {
                self.registers.write(reg::INTERRUPT, seen);
                return Err(match seen {
                    _ if seen & interrupt::COMMAND_TIMEOUT != 0 => Fault::NoAnswer,
                    _ if seen & interrupt::DATA_TIMEOUT != 0 => Fault::NoData,
                    _ => Fault::Garbled,
                });
            }
            if seen & event != 0 {
                self.registers.write(reg::INTERRUPT, event);
                return Ok(());
            }
            if arch::now().saturating_sub(start) > patience {
                return Err(if event == interrupt::COMMAND_DONE { Fault::NoAnswer } else { Fault::NoData });
            }
        }
    }

    /// Makes the controller forget a command that failed. Its two halves are reset one after the other: some controllers
    /// don't do both at once.
    fn recover(&self) {
        for half in [control_1::RESET_COMMAND, control_1::RESET_DATA] {
            self.set(reg::CONTROL_1, self.registers.read(reg::CONTROL_1) | half);
            // If it does not end, the next command will say so.
            let _ = self.until(reg::CONTROL_1, half, 0, Duration::from_millis(10));
        }
    }

    fn until(&self, register: usize, mask: u32, value: u32, patience: Duration) -> Result<(), Fault> {
        let start = arch::now();
        while self.registers.read(register) & mask != value {
            if arch::now().saturating_sub(start) > patience {
                return Err(Fault::Controller);
            }
        }
        Ok(())
    }

    /// Writes a register and gives the controller the time that it needs before the next write: some cycles of the card's
    /// slowest clock.
    fn set(&self, register: usize, value: u32) {
        self.registers.write(register, value);
        arch::wait(Duration::from_micros(6));
    }
}
