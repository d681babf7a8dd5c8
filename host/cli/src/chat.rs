//! `elapid chat`: a conversation with a model.

mod command;
mod input;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use elapid::core::sample::Settings;
use elapid::{Chat, End, Error as LibraryError, GenerateOptions, Progress, Reused, SaveOptions};
use elapid_args::{bytes, whole};
use elapid_files::interrupt;
use serde::Serialize;

use self::command::Command;
use self::input::{Input, Line};
use super::bar::{Bar, Status};
use super::cache::{CacheArgs, report_files};
use super::error::Failure;
use super::model::{ComputeArgs, StateArgs, report_incidents};
use super::output;
use super::sampling::SamplingArgs;
use super::session::SessionArgs;
use super::stream::{Report, Stream, end_name};
use crate::error::Error;

/// Bytes that marks may take without a memory cap, unless --marks says otherwise.
const MARKS: usize = 64 << 20;

/// Chat with a model
///
/// A message costs only its own tokens: the model never reads anything twice. Messages are rendered with the model's chat template. A
/// model without a template continues the plain text of the messages. `/help` lists the commands.
///
/// On a terminal, Ctrl-C stops an answer and keeps its text, Ctrl-D exits, and a backslash at the end of a line continues the message
/// on the next line. Otherwise each line of standard input is a message. With --json, each line is a JSON string or an object with
/// `content` or `command`, and each answer is one line of JSON.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed model, hf:ORG/NAME, or a checkpoint to pack. Default: the bundled one
    model: Option<PathBuf>,

    /// System prompt. Default: that of the model's template
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Maximum number of tokens of an answer
    #[arg(short, default_value_t = 512, value_parser = whole::<u32>(1..=u32::MAX.into()), allow_hyphen_values = true)]
    n: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Stop an answer before this text; may be given several times. Default: none
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Memory for copies of the state, to which /undo, /retry and /edit return. Default: 64M, or two copies with --ram
    #[arg(long, value_name = "SIZE", value_parser = bytes::<usize>("64M"), allow_hyphen_values = true)]
    marks: Option<usize>,
    /// Read messages and write answers as lines of JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    files: SessionArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// One line of JSON that is not an answer.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Note<'n> {
    Note(&'n str),
    Error(&'n str),
}

/// What an answer cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    read: Option<Reused>,
    tokens: usize,
    seconds: f64,
    first: f64,
}

/// A conversation and how it is held.
struct Talk {
    chat: Chat,
    /// Copies that `/fork` made.
    forks: Vec<Chat>,
    settings: Settings,
    seed: u64,
    /// The next answer's sampler begins with `seed`.
    fresh: bool,
    max_tokens: usize,
    stop: Vec<String>,
    json: bool,
    last: Cost,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let mut input = Input::new(args.json)?;
    crate::handle_signals();
    let model = args.compute.open(args.model.as_deref())?;
    let options = args.state.options()?;
    let config = model.config();
    let copy =
        options.numbers.state_bytes(config, config.n_layer as usize) + 4 * config.padded_vocab() as usize;
    let marks = args.marks.unwrap_or(if args.compute.capped() { 2 * copy } else { MARKS.max(2 * copy) });
    let cache = args.cache.open(&model)?.map(Arc::new);
    let mut session = model.session(&options.marks(marks))?;
    // A model without a tokenizer can't chat, and says so before anything is typed.
    model.tokenizer()?;
    let loaded = args.files.load(&mut session)?;
    let resumed = loaded.is_some();
    let mut chat = Chat::with_messages(session, loaded.unwrap_or_default())?;
    if let Some(cache) = &cache {
        chat = chat.cached(cache.clone());
    }
    let mut talk = Talk {
        chat,
        forks: Vec::new(),
        settings: args.sampling.settings(),
        seed: args.sampling.seed(),
        fresh: !resumed || args.sampling.seeded(),
        max_tokens: args.n as usize,
        stop: args.stop.clone(),
        json: args.json,
        last: Cost::default(),
    };
    if let Some(system) = &args.system {
        talk.chat.set_system(system);
    }
    if !talk.chat.has_template() {
        talk.note(&format!(
            "{}: no chat template, so this is plain text: the model goes on with what you write",
            model.name()
        ));
    }
    if input.is_terminal() {
        talk.note("/help lists the commands, Ctrl-D leaves");
    }
    let outcome = talk.hold(&mut input, &args.files);
    report_incidents(&model);
    cache.iter().for_each(|cache| report_files(cache));
    Ok(outcome?)
}

impl Talk {
    /// Says something that is no answer.
    fn note(&self, text: &str) {
        if self.json {
            // A reader that has gone is noticed by the next answer.
            let _ = output::json(&Note::Note(text));
        } else {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Says what went wrong; the conversation continues.
    fn complain(&self, error: &Error) {
        if self.json {
            let _ = output::json(&Note::Error(&error.to_string()));
        } else {
            let _ = writeln!(io::stderr(), "error: {error}");
        }
    }

    /// Reads messages and commands until there are no more.
    fn hold(&mut self, input: &mut Input, files: &SessionArgs) -> Result<(), Error> {
        let mut prefilled = String::new();
        loop {
            let line = input.next(&std::mem::take(&mut prefilled))?;
            let done = match line {
                Line::End => return Ok(()),
                Line::Bad(reason) => Err(Error::Usage(reason)),
                Line::Message(text) => self.say(&text, files),
                Line::Command(text) => match Command::parse(&text) {
                    Ok(Command::Edit(None)) if input.is_terminal() => {
                        prefilled = self.chat.last_question().unwrap_or_default().to_owned();
                        self.chat.undo();
                        Ok(())
                    }
                    Ok(command) => self.obey(command, files),
                    Err(reason) => Err(Error::Usage(reason)),
                },
            };
            match done {
                Ok(()) => {}
                Err(Error::ClosedOutput) => return Err(Error::ClosedOutput),
                Err(Error::Library(LibraryError::Interrupted)) => {
                    if !input.is_terminal() {
                        return Err(LibraryError::Interrupted.into());
                    }
                }
                // A script wants to know.
                Err(error) if !input.is_terminal() && !self.json => return Err(error),
                Err(error) => self.complain(&error),
            }
            if input.is_terminal() {
                interrupt::forget();
            }
            if interrupt::exit_code().is_some() {
                return Err(LibraryError::Interrupted.into());
            }
        }
    }

    /// Sends a message and writes the answer.
    fn say(&mut self, text: &str, files: &SessionArgs) -> Result<(), Error> {
        interrupt::listen();
        let start = std::time::Instant::now();
        let bar = Bar::new("reading");
        let read = self.chat.ask(text, &mut |Progress { done, total, .. }| {
            bar.set(done, total);
            interrupt::check()
        });
        drop(bar);
        let read = read?;
        let before = self.chat.session().tokens().len();
        let options = GenerateOptions::default()
            .max_tokens(self.max_tokens)
            .settings(self.settings)
            .seed(self.seed)
            .fresh(self.fresh);
        let options = self.stop.iter().fold(options, |options, stop| options.stop(stop.clone()));
        self.fresh = false;
        let status = Status::new(self.chat.session().model().config().n_layer);
        let mut stream = Stream::new(self.json.then(String::new), None, status);
        let mut first = None;
        let generated = self.chat.answer(&options, |event| {
            first.get_or_insert_with(|| start.elapsed());
            stream.take(event)
        });
        let (text, newline) = (stream.kept.take(), stream.newline);
        drop(stream);
        // The text is saved even if nobody reads it any more.
        let saved = self.save(files);
        let generated = generated?;
        saved?;
        let since = |time: Duration| time.as_secs_f64();
        self.last = Cost {
            read: Some(read),
            tokens: generated.tokens,
            seconds: since(generated.time),
            first: since(first.unwrap_or_default()),
        };
        match text {
            Some(text) => output::json(&Report {
                text,
                tokens: generated.tokens,
                prompt_tokens: before,
                cached_tokens: read.cached,
                computed_tokens: read.computed + self.chat.session().tokens().len() - before,
                seed: self.chat.session().seed().unwrap_or(self.seed),
                end: end_name(generated.end),
            })?,
            None if !newline => writeln!(io::stdout()).map_err(output::failed)?,
            None => {}
        }
        if generated.end == Some(End::Interrupted) && io::stderr().is_terminal() {
            self.note("[stopped]");
        }
        Ok(())
    }

    fn save(&mut self, files: &SessionArgs) -> Result<(), Error> {
        match files.target() {
            Some(path) => {
                self.chat.save(path, &files.options())?;
                files.lock_again();
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn obey(&mut self, command: Command, files: &SessionArgs) -> Result<(), Error> {
        match command {
            Command::Help => self.note(command::HELP),
            Command::Save(path) => {
                self.chat.save(&path, &SaveOptions::default())?;
                self.note(&format!("saved to {}", path.display()));
            }
            Command::Load(path) => {
                self.chat.load(&path)?;
                self.last = Cost::default();
                self.note(&format!("{}: {}", path.display(), count(self.chat.messages().len(), "message")));
            }
            Command::Fork(None) => {
                let fork = self.chat.fork()?;
                self.forks.push(fork);
                self.note(&format!("kept as {n}: `/fork {n}` goes back to it", n = self.forks.len()));
            }
            Command::Fork(Some(number)) => {
                let kept = number.checked_sub(1).and_then(|at| self.forks.get_mut(at));
                let Some(kept) = kept else {
                    return Err(Error::Usage(format!(
                        "no conversation {number} was kept: there are {}",
                        self.forks.len()
                    )));
                };
                self.chat = kept.fork()?;
                self.last = Cost::default();
                self.note(&count(self.chat.messages().len(), "message"));
            }
            Command::Undo => {
                self.undo()?;
                self.note(&format!("{} left", count(self.chat.messages().len(), "message")));
            }
            Command::Retry => {
                let question = self.undo()?;
                (self.seed, self.fresh) = (self.seed.wrapping_add(1), true);
                return self.say(&question, files);
            }
            Command::Edit(text) => {
                let text = text.ok_or_else(|| Error::Usage("give the new text: /edit TEXT".into()))?;
                self.undo()?;
                return self.say(&text, files);
            }
            Command::System(text) => {
                self.chat.set_system(&text);
                self.note(if text.is_empty() { "no system prompt" } else { "system prompt set" });
            }
            Command::Clear => {
                self.chat.clear();
                self.last = Cost::default();
                self.note("a new conversation");
            }
            Command::Stats => self.note(&self.stats()),
            Command::Set(None) => self.note(&self.shown()),
            Command::Set(Some((name, value))) => {
                match name.as_str() {
                    "n" => {
                        self.max_tokens = value
                            .parse()
                            .ok()
                            .filter(|n| *n > 0)
                            .ok_or_else(|| Error::Usage("n: give a whole number from 1".into()))?;
                    }
                    "seed" => {
                        let seed = value.parse();
                        self.seed =
                            seed.map_err(|_| Error::Usage("seed: give a whole number from 0".into()))?;
                    }
                    _ => self.settings = command::set(self.settings, &name, &value).map_err(Error::Usage)?,
                }
                self.fresh = name != "n";
                self.note(&self.shown());
            }
        }
        Ok(())
    }

    /// Forgets the last message of the user and what followed, and returns the message.
    fn undo(&mut self) -> Result<String, Error> {
        let question = self.chat.undo();
        self.last = Cost::default();
        question.ok_or_else(|| Error::Usage("nothing was said yet".into()))
    }

    fn shown(&self) -> String {
        let Settings { temperature, top_k, top_p, min_p, repeat_penalty } = self.settings;
        format!(
            "temp {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}, repeat-penalty {repeat_penalty}, seed {}, n {}",
            self.seed, self.max_tokens
        )
    }

    fn stats(&self) -> String {
        let session = self.chat.session();
        let config = session.model().config();
        let state = session.numbers().state_bytes(config, config.n_layer as usize);
        let Cost { read, tokens, seconds, first } = self.last;
        let last = read.map_or(String::new(), |read| {
            format!(
                "; last answer: {} read, {} known, first token after {first:.2} s, {tokens} tokens at {:.1} tokens/s",
                read.computed,
                read.cached,
                tokens as f64 / seconds.max(1e-9)
            )
        });
        format!(
            "{}, {} in a state of {:.1} MB, {}{last}",
            count(self.chat.messages().len(), "message"),
            count(self.chat.tokens(), "token"),
            state as f64 / 1e6,
            count(session.marks().filter(|mark| *mark <= self.chat.tokens()).count(), "mark"),
        )
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
