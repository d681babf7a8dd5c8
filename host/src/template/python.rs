//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// The deepest nesting.
const DEPTH: usize = 64;
/// The longest text, in bytes.
const LONGEST: usize = 64 << 20;

fn fail(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Checks that a value is neither nested too deeply nor written too long.
fn check(depth: usize, out: &str) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(fail("a value is nested too deeply"));
    }
    if out.len() > LONGEST { Err(fail("a value is too long")) } else { Ok(()) }
}

/// `str(value)`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut out = String::new();
    if !value.is_undefined() {
        repr(value, 0, &mut out)?;
    }
    Ok(out)
}

/// `repr(value)`.
fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    check(depth, out)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut count = 0;
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, depth + 1, out)?;
                count += 1;
            }
            if value.is_tuple() && count == 1 {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

/// A number as Python writes it: the shortest digits that give it back, with an exponent where that is below -4 or above 15.
fn number(value: &Value, out: &mut String) {
    let float = if value.is_integer() { None } else { f64::try_from(value.clone()).ok() };
    let Some(x) = float else {
        let _ = write!(out, "{value}");
        return;
    };
    if !x.is_finite() {
        out.push_str(if x.is_nan() {
            "nan"
        } else if x < 0.0 {
            "-inf"
        } else {
            "inf"
        });
        return;
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "{digits}e{sign}{:02}", exponent.abs());
        return;
    }
    let plain = format!("{x}");
    out.push_str(&plain);
    if !plain.contains('.') {
        out.push_str(".0");
    }
}

/// A string in quotes, as `repr` writes it.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            // What Python calls not printable, for the most part.
            '\0'..'\u{20}' | '\u{7f}'..='\u{a0}' | '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{3000}'
            | '\u{2000}'..='\u{200a}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// How JSON is written.
pub(super) struct Json {
    /// Between elements.
    pub between: String,
    /// Between a key and its value.
    pub after_key: String,
    /// What lines are indented by, if there are lines.
    pub indent: Option<String>,
    /// Only ASCII.
    pub ascii: bool,
    /// Keys in order.
    pub sorted: bool,
}

/// `json.dumps(value)`.
pub(super) fn to_json(value: &Value, style: &Json) -> Result<String, Error> {
    let mut out = String::new();
    json(value, style, 0, &mut out)?;
    Ok(out)
}

/// A new line within `depth` brackets, where there are lines.
fn line(style: &Json, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn json(value: &Value, style: &Json, depth: usize, out: &mut String) -> Result<(), Error> {
    check(depth, out)?;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(x) if !value.is_integer() && !x.is_finite() => {
                out.push_str(if x.is_nan() {
                    "NaN"
                } else if x < 0.0 {
                    "-Infinity"
                } else {
                    "Infinity"
                });
            }
            _ => number(value, out),
        },
        ValueKind::String => escaped(value.as_str().unwrap_or_default(), style.ascii, out),
        ValueKind::Seq => {
            out.push('[');
            let mut empty = true;
            for item in value.try_iter()? {
                out.push_str(if empty { "" } else { &style.between });
                empty = false;
                line(style, depth + 1, out);
                json(&item, style, depth + 1, out)?;
            }
            if !empty {
                line(style, depth, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sorted {
                keys.sort();
            }
            for (i, key) in keys.iter().enumerate() {
                out.push_str(if i > 0 { &style.between } else { "" });
                line(style, depth + 1, out);
                match key.kind() {
                    ValueKind::String => escaped(key.as_str().unwrap_or_default(), style.ascii, out),
                    ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                        out.push('"');
                        json(key, style, depth + 1, out)?;
                        out.push('"');
                    }
                    _ => return Err(fail("keys must be str, int, float, bool or None")),
                }
                out.push_str(&style.after_key);
                json(&value.get_item(key)?, style, depth + 1, out)?;
            }
            if !keys.is_empty() {
                line(style, depth, out);
            }
            out.push('}');
        }
        ValueKind::Undefined => return Err(fail("Object of type Undefined is not JSON serializable")),
        ValueKind::Iterable => return Err(fail("Object of type generator is not JSON serializable")),
        _ => return Err(fail("a value is not JSON serializable")),
    }
    Ok(())
}

fn escaped(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..'\u{20}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c if ascii && !(' '..='~').contains(&c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
