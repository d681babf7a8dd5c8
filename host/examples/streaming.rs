//! Runs a model within a cap on memory: `cargo run --release -p elapid --example streaming MODEL.elp MIB [PROMPT]`
//!
//! A model that does not fit is read from its file again for every token, and the sessions of the model share the cap.

use std::io::Write;

use elapid::{GenerateOptions, Model, ModelOptions, Ram, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, mib, prompt @ ..] = &arguments[..] else {
        return Err("usage: streaming MODEL.elp MIB [PROMPT]".into());
    };
    let cap = mib.parse::<u64>()? << 20;
    let model = Model::open(path.as_ref(), &ModelOptions::default().ram(Ram::Bytes(cap)))?;
    let options = SessionOptions::default();
    if let Some(plan) = model.plan(&options)? {
        let [kept, streamed] = [plan.pinned_bytes, plan.streamed_bytes].map(|bytes| bytes as f64 / 1e6);
        eprintln!("mapped: {}; {kept:.1} MB of weights kept, {streamed:.1} MB read for a token", plan.mapped);
    }
    let mut session = model.session(&options)?;
    match model.session(&options) {
        Ok(_) => eprintln!("another session fits"),
        Err(error) => eprintln!("no second one: {error}"),
    }
    let prompt = model.encode(prompt.first().map_or("My fellow citizens", String::as_str))?;
    for piece in session.generate(&prompt, &GenerateOptions::default().max_tokens(32))? {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    println!("\n{:.1} MB were read", session.read_bytes() as f64 / 1e6);
    Ok(())
}
