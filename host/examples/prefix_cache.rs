//! Replays a trace of 100 conversations that share system prompts, with short foreign requests in between, through a prefix cache of
//! 64 MB: `cargo run --release -p elapid --example prefix_cache`
//!
//! Prints how many requests found a prefix and how many tokens were fed, beside no cache and beside eviction of the least recently used.
//! Answers are made up: what they cost is the same with and without a cache, and is not counted.

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Instant;

use elapid::{Eviction, Model, ModelOptions, PrefixCache, SessionOptions};

const BUDGET: usize = 64_000_000;
const CONVERSATIONS: usize = 100;
/// Conversations that go on at the same time.
const OPEN: usize = 40;
/// Short requests that have nothing to do with any conversation, before each turn.
const FOREIGN: u64 = 8;

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// Some tokens.
    fn text(&mut self, least: u64, most: u64) -> Vec<u32> {
        (0..least + self.below(most - least)).map(|_| self.below(1024) as u32).collect()
    }
}

/// A prompt, and the answer to it.
struct Request {
    prompt: Vec<u32>,
    answer: Vec<u32>,
    /// It is a turn of a conversation.
    turn: bool,
}

struct Conversation {
    /// The system prompt, then the turns.
    parts: Vec<Vec<u32>>,
    turns: u64,
}

/// One in ten turns renders its history otherwise: without the last token of the last answer, or without the first turn. One in twenty
/// is an attempt at the same prompt again.
fn trace() -> Vec<Request> {
    let mut random = Random(7);
    let systems: Vec<Vec<u32>> = (0..5).map(|_| random.text(100, 400)).collect();
    let mut waiting: Vec<Conversation> = (0..CONVERSATIONS)
        .map(|i| Conversation { parts: vec![systems[i % systems.len()].clone()], turns: 3 + random.below(8) })
        .collect();
    let mut open: Vec<Conversation> = Vec::new();
    let mut requests = Vec::new();
    loop {
        while open.len() < OPEN
            && let Some(next) = waiting.pop()
        {
            open.push(next);
        }
        if open.is_empty() {
            return requests;
        }
        for _ in 0..random.below(2 * FOREIGN + 1) {
            requests.push(Request { prompt: random.text(5, 40), answer: random.text(5, 20), turn: false });
        }
        let which = random.below(open.len() as u64) as usize;
        let conversation = &mut open[which];
        match random.below(20) {
            0 => {
                conversation.parts.last_mut().map(Vec::pop);
            }
            1 if conversation.parts.len() > 3 => drop(conversation.parts.drain(1..3)),
            _ => {}
        }
        conversation.parts.push(random.text(10, 60));
        let prompt = conversation.parts.concat();
        let answer = random.text(20, 100);
        if random.below(20) == 0 {
            requests.push(Request { prompt: prompt.clone(), answer: random.text(20, 100), turn: true });
        }
        conversation.parts.push(answer.clone());
        requests.push(Request { prompt, answer, turn: true });
        conversation.turns -= 1;
        if conversation.turns == 0 {
            open.swap_remove(which);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let model = Model::bundled(&ModelOptions::default())?;
    let options = SessionOptions::default();
    let requests = trace();
    let all: usize = requests.iter().map(|request| request.prompt.len()).sum();
    let turns = requests.iter().filter(|request| request.turn).count();
    let foreign: usize =
        requests.iter().filter(|request| !request.turn).map(|request| request.prompt.len()).sum();
    println!(
        "{CONVERSATIONS} conversations with {turns} turns, {} foreign requests of {foreign} tokens",
        requests.len() - turns
    );
    println!("no cache:             {all} tokens fed");
    for (name, eviction) in
        [("least valuable first", Eviction::Value), ("least recent first", Eviction::Recency)]
    {
        let cache = PrefixCache::with_eviction(BUDGET, eviction);
        let start = Instant::now();
        let (mut most, mut hits) = (0, 0);
        for request in &requests {
            let mut session = model.session(&options)?;
            let fed = cache.feed_to(&mut session, &request.prompt, &mut |_| ControlFlow::Continue(()))?;
            hits += usize::from(request.turn && fed.cached > 0);
            session.feed(&request.answer)?;
            cache.keep(&mut session)?;
            most = most.max(cache.stats().bytes);
        }
        let stats = cache.stats();
        println!(
            "{:22}{} tokens fed ({:.1}%), {:.1}% of turns hit, {} copies, at most {:.1} MB, {:.0} s",
            format!("{name}:"),
            stats.computed,
            100.0 * stats.computed as f64 / all as f64,
            100.0 * hits as f64 / turns as f64,
            stats.entries,
            most as f64 / 1e6,
            start.elapsed().as_secs_f64(),
        );
        assert!(most <= BUDGET, "the cache took more than it was given");
    }
    Ok(())
}
