//! Steps eight sessions of one model in threads of its own: `cargo run --release -p elapid --example sessions`
//!
//! A session owns its memory, so it moves to whichever thread is free. Each gives the text that it gives alone.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use elapid::{Error, GenerateOptions, Model, ModelOptions, Session, SessionOptions};

const SESSIONS: usize = 8;
const THREADS: usize = 4;
/// Turns of each session, and tokens of a turn.
const TURNS: usize = 3;
const TOKENS: usize = 12;

/// A session on its way through the pool: its number, how many turns are left, and its text so far.
struct Job {
    number: usize,
    turns: usize,
    session: Session,
    next: Vec<u32>,
    text: String,
}

/// Generates a few tokens. Where the last one has not been fed, it is the next turn's prompt.
fn turn(job: &mut Job) -> Result<(), Error> {
    let options = GenerateOptions::default().max_tokens(TOKENS).seed((job.number * TURNS + job.turns) as u64);
    let mut last = None;
    let mut generation = job.session.generate(&job.next, &options)?;
    for piece in &mut generation {
        let piece = piece?;
        job.text.push_str(&piece.text);
        last = piece.tokens.last().copied().or(last);
    }
    let made = generation.generated();
    job.next = last.into_iter().filter(|_| made.fed < job.next.len() + made.tokens).collect();
    job.turns -= 1;
    Ok(())
}

/// A thread of the pool: takes whichever session is ready, and hands it on.
fn work(ready: &Mutex<Receiver<Job>>, done: &Sender<Result<Job, Error>>) {
    while let Ok(mut job) = { ready.lock().map_or_else(|bad| bad.into_inner().recv(), |jobs| jobs.recv()) } {
        if done.send(turn(&mut job).map(|()| job)).is_err() {
            return;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // One thread computes each step: here sessions run side by side, not the rows of a matrix.
    let model = Model::bundled(&ModelOptions::default().threads(1))?;
    let prompt = model.encode("My fellow citizens")?;
    let (send, ready) = channel();
    let (done, results) = channel();
    for number in 0..SESSIONS {
        let session = model.session(&SessionOptions::default())?;
        send.send(Job { number, turns: TURNS, session, next: prompt.clone(), text: String::new() })?;
    }
    let ready = Mutex::new(ready);
    thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
        for _ in 0..THREADS {
            let (ready, done) = (&ready, done.clone());
            scope.spawn(move || work(ready, &done));
        }
        // When it is dropped, at the end or by an error, the threads end.
        let send = send;
        let mut left = SESSIONS;
        while left > 0 {
            let job = results.recv()??;
            if job.turns > 0 && !job.next.is_empty() {
                send.send(job)?;
            } else {
                println!("{}: My fellow citizens{}", job.number, job.text.replace('\n', " "));
                left -= 1;
            }
        }
        Ok(())
    })
}
