//! Files of torch.save: a zip file of a pickle and storages, or in old files pickles with the storages behind them.
//!
//! The pickle is read by an interpreter of the few instructions that tensors need, which executes nothing.

mod machine;
mod tensor;
#[cfg(test)]
mod tests;
mod zip;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::entry::{Shard, Shards, TensorEntry};
use super::faults::Faults;
use super::json;
use crate::PackError;
use machine::{Fault, Machine, Value};

/// The largest pickle accepted, in bytes: some 200 for each tensor.
const PICKLE_LIMIT: u64 = 32 << 20;
/// What an old file begins with: a pickle of torch's number.
const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// Keys under which training code keeps the model's tensors.
const INNER: [&str; 3] = ["state_dict", "model", "module"];

fn invalid(shard: &Shard, at: u64, reason: impl Into<String>) -> PackError {
    PackError::InvalidPickle { path: shard.path.clone(), at, reason: reason.into() }
}

/// Where the storages of a file are.
enum Storages {
    /// In a zip file, below this folder.
    Zip(zip::Members, String),
    /// By key: offset and elements.
    Old(HashMap<String, (u64, u64)>),
}

/// Adds a file's tensors. Returns the names of all that it has.
pub(super) fn add(
    shards: &mut Shards,
    shard: Shard,
    faults: &mut Faults,
) -> Result<BTreeSet<String>, PackError> {
    let size = shard.size()?;
    let mut start = vec![0; OLD_MAGIC.len().min(size as usize)];
    shard.read_at(&mut start, 0, size)?;
    json::refuse_stand_in(&shard.path, &start)?;
    let (pickle, at, length) = if start.starts_with(b"PK") {
        let members = zip::directory(&shard)?;
        let found: Vec<&String> = members.keys().filter(|name| is_pickle(name)).collect();
        let &[name] = &found[..] else {
            return Err(invalid(
                &shard,
                0,
                "a zip file without the one data.pkl of torch.save: is it the right file?",
            ));
        };
        let folder = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
        let member = members[name];
        let at = member.data(&shard, name)?;
        if member.size > PICKLE_LIMIT {
            let reason = format!("`{name}` has {} bytes, at most {PICKLE_LIMIT} are read", member.size);
            return Err(invalid(&shard, at, reason));
        }
        (Some((members, folder)), at, member.size)
    } else if start == OLD_MAGIC {
        (None, 0, size.min(PICKLE_LIMIT))
    } else {
        return Err(invalid(
            &shard,
            0,
            "does not begin as a file of torch.save does: is it the right file, and whole?",
        ));
    };
    let mut bytes = vec![0; length as usize];
    shard.read_at(&mut bytes, at, size)?;
    match pickle {
        Some((members, folder)) => {
            little_endian(&shard, &members, &folder)?;
            let mut machine = Machine::new(&bytes);
            let top = machine.run().map_err(|fault| of_fault(&shard, at, fault))?;
            tensors(shards, shard, &machine, top, &Storages::Zip(members, folder), faults)
        }
        None => old(shards, shard, &bytes, faults),
    }
}

/// torch.save puts the pickle into a folder of the file's name.
fn is_pickle(name: &str) -> bool {
    name == "data.pkl" || name.strip_suffix("/data.pkl").is_some_and(|folder| !folder.contains('/'))
}

fn of_fault(shard: &Shard, start: u64, fault: Fault) -> PackError {
    let Fault { at, reason } = fault;
    invalid(shard, start + at as u64, format!("the pickle {reason}"))
}

fn little_endian(shard: &Shard, members: &zip::Members, folder: &str) -> Result<(), PackError> {
    let name = format!("{folder}byteorder");
    let Some(member) = members.get(&name) else { return Ok(()) };
    let at = member.data(shard, &name)?;
    let mut order = vec![0; member.size.min(16) as usize];
    shard.read_at(&mut order, at, at + member.size)?;
    if order == b"little" {
        return Ok(());
    }
    Err(invalid(shard, at, "its numbers are not little-endian: save it again on another machine"))
}

/// A file of torch before 1.6: pickles of a number, a version, the system, the tensors and the storages' keys; then of each
/// storage its length and its elements.
fn old(
    shards: &mut Shards,
    shard: Shard,
    bytes: &[u8],
    faults: &mut Faults,
) -> Result<BTreeSet<String>, PackError> {
    let size = shard.size()?;
    let mut at = 0;
    for _ in 0..3 {
        let mut machine = Machine::new(bytes.get(at..).unwrap_or_default());
        machine.run().map_err(|fault| of_fault(&shard, at as u64, fault))?;
        at += machine.length();
    }
    let mut machine = Machine::new(bytes.get(at..).unwrap_or_default());
    let top = machine.run().map_err(|fault| of_fault(&shard, at as u64, fault))?;
    at += machine.length();
    let mut keys = Machine::new(bytes.get(at..).unwrap_or_default());
    let list = keys.run().map_err(|fault| of_fault(&shard, at as u64, fault))?;
    at += keys.length();
    let Value::List(list) = list else {
        return Err(invalid(&shard, at as u64, "there is no list of storages: is the file damaged?"));
    };
    let dtypes: HashMap<&str, &str> =
        machine.storages.iter().map(|storage| (storage.key, storage.dtype)).collect();
    let (mut at, mut places) = (at as u64, HashMap::new());
    for key in &keys.lists[list] {
        let Some((key, width)) = keys.as_text(*key).and_then(|key| Some((key, width(dtypes.get(key)?)?)))
        else {
            return Err(invalid(&shard, at, "a storage is not named by the pickle: is the file damaged?"));
        };
        let mut count = [0; 8];
        shard.read_at(&mut count, at, at + 8)?;
        let count = u64::from_le_bytes(count);
        let end = count.checked_mul(width).and_then(|bytes| bytes.checked_add(at)?.checked_add(8));
        let end = end.ok_or_else(|| invalid(&shard, at, format!("a storage claims {count} elements")))?;
        if end > size {
            return Err(PackError::Truncated { path: shard.path, needed: end, found: size });
        }
        places.insert(key.to_owned(), (at + 8, count));
        at = end;
    }
    tensors(shards, shard, &machine, top, &Storages::Old(places), faults)
}

/// Bytes of an element.
fn width(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F64" | "I64" | "C64" => 8,
        "F32" | "I32" => 4,
        "F16" | "BF16" | "I16" => 2,
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => 1,
        _ => return None,
    })
}

/// The pairs of the dictionary that has the tensors: the top, or one below it.
fn state<'m>(machine: &'m Machine<'_>, top: Value) -> Option<&'m [(Value, Value)]> {
    let pairs = |value: Value| match value {
        Value::Dict(index) => machine.dicts.get(index).map(Vec::as_slice),
        _ => None,
    };
    let top = pairs(top)?;
    if top.iter().any(|(_, value)| matches!(value, Value::Tensor(_))) {
        return Some(top);
    }
    let inner = |key: &str| top.iter().find(|(name, _)| machine.as_text(*name) == Some(key));
    INNER.into_iter().find_map(|key| pairs(inner(key)?.1))
}

/// Adds the tensors of a dictionary. Returns the names of all.
fn tensors(
    shards: &mut Shards,
    shard: Shard,
    machine: &Machine<'_>,
    top: Value,
    storages: &Storages,
    faults: &mut Faults,
) -> Result<BTreeSet<String>, PackError> {
    let Some(pairs) = state(machine, top) else {
        return Err(invalid(&shard, 0, "holds no dictionary of tensors: save the model's state_dict()"));
    };
    let mut names = BTreeSet::new();
    let mut places: BTreeMap<usize, u64> = BTreeMap::new();
    for (key, value) in pairs {
        let (Some(name), Value::Tensor(index)) = (machine.as_text(*key), value) else { continue };
        if !names.insert(name.to_owned()) {
            return Err(invalid(&shard, 0, format!("tensor `{name}` is there twice")));
        }
        let tensor = &machine.tensors[*index];
        let storage = machine.storages[tensor.storage];
        let judged = TensorEntry::judge(&shard.path, name, storage.dtype, &tensor.shape, faults)?;
        let Some((kind, dtype)) = judged else { continue };
        let place = match places.get(&tensor.storage) {
            Some(place) => *place,
            None => {
                let place = storages.find(&shard, storage)?;
                places.insert(tensor.storage, place);
                place
            }
        };
        let offset = place + tensor.offset * dtype.piece().1 as u64;
        let mut entry =
            TensorEntry::new(name.to_owned(), kind, dtype, tensor.shape.clone(), shards.files.len(), offset);
        entry.strides = tensor.strides.clone();
        shards.entries.push(entry);
    }
    shards.files.push(shard);
    Ok(names)
}

impl Storages {
    /// Where a storage's elements start, all of which are in the file.
    fn find(&self, shard: &Shard, storage: tensor::Storage<'_>) -> Result<u64, PackError> {
        let key = storage.key;
        let missing = || invalid(shard, 0, format!("storage `{key}` is not in the file: is it damaged?"));
        let short = |at, found: u64| {
            invalid(
                shard,
                at,
                format!(
                    "storage `{key}` has {found} bytes for {} elements of {}",
                    storage.count, storage.dtype
                ),
            )
        };
        let wanted =
            width(storage.dtype).and_then(|width| storage.count.checked_mul(width)).ok_or_else(missing)?;
        match self {
            Self::Zip(members, folder) => {
                let name = format!("{folder}data/{key}");
                let member = members.get(&name).ok_or_else(missing)?;
                let at = member.data(shard, &name)?;
                if member.size < wanted { Err(short(at, member.size)) } else { Ok(at) }
            }
            Self::Old(places) => {
                let &(at, count) = places.get(key).ok_or_else(missing)?;
                let found = count.saturating_mul(width(storage.dtype).unwrap_or_default());
                if found < wanted { Err(short(at, found)) } else { Ok(at) }
            }
        }
    }
}
