//! What is packed into the store: a model of the Hub, or a folder or a file of this machine.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf, absolute};

use elapid_pack::checkpoint::is_source;
use elapid_pack::hub::Name;

use crate::error::Error;

/// What a packed model in the store comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Hub(Name),
    Local(Local),
}

/// A folder or a file by its absolute path. It may be gone while what was packed of it is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Local {
    /// The folder that it is in.
    pub(crate) folder: String,
    pub(crate) name: String,
}

impl Source {
    /// Reads an argument that must be a source. `ORG/NAME` is a model of the Hub if there is no such file.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let is_path = !text.contains('/') || text.starts_with(['/', '.']) || Path::new(text).exists();
        if is_path && !text.starts_with("hf:") {
            return Local::of(Path::new(text)).map(Self::Local);
        }
        Ok(Self::Hub(Name::parse(text)?))
    }

    /// The source that a model's argument is; `None` for a packed file, and where nothing is.
    pub(crate) fn of(model: &Path) -> Result<Option<Self>, Error> {
        if let Some(name) = Name::text(model) {
            return Ok(Some(Self::Hub(Name::parse(name)?)));
        }
        if is_source(model) {
            return Local::of(model).map(|local| Some(Self::Local(local)));
        }
        Ok(None)
    }

    /// The source that was at a path where nothing is any more, if there can have been one.
    pub(crate) fn gone(model: &Path) -> Option<Self> {
        Local::of(model).ok().filter(|_| !model.exists()).map(Self::Local)
    }

    /// What the store calls it: its name without a revision.
    pub(crate) fn plain(&self) -> String {
        match self {
            Self::Hub(name) => {
                let file = name.file().map_or_else(String::new, |file| format!("/{file}"));
                format!("hf:{}{file}", name.model())
            }
            Self::Local(local) => local.path().display().to_string(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(name) => name.fmt(f),
            Self::Local(local) => local.path().display().fmt(f),
        }
    }
}

impl Local {
    fn of(path: &Path) -> Result<Self, Error> {
        let whole = match (path.parent(), path.file_name()) {
            // A link keeps its own name: that of what it leads to may be a checksum.
            (Some(folder), Some(name)) => {
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                fs::canonicalize(folder).map(|folder| folder.join(name))
            }
            _ => fs::canonicalize(path),
        };
        let whole = whole.or_else(|_| absolute(path)).unwrap_or_default();
        let text =
            |part: Option<&str>| part.filter(|text| !text.contains(char::is_control)).map(str::to_owned);
        let folder = text(whole.parent().and_then(Path::to_str));
        let name = text(whole.file_name().and_then(|name| name.to_str()));
        folder.zip(name).map(|(folder, name)| Self { folder, name }).ok_or_else(|| {
            let path = path.display();
            Error::Usage(format!(
                "{path:?}: the store takes only paths that are UTF-8 without control characters: give it another name"
            ))
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new(&self.folder).join(&self.name)
    }
}
