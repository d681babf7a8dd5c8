//! Checkpoints, tokenizers and texts that tests read. They lie compressed in `files` and are unpacked when they are asked for.
//!
//! Where they come from and under which licence: `README.md` beside `Cargo.toml`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ruzstd::decoding::StreamingDecoder;

/// How a compressed file's name ends.
const COMPRESSED: &str = ".zst";

/// The path of a file or folder of the test data, such as `models/address-4m` or `text/sotu.txt`.
///
/// # Panics
/// If there is no such file, or the build folder can't be written.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let to = root.join("../../target/test-data").join(name);
    let from = root.join("files").join(name);
    unpack(&from, &to)
        .unwrap_or_else(|error| panic!("cannot unpack {} to {}: {error}", from.display(), to.display()));
    to
}

/// The text of a file of the test data.
///
/// # Panics
/// As [`path`], or if it is not UTF-8.
#[must_use]
pub fn text(name: &str) -> String {
    let file = path(name);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()))
}

/// The last 2% of each training text, by characters, joined: what the bundled models have not seen.
///
/// The split is that of `tools/train/train.py`.
///
/// # Panics
/// As [`text`].
#[must_use]
pub fn held_out_text() -> String {
    texts(|text, trained_on| text.chars().skip(trained_on).collect())
}

/// What the bundled models were trained on: the rest of the texts.
///
/// # Panics
/// As [`text`].
#[must_use]
pub fn training_text() -> String {
    texts(|text, trained_on| text.chars().take(trained_on).collect())
}

/// A part of each training text, joined.
fn texts(part: impl Fn(&str, usize) -> String) -> String {
    let texts = ["text/sotu.txt", "text/moby-dick.txt"].map(text);
    texts.iter().map(|text| part(text, (text.chars().count() as f64 * 0.98) as usize)).collect()
}

/// Unpacks a file, or all files below a folder, unless what is there is newer.
fn unpack(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            let name = name.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
            let name = name.strip_suffix(COMPRESSED).unwrap_or(name);
            unpack(&from.join(name), &to.join(name))?;
        }
        return Ok(());
    }
    let compressed = PathBuf::from(format!("{}{COMPRESSED}", from.display()));
    let source = if from.is_file() { from } else { &compressed };
    let changed = fs::metadata(source)?.modified()?;
    if fs::metadata(to).and_then(|about| about.modified()).is_ok_and(|unpacked| unpacked >= changed) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    // Tests run side by side: each unpacks under a name of its own, and the last rename wins.
    let unique = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let part = to.with_extension(format!("{}-{unique}.part", std::process::id()));
    let mut input = File::open(source)?;
    let mut output = File::create_new(&part)?;
    if source == compressed {
        let mut input = StreamingDecoder::new(input).map_err(io::Error::other)?;
        io::copy(&mut input, &mut output)?;
    } else {
        io::copy(&mut input, &mut output)?;
    }
    fs::rename(part, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_unpacked_whole() {
        let folder = path("models/address-4m");
        let size = |name: &str| fs::metadata(folder.join(name)).unwrap().len();
        assert_eq!((size("model.safetensors"), size("tokenizer.json")), (7_360_288, 268_469));
        assert!(size("config.json") > 0);
    }

    #[test]
    fn texts_are_those_that_the_models_were_trained_on() {
        assert_eq!(text("text/moby-dick.txt").len(), 1_204_997);
        assert_eq!(text("text/sotu.txt").len(), 10_761_413);
    }

    /// Lengths and ends as `tests/reference/held_out.py` gives them.
    #[test]
    fn held_out_text_is_that_of_python() {
        let text = held_out_text();
        assert_eq!((text.chars().count(), text.len()), (239_008, 240_788));
        assert!(text.starts_with("ndon their agenda or Republicans simply "));
        assert!(text.ends_with("n as it rolled five thousand years ago.\n"));
    }

    #[test]
    #[should_panic(expected = "cannot unpack")]
    fn what_is_not_there_is_named() {
        let _ = path("no/such/file");
    }
}
