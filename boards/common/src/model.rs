//! A packed model in memory: memory-mapped flash, external RAM, a partition.

use elapid_core::format::data::Generation;
use elapid_core::format::{Header, Section};
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

/// What is beside the weights: how texts become tokens, and which token ends one.
#[derive(Debug)]
pub struct Text<'m> {
    /// The tokenizer.
    pub tokenizer: Tokenizer<'m>,
    /// The generation defaults, where the model has them.
    pub generation: Option<Generation<'m>>,
}

/// Reads and checks what is beside the weights. `checked` is a source's bitmap, in which it marks blocks.
///
/// # Errors
/// Damage, or a model without a tokenizer.
// As above.
#[inline(never)]
pub fn text<'m>(file: &'m [u8], header: &'m Header, checked: &mut [u32]) -> Result<Text<'m>, Error> {
    let tokenizer =
        Tokenizer::parse(section(file, header, checked, Section::Tokenizer)?.ok_or(Error::NoTokenizer)?)?;
    let defaults = section(file, header, checked, Section::Generation)?;
    let vocab = header.layout().config().vocab;
    let generation = defaults.map(|bytes| Generation::parse(bytes, vocab)).transpose()?;
    Ok(Text { tokenizer, generation })
}

/// The bytes of a section, checked; `None` if the model has none.
fn section<'m>(
    file: &'m [u8],
    header: &'m Header,
    checked: &mut [u32],
    section: Section,
) -> Result<Option<&'m [u8]>, Error> {
    let place = header.layout().section(section);
    if place.blocks == 0 {
        return Ok(None);
    }
    let mut source = SliceSource::new(file, header, checked)?;
    for block in 0..place.blocks {
        source.lend(section, block..block + 1)?;
    }
    // What the source lends lives as long as it does; the file lives longer.
    Ok(elapid_core::source::slice(file, place.offset..place.offset + place.length))
}
