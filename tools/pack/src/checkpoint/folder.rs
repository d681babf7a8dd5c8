//! The folder that is given: what to say where it is none, or not the right one.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::PackError;

const WANTED: &str = "give a Hugging Face folder with config.json and model.safetensors (or model.safetensors.index.json and its shards)";

/// Checks that a folder is there.
pub(super) fn check(dir: &Path) -> Result<(), PackError> {
    let not_a_folder = |reason: String| Err(PackError::NotAFolder { path: dir.to_path_buf(), reason });
    match fs::metadata(dir) {
        Ok(about) if about.is_dir() => fs::read_dir(dir).map(drop).map_err(PackError::io(dir)),
        Ok(about) if about.is_file() => not_a_folder(about_file(dir)),
        Ok(_) => not_a_folder(format!("not a folder: {WANTED}")),
        Err(source) => match hub_name(dir) {
            Some((owner, name)) => not_a_folder(format!(
                "no such folder here; a model of the Hugging Face hub must be downloaded first: hf download {owner}/{name} --local-dir {name}"
            )),
            None => Err(PackError::Io { path: dir.to_path_buf(), source }),
        },
    }
}

/// The error for a folder without one of the files that every checkpoint has.
pub(super) fn lacks(dir: &Path, missing: &'static str) -> PackError {
    let advice = match checkpoint_below(dir) {
        Some(below) => format!("it is in {}: give that folder", below.display()),
        None => WANTED.to_owned(),
    };
    PackError::NotACheckpoint { path: dir.to_path_buf(), missing, advice }
}

/// What a file is, and what to give in its place.
fn about_file(path: &Path) -> String {
    let mut magic = [0; 8];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut magic)).unwrap_or(0);
    let magic = &magic[..read];
    let of = |extension: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
    let parent = path.parent().filter(|parent| parent.join("config.json").exists());
    match parent {
        _ if magic.starts_with(b"GGUF") || of("gguf") => {
            format!("a file, and GGUF is not read: {WANTED}")
        }
        _ if of("elp") => "a packed file: run it with elapid".to_owned(),
        Some(parent) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            format!("a file: give the folder that holds it, {}", parent.display())
        }
        None => format!("a file, not a folder: {WANTED}"),
    }
}

/// The owner and the name, if what is not there looks like a model of the hub: `state-spaces/mamba-130m-hf`.
fn hub_name(path: &Path) -> Option<(&str, &str)> {
    let text = path.to_str()?;
    let prefix = ["https://huggingface.co/", "hf:"].into_iter().find(|prefix| text.starts_with(prefix));
    let (owner, name) = text.trim_start_matches(prefix.unwrap_or_default()).split_once('/')?;
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let there = prefix.is_none() && Path::new(owner).exists();
    (is_name(owner) && is_name(name) && !there).then_some((owner, name))
}

/// A folder below that holds a checkpoint: in a cache of the hub, a snapshot, that of `main` first.
fn checkpoint_below(dir: &Path) -> Option<PathBuf> {
    let is_one = |dir: &PathBuf| dir.join("config.json").symlink_metadata().is_ok();
    let snapshots = dir.join("snapshots");
    let main = fs::read_to_string(dir.join("refs/main")).ok().map(|revision| snapshots.join(revision.trim()));
    let folders = |dir: &Path| {
        let mut all: Vec<PathBuf> =
            fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        all.sort();
        all
    };
    main.into_iter().chain(folders(&snapshots)).chain(folders(dir)).find(is_one)
}
