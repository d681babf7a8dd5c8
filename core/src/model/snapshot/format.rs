//! The format of a snapshot: its header, its parts, and their checksums.

use super::error::{NO_LAYER, SnapshotError};
use super::stream::{Sink, Source};
use crate::format::{Config, Fingerprint};
use crate::kernels::fixed::Range;
use crate::model::parts::{Element, MAX_RANK, Part, Stored, Values};
use crate::numbers::checksum::Crc32;

const MAGIC: [u8; 8] = *b"ELAPSNAP";
/// The version that this program writes, and the newest that it reads.
const VERSION: u16 = 1;
/// Bytes of the header.
pub(super) const HEAD: usize = 64;
/// Bytes before the elements of a part.
pub(super) const PART_HEAD: usize = 36;
/// Bytes of a part's name.
const NAME: usize = 12;
/// The flag of a recurrent state that is stored in half its size.
const HALF: u8 = 1;
/// Bytes that elements pass through.
const BUFFER: usize = 256;
/// The largest f16.
const LARGEST_HALF: f32 = 65504.0;

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

/// The result of what reads or writes with `S`.
pub(super) type Outcome<T, E> = Result<T, SnapshotError<E>>;

/// A sink or a source, and the checksum of the bytes that passed.
pub(super) struct Summed<'s, S> {
    stream: &'s mut S,
    sum: Crc32,
}

impl<'s, S> Summed<'s, S> {
    pub(super) fn new(stream: &'s mut S) -> Self {
        Self { stream, sum: Crc32::default() }
    }
}

impl<S: Sink> Summed<'_, S> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Outcome<(), S::Error> {
        self.sum.update(bytes);
        self.stream.write(bytes).map_err(SnapshotError::Stream)
    }

    pub(super) fn write_sum(&mut self) -> Outcome<(), S::Error> {
        let sum = core::mem::take(&mut self.sum).value();
        self.stream.write(&sum.to_le_bytes()).map_err(SnapshotError::Stream)
    }

    /// Writes elements of `B` bytes each.
    pub(super) fn write_all<T: Copy, const B: usize>(
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

    pub(super) fn write_part(&mut self, layer: u32, part: Part<'_>, half: bool) -> Outcome<(), S::Error> {
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

    pub(super) fn read_part(&mut self, layer: u32, part: Part<'_>, half: bool) -> Outcome<(), S::Error> {
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
    pub(super) fn read_logits<L: Stored>(
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

pub(super) fn logits_head<L: Stored>(vocab: u32) -> [u8; PART_HEAD] {
    head_of(LOGITS.name, NO_LAYER, L::ELEMENT, [vocab, 0, 0, 0])
}

/// The header's bytes without their checksum.
pub(super) fn header(config: &Config, kept: Element, about: &About, logits: bool) -> [u8; HEAD - 4] {
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
pub(super) fn read_header<S: Source>(
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
