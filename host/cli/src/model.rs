//! Which model, and how it is computed.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;
use clap::ValueEnum;
use elapid::core::fixed;
use elapid::core::model::StateKind;
use elapid::{
    MAX_THREADS, Machine, Model, ModelOptions, Numbers, Ram, SessionOptions, Verify, available_memory,
    default_threads,
};
use elapid_args::{SIZE_LIMIT, size, whole};

use super::error::Failure;
#[cfg(feature = "hub")]
use super::pull::source_of;

/// What stands for standard input where a text or a file with one is given.
pub(super) const STDIN: &str = "-";

/// What the server adds to the program beside grammars, whatever is done with it: tables of addresses, mostly.
const SERVER: usize = 1 << 20;

/// How a model is computed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PathArg {
    /// Floating point
    Float,
    /// Integers, for q8 and q4 models: the same bits also on machines without floating point
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
    /// Number of threads. Default: one for each core, or fewer on some boards (see `elapid board`)
    #[arg(short, long, value_parser = whole::<u16>(1..=MAX_THREADS as u64), allow_hyphen_values = true)]
    threads: Option<u16>,

    /// The instruction set by its name, for tests: it changes no bit of the results
    #[arg(long, hide = true)]
    kernels: Option<String>,

    #[command(flatten)]
    ram: RamArgs,

    #[cfg(feature = "hub")]
    #[command(flatten)]
    quant: crate::pull::QuantArgs,
}

/// Options of memory.
#[derive(clap::Args)]
struct RamArgs {
    /// Memory limit of the process, such as 512M or 2G, or `auto` for what is free. A model that does not fit is streamed: read
    /// from its file again for every token. Default: no limit. On a known board (see `elapid board`), a model larger than free
    /// memory is streamed as with `auto`
    #[arg(long, value_name = "SIZE", value_parser = ram, allow_hyphen_values = true)]
    ram: Option<Ram>,

    /// When to verify checksums: `auto` (at first use; at every read if streamed), `always`, `never`
    #[arg(long, value_enum, default_value = "auto")]
    verify: VerifyArg,

    /// Read with threads, not through io_uring: for comparing
    #[arg(long, hide = true)]
    plain_reads: bool,
}

/// When checksums are checked.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum VerifyArg {
    Auto,
    Always,
    Never,
}

fn ram(text: &str) -> Result<Ram, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Ram::Auto);
    }
    let bytes = size(text).map(Ram::Bytes);
    bytes.ok_or_else(|| format!("give a size from 1 to {}T, such as 512M or 1.5G, or auto", SIZE_LIMIT >> 40))
}

impl ComputeArgs {
    pub(super) fn options(&self) -> ModelOptions {
        let verify = match self.ram.verify {
            VerifyArg::Auto => Verify::Auto,
            VerifyArg::Always => Verify::Always,
            VerifyArg::Never => Verify::Never,
        };
        let mut options = ModelOptions::default().verify(verify).plain_reads(self.ram.plain_reads);
        options.threads = self.threads.map(usize::from);
        options.kernels.clone_from(&self.kernels);
        options.ram = self.ram.ram;
        if cfg!(feature = "serve") {
            options.beside = SERVER;
        }
        options
    }

    /// Whether memory is capped.
    pub(super) fn capped(&self) -> bool {
        self.ram.ram.is_some()
    }

    /// Opens a file, or the bundled model. On a board, a file that does not fit is streamed.
    pub(super) fn open(&self, model: Option<&Path>) -> Result<Model, Error> {
        let model = self.file(model)?;
        let model = model.as_deref();
        let mut options = self.options();
        if let (None, Some(path)) = (options.ram, model)
            && Machine::detect().streams_by_default()
            && let Some(sizes) =
                path.metadata().ok().and_then(|file| does_not_fit(file.len(), available_memory()))
        {
            options.ram = Some(Ram::Auto);
            let name = path.display();
            let _ = writeln!(io::stderr(), "note: {name}: {sizes}: it is read again for every token");
        }
        self.open_with(model, &options)
    }

    /// Opens a file, or the bundled model, and streams it only if that was asked for.
    pub(super) fn open_as_asked(&self, model: Option<&Path>) -> Result<Model, Error> {
        self.open_with(self.file(model)?.as_deref(), &self.options())
    }

    /// The packed file of a model. A source that has none is packed.
    fn file(&self, model: Option<&Path>) -> Result<Option<PathBuf>, Error> {
        #[cfg(feature = "hub")]
        if let Some(source) = model.map(source_of).transpose()?.flatten() {
            return crate::pull::file(&source, self.quant, self.ram.ram).map(Some);
        }
        Ok(model.map(Path::to_path_buf))
    }

    fn open_with(&self, model: Option<&Path>, options: &ModelOptions) -> Result<Model, Error> {
        let (threads, cores) = (self.threads.map_or(0, usize::from), default_threads());
        if threads > cores {
            let _ = writeln!(
                io::stderr(),
                "warning: {threads} threads on {cores} core{s}: they wait for each other; -t {cores} is faster",
                s = if cores == 1 { "" } else { "s" }
            );
        }
        let opened = open(model, options)?;
        let cap = match options.ram {
            Some(Ram::Bytes(cap)) => cap,
            // It asks what is free itself.
            Some(Ram::Auto) => 0,
            _ => u64::MAX,
        };
        if let Some(warning) = too_large(opened.layout().file_bytes(), cap, available_memory()) {
            let _ = writeln!(io::stderr(), "warning: {}: {warning}", opened.name());
        }
        Ok(opened)
    }
}

/// The warning for a file that fits the cap but not free memory: it is mapped, and the system will drop its pages and read them
/// again in small pieces.
fn too_large(file: u64, cap: u64, free: Option<u64>) -> Option<String> {
    let mib = does_not_fit(file, free).filter(|_| file <= cap)?;
    Some(format!("{mib}: --ram auto reads it faster than the system would"))
}

/// Says that a file is larger than what is free, where it is.
fn does_not_fit(file: u64, free: Option<u64>) -> Option<String> {
    let free = free.filter(|free| file > *free)?;
    Some(format!("its {} MiB do not fit in the {} MiB of memory that are free", file >> 20, free >> 20))
}

/// Opens a file, or the bundled model.
fn open(model: Option<&Path>, options: &ModelOptions) -> Result<Model, elapid::Error> {
    match model {
        Some(path) => Model::open(path, options),
        None => Model::bundled(options),
    }
}

/// Options of all commands that keep a state.
#[derive(clap::Args)]
pub(super) struct StateArgs {
    /// Arithmetic: floating point or integers
    #[arg(long, value_enum, default_value = "float")]
    path: PathArg,
    /// Number format of the recurrent state: f32, or f16, which needs half the memory and rounds after every token; with
    /// `--path fixed` i16 or i32. Default: f32, or i16 with `--path fixed`
    #[arg(long, value_enum)]
    state: Option<StateArg>,
}

impl StateArgs {
    /// Default options of a session, with the numbers that were chosen.
    pub(super) fn options(&self) -> Result<SessionOptions, Error> {
        Ok(SessionOptions::default().numbers(self.numbers()?))
    }

    fn numbers(&self) -> Result<Numbers, Error> {
        let other = |state: &str, path: &str, has: &str| {
            Err(Error::Usage(format!(
                "--state {state} is not of the {path} path: choose {has}, or the other --path"
            )))
        };
        match (self.path, self.state) {
            (PathArg::Float, None | Some(StateArg::F32)) => Ok(Numbers::Float(StateKind::F32)),
            (PathArg::Float, Some(StateArg::F16)) => Ok(Numbers::Float(StateKind::F16)),
            (PathArg::Float, Some(StateArg::I16)) => other("i16", "float", "f32 or f16"),
            (PathArg::Float, Some(StateArg::I32)) => other("i32", "float", "f32 or f16"),
            (PathArg::Fixed, None | Some(StateArg::I16)) => Ok(Numbers::Fixed(fixed::StateKind::I16)),
            (PathArg::Fixed, Some(StateArg::I32)) => Ok(Numbers::Fixed(fixed::StateKind::I32)),
            (PathArg::Fixed, Some(StateArg::F32)) => other("f32", "fixed", "i16 or i32"),
            (PathArg::Fixed, Some(StateArg::F16)) => other("f16", "fixed", "i16 or i32"),
        }
    }
}

/// Opens a model to look at it only: on one thread. A source must have been packed.
pub(super) fn open_to_read(model: Option<&Path>) -> Result<Model, Error> {
    let model = model.map(stored).transpose()?;
    Ok(open(model.as_deref(), &ModelOptions::default().threads(1))?)
}

/// The file of a model that is on this machine.
pub(super) fn stored(model: &Path) -> Result<PathBuf, Error> {
    #[cfg(feature = "hub")]
    if let Some(source) = source_of(model)? {
        return crate::pull::stored(&source);
    }
    Ok(model.to_path_buf())
}

/// Whether an argument is a packed model by its name.
fn is_packed(argument: &OsStr) -> bool {
    Path::new(argument).extension().is_some_and(|e| e.eq_ignore_ascii_case("elp"))
}

/// Whether an argument that may be a model or a text is a model: it ends in `.elp`, names one of the Hub or in the store, or such a
/// file exists.
fn is_model(argument: &OsStr) -> bool {
    let is_file = || Path::new(argument).exists();
    #[cfg(feature = "hub")]
    let is_file = || is_file() || matches!(source_of(Path::new(argument)), Ok(Some(_)));
    argument != STDIN && (is_packed(argument) || is_of_hub(argument) || is_file())
}

/// Whether an argument names a model of the Hub.
fn is_of_hub(argument: &OsStr) -> bool {
    let name = argument.to_str().filter(|text| text.starts_with("hf:"));
    name.is_some_and(|text| text.contains('/') && !text.contains(char::is_whitespace))
}

/// `[MODEL] [TEXT]`.
#[derive(Default)]
pub(super) struct ModelAndText {
    pub(super) model: Option<PathBuf>,
    pub(super) text: Option<OsString>,
    /// What may be wrong if the model can't be opened.
    pub(super) hint: String,
}

impl ModelAndText {
    /// Tells them apart where only one may be given. `what` is the text to `command`.
    pub(super) fn new(first: Option<OsString>, second: Option<OsString>, what: &str, command: &str) -> Self {
        let hint = match (&first, &second) {
            (Some(first), Some(_)) if !is_model(first) => {
                format!(" (the first of two arguments is the model: put a {what} with spaces in quotes)")
            }
            (Some(only), None) if is_model(only) && !is_packed(only) && !is_of_hub(only) => format!(
                " (the only argument is the model if a file or folder of that name exists: to use it as the {what}, give a \
                 model before it, or pipe it to `elapid {command} -`)"
            ),
            _ => String::new(),
        };
        match (first, second) {
            (Some(only), None) if !is_model(&only) => Self { model: None, text: Some(only), hint },
            (model, text) => Self { model: model.map(PathBuf::from), text, hint },
        }
    }

    /// An error of opening the model.
    pub(super) fn explain(&self, error: Error) -> Failure {
        Failure { error, hint: self.hint.clone() }
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
fn utf8(bytes: Vec<u8>, what: &str) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|bad| not_utf8(what, bad.utf8_error().valid_up_to()))
}

/// The text in a file, or on standard input for [`STDIN`].
pub(super) fn read_text(path: &Path) -> Result<String, Error> {
    let (path, bytes) = if path.as_os_str() == STDIN {
        let mut bytes = Vec::new();
        (Path::new("standard input"), io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (path, elapid_files::read_stream(path))
    };
    let bytes = bytes.map_err(|cause| Error::file(path, "read", cause))?;
    utf8(bytes, &path.display().to_string())
}

fn not_utf8(what: &str, at: usize) -> Error {
    Error::Usage(format!("{what} is not UTF-8 text (byte {at} is not valid): convert it to UTF-8 first"))
}

/// Prints on standard error the incidents while the weights were read, if there were any.
pub(super) fn report_incidents(model: &Model) {
    let seen = model.incidents();
    if seen.retried + seen.reread > 0 {
        let name = model.name();
        // Nobody may be there to read it.
        let _ = writeln!(
            io::stderr(),
            "warning: {name}: {} reads failed and were repeated, {} blocks were read again for their checksum: the drive or \
             card may be failing",
            seen.retried,
            seen.reread
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_fit_is_worth_a_word() {
        let gib = |n: u64| n << 30;
        let said = too_large(gib(4), u64::MAX, Some(gib(2))).unwrap();
        assert!(
            said.contains("4096 MiB") && said.contains("2048 MiB") && said.contains("--ram auto"),
            "{said}"
        );
        assert!(too_large(gib(4), gib(4), Some(gib(2))).is_some());
        for (cap, free) in [(gib(3), Some(gib(2))), (u64::MAX, Some(gib(5))), (0, Some(0)), (u64::MAX, None)]
        {
            assert_eq!(too_large(gib(4), cap, free), None);
        }
    }

    #[test]
    fn caps_are_sizes_or_auto() {
        assert_eq!((ram("1.5G"), ram("Auto")), (Ok(Ram::Bytes(3 << 29)), Ok(Ram::Auto)));
        assert_eq!(ram("0"), Err("give a size from 1 to 8192T, such as 512M or 1.5G, or auto".into()));
    }
}
