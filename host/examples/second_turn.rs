//! Measures the time from a chat's second message to the first token of its answer, with 10 tokens before it and with 10,000. It should
//! not depend on what came before.
//!
//!     cargo run --release -p elapid --example second_turn [MODEL.elp]

use std::error::Error;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use elapid::{Chat, GenerateOptions, Model, ModelOptions, SessionOptions};

/// Tokens before the second message, about.
const BEFORE: [usize; 2] = [10, 10_000];
const MESSAGE: &str = "And what shall we say of the army, of the navy and of the state of the Treasury?";
const ROUNDS: usize = 41;

fn main() -> Result<(), Box<dyn Error>> {
    let options = ModelOptions::default();
    let model = match std::env::args().nth(1) {
        Some(path) => Model::open(path.as_ref(), &options)?,
        None => Model::bundled(&options)?,
    };
    let mut chats = Vec::new();
    for before in BEFORE {
        let mut chat = Chat::new(model.session(&SessionOptions::default().marks(64 << 20))?)?;
        let sentence = "The people of the United States are at peace. ";
        let each = model.encode(sentence)?.len();
        let read = chat.ask(&sentence.repeat(before.div_ceil(each)), &mut |_| ControlFlow::Continue(()))?;
        first_token(&mut chat)?;
        println!("{} tokens before the second message", read.computed);
        chats.push(chat);
    }
    // In turn, so that both meet the same machine.
    let mut times = [Vec::new(), Vec::new()];
    let mut computed = [0; 2];
    for _ in 0..ROUNDS {
        for ((chat, times), computed) in chats.iter_mut().zip(&mut times).zip(&mut computed) {
            let mut chat = chat.fork()?;
            let start = Instant::now();
            let read = chat.ask(MESSAGE, &mut |_| ControlFlow::Continue(()))?;
            first_token(&mut chat)?;
            times.push(start.elapsed());
            *computed = read.computed;
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let [few, many] = times.each_mut().map(median);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "median of {ROUNDS} times to the first token: {:.2} ms ({} tokens computed) and {:.2} ms ({}), ratio {:.3}",
        ms(few),
        computed[0],
        ms(many),
        computed[1],
        ms(many) / ms(few)
    );
    Ok(())
}

fn first_token(chat: &mut Chat) -> Result<(), elapid::Error> {
    let options = GenerateOptions::default().max_tokens(1);
    chat.answer(&options, |_| Ok::<_, elapid::Error>(ControlFlow::<()>::Continue(())))?;
    Ok(())
}
