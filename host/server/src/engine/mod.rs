//! A model that is served: requests go in, events come out. One thread for each model computes them ([`scheduler`]).

mod likelihood;
mod scheduler;
mod text;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use elapid::core::generate::End;
use elapid::core::sample::Settings;
use elapid::{Constraint, Error, Model, PrefixCache, SessionOptions};
use tokio::sync::mpsc::UnboundedSender;

pub(crate) use likelihood::Chosen;
use scheduler::Scheduler;

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

/// What happens to a request.
#[derive(Debug)]
pub(crate) enum Event {
    /// The prompt was read. The log probabilities of its tokens but the first, if they were asked for.
    Read { cached: usize, prompt: Vec<Chosen> },
    /// More text, which may be empty: what became certain when a token was chosen, and the token if log probabilities were asked for.
    Text { text: String, chosen: Option<Chosen> },
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
    /// Allocates all memory of `slots` sequences, beside the cache, and starts the thread.
    pub(crate) fn start(
        model: &Model,
        slots: usize,
        queue: usize,
        cache: PrefixCache,
        options: &SessionOptions,
        on_warning: fn(&Error),
    ) -> Result<Self, Error> {
        let cache = Arc::new(cache);
        // Under a memory cap, the cache's budget counts as memory that the batch's owner holds.
        let batch = model.batch(slots, &options.held(options.held.saturating_add(cache.budget())))?;
        // Checks the tokenizer and the defaults now.
        model.text_rules(None, Vec::new())?;
        let (sender, receiver) = channel();
        let (counters, stop) = (Arc::<Counters>::default(), Arc::<AtomicBool>::default());
        let (kept, counted, stopping) = (Arc::clone(&cache), Arc::clone(&counters), Arc::clone(&stop));
        let scheduler = Scheduler::new(batch, kept, receiver, counted, stopping, on_warning);
        let model = model.clone();
        let thread = std::thread::Builder::new().name("elapid-engine".into());
        let thread = thread.spawn(move || scheduler.run(&model));
        let thread = thread.map_err(|cause| Error::StartThread { thread: 1, threads: 1, cause })?;
        let (requests, thread) = (Mutex::new(Some(sender)), Mutex::new(Some(thread)));
        Ok(Self { requests, counters, stop, thread, queue, cache })
    }

    /// Hands a request to the thread, unless too many wait.
    pub(crate) fn submit(&self, request: Request) -> Result<(), Refused> {
        let waiting = &self.counters.waiting;
        if waiting.fetch_add(1, Ordering::Relaxed) >= self.queue {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::Full);
        }
        self.send(request)
    }

    /// Hands another text after a prompt that was accepted to the thread.
    pub(crate) fn submit_another(&self, request: Request) -> Result<(), Refused> {
        self.counters.waiting.fetch_add(1, Ordering::Relaxed);
        self.send(request)
    }

    /// Hands a request that counts as waiting to the thread.
    fn send(&self, request: Request) -> Result<(), Refused> {
        let sender = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender
            .as_ref()
            .map(|sender| sender.send(Waiting { request: Box::new(request), since: Instant::now() }));
        if !matches!(sent, Some(Ok(()))) {
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::Stopping);
        }
        Ok(())
    }

    /// Takes no more requests, and ends all texts at the next token.
    pub(crate) fn stop(&self) {
        drop(self.requests.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.stop.store(true, Ordering::Release);
    }

    /// Waits for the thread, which saves what is cached before it ends.
    pub(crate) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // If it panicked, its requests have ended.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

/// A request in the queue.
struct Waiting {
    request: Box<Request>,
    since: Instant,
}
