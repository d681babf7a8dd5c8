//! The parts of a tokenizer.json: objects with a `type`.

use serde_json::Value;

use super::CompileError;
use super::tokens::invalid;

/// The `type` of a part, for comparison and for messages.
pub fn type_of(part: &Value) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or("(none)")
}

/// A setting that is true or false.
pub fn flag(part: &Value, name: &str, default: bool) -> bool {
    part.get(name).and_then(Value::as_bool).unwrap_or(default)
}

/// The parts of a `Sequence`, or the one part that there is.
pub fn sequence<'v>(part: &'v Value, list: &str) -> Result<Vec<&'v Value>, CompileError> {
    if part.is_null() {
        return Ok(Vec::new());
    }
    if type_of(part) != "Sequence" {
        return Ok(vec![part]);
    }
    match part.get(list).and_then(Value::as_array) {
        Some(parts) => Ok(parts.iter().collect()),
        None => invalid(format!("a Sequence without {list}")),
    }
}
