//! `elapid tokenize`: a text's token ids.

use std::ffi::OsString;
use std::path::PathBuf;

use elapid::core::tokenizer::EncodeOptions;
use elapid::{Error, encode};

use super::model::{model_and_text, open_to_read, read_text, text};
use super::output;

/// Prints the token ids of a text, as JSON
///
/// A single argument is the model if it ends in .elp or names something that exists, and the text otherwise.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A packed model; the bundled one if left out
    model: Option<OsString>,
    /// The text
    text: Option<OsString>,
    /// A file with the text, - for standard input
    #[arg(long, conflicts_with = "text")]
    file: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    // With --file, what is given beside it can only be the model.
    let (model, argument) = match args.file {
        Some(_) => (args.model.map(PathBuf::from), None),
        None => model_and_text(args.model, args.text),
    };
    let engine = open_to_read(model.as_deref())?;
    let tokenizer = engine.tokenizer()?;
    let text = match (argument, args.file) {
        (Some(argument), _) => text(argument, "the text")?,
        (None, Some(path)) => read_text(&path)?,
        (None, None) => return Err(Error::Usage("no text: give TEXT or --file FILE".into())),
    };
    output::json(&encode(&tokenizer, &text, EncodeOptions::default())?)
}
