//! Requests to the Hub: redirects, what is repeated and how often, and who gets the token.

use std::io::{self, Read};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::header::{self, HeaderMap, HeaderName};
use ureq::http::{StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::name::Name;
use super::settings::Settings;
use crate::PackError;

/// How often a request is made without that any byte comes of it.
const TRIES: u32 = 6;
/// The longest pause before a request is repeated. A server that wants more is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Bytes after which a transfer counts as one that makes progress.
const PROGRESS: u64 = 64 << 10;
/// Redirects that may follow one another.
const REDIRECTS: usize = 5;
/// Connections that are kept for the next request: two for each thread.
const IDLE: usize = 16;
/// What a connection takes in memory for what it reads and what it writes. A response's header must fit.
const BUFFERS: (usize, usize) = (64 << 10, 16 << 10);

/// What kept a request from being answered.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may pass: after so long, if the server said so.
    Passing(String, Option<Duration>),
    /// It won't.
    Final(String),
}

/// A successful answer, or a status that its receiver must look at.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The headers of the Hub's own answer, where that led elsewhere.
    pub(super) first: Option<HeaderMap>,
    pub(super) body: Body,
    /// Where the answer came from in the end.
    pub(super) url: Uri,
}

impl Answer {
    /// A header of the Hub's own answer, or else of where that led to.
    pub(super) fn own(&self, name: &str) -> Option<&str> {
        text(self.first.as_ref().unwrap_or(&self.headers), name)
    }
}

/// A header's text.
pub(super) fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    pub(super) settings: Settings,
    /// Who may see the token.
    own: Uri,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Result<Self, PackError> {
        let own = settings.endpoint.parse::<Uri>().ok().filter(|uri| uri.authority().is_some());
        let own = own.ok_or_else(|| PackError::Io {
            path: "HF_ENDPOINT".into(),
            source: io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{}` is no address", settings.endpoint),
            ),
        })?;
        let timeout = Some(settings.timeout);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("elapid/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .input_buffer_size(BUFFERS.0)
            .output_buffer_size(BUFFERS.1)
            .max_response_header_size(BUFFERS.0 / 2)
            .max_idle_connections(IDLE)
            .max_idle_connections_per_host(IDLE)
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_per_read(timeout)
            .timeout_per_write(timeout);
        if let Some(path) = &settings.certificates {
            let pem = std::fs::read(path).map_err(PackError::io(path))?;
            let items = parse_pem(&pem).filter_map(Result::ok);
            let certificates: Vec<_> = items
                .filter_map(|item| match item {
                    PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                let source = io::Error::new(
                    io::ErrorKind::InvalidData,
                    "holds no certificates in PEM (SSL_CERT_FILE)",
                );
                return Err(PackError::Io { path: path.clone(), source });
            }
            let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build();
            config = config.tls_config(tls);
        }
        Ok(Self { agent: config.build().new_agent(), settings, own })
    }

    /// An address of the Hub.
    pub(super) fn address(&self, path: &str) -> Result<Uri, Trouble> {
        let text = format!("{}{path}", self.settings.endpoint);
        text.parse().map_err(|_| Trouble::Final(format!("`{text}` is no address")))
    }

    /// Where people read about a model.
    pub(super) fn page(&self, name: &Name) -> String {
        format!("{}/{}", self.settings.endpoint, name.model())
    }

    /// What to do where the Hub does not give something to this account.
    pub(super) fn forbidden(&self, name: &Name, answer: &Answer) -> Trouble {
        let (page, status) = (self.page(name), answer.status);
        let account = match self.settings.token {
            Some(_) => "the account of your token (HF_TOKEN)",
            None => "an account, and put a token of it into HF_TOKEN",
        };
        Trouble::Final(if text(&answer.headers, "x-error-code") == Some("GatedRepo") {
            format!("a gated model: accept its licence at {page} with {account}")
        } else {
            format!(
                "no such model, or it is private or gated ({status}): check the name; if {page} asks for it, accept the licence with {account}"
            )
        })
    }

    /// Asks for a file or a range of one, and follows redirects. The token goes to the Hub itself only.
    pub(super) fn get(&self, url: &Uri, range: Option<&Range<u64>>) -> Result<Answer, Trouble> {
        let mut url = url.clone();
        let mut first = None;
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(range) = range {
                request = request
                    .header(header::RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            }
            if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_own(&url)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.failed(&url, error))?;
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status, parts.headers);
            if !status.is_redirection() {
                return Ok(Answer { status, headers, first, body, url });
            }
            let host = host(&url);
            let lost = || Trouble::Final(format!("{host} leads to an address that is none"));
            let target = text(&headers, header::LOCATION.as_str()).ok_or_else(lost)?;
            let next = resolve(&url, target).ok_or_else(lost)?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(Trouble::Final(format!("{host} leads to an address without encryption")));
            }
            // The Hub's answer about the file, which what stores the file does not know.
            if self.is_own(&url) && !self.is_own(&next) {
                first = Some(headers);
            }
            url = next;
        }
        Err(Trouble::Final(format!("more than {REDIRECTS} redirects")))
    }

    /// Whether an address is the Hub's own, and not of another who stores its files.
    fn is_own(&self, url: &Uri) -> bool {
        let origin = |url: &Uri| {
            (url.scheme_str().map(str::to_owned), url.host().map(str::to_ascii_lowercase), port(url))
        };
        origin(url) == origin(&self.own)
    }

    fn failed(&self, url: &Uri, error: ureq::Error) -> Trouble {
        let host = host(url);
        match error {
            ureq::Error::Timeout(_) => Trouble::Passing(
                format!("{host} said nothing for {} seconds", self.settings.timeout.as_secs_f32()),
                None,
            ),
            ureq::Error::HostNotFound => {
                Trouble::Passing(format!("{host} was not found: is this machine connected?"), None)
            }
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => untrusted(&host, &error),
            ureq::Error::Rustls(error) => untrusted(&host, &error),
            ureq::Error::Io(error) => Trouble::Passing(format!("no connection to {host}: {error}"), None),
            ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) | ureq::Error::BodyStalled => {
                Trouble::Passing(format!("{host}: {error}"), None)
            }
            error => Trouble::Final(format!("{host}: {error}")),
        }
    }

    /// What a body's reader met.
    pub(super) fn cut(&self, url: &Uri, error: io::Error) -> Trouble {
        let error = match error.downcast::<ureq::Error>() {
            Ok(error) => error,
            Err(error) => ureq::Error::Io(error),
        };
        match error {
            ureq::Error::Io(error) => {
                Trouble::Passing(format!("the connection to {} was cut: {error}", host(url)), None)
            }
            error => self.failed(url, error),
        }
    }

    /// Makes requests until one succeeds, with growing pauses. `attempt` is given what to add progress to: a transfer that makes
    /// some may be interrupted any number of times.
    pub(super) fn repeat<T>(
        &self,
        tries: u32,
        mut attempt: impl FnMut(&mut u64) -> Result<T, Trouble>,
    ) -> io::Result<T> {
        let mut failures = 0;
        loop {
            if (self.settings.cancelled)() {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            let mut progress = 0;
            let (reason, wanted) = match attempt(&mut progress) {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(reason)) => return Err(io::Error::other(reason)),
                Err(Trouble::Passing(reason, wanted)) => (reason, wanted),
            };
            if progress >= PROGRESS {
                failures = 0;
            }
            failures += 1;
            if failures >= tries {
                let reason = format!("{reason} ({failures} times): try again later");
                return Err(io::Error::other(reason));
            }
            let own = self.settings.pause.saturating_mul(1 << (failures - 1).min(16));
            let pause = wanted.unwrap_or(own);
            if pause > LONGEST_PAUSE {
                let reason = format!("{reason}: try again in {} seconds", pause.as_secs());
                return Err(io::Error::other(reason));
            }
            self.rest(pause);
        }
    }

    /// Waits, unless the program is to end.
    fn rest(&self, pause: Duration) {
        let start = Instant::now();
        while let Some(left) = pause.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            if (self.settings.cancelled)() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// [`Self::repeat`] with the usual number of tries.
    pub(super) fn insist<T>(&self, attempt: impl FnMut(&mut u64) -> Result<T, Trouble>) -> io::Result<T> {
        self.repeat(TRIES, attempt)
    }
}

/// A connection that can't be made secure.
fn untrusted(host: &str, error: &dyn std::fmt::Display) -> Trouble {
    Trouble::Final(format!(
        "{host}: {error}: if there is a proxy or a mirror with certificates of its own, name their file in SSL_CERT_FILE"
    ))
}

/// What a status that is no success means, if it says nothing of the file or the model.
pub(super) fn refused(answer: &Answer) -> Trouble {
    let Answer { status, headers, url, .. } = answer;
    let host = host(url);
    let reason = match text(headers, "x-error-message") {
        Some(message) => format!("{host} answered {status}: {}", message.escape_debug()),
        None => format!("{host} answered {status}"),
    };
    let passing = status.is_server_error()
        || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(status);
    if !passing {
        return Trouble::Final(reason);
    }
    let wanted = text(headers, header::RETRY_AFTER.as_str()).and_then(|seconds| seconds.parse().ok());
    Trouble::Passing(reason, wanted.map(Duration::from_secs))
}

/// Reads a body of at most `limit` bytes.
pub(super) fn read_whole(client: &Client, answer: Answer, limit: u64) -> Result<Vec<u8>, Trouble> {
    let stated = answer.body.content_length();
    let mut bytes = Vec::new();
    let read = answer.body.into_reader().take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| client.cut(&answer.url, error))?;
    if bytes.len() as u64 > limit {
        return Err(Trouble::Final(format!("more than {limit} bytes")));
    }
    if stated.is_some_and(|stated| stated != bytes.len() as u64) {
        return Err(Trouble::Passing(format!("the answer of {} is incomplete", host(&answer.url)), None));
    }
    Ok(bytes)
}

/// The part of a file that a response has, and the file's size: `bytes 0-9/100`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(Option<Range<u64>>, u64)> {
    let name: HeaderName = header::CONTENT_RANGE;
    let (range, size) = text(headers, name.as_str())?.strip_prefix("bytes ")?.split_once('/')?;
    let size = size.parse().ok()?;
    if range == "*" {
        return Some((None, size));
    }
    let (start, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
    Some((Some(start..last.checked_add(1)?), size))
}

/// Where a redirect leads: a whole address, or a path at the same place.
fn resolve(from: &Uri, target: &str) -> Option<Uri> {
    if target.starts_with("https://") || target.starts_with("http://") {
        return target.parse().ok();
    }
    let path = target.strip_prefix('/').filter(|path| !path.starts_with('/'))?;
    format!("{}://{}/{path}", from.scheme_str()?, from.authority()?).parse().ok()
}

fn port(url: &Uri) -> u16 {
    url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 })
}

/// How messages call where something comes from.
pub(super) fn host(url: &Uri) -> String {
    url.host().unwrap_or("the Hub").to_owned()
}

/// A path's part for an address: what has a meaning there is escaped.
pub(super) fn escape(text: &str, keep: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_addresses() {
        let from: Uri = "https://hub.example:8443/a/b?c".parse().unwrap();
        let leads = |target| resolve(&from, target).map(|uri| uri.to_string());
        assert_eq!(leads("/x/y?z").as_deref(), Some("https://hub.example:8443/x/y?z"));
        assert_eq!(leads("http://else.example/").as_deref(), Some("http://else.example/"));
        for target in ["//else.example/x", "x", "ftp://x/", ""] {
            assert_eq!(leads(target), None, "{target}");
        }
    }

    #[test]
    fn ranges_are_read_and_paths_escaped() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, value.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(of("bytes 2-5/9"), Some((Some(2..6), 9)));
        assert_eq!(of("bytes */9"), Some((None, 9)));
        for wrong in ["bytes 2-5/*", "bytes 2-18446744073709551615/9", "2-5/9", "bytes -5/9"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(escape("a/b c?#%é", b"/"), "a/b%20c%3F%23%25%C3%A9");
        assert_eq!(escape("refs/pr/1", b""), "refs%2Fpr%2F1");
    }
}
