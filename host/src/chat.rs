//! A conversation: messages rendered by the model's template, of which a session is fed only what is new.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use elapid_core::format::Section;
use elapid_core::tokenizer::{EncodeOptions, Tokenizer};

use crate::Error;
use crate::cache::PrefixCache;
use crate::generate::{Event, GenerateOptions, Generated};
use crate::history::{Reused, SaveOptions};
use crate::message::Message;
use crate::model::Model;
use crate::session::{Session, Watch};
use crate::template::ChatTemplate;
use crate::text::encode;

const SYSTEM: &str = "system";
const USER: &str = "user";
const ASSISTANT: &str = "assistant";

impl Model {
    /// The model's chat template, or `None` if it has none.
    ///
    /// # Errors
    /// Damage of the section, or a template that can't be compiled.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, Error> {
        let bytes = self.data_section(Section::ChatTemplate)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let text = str::from_utf8(bytes)
            .map_err(|cause| Error::Section { model: self.name().into(), cause: cause.into() })?;
        let template = ChatTemplate::new(text);
        template.map(Some).map_err(|cause| Error::Template { model: self.name().into(), cause })
    }

    /// The special tokens that a template may name, such as `bos_token`, with their texts: those that transformers has for the model. In a
    /// file without them they follow from the generation defaults: `bos_token`, `eos_token` (the first one that ends a text) and `pad_token`.
    ///
    /// # Errors
    /// As [`Model::tokenizer`] and [`Model::generation`].
    pub fn special_names(&self) -> Result<BTreeMap<String, String>, Error> {
        let Some(defaults) = self.generation()? else { return Ok(BTreeMap::new()) };
        if let Some(names) = defaults.names {
            return Ok(names.iter().map(|(name, text)| (name.into(), text.into())).collect());
        }
        let tokenizer = self.tokenizer()?;
        let named = [
            ("bos_token", defaults.bos),
            ("eos_token", defaults.eos.iter().next()),
            ("pad_token", defaults.pad),
        ];
        let text = |token| Some(String::from_utf8_lossy(tokenizer.token_bytes(token?)?).into_owned());
        Ok(named.into_iter().filter_map(|(name, token)| Some((name.into(), text(token)?))).collect())
    }
}

/// A conversation with a model.
///
/// ```no_run
/// # fn main() -> Result<(), elapid::Error> {
/// use std::ops::ControlFlow;
/// use elapid::{Chat, Event, GenerateOptions, Model, ModelOptions, SessionOptions};
/// let model = Model::open("model.elp".as_ref(), &ModelOptions::default())?;
/// let mut chat = Chat::new(model.session(&SessionOptions::default().marks(64 << 20))?)?;
/// chat.ask("Hello", &mut |_| ControlFlow::Continue(()))?;
/// chat.answer(&GenerateOptions::default(), |event| {
///     if let Event::Text(text) = event {
///         print!("{text}");
///     }
///     Ok::<_, elapid::Error>(ControlFlow::Continue(()))
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Chat {
    session: Session,
    template: Option<ChatTemplate>,
    names: BTreeMap<String, String>,
    messages: Vec<Message>,
    /// The session's tokens before each question, as far as they are known.
    asked_at: Vec<usize>,
    /// The session's tokens that are left after questions were undone: it forgets the others when the next one is asked.
    left: Option<usize>,
    spelled: Spelled,
    cache: Option<Arc<PrefixCache>>,
}

impl Chat {
    /// A conversation without messages. Without a chat template ([`Chat::has_template`]), the model continues the plain text of the messages.
    ///
    /// # Errors
    /// As [`Model::chat_template`] and [`Model::special_names`].
    pub fn new(session: Session) -> Result<Self, Error> {
        let (template, names) = (session.model().chat_template()?, session.model().special_names()?);
        Ok(Self {
            session,
            template,
            names,
            messages: Vec::new(),
            asked_at: Vec::new(),
            left: None,
            spelled: Spelled::default(),
            cache: None,
        })
    }

    /// Takes from the cache what it knows of a conversation, and keeps copies there.
    #[must_use]
    pub fn cached(self, cache: Arc<PrefixCache>) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// A conversation that continues a session that was loaded, with these messages.
    ///
    /// # Errors
    /// As [`Chat::new`].
    pub fn with_messages(session: Session, messages: Vec<Message>) -> Result<Self, Error> {
        Ok(Self { messages, ..Self::new(session)? })
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Tokens of the session that belong to the conversation: all of them, but after [`Chat::undo`] until the next message.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.left.unwrap_or(self.session.tokens().len())
    }

    /// Whether the model has a chat template.
    #[must_use]
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The messages.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The last message of the user.
    #[must_use]
    pub fn last_question(&self) -> Option<&str> {
        self.messages.iter().rfind(|message| message.role == USER).map(|message| message.content.as_str())
    }

    /// Replaces the system message; none if it is empty. The conversation is read again with it when the next message is sent.
    pub fn set_system(&mut self, content: &str) {
        self.messages.retain(|message| message.role != SYSTEM);
        if !content.is_empty() {
            self.messages.insert(0, Message::new(SYSTEM, content));
        }
    }

    /// Removes all messages but the system message.
    pub fn clear(&mut self) {
        self.messages.retain(|message| message.role == SYSTEM);
        self.session.clear();
        self.left = None;
        self.asked_at.clear();
    }

    /// Removes the last message of the user and what followed, and returns the message. The session forgets them when the next message is
    /// sent.
    pub fn undo(&mut self) -> Option<String> {
        let last = self.messages.iter().rposition(|message| message.role == USER)?;
        let question = self.messages.get(last).map(|message| message.content.clone());
        self.messages.truncate(last);
        self.left = self.asked_at.pop();
        question
    }

    /// Adds a message of the user, and feeds the session the part of the conversation that it has not read, up to where the model answers.
    ///
    /// # Errors
    /// [`Error::Template`] where the template refuses the conversation, and as [`Session::feed_watched`]. The message is
    /// then no part of the conversation.
    pub fn ask(&mut self, content: &str, watch: &mut Watch<'_>) -> Result<Reused, Error> {
        let before = self.tokens();
        self.messages.push(Message::new(USER, content));
        let read = self.text().and_then(|text| self.read(&text, watch));
        match &read {
            Ok(_) => {
                self.left = None;
                self.asked_at.push(before);
            }
            Err(_) => drop(self.messages.pop()),
        }
        read
    }

    /// Generates the answer and adds it to the conversation, even if it is interrupted.
    ///
    /// # Errors
    /// As [`Session::generate`], and what `each` returns.
    pub fn answer<E: From<Error>>(
        &mut self,
        options: &GenerateOptions,
        mut each: impl FnMut(Event<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Generated, E> {
        let mut answer = String::new();
        let generation = self.session.generate(&[], &options.clone().go_on(true))?;
        let outcome = generation.run(|event| {
            if let Event::Text(text) = event {
                answer.push_str(text);
            }
            each(event)
        });
        self.messages.push(Message::new(ASSISTANT, answer));
        // A token that was interrupted is finished: it is part of what was said.
        self.session.resume(&mut |_| ControlFlow::Continue(()))?;
        self.session.mark()?;
        if let Some(cache) = &self.cache {
            cache.keep(&mut self.session)?;
        }
        // Now, so that the next turn spells only what follows.
        let model = self.session.model().clone();
        self.spelled.update(&model.tokenizer()?, self.session.tokens(), self.template.is_none());
        outcome
    }

    /// The conversation as text, up to where the model answers.
    fn text(&self) -> Result<String, Error> {
        let Some(template) = &self.template else { return Ok(plain_chat(&self.messages)) };
        template
            .render_chat(&self.messages, &self.names, true)
            .map_err(|cause| Error::Template { model: self.session.model().name().into(), cause })
    }

    /// Feeds the session what is missing of `text`. The tokens that it has stay as far as they spell the text, even if the text would be
    /// encoded as other tokens.
    fn read(&mut self, text: &str, watch: &mut Watch<'_>) -> Result<Reused, Error> {
        let Self { session, template, spelled, cache, .. } = self;
        session.resume(watch)?;
        let model = session.model().clone();
        let tokenizer = model.tokenizer()?;
        let plain = template.is_none();
        let spell = |tokens: &[u32]| spell(&tokenizer, tokens, plain);
        let encoded = |text: &str, start: bool| {
            encode(
                &tokenizer,
                text,
                EncodeOptions { add_special: plain && start, ..EncodeOptions::default() },
            )
        };
        let before = session.tokens().len();
        let pending = spell(session.pending());
        let said = [spelled.update(&tokenizer, session.tokens(), plain), &pending];
        let (keep, rest) = if let Some(rest) = rest_after(text, said) {
            (before, [session.pending(), &encoded(rest, false)?].concat())
        } else {
            let tokens = encoded(text, true)?;
            let same = session.shared_with(&tokens);
            let marked = session.marks().rev().take_while(|mark| *mark > same).find_map(|mark| {
                rest_after(text, [&spell(session.tokens().get(..mark)?), &[]]).map(|rest| (mark, rest))
            });
            match marked {
                Some((mark, rest)) => (mark, encoded(rest, false)?),
                None => (same, tokens.get(same..).unwrap_or_default().to_vec()),
            }
        };
        let read = match cache {
            Some(cache) if keep + rest.len() > 0 => {
                let whole = [session.tokens().get(..keep).unwrap_or_default(), &rest].concat();
                cache.feed_to(session, &whole, watch)?
            }
            _ => session.feed_after(keep, &rest, watch)?,
        };
        session.mark()?;
        Ok(read)
    }

    /// Saves the conversation with its session: see [`Session::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&mut self, path: &Path, options: &SaveOptions) -> Result<(), Error> {
        self.session.save(path, &options.clone().messages(self.messages.clone()))
    }

    /// Continues a conversation that was saved: see [`Session::load`].
    ///
    /// # Errors
    /// As there; the conversation is then as it was.
    pub fn load(&mut self, path: &Path) -> Result<(), Error> {
        self.messages = self.session.load(path)?.messages;
        self.left = None;
        self.asked_at.clear();
        Ok(())
    }

    /// A copy of the conversation, to be continued in another way.
    ///
    /// # Errors
    /// As [`Session::fork`] and [`Chat::new`].
    pub fn fork(&mut self) -> Result<Self, Error> {
        let (messages, asked_at) = (self.messages.clone(), self.asked_at.clone());
        let (left, spelled, cache) = (self.left, self.spelled.clone(), self.cache.clone());
        Ok(Self { messages, asked_at, left, spelled, cache, ..Self::new(self.session.fork()?)? })
    }
}

/// A conversation as plain text, for models without a chat template: messages of the user and the system begin a line, answers go on.
#[must_use]
pub fn plain_chat(messages: &[Message]) -> String {
    let mut text = String::new();
    for Message { role, content } in messages {
        let gap = if role == ASSISTANT || text.is_empty() { "" } else { "\n" };
        text.extend([gap, content]);
    }
    text
}

/// The text that tokens spell; without the special ones if they are not `plain` text.
fn spell(tokenizer: &Tokenizer<'_>, tokens: &[u32], plain: bool) -> Vec<u8> {
    let mut spelled = Spelled::default();
    spelled.update(tokenizer, tokens, plain);
    spelled.bytes
}

/// What comes after `said` in a text that begins with it; none if nothing was said.
fn rest_after<'a>(text: &'a str, [said, pending]: [&[u8]; 2]) -> Option<&'a str> {
    let rest = text.as_bytes().strip_prefix(said)?.strip_prefix(pending)?.len();
    text.get(text.len() - rest..).filter(|_| rest < text.len())
}

/// Tokens and what they spell: a turn spells only those that it adds.
#[derive(Clone, Debug, Default)]
struct Spelled {
    tokens: Vec<u32>,
    bytes: Vec<u8>,
}

impl Spelled {
    /// What `tokens` spell.
    fn update(&mut self, tokenizer: &Tokenizer<'_>, tokens: &[u32], plain: bool) -> &[u8] {
        if !tokens.starts_with(&self.tokens) {
            *self = Self::default();
        }
        let new = tokens.get(self.tokens.len()..).unwrap_or_default();
        for token in new {
            if !(plain && tokenizer.is_special(*token)) {
                self.bytes.extend_from_slice(tokenizer.token_bytes(*token).unwrap_or_default());
            }
        }
        self.tokens.extend(new);
        &self.bytes
    }
}
