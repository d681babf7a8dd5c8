//! A packed model in memory: memory-mapped flash, external RAM, a partition.

use elapid_core::format::data::{Generation, RoleTable};
use elapid_core::format::{Header, Section};
use elapid_core::generate::Rules;
use elapid_core::source::{LayerSource, SliceSource};
use elapid_core::tokenizer::Tokenizer;

use crate::Error;

/// The header of the model that begins `memory`, and the bytes of the whole file.
///
/// # Errors
/// [`Error::Format`] if it is no model, [`Error::TooLarge`] with both sizes if it goes on behind the memory's end.
// Never inlined: what it has on the stack is gone before the first prompt.
#[inline(never)]
pub fn find(memory: &[u8]) -> Result<(Header, &[u8]), Error> {
    let header = Header::parse(memory)?;
    let bytes = header.layout().file_bytes();
    let file = usize::try_from(bytes).ok().and_then(|bytes| memory.get(..bytes));
    let file = file.ok_or(Error::TooLarge { model: bytes, memory: memory.len() as u64 })?;
    Ok((header, file))
}

/// What is beside the weights: how texts become tokens, which token ends one, and how a chat looks.
#[derive(Debug)]
pub struct Text<'m> {
    /// The tokenizer.
    pub tokenizer: Tokenizer<'m>,
    /// The generation defaults, where the model has them.
    pub generation: Option<Generation<'m>>,
    /// The chat template, where the model has one.
    pub roles: Option<RoleTable<'m>>,
}

impl<'m> Text<'m> {
    /// Reads the sections of a model of `vocab` tokens; one that it does not have is empty.
    ///
    /// # Errors
    /// Damage, or a model without a tokenizer.
    // As above.
    #[inline(never)]
    pub fn parse(
        tokenizer: &'m [u8],
        generation: &'m [u8],
        roles: &'m [u8],
        vocab: u32,
    ) -> Result<Self, Error> {
        let there = |bytes: &'m [u8]| (!bytes.is_empty()).then_some(bytes);
        Ok(Self {
            tokenizer: Tokenizer::parse(there(tokenizer).ok_or(Error::NoTokenizer)?)?,
            generation: there(generation).map(|bytes| Generation::parse(bytes, vocab)).transpose()?,
            roles: there(roles).map(RoleTable::parse).transpose()?,
        })
    }
}

impl Rules for Text<'_> {
    fn tokenizer(&self) -> &Tokenizer<'_> {
        &self.tokenizer
    }

    fn is_end(&self, token: u32) -> bool {
        self.generation.as_ref().is_some_and(|generation| generation.eos.contains(token))
    }
}

/// Reads and checks what is beside the weights. `checked` is a source's bitmap, in which it marks blocks.
///
/// # Errors
/// Damage, or a model without a tokenizer.
pub fn text<'m>(file: &'m [u8], header: &'m Header, checked: &mut [u32]) -> Result<Text<'m>, Error> {
    let mut read = |part| section(file, header, checked, part);
    let (tokenizer, generation) = (read(Section::Tokenizer)?, read(Section::Generation)?);
    let roles = read(Section::RoleTable)?;
    Text::parse(tokenizer, generation, roles, header.layout().config().vocab)
}

/// The bytes of a section, checked; none if the model does not have it.
fn section<'m>(
    file: &'m [u8],
    header: &'m Header,
    checked: &mut [u32],
    section: Section,
) -> Result<&'m [u8], Error> {
    let place = header.layout().section(section);
    if place.blocks == 0 {
        return Ok(&[]);
    }
    let mut source = SliceSource::new(file, header, checked)?;
    for block in 0..place.blocks {
        source.borrow(section, block..block + 1)?;
    }
    // What the source gives lives as long as it does; the file lives longer.
    Ok(elapid_core::source::slice(file, place.offset..place.offset + place.length).unwrap_or_default())
}
