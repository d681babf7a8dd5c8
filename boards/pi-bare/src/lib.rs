//! Elapid on a Raspberry Pi 3 or 4 without an operating system: what does not depend on the board.
//!
//! The board's side is in the program, `main.rs`; what is here is tested on any machine.
#![cfg_attr(not(test), no_std)]

pub mod arena;
pub mod options;
pub mod storage;
