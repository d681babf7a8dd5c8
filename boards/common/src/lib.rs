//! The console of all boards' programs: a prompt is typed, text follows it.
//!
//! A board gives a [`Platform`] (console, clock, exit), the memory in which its model file lies ([`model`]) and an
//! [`Engine`] that computes it. [`Shell::run`] does the rest; a board that sizes its memory when it runs uses [`Console`]
//! and [`Conversation`] directly. No allocator is needed.
#![no_std]
#![forbid(unsafe_code)]

mod command;
mod console;
mod conversation;
mod editor;
mod engine;
mod error;
pub mod model;
mod report;
mod shell;

pub use command::{Command, Commands, Refusal, Settings, Usage, obey, switch};
pub use console::{Console, Request};
pub use conversation::{Buffers, Conversation, WINDOW};
pub use engine::{Computed, Engine, FixedLogits, Logits, Place};
pub use error::Error;
pub use model::Text;
pub use shell::Shell;

use core::fmt;

/// What a program needs of its board.
pub trait Platform: fmt::Write {
    /// The next byte from the console, if one has come. Called all the time while a line is typed, and after every layer of a
    /// token: the place to feed a watchdog.
    fn poll(&mut self) -> Option<u8>;

    /// Time in ticks of the board's clock, from any start.
    fn ticks(&mut self) -> u64;

    /// Ticks in a second; 0 if that is not known, and then no speed is printed.
    fn ticks_a_second(&self) -> u32 {
        0
    }

    /// The most stack that was used so far, in bytes, where that is known.
    fn stack_used(&self) -> Option<usize> {
        None
    }

    /// What went wrong, in words, where the board's storage reported this code.
    fn storage_fault(&self, code: i32) -> Option<&'static str> {
        let _ = code;
        None
    }

    /// Ends the program where there is something to go back to. On a board that runs alone nothing happens.
    fn exit(&mut self, success: bool) {
        let _ = success;
    }
}

/// Writes to the console. If it can't be written to, that can't be said anywhere.
fn say(platform: &mut dyn Platform, text: fmt::Arguments<'_>) {
    let _ = platform.write_fmt(text);
}
