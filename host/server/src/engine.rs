//! The scheduler: one thread for each model, which owns a batch of sequences and steps all of them together.
//!
//! Requests wait in one queue for each owner, and owners take turns. A prompt is read in slices between the steps of the texts that are
//! being generated, so that these never wait longer than about one more step. A request whose reader has left gives its place back at
//! the next token.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use elapid::core::generate::{End, Generation, Next, Rules, held_bytes};
use elapid::core::sample::{Sampler, Settings};
use elapid::core::tokenizer::Tokenizer;
use elapid::{Batch, Error, Model, PrefixCache, SessionOptions};
use tokio::sync::mpsc::UnboundedSender;

use crate::grammar::Constraint;

/// Tokens that the repetition penalty looks back at.
const PENALTY_WINDOW: usize = 256;
/// The fewest tokens of a prompt that are read between two steps.
const LEAST_SLICE: usize = 8;
/// Tokens between two copies of a state that are kept while a long prompt is read.
const SPACING: usize = 512;
/// Tokens of a prompt whose logits are computed together.
const ROWS: usize = 16;
/// The weight of the newest measurement in an average of times.
const NEWEST: f64 = 0.2;

/// A text to be generated.
pub(crate) struct Request {
    /// The prompt. One token at least, all of them the model's.
    pub tokens: Vec<u32>,
    /// Who asks: owners share no cached prefixes, and take turns.
    pub owner: u64,
    pub max_tokens: usize,
    pub settings: Settings,
    pub seed: u64,
    /// Tokens that end the text; `None` for those of the model.
    pub eos: Option<Vec<u32>>,
    pub stop: Vec<String>,
    /// Added to the logits of tokens.
    pub bias: Vec<(u32, f32)>,
    /// Subtracted from a token's logit for each time that it was generated.
    pub frequency_penalty: f32,
    /// Subtracted from the logits of all tokens that were generated.
    pub presence_penalty: f32,
    /// The number of most likely tokens to name beside each that was chosen.
    pub logprobs: Option<usize>,
    /// Also give the log probabilities of the prompt's tokens.
    pub prompt_logprobs: bool,
    /// What the text must match.
    pub constraint: Option<Constraint>,
    pub events: UnboundedSender<Event>,
}

/// A token, and how likely it was.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub id: u32,
    /// The natural logarithm of its probability, before temperature and penalties.
    pub logprob: f32,
    /// The most likely tokens and their log probabilities, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// What happens to a request.
#[derive(Debug)]
pub(crate) enum Event {
    /// The prompt was read. The log probabilities of its tokens but the first, if they were asked for.
    Read { cached: usize, prompt: Vec<Chosen> },
    /// A token was chosen. The text is what became certain with it, and may be empty.
    Token { text: String, id: u32, chosen: Option<Chosen> },
    /// The text is complete.
    End(Finished),
    /// It failed.
    Failed(String),
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub end: End,
    /// Tokens generated, the one that ended the text not counted.
    pub tokens: usize,
    /// Time in the queue.
    pub waited: Duration,
    /// Time from then until the prompt was read.
    pub prompt_time: Duration,
    /// Time after that.
    pub time: Duration,
}

/// Numbers for `/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub requests: AtomicU64,
    pub failed: AtomicU64,
    pub cancelled: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub cached_tokens: AtomicU64,
    pub tokens: AtomicU64,
    pub steps: AtomicU64,
    pub waiting: AtomicUsize,
    pub running: AtomicUsize,
}

/// A model that is being served. Dropping it stops its thread.
#[derive(Debug)]
pub(crate) struct Engine {
    requests: Mutex<Option<Sender<Waiting>>>,
    pub counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Requests that may wait.
    queue: usize,
    pub slots: usize,
    pub cache: Arc<PrefixCache>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many wait.
    Full,
    /// The server is stopping.
    Stopping,
}

impl Engine {
    /// Allocates all memory of `slots` sequences and the cache, and starts the thread.
    pub(crate) fn start(
        model: &Model,
        slots: usize,
        queue: usize,
        cache_bytes: usize,
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        // The cache counts under a cap as what the batch's owner holds.
        let cache = Arc::new(PrefixCache::new(cache_bytes));
        let batch = model.batch(slots, &options.held(options.held.saturating_add(cache_bytes)))?;
        // Checks the tokenizer and the defaults now.
        model.tokenizer()?;
        let eos = model.generation()?.map_or(Vec::new(), |defaults| defaults.eos.iter().collect());
        let (sender, receiver) = channel();
        let (counters, stop) = (Arc::<Counters>::default(), Arc::<AtomicBool>::default());
        let scheduler = Scheduler {
            batch,
            eos,
            cache: Arc::clone(&cache),
            receiver,
            counters: Arc::clone(&counters),
            stop: Arc::clone(&stop),
            queues: VecDeque::new(),
            slots: (0..slots).map(|_| None).collect(),
            step_time: 0.0,
            token_time: 0.0,
            turn: 0,
        };
        let name = model.clone();
        let thread = std::thread::Builder::new().name("elapid-engine".into()).spawn(move || {
            // The tokenizer borrows from the model: a clone outlives it here.
            if let Ok(tokenizer) = name.tokenizer() {
                scheduler.run(&tokenizer);
            }
        });
        let thread = thread.map_err(|cause| Error::StartThread { thread: 1, threads: 1, cause })?;
        let (requests, thread) = (Mutex::new(Some(sender)), Mutex::new(Some(thread)));
        Ok(Self { requests, counters, stop, thread, queue, slots, cache })
    }

    /// Hands a request to the thread.
    pub(crate) fn submit(&self, request: Request) -> Result<(), Refused> {
        let waiting = &self.counters.waiting;
        if waiting.fetch_add(1, Ordering::Relaxed) >= self.queue {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::Full);
        }
        let sender = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender
            .as_ref()
            .map(|sender| sender.send(Waiting { request: Box::new(request), since: Instant::now() }));
        if !matches!(sent, Some(Ok(()))) {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::Stopping);
        }
        Ok(())
    }

    /// Ends all texts at the next token, and waits for the thread.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.requests.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // If it panicked, its requests have ended.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A request in the queue.
struct Waiting {
    request: Box<Request>,
    since: Instant,
}

/// What tokens mean, and what ends a text.
struct Meaning<'t> {
    tokenizer: &'t Tokenizer<'t>,
    eos: Vec<u32>,
    stop: Vec<String>,
}

impl Rules for Meaning<'_> {
    fn tokenizer(&self) -> &Tokenizer<'_> {
        self.tokenizer
    }
    fn is_end(&self, token: u32) -> bool {
        self.eos.contains(&token)
    }
    fn stops(&self) -> impl Iterator<Item = &str> {
        self.stop.iter().map(String::as_str)
    }
}

/// A sequence that is in use.
struct Running<'t> {
    request: Request,
    meaning: Meaning<'t>,
    text: Generation<Vec<u32>, Vec<u8>>,
    /// The tokens that the state has.
    fed: Vec<u32>,
    /// Where the prompt's next copy is to be kept, besides its end.
    branch: Option<usize>,
    cached: usize,
    prompt: Vec<Chosen>,
    /// How often each token was generated, if a penalty asks for it.
    counts: HashMap<u32, u32>,
    /// The text matches its constraint, and nothing can follow.
    matched: bool,
    waited: Duration,
    began: Instant,
    read: Option<Instant>,
}

impl Running<'_> {
    fn unread(&self) -> usize {
        self.request.tokens.len().saturating_sub(self.fed.len())
    }
}

struct Scheduler {
    batch: Batch,
    eos: Vec<u32>,
    cache: Arc<PrefixCache>,
    receiver: Receiver<Waiting>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    /// Waiting requests by their owners; the front one is next.
    queues: VecDeque<(u64, VecDeque<Waiting>)>,
    slots: Vec<Option<()>>,
    /// Seconds of a step, on average.
    step_time: f64,
    /// Seconds of a prompt's token, on average.
    token_time: f64,
    turn: u64,
}

fn average(old: f64, new: f64) -> f64 {
    if old == 0.0 { new } else { old + NEWEST * (new - old) }
}

impl Scheduler {
    fn run<'t>(mut self, tokenizer: &'t Tokenizer<'t>) {
        let mut running: Vec<Option<Running<'t>>> = self.slots.iter().map(|_| None).collect();
        loop {
            let idle = running.iter().all(Option::is_none) && self.queues.is_empty();
            if !self.receive(idle) && idle {
                return;
            }
            if self.stop.load(Ordering::Relaxed) {
                return self.end_all(&mut running);
            }
            self.leave(&mut running);
            self.admit(&mut running, tokenizer);
            self.step(&mut running);
            self.read(&mut running);
            let busy = running.iter().flatten().count();
            self.counters.running.store(busy, Ordering::Relaxed);
        }
    }

    /// Takes new requests, and waits for one if there is nothing to do. False if there will be no more.
    fn receive(&mut self, wait: bool) -> bool {
        if wait {
            self.counters.running.store(0, Ordering::Relaxed);
            match self.receiver.recv() {
                Ok(request) => self.enqueue(request),
                Err(_) => return false,
            }
        }
        loop {
            match self.receiver.try_recv() {
                Ok(request) => self.enqueue(request),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn enqueue(&mut self, request: Waiting) {
        let owner = request.request.owner;
        match self.queues.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, queue)) => queue.push_back(request),
            None => self.queues.push_back((owner, VecDeque::from([request]))),
        }
    }

    /// The next request whose reader is there: owners take turns.
    fn next(&mut self) -> Option<Waiting> {
        loop {
            let (owner, mut queue) = self.queues.pop_front()?;
            let request = queue.pop_front();
            if !queue.is_empty() {
                self.queues.push_back((owner, queue));
            }
            let request = request?;
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            if !request.request.events.is_closed() {
                return Some(request);
            }
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives free places to waiting requests.
    fn admit<'t>(&mut self, running: &mut [Option<Running<'t>>], tokenizer: &'t Tokenizer<'t>) {
        for slot in 0..running.len() {
            while running[slot].is_none() {
                let Some(Waiting { request, since }) = self.next() else { return };
                self.counters.requests.fetch_add(1, Ordering::Relaxed);
                match self.begin(slot, *request, since, tokenizer) {
                    Ok(begun) => running[slot] = Some(begun),
                    Err((events, error)) => fail(&self.counters, &events, error),
                }
            }
        }
    }

    fn begin<'t>(
        &mut self,
        slot: usize,
        request: Request,
        since: Instant,
        tokenizer: &'t Tokenizer<'t>,
    ) -> Result<Running<'t>, (UnboundedSender<Event>, String)> {
        let began = Instant::now();
        let sampler = match Sampler::new(request.settings, request.seed) {
            Ok(sampler) => sampler,
            Err(error) => return Err((request.events, error.to_string())),
        };
        let prefix = if request.prompt_logprobs {
            self.batch.clear(slot).map(|()| (0, None))
        } else {
            let prefix = self.cache.begin(&mut self.batch, slot, request.owner, &request.tokens);
            prefix.map(|prefix| (prefix.cached, prefix.branch))
        };
        let (cached, branch) = match prefix {
            Ok(prefix) => prefix,
            Err(error) => return Err((request.events, error.to_string())),
        };
        let held = vec![0; held_bytes(request.stop.iter().map(String::as_str))];
        let history = vec![0; if request.settings.repeat_penalty == 1.0 { 0 } else { PENALTY_WINDOW }];
        let mut text = Generation::with_sampler(sampler, request.max_tokens, history, held);
        text.prompt(&request.tokens);
        text.fed(cached);
        self.counters.prompt_tokens.fetch_add(request.tokens.len() as u64, Ordering::Relaxed);
        self.counters.cached_tokens.fetch_add(cached as u64, Ordering::Relaxed);
        let meaning = Meaning {
            tokenizer,
            eos: request.eos.clone().unwrap_or_else(|| self.eos.clone()),
            stop: request.stop.clone(),
        };
        let fed = request.tokens[..cached].to_vec();
        let waited = began - since;
        let (prompt, counts) = (Vec::new(), HashMap::new());
        let mut begun = Running {
            request,
            meaning,
            text,
            fed,
            branch,
            cached,
            prompt,
            counts,
            matched: false,
            waited,
            began,
            read: None,
        };
        if begun.unread() == 0
            && let Err(error) = self.first(&mut begun)
        {
            return Err((begun.request.events, error));
        }
        Ok(begun)
    }

    /// Gives back the places of those whose readers have left, and of texts that are complete.
    fn leave(&mut self, running: &mut [Option<Running<'_>>]) {
        for (slot, place) in running.iter_mut().enumerate() {
            let Some(text) = place else { continue };
            let end = match text.text.next(&text.request.tokens) {
                Next::End(end) => Some(end),
                _ => None,
            };
            if let Some(end) = end {
                // What follows in a conversation goes on from here. That there is no memory for a copy is no failure.
                let _ = self.cache.keep_in(&mut self.batch, slot, text.request.owner, &text.fed);
                finish(text, end);
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
        let mut tokens = Vec::new();
        for (slot, place) in running.iter().enumerate() {
            if let Some(text) = place
                && text.unread() == 0
                && let Next::Feed(&[token]) = text.text.next(&text.request.tokens)
            {
                tokens.push((slot, token));
            }
        }
        if tokens.is_empty() {
            return;
        }
        let start = Instant::now();
        let mut time = Duration::ZERO;
        let (batch, counters) = (&mut self.batch, &self.counters);
        let mut fed = tokens.iter().map(|(_, token)| *token);
        let stepped = std::thread::scope(|scope| {
            // The masks of constrained texts are computed while the weights are read.
            let mut masks = spawn_masks(scope, running, &tokens);
            batch.step(&tokens, |slot, logits| {
                if time.is_zero() {
                    time = start.elapsed();
                }
                for (slot, constraint) in masks.take().and_then(|masks| masks.join().ok()).unwrap_or_default()
                {
                    if let Some(text) = running[slot].as_mut() {
                        text.request.constraint = Some(constraint);
                    }
                }
                let (Some(text), Some(token)) = (running[slot].as_mut(), fed.next()) else { return Ok(()) };
                text.fed.push(token);
                text.text.fed(1);
                match choose(text, logits) {
                    Ok(()) => {
                        counters.tokens.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        fail(counters, &text.request.events, error);
                        running[slot] = None;
                    }
                }
                Ok::<(), Error>(())
            })
        });
        self.counters.steps.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = stepped {
            for (slot, _) in tokens {
                self.give_up(slot, running, error.to_string());
            }
            return;
        }
        self.step_time = average(self.step_time, time.as_secs_f64());
    }

    /// Fails a request, and empties its sequence.
    fn give_up(&mut self, slot: usize, running: &mut [Option<Running<'_>>], error: String) {
        if let Some(text) = running[slot].take() {
            fail(&self.counters, &text.request.events, error);
        }
        // There is such a sequence.
        let _ = self.batch.clear(slot);
    }

    /// A slice of one prompt.
    fn read(&mut self, running: &mut [Option<Running<'_>>]) {
        let reading = || {
            running
                .iter()
                .enumerate()
                .filter_map(|(slot, place)| Some((slot, place.as_ref()?)))
                .filter(|(_, text)| text.unread() > 0)
        };
        self.turn += 1;
        // Short prompts don't wait behind long ones, nor long ones for ever.
        let next = if self.turn.is_multiple_of(2) {
            reading().min_by_key(|(_, text)| text.began)
        } else {
            reading().min_by_key(|(_, text)| text.unread())
        };
        let Some((slot, _)) = next else { return };
        let writing = running.iter().flatten().any(|text| text.unread() == 0);
        let Some(text) = running[slot].as_mut() else { return };
        let chunk = self.batch.chunk();
        let most = if writing && self.token_time > 0.0 {
            ((self.step_time / self.token_time) as usize).clamp(LEAST_SLICE.min(chunk), chunk)
        } else {
            chunk
        };
        let at = text.fed.len();
        let spaced = (at / SPACING + 1) * SPACING;
        let keep = text.branch.filter(|branch| *branch > at).unwrap_or(usize::MAX).min(spaced);
        let end = (at + most).min(keep).min(text.request.tokens.len());
        let start = Instant::now();
        let outcome = self.feed(slot, text, at..end);
        self.token_time = average(self.token_time, start.elapsed().as_secs_f64() / (end - at) as f64);
        let kept = outcome.and_then(|()| {
            if (end == keep || text.unread() == 0) && !text.request.prompt_logprobs {
                self.cache.keep_in(&mut self.batch, slot, text.request.owner, &text.fed)?;
            }
            Ok(())
        });
        let outcome = kept.map_err(|error| error.to_string());
        let outcome = outcome.and_then(|()| if text.unread() == 0 { self.first(text) } else { Ok(()) });
        if let Err(error) = outcome {
            self.give_up(slot, running, error);
        }
    }

    /// Feeds a part of a prompt.
    fn feed(
        &mut self,
        slot: usize,
        text: &mut Running<'_>,
        part: std::ops::Range<usize>,
    ) -> Result<(), Error> {
        let tokens = &text.request.tokens;
        if text.request.prompt_logprobs {
            let (top, prompt, tokenizer) =
                (text.request.logprobs.unwrap_or(0), &mut text.prompt, text.meaning.tokenizer);
            for from in part.clone().step_by(ROWS) {
                let some = &tokens[from..part.end.min(from + ROWS)];
                self.batch.feed_each(slot, some, |place, logits| {
                    if let Some(next) = tokens.get(from + place + 1) {
                        let mut logits = logits.to_vec();
                        tokenizer.mask(&mut logits);
                        prompt.push(likelihood(&logits, *next, top));
                    }
                    Ok::<(), Error>(())
                })?;
            }
        } else {
            self.batch.feed(slot, &tokens[part.clone()])?;
        }
        text.fed.extend(&tokens[part.clone()]);
        text.text.fed(part.len());
        Ok(())
    }

    /// The first token after a prompt, by the logits that the batch has.
    fn first(&mut self, text: &mut Running<'_>) -> Result<(), String> {
        text.read = Some(Instant::now());
        let prompt = std::mem::take(&mut text.prompt);
        // A reader that has left is seen at the next step.
        let _ = text.request.events.send(Event::Read { cached: text.cached, prompt });
        if let Next::Choose = text.text.next(&text.request.tokens) {
            if let Some(constraint) = &mut text.request.constraint {
                constraint.prepare();
            }
            let logits = self.batch.logits().map_err(|error| error.to_string())?;
            choose(text, logits)?;
            self.counters.tokens.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends everything: what was generated until now is complete.
    fn end_all(&mut self, running: &mut [Option<Running<'_>>]) {
        while let Some(Waiting { request, .. }) = self.next() {
            let _ = request.events.send(Event::Failed("the server is stopping: ask again later".into()));
        }
        for text in running.iter_mut().flatten() {
            let mut rest = String::new();
            text.text.interrupt(&text.meaning, &mut |text| rest.push_str(text));
            if !rest.is_empty() {
                let _ = text.request.events.send(Event::Token { text: rest, id: u32::MAX, chosen: None });
            }
            finish(text, End::Interrupted);
        }
    }
}

/// The thread that computes masks, and returns the constraints.
type Masks<'s> = std::thread::ScopedJoinHandle<'s, Vec<(usize, Constraint)>>;

/// Takes the constraints of the texts that step, so that another thread can compute their masks.
fn spawn_masks<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    running: &mut [Option<Running<'_>>],
    tokens: &[(usize, u32)],
) -> Option<Masks<'s>> {
    let constraint =
        |(slot, _): &(usize, u32)| Some((*slot, running[*slot].as_mut()?.request.constraint.take()?));
    let mut constraints: Vec<_> = tokens.iter().filter_map(constraint).collect();
    (!constraints.is_empty()).then(|| {
        scope.spawn(move || {
            constraints.iter_mut().for_each(|(_, constraint)| constraint.prepare());
            constraints
        })
    })
}

fn fail(counters: &Counters, events: &UnboundedSender<Event>, error: String) {
    counters.failed.fetch_add(1, Ordering::Relaxed);
    // A reader that has left needs no reason.
    let _ = events.send(Event::Failed(error));
}

fn finish(text: &Running<'_>, end: End) {
    let read = text.read.unwrap_or(text.began);
    let end = if text.matched { End::Stop } else { end };
    let finished = Finished {
        end,
        tokens: text.text.tokens(),
        waited: text.waited,
        prompt_time: read - text.began,
        time: read.elapsed(),
    };
    // A reader that has left needs none.
    let _ = text.request.events.send(Event::End(finished));
}

/// Chooses the next token of a text, and tells its reader.
fn choose(running: &mut Running<'_>, logits: &mut [f32]) -> Result<(), String> {
    let Running { request, meaning, text, counts, matched, .. } = running;
    meaning.tokenizer.mask(logits);
    let raw = request.logprobs.map(|_| logits.to_vec());
    for (token, bias) in &request.bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    for (token, count) in counts.iter() {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit -= *count as f32 * request.frequency_penalty + request.presence_penalty;
        }
    }
    if let Some(constraint) = &request.constraint {
        constraint.mask(logits)?;
    }
    let mut piece = String::new();
    let token =
        text.choose(meaning, logits, &mut |text| piece.push_str(text)).map_err(|error| error.to_string())?;
    let Some(id) = token else {
        if !piece.is_empty() {
            let _ = request.events.send(Event::Token { text: piece, id: u32::MAX, chosen: None });
        }
        return Ok(());
    };
    if request.frequency_penalty != 0.0 || request.presence_penalty != 0.0 {
        *counts.entry(id).or_default() += 1;
    }
    if let Some(constraint) = &mut request.constraint
        && constraint.advance(id)?
    {
        *matched = true;
        text.interrupt(meaning, &mut |text| piece.push_str(text));
    }
    let chosen = raw.map(|raw| likelihood(&raw, id, request.logprobs.unwrap_or(0)));
    // A reader that has left is seen before the next step.
    let _ = request.events.send(Event::Token { text: piece, id, chosen });
    Ok(())
}

/// How likely a token is by logits, and the `top` most likely ones.
fn likelihood(logits: &[f32], id: u32, top: usize) -> Chosen {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let total = f64::from(largest) + sum.ln();
    let logprob =
        |id: u32| (f64::from(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY)) - total) as f32;
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    for (token, logit) in (0..).zip(logits) {
        if top > 0 && (best.len() < top || best.last().is_some_and(|(_, least)| logit > least)) {
            let place = best.partition_point(|(_, other)| other >= logit);
            best.insert(place, (token, *logit));
            best.truncate(top);
        }
    }
    let top = best.into_iter().map(|(token, _)| (token, logprob(token))).collect();
    Chosen { id, logprob: logprob(id), top }
}
