//! NEON: dot products by hand; the rest is left to the compiler.

mod dot;

pub use dot::Neon;

use super::set::instantiate;

instantiate!(Neon, #[target_feature(enable = "neon")]);
