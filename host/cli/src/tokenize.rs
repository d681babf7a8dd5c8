//! `elapid tokenize`: a text's token ids.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::Error;
use elapid::core::tokenizer::EncodeOptions;
use elapid::encode;

use super::error::Failure;
use super::model::{ModelAndText, STDIN, open_to_read, read_text, text};
use super::output;

/// Print the token ids of a text as JSON
///
/// A single argument is the model if it ends in .elp, names a model of the Hub or in the store, or if a file or folder of that name
/// exists; otherwise it is the text. A text that begins with a hyphen goes after `--`: `elapid tokenize model.elp -- "- buy milk"`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed model, or hf:ORG/NAME or a checkpoint that is in the store. Default: the bundled one
    model: Option<OsString>,
    /// Text, `-` for standard input. Default: that of --file
    text: Option<OsString>,
    /// File with the text, `-` for standard input. Default: TEXT
    #[arg(long, conflicts_with = "text")]
    file: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    // With --file, what is given beside it can only be the model.
    let (inputs, file) = match args.file {
        Some(file) => {
            (ModelAndText { model: args.model.map(PathBuf::from), ..Default::default() }, Some(file))
        }
        None => (ModelAndText::new(args.model, args.text, "text", "tokenize"), None),
    };
    let model = open_to_read(inputs.model.as_deref()).map_err(|error| inputs.explain(error))?;
    let tokenizer = model.tokenizer()?;
    let text = match (inputs.text, file) {
        (Some(argument), _) if argument != STDIN => text(argument, "the text")?,
        (Some(_), _) => read_text(STDIN.as_ref())?,
        (None, Some(path)) => read_text(&path)?,
        (None, None) => return Err(Error::Usage("no text: give TEXT or --file FILE".into()).into()),
    };
    output::json(&encode(&tokenizer, &text, EncodeOptions::default())?)?;
    Ok(())
}
