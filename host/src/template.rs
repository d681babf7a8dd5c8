//! Chat templates: Jinja, rendered as transformers' `apply_chat_template` renders it.
//!
//! minijinja is the engine; here is what transformers defines beside Jinja, and what Python prints otherwise. Known to differ: a loop over
//! none and JSON of what `map` and its like give render where Python fails; text that is added to a `safe` one is not escaped; strings
//! have no operator `%` (the filter `format` is there).

mod python;

use std::collections::BTreeMap;

use elapid_core::format::data::without_generation_tags;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind};

use crate::message::Message;
use python::{Json, to_json, to_str};

/// Steps that one rendering may take: templates come from anywhere. Long chats with tools take some 100,000.
const FUEL: u64 = 50_000_000;
/// The longest template, in bytes; known ones have up to some 20 KB.
const LENGTH_LIMIT: usize = 64 << 10;
/// The longest text that a template may render, in bytes.
const OUTPUT_LIMIT: usize = 64 << 20;
/// Stack for each byte of a template: the engine's parser calls itself for each operator in a chain, up to 0.5 KiB a byte.
const STACK_PER_BYTE: usize = 2 << 10;
/// Stack for everything else.
const STACK_BASE: usize = 4 << 20;

/// Why a template can't be used, or what it raised: one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template raised this message itself.
    #[error("{0}")]
    Raised(String),
    /// The template is wrong, or failed.
    #[error("line {line} of the chat template: {reason}")]
    Failed {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The template is too long, or what it renders is, or it takes too many steps.
    #[error("the chat template is refused: {0}")]
    TooMuch(&'static str),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    stack: usize,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TemplateError`] with the line that is wrong.
    pub fn new(jinja: &str) -> Result<Self, TemplateError> {
        if jinja.len() > LENGTH_LIMIT {
            return Err(TemplateError::TooMuch("it is longer than 64 KiB"));
        }
        let jinja = jinja.replace("\r\n", "\n").replace('\r', "\n");
        let jinja: String = without_generation_tags(&jinja).collect();
        let stack = STACK_BASE + STACK_PER_BYTE * jinja.len();
        let environment = on_stack(stack, || compile(jinja))?;
        Ok(Self { environment, stack })
    }

    /// Renders a chat without tools. `names` are the special tokens by their names, such as `bos_token`; with `answer`, the text ends
    /// with what makes the model answer.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_chat(
        &self,
        messages: &[Message],
        names: &BTreeMap<String, String>,
        answer: bool,
    ) -> Result<String, TemplateError> {
        let message = |Message { role, content }: &Message| {
            Value::from_pairs([("role", role.as_str()), ("content", content.as_str())])
        };
        self.render_values(messages.iter().map(message).collect(), Value::from(()), names, answer)
    }

    /// As [`ChatTemplate::render_chat`], for messages of any form, and with tools (none if they are `Value::from(())`).
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_values(
        &self,
        messages: Value,
        tools: Value,
        names: &BTreeMap<String, String>,
        answer: bool,
    ) -> Result<String, TemplateError> {
        let given = [
            ("messages", messages),
            ("tools", tools),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(answer)),
        ];
        let names = names.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        self.render(Value::from_pairs(given.into_iter().chain(names)))
    }

    /// Renders what the template is given: an object with `messages`, `tools`, `documents` (none where there are none),
    /// `add_generation_prompt`, and the names of special tokens.
    ///
    /// # Errors
    /// What the template raises, and where it fails.
    pub fn render(&self, context: Value) -> Result<String, TemplateError> {
        on_stack(self.stack, || {
            let mut out = Limited(Vec::new());
            let template = self.environment.get_template(NAME).map_err(error)?;
            match template.render_captured_to(context, &mut out) {
                Ok(_) => {}
                Err(_) if out.0.len() > OUTPUT_LIMIT => {
                    return Err(TemplateError::TooMuch("its text is longer than 64 MiB"));
                }
                Err(cause) => return Err(error(cause)),
            }
            String::from_utf8(out.0).map_err(|_| TemplateError::TooMuch("its text is not UTF-8"))
        })
    }
}

/// The template's name in its environment.
const NAME: &str = "chat";

/// Runs `work` on a stack of its own.
fn on_stack<T: Send>(
    stack: usize,
    work: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(stack).spawn_scoped(scope, work);
        let thread = thread.map_err(|_| TemplateError::TooMuch("the system has no thread for it"))?;
        thread.join().unwrap_or(Err(TemplateError::TooMuch("the Jinja engine failed on it")))
    })
}

/// Text up to a limit.
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        if self.0.len() > OUTPUT_LIMIT {
            Err(std::io::ErrorKind::FileTooLarge.into())
        } else {
            Ok(bytes.len())
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The start of the detail of an error that the template raised, which no other has.
const RAISED: &str = "\u{0}raised\u{0}";

fn fail(reason: impl Into<String>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// An error of the engine, as one line.
fn error(cause: minijinja::Error) -> TemplateError {
    let mut root = &cause;
    while let Some(deeper) = std::error::Error::source(root).and_then(|cause| cause.downcast_ref()) {
        root = deeper;
    }
    if cause.kind() == ErrorKind::OutOfFuel || root.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooMuch("it takes too many steps");
    }
    let one_line = |text: &str| text.lines().collect::<Vec<_>>().join(" ");
    if let Some(raised) = root.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        return TemplateError::Raised(one_line(raised));
    }
    let reason =
        root.detail().map_or_else(|| root.kind().to_string(), |detail| format!("{}: {detail}", root.kind()));
    TemplateError::Failed { line: root.line().or(cause.line()).unwrap_or(1), reason: one_line(&reason) }
}

fn compile(jinja: String) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(error)?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, _, value| {
        if let Some(text) = value.as_str() {
            return Ok(out.write_str(text)?);
        }
        Ok(out.write_str(&to_str(value)?)?)
    });
    environment.add_function("raise_exception", |message: Value| -> Result<Value, minijinja::Error> {
        Err(fail(format!("{RAISED}{}", to_str(&message)?)))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: Value| to_str(&value).map(Value::from));
    let lists = |value: &Value| matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map);
    environment.add_test("sequence", move |value: Value| lists(&value));
    environment
        .add_test("iterable", move |value: Value| lists(&value) || value.kind() == ValueKind::Iterable);
    environment.add_template_owned(NAME, jinja).map_err(error)?;
    Ok(environment)
}

/// `json.dumps` with the arguments that transformers' filter takes.
fn tojson(value: &Value, arguments: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<Value> = arguments.get("indent")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let ascii: Option<bool> = arguments.get("ensure_ascii")?;
    let sorted: Option<bool> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(count) => Some(
            " ".repeat(count.as_usize().filter(|n| *n <= 64).ok_or_else(|| fail("indent is too large"))?),
        ),
    };
    let mut parts = separators.unwrap_or_default().into_iter();
    let style = Json {
        between: parts.next().unwrap_or_else(|| if indent.is_some() { "," } else { ", " }.into()),
        after_key: parts.next().unwrap_or_else(|| ": ".into()),
        indent,
        ascii: ascii.unwrap_or(false),
        sorted: sorted.unwrap_or(false),
    };
    to_json(value, &style)
}

/// The local time, as Python's `strftime` writes it.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    use chrono::format::{Item, StrftimeItems};
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(fail(format!("strftime_now does not know all of {format:?}")));
    }
    Ok(chrono::Local::now().format_with_items(items.into_iter()).to_string())
}
