//! The tokenizer against the `tokenizers` crate: one program, because each takes long to build.

mod goldens;
mod hostile;
mod kinds;
mod oracle;
mod support;
mod unicode;
