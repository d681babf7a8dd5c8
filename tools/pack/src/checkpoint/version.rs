//! Whether a folder or a file is still what it was.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use elapid_core::format::checksum;

use super::folder::{gguf_in, given, is_of, split_of};
use super::place::{Place, changed};
use super::shards::indexed;
use crate::PackError;

/// What tells the files at a path from any others that may be there later, in 40 hexadecimal digits: of the names, sizes and times of
/// all that packing may read.
///
/// # Errors
/// If there is nothing at the path, or nothing that can be a checkpoint.
pub fn version_of(path: &Path) -> Result<String, PackError> {
    let (folder, file) = given(path)?;
    let listed = folder.list()?.into_iter();
    let names: BTreeSet<String> = match gguf_in(&folder, file.as_ref())? {
        Some(name) => {
            let split = split_of(&name);
            listed.filter(|other| *other == name || split.is_some() && split_of(other) == split).collect()
        }
        None => {
            let read = ["json", "jinja", "safetensors", "bin", "pt", "pth"];
            let is_read = |name: &String| read.iter().any(|extension| is_of(Path::new(name), extension));
            listed.filter(is_read).chain(indexed(&folder)?).collect()
        }
    };
    let (mut all, mut bytes, mut newest) = (String::new(), 0u64, 0u64);
    for name in names {
        // What a link without its file will be shows when the file is there.
        let Some(about) = fs::metadata(folder.path(&name)).ok().filter(fs::Metadata::is_file) else {
            continue;
        };
        let time = changed(&about).map_or(0, |time| time as u64);
        let _ = writeln!(all, "{name:?} {} {time}", about.len());
        (bytes, newest) = (bytes.wrapping_add(about.len()), newest.max(time));
    }
    Ok(format!("{:08x}{bytes:016x}{newest:016x}", checksum(all.as_bytes())))
}
