//! The thread of a model: it owns a batch of sequences and steps all of them together.
//!
//! Requests wait in one queue for each owner, and owners take turns. A prompt is read in slices between the steps of the texts that are
//! being generated, so that these wait for about one more step at most. When a reader leaves, its place is free at the next token.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use elapid::core::generate::End;
use elapid::{Batch, Constraint, Error, Model, Prefix, PrefixCache};
use tokio::sync::mpsc::UnboundedSender;

use super::text::{Failure, Text, tell};
use super::{Counters, Event, Request, Waiting};

/// The fewest tokens of a prompt that are read between two steps.
const LEAST_SLICE: usize = 8;
/// Tokens of a prompt whose logits are computed together.
const ROWS: usize = 16;
/// The weight of the newest measurement in an average of times.
const NEWEST: f64 = 0.2;

/// A text, and where the copies of its prompt's state are kept.
struct Running<'m> {
    text: Text<'m>,
    /// None if the cache is not used.
    prefix: Option<Prefix>,
    /// The number of tokens after which the next copy is kept, besides the one at the prompt's end.
    next_copy: usize,
}

pub(super) struct Scheduler {
    batch: Batch,
    cache: Arc<PrefixCache>,
    receiver: Receiver<Waiting>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    /// Waiting requests by their owners; the front one is next.
    queues: VecDeque<(u64, VecDeque<Waiting>)>,
    /// Seconds of a step, on average.
    step_time: f64,
    /// Seconds of a prompt's token, on average.
    token_time: f64,
    turn: u64,
    /// Told of files of the cache that can't be used.
    on_warning: fn(&Error),
}

fn average(old: f64, new: f64) -> f64 {
    if old == 0.0 { new } else { old + NEWEST * (new - old) }
}

impl Scheduler {
    pub(super) fn new(
        batch: Batch,
        cache: Arc<PrefixCache>,
        receiver: Receiver<Waiting>,
        counters: Arc<Counters>,
        stop: Arc<AtomicBool>,
        on_warning: fn(&Error),
    ) -> Self {
        let (queues, step_time, token_time, turn) = Default::default();
        Self { batch, cache, receiver, counters, stop, queues, step_time, token_time, turn, on_warning }
    }

    /// Serves until it is told to stop, or until nobody can send requests any more. Then it saves what is cached.
    pub(super) fn run(mut self, model: &Model) {
        let mut running: Vec<Option<Running<'_>>> = (0..self.batch.sequences()).map(|_| None).collect();
        loop {
            let idle = running.iter().all(Option::is_none) && self.queues.is_empty();
            if !self.receive(idle) && idle {
                break;
            }
            self.leave(&mut running);
            self.admit(&mut running, model);
            self.step(&mut running);
            // Copies of states are kept with the logits that the step gave.
            self.leave(&mut running);
            if self.stop.load(Ordering::Acquire) {
                self.end_all(&mut running);
                break;
            }
            self.read(&mut running);
            let busy = running.iter().flatten().count();
            self.counters.running.store(busy, Ordering::Relaxed);
        }
        if let Err(error) = self.cache.save(&mut self.batch) {
            (self.on_warning)(&error);
        }
        self.warn();
    }

    /// Tells what was wrong with files of the cache.
    fn warn(&self) {
        self.cache.take_warnings().iter().for_each(self.on_warning);
    }

    /// Takes new requests, and waits for one if there is nothing to do. False if there will be no more.
    fn receive(&mut self, wait: bool) -> bool {
        if wait {
            self.counters.running.store(0, Ordering::Relaxed);
            match self.receiver.recv() {
                Ok(waiting) => self.enqueue(waiting),
                Err(_) => return false,
            }
        }
        loop {
            match self.receiver.try_recv() {
                Ok(waiting) => self.enqueue(waiting),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn enqueue(&mut self, waiting: Waiting) {
        let owner = waiting.request.owner;
        match self.queues.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, queue)) => queue.push_back(waiting),
            None => self.queues.push_back((owner, VecDeque::from([waiting]))),
        }
    }

    /// The next request whose reader is there: owners take turns.
    fn next(&mut self) -> Option<Waiting> {
        loop {
            let (owner, mut queue) = self.queues.pop_front()?;
            let waiting = queue.pop_front();
            if !queue.is_empty() {
                self.queues.push_back((owner, queue));
            }
            let waiting = waiting?;
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            if !waiting.request.events.is_closed() {
                return Some(waiting);
            }
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives free places to waiting requests.
    fn admit<'m>(&mut self, running: &mut [Option<Running<'m>>], model: &'m Model) {
        for (slot, place) in running.iter_mut().enumerate() {
            while place.is_none() {
                let Some(Waiting { request, since }) = self.next() else { return };
                self.counters.requests.fetch_add(1, Ordering::Relaxed);
                let events = request.events.clone();
                match self.begin(slot, *request, since, model) {
                    Ok(begun) => *place = Some(begun),
                    Err(failure) => fail(&self.counters, &events, failure),
                }
            }
        }
    }

    /// Gives a request a place, and puts its sequence at the longest prefix of the prompt that is cached.
    fn begin<'m>(
        &mut self,
        slot: usize,
        request: Request,
        since: Instant,
        model: &'m Model,
    ) -> Result<Running<'m>, Failure> {
        let began = Instant::now();
        let prefix = if request.prompt_logprobs {
            self.batch.clear(slot)?;
            None
        } else {
            Some(self.cache.begin(&mut self.batch, slot, request.owner, &request.tokens)?)
        };
        self.warn();
        let cached = prefix.map_or(0, |prefix| prefix.cached);
        self.counters.prompt_tokens.fetch_add(request.tokens.len() as u64, Ordering::Relaxed);
        self.counters.cached_tokens.fetch_add(cached as u64, Ordering::Relaxed);
        let text = Text::new(model, request, cached, since, began)?;
        let next_copy = prefix.map_or(usize::MAX, |prefix| prefix.next_copy(cached));
        let mut begun = Running { text, prefix, next_copy };
        if begun.text.unread() == 0 {
            self.first(&mut begun.text)?;
        }
        Ok(begun)
    }

    /// Keeps a copy of a text's state in the cache. That there is no memory for it is no failure.
    fn keep(&mut self, slot: usize, text: &Text<'_>) {
        let _ = self.cache.keep_in(&mut self.batch, slot, text.request.owner, &text.fed);
    }

    /// Gives back the places of those whose readers have left, and of texts that are complete.
    fn leave(&mut self, running: &mut [Option<Running<'_>>]) {
        for (slot, place) in running.iter_mut().enumerate() {
            let Some(Running { text, .. }) = place else { continue };
            if let Some(end) = text.end() {
                // The conversation may continue from here.
                self.keep(slot, text);
                text.finish(end);
            } else if text.request.events.is_closed() {
                self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
            } else {
                continue;
            }
            *place = None;
        }
    }

    /// One more token of every text.
    fn step(&mut self, running: &mut [Option<Running<'_>>]) {
        let next =
            |(slot, place): (usize, &Option<Running<'_>>)| Some((slot, place.as_ref()?.text.next_token()?));
        let tokens: Vec<_> = running.iter().enumerate().filter_map(next).collect();
        if tokens.is_empty() {
            return;
        }
        let start = Instant::now();
        // Until the first logits, without the time of choosing.
        let mut time = Duration::ZERO;
        let (batch, counters) = (&mut self.batch, &self.counters);
        let constraints = Mutex::new(take_constraints(running, &tokens));
        let lock = || constraints.lock().unwrap_or_else(PoisonError::into_inner);
        let stepped = std::thread::scope(|scope| {
            if !lock().is_empty() {
                // The masks are computed while the weights are read; without a thread, when they are needed.
                let prepare = || lock().iter_mut().for_each(|(_, constraint)| constraint.prepare());
                let _ = std::thread::Builder::new().spawn_scoped(scope, prepare);
            }
            batch.step(&tokens, |slot, logits| {
                if time.is_zero() {
                    time = start.elapsed();
                }
                for (slot, constraint) in std::mem::take(&mut *lock()) {
                    if let Some(Running { text, .. }) = &mut running[slot] {
                        text.request.constraint = Some(constraint);
                    }
                }
                let Some(Running { text, .. }) = &mut running[slot] else { return Ok(()) };
                text.took(text.next_token().as_slice());
                match text.choose(logits) {
                    Ok(()) => drop(counters.tokens.fetch_add(1, Ordering::Relaxed)),
                    Err(failure) => {
                        fail(counters, &text.request.events, failure);
                        running[slot] = None;
                    }
                }
                Ok::<(), Error>(())
            })
        });
        self.counters.steps.fetch_add(1, Ordering::Relaxed);
        match stepped {
            Ok(()) => self.step_time = average(self.step_time, time.as_secs_f64()),
            Err(error) => {
                for (slot, _) in tokens {
                    self.give_up(slot, &mut running[slot], Failure(error.to_string()));
                }
            }
        }
    }

    /// Fails a request, and empties its sequence.
    fn give_up(&mut self, slot: usize, place: &mut Option<Running<'_>>, failure: Failure) {
        if let Some(Running { text, .. }) = place.take() {
            fail(&self.counters, &text.request.events, failure);
        }
        // There is such a sequence.
        let _ = self.batch.clear(slot);
    }

    /// Reads a slice of one prompt.
    fn read(&mut self, running: &mut [Option<Running<'_>>]) {
        let texts =
            || running.iter().enumerate().filter_map(|(slot, place)| Some((slot, &place.as_ref()?.text)));
        let reading = || texts().filter(|(_, text)| text.unread() > 0);
        self.turn += 1;
        // Short prompts don't wait behind long ones, nor long ones for ever.
        let next = if self.turn.is_multiple_of(2) {
            reading().min_by_key(|(_, text)| text.began)
        } else {
            reading().min_by_key(|(_, text)| text.unread())
        };
        let Some((slot, _)) = next else { return };
        let chunk = self.batch.chunk();
        let writing = texts().any(|(_, text)| text.unread() == 0);
        // As long as a step takes, if others wait for theirs.
        let most = if writing && self.token_time > 0.0 {
            ((self.step_time / self.token_time) as usize).clamp(LEAST_SLICE.min(chunk), chunk)
        } else {
            chunk
        };
        let place = &mut running[slot];
        if let Some(text) = place
            && let Err(failure) = self.read_slice(slot, text, most)
        {
            self.give_up(slot, place, failure);
        }
    }

    /// Reads at most `most` tokens of a prompt, and keeps a copy of the state where that is worth it.
    fn read_slice(&mut self, slot: usize, running: &mut Running<'_>, most: usize) -> Result<(), Failure> {
        let Running { text, prefix, next_copy } = running;
        let at = text.fed.len();
        let end = (at + most).min(*next_copy).min(text.request.tokens.len());
        let start = Instant::now();
        self.feed(slot, text, end)?;
        self.token_time = average(self.token_time, start.elapsed().as_secs_f64() / (end - at) as f64);
        if end == *next_copy || text.unread() == 0 {
            self.keep(slot, text);
            *next_copy = prefix.map_or(usize::MAX, |prefix| prefix.next_copy(end));
        }
        if text.unread() == 0 { self.first(text) } else { Ok(()) }
    }

    /// Feeds the tokens of a prompt up to `end`.
    fn feed(&mut self, slot: usize, text: &mut Text<'_>, end: usize) -> Result<(), Error> {
        let tokens = text.request.tokens[text.fed.len()..end].to_vec();
        if text.request.prompt_logprobs {
            for some in tokens.chunks(ROWS) {
                let next = text.fed.len() + 1;
                self.batch.feed_each(slot, some, |place, logits| {
                    text.note_prompt(next + place, logits);
                    Ok::<(), Error>(())
                })?;
                text.took(some);
            }
        } else {
            self.batch.feed(slot, &tokens)?;
            text.took(&tokens);
        }
        Ok(())
    }

    /// The first token after a prompt, by the logits that the batch has.
    fn first(&mut self, text: &mut Text<'_>) -> Result<(), Failure> {
        if text.has_read() {
            text.choose(self.batch.logits()?)?;
            self.counters.tokens.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends everything: what was generated until now is complete, and its states are cached.
    fn end_all(&mut self, running: &mut [Option<Running<'_>>]) {
        self.receive(false);
        while let Some(Waiting { request, .. }) = self.next() {
            tell(&request.events, Event::Failed("the server is stopping: ask again later".into()));
        }
        for (slot, place) in running.iter_mut().enumerate() {
            let Some(Running { text, .. }) = place else { continue };
            if text.unread() == 0 {
                self.keep(slot, text);
            }
            text.interrupt();
            text.finish(End::Interrupted);
        }
    }
}

/// Takes the constraints of the texts that step, so that another thread can compute their masks.
fn take_constraints(
    running: &mut [Option<Running<'_>>],
    tokens: &[(usize, u32)],
) -> Vec<(usize, Constraint)> {
    let take =
        |(slot, _): &(usize, u32)| Some((*slot, running[*slot].as_mut()?.text.request.constraint.take()?));
    tokens.iter().filter_map(take).collect()
}

fn fail(counters: &Counters, events: &UnboundedSender<Event>, Failure(reason): Failure) {
    counters.failed.fetch_add(1, Ordering::Relaxed);
    tell(events, Event::Failed(reason));
}
