//! Nothing of its own: the tests compare the tokenizer with the `tokenizers` crate.
