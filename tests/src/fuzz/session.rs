//! Target `session`: session files, damaged, with the right checksums or without.

use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use elapid::core::fixed;
use elapid::core::format::checksum;
use elapid::core::model::{StateKind, StepError};
use elapid::{
    Error, GenerateOptions, Message, Model, ModelOptions, Numbers, SaveOptions, Session, SessionOptions,
};

use super::edit::ByteEdit;
use super::{assert_one_line, planted, up_to};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/models/address-300k.elp");
const NUMBERS: [Numbers; 4] = [
    Numbers::Float(StateKind::F32),
    Numbers::Float(StateKind::F16),
    Numbers::Fixed(fixed::StateKind::I16),
    Numbers::Fixed(fixed::StateKind::I32),
];
/// Bytes of the headers of file and snapshot; the last four are their checksums.
const HEAD: usize = 64;
/// Bytes of content between two checksums.
const BLOCK: usize = 64 << 10;
/// Bytes before the elements of a part of the snapshot.
const PART_HEAD: usize = 36;

/// A session, and the damage to its file.
#[derive(Arbitrary, Debug)]
pub struct Input {
    numbers: u8,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 8))]
    tokens: Vec<u16>,
    /// Generate so many tokens: there are then a sampler and a token that was not fed.
    generated: Option<u8>,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 3))]
    messages: Vec<(String, String)>,
    half: bool,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 4))]
    edits: Vec<(Place, ByteEdit)>,
    mend: Mend,
}

/// What an edit is applied to.
#[derive(Arbitrary, Debug)]
enum Place {
    Header,
    /// Sampler, tokens and messages.
    Front,
    SnapshotHeader,
    /// From this place on, modulo the content's length.
    Content(u32),
}

/// Which checksums and lengths are right in the end.
#[derive(Arbitrary, Debug, PartialEq)]
enum Mend {
    Nothing,
    Checksums,
    /// And the snapshot's length is what is left of the file.
    All,
}

/// What is made once.
struct Kit {
    sessions: Vec<Session>,
    folder: tempfile::TempDir,
}

impl Kit {
    fn new() -> Self {
        let model = Model::open(MODEL.as_ref(), &ModelOptions::default().threads(1)).expect("the model");
        let session = |numbers| model.session(&SessionOptions::default().numbers(numbers));
        // In memory where that is possible: files are synced.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self {
            sessions: NUMBERS.map(|numbers| session(numbers).expect("a session")).into(),
            folder: folder.expect("a folder"),
        }
    }
}

/// A session file without its framing.
struct Parts {
    header: Vec<u8>,
    front: Vec<u8>,
    snapshot: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().expect("eight")))
}

/// Takes apart a whole file.
fn unframed(bytes: &[u8]) -> Parts {
    let (header, blocks) = bytes.split_at(HEAD);
    let mut front: Vec<u8> =
        blocks.chunks(BLOCK + 4).flat_map(|block| &block[..block.len() - 4]).copied().collect();
    let snapshot = front.split_off(front.len() - word(header, 40) as usize);
    Parts { header: header.into(), front, snapshot }
}

fn sum(bytes: &mut [u8], from: usize, to: usize) {
    let sum = checksum(&bytes[from..to]);
    bytes[to..to + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Gives the header and the parts of a snapshot the checksums that they would have, as far as it is one.
fn mend_snapshot(bytes: &mut [u8]) {
    if bytes.len() < HEAD {
        return;
    }
    sum(bytes, 0, HEAD - 4);
    let mut at = HEAD;
    while let Some(head) = bytes.get(at..at + PART_HEAD) {
        let field = |i: usize| u32::from_le_bytes(head[4 * i..4 * i + 4].try_into().expect("four")) as usize;
        let width: usize = if [2, 3, 5].contains(&field(4)) { 2 } else { 4 };
        let shape = (5..9).map(field).filter(|n| *n > 0);
        let elements = shape.fold(width, |bytes, n| bytes.saturating_mul(n));
        let end = (at + PART_HEAD).saturating_add(elements);
        if end.saturating_add(4) > bytes.len() {
            return;
        }
        sum(bytes, at, end);
        at = end + 4;
    }
}

/// The file that the edits make.
fn damaged(file: &[u8], edits: &[(Place, ByteEdit)], mend: &Mend) -> Vec<u8> {
    if *mend == Mend::Nothing {
        let mut bytes = file.to_vec();
        for (place, edit) in edits {
            let from = match place {
                Place::Header | Place::Front => 0,
                Place::SnapshotHeader => bytes.len().saturating_sub(word(file, 40) as usize),
                Place::Content(at) => *at as usize % bytes.len().max(1),
            };
            let mut rest = bytes.split_off(from.min(bytes.len()));
            edit.apply(&mut rest);
            bytes.extend(rest);
        }
        return bytes;
    }
    let Parts { mut header, mut front, mut snapshot } = unframed(file);
    for (place, edit) in edits {
        let (bytes, from) = match place {
            Place::Header => (&mut header, 0),
            Place::Front => (&mut front, 0),
            Place::SnapshotHeader => (&mut snapshot, 0),
            Place::Content(at) => {
                let at = *at as usize % snapshot.len().max(1);
                (&mut snapshot, at)
            }
        };
        let mut rest = bytes.split_off(from);
        edit.apply(&mut rest);
        bytes.extend(rest);
    }
    header.resize(HEAD, 0);
    if *mend == Mend::All {
        header[40..48].copy_from_slice(&(snapshot.len() as u64).to_le_bytes());
    }
    sum(&mut header, 0, HEAD - 4);
    mend_snapshot(&mut snapshot);
    front.extend(snapshot);
    for block in front.chunks(BLOCK) {
        header.extend(block);
        header.extend(checksum(block).to_le_bytes());
    }
    header
}

fn bits(session: &mut Session) -> Vec<u32> {
    session.logits().expect("logits").iter().map(|logit| logit.to_bits()).collect()
}

/// Saves the session that the input describes, and returns its file.
fn saved(session: &mut Session, input: &Input, path: &PathBuf) -> Vec<u8> {
    session.clear();
    let vocab = session.model().config().vocab;
    let tokens: Vec<u32> = input.tokens.iter().map(|token| u32::from(*token) % vocab).collect();
    if !tokens.is_empty() {
        session.feed(&tokens).expect("its own tokens");
        if let Some(generated) = input.generated {
            let options = GenerateOptions::default().max_tokens(usize::from(generated % 4)).seed(9);
            session
                .generate(&[], &options)
                .expect("a generation")
                .for_each(|piece| drop(piece.expect("text")));
        }
    }
    let messages = input.messages.iter().map(|(role, content)| Message::new(role, content));
    let options = SaveOptions::default().messages(messages.collect::<Vec<_>>()).half(input.half);
    session.save(path, &options).expect("it is saved");
    fs::read(path).expect("it is there")
}

/// Runs the target, and says what came of the file.
pub fn run(input: &Input) -> &'static str {
    static KIT: LazyLock<Mutex<Kit>> = LazyLock::new(|| Mutex::new(Kit::new()));
    let mut kit = KIT.lock().unwrap_or_else(PoisonError::into_inner);
    let Kit { sessions, folder } = &mut *kit;
    let path = folder.path().join("session");
    let session = &mut sessions[usize::from(input.numbers) % NUMBERS.len()];
    let whole = saved(session, input, &path);
    let bytes = damaged(&whole, &input.edits, &input.mend);
    fs::write(&path, &bytes).expect("it is written");

    // What is there before, and must be there after a refusal.
    session.clear();
    session.feed(&[7, 3]).expect("tokens");
    let before = bits(session);
    let loaded = match session.load(&path) {
        Ok(loaded) => loaded,
        Err(error) => {
            assert!(bytes != whole, "a whole file is refused: {error}");
            assert_one_line(&error);
            assert!(matches!(error, Error::SessionFile { .. }), "{error:?}");
            assert_eq!(session.tokens(), [7, 3]);
            assert!(bits(session) == before, "a refused file changed the logits");
            session.feed(&[5]).expect("it goes on");
            let after = bits(session);
            session.clear();
            session.feed(&[7, 3, 5]).expect("tokens");
            assert!(bits(session) == after, "a refused file changed the state");
            return "refused";
        }
    };
    assert!(bytes == whole || input.mend != Mend::Nothing, "damage was not found");
    assert!(!planted("session") || loaded.messages.is_empty(), "{loaded:?}");
    // What was read is what the bytes say: it is written the same.
    if !loaded.half {
        session.save(&path, &SaveOptions::default().messages(loaded.messages)).expect("it is saved");
        assert!(fs::read(&path).expect("it is there") == bytes, "it is not what the bytes say");
    }
    // Values may grow without bound, and nothing else may go wrong.
    match session.feed(&[1]) {
        Ok(()) | Err(Error::Step { cause: StepError::NonFinite { .. }, .. }) => {}
        Err(error) => panic!("a session that was loaded can't go on: {error}"),
    }
    if bytes == whole { "whole" } else { "other values" }
}
