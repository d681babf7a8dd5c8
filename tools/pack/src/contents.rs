//! What a packed file holds beside weights, in words.

use elapid_core::format::data::Generation;
use elapid_core::tokenizer::Tokenizer;

use crate::write::DataSections;

/// What a packed file holds beside weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The kind of the tokenizer and how many tokens it has, if there is one.
    pub tokenizer: Option<(&'static str, u32)>,
    /// The tokens that end a text, by id, and what they are in text, if there is a tokenizer.
    pub ends: Vec<(u32, Option<String>)>,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// Whether boards without Jinja have the same as a table.
    pub role_table: bool,
}

impl Contents {
    /// Those of sections that were just made.
    pub(crate) fn of(data: &DataSections) -> Self {
        let tokenizer = Tokenizer::parse(&data.tokenizer).ok();
        let text = |id| {
            let bytes = tokenizer.as_ref()?.token_bytes(id)?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        // A vocabulary that any id is below: these were checked.
        let generation = Generation::parse(&data.generation, u32::MAX).ok();
        let ends = generation.iter().flat_map(|generation| generation.eos.iter());
        Self {
            ends: ends.map(|id| (id, text(id))).collect(),
            tokenizer: tokenizer.as_ref().map(|found| (found.header().kind(), found.vocab_size())),
            chat_template: !data.chat_template.is_empty(),
            role_table: !data.role_table.is_empty(),
        }
    }

    /// The tokenizer: `byte-level BPE, words of GPT-2, 50277 tokens`.
    #[must_use]
    pub fn tokenizer_text(&self) -> String {
        match self.tokenizer {
            Some((kind, tokens)) => format!("{kind}, {tokens} tokens"),
            None => "none".into(),
        }
    }

    /// The tokens that end a text: `0 "<|endoftext|>"`.
    #[must_use]
    pub fn ends_text(&self) -> String {
        let ends = self.ends.iter().map(|(id, text)| match text {
            Some(text) => format!("{id} {text:?}"),
            None => id.to_string(),
        });
        match ends.collect::<Vec<_>>() {
            none if none.is_empty() => "none, a text ends at its limit only".into(),
            ends => ends.join(", "),
        }
    }

    /// The chat template, if there is one, and for whom.
    #[must_use]
    pub fn template_text(&self) -> &'static str {
        match (self.chat_template, self.role_table) {
            (false, _) => "none",
            (true, false) => "yes, but none for boards, which need a plainer one",
            (true, true) => "yes, for boards too",
        }
    }
}
