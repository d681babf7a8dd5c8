//! Reads typed lines and commands, and acts on them.

use elapid_core::model::StepError;
use elapid_core::source::{Fault, SourceError};
use heapless::Deque;
use heapless::deque::DequeView;

use crate::command::{COMMANDS, Command, Commands, Settings, obey};
use crate::conversation::Conversation;
use crate::editor::{Editor, Event};
use crate::{Error, Place, Platform, say};

const PROMPT: &str = "elapid> ";
/// Ctrl-C.
const INTERRUPT: u8 = 3;

/// What the console asks its caller to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Open the model again.
    Reload,
    /// End the program, or restart the board.
    Exit,
}

/// A console with an editor for lines of `LINE` bytes, and `HISTORY` bytes of lines that can be brought back.
///
/// Up to `LINE` bytes can be typed while a text is generated. A new console is all zeros: in a `static` it takes no space in flash.
#[derive(Debug)]
pub struct Console<const LINE: usize, const HISTORY: usize> {
    editor: Editor<LINE, HISTORY>,
    typed: Deque<u8, LINE>,
}

impl<const LINE: usize, const HISTORY: usize> Default for Console<LINE, HISTORY> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const LINE: usize, const HISTORY: usize> Console<LINE, HISTORY> {
    /// A console on which nothing was typed.
    #[must_use]
    pub const fn new() -> Self {
        Self { editor: Editor::new(), typed: Deque::new() }
    }

    /// Reads prompts and writes what follows them, until a command asks for something else. What goes wrong is said in a line,
    /// and the next prompt is asked for; with [`Settings::check`] the platform's exit is tried first.
    pub fn talk(
        &mut self,
        platform: &mut dyn Platform,
        conversation: &mut Conversation<'_>,
        settings: &mut Settings,
        more: &mut dyn Commands,
    ) -> Request {
        // Not in the middle of a conversation.
        if conversation.place() == Place::default() {
            let chats = if conversation.can_chat() { "; this model chats" } else { "" };
            say(platform, format_args!("/help lists the commands; Ctrl-C ends a text{chats}\n"));
        }
        let Self { editor, typed } = self;
        loop {
            let line = read(editor, typed, platform, PROMPT);
            if let Some(command) = line.strip_prefix('/') {
                match follow(command, platform, settings, more) {
                    Some(Command::Reload) => return Request::Reload,
                    Some(Command::Exit) => return Request::Exit,
                    Some(Command::New) => conversation.forget(),
                    _ => {}
                }
            } else if !line.is_empty() {
                let answered =
                    conversation.say(line, settings, platform, &mut |platform| interrupted(typed, platform));
                if let Err(error) = answered {
                    tell(platform, &error);
                    if settings.check {
                        // A test wants an end, not another prompt.
                        platform.exit(false);
                    }
                }
            }
        }
    }

    /// Waits, without a model, for a command that may lead to one, or for a line that is not a command.
    pub fn wait(
        &mut self,
        platform: &mut dyn Platform,
        prompt: &str,
        settings: &mut Settings,
        more: &mut dyn Commands,
    ) -> Request {
        let Self { editor, typed } = self;
        loop {
            let Some(command) = read(editor, typed, platform, prompt).strip_prefix('/') else {
                return Request::Reload;
            };
            match follow(command, platform, settings, more) {
                Some(Command::Reload) => return Request::Reload,
                Some(Command::Exit) => return Request::Exit,
                _ => {}
            }
        }
    }
}

/// Shows `prompt`, and returns the line that is typed.
fn read<'e, const LINE: usize, const HISTORY: usize>(
    editor: &'e mut Editor<LINE, HISTORY>,
    typed: &mut DequeView<u8>,
    platform: &mut dyn Platform,
    prompt: &str,
) -> &'e str {
    editor.clear();
    say(platform, format_args!("{prompt}"));
    loop {
        let Some(byte) = typed.pop_front().or_else(|| platform.poll()) else {
            core::hint::spin_loop();
            continue;
        };
        match editor.key(byte, platform) {
            Ok(Event::Line) => return editor.line(),
            Ok(Event::Cancel) => say(platform, format_args!("{prompt}")),
            Ok(Event::None) | Err(_) => {}
        }
    }
}

/// Looks at what has been typed, and keeps it for the next line. True if Ctrl-C was.
fn interrupted(typed: &mut DequeView<u8>, platform: &mut dyn Platform) -> bool {
    let mut interrupted = false;
    while let Some(byte) = platform.poll() {
        if byte == INTERRUPT {
            typed.clear();
            interrupted = true;
        } else {
            // If the buffer is full, what is typed is lost.
            let _ = typed.push_back(byte);
        }
    }
    interrupted
}

/// Does what a command asks for, as far as it can be done here.
fn follow(
    command: &str,
    platform: &mut dyn Platform,
    settings: &mut Settings,
    more: &mut dyn Commands,
) -> Option<Command> {
    match obey(command, settings, more) {
        Ok(Command::Help) => {
            for (usage, what) in COMMANDS.iter().chain(more.usages()) {
                say(platform, format_args!("  /{usage:18} {what}\n"));
            }
            None
        }
        Ok(command) => Some(command),
        Err(refusal) => {
            say(platform, format_args!("{refusal}\n"));
            None
        }
    }
}

/// Says what went wrong, perhaps in the middle of a text.
fn tell(platform: &mut dyn Platform, error: &Error) {
    if let Error::Step(StepError::Source(SourceError { fault: Fault::Storage(code), section, block, .. })) =
        error
        && let Some(fault) = platform.storage_fault(*code)
    {
        return say(platform, format_args!("\nerror: block {block} of section {section}: {fault}\n"));
    }
    say(platform, format_args!("\nerror: {error}\n"));
}
