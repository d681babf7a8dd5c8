//! What all interfaces have in common: from what a client wishes to requests of the engine, and their events.

use std::sync::Arc;

use elapid::core::sample::{SampleError, Sampler, Settings};
use elapid::{Grammar, SAMPLING};
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Map, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::app::{App, Served};
use crate::engine::{Engine, Event, Request};
use crate::error::ApiError;

/// The most texts that one request may ask for.
const MOST_CHOICES: usize = 16;
/// The most tokens that can be named beside each that was chosen.
const MOST_LOGPROBS: usize = 20;
/// The most stop texts, and bytes of each.
const MOST_STOPS: usize = 16;
const STOP_BYTES: usize = 1024;

/// How a text is generated, whatever interface asks for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub max_tokens: Option<usize>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub logit_bias: Map<String, Value>,
    pub choices: usize,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: bool,
    pub grammar: Option<Grammar>,
    pub ignore_eos: bool,
}

/// An event of one of the texts that a request asked for.
#[derive(Debug)]
pub(crate) struct Told {
    /// Which of them, from 0.
    pub index: usize,
    pub event: Event,
}

/// Requests that were accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// What happens to them. Dropping it cancels them.
    events: UnboundedReceiver<Told>,
    pub prompts: Vec<Vec<u32>>,
    /// Texts after each prompt.
    pub choices: usize,
}

/// The tokens of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub prompt: usize,
    pub completion: usize,
    pub cached: usize,
}

impl Accepted {
    /// How many texts there will be.
    pub(crate) fn texts(&self) -> usize {
        self.prompts.len() * self.choices
    }

    /// All events, each with the tokens that are counted so far.
    pub(crate) fn stream(self) -> impl Stream<Item = (Told, Usage)> + Send {
        let prompt = self.prompts.iter().map(Vec::len).sum();
        let usage = Usage { prompt, ..Usage::default() };
        let (texts, choices) = (self.texts(), self.choices);
        stream::unfold((self.events, texts, usage), move |(mut events, left, mut usage)| async move {
            if left == 0 {
                return None;
            }
            let told = events.recv().await?;
            match &told.event {
                // Only the first text after a prompt says how much of it was cached.
                Event::Read { cached, .. } if told.index.is_multiple_of(choices) => usage.cached += cached,
                Event::End(finished) => usage.completion += finished.tokens,
                _ => {}
            }
            let ended = matches!(told.event, Event::End(_) | Event::Failed(_));
            Some(((told, usage), (events, left - usize::from(ended), usage)))
        })
    }

    /// Waits for all texts and calls `each` with every event, or returns why one failed.
    pub(crate) async fn each(self, mut each: impl FnMut(usize, Event)) -> Result<Usage, ApiError> {
        let mut events = std::pin::pin!(self.stream());
        let mut usage = Usage::default();
        while let Some((Told { index, event }, so_far)) = events.next().await {
            usage = so_far;
            match event {
                Event::Failed(error) => return Err(ApiError::failed(error)),
                event => each(index, event),
            }
        }
        Ok(usage)
    }
}

/// Runs what takes time on a thread that may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::failed("the request could not be prepared")))
}

impl Wish {
    /// Takes the prompts that `prompts` gives, checks everything, and hands the requests to the model: `choices` texts after each prompt.
    pub(crate) async fn ask(
        self,
        app: &Arc<App>,
        served: &Arc<Served>,
        owner: u64,
        prompts: impl FnOnce(&Served) -> Result<Vec<Vec<u32>>, ApiError> + Send + 'static,
    ) -> Result<Accepted, ApiError> {
        let (app, served) = (Arc::clone(app), Arc::clone(served));
        blocking(move || {
            let prompts = prompts(&served)?;
            self.submit(&app, &served, owner, prompts)
        })
        .await
    }

    fn submit(
        self,
        app: &App,
        served: &Served,
        owner: u64,
        prompts: Vec<Vec<u32>>,
    ) -> Result<Accepted, ApiError> {
        let vocab = served.model.config().vocab;
        let choices = self.choices.max(1);
        if choices.saturating_mul(prompts.len()) > MOST_CHOICES.max(prompts.len()) {
            let message = format!(
                "{} prompts with n = {choices} ask for too many texts: with n above 1, ask for {MOST_CHOICES} at most",
                prompts.len()
            );
            return Err(ApiError::field("n", message));
        }
        let most = app.options.queue + app.options.slots;
        if prompts.len() > most {
            let message = format!("{} prompts are too many: send {most} at most", prompts.len());
            return Err(ApiError::field("prompt", message));
        }
        prompts.iter().try_for_each(|tokens| check_prompt(tokens, vocab, app.options.max_prompt))?;
        let (settings, bias) = (self.settings()?, self.bias(vocab)?);
        let penalty = |name: &str, value: Option<f32>| match value.unwrap_or(0.0) {
            value if (-2.0..=2.0).contains(&value) => Ok(value),
            value => Err(ApiError::field(name, format!("{value} is out of range: it must be -2 to 2"))),
        };
        let (frequency_penalty, presence_penalty) = (
            penalty("frequency_penalty", self.frequency_penalty)?,
            penalty("presence_penalty", self.presence_penalty)?,
        );
        if self.stop.len() > MOST_STOPS || self.stop.iter().any(|stop| stop.len() > STOP_BYTES) {
            return Err(ApiError::field(
                "stop",
                format!("give at most {MOST_STOPS} texts of {STOP_BYTES} bytes"),
            ));
        }
        if self.logprobs.is_some_and(|top| top > MOST_LOGPROBS) {
            return Err(ApiError::field("logprobs", format!("at most {MOST_LOGPROBS} tokens are named")));
        }
        let max_tokens = self.max_tokens.unwrap_or(app.options.max_tokens);
        let seed = self.seed.unwrap_or_else(seed_from_clock);
        let constraint = self.grammar.as_ref().map(|grammar| served.constraint(grammar)).transpose()?;
        let request = |tokens: &[u32], choice: usize| {
            let (events, receiver) = unbounded_channel();
            let request = Request {
                tokens: tokens.to_vec(),
                owner,
                max_tokens,
                settings,
                seed: seed.wrapping_add(choice as u64),
                eos: self.ignore_eos.then(Vec::new),
                stop: self.stop.clone(),
                bias: bias.clone(),
                frequency_penalty,
                presence_penalty,
                logprobs: self.logprobs,
                // The others take what the first one finds.
                prompt_logprobs: self.prompt_logprobs && choice == 0,
                constraint: constraint.clone(),
                events,
            };
            (request, receiver)
        };
        let (sender, events) = unbounded_channel();
        for (prompt, tokens) in prompts.iter().enumerate() {
            let index = prompt * choices;
            let (first, receiver) = request(tokens, 0);
            // A request is taken whole, or not at all.
            if prompt == 0 {
                served.engine.submit(first)?
            } else {
                served.engine.submit_another(first)?
            }
            let others = (1..choices).map(|choice| (index + choice, request(tokens, choice))).collect();
            tokio::spawn(follow(index, receiver, others, Arc::clone(&served.engine), sender.clone()));
        }
        Ok(Accepted { events, prompts, choices })
    }

    /// How tokens are chosen.
    fn settings(&self) -> Result<Settings, ApiError> {
        let settings = Settings {
            temperature: self.temperature.unwrap_or(SAMPLING.temperature),
            top_k: self.top_k.unwrap_or(SAMPLING.top_k),
            top_p: self.top_p.unwrap_or(SAMPLING.top_p),
            min_p: self.min_p.unwrap_or(SAMPLING.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(SAMPLING.repeat_penalty),
        };
        if let Err(SampleError::Setting { name, value, range }) = Sampler::new(settings, 0) {
            return Err(ApiError::field(
                &name.replace('-', "_"),
                format!("{value} is out of range: it must be {range}"),
            ));
        }
        Ok(settings)
    }

    /// What is added to the logits of tokens.
    fn bias(&self, vocab: u32) -> Result<Vec<(u32, f32)>, ApiError> {
        let each = self.logit_bias.iter().map(|(token, bias)| {
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            match (token.parse().ok().filter(|token| *token < vocab), bias) {
                // As OpenAI has it: never.
                (Some(token), Some(-100.0)) => Ok((token, f32::NEG_INFINITY)),
                (Some(token), Some(bias)) => Ok((token, bias as f32)),
                _ => Err(ApiError::field(
                    "logit_bias",
                    format!("{token}: give token ids with numbers from -100 to 100"),
                )),
            }
        });
        each.collect()
    }
}

/// Whether a prompt can be taken.
fn check_prompt(tokens: &[u32], vocab: u32, most: usize) -> Result<(), ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::bad("the prompt is empty: give a word at least"));
    }
    if tokens.len() > most {
        let message = format!("the prompt has {} tokens, and this server takes {most}", tokens.len());
        return Err(ApiError::bad(message).code("context_length_exceeded"));
    }
    match tokens.iter().find(|token| **token >= vocab) {
        Some(token) => {
            let message = format!("the prompt has token {token}, and the model knows 0 to {}", vocab - 1);
            Err(ApiError::bad(message))
        }
        None => Ok(()),
    }
}

/// Forwards the events of the texts after one prompt. The others are asked for when the first one has read it: they go on from there.
async fn follow(
    index: usize,
    receiver: UnboundedReceiver<Event>,
    others: Vec<(usize, (Request, UnboundedReceiver<Event>))>,
    engine: Arc<Engine>,
    sender: UnboundedSender<Told>,
) {
    let first = forward(index, receiver, &sender, true).await;
    let mut tasks = Vec::new();
    for (index, (request, receiver)) in others {
        if sender.is_closed() {
            return;
        }
        match engine.submit_another(request) {
            Ok(()) => {
                let sender = sender.clone();
                tasks.push(tokio::spawn(async move { forward(index, receiver, &sender, false).await }));
            }
            Err(refused) => {
                // A client that has left need not know.
                let _ = sender.send(Told { index, event: Event::Failed(ApiError::from(refused).message) });
            }
        }
    }
    if let Some(rest) = first {
        forward(index, rest, &sender, false).await;
    }
    for task in tasks {
        // A task ends as its request does.
        let _ = task.await;
    }
}

/// Forwards the events of one request. With `once`, only until its prompt was read; returns the receiver of the others.
async fn forward(
    index: usize,
    mut receiver: UnboundedReceiver<Event>,
    sender: &UnboundedSender<Told>,
    once: bool,
) -> Option<UnboundedReceiver<Event>> {
    loop {
        let event = tokio::select! {
            () = sender.closed() => return None,
            event = receiver.recv() => event,
        };
        let Some(event) = event else {
            let event = Event::Failed("the model's thread has ended: restart the server".into());
            let _ = sender.send(Told { index, event });
            return None;
        };
        let (read, last) =
            (matches!(event, Event::Read { .. }), matches!(event, Event::End(_) | Event::Failed(_)));
        if sender.send(Told { index, event }).is_err() || last {
            return None;
        }
        if once && read {
            return Some(receiver);
        }
    }
}

/// A seed that differs from request to request.
fn seed_from_clock() -> u64 {
    // Short enough for every JSON reader.
    crate::clock::now().as_nanos() as u64 & ((1 << 53) - 1)
}
