//! What all boards' programs have in common: a prompt on a console, and text after it.
//!
//! A board gives a [`Platform`] (console, clock, exit), the memory in which its model file lies ([`model`]) and an
//! [`Engine`] that computes it; [`Shell::run`] does the rest. No allocator is needed.
#![no_std]
#![forbid(unsafe_code)]

mod engine;
mod error;
mod line;
pub mod model;
mod shell;

pub use engine::{Engine, Fixed, Float};
pub use error::Error;
pub use shell::{Settings, Shell};

use core::fmt;

/// What a program needs of its board.
pub trait Platform: fmt::Write {
    /// The next byte from the console; waits for it.
    fn read(&mut self) -> u8;

    /// Time in ticks of the board's clock, from any start.
    fn ticks(&mut self) -> u64;

    /// Called at least after every layer: the place to feed a watchdog.
    fn alive(&mut self) {}

    /// The most stack that was used so far, in bytes, where that is known.
    fn stack_used(&self) -> Option<usize> {
        None
    }

    /// Ends the program where there is something to go back to. On a board that runs alone nothing happens.
    fn exit(&mut self, success: bool) {
        let _ = success;
    }
}
