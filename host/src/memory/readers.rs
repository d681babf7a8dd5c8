//! What brings blocks from storage to a ring: the threads that read, and what they share with the computation.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use elapid_core::format::{Layout, Section, checksum};
use elapid_core::source::{Fault, SourceError};

use super::ring::{Arrival, Order, Ring};
use super::schedule::Schedule;
use super::storage::{Log, Storage, read_full};
use crate::options::Verify;

/// How often a block whose checksum does not match is read again: memory or a cable may have been at fault.
pub(super) const REREADS: u32 = 2;
/// What readers need, and what they share.
pub(super) struct Shared {
    pub layout: Layout,
    pub schedule: Schedule,
    pub checksums: Arc<[u32]>,
    pub storage: Arc<dyn Storage>,
    pub log: Arc<Log>,
    pub verify: Verify,
    pub ring: Mutex<Ring>,
    /// There may be something to read.
    pub work: Condvar,
    /// Something has come.
    pub ready: Condvar,
    /// Ends what waits for a storage that fails.
    pub stop: AtomicBool,
}

impl Shared {
    pub(super) fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_for_work<'a>(&self, ring: MutexGuard<'a, Ring>) -> MutexGuard<'a, Ring> {
        self.work.wait(ring).unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a reader brings.
    pub(super) fn deliver(&self, order: Order, outcome: Result<(), (u32, Fault)>) {
        let arrival: Arrival = match outcome {
            Ok(()) => Ok(order.buffer),
            Err((block, fault)) => Err((order.buffer, block, fault)),
        };
        // A buffer that nobody waited for is free again: the reader looks itself, in its next round.
        self.ring().deliver(order.ticket, order.segment, arrival, &self.schedule);
        self.ready.notify_one();
    }

    pub(super) fn error(&self, section: Section, block: u32, fault: Fault) -> SourceError {
        let offset = self.layout.block(section, block).map_or(0, |place| place.offset);
        SourceError { section, block, offset, fault }
    }

    /// The first of some blocks, `bytes` being all of them, that is not as it was written.
    pub(super) fn damaged(&self, section: Section, blocks: Range<u32>, bytes: &[u8]) -> Option<u32> {
        let mut rest = bytes;
        blocks.into_iter().find(|block| {
            let Some(place) = self.layout.block(section, *block) else { return true };
            let Some(bytes) = rest.split_off(..place.length as usize) else { return true };
            self.checksums.get(place.checksum as usize) != Some(&checksum(bytes))
        })
    }

    /// Whether blocks may be borrowed as they are.
    #[cfg(target_os = "linux")]
    pub(super) fn sound(&self, section: Section, blocks: Range<u32>, bytes: &[u8]) -> bool {
        self.verify == Verify::Never || self.damaged(section, blocks, bytes).is_none()
    }

    /// Reads blocks into `bytes` until they are as they were written. The error names the block.
    pub(super) fn fetch(
        &self,
        section: Section,
        blocks: Range<u32>,
        bytes: &mut [u8],
    ) -> Result<(), (u32, Fault)> {
        let place = self.layout.block(section, blocks.start);
        let offset = place.ok_or((blocks.start, Fault::NoSuchBlock))?.offset;
        let mut tries = 0;
        loop {
            let read = read_full(&*self.storage, bytes, offset, &self.log, &self.stop);
            read.map_err(|(done, fault)| (self.block_at(section, blocks.clone(), offset + done), fault))?;
            if self.verify == Verify::Never {
                return Ok(());
            }
            let Some(block) = self.damaged(section, blocks.clone(), bytes) else { return Ok(()) };
            if tries == REREADS {
                return Err((block, Fault::Checksum));
            }
            tries += 1;
            self.log.reread();
        }
    }

    fn block_at(&self, section: Section, blocks: Range<u32>, offset: u64) -> u32 {
        let ends_before =
            |block: &u32| self.layout.block(section, *block).is_none_or(|b| b.offset + b.length <= offset);
        blocks.clone().find(|block| !ends_before(block)).unwrap_or(blocks.start)
    }

    /// A reader's life.
    pub(super) fn read(&self) {
        let _end = ReaderEnd(self);
        loop {
            let mut ring = self.ring();
            let mut order = loop {
                if ring.stop {
                    return;
                }
                match ring.order(&self.schedule) {
                    Some(order) => break order,
                    None => ring = self.wait_for_work(ring),
                }
            };
            drop(ring);
            let segment = &self.schedule.segments[order.segment];
            let bytes = &mut order.buffer[..segment.len as usize];
            let outcome = self.fetch(segment.section, segment.first..segment.end, bytes);
            self.deliver(order, outcome);
        }
    }
}

/// The end of a reader. If it panicked, what it was to bring never comes: nobody may wait for it.
pub(super) struct ReaderEnd<'a>(pub &'a Shared);

impl Drop for ReaderEnd<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.ring().broken = true;
            self.0.ready.notify_all();
        }
    }
}
