//! Tools: what a model is told of them, and the calls in its answer.

use elapid::Grammar;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::grammar::json_schema;

/// Where calls begin and end in answers of the models that have a template with tools.
const MARKERS: [(&str, &str); 3] =
    [("<tool_call>", "</tool_call>"), ("[TOOL_CALLS]", ""), ("<|python_tag|>", "")];

/// What a request says about tools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    given: Option<Value>,
    /// The tools that must be called: one of them.
    required: Vec<Value>,
}

impl Tools {
    pub(crate) fn new(tools: Option<&Value>, choice: Option<&Value>) -> Result<Self, ApiError> {
        let wrong = |what: &str| ApiError::field("tools", what);
        let given = match tools {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Array(tools)) if tools.is_empty() => return Ok(Self::default()),
            Some(Value::Array(tools)) => tools,
            Some(_) => return Err(wrong("must be a list")),
        };
        let name = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).map(str::to_owned);
        if given.iter().any(|tool| name(tool).is_none()) {
            return Err(wrong("each must be a function with a name"));
        }
        let required = match choice {
            Some(Value::String(choice)) if choice == "none" => return Ok(Self::default()),
            Some(Value::String(choice)) if choice == "required" => given.clone(),
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(choice)) if choice == "auto" => Vec::new(),
            Some(choice) => {
                let wanted = choice.pointer("/function/name").and_then(Value::as_str);
                let found = given.iter().find(|tool| name(tool).as_deref() == wanted && wanted.is_some());
                vec![
                    found
                        .cloned()
                        .ok_or_else(|| ApiError::field("tool_choice", "it names none of the tools"))?,
                ]
            }
        };
        Ok(Self { given: Some(Value::Array(given.clone())), required })
    }

    /// What the template is told.
    pub(crate) fn given(&self) -> Option<&Value> {
        self.given.as_ref()
    }

    /// What an answer must match if a call is required.
    pub(crate) fn grammar(&self) -> Option<Grammar> {
        let calls: Vec<_> = self
            .required
            .iter()
            .map(|tool| {
                let function = &tool["function"];
                let arguments = function.get("parameters").filter(|schema| schema.is_object());
                json!({
                    "type": "object",
                    "properties": {
                        "name": { "const": function["name"] },
                        "arguments": arguments.cloned().unwrap_or_else(|| json!({ "type": "object" })),
                    },
                    "required": ["name", "arguments"],
                    "additionalProperties": false,
                })
            })
            .collect();
        (!calls.is_empty()).then(|| json_schema(&json!({ "anyOf": calls })))
    }
}

/// Reads an answer piece by piece, and keeps back what may be a call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reader {
    /// The names of the tools; none if calls are not looked for.
    names: Vec<String>,
    /// What is kept back.
    held: String,
    /// Whether anything but white space was passed on.
    begun: bool,
    /// Whether a call has begun.
    calling: bool,
}

impl Reader {
    pub(crate) fn new(tools: &Tools) -> Self {
        let given = tools.given.as_ref().and_then(Value::as_array);
        let name = |tool: &Value| tool.pointer("/function/name")?.as_str().map(str::to_owned);
        Self { names: given.into_iter().flatten().filter_map(name).collect(), ..Self::default() }
    }

    /// Takes a piece, and gives what is certainly text.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        if self.names.is_empty() {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        if !self.begun && !self.calling {
            let start = self.held.trim_start();
            self.calling = start.starts_with('{') || start.starts_with("[{");
        }
        if self.calling {
            return String::new();
        }
        let marker = MARKERS.iter().filter_map(|(begin, _)| self.held.find(begin)).min();
        let safe = match marker {
            Some(at) => {
                self.calling = true;
                at
            }
            None => {
                let may_begin = |(at, _): &(usize, char)| {
                    MARKERS.iter().any(|(begin, _)| begin.starts_with(&self.held[*at..]))
                };
                let blank = !self.begun && matches!(self.held.trim_start(), "" | "[");
                if blank {
                    0
                } else {
                    self.held.char_indices().find(may_begin).map_or(self.held.len(), |(at, _)| at)
                }
            }
        };
        let text: String = self.held.drain(..safe).collect();
        self.begun |= !text.trim().is_empty();
        text
    }

    /// At the end: text that was kept back and is no call, and the calls.
    pub(crate) fn finish(&mut self) -> (String, Vec<Value>) {
        let held = std::mem::take(&mut self.held);
        if !self.calling {
            return (held, Vec::new());
        }
        match self.calls(&held) {
            Some(calls) if !calls.is_empty() => (String::new(), calls),
            _ => (held, Vec::new()),
        }
    }

    /// The calls in a text; `None` if there is something else in it.
    fn calls(&self, text: &str) -> Option<Vec<Value>> {
        let mut rest = text.trim();
        let mut calls = Vec::new();
        while !rest.is_empty() {
            let marker = MARKERS.iter().find(|(begin, _)| rest.starts_with(begin));
            let (begin, end) = marker.copied().unwrap_or_default();
            rest = rest.strip_prefix(begin)?.trim_start();
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let value = values.next()?.ok()?;
            let after = rest.get(values.byte_offset()..)?.trim_start();
            rest = after.strip_prefix(end).unwrap_or(after).trim_start_matches([';', ',']).trim_start();
            let list = if let Value::Array(list) = value { list } else { vec![value] };
            for call in list {
                calls.push(self.call(&call, calls.len())?);
            }
        }
        Some(calls)
    }

    /// A call as OpenAI has it.
    fn call(&self, call: &Value, place: usize) -> Option<Value> {
        let call = call.get("function").filter(|function| function.is_object()).unwrap_or(call);
        let name = call.get("name")?.as_str()?;
        if !self.names.iter().any(|known| known == name) {
            return None;
        }
        let arguments = call.get("arguments").or_else(|| call.get("parameters"));
        let arguments = match arguments {
            None => "{}".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(arguments) => arguments.to_string(),
        };
        let id = format!("call_{:x}_{place}", crate::clock::now().as_nanos());
        Some(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> Reader {
        let tools = json!([{ "type": "function", "function": { "name": "add" } }]);
        Reader::new(&Tools::new(Some(&tools), None).unwrap())
    }

    /// Text and calls of an answer that comes in pieces of `size` bytes.
    fn read(answer: &str, size: usize) -> (String, Vec<(String, String)>) {
        let mut reader = reader();
        let mut text = String::new();
        for piece in answer.as_bytes().chunks(size) {
            text.push_str(&reader.push(std::str::from_utf8(piece).unwrap()));
        }
        let (rest, calls) = reader.finish();
        let of = |call: &Value, key: &str| call["function"][key].as_str().unwrap().to_owned();
        (text + &rest, calls.iter().map(|call| (of(call, "name"), of(call, "arguments"))).collect())
    }

    #[test]
    fn calls_are_told_from_text_however_they_come() {
        let add = |arguments: &str| ("add".to_owned(), arguments.to_owned());
        for (answer, text, calls) in [
            ("Hello <b>", "Hello <b>", vec![]),
            ("{\"name\": \"add\", \"arguments\": {\"a\": 1}}", "", vec![add("{\"a\":1}")]),
            (" [{\"name\": \"add\", \"parameters\": {}}]", "", vec![add("{}")]),
            (
                "Sure. <tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>",
                "Sure. ",
                vec![add("{}")],
            ),
            (
                "<tool_call>{\"name\":\"add\"}</tool_call>\n<tool_call>{\"name\":\"add\",\"arguments\":\"{}\"}</tool_call>",
                "",
                vec![add("{}"), add("{}")],
            ),
            ("[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {}}]", "", vec![add("{}")]),
            ("{\"name\": \"other\"}", "{\"name\": \"other\"}", vec![]),
            ("{\"name\": \"add\"", "{\"name\": \"add\"", vec![]),
            ("[1] is a list", "[1] is a list", vec![]),
            ("a <tool_call> alone", "a <tool_call> alone", vec![]),
            ("1 < 2", "1 < 2", vec![]),
        ] {
            for size in [1, 3, 1000] {
                assert_eq!(read(answer, size), (text.to_owned(), calls.clone()), "{answer} by {size}");
            }
        }
    }

    #[test]
    fn a_required_call_has_a_schema() {
        let tools = json!([{ "function": { "name": "add", "parameters": { "type": "object" } } }, { "function": { "name": "b" } }]);
        let grammar = |choice: Value| Tools::new(Some(&tools), Some(&choice)).map(|tools| tools.grammar());
        assert!(grammar(json!("auto")).unwrap().is_none() && grammar(json!("none")).unwrap().is_none());
        let schema = |choice: Value| match grammar(choice).unwrap() {
            Some(Grammar::JsonSchema(text)) => serde_json::from_str::<Value>(&text).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(schema(json!("required"))["anyOf"].as_array().unwrap().len(), 2);
        let named = schema(json!({ "type": "function", "function": { "name": "b" } }));
        assert_eq!(named["anyOf"][0]["properties"]["name"]["const"], "b");
        assert!(grammar(json!({ "type": "function", "function": { "name": "c" } })).is_err());
        assert!(
            Tools::new(Some(&json!([{}])), None).is_err() && Tools::new(Some(&json!("x")), None).is_err()
        );
    }
}
