//! Text to tokens, with memory that grows as the text needs it.

use elapid_core::format::Section;
use elapid_core::format::data::Generation;
use elapid_core::tokenizer::{EncodeOptions, Encoder, Tokenizer, TokenizerError};

use crate::Error;
use crate::model::Model;

/// Bytes of scratch to begin with: enough for words of some hundred bytes.
const SCRATCH: usize = 8 << 10;

/// Encodes a whole text, however long its words are.
///
/// # Errors
/// [`Error::Memory`] if a word needs more memory than there is.
pub fn encode(tokenizer: &Tokenizer<'_>, text: &str, options: EncodeOptions) -> Result<Vec<u32>, Error> {
    let (mut tokens, mut scratch) = (Vec::new(), vec![0; SCRATCH]);
    let mut encoder = Encoder::new(text, options);
    loop {
        match encoder.run(tokenizer, &mut scratch, &mut |token| tokens.push(token)) {
            Ok(()) => return Ok(tokens),
            Err(TokenizerError::ScratchTooSmall { needed, given }) if needed > given => {
                let more = needed.max(given.saturating_mul(2)) - given;
                let memory = scratch.try_reserve(more);
                memory.map_err(|_| Error::Memory {
                    what: "the tokenizer",
                    bytes: needed,
                    smaller_state: None,
                })?;
                scratch.resize(given + more, 0);
            }
            Err(cause) => return Err(Error::Tokenizer { cause }),
        }
    }
}

impl Model {
    /// The token ids of a text, with those that the tokenizer adds.
    ///
    /// # Errors
    /// As [`Model::tokenizer`] and [`encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        encode(&self.tokenizer()?, text, EncodeOptions::default())
    }

    /// The model's generation defaults, or `None` if it has none.
    ///
    /// # Errors
    /// If the section is damaged.
    pub fn generation(&self) -> Result<Option<Generation<'_>>, Error> {
        let bytes = self.data_section(Section::Generation)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let parsed = Generation::parse(bytes, self.config().vocab);
        parsed.map(Some).map_err(|cause| Error::Section { model: self.name().into(), cause: cause.into() })
    }
}
