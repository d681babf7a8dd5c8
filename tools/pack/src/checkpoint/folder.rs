//! The folder that is given: what to say where it is none, or not the right one.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use elapid_core::format::{FormatError, Header};
use elapid_files::open_regular;

use super::gguf::split_stem;
use super::json::{self, CONFIG_LIMIT};
use super::place::{Folder, Place};
use super::quantized;
use crate::PackError;

const WANTED: &str = "give a Hugging Face folder with config.json and model.safetensors or pytorch_model.bin (or their index.json and its shards), or a GGUF file";

/// A file of weights in a place: its name and its format.
pub(crate) type Given = Option<(String, Format)>;

/// The folder that a path leads to, or that of a file that can be a checkpoint, and this file.
pub(crate) fn given(path: &Path) -> Result<(Folder, Given), PackError> {
    let not_a_folder = |reason: String| Err(PackError::NotAFolder { path: path.to_path_buf(), reason });
    match fs::metadata(path) {
        Ok(about) if about.is_dir() => {
            fs::read_dir(path).map_err(PackError::io(path))?;
            Ok((Folder(path.to_path_buf()), None))
        }
        Ok(about) if about.is_file() => match weights(path) {
            Some(file) => Ok((Folder::of(path), Some(file))),
            None => not_a_folder(about_file(path)),
        },
        Ok(_) => not_a_folder(format!("not a folder: {WANTED}")),
        Err(source) => match hub_name(path).filter(|_| source.kind() == ErrorKind::NotFound) {
            Some((owner, name)) if cfg!(feature = "hub") => not_a_folder(format!(
                "no such folder here; a model of the Hugging Face Hub is hf:{owner}/{name}"
            )),
            Some((owner, name)) => not_a_folder(format!(
                "no such folder here; a model of the Hugging Face Hub must be downloaded first: hf download {owner}/{name} --local-dir {name}"
            )),
            None => Err(PackError::Io { path: path.to_path_buf(), source }),
        },
    }
}

/// The format of a file of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors,
    /// Of torch.save.
    Pickle,
    Gguf,
}

impl Format {
    /// The format by a file's name.
    pub(crate) fn of(name: &str) -> Self {
        let is_of = |extension: &&str| is_of(Path::new(name), extension);
        if is_of(&"safetensors") {
            Self::Safetensors
        } else if ["bin", "pt", "pth"].iter().any(is_of) {
            Self::Pickle
        } else {
            Self::Gguf
        }
    }

    /// A file's name, and the format by it.
    pub(crate) fn with_name(name: &str) -> (String, Self) {
        (name.to_owned(), Self::of(name))
    }
}

/// Whether a name ends with `.` and this, in letters of either case.
pub(super) fn is_of(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The name and format of a file that holds weights: a GGUF file, or safetensors or a file of torch.save beside a config.json.
fn weights(path: &Path) -> Option<(String, Format)> {
    let name = path.file_name()?.to_str()?.to_owned();
    if is_of(path, "gguf") || &start(path) == b"GGUF" {
        return Some((name, Format::Gguf));
    }
    let format = Format::of(&name);
    (format != Format::Gguf && Folder::of(path).0.join("config.json").exists()).then_some((name, format))
}

/// The first bytes of a file; zeros where it has none that can be read.
fn start<const N: usize>(path: &Path) -> [u8; N] {
    let mut start = [0; N];
    let read = open_regular(path).and_then(|file| file.read_exact_at(&mut start, 0));
    if read.is_ok() { start } else { [0; N] }
}

/// Whether a path leads to what is to be packed before it is run: a folder, or a file that is no packed one and is called or begins
/// as files of weights do.
#[must_use]
pub fn is_source(path: &Path) -> bool {
    let Ok(about) = fs::metadata(path) else { return false };
    let is_weights = || {
        let is_packed = !matches!(Header::parse(&start::<8>(path)), Err(FormatError::NotElp));
        !is_packed && (Format::of(&path.to_string_lossy()) != Format::Gguf || weights(path).is_some())
    };
    about.is_dir() || about.is_file() && is_weights()
}

/// The GGUF file that is given, or that a folder holds in place of anything else.
pub(super) fn gguf_in(
    place: &dyn Place,
    file: Option<&(String, Format)>,
) -> Result<Option<String>, PackError> {
    match file {
        Some((name, Format::Gguf)) => Ok(Some(name.clone())),
        Some(_) => Ok(None),
        None => only_gguf(place),
    }
}

/// What the names of a split model's files begin with and how many there are, if a file is called as one of them.
pub(super) fn split_of(name: &str) -> Option<(&str, u64)> {
    let count = name.rsplit_once("-of-")?.1.strip_suffix(".gguf")?.parse().ok()?;
    Some((split_stem(name, count)?, count))
}

/// The GGUF file in a folder without a config.json: the first where a model is split.
fn only_gguf(place: &dyn Place) -> Result<Option<String>, PackError> {
    if place.has("config.json")? {
        return Ok(None);
    }
    let mut found: Vec<String> =
        place.list()?.into_iter().filter(|name| is_of(Path::new(name), "gguf")).collect();
    // Parts of one model but the first.
    found.retain(|name| split_of(name).is_none_or(|(stem, _)| name[stem.len()..].starts_with("-00001-")));
    if found.len() > 1 {
        return Err(PackError::SeveralModels { path: place.path(""), found });
    }
    Ok(found.pop())
}

/// The error for a folder without config.json.
pub(super) fn without_config(place: &dyn Place) -> Result<PackError, PackError> {
    let name = "adapter_config.json";
    if let Some(values) = json::read_object(place, name, CONFIG_LIMIT)? {
        return Ok(quantized::adapter(place.path(name), &values));
    }
    let path = place.path("");
    let advice = match checkpoint_below(&path) {
        Some(below) => format!("it is in {}: give that folder", below.display()),
        None => WANTED.to_owned(),
    };
    Ok(PackError::NotACheckpoint { path, missing: "config.json", advice })
}

/// The error for a folder without weights where they are looked for.
pub(super) fn without_weights(place: &dyn Place) -> Result<PackError, PackError> {
    let (path, missing) = (place.path(""), "model.safetensors or pytorch_model.bin");
    let found = |ends: &[&str]| -> Result<Vec<String>, PackError> {
        // What training leaves beside a model.
        let other = ["training_args", "optimizer", "scheduler", "scaler", "rng_state"];
        let is = |name: &String| {
            ends.iter().any(|end| is_of(Path::new(name), end))
                && !other.iter().any(|other| name.starts_with(other))
        };
        Ok(place.list()?.into_iter().filter(is).collect())
    };
    let name = "adapter_config.json";
    if let Some(values) = json::read_object(place, name, CONFIG_LIMIT)? {
        return Ok(quantized::adapter(place.path(name), &values));
    }
    let advice = match &found(&["safetensors", "bin", "pt", "pth", "gguf"])?[..] {
        [] => match &found(&["h5", "msgpack", "onnx", "ckpt", "npz", "tflite"])?[..] {
            [] => WANTED.to_owned(),
            others => format!(
                "{} is of another format: save the model with save_pretrained of transformers",
                others.join(", ")
            ),
        },
        [one] => format!("give the file itself, {}", place.path(one).display()),
        several => format!("give one of its files: {}", several.join(", ")),
    };
    Ok(PackError::NotACheckpoint { path, missing, advice })
}

/// What a file is, and what to give in its place.
fn about_file(path: &Path) -> String {
    let parent = Folder::of(path).0;
    if is_of(path, "elp") {
        "a packed file: run it with elapid".to_owned()
    } else if ["zip", "tar", "gz", "tgz", "xz", "zst", "7z"].iter().any(|archive| is_of(path, archive)) {
        "an archive: unpack it and give the folder".to_owned()
    } else if parent.join("config.json").exists() {
        format!("a file: give the folder that holds it, {}", parent.display())
    } else if Format::of(&path.to_string_lossy()) != Format::Gguf {
        format!("no config.json beside this file: {WANTED}")
    } else {
        format!("a file, not a folder: {WANTED}")
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
