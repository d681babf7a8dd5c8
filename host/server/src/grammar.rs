//! What a text must match, as requests say it.

use elapid::Grammar;
use serde_json::Value;

use crate::error::ApiError;

/// The grammar that a `response_format` asks for.
pub(crate) fn grammar_of(format: Option<&Value>) -> Result<Option<Grammar>, ApiError> {
    let wrong = |what: &str| Err(ApiError::field("response_format", what));
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(
            format.get("schema").filter(|schema| !schema.is_null()).map_or(Grammar::JsonObject, json_schema),
        )),
        Some("json_schema") => {
            let schema = format.pointer("/json_schema/schema").or_else(|| format.get("schema"));
            match schema {
                Some(schema) if schema.is_object() || schema.is_boolean() => Ok(Some(json_schema(schema))),
                _ => wrong("json_schema.schema must be a JSON schema"),
            }
        }
        _ => wrong("type must be text, json_object or json_schema"),
    }
}

/// The grammar of a schema.
pub(crate) fn json_schema(schema: &Value) -> Grammar {
    Grammar::JsonSchema(schema.to_string())
}
