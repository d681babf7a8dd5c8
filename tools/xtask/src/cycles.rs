//! `cargo xtask cycles`: what the inner loops of the ARM kernels take by LLVM's models of the CPUs.
//!
//! The loops are found in the compiled program: innermost ones of the matrix products and the scan. `llvm-mca` then
//! supposes that every load hits the first cache, so its cycles are the least that a loop can take, not what it will.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::apt::{Apt, Package};
use crate::cross;
use crate::error::{Context, Error, Result};
use crate::exec::capture;
use crate::toolchain::{AARCH64_LINUX, Toolchain};

/// A disassembler that knows all of ARM's instructions, and the models.
const NEEDS: [Package; 1] = [Package { name: "llvm", tool: Some("llvm-mca") }];

/// Kernels whose loops are looked at.
struct Kernels {
    /// The type of the instruction set's token.
    token: &'static str,
    /// CPUs as LLVM calls them.
    cpus: &'static [&'static str],
    /// Loops that they have, and the most cycles that each of the CPUs may take. One that is not found was compiled into another
    /// form than [`does`] knows.
    limits: &'static [(&'static str, &'static [f64])],
}

/// A Cortex-A55 issues in order as an A53 does, and LLVM knows it better: what the A53 is said to gain and the A55 not is
/// the model's alone. It has dot products, and so runs the loops with them in earnest.
const KERNELS: [Kernels; 2] = [
    Kernels {
        token: "Neon",
        cpus: &["cortex-a53", "cortex-a55", "cortex-a72"],
        limits: &[
            (ONE_TOKEN_Q8, &[300.0, 350.0, 161.0]),
            (ONE_TOKEN_Q4, &[310.0, 345.0, 165.0]),
            ("many tokens, 2 at once, q8", &[300.0, 300.0, 153.0]),
            ("many tokens, 2 at once, q4", &[240.0, 250.0, 156.0]),
            (SCAN, &[130.0, 105.0, 75.0]),
        ],
    },
    Kernels {
        token: "NeonDot",
        cpus: &["cortex-a55", "cortex-a76"],
        limits: &[
            (ONE_TOKEN_Q8, &[282.0, 92.0]),
            (ONE_TOKEN_Q4, &[287.0, 103.0]),
            ("many tokens, 3 at once", &[126.0, 60.0]),
            (SCAN, &[105.0, 75.0]),
        ],
    },
];

const ROUNDS: usize = 100;

const ONE_TOKEN_Q8: &str = "one token, q8";
const ONE_TOKEN_Q4: &str = "one token, q4";
const SCAN: &str = "scan, a token's state of sixteen channels";

/// Prints tables in Markdown.
///
/// # Errors
/// If the program can't be built or read, or a loop is missing or above its limit.
pub fn cycles(install: bool) -> Result<()> {
    let mut apt = Apt::new(install);
    let toolchain = Toolchain::for_target(AARCH64_LINUX, &NEEDS, &mut apt)?;
    let program = cross::build(toolchain, AARCH64_LINUX)?;
    let mut disassemble = Command::new("llvm-objdump");
    disassemble.args(["-d", "--no-show-raw-insn", "--mattr=+dotprod"]).arg(&program);
    let loops = loops(&capture(&mut disassemble)?);
    println!("\nInstructions and cycles for 1,024 products; of the scan, for what is named:");
    let mut broken = Vec::new();
    for kernels in &KERNELS {
        let Kernels { token, cpus, limits } = kernels;
        println!(
            "\n| {token} | instructions | {} |\n|---|{}",
            cpus.join(" | "),
            "--:|".repeat(cpus.len() + 1)
        );
        // A loop is compiled into several functions.
        let mut printed = Vec::new();
        let mut missing = limits.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        for inner in loops.iter().filter(|inner| inner.token == *token) {
            let cycles = cpus.iter().map(|cpu| Ok(estimate(cpu, &inner.code)? * inner.share));
            let cycles = cycles.collect::<Result<Vec<_>>>()?;
            let cells = cycles.iter().map(|cycles| format!(" {cycles:.0} |")).collect::<String>();
            let line = format!("| {} | {:.0} |{cells}", inner.does, inner.code.len() as f64 * inner.share);
            if printed.contains(&line) {
                continue;
            }
            println!("{line}");
            printed.push(line);
            missing.retain(|name| *name != inner.does);
            broken.extend(kernels.above(&inner.does, &cycles));
        }
        broken.extend(missing.iter().map(|name| format!("no loop of {token} is `{name}`")));
    }
    if broken.is_empty() { Ok(()) } else { Err(Error::new(broken.join("; "))) }
}

impl Kernels {
    /// What is above its limit, in words.
    fn above(&self, does: &str, cycles: &[f64]) -> Vec<String> {
        let limits = self.limits.iter().find(|(name, _)| *name == does).map_or(&[][..], |(_, limits)| limits);
        let cpus = self.cpus.iter().zip(cycles.iter().zip(limits));
        cpus.filter(|(_, (cycles, limit))| cycles.round() > **limit)
            .map(|(cpu, (cycles, limit))| {
                format!("{cpu}, {does}: {cycles:.0} cycles, the limit is {limit:.0}")
            })
            .collect()
    }
}

/// An innermost loop.
#[derive(Debug, PartialEq)]
struct Loop {
    /// The type of the instruction set's token.
    token: &'static str,
    does: String,
    /// Rounds for 1,024 products, or for a state of sixteen channels.
    share: f64,
    /// Instructions; a jump goes to the beginning.
    code: Vec<String>,
}

/// What a loop of the matrix product or the scan does, by its instructions, and its share. None for those that only copy, and
/// for the products in the common order (3- and 5-bit weights).
fn does(code: &[String]) -> Option<(String, f64)> {
    let count = |names: &[&str]| {
        code.iter()
            .filter(|code| code.split_whitespace().next().is_some_and(|name| names.contains(&name)))
            .count()
    };
    let (dots, pairs) = (16 * count(&["sdot"]), 8 * count(&["smull", "smull2", "smlal", "smlal2"]));
    let products = dots + pairs;
    let (decays, widened) = (count(&["mla"]), count(&["fcvtl", "fcvtl2"]));
    // A panel's group is 512 products a token, and its scales four registers when widened. Without dot products, 16 columns of
    // a token are loaded at once.
    let tokens = if dots > 0 { products / 512 } else { count(&["ld4r"]) / 2 };
    let kind = match (dots, count(&["sadalp"])) {
        (1.., _) => "",
        (_, 0) => ", q4",
        _ => ", q8",
    };
    // Two panels at once with dot products; without them one, of which the loop knows whether there is a next group.
    let panels = (dots == 1024 && widened == 8) || (pairs == 512 && widened == 4 && count(&["cset"]) == 1);
    let name = match (products, widened) {
        (0, _) if decays > 0 => return Some((SCAN.into(), 4.0 / decays as f64)),
        _ if panels && count(&["ushr"]) > 0 => ONE_TOKEN_Q4.into(),
        _ if panels => ONE_TOKEN_Q8.into(),
        (512.., 0) => format!("many tokens, {tokens} at once{kind}"),
        _ => return None,
    };
    Some((name, 1024.0 / products as f64))
}

/// The innermost loops of the float path's matrix products and scans in a disassembled program.
fn loops(text: &str) -> Vec<Loop> {
    let mut loops = Vec::new();
    for function in text.split("\n\n") {
        let Some((heading, body)) = function.trim_start().split_once(":\n") else { continue };
        let named = |name: &&&str| heading.contains("Kernels") && heading.contains(**name);
        if heading.contains("fixed") {
            continue;
        }
        let kernel = ["matmul", "scan"].iter().find(named);
        // The longest name first: the others begin it.
        let token = ["NeonDot", "Neon"].iter().find(named);
        if let (Some(_), Some(&token)) = (kernel, token) {
            for code in innermost(body) {
                let Some((does, share)) = does(&code) else { continue };
                loops.push(Loop { token, does, share, code });
            }
        }
    }
    loops
}

/// Loops without a loop inside, from lines of `address: instruction`.
fn innermost(body: &str) -> Vec<Vec<String>> {
    let lines = body.lines().filter_map(|line| line.split_once(':')).collect::<Vec<_>>();
    let at = |address: &str| lines.iter().position(|(here, _)| here.trim() == address);
    // The nearest jump back to each beginning.
    let mut ends = BTreeMap::new();
    for (end, (_, code)) in lines.iter().enumerate() {
        let start = code.split("0x").nth(1).and_then(|rest| at(rest.split(' ').next()?));
        if let Some(start) = start.filter(|start| jumps(code) && *start < end) {
            ends.entry(start).or_insert(end);
        }
    }
    let inner = |(start, end): &(usize, usize)| {
        !ends.iter().any(|(s, e)| (s, e) != (start, end) && start <= s && e <= end)
    };
    let whole = ends.iter().map(|(start, end)| (*start, *end)).filter(inner);
    whole.map(|(start, end)| lines[start..=end].iter().map(|(_, code)| instruction(code)).collect()).collect()
}

fn jumps(code: &str) -> bool {
    code.trim_start().starts_with(['b', 'c', 't']) && code.contains("0x") && code.contains('<')
}

/// An instruction as an assembler reads it: a jump's target is the beginning of the text.
fn instruction(code: &str) -> String {
    let code = code.trim().replace('\t', " ");
    match code.split_once("0x") {
        Some((before, _)) if jumps(&code) => format!("{before}0b"),
        _ => code,
    }
}

/// Cycles of a round.
fn estimate(cpu: &str, code: &[String]) -> Result<f64> {
    let rounds = ROUNDS.to_string();
    let mut command = Command::new("llvm-mca");
    command.args(["-mtriple=aarch64", &format!("-mcpu={cpu}"), "-iterations", &rounds]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| "cannot start `llvm-mca`".into())?;
    let written = child.stdin.take().map(|mut input| write!(input, "0:\n{}\n", code.join("\n")));
    let output = child.wait_with_output().context(|| "cannot read from `llvm-mca`".into())?;
    written.transpose().context(|| "cannot write to `llvm-mca`".into())?;
    let report = String::from_utf8_lossy(&output.stdout);
    let total =
        report.lines().find_map(|line| line.strip_prefix("Total Cycles:")?.trim().parse::<f64>().ok());
    total
        .map(|total| total / ROUNDS as f64)
        .ok_or_else(|| Error::new(format!("`llvm-mca -mcpu={cpu}` names no cycles for {}", code.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function whose outer loop holds one of `sdot`s, and a jump forward.
    fn listing() -> String {
        let dots = (0..64).map(|i| format!("  {:x}:      \tsdot\tv0.4s, v1.16b, v2.4b[0]\n", 0x2000 + 4 * i));
        format!(
            "header\n\n0000 <_ZN5Other6matmul>:\n  10:      \tb\t0x10 <x>\n\n\
             0000 <_ZN7NeonDot..Kernels$GT$6matmul>:\n  1ff8:      \tcbz\tx1, 0x2108 <x+0x9>\n{}\
             \x20 2100:      \tb.ne\t0x2000 <x+0x10>\n  2104:      \tb\t0x1ff8 <x>\n  2108:      \tret\n",
            dots.collect::<String>()
        )
    }

    #[test]
    fn the_inner_loop_is_found_and_named() {
        let loops = loops(&listing());
        assert_eq!(loops.len(), 1, "{loops:?}");
        assert_eq!((loops[0].token, loops[0].code.len()), ("NeonDot", 65));
        assert_eq!((loops[0].does.as_str(), loops[0].share), ("many tokens, 2 at once", 1.0));
        assert_eq!(loops[0].code.first().unwrap(), "sdot v0.4s, v1.16b, v2.4b[0]");
        assert_eq!(loops[0].code.last().unwrap(), "b.ne 0b");
    }

    #[test]
    fn a_loop_above_its_limit_is_named() {
        let kernels = &KERNELS[0];
        assert_eq!(kernels.above(SCAN, &[130.4, 105.0, 75.0]), [""; 0]);
        assert_eq!(kernels.above("another loop", &[1e9; 3]), [""; 0]);
        let above = kernels.above(SCAN, &[130.0, 106.0, 75.0]);
        assert_eq!(above, [format!("cortex-a55, {SCAN}: 106 cycles, the limit is 105")]);
    }

    #[test]
    fn every_cpu_has_a_limit_for_every_loop() {
        for kernels in &KERNELS {
            assert!(kernels.limits.iter().all(|(_, limits)| limits.len() == kernels.cpus.len()));
        }
    }

    #[test]
    fn what_only_copies_is_left_out() {
        assert_eq!(does(&["ldr q0, [x0]".into(), "str q0, [x1]".into()]), None);
    }
}
