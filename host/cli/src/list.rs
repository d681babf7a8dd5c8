//! `elapid list` and `elapid rm`: what is in the store.

use std::io::Write;
use std::path::Path;

use chrono::{DateTime, Local, SecondsFormat, Utc};
use serde::Serialize;

use crate::error::Error;
use crate::output;
use crate::source::Source;
use crate::store::{Entry, Store};

/// List the models in the local store
#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// Print a line of JSON for each model: name, quant, bytes, revision, packed, complete, path
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'e> {
    name: &'e str,
    quant: &'e str,
    bytes: u64,
    revision: &'e str,
    packed: String,
    complete: bool,
    path: String,
}

pub(super) fn list(args: &ListArgs) -> Result<(), Error> {
    let entries = Store::of_user()?.entries()?;
    if args.json {
        return entries.iter().try_for_each(|entry| {
            output::json(&Line {
                name: &entry.name,
                quant: &entry.quant,
                bytes: entry.bytes,
                revision: &entry.revision,
                packed: DateTime::<Utc>::from(entry.changed).to_rfc3339_opts(SecondsFormat::Secs, true),
                complete: entry.complete,
                path: entry.path.display().to_string(),
            })
        });
    }
    let width = entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0).max(4);
    let mut out = output::stdout();
    let mut write = || {
        if !entries.is_empty() {
            writeln!(out, "{:width$}  {:5}  {:>10}  {:12}  packed", "name", "quant", "size", "revision")?;
        }
        for Entry { name, quant, bytes, revision, changed, complete, .. } in &entries {
            let date = DateTime::<Local>::from(*changed).format("%Y-%m-%d %H:%M");
            let date = if *complete { date.to_string() } else { "unfinished".into() };
            let revision = revision.get(..12).unwrap_or(revision);
            writeln!(out, "{name:width$}  {quant:5}  {:>10}  {revision:12}  {date}", shown(*bytes))?;
        }
        Ok(())
    };
    write().map_err(output::failed)?;
    output::finish(out)
}

/// Remove models from the local store
///
/// Without a revision all that are packed of the model are removed, with --quant only those of that type.
#[derive(clap::Args)]
pub(super) struct RemoveArgs {
    /// Models, as `elapid list` names them; with @REVISION only those of that commit
    #[arg(required = true)]
    models: Vec<String>,
    /// Type of the weights. Default: all
    #[arg(long, value_parser = elapid_pack::pack::parse_quant, value_name = "f32|f16|q8|q5|q4|q3")]
    quant: Option<elapid::core::format::Quant>,
}

pub(super) fn remove(args: &RemoveArgs) -> Result<(), Error> {
    let store = Store::of_user()?;
    let entries = store.entries()?;
    for text in &args.models {
        let mut source = Source::parse(text).map_err(|error| Error::Usage(error.to_string()))?;
        // A relative path whose file is gone looks like a name of the Hub.
        let is_there = |source: &Source| entries.iter().any(|entry| entry.name == source.plain());
        if !is_there(&source)
            && let Some(gone) = Source::gone(Path::new(text)).filter(is_there)
        {
            source = gone;
        }
        let revision = match &source {
            Source::Hub(name) if name.has_revision() => Some(store.revision(&source)?.unwrap_or_default()),
            _ => None,
        };
        let is_meant = |entry: &&Entry| {
            entry.name == source.plain()
                && args.quant.is_none_or(|quant| entry.quant == quant.name())
                && revision.as_ref().is_none_or(|revision| entry.revision == *revision)
        };
        let meant: Vec<&Entry> = entries.iter().filter(is_meant).collect();
        if meant.is_empty() {
            return Err(Error::Usage(format!("{source} is not in the store: `elapid list` shows what is")));
        }
        let mut freed = 0;
        for entry in &meant {
            freed += store.remove(entry)?;
        }
        let quants: Vec<&str> = meant.iter().map(|entry| entry.quant.as_str()).collect();
        // That it can't be said is no failure.
        let _ = writeln!(
            std::io::stderr(),
            "removed {source} ({}): {} are free",
            quants.join(", "),
            shown(freed)
        );
    }
    Ok(())
}

/// A size for people.
fn shown(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
