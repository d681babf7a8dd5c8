//! A GGUF file's metadata: values by key.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::PackError;

/// What the places of tensors are multiples of, where nothing is said.
pub(super) const ALIGNMENT: u64 = 32;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
    /// An array that is not read.
    Other,
}

/// The elements of an array of a tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Array {
    Texts(Vec<String>),
    Integers(Vec<u32>),
    Floats(Vec<f32>),
}

/// All values of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn new(path: PathBuf, values: BTreeMap<String, Value>) -> Self {
        Self { path, values }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub(super) fn invalid(&self, key: &str, reason: String) -> PackError {
        PackError::InvalidConfig { path: self.path.clone(), key: key.to_owned(), reason }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, PackError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.invalid(key, format!("must be {what}"))),
        }
    }

    /// A whole number from 0.
    pub(super) fn whole(&self, key: &str) -> Result<Option<u64>, PackError> {
        self.typed(key, "a whole number from 0", |value| match value {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        })
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, PackError> {
        self.typed(key, "a number", |value| match value {
            Value::Float(number) => Some(*number),
            _ => None,
        })
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, PackError> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, PackError> {
        self.typed(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<&[String]>, PackError> {
        self.typed(key, "an array of texts", |value| match value {
            Value::Array(Array::Texts(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<&[u32]>, PackError> {
        self.typed(key, "an array of whole numbers", |value| match value {
            Value::Array(Array::Integers(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<&[f32]>, PackError> {
        self.typed(key, "an array of numbers", |value| match value {
            Value::Array(Array::Floats(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// What the places of tensors are multiples of.
    pub(super) fn alignment(&self) -> Result<u64, PackError> {
        let key = "general.alignment";
        let found = self.whole(key)?.unwrap_or(ALIGNMENT);
        if !found.is_power_of_two() || found > 1 << 20 {
            return Err(self.invalid(key, format!("is {found}; it must be a power of two up to {}", 1 << 20)));
        }
        Ok(found)
    }
}
