//! What `cargo xtask test` runs, as data.

use crate::apt::{CHROMIUM, Package};

/// One row of the table at the end.
#[derive(Debug)]
pub struct Step {
    pub name: &'static str,
    /// Several steps that `--only` can name together.
    pub group: &'static str,
    /// What it shows when it passes.
    pub shows: &'static str,
    /// Whether CI must not pass without it.
    pub required: bool,
    /// Whether it runs only with `--full`, or when it is named: slow, and rarely fails.
    pub full: bool,
    pub work: Work,
}

/// How a step does what it does.
#[derive(Debug)]
pub enum Work {
    /// `cargo` commands for this machine.
    Host { commands: &'static [&'static [&'static str]], env: &'static [(&'static str, &'static str)] },
    /// `cargo` commands of a plugin that may not be installed.
    Plugin { name: &'static str, commands: &'static [&'static [&'static str]] },
    /// A program of a Python package.
    Python { package: &'static str, program: &'static str, arguments: &'static [&'static str] },
    /// `cargo test` on this machine.
    HostTests { arguments: &'static [&'static str] },
    /// Tests that drive programs of this machine with packages of Python, in the environment `name`, and of the system.
    PythonTests {
        name: &'static str,
        packages: &'static [&'static str],
        needs: &'static [Package],
        arguments: &'static [&'static str],
    },
    /// `core` for a machine without an operating system.
    Bare { target: &'static str, rustflags: &'static str },
    /// The programs type-checked for another operating system: nothing is linked.
    Checked { target: &'static str },
    /// The fixed path compiled for a microcontroller, looked at instruction by instruction.
    Integers { target: &'static str, cpu: &'static str, kernels: &'static str },
    /// Tests for aarch64 Linux, on an emulated CPU.
    Emulated { cpu: &'static str, tests: &'static [&'static [&'static str]] },
    /// The fuzz targets, and a fault planted in each.
    Fuzz,
    /// The program of a [`crate::board::Target`], against the host's own output.
    Target { name: &'static str },
}

impl Step {
    /// What the step must have to itself: the build folder of this machine's programs, or a folder for its files.
    ///
    /// Steps that name the same one never run at once.
    pub fn resource(&self) -> Option<&'static str> {
        match self.work {
            Work::Host { .. } | Work::HostTests { .. } | Work::PythonTests { .. } | Work::Fuzz => {
                Some("host")
            }
            Work::Target { name } if name.starts_with("pi-linux") => Some("pi-linux"),
            // Two builds of one program.
            Work::Target { name } if name.starts_with("pico2") => Some("pico2"),
            Work::Plugin { .. }
            | Work::Python { .. }
            | Work::Bare { .. }
            | Work::Checked { .. }
            | Work::Integers { .. }
            | Work::Emulated { .. }
            | Work::Target { .. } => None,
        }
    }
}

const NO_ENV: &[(&str, &str)] = &[];

/// In the order in which they run: what is quick to fail comes first.
pub const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        group: "lint",
        shows: "the code is formatted",
        required: true,
        full: false,
        work: Work::Host { commands: &[&["fmt", "--all", "--check"]], env: NO_ENV },
    },
    Step {
        name: "clippy",
        group: "lint",
        shows: "no warnings, with every set of features",
        required: true,
        full: false,
        work: Work::Host {
            commands: &[
                &[
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--features",
                    "elapid-cli/serve",
                    "--",
                    "-D",
                    "warnings",
                ],
                &["clippy", "-p", "elapid-core", "--no-default-features", "--", "-D", "warnings"],
                &[
                    "clippy",
                    "-p",
                    "elapid",
                    "-p",
                    "elapid-cli",
                    "--no-default-features",
                    "--",
                    "-D",
                    "warnings",
                ],
            ],
            env: NO_ENV,
        },
    },
    Step {
        name: "doc",
        group: "lint",
        shows: "the documentation builds, links included",
        required: true,
        full: false,
        work: Work::Host {
            commands: &[&["doc", "--workspace", "--no-deps"]],
            env: &[("RUSTDOCFLAGS", "-D warnings")],
        },
    },
    Step {
        name: "deny",
        group: "lint",
        shows: "licences and sources of all dependencies are those of deny.toml, in boards/ too",
        required: false,
        full: false,
        work: Work::Plugin {
            name: "deny",
            // Advisories and yanked crates need the network: `cargo deny check`.
            commands: &[
                &["deny", "--locked", "check", "bans", "licenses", "sources"],
                &[
                    "deny",
                    "--locked",
                    "--manifest-path",
                    "boards/Cargo.toml",
                    "check",
                    "bans",
                    "licenses",
                    "sources",
                ],
            ],
        },
    },
    Step {
        name: "workflows",
        group: "lint",
        shows: "the workflows of GitHub Actions are well-formed and safe",
        required: false,
        full: false,
        work: Work::Python {
            package: "zizmor==1.32.0",
            program: "zizmor",
            arguments: &["--offline", "--no-progress", "--quiet", ".github"],
        },
    },
    Step {
        name: "publish",
        group: "lint",
        shows: "every published package builds from what it holds, in the order of publishing",
        required: false,
        full: true,
        work: Work::Host {
            commands: &[&[
                "publish",
                "--dry-run",
                "--allow-dirty",
                "-p",
                "elapid-core",
                "-p",
                "elapid-files",
                "-p",
                "elapid-args",
                "-p",
                "elapid-boards",
                "-p",
                "elapid",
                "-p",
                "elapid-server",
                "-p",
                "elapid-pack",
                "-p",
                "elapid-pack-cli",
                "-p",
                "elapid-cli",
            ]],
            env: NO_ENV,
        },
    },
    Step {
        name: "host",
        group: "host",
        shows: "every test on this machine",
        required: true,
        full: false,
        work: Work::HostTests { arguments: &["--workspace"] },
    },
    Step {
        name: "clients",
        group: "host",
        shows: "the program with its server and grammars; clients that people have use it: the Python packages openai and ollama",
        required: false,
        full: false,
        work: Work::PythonTests {
            name: "clients",
            packages: &["openai==3.57.0", "ollama==0.6.3", "jsonschema==4.26.0"],
            needs: &[],
            arguments: &[
                "--workspace",
                "--features",
                "elapid-cli/serve",
                "--test",
                "serve",
                "--test",
                "grammar",
                "--test",
                "clients",
            ],
        },
    },
    Step {
        name: "evaluation",
        group: "host",
        shows: "lm_eval finds the likelihoods of the library by way of the server",
        required: false,
        full: true,
        work: Work::PythonTests {
            name: "evaluation",
            packages: &["lm_eval[api]==0.4.13"],
            needs: &[],
            arguments: &["--workspace", "--features", "elapid-cli/serve", "--test", "evaluation"],
        },
    },
    Step {
        name: "page",
        group: "host",
        shows: "the server's page in headless Chromium: chat, branches, a reload, hostile answers, a phone's width",
        required: false,
        full: false,
        work: Work::PythonTests {
            name: "page",
            packages: &["playwright==1.65.2"],
            needs: &[CHROMIUM],
            arguments: &["--workspace", "--features", "elapid-cli/serve", "--test", "page"],
        },
    },
    Step {
        name: "fuzz",
        group: "host",
        shows: "damaged models, tokenizers, sections and checkpoints do no harm; planted faults are found",
        required: true,
        full: false,
        work: Work::Fuzz,
    },
    Step {
        name: "release",
        group: "host",
        shows: "the programs build as users build them",
        required: true,
        full: false,
        work: Work::Host {
            commands: &[&["build", "--release"], &["build", "--release", "-p", "elapid-pack-cli"]],
            env: NO_ENV,
        },
    },
    Step {
        name: "bare-aarch64",
        group: "bare",
        shows: "core without std and alloc: Raspberry Pi without an operating system",
        required: true,
        full: false,
        work: Work::Bare { target: "aarch64-unknown-none", rustflags: "" },
    },
    Step {
        name: "bare-m7",
        group: "bare",
        shows: "core without std and alloc: Cortex-M7 (Cortex-M4F has the same target)",
        required: true,
        full: false,
        work: Work::Bare { target: "thumbv7em-none-eabihf", rustflags: "-C target-cpu=cortex-m7" },
    },
    Step {
        name: "bare-m3",
        group: "bare",
        shows: "core without std and alloc: Cortex-M3, which has no floating point",
        required: false,
        full: false,
        work: Work::Bare { target: "thumbv7m-none-eabi", rustflags: "" },
    },
    Step {
        name: "bare-m33",
        group: "bare",
        shows: "core without std and alloc: Cortex-M33 (RP2350)",
        required: false,
        full: false,
        work: Work::Bare { target: "thumbv8m.main-none-eabihf", rustflags: "-C target-cpu=cortex-m33" },
    },
    Step {
        name: "macos",
        group: "bare",
        shows: "the programs compile for macOS",
        required: false,
        full: true,
        work: Work::Checked { target: "aarch64-apple-darwin" },
    },
    Step {
        name: "integers-m3",
        group: "integers",
        shows: "the fixed path has no floats, no panic, no recursion and little stack on Cortex-M3",
        required: true,
        full: false,
        work: Work::Integers {
            target: "thumbv7m-none-eabi",
            cpu: "cortex-m3",
            kernels: "elapid_core::kernels::fixed::arm::token::Thumb2",
        },
    },
    Step {
        name: "integers-m7",
        group: "integers",
        shows: "the same on Cortex-M7, whose floating-point unit it leaves alone",
        required: true,
        full: false,
        work: Work::Integers {
            target: "thumbv7em-none-eabihf",
            cpu: "cortex-m7",
            kernels: "elapid_core::kernels::fixed::arm::token::Dsp",
        },
    },
    Step {
        name: "aarch64-a53",
        group: "aarch64",
        shows: "the same bits on a Raspberry Pi 3's CPU, without the dot product instructions",
        required: true,
        full: false,
        work: Work::Emulated { cpu: "cortex-a53", tests: EMULATED },
    },
    Step {
        name: "aarch64-a76",
        group: "aarch64",
        shows: "the same bits on a Raspberry Pi 5's CPU, with them",
        required: true,
        full: false,
        work: Work::Emulated { cpu: "cortex-a76", tests: EMULATED },
    },
    Step {
        name: "mps2-an500",
        group: "boards",
        shows: "Cortex-M7 with external memory: the host's tokens and logits, in the float path",
        required: true,
        full: false,
        work: Work::Target { name: "mps2-an500" },
    },
    Step {
        name: "mps2-an385",
        group: "boards",
        shows: "Cortex-M3 without floating point or heap: the host's tokens and logits, in the fixed path",
        required: true,
        full: false,
        work: Work::Target { name: "mps2-an385" },
    },
    Step {
        name: "mps2-an505",
        group: "boards",
        shows: "Cortex-M33 without heap, the RP2350's core: the host's tokens and logits, in the fixed path",
        required: true,
        full: false,
        work: Work::Target { name: "mps2-an505" },
    },
    Step {
        name: "pi-linux",
        group: "boards",
        shows: "the Debian package for a Raspberry Pi, and its program on the CPUs of a Pi 3, 4 and 5: the host's text",
        required: true,
        full: false,
        work: Work::Target { name: "pi-linux" },
    },
    Step {
        name: "pi-linux-musl",
        group: "boards",
        shows: "the same program with musl: the host's text",
        required: false,
        full: false,
        work: Work::Target { name: "pi-linux-musl" },
    },
    Step {
        name: "pi-linux-kernel",
        group: "boards",
        shows: "a real Linux kernel and 512 MB: the host's tokens and logits under a cap of 64 MB, and disks that fail",
        required: true,
        full: false,
        work: Work::Target { name: "pi-linux-kernel" },
    },
    Step {
        name: "fixed-m3",
        group: "boards",
        shows: "Cortex-M3: the fixed path's logits over 256 tokens, of models of all kinds",
        required: true,
        full: false,
        work: Work::Target { name: "fixed-m3" },
    },
    Step {
        name: "fixed-m7",
        group: "boards",
        shows: "Cortex-M7: the same with its instructions for two products",
        required: true,
        full: false,
        work: Work::Target { name: "fixed-m7" },
    },
    Step {
        name: "pico2",
        group: "boards",
        shows: "RP2350: program and model fit, and make the images for a board",
        required: false,
        full: false,
        work: Work::Target { name: "pico2" },
    },
    Step {
        name: "pico2-uart",
        group: "boards",
        shows: "emulated RP2350, console on the UART: the host's tokens and logits, and refuses models that it can't run",
        required: false,
        full: false,
        work: Work::Target { name: "pico2-uart" },
    },
    Step {
        name: "pi-bare",
        group: "boards",
        shows: "Raspberry Pi 3 without an operating system: the host's tokens and logits, faults told, four cores",
        required: true,
        full: false,
        work: Work::Target { name: "pi-bare" },
    },
    Step {
        name: "pi-bare-4",
        group: "boards",
        shows: "the same kernel on a Raspberry Pi 4, which QEMU knows from version 9 on: the host's tokens and logits",
        required: false,
        full: false,
        work: Work::Target { name: "pi-bare-4" },
    },
    Step {
        name: "template",
        group: "boards",
        shows: "where a new board begins builds",
        required: false,
        full: false,
        work: Work::Target { name: "template" },
    },
    Step {
        name: "step-size",
        group: "boards",
        shows: "core's step without tokenizer and sampler has at most 5% more than 48 KB of code on a Cortex-M7",
        required: true,
        full: false,
        work: Work::Target { name: "step-size" },
    },
];

/// Emulation is 10 to 30 times slower than the machine itself: what depends on instructions runs here, the rest only
/// on the host. Tests that start another program can't run: its file is for another CPU.
const EMULATED: &[&[&str]] = &[
    &["-p", "elapid-core", "--features", "std", "--lib"],
    &["-p", "elapid", "--lib"],
    &["-p", "elapid", "--test", "history", "the_same"],
    &[
        "-p",
        "elapid-tests",
        "--test",
        "bits",
        "--test",
        "functions",
        "--test",
        "kernels",
        "--test",
        "reference",
    ],
    &["-p", "elapid-tests", "--test", "fixed", "every_"],
];

/// Seconds that one emulated test binary may take: a hang must end in a table that says so, not in silence.
pub const EMULATED_LIMIT: u32 = 1200;

/// The steps that `--only` names: step or group names, all if there are none; without `full` none that is for it, unless it is
/// named itself. The error is the name that is neither.
pub fn select(only: &[String], full: bool) -> Result<Vec<&'static Step>, &str> {
    let is = |step: &Step, name: &str| step.name == name || step.group == name;
    if let Some(unknown) = only.iter().find(|name| !STEPS.iter().any(|step| is(step, name))) {
        return Err(unknown);
    }
    let named =
        |step: &Step| only.iter().any(|name| step.name == name || step.group == name && (full || !step.full));
    let wanted = |step: &&Step| if only.is_empty() { full || !step.full } else { named(step) };
    Ok(STEPS.iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str]) -> Vec<&'static str> {
        let only = only.iter().map(|&name| name.into()).collect::<Vec<String>>();
        select(&only, false).unwrap().iter().map(|step| step.name).collect()
    }

    #[test]
    fn steps_are_chosen_by_name_or_group() {
        assert_eq!(names(&[]).len(), STEPS.iter().filter(|step| !step.full).count());
        assert_eq!(select(&[], true).unwrap().len(), STEPS.len());
        assert_eq!(names(&["publish"]), ["publish"]);
        assert!(!names(&["lint"]).contains(&"publish"));
        assert_eq!(names(&["host", "fmt"]), ["fmt", "host", "clients", "page", "fuzz", "release"]);
        assert_eq!(names(&["bare-m3"]), ["bare-m3"]);
        assert_eq!(select(&["fmt".into(), "tset".into()], false).unwrap_err(), "tset");
    }

    #[test]
    fn names_are_unique() {
        for (i, step) in STEPS.iter().enumerate() {
            assert!(STEPS[..i].iter().all(|other| other.name != step.name), "{}", step.name);
        }
    }

    #[test]
    fn ci_requires_the_targets_the_project_promises() {
        for name in ["host", "bare-aarch64", "bare-m7", "aarch64-a53", "aarch64-a76", "pi-linux-kernel"] {
            assert!(STEPS.iter().any(|step| step.name == name && step.required), "{name}");
        }
    }
}
