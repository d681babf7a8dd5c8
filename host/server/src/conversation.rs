//! From messages and texts to tokens, and back.

use elapid::core::tokenizer::{EncodeOptions, Tokenizer};
use elapid::{Message, encode, plain_chat};
use minijinja::Value as Context;
use minijinja::value::Serde;
use serde_json::Value;

use crate::app::Served;
use crate::error::ApiError;

/// Takes JSON messages as clients write them, and gives what templates expect: content as text, arguments of calls as objects.
pub(crate) fn normalize(messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "give one message at least"));
    }
    let one = |(i, mut message): (usize, Value)| {
        let wrong = |what: &str| ApiError::field(&format!("messages[{i}]"), what);
        let Some(object) = message.as_object_mut() else { return Err(wrong("must be an object")) };
        if !object.get("role").is_some_and(Value::is_string) {
            return Err(wrong("role must be a text, such as \"user\""));
        }
        let content = match object.get("content") {
            None | Some(Value::Null) => Value::String(String::new()),
            Some(Value::String(text)) => Value::String(text.clone()),
            Some(Value::Array(parts)) => {
                let text = |part: &Value| match part.get("type").and_then(Value::as_str) {
                    Some("text" | "input_text" | "output_text") => {
                        part.get("text")?.as_str().map(str::to_owned)
                    }
                    None if part.is_string() => part.as_str().map(str::to_owned),
                    _ => None,
                };
                let texts: Option<Vec<String>> = parts.iter().map(text).collect();
                Value::String(
                    texts
                        .ok_or_else(|| wrong("this model reads text only: give parts of type text"))?
                        .concat(),
                )
            }
            Some(_) => return Err(wrong("content must be a text, or a list of parts")),
        };
        if object.get("images").and_then(Value::as_array).is_some_and(|images| !images.is_empty()) {
            return Err(wrong("this model reads text only: leave images out"));
        }
        object.insert("content".into(), content);
        if object.get("tool_calls").is_some_and(Value::is_null) {
            object.remove("tool_calls");
        }
        for call in object.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(arguments) = call.pointer_mut("/function/arguments")
                && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
            {
                *arguments = parsed;
            }
        }
        Ok(message)
    };
    messages.into_iter().enumerate().map(one).collect()
}

/// The text of a conversation, by the model's template.
pub(crate) fn render(served: &Served, messages: &[Value], tools: Option<&Value>) -> Result<String, ApiError> {
    let Some(template) = &served.template else {
        let text = |message: &Value, key: &str| message[key].as_str().unwrap_or_default().to_owned();
        let plain: Vec<_> = messages
            .iter()
            .map(|message| Message::new(text(message, "role"), text(message, "content")))
            .collect();
        return Ok(plain_chat(&plain));
    };
    let tools = tools.map_or_else(|| Context::from(()), |tools| Context::from(Serde(tools)));
    let rendered = template.render_values(Context::from(Serde(messages)), tools, &served.names, true);
    rendered.map_err(|error| {
        ApiError::field("messages", format!("the model's chat template refuses them: {error}"))
    })
}

/// The tokens of a conversation, up to where the model answers.
pub(crate) fn prompt(
    served: &Served,
    messages: &[Value],
    tools: Option<&Value>,
) -> Result<Vec<u32>, ApiError> {
    tokens_of(served, &render(served, messages, tools)?, served.template.is_none())
}

/// The tokens of a text.
pub(crate) fn tokens_of(served: &Served, text: &str, add_special: bool) -> Result<Vec<u32>, ApiError> {
    let options = EncodeOptions { add_special, ..EncodeOptions::default() };
    Ok(encode(&served.tokenizer()?, text, options)?)
}

/// The text of tokens.
pub(crate) fn spell(tokenizer: &Tokenizer<'_>, tokens: &[u32]) -> String {
    let bytes: Vec<u8> =
        tokens.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap_or_default()).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
