//! What is typed at the serial line: lines with editing, and commands.

mod command;
mod editor;

pub use command::{COMMANDS, Command, Settings, parse_setting};
pub use editor::{Editor, Event};
