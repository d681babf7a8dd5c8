//! A server on loopback that plays the Hugging Face Hub and the place where it stores large files, and misbehaves as told.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The commit that every revision is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Another model, whose files are those that begin with its name.
const TOKENIZER: &str = "EleutherAI/gpt-neox-20b";
/// How long a body stalls.
const STALL: Duration = Duration::from_secs(5);

/// Fills bytes of a file from an offset on.
pub type Make = Box<dyn Fn(u64, &mut [u8]) + Send>;

/// A file's content.
pub enum Content {
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// So many bytes, made when they are asked for.
    Made(u64, Make),
}

impl Content {
    /// Another number for another content.
    fn tag(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => {
                bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(*byte))
            }
            Self::Made(size, _) => *size,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Made(size, _) => *size,
        }
    }
}

/// A request as the server got it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whether it came to the place that stores large files, and not to the Hub.
    pub storage: bool,
    /// The path.
    pub path: String,
    /// The bytes it asks for.
    pub range: Option<Range<u64>>,
    /// What it has for `Authorization`.
    pub token: Option<String>,
    /// How many requests came before.
    pub number: usize,
}

/// What the server does in place of what it should.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers with a status and headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Ends the connection after so many bytes of the body.
    Cut(u64),
    /// Sends nothing more after so many bytes of the body, for a while.
    Stall(u64),
    /// Says that the body is a byte shorter than the range.
    Short,
    /// Says that the file has another size.
    OtherSize,
    /// Gives the range that begins a byte later.
    OtherRange,
    /// Gives the whole file.
    Whole,
    /// Names another ETag.
    OtherEtag,
}

type Rule = Box<dyn Fn(&Request) -> Option<Fault> + Send>;

/// What both servers share.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Content>,
    /// The token that the model asks for.
    token: Option<String>,
    rule: Option<Rule>,
    requests: Vec<Request>,
    /// Of each file, the ranges whose bytes were sent.
    sent: Vec<(String, Range<u64>)>,
    commit: String,
}

/// The server. It ends with the test's process.
pub struct Hub {
    state: Arc<Mutex<State>>,
    /// Its address.
    pub endpoint: String,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Starts one that has a model `org/model`.
    ///
    /// # Panics
    /// If there is no loopback.
    #[must_use]
    pub fn start(files: impl IntoIterator<Item = (String, Content)>) -> Self {
        let files = files.into_iter().collect();
        let state = State { files, commit: COMMIT.to_owned(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let storage = listen(&state, None);
        let endpoint = listen(&state, Some(storage));
        Self { state, endpoint }
    }

    /// [`Self::start`] with the files of a folder.
    ///
    /// # Panics
    /// If the folder can't be read.
    #[must_use]
    pub fn of_folder(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
        Self::start(entries.map(|entry| {
            let bytes = fs::read(entry.path()).expect("a file");
            (entry.file_name().into_string().expect("a name"), Content::Bytes(bytes))
        }))
    }

    /// Replaces or adds a file.
    pub fn put(&self, name: &str, content: Content) {
        lock(&self.state).files.insert(name.to_owned(), content);
    }

    /// Gives the model only to who has this token.
    pub fn gate(&self, token: &str) {
        lock(&self.state).token = Some(token.to_owned());
    }

    /// Moves every revision to another commit.
    pub fn move_to(&self, commit: &str) {
        commit.clone_into(&mut lock(&self.state).commit);
    }

    /// Misbehaves from now on as `rule` says of a request.
    pub fn misbehave(&self, rule: impl Fn(&Request) -> Option<Fault> + Send + 'static) {
        lock(&self.state).rule = Some(Box::new(rule));
    }

    /// Misbehaves no more.
    pub fn behave(&self) {
        lock(&self.state).rule = None;
    }

    /// The requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state).requests.clone()
    }

    /// The ranges of a file whose bytes were sent so far.
    #[must_use]
    pub fn sent(&self, file: &str) -> Vec<Range<u64>> {
        let state = lock(&self.state);
        state.sent.iter().filter(|(name, _)| name == file).map(|(_, range)| range.clone()).collect()
    }
}

/// Starts a server and returns its address. Only the Hub knows where large files are stored.
fn listen(state: &Arc<Mutex<State>>, storage: Option<String>) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let state = Arc::clone(state);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, storage) = (Arc::clone(&state), storage.clone());
            thread::spawn(move || serve(&state, storage.as_deref(), &stream));
        }
    });
    address
}

/// Answers the requests of a connection. A client that goes is none of the server's business.
fn serve(state: &Mutex<State>, storage: Option<&str>, stream: &TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            (&mut reader).take(1 << 16).read_line(&mut line).ok().filter(|length| *length > 0)?;
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let path = lines.first()?.split(' ').nth(1)?.to_owned();
        let header = |name: &str| {
            let of = |line: &String| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            };
            lines.iter().skip(1).find_map(of)
        };
        let range = header("range").and_then(|range| {
            let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some(start.parse().ok()?..last.parse::<u64>().ok()? + 1)
        });
        let (request, fault) = {
            let mut state = lock(state);
            let number = state.requests.len();
            let token = header("authorization");
            let request = Request { storage: storage.is_none(), path, range, token, number };
            state.requests.push(request.clone());
            let fault = state.rule.as_ref().and_then(|rule| rule(&request));
            (request, fault)
        };
        answer(state, storage, &request, fault, stream)?;
    }
}

/// Sends an answer; `None` if the connection is not to be used again.
fn answer(
    state: &Mutex<State>,
    storage: Option<&str>,
    request: &Request,
    fault: Option<Fault>,
    stream: &TcpStream,
) -> Option<()> {
    if let Some(Fault::Status(status, headers)) = &fault {
        return plain(stream, *status, headers, b"trouble");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let none = |status| plain(stream, status, &[("X-Error-Code", "EntryNotFound".into())], b"none");
    let (commit, token) = {
        let state = lock(state);
        (state.commit.clone(), state.token.clone())
    };
    let Some(storage) = storage else {
        // As S3 does: two ways to be authorized are one too many.
        if request.token.is_some() {
            return none(400);
        }
        return match path.strip_prefix("/blob/") {
            Some(file) => give(state, file, &[], request, fault, stream),
            None => none(404),
        };
    };
    let about = path.strip_prefix("/api/models/").and_then(|rest| rest.split_once("/revision/"));
    if let Some((model @ ("org/model" | TOKENIZER), revision)) = about
        && let files = listed(&lock(state).files, model)
        && !files.is_empty()
    {
        if revision == "nowhere" {
            return plain(stream, 404, &[("X-Error-Code", "RevisionNotFound".into())], b"none");
        }
        let files: Vec<String> = files.iter().map(|name| format!(r#"{{"rfilename":{name:?}}}"#)).collect();
        let body = format!(r#"{{"id":"{model}","sha":"{commit}","siblings":[{}]}}"#, files.join(","));
        return plain(stream, 200, &[("Content-Type", "application/json".into())], body.as_bytes());
    }
    if let Some(rest) = path.strip_prefix("/old/name/") {
        return plain(stream, 307, &[("Location", format!("/org/model/{rest}"))], b"");
    }
    if let Some(rest) = path.strip_prefix("/api/models/old/name/") {
        return plain(stream, 307, &[("Location", format!("/api/models/org/model/{rest}"))], b"");
    }
    if path.starts_with("/api/") {
        return plain(stream, 401, &[("X-Error-Code", "RepoNotFound".into())], b"none");
    }
    if token.is_some_and(|token| request.token.as_deref() != Some(&format!("Bearer {token}"))) {
        return plain(stream, 401, &[("X-Error-Code", "GatedRepo".into())], b"gated");
    }
    let of_tokenizer = path.strip_prefix(&format!("/{TOKENIZER}/resolve/{commit}/"));
    let of_tokenizer = of_tokenizer.map(|file| format!("{TOKENIZER}/{file}"));
    let file = path.strip_prefix(&format!("/org/model/resolve/{commit}/"));
    let Some(file) = of_tokenizer.as_deref().or(file) else { return none(404) };
    let Some((size, tag)) = lock(state).files.get(file).map(|content| (content.size(), content.tag())) else {
        return none(404);
    };
    let mut headers = vec![("X-Repo-Commit", commit)];
    if !["safetensors", "gguf", "bin"].iter().any(|end| file.ends_with(end)) {
        return give(state, file, &headers, request, fault, stream);
    }
    headers.push(("X-Linked-Size", size.to_string()));
    headers.push(("X-Linked-ETag", format!("\"{tag}\"")));
    headers.push(("Location", format!("{storage}/blob/{file}?signature={}", request.number)));
    plain(stream, 302, &headers, b"")
}

/// The files of a model.
fn listed(files: &BTreeMap<String, Content>, model: &str) -> Vec<String> {
    let own = |name: &String| match name.strip_prefix(TOKENIZER) {
        Some(rest) => (model == TOKENIZER).then(|| rest.trim_start_matches('/').to_owned()),
        None => (model != TOKENIZER).then(|| name.clone()),
    };
    files.keys().filter_map(own).collect()
}

/// Gives a file or a range of it.
fn give(
    state: &Mutex<State>,
    file: &str,
    headers: &[(&'static str, String)],
    request: &Request,
    fault: Option<Fault>,
    mut stream: &TcpStream,
) -> Option<()> {
    let size = lock(state).files.get(file)?.size();
    let mut range = request.range.clone().filter(|_| !matches!(fault, Some(Fault::Whole)));
    if let Some(range) = &mut range {
        range.end = range.end.min(size);
        if range.start >= size {
            return plain(stream, 416, &[("Content-Range", format!("bytes */{size}"))], b"");
        }
    }
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    let mut part = range.clone().unwrap_or(0..size);
    if matches!(fault, Some(Fault::OtherRange)) {
        part.start += 1;
    }
    let mut head = format!("HTTP/1.1 {status}\r\n");
    let etag = if matches!(fault, Some(Fault::OtherEtag)) { "other" } else { "own" };
    let stated = part.end - part.start - u64::from(matches!(fault, Some(Fault::Short)));
    head += &format!("ETag: \"{etag}-{file}\"\r\nContent-Length: {stated}\r\n");
    if range.is_some() {
        let size = size + u64::from(matches!(fault, Some(Fault::OtherSize)));
        head += &format!("Content-Range: bytes {}-{}/{size}\r\n", part.start, part.end - 1);
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n")).ok()?;
    let limit = match fault {
        Some(Fault::Cut(bytes) | Fault::Stall(bytes)) => bytes,
        _ => stated,
    };
    let mut at = part.start;
    let end = part.end.min(part.start + limit);
    let mut buffer = Vec::new();
    while at < end {
        buffer.resize((end - at).min(1 << 18) as usize, 0);
        match lock(state).files.get(file)? {
            Content::Bytes(bytes) => {
                let (start, length) = (at as usize, buffer.len());
                buffer.copy_from_slice(bytes.get(start..start + length)?);
            }
            Content::Made(_, make) => make(at, &mut buffer),
        }
        stream.write_all(&buffer).ok()?;
        lock(state).sent.push((file.to_owned(), at..at + buffer.len() as u64));
        at += buffer.len() as u64;
    }
    match fault {
        Some(Fault::Cut(_)) => None,
        Some(Fault::Stall(_)) => {
            thread::sleep(STALL);
            None
        }
        _ => Some(()),
    }
}

/// Sends a short answer.
fn plain(mut stream: &TcpStream, status: u16, headers: &[(&'static str, String)], body: &[u8]) -> Option<()> {
    let mut head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(b"\r\n").ok()?;
    stream.write_all(body).ok()
}
