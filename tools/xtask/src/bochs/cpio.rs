//! The archive from which Linux fills its first file system ("newc" format of cpio).

use std::collections::BTreeSet;
use std::path::{Component, Path};

use crate::error::{Context, Result};

const FOLDER: u32 = 0o40_755;
const PROGRAM: u32 = 0o100_755;

/// An archive as it grows.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds a folder, and those in which it lies.
    pub fn folder(&mut self, path: &Path) {
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        let mut whole = String::new();
        for name in names {
            if !whole.is_empty() {
                whole.push('/');
            }
            whole.push_str(name);
            if self.folders.insert(whole.clone()) {
                self.entry(&whole, FOLDER, &[]);
            }
        }
    }

    /// Adds a file of this machine as `path`.
    pub fn file(&mut self, path: &Path, from: &Path) -> Result<()> {
        let bytes = std::fs::read(from).context(|| format!("cannot read {}", from.display()))?;
        if let Some(folder) = path.parent() {
            self.folder(folder);
        }
        let path = path.strip_prefix("/").unwrap_or(path);
        self.entry(&path.to_string_lossy(), PROGRAM, &bytes);
        Ok(())
    }

    /// Adds a folder of this machine with all that is in it, where it is here.
    pub fn tree(&mut self, folder: &Path) -> Result<()> {
        self.folder(folder);
        let fail = || format!("cannot read {}", folder.display());
        for entry in std::fs::read_dir(folder).context(fail)? {
            let path = entry.context(fail)?.path();
            if path.is_dir() {
                self.tree(&path)?;
            } else {
                self.file(&path, &path)?;
            }
        }
        Ok(())
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        // inode, mode, user, group, links, time, size, device (two), device of a node (two), length of the name, checksum
        let (size, length) = (data.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_folders_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive
            .file(Path::new("/a/b/c"), Path::new(file!()).file_name().map_or(Path::new("/"), Path::new))
            .unwrap_err();
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        archive.file(Path::new("/a/b/c"), &here).unwrap();
        archive.file(Path::new("/a/d"), &here).unwrap();
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let places =
            ["a\0", "a/b\0", "a/b/c\0", "a/d\0", "TRAILER!!!\0"].map(|name| text.find(name).unwrap());
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("070701").count(), 5);
        assert_eq!(text.matches("[package]").count(), 2);
    }
}
