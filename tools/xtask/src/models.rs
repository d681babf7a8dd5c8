//! `cargo xtask bundle` and `cargo xtask bench`: the models that come with the project, and models to measure.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::exec::must;
use crate::programs::{Built, Program, pack};
use crate::toolchain::{Toolchain, models};

/// The models in `host/models/`, and how each is packed.
const BUNDLED: &[(&str, &str)] = &[("address-4m", "q8"), ("address-300k", "q8")];
/// What `bench` measures: a preset of random weights, and how it is packed.
const MEASURED: &[(&str, &str)] = &[("mamba-130m", "q8"), ("mamba-130m", "q4")];

/// Packs the checkpoints in `checkpoints` into `host/models/`, and verifies the result.
pub fn bundle(checkpoints: &Path) -> Result<()> {
    let packer = Program::Pack.build()?;
    let files = BUNDLED
        .iter()
        .map(|(name, quant)| {
            let folder = checkpoints.join(name);
            if !folder.join("config.json").is_file() {
                return Err(Error::new(format!(
                    "{} holds no checkpoint; say with --from where the folders of {name} and its siblings are",
                    folder.display()
                )));
            }
            let file = models().join(name).with_extension("elp");
            pack(&packer, &[folder.as_os_str()], &file, quant).map(|()| file)
        })
        .collect::<Result<Vec<_>>>()?;
    // Only now: the program carries one of the models.
    let elapid = Program::Elapid.build()?;
    for file in files {
        must(elapid.command().arg("verify").arg(&file))?;
        let size = file.metadata().context(|| format!("cannot find {}", file.display()))?.len();
        println!("{} ({:.2} MB)", file.display(), size as f64 / 1e6);
    }
    Ok(())
}

/// Measures every model of `MEASURED` and prints a table in Markdown.
pub fn bench() -> Result<()> {
    let elapid = Program::Elapid.build()?;
    let mut lines = vec![heading()];
    for (preset, quant) in MEASURED {
        let file = random_model(preset, quant)?;
        lines.push(measure(&elapid, &file, &format!("{preset} {quant}"))?);
    }
    println!("\n{}", lines.join("\n"));
    Ok(())
}

/// A model of random weights, packed once and kept.
pub fn random_model(preset: &str, quant: &str) -> Result<PathBuf> {
    let file = Toolchain::Current.target_dir().join("bench").join(format!("{preset}-{quant}.elp"));
    // A file of an older format is made anew.
    let elapid = Program::Elapid.build()?;
    if !file.is_file() || !elapid.command().arg("verify").arg(&file).status().is_ok_and(|s| s.success()) {
        pack(&Program::Pack.build()?, &["--random".as_ref(), preset.as_ref()], &file, quant)?;
    }
    Ok(file)
}

fn measure(elapid: &Built, file: &Path, name: &str) -> Result<String> {
    let arguments = ["bench".as_ref(), file.as_os_str(), "--json".as_ref()];
    let json = elapid.output(arguments)?;
    let report = serde_json::from_str::<Value>(&json)
        .context(|| format!("`elapid bench --json` printed something else than JSON: {json}"))?;
    line(name, &report)
}

/// A column: its title, the name in the JSON, what to divide by, and the digits after the point.
const COLUMNS: &[(&str, &str, f64, usize)] = &[
    ("prefill, tokens/s", "prefill_tps", 1.0, 1),
    ("decode, tokens/s", "decode_tps", 1.0, 2),
    ("MB a token", "bytes_per_token", 1e6, 1),
    ("read, GB/s", "read_gbps", 1.0, 2),
    ("machine, GB/s", "machine_read_gbps", 1.0, 2),
    ("ratio", "ratio", 1.0, 2),
];

fn heading() -> String {
    let titles = COLUMNS.iter().map(|(title, ..)| format!(" {title} |")).collect::<String>();
    format!("| model |{titles}\n|---|{}", "--:|".repeat(COLUMNS.len()))
}

fn line(name: &str, report: &Value) -> Result<String> {
    let mut line = format!("| {name} |");
    for (_, key, unit, digits) in COLUMNS {
        let value = report
            .get(key)
            .and_then(Value::as_f64)
            .ok_or_else(|| Error::new(format!("`elapid bench --json` has no number `{key}`")))?;
        line += &format!(" {:.digits$} |", value / unit);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_becomes_a_line() {
        let report = serde_json::json!({
            "prefill_tps": 812.34, "decode_tps": 60.0, "bytes_per_token": 130_500_000_u64,
            "read_gbps": 7.83, "machine_read_gbps": 10.0, "ratio": 0.783,
        });
        assert_eq!(line("m", &report).unwrap(), "| m | 812.3 | 60.00 | 130.5 | 7.83 | 10.00 | 0.78 |");
        assert_eq!(heading().lines().count(), 2);
    }

    #[test]
    fn a_missing_figure_is_named() {
        let error = line("m", &serde_json::json!({ "prefill_tps": 1.0 })).unwrap_err().to_string();
        assert!(error.contains("`decode_tps`"), "{error}");
    }
}
