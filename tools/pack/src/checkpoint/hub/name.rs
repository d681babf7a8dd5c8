//! Names of models of the Hugging Face Hub.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::PackError;

/// What the name of a model of the Hub begins with.
const PREFIX: &str = "hf:";
/// The branch where none is named.
const MAIN: &str = "main";
/// The longest name of a file, in bytes.
const LONGEST_FILE: usize = 512;

/// A model of the Hub, `hf:ORG/NAME[@REVISION][/FILE]`. No part of it leads out of a folder if it is used as a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    org: String,
    name: String,
    revision: Option<String>,
    file: Option<String>,
}

impl Name {
    /// The text after which a model of the Hub would be called, if `path` begins as such a name does.
    #[must_use]
    pub fn text(path: &Path) -> Option<&str> {
        path.to_str().filter(|text| text.starts_with(PREFIX))
    }

    /// Reads a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PackError> {
        let wrong = |reason: &str| {
            let reason = format!("{reason}: give hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE");
            PackError::NotAFolder { path: text.into(), reason }
        };
        let rest = text.strip_prefix(PREFIX).unwrap_or(text).trim_end_matches('/');
        let (org, rest) = rest.split_once('/').ok_or_else(|| wrong("not a model of the Hub"))?;
        let (name, rest) = rest.split_at(rest.find(['@', '/']).unwrap_or(rest.len()));
        let (revision, file) = match rest.strip_prefix('@') {
            None => (None, rest.strip_prefix('/')),
            Some(rest) => {
                // Branches are named without slashes here, but a pull request is `refs/pr/1`.
                let parts = if rest.starts_with("refs/") { 3 } else { 1 };
                let end = rest.match_indices('/').nth(parts - 1).map_or(rest.len(), |(at, _)| at);
                let (revision, file) = rest.split_at(end);
                (Some(revision), file.strip_prefix('/'))
            }
        };
        for (part, what) in [(org, "organization"), (name, "name")] {
            if !is_name(part) {
                return Err(wrong(&format!("`{}` is not the {what} of a model", part.escape_debug())));
            }
        }
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(wrong("the revision is not a branch, a tag or a commit"));
        }
        if file.is_some_and(|file| !is_file(file)) {
            return Err(wrong("not the name of a file of a model"));
        }
        let owned = |text: &str| text.to_owned();
        Ok(Self { org: owned(org), name: owned(name), revision: revision.map(owned), file: file.map(owned) })
    }

    /// `ORG/NAME`.
    #[must_use]
    pub fn model(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// Organization and name.
    #[must_use]
    pub fn parts(&self) -> (&str, &str) {
        (&self.org, &self.name)
    }

    /// Whether a revision is named.
    #[must_use]
    pub fn has_revision(&self) -> bool {
        self.revision.is_some()
    }

    /// The branch, tag or commit.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The file or folder, if one is named.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// How messages call a file of the model; the empty name is the model itself.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        let model = Self { file: None, ..self.clone() };
        if file.is_empty() { model.to_string().into() } else { format!("{model}/{file}").into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}/{}", self.org, self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, "/{file}"))
    }
}

/// Whether the Hub may call an organization or a model so.
fn is_name(text: &str) -> bool {
    (1..=96).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether a branch, tag or commit may be called so.
pub(super) fn is_revision(text: &str) -> bool {
    let is_part = |part: &str| {
        (1..=128).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
            && !part.starts_with(['-', '.'])
            && !part.contains("..")
    };
    text.split('/').count() <= 3 && text.split('/').all(is_part)
}

/// Whether it is a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether a file of a model may be called so: a path below it.
pub(super) fn is_file(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(|c: char| c.is_control() || c == '\\')
    };
    text.len() <= LONGEST_FILE && text.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_parts() {
        for (text, revision, file) in [
            ("hf:tiiuae/falcon-mamba-7b", "main", None),
            ("hf:a/b.c@v1.0", "v1.0", None),
            (
                "hf:a/b@0123456789abcdef0123456789abcdef01234567/gguf/x y.gguf",
                "0123456789abcdef0123456789abcdef01234567",
                Some("gguf/x y.gguf"),
            ),
            ("hf:a/b@refs/pr/1", "refs/pr/1", None),
            ("hf:a/b@refs/pr/1/x.gguf", "refs/pr/1", Some("x.gguf")),
            ("hf:a/b/x.gguf", "main", Some("x.gguf")),
        ] {
            let name = Name::parse(text).unwrap();
            assert_eq!((name.revision(), name.file(), name.to_string().as_str()), (revision, file, text));
        }
        assert_eq!(Name::parse("hf:a/b/").unwrap(), Name::parse("hf:a/b").unwrap());
        let name = Name::parse("hf:a/b@c/d").unwrap();
        assert_eq!(name.path("x"), Path::new("hf:a/b@c/x"));
    }

    #[test]
    fn no_name_leads_out_of_a_folder() {
        for text in [
            "hf:",
            "hf:a",
            "hf:a/",
            "hf:/b",
            "hf:../b",
            "hf:a/..",
            "hf:a/../../etc",
            "hf:.a/b",
            "hf:a/.b",
            "hf:a/b/..",
            "hf:a/b/../c",
            "hf:a/b//c",
            "hf:a/b/./c",
            "hf:a/b@",
            "hf:a/b@..",
            "hf:a/b@../x",
            "hf:a/b@refs/../..",
            "hf:a/b@refs/pr/..",
            "hf:a/b@-x",
            "hf:a/b\\c",
            "hf:a/b/c\\d",
            "hf:a/b\n",
            "hf:a/b/c\0d",
            "hf:a b/c",
            "hf:a/b?x",
            "hf:a/b@x%2f",
        ] {
            assert!(Name::parse(text).is_err(), "{text:?}");
        }
        assert!(Name::parse(&format!("hf:a/{}", "b".repeat(97))).is_err());
        assert!(Name::parse(&format!("hf:a/b/{}", "c".repeat(513))).is_err());
    }
}
