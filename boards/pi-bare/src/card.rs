//! An SD card: from a host controller that may have one to blocks that can be read and written.
//!
//! SD Physical Layer Simplified Specification 6.00, section 4.2 (identification) and 4.3 (transfer).

use core::time::Duration;

use elapid_pi_bare::storage::Disk;

use crate::arch;
use crate::board::{Answer, Fault, Host};

/// Bytes of a block.
pub const BLOCK: usize = 512;
/// Blocks that one command reads at most: as many as the controller can count, less to round numbers.
const MOST_BLOCKS: usize = 0x8000;
/// A transfer that failed is tried this many times in all: contacts and wires have their moments.
const TRIES: usize = 3;

/// What is known of a card once it has been identified.
#[derive(Clone, Copy)]
struct Identity {
    /// Blocks that it has.
    blocks: u32,
    /// Whether it is addressed in blocks; small ones are addressed in bytes.
    by_block: bool,
}

/// A card that has been identified and is ready to be read.
pub struct Card {
    host: Host,
    identity: Identity,
    /// Transfers that were tried again.
    retries: u32,
}

impl Card {
    /// Finds the card at the first controller that has one.
    ///
    /// # Errors
    /// The fault at the last controller.
    pub fn find(hosts: [Option<Host>; 2]) -> Result<Self, Fault> {
        let mut fault = Fault::NoAnswer;
        for mut host in hosts.into_iter().flatten() {
            match identify(&mut host) {
                Ok(identity) => return Ok(Self { host, identity, retries: 0 }),
                Err(found) => fault = found,
            }
        }
        Err(fault)
    }

    /// The controller that it is at.
    #[must_use]
    pub const fn controller(&self) -> &'static str {
        self.host.name()
    }

    /// Blocks of 512 bytes.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        self.identity.blocks
    }

    /// Transfers that had to be tried again.
    #[must_use]
    pub const fn retries(&self) -> u32 {
        self.retries
    }

    /// Reads whole blocks from block `first` on. What is left of `into` behind the last whole block stays as it was.
    ///
    /// # Errors
    /// If it failed every time that it was tried.
    pub fn read(&mut self, first: u32, into: &mut [u8]) -> Result<(), Fault> {
        let mut at = first;
        for span in into.chunks_mut(MOST_BLOCKS * BLOCK) {
            let blocks = span.len() / BLOCK;
            let span = &mut span[..blocks * BLOCK];
            let end = at
                .checked_add(blocks as u32)
                .filter(|end| *end <= self.identity.blocks)
                .ok_or(Fault::Range)?;
            if blocks > 0 {
                self.read_span(at, span)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Writes whole blocks from block `first` on, and waits until they are on the card.
    ///
    /// # Errors
    /// If it failed every time that it was tried.
    pub fn write(&mut self, first: u32, from: &[u8]) -> Result<(), Fault> {
        let blocks = u32::try_from(from.len() / BLOCK).map_err(|_| Fault::Range)?;
        let end = first.checked_add(blocks).filter(|end| *end <= self.identity.blocks);
        if end.is_none() || from.len() > MOST_BLOCKS * BLOCK {
            return Err(Fault::Range);
        }
        let command = if blocks > 1 { 25 } else { 24 };
        self.try_all(first, |host, address| host.write(command, address, from))
    }

    fn read_span(&mut self, first: u32, into: &mut [u8]) -> Result<(), Fault> {
        let command = if into.len() > BLOCK { 18 } else { 17 };
        self.try_all(first, |host, address| host.read(command, address, into))
    }

    /// Transfers blocks from block `first` on, and tries again where that fails.
    fn try_all(
        &mut self,
        first: u32,
        mut transfer: impl FnMut(&mut Host, u32) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut tries = 1;
        loop {
            let address = if self.identity.by_block { first } else { first.wrapping_mul(BLOCK as u32) };
            let fault = match transfer(&mut self.host, address) {
                Ok(()) => return Ok(()),
                Err(fault) => fault,
            };
            if tries == TRIES {
                return Err(fault);
            }
            tries += 1;
            self.retries = self.retries.saturating_add(1);
            // It may have been taken out and put in again, or be lost in the transfer that failed.
            self.identity = identify(&mut self.host)?;
        }
    }
}

impl Disk for Card {
    type Fault = Fault;

    fn write(&mut self, first: u32, from: &[u8]) -> Result<(), Fault> {
        Self::write(self, first, from)
    }

    fn read(&mut self, first: u32, into: &mut [u8]) -> Result<(), Fault> {
        Self::read(self, first, into)
    }

    fn blocks(&self) -> u32 {
        self.identity.blocks
    }
}

/// Resets the card, whatever it was doing, and makes it ready to be read.
fn identify(host: &mut Host) -> Result<Identity, Fault> {
    host.reset()?;
    host.command(0, 0, Answer::None)?;
    // 3.3 V, and a pattern that is sent back. A card that does not know the command is an old one.
    let modern = match host.command(8, 0x1aa, Answer::Short) {
        Ok(echo) => echo[0] & 0xfff == 0x1aa,
        Err(Fault::NoAnswer) => false,
        Err(fault) => return Err(fault),
    };
    let start = arch::now();
    let conditions = loop {
        const READY: u32 = 1 << 31;
        host.command(55, 0, Answer::Short)?;
        let wanted = 0x00ff_8000 | u32::from(modern) << 30;
        let conditions = host.command(41, wanted, Answer::ShortUnchecked)?[0];
        if conditions & READY != 0 {
            break conditions;
        }
        if arch::now().saturating_sub(start) > Duration::from_secs(1) {
            return Err(Fault::Kind);
        }
        arch::wait(Duration::from_millis(10));
    };
    let by_block = conditions & 1 << 30 != 0;
    host.command(2, 0, Answer::Long)?;
    let address = host.command(3, 0, Answer::Short)?[0] & 0xffff_0000;
    let blocks = capacity(host.command(9, address, Answer::Long)?).ok_or(Fault::Kind)?;
    host.command(7, address, Answer::ShortBusy)?;
    if !by_block {
        host.command(16, BLOCK as u32, Answer::Short)?;
    }
    host.command(55, address, Answer::Short)?;
    host.command(6, 2, Answer::Short)?;
    // Switch to high speed; old cards can't, and stay at 25 MHz.
    let mut functions = [0; 64];
    let fast = modern && host.read(6, 0x80ff_fff1, &mut functions).is_ok() && functions[16] & 15 == 1;
    host.widen(fast);
    host.set_clock(if fast { 50_000_000 } else { 25_000_000 })?;
    Ok(Identity { blocks, by_block })
}

/// Blocks that a card has, from its CSD register without the checksum: bit 0 of the words is bit 8 of the register.
fn capacity(csd: [u32; 4]) -> Option<u32> {
    let bits = |high: u32, low: u32| {
        let whole = csd.iter().rev().fold(0u128, |all, word| all << 32 | u128::from(*word));
        (whole >> (low - 8)) as u32 & ((1 << (high - low + 1)) - 1)
    };
    match bits(127, 126) {
        0 => {
            let (size, multiplier, length) = (bits(73, 62), bits(49, 47), bits(83, 80));
            (size + 1).checked_shl(multiplier + 2 + length)?.checked_div(BLOCK as u32)
        }
        1 => (bits(69, 48) + 1).checked_mul(1024),
        _ => None,
    }
}
