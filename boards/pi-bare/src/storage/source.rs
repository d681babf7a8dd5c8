//! Weights for the step: from memory, and from the card while other weights are being computed with.
//!
//! Two cores work side by side. The one that runs the step asks for blocks ahead of time; a reader on another core reads
//! and checks them, one after the other. Buffers go back and forth with requests and answers, so that each has one owner
//! at any time.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use elapid_core::format::{Block, Layout, Section, checksum};
use elapid_core::source::{Fault, LayerSource, SourceError, slice};
use heapless::Vec;
use heapless::spsc::{Consumer, Producer, Queue};

use super::plan::{MOST_BUFFERS, is_weights};

/// Requests under way at most, and one.
const QUEUE: usize = MOST_BUFFERS + 1;

/// Fills a buffer from an offset in the file, or fails with a number for the reason.
type Read<'r> = dyn FnMut(u64, &mut [u8]) -> Result<(), i32> + 'r;

/// Counts events, and lets one core wait for the next.
pub trait Bell: Sync {
    /// Events so far.
    fn count(&self) -> u64;
    /// One more, after everything that was written before.
    fn ring(&self);
    /// Waits until the count is no longer `seen`.
    fn wait(&self, seen: u64);
}

/// One read of one block.
#[derive(Debug)]
struct Request<'a> {
    buffer: &'a mut [u8],
    section: Section,
    index: u32,
    place: Block,
    checksum: u32,
    /// Requests with a smaller number than the channel's `first` are no longer wanted.
    number: u64,
}

/// A request that was dealt with.
#[derive(Debug)]
struct Answer<'a> {
    request: Request<'a>,
    result: Result<(), Fault>,
}

/// What the two cores share.
pub struct Channel<'a, B> {
    requests: Queue<Request<'a>, QUEUE>,
    answers: Queue<Answer<'a>, QUEUE>,
    urgent_requests: Queue<Request<'a>, 2>,
    urgent_answers: Queue<Answer<'a>, 2>,
    shared: Shared<B>,
}

struct Shared<B> {
    asked: B,
    answered: B,
    /// The first request that is wanted.
    first: AtomicU64,
    stop: AtomicBool,
    /// Time since some moment.
    now: fn() -> Duration,
    /// Nanoseconds that the reader has spent with reads.
    reading: AtomicU64,
}

/// What streaming came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Blocks that were there when they were wanted.
    pub early: u64,
    /// Blocks that had to be waited for.
    pub late: u64,
    /// How long blocks were read and checked, up to when one was wanted last.
    pub reading: Duration,
    /// How long the computation waited for them: the rest of the reading lay beside it.
    pub waited: Duration,
}

impl<'a, B: Bell> Channel<'a, B> {
    /// A channel with two bells that nobody else uses. `now` is the time since some moment, on every core.
    #[must_use]
    pub fn new(asked: B, answered: B, now: fn() -> Duration) -> Self {
        Self {
            requests: Queue::new(),
            answers: Queue::new(),
            urgent_requests: Queue::new(),
            urgent_answers: Queue::new(),
            shared: Shared {
                asked,
                answered,
                first: AtomicU64::new(0),
                stop: AtomicBool::new(false),
                now,
                reading: AtomicU64::new(0),
            },
        }
    }

    /// The reader's end, and the source that asks it.
    ///
    /// `buffers` are for blocks read ahead, `urgent` for those that can't be: the embedding's. `holds` says which sections
    /// the source will never be asked for.
    pub fn split<'c>(
        &'c mut self,
        layout: &'c Layout,
        checksums: &'c [u8],
        holds: impl Fn(Section) -> bool,
        buffers: impl IntoIterator<Item = &'a mut [u8]>,
        urgent: Option<&'a mut [u8]>,
    ) -> (Reader<'a, 'c, B>, StreamSource<'a, 'c, B>) {
        let (to_requests, requests) = self.requests.split();
        let (to_answers, answers) = self.answers.split();
        let (to_urgent, urgent_requests) = self.urgent_requests.split();
        let (to_urgent_answers, urgent_answers) = self.urgent_answers.split();
        let shared = &self.shared;
        let reader =
            Reader { requests, answers: to_answers, urgent: (urgent_requests, to_urgent_answers), shared };
        let mut source = StreamSource {
            layout,
            checksums,
            streamed: Streamed::new(layout, holds),
            requests: to_requests,
            answers,
            urgent: (to_urgent, urgent_answers),
            shared,
            next: None,
            front: None,
            under_way: 0,
            free: Vec::new(),
            number: 0,
            borrowed: None,
            urgent_buffer: urgent,
            early: 0,
            late: 0,
            waited: Duration::ZERO,
            read: Duration::ZERO,
        };
        source.next = source.streamed.first();
        source.front = source.next;
        source.free.extend(buffers.into_iter().take(MOST_BUFFERS));
        source.ask();
        (reader, source)
    }
}

/// The end of a channel that reads.
pub struct Reader<'a, 'c, B> {
    requests: Consumer<'c, Request<'a>>,
    answers: Producer<'c, Answer<'a>>,
    urgent: (Consumer<'c, Request<'a>>, Producer<'c, Answer<'a>>),
    shared: &'c Shared<B>,
}

impl<B: Bell> Reader<'_, '_, B> {
    /// Reads what is asked for until the source is dropped. `read` fills a buffer from an offset in the file, or fails with
    /// a number for the reason.
    pub fn run(mut self, mut read: impl FnMut(u64, &mut [u8]) -> Result<(), i32>) {
        loop {
            let seen = self.shared.asked.count();
            if self.shared.stop.load(Ordering::Acquire) {
                return;
            }
            // An answer always finds room: there are no more buffers than places in the queues.
            if let Some(request) = self.urgent.0.dequeue() {
                let answer = self.answer(request, 0, &mut read);
                let _ = self.urgent.1.enqueue(answer);
            } else if let Some(request) = self.requests.dequeue() {
                let first = self.shared.first.load(Ordering::Acquire);
                let answer = self.answer(request, first, &mut read);
                let _ = self.answers.enqueue(answer);
            } else {
                self.shared.asked.wait(seen);
                continue;
            }
            self.shared.answered.ring();
        }
    }

    /// Reads a block and checks it; one that does not match is read once more.
    fn answer<'r>(&self, mut request: Request<'r>, first: u64, read: &mut Read<'_>) -> Answer<'r> {
        let start = (self.shared.now)();
        let mut result = Err(Fault::Checksum);
        if request.number >= first {
            for _ in 0..2 {
                result = fill(&mut request, read);
                if result != Err(Fault::Checksum) {
                    break;
                }
            }
        }
        let took = (self.shared.now)().saturating_sub(start);
        self.shared.reading.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        Answer { request, result }
    }
}

fn fill(request: &mut Request<'_>, read: &mut Read<'_>) -> Result<(), Fault> {
    let length = request.place.length as usize;
    let bytes = request.buffer.get_mut(..length).ok_or(Fault::NoSuchBlock)?;
    read(request.place.offset, bytes).map_err(Fault::Storage)?;
    if checksum(bytes) == request.checksum { Ok(()) } else { Err(Fault::Checksum) }
}

/// The blocks that a token needs from the card, in the order of their use, over and over.
#[derive(Clone, Copy, Debug)]
struct Streamed {
    /// Held sections, a bit each: layers (modulo the bits; see `new`), then final norm and head.
    layers: [u64; 4096 / 64],
    final_norm: bool,
    /// The section that the head is in, if it is streamed.
    head: Option<Section>,
    n_layer: u32,
}

/// A block and its section.
type Position = (Section, u32);

impl Streamed {
    fn new(layout: &Layout, holds: impl Fn(Section) -> bool) -> Self {
        let n_layer = layout.config().n_layer;
        let mut layers = [0; 4096 / 64];
        for layer in (0..n_layer).filter(|layer| !holds(Section::Layer(*layer))) {
            layers[layer as usize / 64 % layers.len()] |= 1 << (layer % 64);
        }
        let (head, _) = layout.head();
        Self { layers, final_norm: !holds(Section::FinalNorm), head: (!holds(head)).then_some(head), n_layer }
    }

    fn layer_from(&self, from: u32) -> Option<Section> {
        let streamed =
            |layer: &u32| self.layers[*layer as usize / 64 % self.layers.len()] >> (layer % 64) & 1 == 1;
        (from..self.n_layer).find(streamed).map(Section::Layer)
    }

    fn first(&self) -> Option<Position> {
        let norm = self.final_norm.then_some(Section::FinalNorm);
        self.layer_from(0).or(norm).or(self.head).map(|section| (section, 0))
    }

    /// What comes after a block.
    fn after(&self, layout: &Layout, (section, index): Position) -> Option<Position> {
        if index + 1 < layout.section(section).blocks {
            return Some((section, index + 1));
        }
        let norm = self.final_norm.then_some(Section::FinalNorm);
        let next = match section {
            Section::Layer(layer) => self.layer_from(layer + 1).or(norm).or(self.head),
            Section::FinalNorm => self.head,
            _ => None,
        };
        next.map(|section| (section, 0)).or(self.first())
    }
}

/// The end of a channel that asks for blocks, and gives them.
pub struct StreamSource<'a, 'c, B: Bell> {
    layout: &'c Layout,
    checksums: &'c [u8],
    streamed: Streamed,
    requests: Producer<'c, Request<'a>>,
    answers: Consumer<'c, Answer<'a>>,
    urgent: (Producer<'c, Request<'a>>, Consumer<'c, Answer<'a>>),
    shared: &'c Shared<B>,
    /// What to ask for next.
    next: Option<Position>,
    /// What the next answer is about.
    front: Option<Position>,
    /// Requests that were not answered, or whose answers were not taken.
    under_way: usize,
    /// Buffers that nothing was asked for into.
    free: Vec<&'a mut [u8], MOST_BUFFERS>,
    number: u64,
    /// What was borrowed last.
    borrowed: Option<Answer<'a>>,
    urgent_buffer: Option<&'a mut [u8]>,
    early: u64,
    late: u64,
    waited: Duration,
    /// What was read up to when a block was wanted last.
    read: Duration,
}

impl<B: Bell> Drop for StreamSource<'_, '_, B> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.asked.ring();
    }
}

impl<'a, B: Bell> StreamSource<'a, '_, B> {
    /// What came of it so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures { early: self.early, late: self.late, reading: self.read, waited: self.waited }
    }

    /// Waits for an answer after `seen` ones.
    fn wait(&mut self, seen: u64) {
        let start = (self.shared.now)();
        self.shared.answered.wait(seen);
        self.waited += (self.shared.now)().saturating_sub(start);
    }

    fn request(&self, buffer: &'a mut [u8], (section, index): Position) -> Result<Request<'a>, &'a mut [u8]> {
        let place = self.layout.block(section, index);
        let stored = place.and_then(|place| self.checksums.as_chunks::<4>().0.get(place.checksum as usize));
        match (place, stored) {
            (Some(place), Some(stored)) => {
                let checksum = u32::from_le_bytes(*stored);
                Ok(Request { buffer, section, index, place, checksum, number: self.number })
            }
            _ => Err(buffer),
        }
    }

    /// Asks for the next blocks in the order of use, as long as a buffer is free for each. Of those that are large enough it
    /// takes the smallest.
    fn ask(&mut self) {
        while let Some(next) = self.next {
            let Some(place) = self.layout.block(next.0, next.1) else { return };
            let sizes = self.free.iter().map(|buffer| buffer.len()).enumerate();
            let fitting = sizes.filter(|(_, size)| *size >= place.length as usize);
            let Some((at, _)) = fitting.min_by_key(|(_, size)| *size) else { return };
            let buffer = self.free.swap_remove(at);
            let request = match self.request(buffer, next) {
                Ok(request) => request,
                Err(buffer) => return self.free_again(buffer),
            };
            // There is room for every buffer.
            if self.requests.enqueue(request).is_ok() {
                self.under_way += 1;
                self.next = self.streamed.after(self.layout, next);
                self.shared.asked.ring();
            }
        }
    }

    /// Takes a buffer back that is no longer used.
    fn free_again(&mut self, buffer: &'a mut [u8]) {
        // There is room for every buffer.
        let _ = self.free.push(buffer);
    }

    /// The next answer.
    fn take(&mut self) -> Option<Answer<'a>> {
        if self.under_way == 0 {
            return None;
        }
        self.under_way -= 1;
        self.front = self.front.and_then(|front| self.streamed.after(self.layout, front));
        let mut waited = false;
        loop {
            let seen = self.shared.answered.count();
            if let Some(answer) = self.answers.dequeue() {
                let counter = if waited { &mut self.late } else { &mut self.early };
                *counter += 1;
                return Some(answer);
            }
            waited = true;
            self.wait(seen);
        }
    }

    /// Forgets all requests under way, and asks from `wanted` on.
    fn go_to(&mut self, wanted: Position) {
        self.number += 1;
        self.shared.first.store(self.number, Ordering::Release);
        self.next = Some(wanted);
        for _ in 0..self.under_way {
            let counted = (self.early, self.late);
            if let Some(answer) = self.take() {
                self.free_again(answer.request.buffer);
            }
            (self.early, self.late) = counted;
        }
        self.front = Some(wanted);
        self.ask();
    }

    /// A block that could not be foreseen.
    fn lend_urgently(&mut self, wanted: Position) -> Result<&[u8], SourceError> {
        let (section, block) = wanted;
        let missing = SourceError { section, block, offset: 0, fault: Fault::NoSuchBlock };
        let buffer = self.urgent_buffer.take().ok_or(missing)?;
        let request = self.request(buffer, wanted).map_err(|buffer| {
            self.urgent_buffer = Some(buffer);
            missing
        })?;
        let (length, offset) = (request.place.length as usize, request.place.offset);
        let _ = self.urgent.0.enqueue(request);
        self.shared.asked.ring();
        let answer = loop {
            let seen = self.shared.answered.count();
            match self.urgent.1.dequeue() {
                Some(answer) => break answer,
                None => self.wait(seen),
            }
        };
        let Answer { request, result } = answer;
        let buffer = self.urgent_buffer.insert(request.buffer);
        result.map_err(|fault| SourceError { section, block, offset, fault })?;
        buffer.get(..length).ok_or(missing)
    }

    /// Gives the first of `blocks` of a section that is not held.
    ///
    /// # Errors
    /// As [`LayerSource::borrow`].
    pub fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        let wanted = (section, blocks.start);
        // What was borrowed before is no longer used.
        if let Some(answer) = self.borrowed.take() {
            self.free_again(answer.request.buffer);
            self.ask();
        }
        if self.front != Some(wanted) {
            if section == Section::Embedding && self.urgent_buffer.is_some() {
                return self.lend_urgently(wanted);
            }
            self.go_to(wanted);
        }
        let missing = SourceError { section, block: blocks.start, offset: 0, fault: Fault::NoSuchBlock };
        let answer = self.take().ok_or(missing)?;
        let offset = answer.request.place.offset;
        let length = answer.request.place.length as usize;
        let (found, result) = ((answer.request.section, answer.request.index), answer.result);
        self.read = Duration::from_nanos(self.shared.reading.load(Ordering::Relaxed));
        let answer = self.borrowed.insert(answer);
        result.map_err(|fault| SourceError { section, block: blocks.start, offset, fault })?;
        if found != wanted {
            return Err(missing);
        }
        answer.request.buffer.get(..length).ok_or(missing)
    }
}

/// All weights: what is held, and what is streamed.
pub struct WeightSource<'a, 'c, B: Bell> {
    layout: &'c Layout,
    /// Of every section of weights, by its place in [`place_of`]; `None` if it is streamed.
    held: &'c [Option<&'a [u8]>],
    /// Where the others come from.
    pub stream: Option<StreamSource<'a, 'c, B>>,
}

impl<'a, 'c, B: Bell> WeightSource<'a, 'c, B> {
    /// Gives `held` sections, and the others from `stream`.
    #[must_use]
    pub const fn new(
        layout: &'c Layout,
        held: &'c [Option<&'a [u8]>],
        stream: Option<StreamSource<'a, 'c, B>>,
    ) -> Self {
        Self { layout, held, stream }
    }
}

/// The place of a section of weights among all of them.
pub(super) fn place_of(layout: &Layout, section: Section) -> Option<usize> {
    let n_layer = layout.config().n_layer as usize;
    match section {
        Section::Layer(layer) => Some(layer as usize),
        Section::Embedding => Some(n_layer),
        Section::FinalNorm => Some(n_layer + 1),
        Section::Head => Some(n_layer + 2),
        other => {
            debug_assert!(!is_weights(other));
            None
        }
    }
}

impl<B: Bell> LayerSource for WeightSource<'_, '_, B> {
    fn borrow(&mut self, section: Section, blocks: Range<u32>) -> Result<&[u8], SourceError> {
        let missing = SourceError { section, block: blocks.start, offset: 0, fault: Fault::NoSuchBlock };
        let place = place_of(self.layout, section);
        if let Some(bytes) = place.and_then(|place| self.held.get(place).copied().flatten()) {
            let start = self.layout.section(section).offset;
            let range = self.layout.blocks(section, blocks).ok_or(missing)?;
            return slice(bytes, range.start - start..range.end - start).ok_or(missing);
        }
        match &mut self.stream {
            Some(stream) => stream.borrow(section, blocks),
            None => Err(missing),
        }
    }

    /// What is held was checked when it was read.
    fn is_verified(&self, section: Section) -> bool {
        place_of(self.layout, section).is_some_and(|place| self.held.get(place).is_some_and(Option::is_some))
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
