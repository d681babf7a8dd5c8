//! The conventions of the Hub's own programs: where it is, who asks, and where its files are kept on this machine.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use crate::PackError;

/// The Hub.
const ENDPOINT: &str = "https://huggingface.co";
/// The longest token read, in bytes.
const LONGEST_TOKEN: u64 = 4096;
/// Seconds without a byte after which a connection counts as dead.
const TIMEOUT: u64 = 30;

/// Where the Hub is and how it is asked. [`Settings::from_env`] reads the variables of the Hub's own programs.
#[derive(Clone)]
pub struct Settings {
    /// The address, without a slash at its end.
    pub endpoint: String,
    /// The token of the account that asks. Nobody but the endpoint gets it.
    pub token: Option<String>,
    /// The folder in which the Hub's own programs keep files; only read.
    pub cache: Option<PathBuf>,
    /// Whether to use that folder alone, and no network.
    pub offline: bool,
    /// A file of certificates to trust, in place of those of the program.
    pub certificates: Option<PathBuf>,
    /// How long a connection may be silent.
    pub timeout: Duration,
    /// The pause before the first repetition of a request; it doubles with each.
    pub pause: Duration,
    /// Whether to give up.
    pub cancelled: fn() -> bool,
}

/// Without the token.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Settings {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`, and `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// If a variable makes no sense, or the file of the token can't be read.
    pub fn from_env() -> Result<Self, PackError> {
        Self::from(&|name| std::env::var_os(name))
    }

    fn from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, PackError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &'static str| -> Result<Option<String>, PackError> {
            let Some(value) = set(name) else { return Ok(None) };
            value.into_string().map(Some).map_err(|_| invalid(name, "is not UTF-8"))
        };
        let is_on = |name: &str| {
            set(name).is_some_and(|value| {
                ["1", "true", "yes", "on"].iter().any(|on| value.eq_ignore_ascii_case(on))
            })
        };
        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(invalid("HF_ENDPOINT", "is no address: it must begin with https://"));
        }
        let cache_home = set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
        let home =
            set("HF_HOME").map(PathBuf::from).or_else(|| cache_home.map(|cache| cache.join("huggingface")));
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let token = match text("HF_TOKEN")?.or(text("HUGGING_FACE_HUB_TOKEN")?) {
            Some(token) => Some(token),
            None => {
                let path = set("HF_TOKEN_PATH").map(PathBuf::from);
                path.or_else(|| Some(home.as_ref()?.join("token"))).map(read_token).transpose()?.flatten()
            }
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(invalid(
                "HF_TOKEN",
                "is no token of the Hub: it holds other characters than letters and digits",
            ));
        }
        let seconds = match text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            Some(seconds) => seconds
                .parse()
                .ok()
                .filter(|seconds| (1..=3600).contains(seconds))
                .ok_or_else(|| invalid("HF_HUB_DOWNLOAD_TIMEOUT", "must be 1 to 3600 seconds"))?,
            None => TIMEOUT,
        };
        Ok(Self {
            endpoint,
            token,
            cache: cache.or_else(|| Some(home?.join("hub"))),
            offline: is_on("HF_HUB_OFFLINE"),
            certificates: set("SSL_CERT_FILE").or_else(|| set("REQUESTS_CA_BUNDLE")).map(PathBuf::from),
            timeout: Duration::from_secs(seconds),
            pause: Duration::from_millis(500),
            cancelled: || false,
        })
    }
}

fn invalid(name: &'static str, reason: &str) -> PackError {
    let source = io::Error::new(io::ErrorKind::InvalidInput, format!("the environment variable {reason}"));
    PackError::Io { path: name.into(), source }
}

/// The token in a file; none if there is no file.
fn read_token(path: PathBuf) -> Result<Option<String>, PackError> {
    let mut token = String::new();
    match File::open(&path).and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut token)) {
        Ok(_) => Ok(Some(token)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PackError::Io { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, PackError> {
        Settings::from(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_environment_says_where_and_who() {
        let plain = settings(&[("HOME", "/nowhere")]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), (ENDPOINT, None, false));
        assert_eq!(plain.cache.as_deref(), Some(Path::new("/nowhere/.cache/huggingface/hub")));

        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let own = settings(&[
            ("HF_HOME", home),
            ("HF_ENDPOINT", "http://localhost:1/"),
            ("HF_HUB_OFFLINE", "True"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "7"),
        ])
        .unwrap();
        assert_eq!((own.endpoint.as_str(), own.offline), ("http://localhost:1", true));
        assert_eq!((own.token.as_deref(), own.timeout), (Some("hf_file"), Duration::from_secs(7)));
        assert_eq!(own.cache, Some(folder.path().join("hub")));
        assert!(!format!("{own:?}").contains("hf_file"));

        let other = folder.path().join("other");
        std::fs::write(&other, "hf_other").unwrap();
        let given =
            [("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap()), ("HF_HUB_CACHE", "/cache")];
        let given = settings(&given).unwrap();
        assert_eq!(
            (given.token.as_deref(), given.cache.as_deref()),
            (Some("hf_other"), Some(Path::new("/cache")))
        );
        let named = settings(&[("HF_HOME", home), ("HF_TOKEN", " hf_named ")]).unwrap();
        assert_eq!(named.token.as_deref(), Some("hf_named"));

        for wrong in [("HF_ENDPOINT", "ftp://x"), ("HF_TOKEN", "a\nb"), ("HF_HUB_DOWNLOAD_TIMEOUT", "0")] {
            assert!(settings(&[wrong]).unwrap_err().to_string().starts_with(wrong.0), "{wrong:?}");
        }
    }
}
