//! The sections that are not weights, from what lies beside a checkpoint's weights.

use elapid_core::format::data::{DataError, Generation, MAX_EOS, Names, RoleTable, Wrapping};
use elapid_core::tokenizer::Tokenizer;
use serde_json::Value;

use crate::PackError;
use crate::chat::ChatTemplate;
use crate::checkpoint::{Checkpoint, Faults, GenerationDefaults};
use crate::tokenizer::{Beside, CompileError, Compiled, Eos, compile_beside};
use crate::write::DataSections;

/// The sections and what to say of them.
pub(crate) struct Sections {
    pub(crate) data: DataSections,
    /// Sentences for the user.
    pub(crate) notes: Vec<String>,
    /// Why there is no tokenizer, if there is none.
    pub(crate) without_tokenizer: Option<String>,
}

/// Compiles the tokenizer, stores the chat template in both forms, and the generation defaults.
pub(crate) fn data_sections(checkpoint: &Checkpoint, faults: &mut Faults) -> Result<Sections, PackError> {
    let mut without_tokenizer = None;
    let mut data = DataSections::default();
    let mut notes = checkpoint.notes().to_vec();
    let mut generation = checkpoint.generation().clone();
    let vocab = u32::try_from(checkpoint.config().vocab_size).unwrap_or(u32::MAX);
    let beside = faults.or(checkpoint.beside_tokenizer(), Beside::default())?;
    let mut tokens = texts_of(&beside);
    match faults.or(checkpoint.tokenizer_json().map(Some), None)? {
        Some(Some(json)) => {
            let compiled = tokenizer(checkpoint, &json, &beside)
                .and_then(|compiled| Ok((check_ids(checkpoint, &compiled, vocab)?, compiled)));
            if let Some((note, compiled)) = faults.or(compiled.map(Some), None)? {
                notes.extend(note);
                notes.extend(compiled.notes);
                notes.extend(compiled.eos.and_then(|eos| add_eos(&mut generation, eos, vocab)));
                data.tokenizer = compiled.table;
                tokens = compiled.named;
            }
        }
        Some(None) if !checkpoint.is_tokenizer_refused() => {
            without_tokenizer = Some(no_tokenizer(checkpoint)?)
        }
        Some(None) | None => {}
    }
    let GenerationDefaults { eos, bos, pad } = &generation;
    data.generation = emitted(|sink| Generation::emit(eos, *bos, *pad, vocab, sink))?;
    if let Some(template) = faults.or(checkpoint.chat_template(&tokens), None)? {
        data.role_table = role_table(&template)?;
        data.chat_template = template.jinja.into_bytes();
        // Nothing else needs them.
        let names = tokens.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        data.generation.extend(emitted(|sink| Names::emit(names, sink))?);
    }
    Ok(Sections { data, notes, without_tokenizer })
}

/// Compiles the tokenizer; an error names the file that is at fault.
fn tokenizer(checkpoint: &Checkpoint, json: &[u8], beside: &Beside) -> Result<Compiled, PackError> {
    compile_beside(json, beside).map_err(|error| match error {
        CompileError::Beside { file, key, reason } => {
            PackError::InvalidConfig { path: checkpoint.path_beside(file), key, reason }
        }
        source => PackError::Tokenizer { path: checkpoint.path_beside("tokenizer.json"), source },
    })
}

/// What to say where there is no tokenizer.
fn no_tokenizer(checkpoint: &Checkpoint) -> Result<String, PackError> {
    let found = match checkpoint.unread_tokenizer()? {
        Some(name) => format!(
            "no tokenizer.json here, and {name} is not read (transformers' AutoTokenizer and save_pretrained make a tokenizer.json of it)"
        ),
        None if checkpoint.is_gguf() => "the GGUF file has no tokenizer".to_owned(),
        None => "no tokenizer.json here".to_owned(),
    };
    let which = if checkpoint.is_original() {
        "; the original Mamba models have that of EleutherAI/gpt-neox-20b"
    } else {
        ""
    };
    Ok(format!("{found}: the packed file has no tokenizer, and takes and gives token ids only{which}"))
}

/// Compares the tokenizer's ids with the rows of the embedding: fewer are padding, more can't be computed.
fn check_ids(checkpoint: &Checkpoint, compiled: &Compiled, vocab: u32) -> Result<Option<String>, PackError> {
    let path = || checkpoint.path_beside("tokenizer.json");
    let damaged = |source| PackError::Tokenizer { path: path(), source: CompileError::Table(source) };
    let tokenizer = Tokenizer::parse(&compiled.table).map_err(damaged)?;
    let beyond: Vec<u32> =
        (vocab..tokenizer.vocab_size()).filter(|&id| tokenizer.token_bytes(id).is_some()).collect();
    let (Some(&first), Some(&last)) = (beyond.first(), beyond.last()) else { return Ok(None) };
    let in_every_text = compiled.around.iter().any(|id| beyond.contains(id));
    if in_every_text || beyond.iter().any(|&id| !tokenizer.is_added(id)) {
        let source = CompileError::Invalid(format!(
            "it has ids up to {last}, but the model's embedding only {vocab} rows: it is of another model"
        ));
        return Err(PackError::Tokenizer { path: path(), source });
    }
    let text = |id| String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned();
    let tokens = match first == last {
        true => format!("id {first} ({:?})", text(first)),
        false => format!("ids {first} ({:?}) to {last} ({:?})", text(first), text(last)),
    };
    Ok(Some(format!(
        "the tokenizer has {tokens} beyond the {vocab} rows of the model's embedding: a text with one of them can't be read"
    )))
}

/// Adds the end token that is named by its text to those that are named by ids.
fn add_eos(generation: &mut GenerationDefaults, eos: Eos, vocab: u32) -> Option<String> {
    let Eos { file, text, id } = eos;
    if generation.eos.contains(&id) || id >= vocab {
        return None;
    }
    let others: Vec<String> = generation.eos.iter().map(u32::to_string).collect();
    if others.len() == MAX_EOS {
        return Some(format!(
            "{file}'s end token {text:?} (id {id}) is left out: {MAX_EOS} others are named"
        ));
    }
    generation.eos.push(id);
    (!others.is_empty()).then(|| {
        let others = others.join(", ");
        format!(
            "{file} ends a text with {text:?} (id {id}), the model's own files with {others}: each ends it"
        )
    })
}

/// The texts of special tokens in tokenizer_config.json, where no tokenizer says more.
fn texts_of(beside: &Beside) -> Vec<(String, String)> {
    let named = beside.config.iter().filter(|(key, _)| key.ends_with("_token"));
    let text = |value: &Value| Some(value.as_str().or_else(|| value.get("content")?.as_str())?.to_owned());
    named.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
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

#[cfg(test)]
mod tests;
