//! `cargo xtask figures`: runs what the figures of docs/ show, keeps the data beside them, and draws them.

mod draw;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::programs::{Built, Program, pack};
use crate::toolchain::{Toolchain, models, root};
use draw::{Axis, Chart, Series};

/// Tokens of the long generation.
const LONG: u64 = 131_072;
/// Lengths of prompts.
const PROMPTS: [u64; 7] = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000];
/// Caps for the 7B model.
const CAPS: [&str; 8] = ["64M", "128M", "256M", "512M", "1G", "2G", "3G", "5G"];
/// What is measured, in the order in which it is.
pub const FIGURES: [&str; 3] = ["long", "prompt", "cap"];

/// Measures the figures of `only` (all if it is empty), unless `draw_only`, and draws all whose data is there. `large` is a packed
/// falcon-mamba-7b; a random one is made if it is left out. `threads` is how many compute; all cores if it is left out.
pub fn figures(only: &[String], draw_only: bool, large: Option<&Path>, threads: Option<u16>) -> Result<()> {
    if let Some(unknown) = only.iter().find(|name| !FIGURES.contains(&name.as_str())) {
        return Err(Error::new(format!("no figure named {unknown}: choose of {}", FIGURES.join(", "))));
    }
    let folder = root().join("docs/figures");
    std::fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
    let wanted = |name: &str| !draw_only && (only.is_empty() || only.iter().any(|o| o == name));
    if FIGURES.into_iter().any(wanted) {
        let bench = Bench { elapid: Program::Elapid.build()?, threads };
        if wanted("long") {
            write(&folder, "long", &long(&bench)?)?;
        }
        if wanted("prompt") {
            write(&folder, "prompt", &prompt(&bench)?)?;
        }
        if wanted("cap") {
            write(&folder, "cap", &cap(&bench, large)?)?;
        }
    }
    type Draw = fn(&Value) -> Result<Vec<Chart>>;
    let draws: [(&str, Draw); 3] = [("long", long_charts), ("prompt", prompt_charts), ("cap", cap_charts)];
    for (name, charts) in draws {
        let data = folder.join(format!("{name}.json"));
        let Ok(text) = std::fs::read_to_string(&data) else {
            println!("skipped: {name}: not measured yet (cargo xtask figures --only {name})");
            continue;
        };
        let value = serde_json::from_str(&text).context(|| format!("{} is not JSON", data.display()))?;
        let picture = folder.join(format!("{name}.svg"));
        draw::draw(&picture, &charts(&value)?)?;
        println!("drew {}", picture.display());
    }
    Ok(())
}

fn write(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let path = folder.join(format!("{name}.json"));
    let text = format!("{value:#}\n");
    std::fs::write(&path, text).context(|| format!("cannot write {}", path.display()))
}

/// The program that is measured.
struct Bench {
    elapid: Built,
    threads: Option<u16>,
}

impl Bench {
    fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Value> {
        let text = self.elapid.output(arguments)?;
        serde_json::from_str(&text)
            .context(|| format!("`elapid --json` printed something else than JSON: {text}"))
    }

    /// What `elapid info` says of a model.
    fn info(&self, file: &Path) -> Result<Value> {
        self.json(["info".as_ref(), file.as_os_str(), "--json".as_ref()])
    }

    /// What `elapid bench` measures of a model.
    fn run(&self, file: &Path, options: &[&str]) -> Result<Value> {
        let threads = self.threads.map(|threads| threads.to_string());
        let threads = threads.as_deref().map_or(vec![], |threads| vec!["-t", threads]);
        let options = options.iter().chain(&threads).map(OsStr::new);
        self.json(["bench".as_ref(), file.as_os_str(), "--json".as_ref()].into_iter().chain(options))
    }
}

fn bundled() -> PathBuf {
    models().join("address-4m.elp")
}

/// A random model in the target folder, made if it is not there.
fn random(preset: &str, quant: &str) -> Result<PathBuf> {
    let file = Toolchain::Current.target_dir().join("bench").join(format!("{preset}-{quant}.elp"));
    if !file.is_file() {
        pack(&Program::Pack.build()?, &["--random".as_ref(), preset.as_ref()], &file, quant)?;
    }
    Ok(file)
}

fn long(bench: &Bench) -> Result<Value> {
    let mut runs = Vec::new();
    for (name, file) in [("bundled", bundled()), ("mamba-130m, q4", random("mamba-130m", "q4")?)] {
        let run = bench.run(&file, &["--long", &LONG.to_string()])?;
        runs.push(json!({ "model": name, "config": bench.info(&file)?["config"], "run": run }));
    }
    Ok(json!({ "tokens": LONG, "runs": runs }))
}

fn prompt(bench: &Bench) -> Result<Value> {
    let mut runs = Vec::new();
    for length in PROMPTS {
        runs.push(bench.run(&bundled(), &["-n", "1", "-p", &length.to_string()])?);
    }
    Ok(json!({ "model": "bundled", "config": bench.info(&bundled())?["config"], "runs": runs }))
}

fn cap(bench: &Bench, large: Option<&Path>) -> Result<Value> {
    let file = large.map_or_else(|| random("falcon-mamba-7b", "q4"), |file| Ok(file.into()))?;
    let mut runs = Vec::new();
    for cap in CAPS {
        runs.push(bench.run(&file, &["-p", "8", "-n", "3", "--ram", cap])?);
    }
    Ok(json!({ "model": "falcon-mamba-7b, q4", "runs": runs }))
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value
        .get(key)
        .and_then(Value::as_f64)
        .ok_or_else(|| Error::new(format!("the data has no number `{key}`")))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value
        .get(key)
        .and_then(Value::as_array)
        .ok_or_else(|| Error::new(format!("the data has no list `{key}`")))
}

/// Bytes a token that a transformer of the same size keeps: keys and values in f16, of half as many layers (one of its layers
/// has the parameters of two of Mamba's), without grouping.
fn cache_bytes(config: &Value) -> Result<f64> {
    Ok(2.0 * 2.0 * number(config, "d_model")? * number(config, "n_layer")? / 2.0)
}

const MB: f64 = 1e6;

fn long_charts(data: &Value) -> Result<Vec<Chart>> {
    let mut memory = Chart::new("memory while generating", Axis::linear("tokens generated"), Axis::log("MB"));
    let mut speed =
        Chart::new("speed while generating", Axis::linear("tokens generated"), Axis::log("tokens/s"));
    for (colour, run) in list(data, "runs")?.iter().enumerate() {
        let name = run["model"].as_str().unwrap_or("?");
        let samples = list(&run["run"], "samples")?;
        let cache = cache_bytes(&run["config"])?;
        let file = number(&run["run"], "file_bytes")?;
        let (mut resident, mut transformer, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for pair in samples.windows(2) {
            let tokens = number(&pair[1], "tokens")?;
            rates.push((tokens, number(&pair[1], "tps")?));
            resident.push((tokens, number(&pair[1], "resident_bytes")? / MB));
            transformer.push((tokens, (file + cache * tokens) / MB));
        }
        memory.series.push(Series { name: name.into(), points: resident, dashed: false, colour });
        let name = "transformer of its size".into();
        memory.series.push(Series { name, points: transformer, dashed: true, colour });
        let name = run["model"].as_str().unwrap_or("?").into();
        speed.series.push(Series { name, points: rates, dashed: false, colour });
    }
    Ok(vec![memory, speed])
}

fn prompt_charts(data: &Value) -> Result<Vec<Chart>> {
    let mut time = Chart::new("reading a prompt", Axis::log("tokens of the prompt"), Axis::log("seconds"));
    let mut memory = Chart::new("memory by then", Axis::log("tokens of the prompt"), Axis::log("peak MB"));
    let (mut seconds, mut peak) = (Vec::new(), Vec::new());
    for run in list(data, "runs")? {
        let tokens = number(run, "prompt_tokens")?;
        seconds.push((tokens, tokens / number(run, "prefill_tps")?));
        peak.push((tokens, number(run, "peak_rss_bytes")? / MB));
    }
    time.series.push(Series { name: "bundled model".into(), points: seconds, dashed: false, colour: 0 });
    // From where the first prompt was: what each further token takes.
    let first = peak.first().copied().unwrap_or_default();
    let further = |each: f64| -> Vec<_> {
        peak.iter().map(|(tokens, _)| (*tokens, first.1 + each * (tokens - first.0) / MB)).collect()
    };
    let ids = Series { name: "4 bytes a token".into(), points: further(4.0), dashed: true, colour: 1 };
    let cache = further(cache_bytes(&data["config"])?);
    let cache = Series { name: "transformer of its size".into(), points: cache, dashed: true, colour: 2 };
    memory.series.push(Series { name: "bundled model".into(), points: peak, dashed: false, colour: 0 });
    memory.series.extend([ids, cache]);
    Ok(vec![time, memory])
}

fn cap_charts(data: &Value) -> Result<Vec<Chart>> {
    let name = data["model"].as_str().unwrap_or("?");
    let mut speed = Chart::new(&format!("{name}: speed"), Axis::log("cap, MB"), Axis::log("tokens/s"));
    let mut memory = Chart::new(&format!("{name}: memory"), Axis::log("cap, MB"), Axis::log("peak MB"));
    let (mut measured, mut promised, mut peak, mut caps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in list(data, "runs")? {
        let cap = number(run, "cap_bytes")? / MB;
        measured.push((cap, number(run, "decode_tps")?));
        if let Ok(tps) = number(run, "promised_tps") {
            promised.push((cap, tps));
        }
        peak.push((cap, number(run, "peak_rss_bytes")? / MB));
        caps.push((cap, cap));
    }
    speed.series.push(Series { name: "measured".into(), points: measured, dashed: false, colour: 0 });
    speed.series.push(Series { name: "predicted".into(), points: promised, dashed: true, colour: 1 });
    memory.series.push(Series { name: "peak".into(), points: peak, dashed: false, colour: 0 });
    memory.series.push(Series { name: "the cap".into(), points: caps, dashed: true, colour: 1 });
    Ok(vec![speed, memory])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_becomes_charts_and_what_lacks_is_named() {
        let run = json!({
            "cap_bytes": 128e6, "decode_tps": 0.2, "promised_tps": 0.21, "peak_rss_bytes": 120e6,
        });
        let charts = cap_charts(&json!({ "model": "m", "runs": [run] })).unwrap();
        assert_eq!(charts[0].series[0].points, [(128.0, 0.2)]);
        assert_eq!(charts[1].series[1].points, [(128.0, 128.0)]);
        let error = cap_charts(&json!({ "runs": [{}] })).err().unwrap().to_string();
        assert!(error.contains("cap_bytes"), "{error}");
        // falcon-mamba-7b beside a transformer of 32 layers: 512 KiB a token.
        let config = json!({ "d_model": 4096, "n_layer": 64 });
        assert_eq!(cache_bytes(&config).unwrap(), f64::from(512 << 10));
    }
}
