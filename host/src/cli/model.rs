//! Which model, and how it is computed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use elapid::core::fixed;
use elapid::core::model::StateKind;
use elapid::{Engine, EngineOptions, Error, MAX_THREADS, MemoryOptions, default_threads};

/// How a model is computed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PathArg {
    /// In floating point
    Float,
    /// In integers: for q8 and q4 models, the same bits also on machines without floating point
    Fixed,
}

/// How the recurrent state is kept.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateArg {
    F32,
    F16,
    I16,
    I32,
}

/// Options of all commands that compute.
#[derive(clap::Args)]
pub(super) struct ComputeArgs {
    /// Threads; all cores if left out
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS as i64))]
    threads: Option<u16>,

    /// The instruction set by its name, for tests: it changes no bit of the results
    #[arg(long, hide = true)]
    kernels: Option<String>,
}

impl ComputeArgs {
    fn options(&self) -> EngineOptions {
        EngineOptions { threads: self.threads.map(usize::from), kernels: self.kernels.clone() }
    }

    /// Opens a file, or the bundled model.
    pub(super) fn open(&self, model: Option<&Path>) -> Result<Engine, Error> {
        let (threads, cores) = (self.threads.map_or(0, usize::from), default_threads());
        if threads > cores {
            let _ = writeln!(
                io::stderr(),
                "warning: {threads} threads on {cores} core{s}: they wait for each other; -t {cores} is faster",
                s = if cores == 1 { "" } else { "s" }
            );
        }
        open(model, &self.options())
    }
}

/// Opens a file, or the bundled model.
fn open(model: Option<&Path>, options: &EngineOptions) -> Result<Engine, Error> {
    match model {
        Some(path) => Engine::open(path, options),
        None => Engine::bundled(options),
    }
}

/// Options of all commands that keep a state.
#[derive(clap::Args)]
pub(super) struct StateArgs {
    /// Whether to compute in floating point or in integers
    #[arg(long, value_enum, default_value = "float")]
    path: PathArg,
    /// How the recurrent state is kept: f32, or f16, which halves its memory and rounds it after every token; in the fixed
    /// path i16, or i32
    #[arg(long, value_enum)]
    state: Option<StateArg>,
}

impl StateArgs {
    pub(super) fn memory(&self) -> Result<MemoryOptions, Error> {
        let of = |state, fixed| Ok(MemoryOptions { state, fixed, ..MemoryOptions::default() });
        let (float, other) = (StateKind::default(), |state: &str, path: &str, has: &str| {
            Err(Error::Usage(format!(
                "--state {state} is not of the {path} path: choose {has}, or the other --path"
            )))
        });
        match (self.path, self.state) {
            (PathArg::Float, None | Some(StateArg::F32)) => of(StateKind::F32, None),
            (PathArg::Float, Some(StateArg::F16)) => of(StateKind::F16, None),
            (PathArg::Float, Some(StateArg::I16)) => other("i16", "float", "f32 or f16"),
            (PathArg::Float, Some(StateArg::I32)) => other("i32", "float", "f32 or f16"),
            (PathArg::Fixed, None | Some(StateArg::I16)) => of(float, Some(fixed::StateKind::I16)),
            (PathArg::Fixed, Some(StateArg::I32)) => of(float, Some(fixed::StateKind::I32)),
            (PathArg::Fixed, Some(StateArg::F32)) => other("f32", "fixed", "i16 or i32"),
            (PathArg::Fixed, Some(StateArg::F16)) => other("f16", "fixed", "i16 or i32"),
        }
    }

    /// The name of the kernels that compute.
    pub(super) fn kernels(&self, engine: &Engine) -> &'static str {
        match self.path {
            PathArg::Float => engine.kernels().name(),
            PathArg::Fixed => engine.fixed_kernels().name(),
        }
    }
}

/// Opens a model to look at it only: on one thread.
pub(super) fn open_to_read(model: Option<&Path>) -> Result<Engine, Error> {
    open(model, &EngineOptions { threads: Some(1), kernels: None })
}

/// Whether an argument that may be a model or a text is a model: it ends in `.elp`, or such a file exists.
fn is_model(argument: &OsStr) -> bool {
    let path = Path::new(argument);
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("elp")) || path.exists()
}

/// Tells `[MODEL] [TEXT]` apart where only one may be given.
pub(super) fn model_and_text(
    first: Option<OsString>,
    second: Option<OsString>,
) -> (Option<PathBuf>, Option<OsString>) {
    match (first, second) {
        (Some(only), None) if !is_model(&only) => (None, Some(only)),
        (model, text) => (model.map(PathBuf::from), text),
    }
}

/// A text from an argument, if it is UTF-8.
pub(super) fn text(argument: OsString, what: &str) -> Result<String, Error> {
    argument.into_string().map_err(|bad| {
        let valid = bad.as_encoded_bytes().utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
        not_utf8(what, valid)
    })
}

/// A text from bytes, if they are UTF-8.
pub(super) fn utf8(bytes: Vec<u8>, what: &str) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|bad| not_utf8(what, bad.utf8_error().valid_up_to()))
}

/// The text in a file, or on standard input for `-`.
pub(super) fn read_text(path: &Path) -> Result<String, Error> {
    let (name, bytes) = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        ("standard input".into(), io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (path.display().to_string(), fs::read(path))
    };
    utf8(bytes.map_err(|cause| Error::File { path: path.into(), action: "read", cause })?, &name)
}

fn not_utf8(what: &str, at: usize) -> Error {
    Error::Usage(format!("{what} is not UTF-8 text (byte {at} is not valid): convert it to UTF-8 first"))
}
