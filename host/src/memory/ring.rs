//! The ring between the readers and the computation: which segment is read next, by whom, and what has come.

use std::collections::VecDeque;

use elapid_core::source::Fault;

use super::schedule::Schedule;
use super::storage::Buffer;

/// What a reader brings: a filled buffer, or the buffer back with the block that could not be had, and why.
pub(super) type Arrival = Result<Buffer, (Buffer, u32, Fault)>;

/// A segment that was given to a reader.
struct Ticket {
    segment: usize,
    arrival: Option<Arrival>,
}

/// What a reader is to read.
pub(super) struct Order {
    pub ticket: u64,
    pub segment: usize,
    pub buffer: Buffer,
}

/// What the computation finds when it asks for a segment.
pub(super) enum Found {
    /// It is here.
    Here(Arrival),
    /// It is on its way.
    Coming,
    /// The readers are elsewhere.
    Elsewhere,
}

/// The state that readers and computation share. It never allocates after it was made.
pub(super) struct Ring {
    /// The next segment to be given out; `None` while nothing shall be read.
    next: Option<usize>,
    /// Passes that will skip the head, before one that does not.
    bare: u64,
    /// Segments given out and not yet taken, in the order of their use.
    queue: VecDeque<Ticket>,
    /// The number of the first ticket in `queue`.
    first: u64,
    /// Buffers of the ring that nobody uses.
    free: Vec<Buffer>,
    /// The buffers of pinned segments that have not been read, by segment.
    unloaded: Vec<Option<Buffer>>,
    pub stop: bool,
    /// A reader panicked: what it was to bring does not come.
    pub broken: bool,
}

impl Ring {
    /// A ring of `free`, with the buffers of pinned segments in `unloaded`; the readers begin at the first segment.
    pub(super) fn new(free: Vec<Buffer>, unloaded: Vec<Option<Buffer>>) -> Self {
        let queue = VecDeque::with_capacity(2 * free.len());
        let next = (!unloaded.is_empty()).then_some(0);
        Self { next, bare: 0, queue, first: 0, free, unloaded, stop: false, broken: false }
    }

    /// The next `passes` passes don't reach the head.
    pub(super) fn expect_bare(&mut self, passes: u64) {
        self.bare = passes;
    }

    fn after(&mut self, segment: usize, schedule: &Schedule) -> usize {
        let next = segment + 1;
        if next == schedule.head && self.bare > 0 {
            self.bare -= 1;
            0
        } else if next >= schedule.segments.len() {
            0
        } else {
            next
        }
    }

    /// Skips what is in memory. Returns the next segment that must be read.
    fn settle(&mut self, schedule: &Schedule) -> Option<usize> {
        for _ in 0..=schedule.segments.len() {
            let segment = self.next?;
            let kept = schedule.segments.get(segment)?.pinned && self.unloaded[segment].is_none();
            if !kept {
                return Some(segment);
            }
            self.next = Some(self.after(segment, schedule));
        }
        None
    }

    /// The next order for a reader, if there is a buffer for it.
    pub(super) fn order(&mut self, schedule: &Schedule) -> Option<Order> {
        if self.queue.len() == self.queue.capacity() {
            return None;
        }
        let segment = self.settle(schedule)?;
        let buffer = match self.unloaded.get_mut(segment).and_then(Option::take) {
            Some(buffer) => buffer,
            None => self.free.pop()?,
        };
        self.next = Some(self.after(segment, schedule));
        let ticket = self.first + self.queue.len() as u64;
        self.queue.push_back(Ticket { segment, arrival: None });
        Some(Order { ticket, segment, buffer })
    }

    /// Takes what a reader brings.
    pub(super) fn deliver(&mut self, ticket: u64, segment: usize, arrival: Arrival, schedule: &Schedule) {
        let place = ticket.checked_sub(self.first).and_then(|i| self.queue.get_mut(i as usize));
        match place {
            Some(place) => place.arrival = Some(arrival),
            // Nobody waits for it any more.
            None => {
                let (Ok(buffer) | Err((buffer, ..))) = arrival;
                self.give_back(segment, buffer, schedule);
            }
        }
    }

    /// Takes a buffer that is no longer needed.
    pub(super) fn give_back(&mut self, segment: usize, buffer: Buffer, schedule: &Schedule) {
        if schedule.segments.get(segment).is_some_and(|s| s.pinned) {
            self.unloaded[segment] = Some(buffer);
        } else {
            self.free.push(buffer);
        }
    }

    /// Asks for a segment that is not in memory.
    pub(super) fn ask(&mut self, segment: usize, schedule: &Schedule) -> Found {
        if self.queue.is_empty() {
            let next = self.settle(schedule);
            return if next == Some(segment) { Found::Coming } else { Found::Elsewhere };
        }
        match self.queue.front() {
            Some(front) if front.segment != segment => Found::Elsewhere,
            Some(Ticket { arrival: None, .. }) => Found::Coming,
            _ => match self.queue.pop_front() {
                Some(Ticket { arrival: Some(arrival), .. }) => {
                    self.first += 1;
                    Found::Here(arrival)
                }
                _ => Found::Coming,
            },
        }
    }

    /// Lets the readers go on at `next`. What has come of pinned segments is given to `keep`, the rest is dropped.
    pub(super) fn seek(
        &mut self,
        next: Option<usize>,
        schedule: &Schedule,
        mut keep: impl FnMut(usize, Buffer),
    ) {
        self.next = next;
        self.first += self.queue.len() as u64;
        while let Some(ticket) = self.queue.pop_front() {
            match ticket.arrival {
                Some(Ok(buffer)) if schedule.segments[ticket.segment].pinned => keep(ticket.segment, buffer),
                Some(Ok(buffer) | Err((buffer, ..))) => self.give_back(ticket.segment, buffer, schedule),
                // It is still being read: `deliver` will find its ticket gone.
                None => {}
            }
        }
    }
}
