//! The header of a GGUF file: metadata and the list of tensors, read within bounds.
//!
//! Nothing in a file is trusted: counts are limited, every length is compared with what is left of the file before memory is
//! taken for it, and what the packer has no use for is skipped.

use std::collections::BTreeMap;
use std::path::Path;

use super::metadata::{ALIGNMENT, Array, Metadata, Value};
use crate::PackError;
use crate::checkpoint::Faults;
use crate::checkpoint::entry::{Dtype, Shard};
use crate::checkpoint::ggml::Block;
use crate::checkpoint::json;

/// The largest header accepted, in bytes: that of the largest vocabulary in use has some 20 MB.
const HEADER_LIMIT: u64 = 128 << 20;
/// Metadata keys at most.
const KEYS: u64 = 4096;
/// Tensors at most: what the largest model allowed (4096 layers) needs, and some.
const TENSORS: u64 = 1 << 16;
/// The longest key or name of a tensor, in bytes.
const NAME: u64 = 1024;
/// The longest text, a chat template, in bytes.
const TEXT: u64 = 4 << 20;
/// Tokens or merges at most: as many as a vocabulary may have, and twice as many merges.
const ELEMENTS: u64 = 2 << 20;
/// Arrays in arrays at most.
const DEPTH: usize = 4;
/// Bytes read at a time.
const WINDOW: usize = 64 << 10;

/// A tensor as the header lists it.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// From the file's start.
    pub(super) offset: u64,
}

/// What a file's header says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Reads a header, and checks that its tensors lie in the file, apart from each other.
pub(super) fn read(shard: &Shard, faults: &mut Faults) -> Result<Header, PackError> {
    let mut cursor = Cursor { shard, faults, size: shard.size()?, at: 0, window: Vec::new(), start: 0 };
    if &cursor.bytes::<4>()? != b"GGUF" {
        json::refuse_stand_in(&shard.path, cursor.window.get(..16).unwrap_or_default())?;
        return Err(cursor.invalid("does not begin with `GGUF`: is it the right file?"));
    }
    let version = cursor.bytes::<4>()?;
    match u32::from_le_bytes(version) {
        2 | 3 => {}
        _ if u32::from_be_bytes(version) < 256 => {
            return Err(
                cursor.invalid("is of a big-endian machine; convert the checkpoint on a little-endian one")
            );
        }
        other => {
            return Err(cursor.invalid(format!(
                "is of version {other}; versions 2 and 3 are read: convert the checkpoint again"
            )));
        }
    }
    let tensors = cursor.count("tensors", TENSORS)?;
    let keys = cursor.count("metadata keys", KEYS)?;
    let mut values = BTreeMap::new();
    for _ in 0..keys {
        let key = cursor.string("a key", NAME)?;
        let kind = cursor.u32()?;
        let at = cursor.at;
        let value = cursor.value(&key, kind, 0)?;
        if values.insert(key.clone(), value).is_some() {
            cursor.faults.meet(invalid(&shard.path, at, format!("key `{key}` is there twice")))?;
        }
    }
    let metadata = Metadata::new(shard.path.clone(), values);
    let tensors = cursor.tensors(tensors, &metadata)?;
    Ok(Header { metadata, tensors })
}

fn invalid(path: &Path, at: u64, reason: impl Into<String>) -> PackError {
    PackError::InvalidGguf { path: path.to_path_buf(), at, reason: reason.into() }
}

/// Reads a header from front to back, also behind faults that don't hide where the rest is.
struct Cursor<'a> {
    shard: &'a Shard,
    faults: &'a mut Faults,
    size: u64,
    at: u64,
    /// Bytes of the file from `start` on.
    window: Vec<u8>,
    start: u64,
}

impl Cursor<'_> {
    fn invalid(&self, reason: impl Into<String>) -> PackError {
        invalid(&self.shard.path, self.at, reason)
    }

    /// Checks that so many bytes are left, and may be in a header.
    fn expect(&self, length: u64) -> Result<(), PackError> {
        let end = self.at.saturating_add(length);
        if end > self.size {
            let path = self.shard.path.clone();
            return Err(PackError::Truncated { path, needed: end, found: self.size });
        }
        if end > HEADER_LIMIT {
            return Err(self.invalid(format!("header of more than {HEADER_LIMIT} bytes: is it damaged?")));
        }
        Ok(())
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Result<(), PackError> {
        self.expect(out.len() as u64)?;
        while !out.is_empty() {
            let skip = self.at.wrapping_sub(self.start);
            let rest =
                usize::try_from(skip).ok().and_then(|skip| self.window.get(skip..)).unwrap_or_default();
            if rest.is_empty() {
                self.start = self.at;
                self.window.resize(WINDOW.min((self.size - self.at) as usize), 0);
                self.shard.read_at(&mut self.window, self.at, self.size)?;
                continue;
            }
            let length = rest.len().min(out.len());
            let (now, later) = out.split_at_mut(length);
            now.copy_from_slice(&rest[..length]);
            out = later;
            self.at += length as u64;
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], PackError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, PackError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, PackError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn skip(&mut self, length: u64) -> Result<(), PackError> {
        self.expect(length)?;
        self.at += length;
        Ok(())
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64, PackError> {
        let (at, count) = (self.at, self.u64()?);
        if count > limit {
            let reason = format!("claims {count} {what}, at most {limit} are read: is it damaged?");
            return Err(invalid(&self.shard.path, at, reason));
        }
        Ok(count)
    }

    fn string(&mut self, what: &str, limit: u64) -> Result<String, PackError> {
        let (at, length) = (self.at, self.u64()?);
        let shard = self.shard;
        let at_fault = |reason| invalid(&shard.path, at, reason);
        let whole = self.expect(length);
        if length > limit {
            let fault =
                at_fault(format!("{what} of {length} bytes, at most {limit} are read: is it damaged?"));
            match whole {
                Ok(()) => self.faults.meet(fault)?,
                Err(_) => return Err(fault),
            }
        }
        whole?;
        let mut bytes = vec![0; length.min(limit) as usize];
        self.fill(&mut bytes)?;
        self.skip(length.saturating_sub(limit))?;
        String::from_utf8(bytes).or_else(|error| {
            self.faults.meet(at_fault(format!("{what} is not UTF-8: is it damaged?")))?;
            Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())
        })
    }

    /// A value of a type; those that nothing here reads become [`Value::Other`].
    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Value, PackError> {
        Ok(match kind {
            0 => Value::Unsigned(self.bytes::<1>()?[0].into()),
            1 => Value::Signed((self.bytes::<1>()?[0] as i8).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed((self.u32()? as i32).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => match self.bytes::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    let fault = self.invalid(format!("`{key}` has {other} for a truth value"));
                    self.faults.meet(fault)?;
                    Value::Bool(true)
                }
            },
            8 => Value::Text(self.string(&format!("`{key}`"), TEXT)?),
            9 => return self.array(key, depth),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(self.u64()? as i64),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => {
                return Err(self.invalid(format!("`{key}` is of type {other}, which GGUF does not have")));
            }
        })
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Value, PackError> {
        let kind = self.u32()?;
        let (at, count) = (self.at, self.u64()?);
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            other => {
                return Err(
                    self.invalid(format!("`{key}` is an array of type {other}, which GGUF does not have"))
                );
            }
        };
        self.expect(count.saturating_mul(least))?;
        // Only a tokenizer's arrays are read.
        let mut read = key.starts_with("tokenizer.ggml.") && depth == 0;
        if read && count > ELEMENTS {
            let reason = format!("`{key}` claims {count} elements, at most {ELEMENTS} are read");
            self.faults.meet(invalid(&self.shard.path, at, reason))?;
            read = false;
        }
        match kind {
            8 if read => {
                let texts = (0..count).map(|_| self.string(&format!("`{key}`"), TEXT));
                return Ok(Value::Array(Array::Texts(texts.collect::<Result<_, _>>()?)));
            }
            8 => {
                for _ in 0..count {
                    let length = self.u64()?;
                    self.skip(length)?;
                }
            }
            9 if depth < DEPTH => {
                for _ in 0..count {
                    self.array(key, depth + 1)?;
                }
            }
            9 => return Err(self.invalid(format!("`{key}` has arrays in arrays, more than {DEPTH} deep"))),
            4 | 5 if read => {
                let numbers = (0..count).map(|_| self.u32());
                return Ok(Value::Array(Array::Integers(numbers.collect::<Result<_, _>>()?)));
            }
            6 if read => {
                let numbers = (0..count).map(|_| self.bytes().map(f32::from_le_bytes));
                return Ok(Value::Array(Array::Floats(numbers.collect::<Result<_, _>>()?)));
            }
            _ => self.skip(count.saturating_mul(least))?,
        }
        Ok(Value::Other)
    }

    /// The list of tensors, and where they lie.
    fn tensors(&mut self, count: u64, metadata: &Metadata) -> Result<Vec<TensorInfo>, PackError> {
        let mut tensors = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..count {
            let at = self.at;
            let Some(tensor) = self.tensor()? else { continue };
            if names.insert(tensor.name.clone()) {
                tensors.push(tensor);
            } else {
                let reason = format!("tensor `{}` is there twice", tensor.name);
                self.faults.meet(invalid(&self.shard.path, at, reason))?;
            }
        }
        let alignment = self.faults.or(metadata.alignment(), ALIGNMENT)?;
        let start = self.at.next_multiple_of(alignment);
        let mut places = Vec::with_capacity(tensors.len());
        let mut needed = 0;
        for tensor in &mut tensors {
            let at_fault =
                |reason| invalid(&self.shard.path, self.at, format!("tensor `{}` {reason}", tensor.name));
            let values = tensor.shape.iter().try_fold(1, |product: usize, n| product.checked_mul(*n));
            let bytes = values.and_then(|values| tensor.dtype.bytes(values));
            let end = bytes.and_then(|bytes| start.checked_add(tensor.offset)?.checked_add(bytes));
            let (Some(bytes), Some(end)) = (bytes, end) else {
                let reason = format!("of shape {:?} is larger than any file", tensor.shape);
                self.faults.meet(at_fault(reason))?;
                continue;
            };
            if !tensor.offset.is_multiple_of(alignment) {
                let reason = format!("lies at {}, which is no multiple of {alignment}", tensor.offset);
                self.faults.meet(at_fault(reason))?;
            }
            needed = needed.max(end);
            tensor.offset += start;
            if bytes > 0 {
                places.push((tensor.offset, end, &*tensor.name));
            }
        }
        if needed > self.size {
            let (path, found) = (self.shard.path.clone(), self.size);
            self.faults.meet(PackError::Truncated { path, needed, found })?;
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            if let [(_, end, first), (start, _, second)] = pair
                && end > start
            {
                let reason = format!("tensors `{first}` and `{second}` overlap");
                self.faults.meet(invalid(&self.shard.path, *start, reason))?;
            }
        }
        Ok(tensors)
    }

    /// A tensor of the list; `None` for one that is at fault.
    fn tensor(&mut self) -> Result<Option<TensorInfo>, PackError> {
        let name = self.string("the name of a tensor", NAME)?;
        let dimensions = self.u32()?;
        if dimensions > 4 {
            return Err(
                self.invalid(format!("tensor `{name}` has {dimensions} dimensions, at most 4 are possible"))
            );
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            let too_large = || self.invalid(format!("tensor `{name}` has a dimension of {size}"));
            shape.push(usize::try_from(size).map_err(|_| too_large())?);
        }
        let row = shape.first().copied().unwrap_or(1);
        shape.reverse();
        let kind = self.u32()?;
        let offset = self.u64()?;
        let Some(dtype) = dtype(kind) else {
            let (path, dtype) = (self.shard.path.clone(), type_name(kind));
            self.faults.count(&dtype, &shape);
            self.faults.meet(PackError::UnsupportedBlock { path, name, dtype })?;
            return Ok(None);
        };
        self.faults.count(dtype.name(), &shape);
        let (block, _) = dtype.piece();
        if !row.is_multiple_of(block) {
            let fault = self.invalid(format!(
                "tensor `{name}` of type {} has rows of {row}, not of whole blocks of {block}",
                dtype.name()
            ));
            self.faults.meet(fault)?;
            return Ok(None);
        }
        Ok(Some(TensorInfo { name, dtype, shape, offset }))
    }
}

/// GGML's number for a type.
fn dtype(kind: u32) -> Option<Dtype> {
    Some(match kind {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Block(Block::Q4_0),
        3 => Dtype::Block(Block::Q4_1),
        6 => Dtype::Block(Block::Q5_0),
        7 => Dtype::Block(Block::Q5_1),
        8 => Dtype::Block(Block::Q8_0),
        10 => Dtype::Block(Block::Q2K),
        11 => Dtype::Block(Block::Q3K),
        12 => Dtype::Block(Block::Q4K),
        13 => Dtype::Block(Block::Q5K),
        14 => Dtype::Block(Block::Q6K),
        20 => Dtype::Block(Block::Iq4Nl),
        23 => Dtype::Block(Block::Iq4Xs),
        30 => Dtype::Bf16,
        _ => return None,
    })
}

/// What GGML calls a type that is not read.
fn type_name(kind: u32) -> String {
    let name = match kind {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("number {other}"),
    };
    name.to_owned()
}
