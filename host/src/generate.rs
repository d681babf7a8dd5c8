//! From a prompt to text.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use elapid_core::generate::End;
use elapid_core::generate::{Generation as Text, Next, Rules, held_bytes};
use elapid_core::sample::{Sampler, Settings};
use elapid_core::tokenizer::Tokenizer;

use crate::Error;
#[cfg(feature = "grammar")]
use crate::grammar::Constraint;
use crate::history::{self, SaveOptions};
use crate::model::Model;
use crate::past::Past;
use crate::session::{self, Progress, Sequence, Session};

/// The number of recent tokens that the repetition penalty applies to.
pub const PENALTY_WINDOW: usize = 256;
/// The programs' default settings: less random than the model's own distribution.
pub const SAMPLING: Settings = Settings { temperature: 0.8, top_p: 0.95, ..Settings::MODEL };

/// How a text is generated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Tokens to generate at most. Default: 256.
    pub max_tokens: usize,
    /// How tokens are chosen. Default: from the model's own distribution.
    pub settings: Settings,
    /// What the choices follow from: equal seeds give equal texts, on every machine. Default: 0.
    pub seed: u64,
    /// Tokens that end the text; they are no part of it. Default: those that the model names.
    pub eos: Option<Vec<u32>>,
    /// Texts that end the text, whatever tokens they come in, special ones included; they are no part of it. Default: none.
    pub stop: Vec<String>,
    /// Continue the text of the session's last generation as if it had not ended. A token that was chosen and not fed comes before the
    /// prompt, the sampler keeps its state, and the repetition penalty counts the tokens before. `settings` and `seed` then matter only
    /// if the session has generated nothing yet, or with [`GenerateOptions::fresh`]. Default: false.
    pub go_on: bool,
    /// With [`GenerateOptions::go_on`], use `settings` and `seed` anyway. Default: false.
    pub fresh: bool,
    /// Save the session while the text is generated. Default: no.
    pub autosave: Option<Autosave>,
    /// What the text must match. It ends where it is complete and nothing can follow, as by a stop text. Where something else ends it,
    /// [`Generated::matches`] says whether it matches. Default: anything.
    #[cfg(feature = "grammar")]
    pub constraint: Option<Constraint>,
}

/// How a session is saved while it generates: after a token, at intervals.
#[derive(Clone, Debug)]
pub struct Autosave {
    /// The file.
    pub path: PathBuf,
    /// The time from one to the next. The file that was saved last is locked (`flock`) until the generation ends, so that programs can
    /// tell that another one writes to it.
    pub every: Duration,
    /// How.
    pub options: SaveOptions,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            settings: Settings::MODEL,
            seed: 0,
            eos: None,
            stop: Vec::new(),
            go_on: false,
            fresh: false,
            autosave: None,
            #[cfg(feature = "grammar")]
            constraint: None,
        }
    }
}

impl GenerateOptions {
    /// Sets [`GenerateOptions::max_tokens`].
    #[must_use]
    pub fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens, ..self }
    }
    /// Sets [`GenerateOptions::settings`].
    #[must_use]
    pub fn settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }
    /// Sets [`GenerateOptions::seed`].
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
    /// Sets [`GenerateOptions::eos`].
    #[must_use]
    pub fn eos(self, tokens: impl Into<Vec<u32>>) -> Self {
        Self { eos: Some(tokens.into()), ..self }
    }
    /// Sets [`GenerateOptions::go_on`].
    #[must_use]
    pub fn go_on(self, go_on: bool) -> Self {
        Self { go_on, ..self }
    }
    /// Sets [`GenerateOptions::fresh`].
    #[must_use]
    pub fn fresh(self, fresh: bool) -> Self {
        Self { fresh, ..self }
    }
    /// Sets [`GenerateOptions::autosave`].
    #[must_use]
    pub fn autosave(self, path: impl Into<PathBuf>, every: Duration, options: SaveOptions) -> Self {
        Self { autosave: Some(Autosave { path: path.into(), every, options }), ..self }
    }
    /// Sets [`GenerateOptions::constraint`].
    #[cfg(feature = "grammar")]
    #[must_use]
    pub fn constraint(self, constraint: Constraint) -> Self {
        Self { constraint: Some(constraint), ..self }
    }
    /// Adds a text to [`GenerateOptions::stop`].
    #[must_use]
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }
}

/// What a generation has done.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Generated {
    /// Tokens generated, the one that ended the text not counted.
    pub tokens: usize,
    /// Tokens of the prompt, and after them of the text, that the session has been fed. Those of a step that was interrupted
    /// count: the next generation finishes it.
    pub fed: usize,
    /// Time until the prompt was read.
    pub prompt_time: Duration,
    /// Time after that.
    pub time: Duration,
    /// Why it ended; [`None`] if it has not.
    pub end: Option<End>,
    /// Whether the text matches its constraint; always true without one. False if something else ended the text before it was complete.
    pub matches: bool,
}

/// A piece of a text as it is generated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Complete characters that can't belong to a stop text. The last piece may have none.
    pub text: String,
    /// The tokens that were generated since the last piece.
    pub tokens: Vec<u32>,
}

/// What happens in a generation, see [`Generation::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'e> {
    /// How far the prompt has been read, after every layer.
    Prompt(Progress),
    /// A token was chosen.
    Token(u32),
    /// Complete characters that can't belong to a stop text.
    Text(&'e str),
    /// How far a chosen token has come, after every layer.
    Layer(Progress),
}

/// Called with every event; a break interrupts the generation.
type Listen<'l> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'l;

/// The rules of a text for [`core::generate::Generation`](elapid_core::generate::Generation): the model's tokenizer, and what ends the text.
#[derive(Debug)]
pub struct TextRules<'m> {
    tokenizer: Tokenizer<'m>,
    eos: Vec<u32>,
    stop: Vec<String>,
}

impl Model {
    /// The rules of a text that `eos` tokens or `stop` texts end. Without `eos`, the tokens that the model names end it.
    ///
    /// # Errors
    /// What [`Model::tokenizer`] and [`Model::generation`] return.
    pub fn text_rules(&self, eos: Option<Vec<u32>>, stop: Vec<String>) -> Result<TextRules<'_>, Error> {
        let eos = match eos {
            Some(eos) => eos,
            None => self.generation()?.map_or(Vec::new(), |defaults| defaults.eos.iter().collect()),
        };
        Ok(TextRules { tokenizer: self.tokenizer()?, eos, stop })
    }
}

impl Rules for TextRules<'_> {
    fn tokenizer(&self) -> &Tokenizer<'_> {
        &self.tokenizer
    }
    fn is_end(&self, token: u32) -> bool {
        self.eos.contains(&token)
    }
    fn stops(&self) -> impl Iterator<Item = &str> {
        self.stop.iter().map(String::as_str)
    }
}

/// A text being made after a prompt: an iterator of its pieces. [`Generation::run`] is the same with a callback, which can
/// interrupt it within a token.
///
/// A token is fed when the one after it is asked for. So where a limit or a stop text ended the text, the last token that was chosen has
/// not been fed; where an end token or an interruption within a token did, it has: [`Generated::fed`] says where the session stands.
pub struct Generation<'s> {
    model: &'s Model,
    sequence: &'s mut Sequence,
    past: &'s mut Past,
    seed: u64,
    autosave: Option<Autosave>,
    /// When the session was saved last, or the generation began.
    saved: Instant,
    /// The file that was saved: it stays locked.
    saved_file: Option<File>,
    rules: TextRules<'s>,
    prompt: Vec<u32>,
    text: Text<Vec<u32>, Vec<u8>>,
    /// The prompt has not been read.
    reading: bool,
    /// When the prompt was begun, then when it was read.
    start: Instant,
    prompt_time: Duration,
    /// When it ended, or failed, after the prompt.
    time: Option<Duration>,
    #[cfg(feature = "grammar")]
    constraint: Option<Constraint>,
    /// See [`Generated::matches`].
    matches: bool,
}

impl std::fmt::Debug for Generation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("generated", &self.generated()).finish_non_exhaustive()
    }
}

impl Session {
    /// Generates text after `prompt`, which goes on from what the session was fed before; a step that was interrupted is
    /// finished first. Without a prompt, the text goes on from the logits that the session has. Nothing is computed before the
    /// first piece is asked for.
    ///
    /// # Errors
    /// A setting that is out of its range, and what [`Model::tokenizer`] and [`Model::generation`] return.
    pub fn generate(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Generation<'_>, Error> {
        let Self { sequence, past, lease, .. } = self;
        let model = lease.model();
        let GenerateOptions { max_tokens, settings, seed, eos, stop, go_on, fresh, autosave, .. } = options;
        let held = vec![0; held_bytes(stop.iter().map(String::as_str))];
        let before = past.sampler.clone().filter(|_| *go_on && !*fresh);
        let (sampler, seed) = match before {
            Some(before) => before,
            None => (Sampler::new(*settings, *seed).map_err(|cause| Error::Sample { cause })?, *seed),
        };
        let mut text = Text::with_sampler(sampler, *max_tokens, vec![0; PENALTY_WINDOW], held);
        let pending = if *go_on { &past.pending[..] } else { &[] };
        let prompt = [pending, prompt].concat();
        if *go_on {
            text.look_back_at(&past.tokens);
        }
        text.prompt(&prompt);
        Ok(Generation {
            model,
            sequence,
            past,
            seed,
            autosave: autosave.clone(),
            saved: Instant::now(),
            saved_file: None,
            rules: model.text_rules(eos.clone(), stop.clone())?,
            prompt,
            text,
            reading: true,
            start: Instant::now(),
            prompt_time: Duration::ZERO,
            time: None,
            #[cfg(feature = "grammar")]
            constraint: options.constraint.clone(),
            matches: true,
        })
    }
}

impl Generation<'_> {
    /// What has been done so far.
    #[must_use]
    pub fn generated(&self) -> Generated {
        let so_far = if self.reading { Duration::ZERO } else { self.start.elapsed() };
        let end = if let Next::End(end) = self.text.next(&self.prompt) { Some(end) } else { None };
        Generated {
            tokens: self.text.tokens(),
            fed: self.text.total_fed(),
            prompt_time: self.prompt_time,
            time: self.time.unwrap_or(so_far),
            end: end.filter(|_| self.time.is_some()),
            matches: self.matches,
        }
    }

    /// Generates all that is left, and tells `each` of every event; [`ControlFlow::Break`] after any but a text interrupts it.
    /// What was made until then is told whole.
    ///
    /// # Errors
    /// What [`Session::feed`] and [`Session::logits`] return, and what `each` returns, which ends it at once.
    pub fn run<E: From<Error>>(
        mut self,
        mut each: impl FnMut(Event<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Generated, E> {
        let mut failed = None;
        while self.time.is_none() {
            let more = self.advance(&mut |event| {
                if failed.is_some() {
                    return ControlFlow::Break(());
                }
                each(event).unwrap_or_else(|error| {
                    failed = Some(error);
                    ControlFlow::Break(())
                })
            });
            if let Some(error) = failed {
                return Err(error);
            }
            more?;
        }
        Ok(self.generated())
    }

    /// Feeds what is to be fed, then chooses a token, or ends the text.
    fn advance(&mut self, each: &mut Listen<'_>) -> Result<(), Error> {
        let fed = self.feed(each);
        if self.reading {
            (self.reading, self.prompt_time, self.start) = (false, self.start.elapsed(), Instant::now());
        }
        let mut piece = String::new();
        let outcome = fed.and_then(|()| self.choose(&mut piece));
        self.past.sampler = Some((self.text.sampler().clone(), self.seed));
        match (self.prompt.get(self.text.total_fed()..), self.text.chosen()) {
            (Some(unread), _) if !unread.is_empty() => self.past.pending = unread.to_vec(),
            (_, Some(chosen)) => self.past.pending = vec![chosen],
            _ => {}
        }
        if !piece.is_empty() {
            // A break is not lost: the listener is asked again after the token.
            let _ = each(Event::Text(&piece));
        }
        let interrupted = match outcome {
            Ok(Some(token)) => each(Event::Token(token)).is_break(),
            Ok(None) => false,
            Err(Error::Interrupted) => true,
            Err(error) => {
                self.time = Some(self.start.elapsed());
                return Err(error);
            }
        };
        if interrupted {
            piece.clear();
            self.text.interrupt(&self.rules, &mut |rest| piece.push_str(rest));
            if !piece.is_empty() {
                let _ = each(Event::Text(&piece));
            }
        }
        if let Some(Autosave { path, every, options }) = &self.autosave
            && self.saved.elapsed() >= *every
            && !self.sequence.memory.suspended()
        {
            self.saved_file = history::save(self.model, self.sequence, self.past, path, options)?;
            self.saved = Instant::now();
        }
        if let Next::End(_) = self.text.next(&self.prompt) {
            self.time = Some(self.start.elapsed());
            #[cfg(feature = "grammar")]
            if let Some(constraint) = &mut self.constraint {
                self.matches = constraint.is_complete();
            }
        }
        Ok(())
    }

    /// Finishes a step that was interrupted, then feeds the prompt, or the token that was chosen last.
    fn feed(&mut self, each: &mut Listen<'_>) -> Result<(), Error> {
        #[cfg(feature = "grammar")]
        if let Some(mut constraint) = self.constraint.take() {
            // The mask is computed while the model's step runs.
            let fed = std::thread::scope(|scope| {
                // Without a thread, it is computed when it is needed.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || constraint.prepare());
                self.feed_alone(each)
            });
            self.constraint = Some(constraint);
            return fed;
        }
        self.feed_alone(each)
    }

    /// As [`Generation::feed`], with nothing else at the same time.
    fn feed_alone(&mut self, each: &mut Listen<'_>) -> Result<(), Error> {
        let Self { model, sequence, past, text, prompt, reading, .. } = self;
        let mut watch =
            |progress| each(if *reading { Event::Prompt(progress) } else { Event::Layer(progress) });
        if *reading {
            sequence.resume(model, &mut watch)?;
        }
        while let Next::Feed(tokens) = text.next(prompt) {
            let (taken, outcome) = session::feed(model, sequence, past, tokens, &mut watch);
            text.fed(taken);
            outcome?;
        }
        Ok(())
    }

    /// Chooses a token, and adds the text that is certain to `piece`.
    fn choose(&mut self, piece: &mut String) -> Result<Option<u32>, Error> {
        if let Next::Choose = self.text.next(&self.prompt) {
            let logits = self.sequence.logits(self.model)?;
            #[cfg(feature = "grammar")]
            if let Some(constraint) = &mut self.constraint {
                constraint.mask(logits)?;
            }
            let token = self.text.choose(&self.rules, logits, &mut |text| piece.push_str(text));
            let token = token.map_err(|cause| Error::Sample { cause })?;
            #[cfg(feature = "grammar")]
            if let (Some(constraint), Some(token)) = (&mut self.constraint, token)
                && constraint.advance(token)?
            {
                self.text.complete(&self.rules, &mut |text| piece.push_str(text));
            }
            return Ok(token);
        }
        Ok(None)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut piece = Piece::default();
        while piece.text.is_empty() && self.time.is_none() {
            let advanced = self.advance(&mut |event| {
                match event {
                    Event::Text(text) => piece.text.push_str(text),
                    Event::Token(token) => piece.tokens.push(token),
                    Event::Prompt(_) | Event::Layer(_) => {}
                }
                ControlFlow::Continue(())
            });
            if let Err(error) = advanced {
                return Some(Err(error));
            }
        }
        if piece == Piece::default() { None } else { Some(Ok(piece)) }
    }
}
