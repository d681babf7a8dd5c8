//! Packed models on this machine, each bound to the state of its source and a type of weights.
//!
//! `models/hf/ORG/NAME/COMMIT/[FILE.]QUANT.elp` below the store's folder is a packed model of the Hub; its name says all that is known
//! of it, so that it is there whole or not at all. `refs/REVISION` beside the commits says which of them a branch or tag was when it was
//! asked for last. `models/local/FOLDER/NAME/VERSION/QUANT.elp` is that of a folder or a file of this machine.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use elapid_files::Output;
use elapid_pack::checkpoint::version_of;
use elapid_pack::hub::Name;
use elapid_pack::write::remove_partial;

use crate::error::Error;
use crate::source::Source;

/// How the names of packed models and of unfinished ones end.
const PACKED: &str = ".elp";
const PARTIAL: &str = ".elp.part";
/// The folders of models of the Hub, and of those of this machine.
const HUB: &str = "hf";
const LOCAL: &str = "local";
/// The longest name of a file or folder in the store, in bytes.
const LONGEST: usize = 200;

/// The folder of packed models.
pub(crate) struct Store(PathBuf);

/// A model in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `hf:ORG/NAME`, `hf:ORG/NAME/FILE`, or the path of a folder or a file.
    pub(crate) name: String,
    pub(crate) quant: String,
    /// The commit, or what stands for it: 40 hexadecimal digits.
    pub(crate) revision: String,
    pub(crate) bytes: u64,
    pub(crate) changed: SystemTime,
    pub(crate) path: PathBuf,
    /// Whether all of it is there.
    pub(crate) complete: bool,
}

impl Store {
    /// The user's: `ELAPID_HOME`, or the folder `elapid` among the user's data.
    pub(crate) fn of_user() -> Result<Self, Error> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = set("ELAPID_HOME")
            .or_else(|| Some(set("XDG_DATA_HOME").filter(|path| path.is_absolute())?.join("elapid")))
            .or_else(|| Some(set("HOME")?.join(".local/share/elapid")));
        let home = home.ok_or_else(|| {
            Error::Usage("no folder for models: set ELAPID_HOME to the folder that should hold them".into())
        })?;
        Ok(Self(home.join("models")))
    }

    /// The folder of all revisions of a model.
    fn folder(&self, source: &Source) -> PathBuf {
        match source {
            Source::Hub(name) => {
                let (org, model) = name.parts();
                self.0.join(HUB).join(org).join(model)
            }
            Source::Local(local) => self.0.join(LOCAL).join(escape(&local.folder)).join(escape(&local.name)),
        }
    }

    fn reference(&self, source: &Source, name: &Name) -> PathBuf {
        self.folder(source).join("refs").join(escape(name.revision()))
    }

    /// Whether anything of a source is there.
    pub(crate) fn has(&self, source: &Source) -> bool {
        self.folder(source).is_dir()
    }

    /// The commit that a name's revision was when it was asked for last, or what a source of this machine is now.
    pub(crate) fn revision(&self, source: &Source) -> Result<Option<String>, Error> {
        let known = match source {
            Source::Hub(name) if is_revision(name.revision()) => Some(name.revision().to_owned()),
            Source::Hub(name) => fs::read_to_string(self.reference(source, name)).ok(),
            Source::Local(local) if local.path().exists() => Some(version_of(&local.path())?),
            // It is gone: what was packed last.
            Source::Local(_) => {
                let all = self.all_of(source)?.into_iter().filter(|entry| entry.complete);
                all.max_by_key(|entry| entry.changed).map(|entry| entry.revision)
            }
        };
        Ok(known.map(|known| known.trim().to_owned()).filter(|known| is_revision(known)))
    }

    /// Where a packed model lies, or will.
    pub(crate) fn path(&self, source: &Source, revision: &str, quant: &str) -> Result<PathBuf, Error> {
        let file = match source {
            Source::Hub(name) => name.file().map(|file| format!("{}.", escape(file))),
            Source::Local(_) => None,
        };
        let file = format!("{}{quant}{PACKED}", file.unwrap_or_default());
        let path = self.folder(source).join(revision).join(file);
        let own = path.strip_prefix(&self.0).unwrap_or(&path);
        if own.iter().any(|part| part.len() > LONGEST) {
            return Err(Error::Usage(format!(
                "{source}: the name or path is too long for the store: pack it with elapid-pack"
            )));
        }
        Ok(path)
    }

    /// Notes that a name's revision is this commit.
    pub(crate) fn refer(&self, source: &Source, commit: &str) -> Result<(), Error> {
        let Source::Hub(name) = source else { return Ok(()) };
        if is_revision(name.revision()) {
            return Ok(());
        }
        let path = self.reference(source, name);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            let mut output = Output::create(&path)?;
            output.write_all(commit.as_bytes())?;
            output.finish()
        });
        written.map_err(|cause| Error::file(path, "write", cause))
    }

    /// The packed models of a source at the revision that it is.
    pub(crate) fn of(&self, source: &Source) -> Result<Vec<Entry>, Error> {
        let Some(revision) = self.revision(source)? else { return Ok(Vec::new()) };
        let mut all = self.all_of(source)?;
        all.retain(|entry| entry.complete && entry.revision == revision);
        Ok(all)
    }

    /// All that is there of a source, also what is not finished.
    pub(crate) fn all_of(&self, source: &Source) -> Result<Vec<Entry>, Error> {
        let wanted = source.plain();
        Ok(self.entries()?.into_iter().filter(|entry| entry.name == wanted).collect())
    }

    /// All models, by their names.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for kind in [HUB, LOCAL] {
            let root = self.0.join(kind);
            for first in names(&root)? {
                for second in names(&root.join(&first))? {
                    let folder = root.join(&first).join(&second);
                    let Some(model) = model(kind, &first, &second) else { continue };
                    for revision in names(&folder)?.into_iter().filter(|name| is_revision(name)) {
                        for file in names(&folder.join(&revision))? {
                            let path = folder.join(&revision).join(&file);
                            entries.extend(entry(&model, &revision, &file, path));
                        }
                    }
                }
            }
        }
        entries.sort_by(|a, b| (&a.name, &a.revision, a.bytes).cmp(&(&b.name, &b.revision, b.bytes)));
        Ok(entries)
    }

    /// Removes a model. Returns the bytes that are free now.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<u64, Error> {
        let freed = if entry.complete {
            fs::remove_file(&entry.path).map_err(|cause| Error::file(entry.path.clone(), "remove", cause))?;
            entry.bytes
        } else {
            remove_partial(&entry.path)
        };
        // Remove folders that are now empty, up to the first that is not. References to removed commits are useless.
        let folders: Vec<&Path> = entry.path.ancestors().skip(1).take(3).collect();
        if let [revision, model, org] = folders[..]
            && fs::remove_dir(revision).is_ok()
        {
            if !names(model)?.iter().any(|name| is_revision(name)) {
                let _ = fs::remove_dir_all(model.join("refs"));
            }
            let _ = fs::remove_dir(model).and_then(|()| fs::remove_dir(org));
        }
        Ok(freed)
    }
}

/// What a model is called by the two folders that it is in.
fn model(kind: &str, first: &str, second: &str) -> Option<String> {
    match kind {
        HUB => Some(format!("hf:{first}/{second}")),
        _ => Some(Path::new(&unescape(first)?).join(unescape(second)?).display().to_string()),
    }
}

/// Where an unfinished model lies.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

fn is_revision(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The names in a folder, sorted; none if there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(cause) => return Err(Error::file(folder, "read", cause)),
    };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn entry(model: &str, revision: &str, file: &str, path: PathBuf) -> Option<Entry> {
    let complete = file.ends_with(PACKED);
    let stem = file.strip_suffix(if complete { PACKED } else { PARTIAL })?;
    let (name, quant) = match stem.rsplit_once('.') {
        Some((file, quant)) => (format!("{model}/{}", unescape(file)?), quant),
        None => (model.to_owned(), stem),
    };
    let about = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    Some(Entry {
        name,
        quant: quant.to_owned(),
        revision: revision.to_owned(),
        bytes: about.len(),
        changed: about.modified().ok()?,
        path,
        complete,
    })
}

/// A text as a file's name, from which it can be read again.
fn escape(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let escaped = text.bytes().map(|byte| match byte {
        _ if keep(byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    escaped.collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn name(text: &str) -> Source {
        Source::parse(text).unwrap()
    }

    #[test]
    fn models_are_found_by_what_they_were_packed_from() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store(folder.path().join("models"));
        assert_eq!(store.entries().unwrap(), []);
        let put = |text: &str, quant: &str| {
            let path = store.path(&name(text), COMMIT, quant).unwrap();
            assert!(path.starts_with(folder.path()) && !path.to_str().unwrap().contains(".."));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, quant).unwrap();
            path
        };
        put("hf:a/b", "q4");
        put("hf:a/b", "f16");
        let file = put("hf:a/b/x y/z.gguf", "q8");
        fs::write(partial(&store.path(&name("hf:a/c"), COMMIT, "q4").unwrap()), "").unwrap_err();
        let unfinished = partial(&put("hf:a/c", "q4"));
        fs::write(&unfinished, "1234567").unwrap();

        let shown = |entries: Vec<Entry>| {
            let show = |e: Entry| format!("{} {} {} {}", e.name, e.quant, e.bytes, e.complete);
            entries.into_iter().map(show).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(store.entries().unwrap()),
            [
                "hf:a/b q4 2 true",
                "hf:a/b f16 3 true",
                "hf:a/b/x y/z.gguf q8 2 true",
                "hf:a/c q4 2 true",
                "hf:a/c q4 7 false"
            ]
        );
        // What a branch is must have been asked for.
        assert_eq!(store.of(&name("hf:a/b")).unwrap(), []);
        store.refer(&name("hf:a/b"), COMMIT).unwrap();
        store.refer(&name("hf:a/b@refs/pr/1"), COMMIT).unwrap();
        for text in ["hf:a/b", "hf:a/b@refs/pr/1", &format!("hf:a/b@{COMMIT}")] {
            assert_eq!(shown(store.of(&name(text)).unwrap()), ["hf:a/b q4 2 true", "hf:a/b f16 3 true"]);
        }
        assert_eq!(store.of(&name("hf:a/b/x y/z.gguf")).unwrap()[0].path, file);

        for entry in store.entries().unwrap() {
            assert_eq!(store.remove(&entry).unwrap(), entry.bytes);
        }
        assert_eq!(names(&store.0.join("hf")).unwrap(), [""; 0]);
        assert!(store.path(&name(&format!("hf:a/b/{}", "é".repeat(50))), COMMIT, "q4").is_err());
    }
}
