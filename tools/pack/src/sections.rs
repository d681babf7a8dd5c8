//! The sections that are not weights, from what lies beside a checkpoint's weights.

use elapid_core::format::data::{DataError, Generation, RoleTable, Wrapping};

use crate::PackError;
use crate::chat::ChatTemplate;
use crate::checkpoint::{Checkpoint, GenerationDefaults};
use crate::write::DataSections;

/// Compiles the tokenizer, stores the chat template in both forms, and the generation defaults.
pub(crate) fn data_sections(checkpoint: &Checkpoint) -> Result<DataSections, PackError> {
    let mut data = DataSections::default();
    if let Some(json) = checkpoint.tokenizer_json()? {
        let path = checkpoint.dir().join("tokenizer.json");
        data.tokenizer =
            crate::tokenizer::compile(&json).map_err(|source| PackError::Tokenizer { path, source })?;
    }
    if let Some(template) = checkpoint.chat_template()? {
        data.role_table = role_table(&template)?;
        data.chat_template = template.jinja.into_bytes();
    }
    let GenerationDefaults { eos, bos, pad } = checkpoint.generation();
    let vocab = u32::try_from(checkpoint.config().vocab_size).unwrap_or(u32::MAX);
    data.generation = emitted(|sink| Generation::emit(eos, *bos, *pad, vocab, sink))?;
    Ok(data)
}

/// The role table's bytes; none where the template can't be expressed so.
fn role_table(template: &ChatTemplate) -> Result<Vec<u8>, PackError> {
    let Some(roles) = &template.roles else { return Ok(Vec::new()) };
    fn view(w: &crate::chat::Wrapping) -> Wrapping<'_> {
        Wrapping { prefix: &w.prefix, suffix: &w.suffix }
    }
    let table = RoleTable {
        start: &roles.start,
        system: roles.system.as_ref().map(view),
        user: view(&roles.user),
        assistant: view(&roles.assistant),
        generation: &roles.generation,
    };
    emitted(|sink| table.emit(sink))
}

/// What `emit` writes.
fn emitted(emit: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<(), DataError>) -> Result<Vec<u8>, PackError> {
    let mut bytes = Vec::new();
    emit(&mut |part| bytes.extend_from_slice(part))?;
    Ok(bytes)
}
