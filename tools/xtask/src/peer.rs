//! `cargo xtask bench --peer`: Elapid beside llama.cpp, built for this machine, with weights of equal shape.
//!
//! Nothing of llama.cpp is part of this project: its source comes from the Python package index, in the source package of
//! `llama-cpp-python`, and is built with CMake under `target/peer`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::exec::{capture, must, shown};
use crate::models::random_model;
use crate::programs::{Built, Program};
use crate::python::environment;
use crate::toolchain::{Toolchain, root};

/// The release whose copy of llama.cpp is the peer.
const RELEASE: &str = "llama-cpp-python==0.3.36";
/// What the environment needs: to unpack and build the package, and to write files of random weights.
const PYTHON_PACKAGES: [&str; 6] =
    ["cmake", "ninja", "scikit-build-core[pyproject]", "flit_core", "numpy", "gguf"];
/// Our types, and those of the peer they are measured beside.
const PAIRS: [(&str, &str); 2] = [("q8", "Q8_0"), ("q4", "Q4_0")];
/// Tokens prefilled and decoded.
const PREFILL: &str = "512";
const DECODE: &str = "64";
/// Times that each program runs, in turn with the other; medians are shown.
const ROUNDS: usize = 3;

/// Measures `presets` with each number of threads and prints a table in Markdown.
pub fn bench(python: &str, presets: &[String], threads: &[u32]) -> Result<()> {
    let peer = Peer::build(python)?;
    let elapid = Program::Elapid.build()?;
    let mut lines = vec![heading()];
    for preset in presets {
        for (quant, peer_quant) in PAIRS {
            let file = random_model(preset, quant)?;
            let peer_file = peer.random_model(preset, peer_quant)?;
            for threads in threads {
                let row = Row::measure(&elapid, &file, &peer, &peer_file, &threads.to_string())?;
                lines.push(row.line(&format!("{preset} {quant}, {peer_quant}"), *threads));
            }
        }
    }
    println!("\n{}", lines.join("\n"));
    Ok(())
}

/// llama.cpp, built.
struct Peer {
    folder: PathBuf,
    python: PathBuf,
    programs: PathBuf,
}

impl Peer {
    fn build(python: &str) -> Result<Self> {
        let folder = Toolchain::Current.target_dir().join("peer");
        let python_here = environment("peer", python, &PYTHON_PACKAGES)?;
        let bin = python_here.parent().unwrap_or(&folder).to_owned();
        let pip = |words: &[&str]| {
            let mut command = Command::new(&python_here);
            command.args(["-m", "pip", "--disable-pip-version-check", "--quiet"]).args(words);
            command
        };
        let source = folder.join("source");
        if !source.is_dir() {
            // Asked for its metadata the package would build itself; what it needs for that is installed.
            let flags = ["download", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python"];
            must(pip(&flags).arg("--dest").arg(&folder).arg(RELEASE))?;
            let name = format!(
                "{}.tar.gz",
                RELEASE.replace("==", "-").replace("llama-cpp-python", "llama_cpp_python")
            );
            let unpacked = folder.join("unpacked");
            std::fs::create_dir_all(&unpacked).context(|| format!("cannot make {}", unpacked.display()))?;
            must(
                Command::new("tar")
                    .arg("xzf")
                    .arg(folder.join(name))
                    .arg("-C")
                    .arg(&unpacked)
                    .args(["--strip-components", "1"]),
            )?;
            std::fs::rename(&unpacked, &source).context(|| format!("cannot make {}", source.display()))?;
        }
        let build = folder.join("build");
        let in_environment = |program: &str| {
            let mut command = Command::new(bin.join(program));
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path = std::env::join_paths([bin.clone()].into_iter().chain(std::env::split_paths(&path)));
            command.env("PATH", path.unwrap_or_default());
            command
        };
        must(
            in_environment("cmake")
                .arg("-S")
                .arg(source.join("vendor/llama.cpp"))
                .arg("-B")
                .arg(&build)
                .args([
                    "-G",
                    "Ninja",
                    "-DCMAKE_BUILD_TYPE=Release",
                    "-DGGML_NATIVE=ON",
                    "-DLLAMA_CURL=OFF",
                    "-DLLAMA_BUILD_TESTS=OFF",
                    "-DLLAMA_BUILD_EXAMPLES=OFF",
                    "-DLLAMA_BUILD_SERVER=OFF",
                    "-DBUILD_SHARED_LIBS=OFF",
                ]),
        )?;
        must(in_environment("ninja").arg("-C").arg(&build).args(["llama-bench", "llama-quantize"]))?;
        Ok(Self { folder, python: python_here, programs: build.join("bin") })
    }

    /// A file of random weights, quantized by the peer's own program; made once and kept.
    fn random_model(&self, preset: &str, quant: &str) -> Result<PathBuf> {
        let file = self.folder.join(format!("{preset}-{quant}.gguf"));
        if file.is_file() {
            return Ok(file);
        }
        let half = self.folder.join(format!("{preset}-F16.gguf"));
        if !half.is_file() {
            let script = root().join("tools/xtask/peer/random_gguf.py");
            let partial = half.with_extension("part");
            must(Command::new(&self.python).arg(script).arg(preset).arg(&partial))?;
            std::fs::rename(&partial, &half).context(|| format!("cannot make {}", half.display()))?;
        }
        let partial = file.with_extension("part");
        must(Command::new(self.programs.join("llama-quantize")).arg(&half).arg(&partial).arg(quant))?;
        std::fs::rename(&partial, &file).context(|| format!("cannot make {}", file.display()))?;
        Ok(file)
    }

    /// Tokens a second in prefill and in decode.
    fn measure(&self, file: &Path, threads: &str) -> Result<[f64; 2]> {
        let mut command = Command::new(self.programs.join("llama-bench"));
        command.args(["-o", "json", "-r", "1", "-p", PREFILL, "-n", DECODE, "-t", threads, "-m"]).arg(file);
        println!("$ {}", shown(&command));
        let json = capture(&mut command)?;
        let tests = parse(&json)?;
        let rate = |wanted: &str| {
            let test = tests.as_array().and_then(|tests| {
                tests.iter().find(|test| test[wanted].as_u64().is_some_and(|tokens| tokens > 0))
            });
            let rate = test.and_then(|test| test["avg_ts"].as_f64());
            rate.ok_or_else(|| Error::new(format!("llama-bench says no `avg_ts` for a test with `{wanted}`")))
        };
        Ok([rate("n_prompt")?, rate("n_gen")?])
    }
}

fn parse(json: &str) -> Result<Value> {
    serde_json::from_str(json).context(|| format!("a benchmark printed something else than JSON: {json}"))
}

/// What was measured of one model with one number of threads: medians.
struct Row {
    /// Prefill and decode, tokens a second.
    ours: [f64; 2],
    peers: [f64; 2],
    /// Medians of the ratios of runs that came one after the other.
    ratios: [f64; 2],
    /// How much of the machine's read rate our decode reaches.
    of_read_rate: f64,
}

impl Row {
    fn measure(elapid: &Built, file: &Path, peer: &Peer, peer_file: &Path, threads: &str) -> Result<Self> {
        let (mut ours, mut peers, mut of_read_rate) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let arguments = ["-p", PREFILL, "-n", DECODE, "-t", threads, "--json"].map(OsStr::new);
            let command = [OsStr::new("bench"), file.as_os_str()].into_iter().chain(arguments);
            let report = parse(&elapid.output(command)?)?;
            let number = |key: &str| {
                report[key]
                    .as_f64()
                    .ok_or_else(|| Error::new(format!("`elapid bench --json` has no number `{key}`")))
            };
            ours.push([number("prefill_tps")?, number("decode_tps")?]);
            of_read_rate.push(number("ratio")?);
            peers.push(peer.measure(peer_file, threads)?);
        }
        let of = |runs: &[[f64; 2]], i: usize| median(runs.iter().map(|run| run[i]).collect());
        let ratio = |i: usize| median(ours.iter().zip(&peers).map(|(our, peer)| our[i] / peer[i]).collect());
        Ok(Self {
            ours: [of(&ours, 0), of(&ours, 1)],
            peers: [of(&peers, 0), of(&peers, 1)],
            ratios: [ratio(0), ratio(1)],
            of_read_rate: median(of_read_rate),
        })
    }

    fn line(&self, name: &str, threads: u32) -> String {
        let Self { ours, peers, ratios, of_read_rate } = self;
        format!(
            "| {name} | {threads} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} | {of_read_rate:.2} |",
            ours[0], peers[0], ratios[0], ours[1], peers[1], ratios[1]
        )
    }
}

fn heading() -> String {
    let titles = "model, peer's type | threads | prefill, tokens/s | peer's | ratio | decode, tokens/s | peer's | ratio \
                  | of the read rate";
    format!("| {titles} |\n|---|{}", "--:|".repeat(8))
}

/// The middle one; of an even number the upper one of the two.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_row_has_as_many_columns_as_the_heading() {
        let row = Row { ours: [1.0, 2.0], peers: [3.0, 4.0], ratios: [5.0, 6.0], of_read_rate: 0.5 };
        let bars = |line: &str| line.matches('|').count();
        assert_eq!(bars(&row.line("m", 2)), bars(heading().lines().next().unwrap_or_default()));
    }
}
