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
    // The last token of an answer has not been fed: the next prompt begins with it.
    let mut prompt = Vec::new();
    for line in stdin().lines() {
        prompt.extend(model.encode(&format!("{}\n", line?))?);
        for piece in session.generate(&std::mem::take(&mut prompt), &options)? {
            let piece = piece?;
            print!("{}", piece.text);
            stdout().flush()?;
            if let Some(last) = piece.tokens.last() {
                prompt = vec![*last];
            }
        }
        println!();
    }
    Ok(())
}
