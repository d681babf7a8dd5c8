//! A sequence's state as bytes: written to a sink and read from a source, without an allocator.
//!
//! ```text
//! session.save(0, &about, Some(&logits), &mut sink)?;
//! let saved = session.check_saved(&fingerprint, &mut source)?;   // the first pass: nothing is changed
//! let saved = session.load(0, &fingerprint, &mut again, &mut logits)?;
//! ```
//!
//! The format is in `docs/session.md`. The last logits are saved beside the state, because a recurrent model can't be fed its last
//! token again.
//!
//! Bytes are untrusted. [`Session::check_saved`] reads and checks all of them. It reads into the undo copy of one layer, which is not in
//! use between steps, so a refused snapshot leaves the session unchanged. [`Session::load`] makes the same checks while it reads.

use core::fmt;

use super::StepError;
use super::operations::Operations;
use super::parts::{Element, MAX_RANK, Part, Stored, Values};
use super::session::Session;
use crate::format::{Config, Fingerprint};
use crate::kernels::fixed::Range;
use crate::numbers::checksum::Crc32;

const MAGIC: [u8; 8] = *b"ELAPSNAP";
/// The version that this program writes, and the newest that it reads.
const VERSION: u16 = 1;
/// Bytes of the header.
const HEAD: usize = 64;
/// Bytes before the elements of a part.
const PART_HEAD: usize = 36;
/// Bytes of a part's name.
const NAME: usize = 12;
/// The layer of a part that is of none.
const NO_LAYER: u32 = u32::MAX;
/// The flag of a recurrent state that is stored in half its size.
const HALF: u8 = 1;
/// Bytes that elements pass through.
const BUFFER: usize = 256;
/// The largest f16.
const LARGEST_HALF: f32 = 65504.0;

/// The destination of bytes.
pub trait Sink {
    /// Why they could not.
    type Error;
    /// Takes all of the bytes.
    ///
    /// # Errors
    /// If it can't.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// The origin of bytes.
pub trait Source {
    /// Why they could not.
    type Error;
    /// Fills all of `bytes`.
    ///
    /// # Errors
    /// If it can't, or if there are fewer.
    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error>;
}

/// A [`Source`] over bytes ended before the snapshot did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the saved state ends too early: it was cut short, use another copy")
    }
}

impl Source for &[u8] {
    type Error = Cut;

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Cut> {
        let (taken, rest) = self.split_at_checked(bytes.len()).ok_or(Cut)?;
        bytes.copy_from_slice(taken);
        *self = rest;
        Ok(())
    }
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The model.
    pub fingerprint: Fingerprint,
    /// Tokens that the sequence was fed.
    pub tokens: u64,
    /// An f32 recurrent state is stored as f16, rounded and saturating. This loses bits: a text that continues from it differs.
    pub half: bool,
}

/// The contents of a snapshot that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// What it is of.
    pub about: About,
    /// Whether it has logits: it has none before the first token.
    pub logits: bool,
}

/// Why a state could not be saved or read. `E` is the error of the sink or source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError<E> {
    /// The sink or the source failed.
    Stream(E),
    /// The first bytes are not those of a snapshot.
    NotSnapshot,
    /// A version that this program does not know.
    Version {
        /// The snapshot's version.
        found: u16,
        /// The newest known here.
        known: u16,
    },
    /// The header's checksum does not match, or bytes of it that must be 0 are not.
    Header,
    /// A snapshot of another model.
    OtherModel,
    /// A state of other numbers.
    Numbers {
        /// The snapshot's.
        found: &'static str,
        /// The session's.
        have: &'static str,
    },
    /// A part is not the one that the model has at this place.
    Part {
        /// The layer.
        layer: u32,
        /// The part that belongs there.
        name: &'static str,
    },
    /// A part's checksum does not match.
    Checksum {
        /// The layer.
        layer: u32,
        /// The part.
        name: &'static str,
    },
    /// An element is infinite or NaN.
    NonFinite {
        /// The layer.
        layer: u32,
        /// The part.
        name: &'static str,
        /// Its place in the part.
        index: usize,
    },
    /// A state of the fixed path that no step can produce.
    State {
        /// The layer.
        layer: u32,
        /// What is wrong with it.
        cause: StepError,
    },
    /// The number of logits is not the model's.
    Logits {
        /// How many there are.
        have: usize,
        /// How many are needed.
        need: usize,
    },
    /// The session can't be saved or loaded now, or has no such slot.
    Session(StepError),
}

impl<E> SnapshotError<E> {
    /// The same error for a stream that can't fail: a failure of the stream becomes [`SnapshotError::NotSnapshot`].
    #[must_use]
    pub fn without_stream<F>(self) -> SnapshotError<F> {
        match self {
            Self::Stream(_) | Self::NotSnapshot => SnapshotError::NotSnapshot,
            Self::Version { found, known } => SnapshotError::Version { found, known },
            Self::Header => SnapshotError::Header,
            Self::OtherModel => SnapshotError::OtherModel,
            Self::Numbers { found, have } => SnapshotError::Numbers { found, have },
            Self::Part { layer, name } => SnapshotError::Part { layer, name },
            Self::Checksum { layer, name } => SnapshotError::Checksum { layer, name },
            Self::NonFinite { layer, name, index } => SnapshotError::NonFinite { layer, name, index },
            Self::State { layer, cause } => SnapshotError::State { layer, cause },
            Self::Logits { have, need } => SnapshotError::Logits { have, need },
            Self::Session(cause) => SnapshotError::Session(cause),
        }
    }
}

impl<E: fmt::Display> fmt::Display for SnapshotError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(error) => error.fmt(f),
            Self::NotSnapshot => f.write_str("not a saved state: its first bytes are others"),
            Self::Version { found, known } => write!(
                f,
                "version {found} of saved states, and {known} is the newest known here: update this program"
            ),
            Self::Header => f.write_str("the header of the saved state is damaged: use another copy"),
            Self::OtherModel => f.write_str(
                "it was saved with another model file: take the model that it was saved with, or begin anew",
            ),
            Self::Numbers { found, have } => write!(
                f,
                "its state is kept in {found}, this session's in {have}: take the numbers that it was saved with"
            ),
            Self::Part { layer, name } => {
                named(f, "the saved state has another part in place of ", *layer, name)?;
                f.write_str(": use another copy")
            }
            Self::Checksum { layer, name } => {
                named(f, "damaged: the checksum does not match in ", *layer, name)?;
                f.write_str(": use another copy")
            }
            Self::NonFinite { layer, name, index } => {
                named(f, "damaged: a value is infinite or NaN in ", *layer, name)?;
                write!(f, ", place {index}: use another copy")
            }
            Self::State { layer, cause } => write!(f, "layer {layer} of the saved state: {cause}"),
            Self::Logits { have, need } => {
                write!(f, "{have} logits, and the model has {need}: give or save as many")
            }
            Self::Session(cause) => cause.fmt(f),
        }
    }
}

fn named(f: &mut fmt::Formatter<'_>, text: &str, layer: u32, name: &str) -> fmt::Result {
    if layer == NO_LAYER { write!(f, "{text}{name}") } else { write!(f, "{text}{name} of layer {layer}") }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for SnapshotError<E> {}

/// The result of what reads or writes with `S`.
type Outcome<T, E> = Result<T, SnapshotError<E>>;

/// A sink or a source, and the checksum of the bytes that passed.
struct Summed<'s, S> {
    stream: &'s mut S,
    sum: Crc32,
}

impl<'s, S> Summed<'s, S> {
    fn new(stream: &'s mut S) -> Self {
        Self { stream, sum: Crc32::default() }
    }
}

impl<S: Sink> Summed<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> Outcome<(), S::Error> {
        self.sum.update(bytes);
        self.stream.write(bytes).map_err(SnapshotError::Stream)
    }

    fn write_sum(&mut self) -> Outcome<(), S::Error> {
        let sum = core::mem::take(&mut self.sum).value();
        self.stream.write(&sum.to_le_bytes()).map_err(SnapshotError::Stream)
    }

    /// Writes elements of `B` bytes each.
    fn write_all<T: Copy, const B: usize>(
        &mut self,
        values: &[T],
        to_bytes: impl Fn(T) -> [u8; B],
    ) -> Outcome<(), S::Error> {
        let mut buffer = [0; BUFFER];
        for values in values.chunks(BUFFER / B) {
            for (to, value) in buffer.as_chunks_mut::<B>().0.iter_mut().zip(values) {
                *to = to_bytes(*value);
            }
            self.write(buffer.get(..values.len() * B).unwrap_or_default())?;
        }
        Ok(())
    }

    fn write_part(&mut self, layer: u32, part: Part<'_>, half: bool) -> Outcome<(), S::Error> {
        let half = half && part.recurrent;
        self.write(&part_head(layer, &part, half))?;
        match part.values {
            Values::F32(v) if half => self.write_all(v, |x| to_half(x).to_le_bytes()),
            Values::F32(v) => self.write_all(v, f32::to_le_bytes),
            Values::F16(v) | Values::U16(v) => self.write_all(v, u16::to_le_bytes),
            Values::I16(v) => self.write_all(v, i16::to_le_bytes),
            Values::I32(v) => self.write_all(v, i32::to_le_bytes),
            Values::Ranges(v) => self.write_all(v, |range| range.to_bits().to_le_bytes()),
        }?;
        self.write_sum()
    }
}

/// The layer and part that is being read, for errors.
#[derive(Clone, Copy)]
struct Place {
    layer: u32,
    name: &'static str,
}

impl<S: Source> Summed<'_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> Outcome<(), S::Error> {
        self.stream.read(bytes).map_err(SnapshotError::Stream)?;
        self.sum.update(bytes);
        Ok(())
    }

    /// Whether the checksum that follows is that of the bytes that were read.
    fn sum_matches(&mut self) -> Outcome<bool, S::Error> {
        let sum = core::mem::take(&mut self.sum).value();
        let mut bytes = [0; 4];
        self.stream.read(&mut bytes).map_err(SnapshotError::Stream)?;
        Ok(u32::from_le_bytes(bytes) == sum)
    }

    fn check_sum(&mut self, Place { layer, name }: Place) -> Outcome<(), S::Error> {
        if self.sum_matches()? { Ok(()) } else { Err(SnapshotError::Checksum { layer, name }) }
    }

    /// Reads `len` elements of `B` bytes each and gives them to `take`, which refuses impossible ones.
    fn read_all<const B: usize>(
        &mut self,
        Place { layer, name }: Place,
        len: usize,
        mut take: impl FnMut(usize, [u8; B]) -> bool,
    ) -> Outcome<(), S::Error> {
        let mut buffer = [0; BUFFER];
        let mut start = 0;
        while start < len {
            let count = (len - start).min(BUFFER / B);
            let bytes = buffer.get_mut(..count * B).unwrap_or_default();
            self.read(bytes)?;
            for (index, bytes) in (start..).zip(bytes.as_chunks::<B>().0) {
                if !take(index, *bytes) {
                    return Err(SnapshotError::NonFinite { layer, name, index });
                }
            }
            start += count;
        }
        Ok(())
    }

    /// Reads elements, each converted by `from`, which returns `None` for impossible ones.
    fn read_to<T, const B: usize>(
        &mut self,
        place: Place,
        values: &mut [T],
        from: impl Fn([u8; B]) -> Option<T>,
    ) -> Outcome<(), S::Error> {
        self.read_all(place, values.len(), |index, bytes| match (values.get_mut(index), from(bytes)) {
            (Some(to), Some(value)) => {
                *to = value;
                true
            }
            _ => false,
        })
    }

    fn read_part(&mut self, layer: u32, part: Part<'_>, half: bool) -> Outcome<(), S::Error> {
        let half = half && part.recurrent;
        let place = Place { layer, name: part.name };
        self.read_part_head(place, &part_head(layer, &part, half))?;
        let finite = |x: f32| Some(x).filter(|x| x.is_finite());
        let halves = |bytes| half::f16::from_bits(u16::from_le_bytes(bytes));
        match part.values {
            Values::F32(v) if half => self.read_to(place, v, |bytes| finite(halves(bytes).to_f32_const())),
            Values::F32(v) => self.read_to(place, v, |bytes| finite(f32::from_le_bytes(bytes))),
            Values::F16(v) => self.read_to(place, v, |bytes| {
                Some(halves(bytes)).filter(|x| x.is_finite()).map(half::f16::to_bits)
            }),
            Values::U16(v) => self.read_to(place, v, |bytes| Some(u16::from_le_bytes(bytes))),
            Values::I16(v) => self.read_to(place, v, |bytes| Some(i16::from_le_bytes(bytes))),
            Values::I32(v) => self.read_to(place, v, |bytes| Some(i32::from_le_bytes(bytes))),
            Values::Ranges(v) => {
                self.read_to(place, v, |bytes| Some(Range::from_bits(u32::from_le_bytes(bytes))))
            }
        }?;
        self.check_sum(place)
    }

    fn read_part_head(
        &mut self,
        Place { layer, name }: Place,
        expected: &[u8; PART_HEAD],
    ) -> Outcome<(), S::Error> {
        let mut head = [0; PART_HEAD];
        self.read(&mut head)?;
        if head == *expected { Ok(()) } else { Err(SnapshotError::Part { layer, name }) }
    }

    /// Reads logits, and gives them to `take`.
    fn read_logits<L: Stored>(
        &mut self,
        vocab: u32,
        mut take: impl FnMut(usize, L),
    ) -> Outcome<(), S::Error> {
        self.read_part_head(LOGITS, &logits_head::<L>(vocab))?;
        self.read_all(LOGITS, vocab as usize, |index, bytes| {
            L::from_bytes(bytes).map(|logit| take(index, logit)).is_some()
        })?;
        self.check_sum(LOGITS)
    }
}

/// The logits' place.
const LOGITS: Place = Place { layer: NO_LAYER, name: "logits" };

/// f16, rounded to nearest and saturating.
fn to_half(x: f32) -> u16 {
    half::f16::from_f32_const(x.clamp(-LARGEST_HALF, LARGEST_HALF)).to_bits()
}

/// The bytes before the elements of a part: name, layer, type, 3 bytes 0, shape.
fn head_of(name: &str, layer: u32, element: Element, shape: [u32; MAX_RANK]) -> [u8; PART_HEAD] {
    let mut head = [0; PART_HEAD];
    for (to, byte) in head.iter_mut().zip(name.bytes().take(NAME)) {
        *to = byte;
    }
    let words = [layer, u32::from(element as u8)].into_iter().chain(shape);
    for (to, word) in head[NAME..].chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    head
}

fn part_head(layer: u32, part: &Part<'_>, half: bool) -> [u8; PART_HEAD] {
    let element = if half { Element::F16 } else { part.values.element() };
    head_of(part.name, layer, element, part.shape)
}

fn logits_head<L: Stored>(vocab: u32) -> [u8; PART_HEAD] {
    head_of(LOGITS.name, NO_LAYER, L::ELEMENT, [vocab, 0, 0, 0])
}

/// The header's bytes without their checksum.
fn header(config: &Config, kept: Element, about: &About, logits: bool) -> [u8; HEAD - 4] {
    let mut head = [0; HEAD - 4];
    head[0..8].copy_from_slice(&MAGIC);
    head[8..10].copy_from_slice(&VERSION.to_le_bytes());
    head[10] = kept as u8;
    head[11] = if about.half { HALF } else { 0 };
    head[12..28].copy_from_slice(&about.fingerprint.0);
    head[28..36].copy_from_slice(&about.tokens.to_le_bytes());
    head[36..40].copy_from_slice(&config.n_layer.to_le_bytes());
    head[40..44].copy_from_slice(&(if logits { config.vocab } else { 0 }).to_le_bytes());
    head
}

/// Reads and checks the header: a snapshot of this model, with a recurrent state kept as `kept`.
fn read_header<S: Source>(
    source: &mut Summed<'_, S>,
    config: &Config,
    kept: Element,
    fingerprint: &Fingerprint,
) -> Outcome<Saved, S::Error> {
    let mut head = [0; HEAD - 4];
    source.read(&mut head)?;
    if head[0..8] != MAGIC {
        return Err(SnapshotError::NotSnapshot);
    }
    let version = u16::from_le_bytes([head[8], head[9]]);
    if version != VERSION {
        return Err(SnapshotError::Version { found: version, known: VERSION });
    }
    if !source.sum_matches()? {
        return Err(SnapshotError::Header);
    }
    let u64_at = |at: usize| {
        let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    if head[12..28] != fingerprint.0 {
        return Err(SnapshotError::OtherModel);
    }
    if head[10] != kept as u8 {
        let found = Element::from_id(head[10]).ok_or(SnapshotError::Header)?;
        return Err(SnapshotError::Numbers { found: found.name(), have: kept.name() });
    }
    let about = About { fingerprint: *fingerprint, tokens: u64_at(28), half: head[11] == HALF };
    let saved = Saved { about, logits: u64_at(40) & 0xffff_ffff != 0 };
    // Unknown bytes must be 0, only f32 can be halved, and there are logits only after a token.
    let halved = !about.half || kept == Element::F32;
    if header(config, kept, &about, saved.logits) != head || !halved || saved.logits != (about.tokens > 0) {
        return Err(SnapshotError::Header);
    }
    Ok(saved)
}

/// The size of a snapshot in bytes, to reserve room for it.
#[must_use]
pub fn snapshot_bytes<N: Operations>(
    config: &Config,
    layer: &mut N::State<'_>,
    half: bool,
    logits: bool,
) -> u64 {
    let one = |part: Part<'_>| {
        let element = if half && part.recurrent { Element::F16 } else { part.values.element() };
        (PART_HEAD + 4) as u64 + part.values.len() as u64 * element.bytes() as u64
    };
    let layer: u64 = N::parts(config, layer).into_iter().map(one).sum();
    let logits = if logits { (PART_HEAD + 4) as u64 + 4 * u64::from(config.vocab) } else { 0 };
    HEAD as u64 + layer * u64::from(config.n_layer) + logits
}

impl<N: Operations> Session<'_, N>
where
    N::Logit: Stored,
{
    /// Checks that the slot can be saved or loaded now. Returns its first layer in the state.
    fn first_layer<E>(&self, slot: usize) -> Outcome<usize, E> {
        self.check_slot(slot).map_err(SnapshotError::Session)?;
        if self.position().suspended().is_some() {
            return Err(SnapshotError::Session(StepError::Suspended));
        }
        Ok(slot.saturating_mul(self.config.n_layer as usize))
    }

    /// The bytes that [`Session::save`] writes.
    #[must_use]
    pub fn saved_bytes(&mut self, about: &About) -> u64 {
        let half = self.is_halved(about);
        let mut layer = N::layer(&self.config, &mut self.undo, 0);
        snapshot_bytes::<N>(&self.config, &mut layer, half, about.tokens > 0)
    }

    /// Only f32 can be halved.
    fn is_halved(&self, about: &About) -> bool {
        about.half && N::kept(&self.state) == Element::F32
    }

    /// Saves a sequence with the logits `[vocab]` after its last token. They are required unless the sequence was fed no token.
    ///
    /// # Errors
    /// The sink's; [`SnapshotError::Logits`] for none or too few; [`SnapshotError::Session`] while a step is suspended.
    pub fn save<S: Sink>(
        &mut self,
        slot: usize,
        about: &About,
        logits: Option<&[N::Logit]>,
        sink: &mut S,
    ) -> Result<(), SnapshotError<S::Error>> {
        let first = self.first_layer(slot)?;
        let (config, need) = (self.config, self.config.vocab as usize);
        let have = logits.map_or(0, <[_]>::len);
        if (have < need) != (about.tokens == 0) {
            return Err(SnapshotError::Logits { have, need });
        }
        let half = self.is_halved(about);
        let about = About { half, ..*about };
        let mut out = Summed::new(sink);
        out.write(&header(&config, N::kept(&self.state), &about, about.tokens > 0))?;
        out.write_sum()?;
        for layer in 0..config.n_layer {
            let mut state = N::layer(&config, &mut self.state, first.saturating_add(layer as usize));
            for part in N::parts(&config, &mut state) {
                out.write_part(layer, part, half)?;
            }
        }
        if let Some(logits) = logits.filter(|_| about.tokens > 0) {
            out.write(&logits_head::<N::Logit>(config.vocab))?;
            out.write_all(logits.get(..need).unwrap_or_default(), N::Logit::to_bytes)?;
            out.write_sum()?;
        }
        Ok(())
    }

    /// Reads a snapshot and checks all of it without changing anything. [`Session::load`] then fails only if the source does.
    ///
    /// # Errors
    /// What is wrong with it, or the source's.
    pub fn check_saved<S: Source>(
        &mut self,
        fingerprint: &Fingerprint,
        source: &mut S,
    ) -> Result<Saved, SnapshotError<S::Error>> {
        self.first_layer(0)?;
        let (config, kept) = (self.config, N::kept(&self.state));
        let mut source = Summed::new(source);
        let saved = read_header(&mut source, &config, kept, fingerprint)?;
        for layer in 0..config.n_layer {
            let mut state = N::layer(&config, &mut self.undo, 0);
            read_layer::<N, S>(&mut source, &config, layer, &mut state, saved.about.half)?;
        }
        if saved.logits {
            source.read_logits::<N::Logit>(config.vocab, |_, _| {})?;
        }
        Ok(saved)
    }

    /// Reads a snapshot into a slot, and its logits, if it has any, to `logits` `[vocab]`. The slot's next token continues from there.
    /// All of the snapshot is checked while it is read.
    ///
    /// # Errors
    /// As [`Session::check_saved`], and [`SnapshotError::Logits`] before anything is changed. After an error of the header nothing is changed
    /// either; after any other error the sequence is cleared.
    pub fn load<S: Source>(
        &mut self,
        slot: usize,
        fingerprint: &Fingerprint,
        source: &mut S,
        logits: &mut [N::Logit],
    ) -> Result<Saved, SnapshotError<S::Error>> {
        let first = self.first_layer(slot)?;
        let (config, kept) = (self.config, N::kept(&self.state));
        let (have, need) = (logits.len(), config.vocab as usize);
        if have < need {
            return Err(SnapshotError::Logits { have, need });
        }
        let mut source = Summed::new(source);
        let saved = read_header(&mut source, &config, kept, fingerprint)?;
        let mut read = || {
            for layer in 0..config.n_layer {
                let mut state = N::layer(&config, &mut self.state, first.saturating_add(layer as usize));
                read_layer::<N, S>(&mut source, &config, layer, &mut state, saved.about.half)?;
            }
            if saved.logits {
                source.read_logits(config.vocab, |index, logit| {
                    if let Some(to) = logits.get_mut(index) {
                        *to = logit;
                    }
                })?;
            }
            Ok(saved)
        };
        let outcome = read();
        self.forget_step();
        if outcome.is_err() {
            // The slot is one of the session's.
            let _ = self.clear_slot(slot);
        }
        outcome
    }
}

/// Reads one layer's parts and checks that they are consistent.
fn read_layer<N: Operations, S: Source>(
    source: &mut Summed<'_, S>,
    config: &Config,
    layer: u32,
    state: &mut N::State<'_>,
    half: bool,
) -> Outcome<(), S::Error> {
    for part in N::parts(config, state) {
        source.read_part(layer, part, half)?;
    }
    N::check_contents(config, state).map_err(|cause| SnapshotError::State { layer, cause })
}
