//! A file of the Hub that is read by ranges.
//!
//! A range that was announced ([`Ranges::expect`]) is one request, whose answer is handed out as it comes: nothing of it is kept.
//! Other reads are small: they take whole chunks, some of which are kept.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ureq::BodyReader;
use ureq::http::header::HeaderMap;
use ureq::http::{StatusCode, Uri, header};

use super::http::{Answer, Client, Trouble, content_range, host, read_whole, refused, text};
use super::name::Name;
use crate::checkpoint::place::Ranges;

/// Bytes that are asked for at a time where nothing was announced.
pub(super) const CHUNK: u64 = 256 << 10;
/// Chunks that are kept of all files.
const CHUNKS: usize = 32;
/// Announced ranges that are remembered of a file. Those that are never read are forgotten.
const EXPECTED: usize = 4096;
/// The largest file that is taken whole from a server that gives no ranges, in bytes.
const WHOLE: u64 = 128 << 20;

/// A lock whose holder may have panicked: what it guards is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of a file, that of a chunk in it, and the chunk.
type Chunk = (usize, u64, Arc<[u8]>);

/// Chunks of all files of a model, the last used first.
#[derive(Debug, Default)]
pub(super) struct Chunks(Mutex<VecDeque<Chunk>>);

impl Chunks {
    fn get(&self, file: usize, index: u64) -> Option<Arc<[u8]>> {
        let mut chunks = lock(&self.0);
        let at = chunks.iter().position(|(of, known, _)| (*of, *known) == (file, index))?;
        let found = chunks.remove(at)?;
        let bytes = Arc::clone(&found.2);
        chunks.push_front(found);
        Some(bytes)
    }

    fn put(&self, file: usize, index: u64, bytes: Arc<[u8]>) {
        let mut chunks = lock(&self.0);
        chunks.push_front((file, index, bytes));
        chunks.truncate(CHUNKS);
    }
}

/// What all files of a model share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) name: Name,
    pub(super) commit: String,
    pub(super) chunks: Chunks,
}

/// A range that was announced, and the answer to the request for it once that was made.
struct Expected {
    at: u64,
    end: u64,
    body: Option<(BodyReader<'static>, Uri)>,
}

/// What the first answer said of a file, which all others must say.
#[derive(Debug, Default)]
struct Known {
    /// Where the file was found last: asking there spares the redirect.
    direct: Option<Uri>,
    /// The ETag by what stores it, and who that is.
    stored: Option<(String, String)>,
}

pub(super) struct RemoteFile {
    shared: Arc<Shared>,
    /// The file's number among those of the model.
    number: usize,
    url: Uri,
    size: u64,
    /// The ETag by the Hub.
    etag: Option<String>,
    known: Mutex<Known>,
    expected: Mutex<VecDeque<Expected>>,
    /// Held while a chunk is fetched: two threads that want the same one fetch it once.
    fetching: Mutex<()>,
}

impl std::fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteFile").field("url", &self.url).field("size", &self.size).finish_non_exhaustive()
    }
}

/// An ETag without the mark of a weak one, and without its quotes.
fn etag(headers: &HeaderMap, name: &str) -> Option<String> {
    text(headers, name).map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned())
}

fn changed(what: &str) -> Trouble {
    Trouble::Final(format!("{what}: the file changed while it was read; start again"))
}

impl RemoteFile {
    /// Opens a file by reading its first chunk.
    pub(super) fn open(shared: &Arc<Shared>, number: usize, url: Uri) -> io::Result<Self> {
        let client = &shared.client;
        client.insist(|_| {
            let answer = client.get(&url, Some(&(0..CHUNK)))?;
            let mut file = Self {
                shared: Arc::clone(shared),
                number,
                url: url.clone(),
                size: 0,
                etag: answer.own("x-linked-etag").map(|tag| tag.trim_matches('"').to_owned()),
                known: Mutex::default(),
                expected: Mutex::default(),
                fetching: Mutex::default(),
            };
            if answer.own("x-repo-commit").is_some_and(|commit| commit != shared.commit) {
                return Err(changed("the Hub gives another commit"));
            }
            let stated = answer.own("x-linked-size").and_then(|size| size.parse().ok());
            let range = content_range(&answer.headers);
            let bytes = match (answer.status, range) {
                (StatusCode::PARTIAL_CONTENT, Some((Some(range), size))) => {
                    file.size = size;
                    if range != (0..CHUNK.min(size)) {
                        return Err(other_range(&answer));
                    }
                    file.note(&answer)?;
                    read_whole(client, answer, CHUNK)?
                }
                // An empty file has no first byte.
                (StatusCode::RANGE_NOT_SATISFIABLE, Some((None, 0))) => Vec::new(),
                (StatusCode::OK, _) => {
                    if stated.or(answer.body.content_length()).is_some_and(|size| size > WHOLE) {
                        return Err(Trouble::Final(format!(
                            "{} gives whole files only, and this one is too large for that",
                            host(&answer.url)
                        )));
                    }
                    file.note(&answer)?;
                    let bytes = read_whole(client, answer, WHOLE)?;
                    file.size = bytes.len() as u64;
                    bytes
                }
                // The list of a gated model's files is for everybody, and the files are not.
                (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) if answer.first.is_none() => {
                    return Err(client.forbidden(&shared.name, &answer));
                }
                _ => return Err(refused(&answer)),
            };
            if stated.is_some_and(|stated| stated != file.size) || (bytes.len() as u64) < CHUNK.min(file.size)
            {
                return Err(Trouble::Passing("the Hub states another size than the file has".into(), None));
            }
            for (index, chunk) in (0..).zip(bytes.chunks(CHUNK as usize)) {
                shared.chunks.put(number, index, chunk.into());
            }
            Ok(file)
        })
    }

    /// Notes who stores the file, or checks that it is the same file as before.
    fn note(&self, answer: &Answer) -> Result<(), Trouble> {
        let mut known = lock(&self.known);
        if let Some(tag) = &self.etag
            && answer.own("x-linked-etag").is_some_and(|own| own.trim_matches('"') != tag)
        {
            return Err(changed("its ETag is another one"));
        }
        if let Some(tag) = etag(&answer.headers, header::ETAG.as_str()) {
            let stored = (host(&answer.url), tag);
            match &known.stored {
                // Another place may have tags of its own.
                Some((place, tag)) if *place == stored.0 && *tag != stored.1 => {
                    return Err(changed("its ETag is another one"));
                }
                _ => known.stored = Some(stored),
            }
        }
        known.direct = Some(answer.url.clone());
        Ok(())
    }

    /// Asks for a range.
    fn request(&self, range: &Range<u64>) -> Result<(BodyReader<'static>, Uri), Trouble> {
        let direct = lock(&self.known).direct.clone();
        let answer = self.shared.client.get(direct.as_ref().unwrap_or(&self.url), Some(range))?;
        let gone = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::GONE];
        if direct.is_some_and(|direct| direct != self.url) && gone.contains(&answer.status) {
            // The address was good for a while only.
            lock(&self.known).direct = None;
            return self.request(range);
        }
        match (answer.status, content_range(&answer.headers)) {
            (StatusCode::PARTIAL_CONTENT, Some((found, size))) => {
                if size != self.size {
                    return Err(changed(&format!("it had {} bytes and has {size}", self.size)));
                }
                let stated = answer.body.content_length();
                if found.as_ref() != Some(range) || stated.is_some_and(|n| n != range.end - range.start) {
                    return Err(other_range(&answer));
                }
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some((None, size))) if size != self.size => {
                return Err(changed(&format!("it had {} bytes and has {size}", self.size)));
            }
            (StatusCode::OK | StatusCode::PARTIAL_CONTENT, _) => {
                return Err(Trouble::Final(format!(
                    "{} does not give the part of the file that it was asked for",
                    host(&answer.url)
                )));
            }
            _ => return Err(refused(&answer)),
        }
        self.note(&answer)?;
        Ok((answer.body.into_reader(), answer.url))
    }

    /// Fills `bytes` from `expected`, which begins there and has as many. A connection that is lost is replaced by one for what is
    /// left.
    fn take(&self, expected: &mut Expected, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        self.shared.client.insist(|progress| {
            while done < bytes.len() {
                let Some((body, url)) = &mut expected.body else {
                    expected.body = Some(self.request(&(expected.at..expected.end))?);
                    continue;
                };
                let read = body.read(&mut bytes[done..]).map_err(|error| self.shared.client.cut(url, error));
                let trouble = match read {
                    Ok(0) => Trouble::Passing(format!("{} sent less than it said", host(url)), None),
                    Ok(length) => {
                        done += length;
                        expected.at += length as u64;
                        *progress += length as u64;
                        continue;
                    }
                    Err(trouble) => trouble,
                };
                expected.body = None;
                return Err(trouble);
            }
            Ok(())
        })
    }

    /// The announced range that begins at `offset` and has as many bytes.
    fn find(&self, offset: u64, length: u64) -> Option<Expected> {
        let mut expected = lock(&self.expected);
        let fits = |range: &Expected| range.at == offset && range.end - range.at >= length;
        let at = expected.iter().position(fits)?;
        expected.remove(at)
    }

    /// Copies what the first of these bytes are in chunks that are kept, and returns how many.
    fn kept(&self, bytes: &mut [u8], offset: u64) -> usize {
        let mut copied = 0;
        for (index, within, piece) in pieces(bytes, offset) {
            let chunk = self.shared.chunks.get(self.number, index);
            let Some(found) = chunk.as_ref().and_then(|chunk| chunk.get(within..within + piece.len())) else {
                break;
            };
            piece.copy_from_slice(found);
            copied += found.len();
        }
        copied
    }

    fn chunk(&self, index: u64) -> io::Result<Arc<[u8]>> {
        let _alone = lock(&self.fetching);
        if let Some(chunk) = self.shared.chunks.get(self.number, index) {
            return Ok(chunk);
        }
        let (at, end) = (index * CHUNK, self.size.min((index + 1) * CHUNK));
        let mut bytes = vec![0; (end - at) as usize];
        self.take(&mut Expected { at, end, body: None }, &mut bytes)?;
        let chunk: Arc<[u8]> = bytes.into();
        self.shared.chunks.put(self.number, index, Arc::clone(&chunk));
        Ok(chunk)
    }
}

/// `bytes` by the chunks they lie in: a chunk's index, and where in it.
fn pieces(bytes: &mut [u8], offset: u64) -> impl Iterator<Item = (u64, usize, &mut [u8])> {
    let (mut rest, mut at) = (bytes, offset);
    std::iter::from_fn(move || {
        let within = (at % CHUNK) as usize;
        let length = rest.len().min(CHUNK as usize - within);
        let (piece, later) = std::mem::take(&mut rest).split_at_mut(length);
        let index = at / CHUNK;
        (rest, at) = (later, at + length as u64);
        (length > 0).then_some((index, within, piece))
    })
}

fn other_range(answer: &Answer) -> Trouble {
    Trouble::Passing(
        format!("{} gave another part of the file than it was asked for", host(&answer.url)),
        None,
    )
}

impl Ranges for RemoteFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let length = bytes.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(mut expected) = self.find(offset, length) {
            // The start of a small file is there already.
            let kept = if expected.body.is_none() { self.kept(bytes, offset) } else { 0 };
            expected.at += kept as u64;
            self.take(&mut expected, &mut bytes[kept..])?;
            self.put_back(expected);
            return Ok(());
        }
        if length > CHUNK {
            return self.take(&mut Expected { at: offset, end: offset + length, body: None }, bytes);
        }
        for (index, within, piece) in pieces(bytes, offset) {
            let chunk = self.chunk(index)?;
            let found = chunk.get(within..within + piece.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            piece.copy_from_slice(found);
        }
        Ok(())
    }

    fn expect(&self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).min(self.size);
        if offset < end {
            self.put_back(Expected { at: offset, end, body: None });
        }
    }

    fn version(&self) -> Option<String> {
        let stored = || lock(&self.known).stored.as_ref().map(|(_, tag)| tag.clone());
        self.etag.clone().or_else(stored)
    }
}

impl RemoteFile {
    /// Keeps an announced range for the next read, if something is left of it.
    fn put_back(&self, mut expected: Expected) {
        if expected.at < expected.end {
            let mut all = lock(&self.expected);
            all.push_back(expected);
            if all.len() > EXPECTED {
                all.pop_front();
            }
        } else if let Some((body, _)) = &mut expected.body {
            // Reading its end gives the connection back, for the next request.
            let _ = body.read(&mut [0]);
        }
    }
}
