//! Weights that are read from storage while they are computed with, in a fixed amount of memory.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use elapid_core::format::{Layout, Section};
use elapid_core::source::{Fault, LayerSource, SourceError};

use super::panels::Panels;
use super::plan::Plan;
use super::readers::{REREADS, Shared};
use super::ring::{Found, Ring};
use super::schedule::Schedule;
use super::storage::{Buffer, Log, Storage};
use crate::error::{Error, PANICKED};
use crate::options::Verify;

/// A reader's stack: it calls the system and sums bytes.
const STACK: usize = 128 << 10;

/// How a file's reads are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadBy {
    /// One thread, and the kernel's queue.
    IoUring,
    /// A thread for each read under way.
    Threads,
}

impl ReadBy {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        }
    }
}

/// Gives the blocks of a file that readers bring, and of those that stay in memory.
pub(crate) struct Streamer {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    /// How reads are made.
    by: ReadBy,
    /// The segment of the ring that is borrowed, and its bytes.
    held: Option<(usize, Buffer)>,
    /// Pinned segments that were read, by segment.
    pinned: Vec<Option<Buffer>>,
    /// The segment borrowed last.
    at: usize,
    panels: Panels,
    /// Bytes that came from storage.
    read_bytes: u64,
}

impl std::fmt::Debug for Streamer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streamer").field("readers", &self.readers.len()).finish_non_exhaustive()
    }
}

impl Streamer {
    /// Allocates all that `plan` says and begins to read: through io_uring, if it is there and reads shall not be `plain`.
    pub(crate) fn new(
        layout: &Layout,
        checksums: Arc<[u32]>,
        storage: Arc<dyn Storage>,
        log: Arc<Log>,
        verify: Verify,
        plan: &Plan,
        plain: bool,
    ) -> Result<Self, Error> {
        let schedule = Schedule::new(layout, plan.read_bytes, plan.pinned_bytes);
        let (ring, kept) = ("the ring of blocks", "blocks kept in memory");
        let free = (0..plan.slots).map(|_| Buffer::new(ring, plan.slot_bytes as usize));
        let unloaded = schedule
            .segments
            .iter()
            .map(|segment| segment.pinned.then(|| Buffer::new(kept, segment.len as usize)).transpose());
        let ring = Ring::new(free.collect::<Result<_, _>>()?, unloaded.collect::<Result<_, _>>()?);
        let pinned = schedule.segments.iter().map(|_| None).collect();
        let panels = Panels::new(layout)?;
        let shared = Arc::new(Shared {
            layout: *layout,
            schedule,
            checksums,
            storage,
            log,
            verify,
            ring: Mutex::new(ring),
            work: Condvar::new(),
            ready: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let readers = Vec::with_capacity(plan.readers);
        let by = ReadBy::Threads;
        let mut streamer = Self { shared, readers, by, held: None, pinned, at: 0, panels, read_bytes: 0 };
        #[cfg(not(target_os = "linux"))]
        let _ = plain;
        #[cfg(target_os = "linux")]
        if let Some((queue, file)) =
            (!plain).then(|| super::uring::queue(&*streamer.shared.storage, plan.readers)).flatten()
        {
            let depth = plan.readers;
            streamer.start(0, 1, move |shared| super::uring::read(shared, queue, file, depth))?;
            streamer.by = ReadBy::IoUring;
            return Ok(streamer);
        }
        for reader in 0..plan.readers {
            streamer.start(reader, plan.readers, Shared::read)?;
        }
        Ok(streamer)
    }

    fn start(
        &mut self,
        reader: usize,
        threads: usize,
        read: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(format!("elapid-read-{reader}")).stack_size(STACK);
        let thread = thread.spawn(move || read(&shared));
        let number = reader + 1;
        self.readers.push(thread.map_err(|cause| Error::StartThread { thread: number, threads, cause })?);
        Ok(())
    }

    /// How reads are made.
    pub(crate) fn read_by(&self) -> ReadBy {
        self.by
    }

    /// Bytes that came from storage so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Says that the next `passes` passes end with the layers, and the one after them with the head. It is only a hint: what
    /// was read in vain costs time.
    pub(crate) fn expect_bare(&self, passes: u64) {
        self.shared.ring().expect_bare(passes);
    }

    /// Makes sure that a segment is in memory: held or pinned.
    fn get(&mut self, wanted: usize) -> Result<(), SourceError> {
        self.at = wanted;
        if self.pinned[wanted].is_some() || self.held.as_ref().is_some_and(|(held, _)| *held == wanted) {
            return Ok(());
        }
        let Self { shared, held, pinned, read_bytes, .. } = self;
        let schedule = &shared.schedule;
        let segment = &schedule.segments[wanted];
        let mut ring = shared.ring();
        if let Some((segment, buffer)) = held.take() {
            ring.give_back(segment, buffer, schedule);
        }
        loop {
            // Every turn of this loop may have made room.
            shared.work.notify_all();
            match ring.ask(wanted, schedule) {
                Found::Here(Ok(buffer)) => {
                    *read_bytes += u64::from(segment.len);
                    if segment.pinned {
                        pinned[wanted] = Some(buffer);
                    } else {
                        *held = Some((wanted, buffer));
                    }
                    return Ok(());
                }
                Found::Here(Err((buffer, block, fault))) => {
                    ring.give_back(wanted, buffer, schedule);
                    // Nothing is read until somebody asks again.
                    ring.seek(None, schedule, |i, buffer| pinned[i] = Some(buffer));
                    return Err(shared.error(segment.section, block, fault));
                }
                Found::Coming => {}
                Found::Elsewhere => {
                    ring.seek(Some(wanted), schedule, |i, buffer| pinned[i] = Some(buffer));
                    if pinned[wanted].is_some() {
                        return Ok(());
                    }
                    // A pinned segment may still be with a reader that was sent before the seek: its buffer comes back, and
                    // is asked for again.
                    shared.work.notify_all();
                }
            }
            if ring.broken {
                return Err(shared.error(segment.section, segment.first, Fault::Storage(PANICKED)));
            }
            ring = shared.ready.wait(ring).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks of a segment that [`Streamer::get`] has brought.
    fn borrowed(&self, at: usize, blocks: Range<u32>) -> Option<&[u8]> {
        let segment = self.shared.schedule.segments.get(at)?;
        let held = || self.held.as_ref().filter(|(held, _)| *held == at).map(|(_, buffer)| buffer);
        let bytes = self.pinned.get(at)?.as_ref().or_else(held)?;
        let range = self.shared.layout.blocks(segment.section, blocks.start..blocks.end.min(segment.end))?;
        bytes.get((range.start - segment.offset) as usize..(range.end - segment.offset) as usize)
    }

    /// Checks pinned blocks again, and has them read again if they are no longer as they were.
    fn recheck(&mut self, at: usize) -> Result<(), SourceError> {
        let segment = self.shared.schedule.segments[at];
        let blocks = segment.first..segment.end;
        for _ in 0..=REREADS {
            let bytes = self.pinned[at].as_deref();
            let Some(bytes) = bytes.and_then(|bytes| bytes.get(..segment.len as usize)) else {
                return Ok(());
            };
            if self.shared.damaged(segment.section, blocks.clone(), bytes).is_none() {
                return Ok(());
            }
            self.shared.log.reread();
            if let Some(buffer) = self.pinned[at].take() {
                self.shared.ring().give_back(at, buffer, &self.shared.schedule);
            }
            self.get(at)?;
        }
        Err(self.shared.error(segment.section, segment.first, Fault::Checksum))
    }

    fn find(&self, section: Section, block: u32) -> Option<usize> {
        self.shared.schedule.find(section, block, self.at)
    }
}

impl LayerSource for Streamer {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        let missing = self.shared.error(section, blocks.start, Fault::NoSuchBlock);
        let Some(at) = self.find(section, blocks.start) else {
            // Not part of a pass: the embedding of a model with a head of its own.
            let read = self.panels.block(&self.shared, section, blocks.start);
            let read = read.map_err(|(block, fault)| self.shared.error(section, block, fault));
            return read.inspect(|bytes| self.read_bytes += bytes.len() as u64);
        };
        self.get(at)?;
        if self.shared.verify == Verify::Always && self.pinned[at].is_some() {
            self.recheck(at)?;
        }
        self.borrowed(at, blocks).ok_or(missing)
    }

    fn borrow_within(
        &mut self,
        section: Section,
        block: u32,
        bytes: Range<usize>,
    ) -> Result<&[u8], SourceError> {
        let missing = self.shared.error(section, block, Fault::NoSuchBlock);
        let at = self.find(section, block);
        let pinned = at.is_some_and(|at| self.pinned[at].is_some());
        if section == Section::Embedding && !pinned {
            let read = self.panels.panel(&self.shared, block, bytes);
            let read = read.map_err(|(block, fault)| self.shared.error(section, block, fault));
            return read.inspect(|(_, read)| self.read_bytes += read).map(|(bytes, _)| bytes);
        }
        self.borrow(section, block..block + 1)?.get(bytes).ok_or(missing)
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.ring().stop = true;
        self.shared.work.notify_all();
        for reader in self.readers.drain(..) {
            // A reader that panicked has nothing to say to who goes.
            let _ = reader.join();
        }
    }
}
