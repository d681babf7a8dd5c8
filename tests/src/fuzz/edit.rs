//! Damage to bytes and to JSON.

use arbitrary::Arbitrary;
use serde_json::{Value, json};

/// Longest run of bytes that an edit copies or inserts.
const RUN: usize = 256;

/// Damage to bytes. Places are taken modulo the length.
#[derive(Arbitrary, Clone, Debug)]
pub enum ByteEdit {
    /// Overwrites a byte.
    Set(u16, u8),
    /// Overwrites a little-endian word at a multiple of 4, with a small number or one near 2^32.
    Word(u16, i16),
    /// Adds to such a word.
    Add(u16, i8),
    /// Copies a run to another place.
    Copy(u16, u16, u8),
    /// Inserts a run of one byte.
    Insert(u16, u8, u8),
    /// Removes a run.
    Remove(u16, u8),
    /// Cuts the end off.
    Truncate(u16),
}

impl ByteEdit {
    /// Applies it.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let at = |place: u16| usize::from(place) % len.max(1);
        let mut word = |place: u16, change: &dyn Fn(u32) -> u32| {
            if let Some(four) = bytes.as_chunks_mut::<4>().0.get_mut(at(place) / 4) {
                *four = change(u32::from_le_bytes(*four)).to_le_bytes();
            }
        };
        match *self {
            Self::Set(place, byte) => {
                if let Some(to) = bytes.get_mut(at(place)) {
                    *to = byte;
                }
            }
            Self::Word(place, value) => word(place, &|_| i32::from(value).cast_unsigned()),
            Self::Add(place, value) => word(place, &|old| old.wrapping_add_signed(i32::from(value))),
            Self::Copy(from, to, count) => {
                let count = usize::from(count).min(RUN).min(len - at(from).max(at(to)).min(len));
                bytes.copy_within(at(from)..at(from) + count, at(to));
            }
            Self::Insert(place, count, byte) => {
                bytes.splice(at(place)..at(place), std::iter::repeat_n(byte, count.into()));
            }
            Self::Remove(place, count) => {
                bytes.drain(at(place)..len.min(at(place) + usize::from(count)));
            }
            Self::Truncate(to) => bytes.truncate(at(to)),
        }
    }
}

/// Damage to a JSON document: at the value that `path` leads to, one index a level.
#[derive(Arbitrary, Clone, Debug)]
pub struct JsonEdit {
    path: [u8; 4],
    depth: u8,
    change: Change,
}

#[derive(Arbitrary, Clone, Debug)]
enum Change {
    /// Another value.
    Set(Scalar),
    /// A number near the one there is.
    Add(i8),
    /// One member or element less.
    Remove(u8),
    /// One more, under a name from the list or a new one.
    Insert(u8, Scalar),
    Name(String, Scalar),
    /// A member's value under another's name.
    Swap(u8, u8),
    /// The value, wrapped in arrays.
    Nest(u8),
    /// An element many times over.
    Repeat(u8, u8),
}

#[derive(Arbitrary, Clone, Debug)]
enum Scalar {
    Null,
    Bool(bool),
    Small(u8),
    Number(i64),
    Large(u64),
    Float(f64),
    Text(String),
    /// A text from the list.
    Known(u8),
    Empty,
    EmptyObject,
}

impl Scalar {
    fn get(&self, words: &[&str]) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => json!(value),
            Self::Small(value) => json!(value),
            Self::Number(value) => json!(value),
            Self::Large(value) => json!(value),
            Self::Float(value) => json!(value),
            Self::Text(text) => json!(text),
            Self::Known(i) => json!(word(words, *i)),
            Self::Empty => json!([]),
            Self::EmptyObject => json!({}),
        }
    }
}

fn word<'w>(words: &[&'w str], i: u8) -> &'w str {
    words.get(usize::from(i) % words.len().max(1)).copied().unwrap_or_default()
}

/// The `i`-th name of an object, modulo their number.
fn name(object: &serde_json::Map<String, Value>, i: u8) -> Option<String> {
    object.keys().nth(usize::from(i) % object.len().max(1)).cloned()
}

/// Where a value lies in another.
enum Place {
    Name(String),
    Index(usize),
}

impl JsonEdit {
    /// Applies it. `words` are names and texts that mean something in such a document.
    pub fn apply(&self, document: &mut Value, words: &[&str]) {
        let depth = usize::from(self.depth) % (self.path.len() + 1);
        let mut value = document;
        for &step in &self.path[..depth] {
            let place = match &*value {
                Value::Object(object) => name(object, step).map(Place::Name),
                Value::Array(array) => usize::from(step).checked_rem(array.len()).map(Place::Index),
                _ => None,
            };
            value = match place {
                Some(Place::Name(name)) => &mut value[name],
                Some(Place::Index(index)) => &mut value[index],
                None => break,
            };
        }
        self.change.apply(value, words);
    }
}

impl Change {
    fn apply(&self, value: &mut Value, words: &[&str]) {
        match (self, value) {
            (Self::Set(scalar), value) => *value = scalar.get(words),
            (Self::Add(n), value @ Value::Number(_)) => {
                let old = value.as_i64().unwrap_or_default();
                *value = json!(old.wrapping_add(i64::from(*n)));
            }
            (Self::Remove(i), Value::Object(object)) => {
                if let Some(name) = name(object, *i) {
                    object.remove(&name);
                }
            }
            (Self::Remove(i), Value::Array(array)) if !array.is_empty() => {
                array.remove(usize::from(*i) % array.len());
            }
            (Self::Insert(i, scalar), Value::Object(object)) => {
                object.insert(word(words, *i).to_owned(), scalar.get(words));
            }
            (Self::Name(name, scalar), Value::Object(object)) => {
                object.insert(name.clone(), scalar.get(words));
            }
            (Self::Insert(_, scalar) | Self::Name(_, scalar), Value::Array(array)) => {
                array.push(scalar.get(words));
            }
            (Self::Swap(a, b), Value::Object(object)) => {
                if let (Some(a), Some(b)) = (name(object, *a), name(object, *b)) {
                    let (of_a, of_b) = (object[&a].clone(), object[&b].clone());
                    object.extend([(a, of_b), (b, of_a)]);
                }
            }
            (Self::Swap(a, b), Value::Array(array)) if !array.is_empty() => {
                let len = array.len();
                array.swap(usize::from(*a) % len, usize::from(*b) % len);
            }
            (Self::Nest(depth), value) => {
                for _ in 0..=*depth {
                    *value = json!([value.take()]);
                }
            }
            (Self::Repeat(i, count), Value::Array(array)) if !array.is_empty() => {
                let element = array[usize::from(*i) % array.len()].clone();
                array.extend(std::iter::repeat_n(element, usize::from(*count)));
            }
            _ => {}
        }
    }
}
