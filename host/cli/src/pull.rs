//! `elapid pull`: models of the Hub and of this machine, packed into the store.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use elapid::core::format::{Layout, Quant};
use elapid::core::model::{StateKind, StateSize};
use elapid::{Profile, Ram};
use elapid_args::bytes;
use elapid_files::interrupt;
use elapid_pack::checkpoint::{Checkpoint, version_of};
use elapid_pack::hub::{self, Settings};
use elapid_pack::pack::{FINEST_FIRST, parse_quant};
use elapid_pack::write::{DataSections, Partial, Progress};
use elapid_pack::{Options, PackError, Plan};

use crate::bar::Bar;
use crate::error::Error;
use crate::source::Source;
use crate::store::{Entry, Store, partial};

/// What a program takes beside weights and state, in bytes.
const BESIDE: u64 = 32 << 20;

/// Pack a model of the Hugging Face Hub, a folder or a file into the local store
///
/// `elapid run hf:ORG/NAME` and the other commands do so at first use and then take the model from the store, without asking the Hub;
/// `pull` asks for its newest state. The weights are packed as they come: nothing else is stored. If it is interrupted, the same command
/// goes on where it stopped.
///
/// A folder or file that elapid-pack reads is named by its path. If it changes, it is packed again and replaces what was packed before.
///
/// The store is the folder `models` in ELAPID_HOME, by default $XDG_DATA_HOME/elapid or ~/.local/share/elapid. HF_TOKEN, HF_ENDPOINT, HF_HOME
/// and HF_HUB_OFFLINE mean what they mean to the Hub's own programs.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Model: hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE, or a checkpoint's folder or file
    #[arg(value_parser = source)]
    model: Source,
    #[command(flatten)]
    quant: QuantArgs,
    /// Memory that the model should fit, such as 512M, where --quant is not given. Default: what is free
    #[arg(long, value_name = "SIZE", value_parser = bytes::<u64>("512M or 1.5G"), allow_hyphen_values = true)]
    ram: Option<u64>,
}

/// The type of the weights of a model that is packed.
#[derive(clap::Args, Debug, Clone, Copy)]
pub(super) struct QuantArgs {
    /// Type of the weights of a model that is packed. Default: the finest with which it fits the memory, or else q4
    #[arg(long, value_parser = parse_quant, value_name = "f32|f16|q8|q5|q4|q3")]
    quant: Option<Quant>,
}

/// What is or was packed, from an argument.
pub(super) fn source(text: &str) -> Result<Source, String> {
    Source::parse(text).map_err(|error| error.to_string())
}

/// The source that a model's argument is, also if it is gone and in the store; `None` for a packed file.
pub(super) fn source_of(model: &Path) -> Result<Option<Source>, Error> {
    let is_stored = |source: &Source| Store::of_user().is_ok_and(|store| store.has(source));
    Ok(Source::of(model)?.or_else(|| Source::gone(model).filter(is_stored)))
}

/// Memory that a model may take.
fn memory(ram: Option<Ram>) -> Option<u64> {
    match ram {
        Some(Ram::Bytes(bytes)) => Some(bytes),
        _ => Profile::detect().cap,
    }
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    pull(&args.model, args.quant, memory(args.ram.map(Ram::Bytes))).map(drop)
}

/// The file of a model: that of the store, or it is packed.
pub(super) fn file(source: &Source, quant: QuantArgs, ram: Option<Ram>) -> Result<PathBuf, Error> {
    let memory = memory(ram);
    match in_store(source, quant, memory)? {
        Some(path) => Ok(path),
        None => pull(source, quant, memory),
    }
}

/// The file of a model that is in the store; an error if it is not.
pub(super) fn stored(source: &Source) -> Result<PathBuf, Error> {
    let found = in_store(source, QuantArgs { quant: None }, memory(None))?;
    found
        .ok_or_else(|| Error::Usage(format!("{source} is not in the store: `elapid pull {source}` packs it")))
}

/// The type that is wanted, or the finest that fits the memory; if none does, the smallest.
fn in_store(source: &Source, quant: QuantArgs, memory: Option<u64>) -> Result<Option<PathBuf>, Error> {
    let mut models = Store::of_user()?.of(source)?;
    if let Some(quant) = quant.quant {
        models.retain(|model| model.quant == quant.name());
    }
    models.sort_by_key(|model| model.bytes);
    let fits = |model: &&Entry| memory.is_none_or(|memory| model.bytes.saturating_add(BESIDE) <= memory);
    Ok(models.iter().rev().find(fits).or(models.first()).map(|model| model.path.clone()))
}

/// Packs a model into the store, unless it is there.
fn pull(source: &Source, quant: QuantArgs, memory: Option<u64>) -> Result<PathBuf, Error> {
    let store = Store::of_user()?;
    let mut options = Options::default();
    let (revision, open): (String, Box<dyn FnOnce() -> Result<Checkpoint, PackError>>) = match source {
        Source::Hub(name) => {
            options = options.remote();
            let settings = Settings { cancelled: || interrupt::check().is_break(), ..Settings::from_env()? };
            let found = hub::Source::find(name, settings)?;
            (found.commit().to_owned(), Box::new(|| found.open()))
        }
        Source::Local(local) => {
            let path = local.path();
            (version_of(&path)?, Box::new(move || Checkpoint::open(&path)))
        }
    };
    let known = |quant: Quant| -> Result<(PathBuf, bool), Error> {
        let path = store.path(source, &revision, quant.name())?;
        let is_there = path.is_file();
        if is_there {
            store.refer(source, &revision)?;
        }
        Ok((path, is_there))
    };
    if let Some(quant) = quant.quant
        && let (path, true) = known(quant)?
    {
        say(format_args!("{source} is in the store as {}", quant.name()));
        return Ok(path);
    }
    let checkpoint = open()?;
    match quant.quant {
        Some(quant) => options.quant = quant,
        None => say(format_args!("{source}: {}", choose(&checkpoint, &mut options, memory)?)),
    }
    let (path, is_there) = known(options.quant)?;
    if is_there {
        return Ok(path);
    }
    // What was packed before a folder or a file changed can't be asked for any more.
    let mut stale = store.all_of(source)?;
    stale.retain(|entry| matches!(source, Source::Local(_)) && entry.revision != revision);
    if !stale.is_empty() {
        say(format_args!("note: {source} has changed since it was packed: it is packed again"));
    }
    write(source, &revision, checkpoint, &options, &path)?;
    store.refer(source, &revision)?;
    stale.iter().try_for_each(|entry| store.remove(entry).map(drop))?;
    Ok(path)
}

/// Chooses the finest type with which a model fits the memory, but none that is finer than that of its weights. Says why.
fn choose(checkpoint: &Checkpoint, options: &mut Options, memory: Option<u64>) -> Result<String, Error> {
    let kept = checkpoint.kept_as();
    let needs = |options: &Options| -> Result<u64, Error> {
        let config = options.config(checkpoint.config(), &DataSections::default())?;
        let layout = Layout::new(config).map_err(PackError::from)?;
        let state = StateSize::of(&config, config.n_layer as usize).bytes(StateKind::F32);
        Ok(layout.file_bytes().saturating_add(state as u64).saturating_add(BESIDE))
    };
    let is_finer = |quant: &Quant| kept.is_some_and(|(kept, _)| *quant != kept);
    for quant in FINEST_FIRST.into_iter().skip_while(is_finer) {
        let head = kept.filter(|(kept, _)| *kept == quant).and_then(|(_, head)| head);
        let candidate = Options { quant, head, ..*options };
        let needed = needs(&candidate)?;
        if let Some(memory) = memory.filter(|memory| needed <= *memory) {
            *options = candidate;
            return Ok(format!(
                "packed as {}, the finest type with which it fits the memory ({} of {} MiB); --quant chooses another",
                quant.name(),
                needed >> 20,
                memory >> 20
            ));
        }
    }
    options.quant = Quant::Q4;
    let memory = memory.map_or("unknown".into(), |memory| format!("{} MiB", memory >> 20));
    Ok(format!(
        "packed as q4: it fits the memory ({memory}) with no type and is streamed; --quant chooses another"
    ))
}

fn write(
    source: &Source,
    revision: &str,
    checkpoint: Checkpoint,
    options: &Options,
    path: &Path,
) -> Result<(), Error> {
    let which = format!("{} {revision} {}", source.plain(), checkpoint.version());
    let plan = Plan::open(checkpoint, options)?;
    for note in plan.notes() {
        say(format_args!("note: {note}"));
    }
    if let Some(reason) = plan.without_tokenizer() {
        say(format_args!("note: {reason}"));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|cause| Error::file(folder, "create", cause))?;
    }
    interrupt::listen();
    let total = AtomicU64::new(plan.layout().file_bytes());
    let progress = Packing { bar: Bar::bytes("packing"), done: AtomicU64::new(0), total };
    let partial = Partial { path: &partial(path), source: &which };
    let written = plan.resume(path, partial, options, &progress);
    drop(progress);
    if written.is_err() && partial.path.exists() {
        say(format_args!("note: what is finished is kept: the same command goes on there"));
    }
    let bytes = written?.file_bytes();
    interrupt::end_at_once();
    say(format_args!("{source} is in the store as {} ({bytes} bytes)", options.quant.name()));
    Ok(())
}

/// How far packing is.
struct Packing {
    bar: Bar,
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress for Packing {
    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bar.set(done, self.total.load(Ordering::Relaxed));
    }
    fn skip(&self, bytes: u64) {
        self.advance(bytes);
        self.bar.forget_rate();
    }
    fn restart(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
    }
    fn cancelled(&self) -> bool {
        interrupt::check().is_break()
    }
}

/// Writes a line to standard error. If that fails, there is nowhere left to say so.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}
