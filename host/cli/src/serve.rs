//! `elapid serve`: models over HTTP.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueHint;
use elapid::Model;
use elapid_args::{bytes, whole};
use elapid_files::interrupt;
use elapid_server::{ServeError, ServeOptions, serve};

use super::cache::{self, CacheArgs};
use super::error::Error;
use super::model::{ComputeArgs, StateArgs};

/// Serve models over HTTP
///
/// Clients of OpenAI's interface (http://127.0.0.1:8080/v1) and of Ollama's can use it. In a browser, http://127.0.0.1:8080/ is a page
/// for chats. `docs/server.md` lists all paths.
///
/// The texts of all requests are generated together, so that the weights are read once for all. The part of a prompt that an earlier
/// prompt began with is not computed again, also after a restart with the same --prompt-cache: its files are written when the server
/// ends.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed models, hf:ORG/NAME, or checkpoints to pack; the first one serves requests that name none. Default: the bundled one
    #[arg(value_hint = ValueHint::FilePath)]
    models: Vec<PathBuf>,

    /// Address to listen on; 0.0.0.0 for all networks of this machine
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080, value_parser = whole::<u16>(0..=u16::MAX.into()), allow_hyphen_values = true)]
    port: u16,
    /// Key that requests must send as `Authorization: Bearer KEY`; may be given several times. Default: the lines of the file
    /// that ELAPID_API_KEYS names, or none
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// Let web pages of this origin use the server, such as https://example.org, or `*` for any. Default: its own page only
    #[arg(long, value_name = "ORIGIN")]
    origin: Vec<String>,
    /// Certificates (PEM) for TLS, with --tls-key. Default: plain HTTP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM) for TLS, with --tls-cert. Default: plain HTTP
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Number of texts that are generated together
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = whole::<u8>(1..=64), allow_hyphen_values = true)]
    slots: u8,
    /// Number of requests that may wait; more are refused
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = whole::<u32>(1..=1_000_000), allow_hyphen_values = true)]
    queue: u32,
    /// Memory for the states of earlier prompts, for each model. Default: 64M, or an eighth of --ram if that is less
    #[arg(long, value_name = "SIZE", value_parser = cache_bytes, allow_hyphen_values = true)]
    cache: Option<usize>,
    #[command(flatten)]
    prompts: CacheArgs,
    /// Longest prompt in tokens
    #[arg(long, default_value_t = 131_072, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()), allow_hyphen_values = true)]
    max_prompt: u32,
    /// Limit of tokens of a text if its request has none
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()), allow_hyphen_values = true)]
    max_tokens: u32,
    /// Seconds until a request without an answer fails
    #[arg(long, default_value_t = 3600, value_name = "SECONDS", value_parser = whole::<u32>(1..=u32::MAX.into()), allow_hyphen_values = true)]
    timeout: u32,

    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

fn cache_bytes(text: &str) -> Result<usize, String> {
    if text == "0" { Ok(0) } else { bytes("64M, or 0")(text) }
}

/// The keys of a file, one in each line.
fn keys_of_file() -> Result<Vec<String>, Error> {
    let Some(path) = std::env::var_os("ELAPID_API_KEYS") else { return Ok(Vec::new()) };
    let path = Path::new(&path);
    let text = std::fs::read_to_string(path).map_err(|cause| Error::file(path, "read", cause))?;
    let keys: Vec<_> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if keys.is_empty() {
        return Err(Error::Usage(format!("{}: the file has no key: write one in each line", path.display())));
    }
    Ok(keys)
}

/// What clients call a model: the name of its file without `.elp` or of its folder, or its name on the Hub without the organisation.
fn name_of(model: &Path) -> String {
    // A folder may be given as `.`.
    let whole = if model.file_name().is_none() { model.canonicalize().ok() } else { None };
    let name = whole.as_deref().unwrap_or(model).file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(".elp").unwrap_or(&name).to_owned()
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let mut options = ServeOptions::default();
    options.host = args.host;
    options.port = args.port;
    options.api_keys = args.api_key;
    options.api_keys.extend(keys_of_file()?);
    if options.api_keys.iter().any(String::is_empty) {
        return Err(Error::Usage("--api-key: give a key that is not empty".into()));
    }
    options.origins = args.origin;
    options.tls = args.tls_cert.zip(args.tls_key);
    options.slots = args.slots.into();
    options.queue = args.queue as usize;
    options.cache = args.cache;
    options.prompt_cache = args.prompts.folder();
    if options.cache == Some(0) && options.prompt_cache.is_some() {
        return Err(Error::Usage(
            "--prompt-cache saves what --cache has in memory: give --cache more than 0".into(),
        ));
    }
    options.on_warning = cache::warn;
    options.max_prompt = args.max_prompt as usize;
    options.max_tokens = args.max_tokens as usize;
    options.timeout = Duration::from_secs(args.timeout.into());
    options.session = args.state.options()?;
    let mut names: Vec<_> = args.models.iter().map(|path| name_of(path)).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|names| names[0] == names[1]) {
        return Err(Error::Usage(format!("two models are called {:?}: rename a file", twice[0])));
    }
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    if options.api_keys.is_empty() && !["127.0.0.1", "::1", "localhost"].contains(&options.host.as_str()) {
        let host = &options.host;
        let _ =
            writeln!(io::stderr(), "warning: anyone who can reach {host} can use the models: see --api-key");
    }
    let (models, compute) = (args.models, args.compute);
    if models.len() > 1 && compute.capped() {
        return Err(Error::Usage("--ram caps one model: serve each model by a process of its own".into()));
    }
    let load = move || -> Result<Vec<(String, Model)>, Error> {
        let open = |model: Option<&Path>| {
            let opened = compute.open(model);
            // Packing ends with signals that end the program at once.
            interrupt::listen();
            opened
        };
        if models.is_empty() {
            return Ok(vec![("address-4m".to_owned(), open(None)?)]);
        }
        models.iter().map(|model| Ok((name_of(model), open(Some(model))?))).collect()
    };
    interrupt::listen();
    let ready = |address| {
        let _ = writeln!(io::stderr(), "serving at {scheme}://{address} (Ctrl-C ends it)");
    };
    serve(options, load, ready).map_err(|error| match error {
        ServeError::Load(error) => error,
        error @ ServeError::Tls { .. } => Error::Usage(error.to_string()),
        error => Error::Failed(error.to_string()),
    })
}
