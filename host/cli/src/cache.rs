//! The prompt cache: `--prompt-cache`.

use std::io::{self, Write};
use std::path::PathBuf;

use elapid::{Error as LibraryError, Model, PrefixCache};
use elapid_args::bytes;

use crate::error::Error;

/// Bytes of files unless --prompt-cache-size says otherwise.
const BYTES: u64 = 1 << 30;

/// Options of the prompt cache.
#[derive(clap::Args)]
pub(super) struct CacheArgs {
    /// Folder in which the states after prompts are kept: of a prompt that begins as an earlier one did, only the rest is computed.
    /// Several programs can use it at the same time. Default: none
    #[arg(long, value_name = "DIR")]
    prompt_cache: Option<PathBuf>,
    /// Size of the files in the folder of --prompt-cache; the least valuable are removed first. Default: 1G
    #[arg(long, value_name = "SIZE", value_parser = bytes::<u64>("1G"), allow_hyphen_values = true, requires = "prompt_cache")]
    prompt_cache_size: Option<u64>,
}

impl CacheArgs {
    /// The folder, if one is given, and the size of its files.
    pub(super) fn folder(&self) -> Option<(PathBuf, u64)> {
        Some((self.prompt_cache.clone()?, self.prompt_cache_size.unwrap_or(BYTES)))
    }

    /// The cache, if there is to be one, counted under the model's cap.
    pub(super) fn open(&self, model: &Model) -> Result<Option<PrefixCache>, Error> {
        let Some((folder, bytes)) = self.folder() else { return Ok(None) };
        // This program feeds one prompt at a time: copies in memory would serve nothing that files don't.
        let cache = PrefixCache::new(0).on_disk(&folder, bytes)?;
        Ok(Some(cache.count_in(model)))
    }
}

/// Prints on standard error what was wrong with files of the cache.
pub(super) fn report_files(cache: &PrefixCache) {
    cache.take_warnings().iter().for_each(warn);
}

/// Prints what is wrong with the cache or one of its files.
pub(super) fn warn(error: &LibraryError) {
    let without = match error {
        LibraryError::File { .. } | LibraryError::SessionFile { .. } => " works without this file",
        _ => "",
    };
    // Nobody may be there to read it.
    let _ = writeln!(io::stderr(), "warning: the prompt cache{without}: {error}");
}
