//! Goes on with each line that is typed, in one session: `cargo run --release -p elapid --example chat [MODEL.elp]`
use std::io::{Write, stdin, stdout};

use elapid::{GenerateOptions, Model, ModelOptions, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = ModelOptions::default();
    let model = match std::env::args_os().nth(1) {
        Some(path) => Model::open(path.as_ref(), &options)?,
        None => Model::bundled(&options)?,
    };
    let mut session = model.session(&SessionOptions::default())?;
    let options = GenerateOptions::default().max_tokens(60).stop("\n");
    // Where the last token of an answer has not been fed, the next prompt begins with it.
    let mut prompt = Vec::new();
    for line in stdin().lines() {
        prompt.extend(model.encode(&format!("{}\n", line?))?);
        let mut last = None;
        let mut answer = session.generate(&prompt, &options)?;
        for piece in &mut answer {
            let piece = piece?;
            print!("{}", piece.text);
            stdout().flush()?;
            last = piece.tokens.last().copied().or(last);
        }
        println!();
        let made = answer.generated();
        prompt = last.into_iter().filter(|_| made.fed < prompt.len() + made.tokens).collect();
    }
    Ok(())
}
