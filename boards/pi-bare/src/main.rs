//! The kernel: Elapid on a Raspberry Pi 3 or 4 without an operating system.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod app;
#[cfg(target_os = "none")]
mod arch;
#[cfg(target_os = "none")]
mod board;
#[cfg(target_os = "none")]
mod card;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod terminal;

#[cfg(target_os = "none")]
use app::main;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this program is for a Raspberry Pi without an operating system: cargo xtask board pi-bare");
}
