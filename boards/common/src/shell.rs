//! The console and conversation of a board whose memory is known when it is compiled.

use crate::command::Settings;
use crate::conversation::WINDOW;
use crate::model::Text;
use crate::{Buffers, Console, Conversation, Engine, Platform};

/// Bytes of a line, and tokens of a prompt, at most.
const LINE: usize = 256;
/// Generated tokens that a report lists at most.
const LISTED: usize = 256;
/// Bytes in which a line of [`LINE`] bytes is encoded, were it a single word to be normalised.
const SCRATCH: usize = 21 * LINE + 1024;

/// The memory of a console and a conversation without a history of lines; belongs in a `static`.
///
/// All zeros at first: it takes no space in flash.
#[derive(Debug)]
pub struct Shell {
    console: Console<LINE, 0>,
    prompt: [u32; LINE],
    tokens: [u32; LISTED],
    recent: [u32; WINDOW],
    rates: [f32; WINDOW],
    scratch: [u8; SCRATCH],
}

impl Default for Shell {
    fn default() -> Self {
        Self::new()
    }
}

impl Shell {
    /// A conversation that has not begun.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            console: Console::new(),
            prompt: [0; LINE],
            tokens: [0; LISTED],
            recent: [0; WINDOW],
            rates: [0.0; WINDOW],
            scratch: [0; SCRATCH],
        }
    }

    /// Reads prompts and writes what follows them, for ever; returns only where the platform's exit does.
    ///
    /// A line that begins with `/` is a command; `/help` lists them. Whatever goes wrong is said in a line, and the next
    /// prompt is asked for.
    pub fn run(&mut self, platform: &mut dyn Platform, engine: &mut dyn Engine, text: &Text<'_>) {
        let Self { console, prompt, tokens, recent, rates, scratch } = self;
        let buffers = Buffers { prompt, tokens, recent, rates, scratch };
        let mut conversation = Conversation::new(text, engine, buffers);
        // Without further commands there is only one thing that can be asked for: the end.
        console.talk(platform, &mut conversation, &mut Settings::default(), &mut ());
        platform.exit(true);
    }
}
