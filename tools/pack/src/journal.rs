//! Which blocks of an unfinished file are finished: so that packing can go on after an interruption.
//!
//! The journal lies beside the unfinished file. It begins with all that the file's bytes depend on; if any of that is another by now,
//! nothing is kept. Then follows a record for each block: its number, its checksum, and a bound on its logits if it is of the head. A
//! block counts as finished if it is in the unfinished file with that checksum.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use elapid_core::format::{Config, Fields, Layout, PerMatrix, checksum, emit_header};

use crate::PackError;

const MAGIC: &[u8; 8] = b"elapidj1";
/// The largest journal that is read, in bytes: 5 million blocks.
const LIMIT: u64 = 64 << 20;

/// Where the journal of an unfinished file lies.
pub(crate) fn journal_of(part: &Path) -> PathBuf {
    let mut path = part.as_os_str().to_owned();
    path.push(".journal");
    path.into()
}

/// A finished block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) checksum: u32,
    /// The bits of the largest bound on a logit; 0 for blocks that are not of the head.
    pub(crate) largest_logit: u32,
}

/// The finished blocks, by the numbers of their checksums.
pub(crate) type Done = HashMap<u32, Finished>;

/// A journal that is being written.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// What the weights come from.
    source: String,
    data: u32,
}

impl Journal {
    /// Opens the journal of the unfinished file `part`, or begins one. Only one program may do so at a time.
    ///
    /// `source` must be another wherever the weights may be others, `data` are the sections that are not weights.
    pub(crate) fn open(part: &Path, source: &str, data: [&[u8]; 4]) -> Result<Self, PackError> {
        let path = journal_of(part);
        let mut options = File::options();
        let file = options.read(true).append(true).create(true).open(&path).map_err(PackError::io(&path))?;
        let sums: Vec<u8> = data.iter().flat_map(|bytes| checksum(bytes).to_le_bytes()).collect();
        Ok(Self { path, file, source: source.to_owned(), data: checksum(&sums) })
    }

    /// What is known of an earlier attempt at a file of this configuration: how it is laid out, and its finished blocks.
    pub(crate) fn read(&self, config: Config) -> Result<Option<(Layout, Done)>, PackError> {
        let mut bytes = Vec::new();
        (&self.file).take(LIMIT).read_to_end(&mut bytes).map_err(PackError::io(&self.path))?;
        // Whether rows have exponents is known only when they have been packed once.
        let Some(flags) = bytes.get(MAGIC.len()) else { return Ok(None) };
        let [embedding, in_proj, x_proj, dt_proj, out_proj, head] =
            [0, 1, 2, 3, 4, 5].map(|bit| flags >> bit & 1 == 1);
        let exponents = PerMatrix { embedding, in_proj, x_proj, dt_proj, out_proj, head };
        let Ok(layout) = Config::new(Fields { exponents, ..*config }).and_then(Layout::new) else {
            return Ok(None);
        };
        let Some(records) = bytes.strip_prefix(&*self.head(&layout)) else { return Ok(None) };
        let (records, _cut) = records.as_chunks::<12>();
        let word = |record: &[u8; 12], at: usize| {
            record[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let finished = records.iter().map(|record| {
            let finished = Finished { checksum: word(record, 4), largest_logit: word(record, 8) };
            (word(record, 0), finished)
        });
        Ok(Some((layout, finished.collect())))
    }

    /// What a journal of a file begins with.
    fn head(&self, layout: &Layout) -> Vec<u8> {
        let exponents = layout.config().exponents.all();
        let flags = exponents.iter().rev().fold(0, |flags, has| flags << 1 | u8::from(*has));
        let mut head = MAGIC.to_vec();
        head.push(flags);
        for part in [self.source.as_bytes(), env!("CARGO_PKG_VERSION").as_bytes()] {
            head.extend((part.len() as u32).to_le_bytes());
            head.extend(part);
        }
        head.extend(emit_header(layout, self.data, 0));
        head
    }

    /// Begins anew: nothing is finished.
    pub(crate) fn restart(&self, layout: &Layout) -> Result<(), PackError> {
        let begun = self.file.set_len(0).and_then(|()| (&self.file).write_all(&self.head(layout)));
        begun.map_err(PackError::io(&self.path))
    }

    /// Adds a block that was written.
    pub(crate) fn add(&self, block: u32, finished: Finished) -> Result<(), PackError> {
        let mut record = [0; 12];
        let words = [block, finished.checksum, finished.largest_logit];
        for (bytes, word) in record.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        // One write: records of several threads don't mix.
        (&self.file).write_all(&record).map_err(PackError::io(&self.path))
    }

    /// Removes it.
    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}
