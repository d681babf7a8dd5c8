//! `cargo xtask count`: instructions a token on ARM, counted in an emulator, and the limits that they must keep.
//!
//! Counts tell nothing of memory or of stalls, but they don't depend on the machine either: a change of a kernel shows to
//! the last instruction.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, Package, QEMU_USER};
use crate::counter::{COMPILER, Counter};
use crate::cross;
use crate::error::{Error, Result};
use crate::exec::{capture, shown};
use crate::models::random_model;
use crate::toolchain::{AARCH64_LINUX, Toolchain};

const EMULATOR: &str = "qemu-aarch64";
/// The emulator, and a compiler for its plugin.
const NEEDS: [Package; 2] = [QEMU_USER, COMPILER];

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

const WITH_DOT: [Counts; QUANTS.len()] = [at_most(30.0, 17.0), at_most(32.0, 17.0)];

/// Without dot products 1.8 times as much in decoding and 2.2 times in prefill is allowed.
const WITHOUT_DOT: [Counts; QUANTS.len()] =
    [at_most(1.8 * 30.0, 2.2 * 17.0), at_most(1.8 * 32.0, 2.2 * 17.0)];

/// Those of the Raspberry Pi 5, 4 and 3.
const CPUS: &[Cpu] = &[
    Cpu { name: "cortex-a76", limits: WITH_DOT },
    Cpu { name: "cortex-a72", limits: WITHOUT_DOT },
    Cpu { name: "cortex-a53", limits: WITHOUT_DOT },
];

/// Counts on every CPU, prints a table in Markdown, and makes an error of a count above its limit.
pub fn count(install: bool) -> Result<()> {
    let mut apt = Apt::new(install);
    let toolchain = Toolchain::for_target(AARCH64_LINUX, &NEEDS, &mut apt)?;
    let counted = Counted {
        counter: Counter::build(EMULATOR.as_ref())?,
        program: cross::build(toolchain, AARCH64_LINUX)?,
    };
    let models = QUANTS.iter().map(|quant| random_model(PRESET, quant)).collect::<Result<Vec<_>>>()?;
    let mut lines = vec![heading()];
    let mut above = Vec::new();
    for cpu in CPUS {
        let counts =
            models.iter().map(|model| counted.counts(cpu.name, model)).collect::<Result<Vec<_>>>()?;
        lines.push(line(cpu.name, &counts));
        above.extend(broken(cpu, &counts));
    }
    println!("\nMillions of instructions a token, {PRESET}, one thread:\n\n{}", lines.join("\n"));
    if above.is_empty() { Ok(()) } else { Err(Error::new(above.join("; "))) }
}

/// The program, with its instructions counted.
struct Counted {
    counter: Counter,
    program: PathBuf,
}

impl Counted {
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
        let mut command = Command::new(EMULATOR);
        // A program's threads wait by sleeping: nothing is left out.
        self.counter.attach(&mut command, &(0..0)).args(["-cpu", cpu]);
        command.arg(&self.program).arg("bench").arg(model);
        command.args(["-t", "1", "-p", &prompt.to_string(), "-n", &tokens.to_string(), "--json"]);
        println!("$ {}", shown(&command));
        capture(&mut command)?;
        self.counter.cores().map(|counts| counts.iter().sum())
    }
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
