//! How well a slow drive is kept busy: a model streamed from a file whose rate is limited, for the rates of boards' storage.
//!
//! ```text
//! cargo run --release -p elapid-tests --example throttled -- MODEL.elp CAP_IN_MIB [SECONDS]
//! ```
//! Prints for each rate what only reading reaches, what generating reaches, and how much of the former that is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use elapid::{Model, ModelOptions, Ram, SessionOptions, Storage};
use elapid_tests::storage::Throttled;

/// Bytes a second of an SD card in a Pi Zero 2 W or 3, a Pi 4, a Pi 5, and of NVMe on a Pi 5's one lane.
const RATES: [f64; 4] = [23e6, 45e6, 90e6, 450e6];

struct Plain(File);

impl Storage for Plain {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, cap, seconds @ ..] = &arguments[..] else {
        return Err("give a model, a cap in MiB, and how many seconds each rate may take".into());
    };
    let cap = Ram::Bytes(cap.parse::<u64>()? << 20);
    let seconds = Duration::from_secs_f64(seconds.first().map_or(Ok(8.0), |text| text.parse())?);
    println!("| limit, MB/s | only reading, MB/s | generating, MB/s | of the limit | of reading | tokens |");
    println!("|--:|--:|--:|--:|--:|--:|");
    for rate in RATES {
        let storage = Arc::new(Throttled::new(Plain(File::open(path)?), rate));
        let options = ModelOptions::default().ram(cap);
        let model = Model::open_storage(path, storage, &options)?;
        let mut session = model.session(&SessionOptions::default())?;
        // What stays in memory comes with the first token.
        session.feed(&[1])?;
        session.logits()?;
        let (bytes, time) = session.skim(Duration::MAX)?;
        let reading = bytes as f64 / time.as_secs_f64();
        let (start, before, mut tokens) = (Instant::now(), session.read_bytes(), 0u32);
        while tokens == 0 || start.elapsed() < seconds {
            session.feed(&[2 + tokens])?;
            session.logits()?;
            tokens += 1;
        }
        let generating = (session.read_bytes() - before) as f64 / start.elapsed().as_secs_f64();
        let percent = |part: f64, whole: f64| 100.0 * part / whole;
        println!(
            "| {:.0} | {:.1} | {:.1} | {:.1}% | {:.1}% | {tokens} |",
            rate / 1e6,
            reading / 1e6,
            generating / 1e6,
            percent(generating, rate),
            percent(generating, reading)
        );
    }
    Ok(())
}
