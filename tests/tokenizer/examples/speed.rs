//! The speed of the tokenizer and of the `tokenizers` crate, side by side on one thread.
//!
//! ```text
//! cargo run --release -p elapid-tests-tokenizer --features speed --example speed -- TOKENIZER.json TEXT…
//! ```
//! Each side encodes a text five times; the median counts. The crate gets the text in lines, which is what it is fast
//! at, and through `encode_fast`, which leaves offsets out; its cache is warm from the first time on.

use std::time::Instant;

use elapid_core::tokenizer::{Decoder, EncodeOptions, Encoder, Tokenizer};

const ROUNDS: usize = 5;

/// The median time in seconds.
fn median(mut f: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let json = std::fs::read(args.next().ok_or("usage: tokenizer_speed TOKENIZER.json TEXT…")?)?;
    let mut other = tokenizers::Tokenizer::from_bytes(&json)?;
    other.with_truncation(None)?;
    other.with_padding(None);

    let start = Instant::now();
    let table = elapid_pack::tokenizer::compile(&json)?;
    println!("compiled to {} bytes in {:.2} s", table.len(), start.elapsed().as_secs_f64());
    let start = Instant::now();
    let tokenizer = Tokenizer::parse(&table)?;
    println!("checked in {:.2} ms", start.elapsed().as_secs_f64() * 1e3);

    for name in args {
        let text = std::fs::read_to_string(&name)?;
        let mut ids = Vec::new();
        let mut scratch = Vec::new();
        let ours = median(|| {
            ids.clear();
            let mut encoder = Encoder::new(&text, EncodeOptions::default());
            while let Err(elapid_core::tokenizer::TokenizerError::ScratchTooSmall { needed, .. }) =
                encoder.run(&tokenizer, &mut scratch, &mut |id| ids.push(id))
            {
                scratch.resize(needed, 0);
            }
        });
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let mut count = 0;
        let theirs = median(|| {
            count =
                lines.iter().filter_map(|line| other.encode_fast(*line, true).ok()).map(|e| e.len()).sum();
        });
        let mut chars = 0;
        let decoding = median(|| {
            let mut decoder = Decoder::new();
            chars = 0;
            for &id in &ids {
                // Ids that were just encoded are all known.
                let _ = decoder.push(&tokenizer, id, &mut |text| chars += text.len());
            }
        });
        let mb = text.len() as f64 / 1e6;
        println!(
            "{name}: encode {:.1} MB/s, tokenizers {:.2} MB/s: {:.1} times; decode {:.0} MB/s; {} tokens ({count} by lines), {chars} bytes, {} bytes of scratch",
            mb / ours,
            mb / theirs,
            theirs / ours,
            mb / decoding,
            ids.len(),
            scratch.len(),
        );
    }
    Ok(())
}
