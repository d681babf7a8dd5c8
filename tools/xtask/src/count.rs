//! `cargo xtask count`: instructions a token on ARM, counted in an emulator, and the limits that they must keep.
//!
//! Counts tell nothing of memory or of stalls (`cargo xtask cycles` tells of those), but they don't depend on the machine
//! either: a change of a kernel shows to the last instruction.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, Package};
use crate::cross;
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must, shown};
use crate::models::random_model;
use crate::toolchain::{AARCH64_LINUX, Toolchain, root};

/// The emulator, and a compiler for its plugin.
const NEEDS: [Package; 2] =
    [Package { name: "qemu-user", tool: Some("qemu-aarch64") }, Package { name: "gcc", tool: Some("cc") }];

const PRESET: &str = "mamba-130m";
const QUANTS: [&str; 2] = ["q8", "q4"];

/// Millions of instructions a token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counts {
    decode: f64,
    prefill: f64,
}

/// An emulated CPU, and the most that a token may take in each of `QUANTS`.
struct Cpu {
    /// As QEMU calls it.
    name: &'static str,
    limits: [Counts; QUANTS.len()],
}

const fn at_most(decode: f64, prefill: f64) -> Counts {
    Counts { decode, prefill }
}

/// Without dot products 1.8 times as much in decoding and 2.2 times in prefill is allowed.
const CPUS: &[Cpu] = &[
    Cpu { name: "cortex-a76", limits: [at_most(30.0, 17.0), at_most(32.0, 17.0)] },
    Cpu { name: "cortex-a53", limits: [at_most(1.8 * 30.0, 2.2 * 17.0), at_most(1.8 * 32.0, 2.2 * 17.0)] },
];

/// Counts on every CPU, prints a table in Markdown, and makes an error of a count above its limit.
pub fn count(install: bool) -> Result<()> {
    let mut apt = Apt::new(install);
    let toolchain = Toolchain::for_target(AARCH64_LINUX, &NEEDS, &mut apt)?;
    let counter = Counter { plugin: plugin()?, program: cross::build(toolchain)? };
    let models = QUANTS.iter().map(|quant| random_model(PRESET, quant)).collect::<Result<Vec<_>>>()?;
    let mut lines = vec![heading()];
    let mut above = Vec::new();
    for cpu in CPUS {
        let counts =
            models.iter().map(|model| counter.counts(cpu.name, model)).collect::<Result<Vec<_>>>()?;
        lines.push(line(cpu.name, &counts));
        above.extend(broken(cpu, &counts));
    }
    println!("\nMillions of instructions a token, {PRESET}, one thread:\n\n{}", lines.join("\n"));
    if above.is_empty() { Ok(()) } else { Err(Error::new(above.join("; "))) }
}

/// Builds the plugin for the emulator that is installed.
fn plugin() -> Result<PathBuf> {
    let folder = Toolchain::Current.target_dir().join("count");
    std::fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join("count.so");
    let version = capture(Command::new("qemu-aarch64").arg("--version"))?;
    let interface = interface(&version)
        .ok_or_else(|| Error::new(format!("`qemu-aarch64 --version` names no version: {version}")))?;
    must(
        Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", &format!("-DAPI={interface}"), "-o"])
            .arg(&file)
            .arg(root().join("tools/xtask/plugin/count.c")),
    )?;
    Ok(file)
}

/// The plugin interface of a QEMU that says "qemu-aarch64 version 7.2.22 (Debian …)".
fn interface(version: &str) -> Option<u32> {
    let major = version.split("version ").nth(1)?.split('.').next()?.parse::<u32>().ok()?;
    Some(if major < 9 { 1 } else { 2 })
}

struct Counter {
    plugin: PathBuf,
    program: PathBuf,
}

impl Counter {
    /// What a token costs: the difference between two prompts, and between decoding two tokens and one. So what a program
    /// does once (opening and checking the model) drops out.
    fn counts(&self, cpu: &str, model: &Path) -> Result<Counts> {
        let short = self.total(cpu, model, 32, 1)?;
        let long = self.total(cpu, model, 64, 1)?;
        let two = self.total(cpu, model, 32, 2)?;
        let millions = |more: u64, less: u64| (more as f64 - less as f64) / 1e6;
        Ok(Counts { decode: millions(two, short), prefill: millions(long, short) / 32.0 })
    }

    /// Instructions of one run that reads a prompt and then decodes.
    fn total(&self, cpu: &str, model: &Path, prompt: u32, tokens: u32) -> Result<u64> {
        let log = self.plugin.with_extension("log");
        let mut command = Command::new("qemu-aarch64");
        command.args(["-cpu", cpu, "-d", "plugin", "-D"]).arg(&log).arg("-plugin").arg(&self.plugin);
        command.arg(&self.program).arg("bench").arg(model);
        command.args(["-t", "1", "-p", &prompt.to_string(), "-n", &tokens.to_string(), "--json"]);
        println!("$ {}", shown(&command));
        capture(&mut command)?;
        let text = std::fs::read_to_string(&log).context(|| format!("cannot read {}", log.display()))?;
        instructions(&text).ok_or_else(|| Error::new(format!("the plugin counted nothing; it wrote: {text}")))
    }
}

fn instructions(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.strip_prefix("instructions: "))?.trim().parse().ok()
}

fn heading() -> String {
    let titles = QUANTS.map(|quant| format!(" {quant} decode | {quant} prefill |")).concat();
    format!("| CPU |{titles}\n|---|{}", "--:|".repeat(2 * QUANTS.len()))
}

fn line(cpu: &str, counts: &[Counts]) -> String {
    let cells = counts.iter().map(|c| format!(" {:.2} | {:.2} |", c.decode, c.prefill)).collect::<String>();
    format!("| {cpu} |{cells}")
}

/// What is above its limit, in words.
fn broken(cpu: &Cpu, counts: &[Counts]) -> Vec<String> {
    let mut above = Vec::new();
    for ((quant, count), limit) in QUANTS.iter().zip(counts).zip(&cpu.limits) {
        for (what, count, limit) in
            [("decode", count.decode, limit.decode), ("prefill", count.prefill, limit.prefill)]
        {
            // A count of nothing is as wrong as one that is too large.
            if !(count > 0.0 && count <= limit) {
                above.push(format!("{} {quant} {what}: {count:.2} M, the limit is {limit:.2} M", cpu.name));
            }
        }
    }
    above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugins_line_is_found_among_others() {
        assert_eq!(instructions("other\ninstructions: 123456789012\n"), Some(123_456_789_012));
        assert_eq!(instructions("instructions: \n"), None);
        assert_eq!(instructions(""), None);
    }

    #[test]
    fn the_interface_follows_from_the_version() {
        assert_eq!(interface("qemu-aarch64 version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some(1));
        assert_eq!(interface("qemu-aarch64 version 10.0.2"), Some(2));
        assert_eq!(interface("something else"), None);
    }

    #[test]
    fn a_count_above_its_limit_is_named() {
        let cpu = &CPUS[0];
        let good = cpu.limits;
        assert_eq!(broken(cpu, &good), [""; 0]);
        let mut bad = good;
        bad[1].prefill += 0.01;
        bad[0].decode = 0.0;
        let above = broken(cpu, &bad);
        assert_eq!(above.len(), 2);
        assert!(above[0].starts_with("cortex-a76 q8 decode: 0.00 M"), "{above:?}");
        assert!(above[1].starts_with("cortex-a76 q4 prefill: 17.01 M"), "{above:?}");
    }

    #[test]
    fn a_line_has_a_cell_for_each_count() {
        let counts = [Counts { decode: 22.456, prefill: 14.2 }, Counts { decode: 28.0, prefill: 14.5 }];
        assert_eq!(line("c", &counts), "| c | 22.46 | 14.20 | 28.00 | 14.50 |");
        assert_eq!(
            heading().lines().next().unwrap().matches('|').count(),
            line("c", &counts).matches('|').count()
        );
    }
}
