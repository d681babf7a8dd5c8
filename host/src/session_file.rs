//! Session files, byte by byte: `docs/session.md`. Bytes are untrusted.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use elapid_core::format::checksum;
use elapid_core::model::snapshot::{Sink, Source};
use elapid_core::sample::Sampler;

use crate::error::SessionFault;
use crate::message::Message;

const MAGIC: [u8; 8] = *b"ELAPSESS";
/// The version that this program writes, and the newest that it reads.
const VERSION: u16 = 1;
/// Bytes of the header.
const HEAD: usize = 64;
/// Bytes of content between two checksums.
const BLOCK: usize = 64 << 10;
/// Bytes of content that messages may take.
const MOST_MESSAGES: u64 = 256 << 20;

/// What a session file holds beside the state.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub tokens: Vec<u32>,
    pub pending: Vec<u32>,
    pub sampler: Option<(Sampler, u64)>,
    pub messages: Vec<Message>,
}

/// The header's fields.
#[derive(Clone, Copy, Debug)]
struct Header {
    tokens: u64,
    pending: u32,
    seed: Option<u64>,
    messages: u64,
    snapshot: u64,
}

impl Header {
    fn emit(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[11] = u8::from(self.seed.is_some());
        bytes[12..16].copy_from_slice(&self.pending.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seed.unwrap_or(0).to_le_bytes());
        bytes[32..40].copy_from_slice(&self.messages.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.snapshot.to_le_bytes());
        let sum = checksum(&bytes[..HEAD - 4]);
        bytes[HEAD - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; HEAD]) -> Result<Self, SessionFault> {
        if bytes[0..8] != MAGIC {
            return Err(SessionFault::NotSession);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(SessionFault::Version { found: version, known: VERSION });
        }
        let word = |at: usize| {
            let word = bytes[at..at + 8].try_into();
            word.map_or(0, u64::from_le_bytes)
        };
        let header = Self {
            tokens: word(16),
            pending: u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]),
            seed: (bytes[11] == 1).then(|| word(24)),
            messages: word(32),
            snapshot: word(40),
        };
        // The checksum is right, and what is not known is 0.
        if header.emit() == *bytes { Ok(header) } else { Err(SessionFault::Header) }
    }

    /// Bytes of the sampler, the tokens and the messages.
    fn before_snapshot(&self) -> Option<u64> {
        let sampler = if self.seed.is_some() { Sampler::BYTES as u64 } else { 0 };
        let tokens = self.tokens.checked_add(u64::from(self.pending))?.checked_mul(4)?;
        sampler.checked_add(tokens)?.checked_add(self.messages)
    }

    /// Bytes of the file.
    fn file_bytes(&self) -> Option<u64> {
        let content = self.before_snapshot()?.checked_add(self.snapshot)?;
        content.checked_add(4 * content.div_ceil(BLOCK as u64))?.checked_add(HEAD as u64)
    }
}

/// Bytes of a file of so many tokens and a state of `snapshot` bytes alone.
pub(crate) fn bytes_of(tokens: u64, snapshot: u64) -> u64 {
    let header = Header { tokens, pending: 0, seed: None, messages: 0, snapshot };
    header.file_bytes().unwrap_or(u64::MAX)
}

/// Content on its way to a file: blocks with their checksums.
pub(crate) struct Writer<'f> {
    out: BufWriter<&'f File>,
    block: Vec<u8>,
}

impl Writer<'_> {
    fn end_block(&mut self) -> io::Result<()> {
        self.out.write_all(&self.block)?;
        self.out.write_all(&checksum(&self.block).to_le_bytes())?;
        self.block.clear();
        Ok(())
    }
}

impl Sink for Writer<'_> {
    type Error = io::Error;

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK {
                self.end_block()?;
            }
            bytes = rest;
        }
        Ok(())
    }
}

/// Writes a session file: `snapshot` writes the state, which takes `snapshot_bytes`.
pub(crate) fn write<E: From<io::Error>>(
    file: &File,
    contents: &Contents,
    snapshot_bytes: u64,
    snapshot: impl FnOnce(&mut Writer<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Contents { tokens, pending, sampler, messages } = contents;
    let text = emit_messages(messages);
    let header = Header {
        tokens: tokens.len() as u64,
        pending: pending.len() as u32,
        seed: sampler.as_ref().map(|(_, seed)| *seed),
        messages: text.len() as u64,
        snapshot: snapshot_bytes,
    };
    let mut out = Writer { out: BufWriter::new(file), block: Vec::with_capacity(BLOCK) };
    out.out.write_all(&header.emit())?;
    if let Some((sampler, _)) = sampler {
        out.write(&sampler.to_bytes())?;
    }
    for token in tokens.iter().chain(pending) {
        out.write(&token.to_le_bytes())?;
    }
    out.write(&text)?;
    snapshot(&mut out)?;
    if !out.block.is_empty() {
        out.end_block()?;
    }
    Ok(out.out.flush()?)
}

/// Content of a file, each block verified before any of it is given.
pub(crate) struct Reader<'f> {
    file: BufReader<&'f File>,
    block: Vec<u8>,
    /// Bytes of the block that were given.
    given: usize,
    /// Bytes of content in later blocks.
    left: u64,
    /// Blocks that were read.
    blocks: u64,
}

impl Reader<'_> {
    fn next_block(&mut self) -> Result<(), SessionFault> {
        let len = self.left.min(BLOCK as u64) as usize;
        if len == 0 {
            return Err(SessionFault::Contents("it ends before what it holds"));
        }
        self.block.resize(len, 0);
        let mut sum = [0; 4];
        self.file.read_exact(&mut self.block).map_err(SessionFault::Io)?;
        self.file.read_exact(&mut sum).map_err(SessionFault::Io)?;
        if u32::from_le_bytes(sum) != checksum(&self.block) {
            return Err(SessionFault::Block { block: self.blocks });
        }
        (self.given, self.left, self.blocks) = (0, self.left - len as u64, self.blocks + 1);
        Ok(())
    }

    /// Whether all of the content was given.
    pub(crate) fn is_at_end(&self) -> bool {
        self.left == 0 && self.given == self.block.len()
    }

    /// Passes over bytes, and verifies them.
    pub(crate) fn skip(&mut self, mut bytes: u64) -> Result<(), SessionFault> {
        let mut nowhere = [0; 4096];
        while bytes > 0 {
            let len = bytes.min(nowhere.len() as u64) as usize;
            self.read(&mut nowhere[..len])?;
            bytes -= len as u64;
        }
        Ok(())
    }
}

impl Source for Reader<'_> {
    type Error = SessionFault;

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), SessionFault> {
        let mut filled = 0;
        while filled < bytes.len() {
            if self.given == self.block.len() {
                self.next_block()?;
            }
            let count = (bytes.len() - filled).min(self.block.len() - self.given);
            bytes[filled..filled + count].copy_from_slice(&self.block[self.given..self.given + count]);
            (filled, self.given) = (filled + count, self.given + count);
        }
        Ok(())
    }
}

/// An opened session file: its header is right and its length what follows from it.
#[derive(Debug)]
pub(crate) struct Opened {
    file: File,
    header: Header,
}

impl Opened {
    pub(crate) fn new(file: File) -> Result<Self, SessionFault> {
        let mut bytes = [0; HEAD];
        let have = file.metadata().map_err(SessionFault::Io)?.len();
        if have < HEAD as u64 {
            let start = &mut bytes[..have as usize];
            (&file).read_exact(start).map_err(SessionFault::Io)?;
            return Err(if MAGIC.starts_with(start) || start.starts_with(&MAGIC) {
                SessionFault::Length { have, need: HEAD as u64 }
            } else {
                SessionFault::NotSession
            });
        }
        (&file).read_exact(&mut bytes).map_err(SessionFault::Io)?;
        let header = Header::parse(&bytes)?;
        match header.file_bytes() {
            Some(need) if need == have => Ok(Self { file, header }),
            Some(need) => Err(SessionFault::Length { have, need }),
            None => Err(SessionFault::Header),
        }
    }

    /// The tokens of a file that has at most `most`, without reading what follows them and without verifying them.
    pub(crate) fn tokens_unverified(&self, most: usize) -> Result<Vec<u32>, SessionFault> {
        if self.header.seed.is_some() || self.header.tokens > most as u64 {
            return Err(SessionFault::Contents("it is not what its name says"));
        }
        let mut file = BufReader::new(&self.file);
        file.seek(SeekFrom::Start(HEAD as u64)).map_err(SessionFault::Io)?;
        let (mut tokens, mut block) = (Vec::new(), vec![0; BLOCK]);
        let mut left = self.header.tokens as usize * 4;
        while left > 0 {
            let bytes = &mut block[..left.min(BLOCK)];
            file.read_exact(bytes).map_err(SessionFault::Io)?;
            // The block's checksum.
            file.seek_relative(4).map_err(SessionFault::Io)?;
            tokens.extend(bytes.as_chunks().0.iter().map(|token| u32::from_le_bytes(*token)));
            left -= bytes.len();
        }
        Ok(tokens)
    }

    /// The content from its beginning, and bytes of it before the state.
    fn reader(&self) -> Result<(Reader<'_>, u64), SessionFault> {
        (&self.file).seek(SeekFrom::Start(HEAD as u64)).map_err(SessionFault::Io)?;
        let before = self.header.before_snapshot().ok_or(SessionFault::Header)?;
        let reader = Reader {
            file: BufReader::new(&self.file),
            block: Vec::new(),
            given: 0,
            left: before + self.header.snapshot,
            blocks: 0,
        };
        Ok((reader, before))
    }

    /// A reader of the state.
    pub(crate) fn snapshot(&self) -> Result<Reader<'_>, SessionFault> {
        let (mut reader, before) = self.reader()?;
        reader.skip(before)?;
        Ok(reader)
    }

    /// What the file holds beside the state, whose tokens are below `vocab`, and a reader of the state. What is allocated is no more
    /// than the file has bytes.
    pub(crate) fn contents(&self, vocab: u32) -> Result<(Contents, Reader<'_>), SessionFault> {
        let (mut reader, _) = self.reader()?;
        let mut contents = Contents::default();
        if let Some(seed) = self.header.seed {
            let mut bytes = [0; Sampler::BYTES];
            reader.read(&mut bytes)?;
            let sampler = Sampler::from_bytes(&bytes);
            contents.sampler =
                Some((sampler.map_err(|_| SessionFault::Contents("a setting is out of its range"))?, seed));
        }
        let mut token = || {
            let mut bytes = [0; 4];
            reader.read(&mut bytes)?;
            let token = u32::from_le_bytes(bytes);
            let known = Some(token).filter(|token| *token < vocab);
            known.ok_or(SessionFault::Contents("it has a token that the model does not know"))
        };
        for _ in 0..self.header.tokens {
            contents.tokens.push(token()?);
        }
        for _ in 0..self.header.pending {
            contents.pending.push(token()?);
        }
        if self.header.messages > MOST_MESSAGES {
            return Err(SessionFault::Contents("its messages are too long"));
        }
        let mut text = vec![0; self.header.messages as usize];
        reader.read(&mut text)?;
        contents.messages = parse_messages(&text)?;
        Ok((contents, reader))
    }
}

fn emit_messages(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in messages.iter().flat_map(|message| [&message.role, &message.content]) {
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn parse_messages(mut bytes: &[u8]) -> Result<Vec<Message>, SessionFault> {
    let mut text = || -> Result<Option<String>, SessionFault> {
        const WRONG: SessionFault = SessionFault::Contents("its messages have wrong lengths");
        if bytes.is_empty() {
            return Ok(None);
        }
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or(WRONG)?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(WRONG)?;
        bytes = rest;
        let text = str::from_utf8(text);
        Ok(Some(text.map_err(|_| SessionFault::Contents("a message is not UTF-8"))?.to_owned()))
    };
    let mut messages = Vec::new();
    while let Some(role) = text()? {
        let content = text()?.ok_or(SessionFault::Contents("its messages have wrong lengths"))?;
        messages.push(Message { role, content });
    }
    Ok(messages)
}
