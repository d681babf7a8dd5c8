//! Chat templates, and the plain tables that boards without Jinja use in their place.

use std::path::Path;

use elapid_core::format::data::without_generation_tags;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::Map;

use crate::PackError;

/// Steps that one rendering of a probe may take: templates come from anywhere.
const FUEL: u64 = 200_000;
/// The longest template accepted, in bytes; known ones have up to some 20 KB.
const LENGTH_LIMIT: usize = 64 << 10;
/// Stack for each byte of a template. minijinja's parser calls itself for each operator in a chain (`- - -1`,
/// `a.b.b.b`, `elif` after `elif`), up to 0.5 KiB a byte as measured, and a stack that overflows ends the program.
const STACK_PER_BYTE: usize = 2 << 10;
/// Stack for everything else.
const STACK_BASE: usize = 2 << 20;

/// A chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTemplate {
    /// The Jinja text. The tags `{% generation %}`, which only mark what to train on, are replaced
    /// by an `if` that is true, so that any Jinja renders it.
    pub jinja: String,
    /// The same as a table, if the template is as plain as that.
    pub roles: Option<RoleTable>,
}

/// A chat as plain text: `start`, then each message within its role's prefix and suffix,
/// then `generation`.
///
/// It renders what the template does for every chat that ends with the user's message, before which
/// user and assistant alternate, with or without a system message at the start. It is
/// made only if that was found true of the template on probes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoleTable {
    /// What every chat starts with.
    pub start: String,
    /// Around the system message; `None` if the template has no place for one that
    /// a prefix and a suffix can express.
    pub system: Option<Wrapping>,
    /// Around a message of the user.
    pub user: Wrapping,
    /// Around a message of the assistant.
    pub assistant: Wrapping,
    /// What makes the model answer, after the user's last message.
    pub generation: String,
}

/// What stands before and after a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wrapping {
    /// Before it.
    pub prefix: String,
    /// After it.
    pub suffix: String,
}

/// The role of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    System,
    User,
    Assistant,
}

type Message<'a> = (Role, &'a str);

impl ChatTemplate {
    /// Compiles a template and derives its table. `tokens` are the special tokens that it can name (`eos_token`);
    /// `path` is the file that the template came from, for errors.
    pub fn new(jinja: &str, tokens: &[(String, String)], path: &Path) -> Result<Self, PackError> {
        let jinja: String = without_generation_tags(jinja).collect();
        let invalid =
            |line, reason: String| PackError::InvalidTemplate { path: path.to_path_buf(), line, reason };
        if jinja.len() > LENGTH_LIMIT {
            return Err(invalid(1, format!("{} bytes long, at most {LENGTH_LIMIT} are read", jinja.len())));
        }
        let derive = || match Renderer::new(&jinja, tokens) {
            Ok(renderer) => Ok(RoleTable::derive(&renderer)),
            Err(e) => Err(invalid(
                e.line().unwrap_or(1),
                e.detail().map_or_else(|| e.kind().to_string(), str::to_owned),
            )),
        };
        let roles = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(STACK_BASE + STACK_PER_BYTE * jinja.len())
                .spawn_scoped(scope, derive)
                .map_err(PackError::io(path))?
                .join()
                .unwrap_or_else(|_| Err(invalid(1, "the Jinja engine failed on it".into())))
        })?;
        Ok(Self { jinja, roles })
    }

    /// Compiles the text of a chat_template.jinja.
    pub fn from_bytes(bytes: Vec<u8>, tokens: &[(String, String)], path: &Path) -> Result<Self, PackError> {
        let jinja = String::from_utf8(bytes).map_err(|e| {
            let valid = e.as_bytes().get(..e.utf8_error().valid_up_to()).unwrap_or_default();
            PackError::InvalidTemplate {
                path: path.to_path_buf(),
                line: valid.iter().filter(|&&byte| byte == b'\n').count() + 1,
                reason: "not UTF-8".into(),
            }
        })?;
        Self::new(&jinja, tokens, path)
    }

    /// Compiles `chat_template` of a tokenizer_config.json: a string, or a list of
    /// `{name, template}` of which `default` counts. `None` if there is none.
    pub fn from_tokenizer_config(
        config: &Map<String, serde_json::Value>,
        tokens: &[(String, String)],
        path: &Path,
    ) -> Result<Option<Self>, PackError> {
        use serde_json::Value as Json;
        let invalid = || PackError::InvalidConfig {
            path: path.to_path_buf(),
            key: "chat_template".into(),
            reason: "must be a string, or a list of objects with the strings `name` and `template`".into(),
        };
        let jinja = match config.get("chat_template") {
            None | Some(Json::Null) => None,
            Some(Json::String(text)) => Some(text.as_str()),
            Some(Json::Array(list)) => {
                let mut default = None;
                for item in list {
                    let text = |key| item.get(key).and_then(Json::as_str).ok_or_else(invalid);
                    let (name, template) = (text("name")?, text("template")?);
                    if name == "default" {
                        default = Some(template);
                    }
                }
                default
            }
            Some(_) => return Err(invalid()),
        };
        jinja.map(|jinja| Self::new(jinja, tokens, path)).transpose()
    }
}

/// A compiled template and what transformers defines for it.
struct Renderer<'a> {
    environment: Environment<'a>,
    special_tokens: Value,
}

impl<'a> Renderer<'a> {
    fn new(jinja: &'a str, tokens: &[(String, String)]) -> Result<Self, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        let refuse = |what: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, what))
        };
        environment.add_function("raise_exception", refuse);
        // Text that changes with the day, or that depends on how a library spells JSON,
        // can't be in a table: a template that comes to use them has none.
        environment.add_function("strftime_now", refuse);
        environment
            .add_filter("tojson", move |_: Value, _: minijinja::value::Rest<Value>| refuse("tojson".into()));
        environment.add_template("chat", jinja)?;
        let tokens = tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let special_tokens = Value::from_pairs(tokens);
        Ok(Self { environment, special_tokens })
    }

    /// Renders a chat; `None` if the template refuses it or fails.
    fn render(&self, chat: &[Message<'_>], add_generation_prompt: bool) -> Option<String> {
        let messages: Value = chat
            .iter()
            .map(|(role, content)| {
                let role = match role {
                    Role::System => "system",
                    Role::User => "user",
                    Role::Assistant => "assistant",
                };
                context! { role, content => *content }
            })
            .collect();
        let context = context! { messages, add_generation_prompt, ..self.special_tokens.clone() };
        self.environment.get_template("chat").ok()?.render(context).ok()
    }
}

/// What stands before, between and after the contents of the messages.
fn gaps<'a>(text: &'a str, chat: &[Message<'_>]) -> Option<Vec<&'a str>> {
    let mut gaps = Vec::new();
    let mut rest = text;
    for (_, content) in chat {
        let (before, after) = rest.split_once(content)?;
        gaps.push(before);
        rest = after;
    }
    gaps.push(rest);
    // A content that appears twice is not in one place.
    chat.iter().all(|(_, content)| text.matches(content).count() == 1).then_some(gaps)
}

impl RoleTable {
    /// A chat as text, with what makes the model answer.
    fn render(&self, chat: &[Message<'_>]) -> Option<String> {
        let mut text = self.start.clone();
        for (role, content) in chat {
            let wrapping = match role {
                Role::System => self.system.as_ref()?,
                Role::User => &self.user,
                Role::Assistant => &self.assistant,
            };
            text.extend([wrapping.prefix.as_str(), content, wrapping.suffix.as_str()]);
        }
        text.push_str(&self.generation);
        Some(text)
    }

    /// Finds the table that renders as the template does, if there is one.
    fn derive(renderer: &Renderer<'_>) -> Option<Self> {
        let chat = [(Role::User, "Qwxuserone"), (Role::Assistant, "Qwxanswer"), (Role::User, "Qwxusertwo")];
        let one = renderer.render(chat.get(..1)?, true)?;
        let three = renderer.render(&chat, true)?;
        let [first, end] = gaps(&one, chat.get(..1)?)?.try_into().ok()?;
        let [_, user_to_answer, answer_to_user, _] = gaps(&three, &chat)?.try_into().ok()?;

        // How a chat without a prompt ends shows where a suffix ends. A template may
        // leave out a separator there, and then the parts that two places share have to do.
        let tail = |turns: usize| {
            let chat = chat.get(..turns)?;
            let text = renderer.render(chat, false)?;
            gaps(&text, chat)?.last().map(|tail| (*tail).to_owned())
        };
        let user_suffix = tail(1)
            .filter(|suffix| end.starts_with(suffix) && user_to_answer.starts_with(suffix))
            .unwrap_or_else(|| common_prefix(end, user_to_answer).to_owned());
        let user_prefix = tail(2)
            .and_then(|suffix| answer_to_user.strip_prefix(suffix.as_str()))
            .filter(|prefix| first.ends_with(prefix))
            .unwrap_or_else(|| common_suffix(first, answer_to_user));

        let mut table = Self {
            start: first.strip_suffix(user_prefix)?.to_owned(),
            system: None,
            user: Wrapping { prefix: user_prefix.to_owned(), suffix: user_suffix.clone() },
            assistant: Wrapping {
                prefix: user_to_answer.strip_prefix(user_suffix.as_str())?.to_owned(),
                suffix: answer_to_user.strip_suffix(user_prefix)?.to_owned(),
            },
            generation: end.strip_prefix(user_suffix.as_str())?.to_owned(),
        };
        if !table.agrees(renderer, false) {
            return None;
        }
        table.system = table.derive_system(renderer);
        if table.system.is_some() && !table.agrees(renderer, true) {
            table.system = None;
        }
        Some(table)
    }

    /// Finds what goes around a system message.
    fn derive_system(&self, renderer: &Renderer<'_>) -> Option<Wrapping> {
        let chat = [(Role::System, "Qwxsystem"), (Role::User, "Qwxuserone")];
        let text = renderer.render(&chat, true)?;
        let [first, between, _] = gaps(&text, &chat)?.try_into().ok()?;
        Some(Wrapping {
            prefix: first.strip_prefix(self.start.as_str())?.to_owned(),
            suffix: between.strip_suffix(self.user.prefix.as_str())?.to_owned(),
        })
    }

    /// Whether the table and the template give the same text on every probe.
    fn agrees(&self, renderer: &Renderer<'_>, with_system: bool) -> bool {
        // What templates treat in a special way: nothing, space around, tags, Jinja, markup.
        const CONTENTS: [&str; 12] = [
            "What is a snake?",
            "",
            " \n\tspace around\r\n ",
            "<think>why</think>\n\nbecause",
            "{{ messages }}{% if x %}{# no #}",
            "<|im_start|>user\n</s>[INST] & \"quoted\" 'text' \\n",
            "Ünïcödé 🐍\u{200b}",
            "0",
            "none",
            "a\n\n\nb",
            "/no_think",
            "  ",
        ];
        let content = |index: usize| CONTENTS.get(index % CONTENTS.len()).copied().unwrap_or_default();
        (0..CONTENTS.len()).all(|first| {
            [1, 3, 5, 7].into_iter().all(|turns| {
                let system = with_system.then(|| (Role::System, content(first + 5 * turns)));
                let others = (0..turns).map(|turn| {
                    let role = if turn % 2 == 0 { Role::User } else { Role::Assistant };
                    (role, content(first + turn))
                });
                let chat: Vec<Message<'_>> = system.into_iter().chain(others).collect();
                let expected = renderer.render(&chat, true);
                expected.is_some() && expected == self.render(&chat)
            })
        })
    }
}

/// What both texts start with.
fn common_prefix<'a>(a: &'a str, b: &str) -> &'a str {
    let shared = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    let length = shared.map(|(c, _)| c.len_utf8()).sum();
    a.get(..length).unwrap_or_default()
}

/// What both texts end with.
fn common_suffix<'a>(a: &'a str, b: &str) -> &'a str {
    let shared = a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b);
    let length: usize = shared.map(|(c, _)| c.len_utf8()).sum();
    a.get(a.len() - length..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
