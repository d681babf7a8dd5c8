//! Models of the Hugging Face Hub: small files are read whole, weights by ranges, as they are needed. Nothing is stored.
//!
//! ```no_run
//! # fn main() -> Result<(), elapid_pack::PackError> {
//! use elapid_pack::hub::{Name, Settings, Source};
//!
//! let name = Name::parse("hf:state-spaces/mamba-130m-hf")?;
//! let source = Source::find(&name, Settings::from_env()?)?;
//! println!("{name} is at commit {}", source.commit());
//! let checkpoint = source.open()?;
//! # Ok(())
//! # }
//! ```

mod file;
mod http;
mod name;
mod settings;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use ureq::http::StatusCode;

pub use name::Name;
pub use settings::Settings;

use super::Checkpoint;
use super::place::{Folder, Place, Ranges};
use crate::PackError;
use file::{Chunks, RemoteFile, Shared};
use http::{Client, Trouble, escape, read_whole, refused, text};

/// The largest list of a model's files read, in bytes.
const LIST_LIMIT: u64 = 16 << 20;
/// Where the tokenizer of the original Mamba models is.
const ORIGINAL_TOKENIZER: &str = "hf:EleutherAI/gpt-neox-20b";
/// Tries of the first request: a machine without a network should not have to wait to be told so.
const FIRST_TRIES: u32 = 3;
/// Folders of a cache that are looked into, one below the other.
const DEPTH: usize = 4;
/// Names that an error lists at most.
const LISTED: usize = 12;

/// A model of the Hub at a commit.
#[derive(Debug)]
pub struct Source {
    name: Name,
    commit: String,
    pub(crate) place: Box<dyn Place>,
    /// The file of weights, if one is named.
    pub(crate) file: Option<String>,
    settings: Settings,
}

/// What the Hub says of a model.
#[derive(Deserialize)]
struct About {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Source {
    /// The model that an argument names, with the user's settings; `None` if it names none of the Hub.
    pub(crate) fn named(argument: &Path) -> Result<Option<Self>, PackError> {
        let Some(name) = Name::text(argument) else { return Ok(None) };
        Self::find(&Name::parse(name)?, Settings::from_env()?).map(Some)
    }

    /// Asks the Hub what a model's revision is. If the settings say that there is no network, or all is there, the files are those
    /// in the cache.
    ///
    /// # Errors
    /// If the Hub can't be asked, has no such model, revision or file, or gives it only to others.
    pub fn find(name: &Name, settings: Settings) -> Result<Self, PackError> {
        let (org, model) = name.parts();
        let cache = settings.cache.as_ref().map(|cache| cache.join(format!("models--{org}--{model}")));
        if settings.offline {
            return Self::cached(name, cache.as_deref(), settings);
        }
        let client = Client::new(settings.clone())?;
        let failed = |source| PackError::Io { path: name.path(""), source };
        let about = client.repeat(FIRST_TRIES, |_| ask(&client, name)).map_err(failed)?;
        if !name::is_commit(&about.sha) {
            return Err(failed(io::Error::other("the Hub's answer names no commit")));
        }
        // Names that lead elsewhere are nobody's.
        let files = about.siblings.into_iter().map(|sibling| sibling.rfilename);
        let files: BTreeSet<String> = files.filter(|file| name::is_file(file)).collect();
        let snapshot =
            cache.map(|cache| cache.join("snapshots").join(&about.sha)).filter(|path| path.is_dir());
        let (folder, file) = split(name, &files)?;
        let commit = about.sha;
        let shared = Shared { client, name: name.clone(), commit: commit.clone(), chunks: Chunks::default() };
        let shared = Arc::new(shared);
        let opened = AtomicUsize::new(0);
        let place = Box::new(Repository { name: name.clone(), shared, files, folder, snapshot, opened });
        Ok(Self { name: name.clone(), commit, place, file, settings })
    }

    /// What the cache has.
    fn cached(name: &Name, cache: Option<&Path>, settings: Settings) -> Result<Self, PackError> {
        let missing = |cache: &Path| PackError::Io {
            path: name.path(""),
            source: io::Error::new(
                io::ErrorKind::NotFound,
                format!("not in the cache ({}), and HF_HUB_OFFLINE forbids to download it", cache.display()),
            ),
        };
        let cache = cache.ok_or_else(|| missing(Path::new("none")))?;
        let revision = name.revision();
        let commit = if name::is_commit(revision) {
            revision.to_owned()
        } else {
            let commit = fs::read_to_string(cache.join("refs").join(revision)).map_err(|_| missing(cache))?;
            commit.trim().to_owned()
        };
        let snapshot = cache.join("snapshots").join(&commit);
        if !name::is_commit(&commit) || !snapshot.is_dir() {
            return Err(missing(cache));
        }
        let mut files = BTreeSet::new();
        list(&snapshot, "", DEPTH, &mut files);
        let (folder, file) = split(name, &files)?;
        let place = Box::new(Folder(snapshot.join(folder)));
        Ok(Self { name: name.clone(), commit, place, file, settings })
    }

    /// The commit that the revision is.
    #[must_use]
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Opens the model as [`Checkpoint::open`] opens a folder. An original Mamba model without a tokenizer has the one that all of them
    /// share, from its own model on the Hub.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(self) -> Result<Checkpoint, PackError> {
        let mut checkpoint = Checkpoint::open_in(self.place, self.file.as_deref())?;
        add_tokenizer(&mut checkpoint, self.settings)?;
        Ok(checkpoint)
    }
}

/// Gives an original Mamba model that has no tokenizer the one that all of them share.
pub(crate) fn add_tokenizer(checkpoint: &mut Checkpoint, settings: Settings) -> Result<(), PackError> {
    if !checkpoint.is_original() || checkpoint.tokenizer_json()?.is_some() {
        return Ok(());
    }
    match Source::find(&Name::parse(ORIGINAL_TOKENIZER)?, settings) {
        Ok(source) => checkpoint.use_tokenizer_in(source.place, ORIGINAL_TOKENIZER.as_ref()),
        // Without a network there is none, which a note says.
        Err(PackError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Asks for a model's commit and files.
fn ask(client: &Client, name: &Name) -> Result<About, Trouble> {
    let url =
        client.address(&format!("/api/models/{}/revision/{}", name.model(), escape(name.revision(), b"")))?;
    let answer = client.get(&url, None)?;
    match answer.status {
        StatusCode::NOT_FOUND if text(&answer.headers, "x-error-code") == Some("RevisionNotFound") => {
            let page = client.page(name);
            return Err(Trouble::Final(format!(
                "the model has no revision `{}`: see {page}",
                name.revision()
            )));
        }
        StatusCode::NOT_FOUND => return Err(Trouble::Final("no such model: check the name".into())),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(client.forbidden(name, &answer)),
        _ => {}
    }
    if !answer.status.is_success() {
        return Err(refused(&answer));
    }
    let bytes = read_whole(client, answer, LIST_LIMIT)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Trouble::Final(format!("{url} does not answer as the Hub does: {error}")))
}

/// The folder of a model's files that is meant, with a slash at its end unless it is all of them, and the file.
fn split(name: &Name, files: &BTreeSet<String>) -> Result<(String, Option<String>), PackError> {
    let Some(file) = name.file() else { return Ok((String::new(), None)) };
    if files.contains(file) {
        let (folder, file) = file.split_at(file.rfind('/').map_or(0, |at| at + 1));
        return Ok((folder.to_owned(), Some(file.to_owned())));
    }
    let folder = format!("{file}/");
    if files.iter().any(|file| file.starts_with(&folder)) {
        return Ok((folder, None));
    }
    let weights = ["gguf", "safetensors", "bin", "pt", "pth"];
    let is_weights =
        |file: &&String| weights.iter().any(|end| Path::new(file).extension() == Some(end.as_ref()));
    let known: Vec<&str> = files.iter().filter(is_weights).map(String::as_str).collect();
    let more = if known.len() > LISTED { ", …" } else { "" };
    let known = known.get(..LISTED).unwrap_or(&known).join(", ");
    let reason = format!("the model has no such file; its weights are in {known}{more}");
    Err(PackError::Io { path: name.path(file), source: io::Error::new(io::ErrorKind::NotFound, reason) })
}

/// Lists the files below a folder.
fn list(folder: &Path, prefix: &str, depth: usize, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        if !entry.path().is_dir() {
            files.insert(name);
        } else if depth > 1 {
            list(&entry.path(), &format!("{name}/"), depth - 1, files);
        }
    }
}

/// A model's files, or a folder of them.
#[derive(Debug)]
struct Repository {
    name: Name,
    shared: Arc<Shared>,
    files: BTreeSet<String>,
    /// What the names of the folder's files begin with: nothing, or a folder with a slash.
    folder: String,
    /// Where the Hub's own programs have put files of this commit.
    snapshot: Option<PathBuf>,
    /// Files opened so far.
    opened: AtomicUsize,
}

impl Place for Repository {
    fn path(&self, name: &str) -> PathBuf {
        self.name.path(format!("{}{name}", self.folder).trim_end_matches('/'))
    }

    fn list(&self) -> Result<Vec<String>, PackError> {
        let here = self.files.iter().filter_map(|file| file.strip_prefix(&self.folder));
        Ok(here.filter(|file| !file.contains('/')).map(str::to_owned).collect())
    }

    fn has(&self, name: &str) -> Result<bool, PackError> {
        Ok(self.files.contains(&format!("{}{name}", self.folder)))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Ranges>>, PackError> {
        if !self.has(name)? {
            return Ok(None);
        }
        let file = format!("{}{name}", self.folder);
        if let Some(snapshot) = &self.snapshot {
            let snapshot = Folder(snapshot.clone());
            // A link without its file is as good as none.
            if let Ok(Some(found)) = snapshot.open(&file) {
                return Ok(Some(found));
            }
        }
        let failed = |source| PackError::Io { path: self.path(name), source };
        let address =
            format!("/{}/resolve/{}/{}", self.name.model(), self.shared.commit, escape(&file, b"/"));
        let url = self.shared.client.address(&address).map_err(|trouble| match trouble {
            Trouble::Passing(reason, _) | Trouble::Final(reason) => failed(io::Error::other(reason)),
        })?;
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let opened = RemoteFile::open(&self.shared, number, url).map_err(failed)?;
        Ok(Some(Box::new(opened)))
    }
}
