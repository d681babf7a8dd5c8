//! What a text must match: `--json-schema` and `--grammar`.

use std::path::{Path, PathBuf};

use elapid::{GenerateOptions, Model};

use super::model::STDIN;
use crate::error::Error;

/// Options of texts that must match something.
#[derive(clap::Args)]
pub(super) struct GrammarArgs {
    /// JSON schema that the text must match, `-` for standard input. Default: none
    #[arg(long, value_name = "FILE", conflicts_with = "grammar")]
    json_schema: Option<PathBuf>,
    /// Grammar in the notation of Lark that the text must match, `-` for standard input. Default: none
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

/// What a file says that a text must match.
enum Kind {
    Schema,
    Lark,
}

impl GrammarArgs {
    /// Whether the schema or grammar is read from standard input.
    pub(super) fn reads_stdin(&self) -> bool {
        [&self.json_schema, &self.grammar].into_iter().flatten().any(|path| path.as_os_str() == STDIN)
    }

    /// Sets what the text must match.
    pub(super) fn constrain(
        &self,
        model: &Model,
        options: GenerateOptions,
    ) -> Result<GenerateOptions, Error> {
        match (&self.json_schema, &self.grammar) {
            (Some(path), _) => constrain(model, options, path, Kind::Schema),
            (None, Some(path)) => constrain(model, options, path, Kind::Lark),
            (None, None) => Ok(options),
        }
    }
}

#[cfg(feature = "grammar")]
fn constrain(
    model: &Model,
    options: GenerateOptions,
    path: &Path,
    kind: Kind,
) -> Result<GenerateOptions, Error> {
    let text = super::model::read_text(path)?;
    let grammar = match kind {
        Kind::Schema => elapid::Grammar::JsonSchema(text),
        Kind::Lark => elapid::Grammar::Lark(text),
    };
    match elapid::Grammars::new(model)?.constraint(&grammar) {
        Ok(constraint) => Ok(options.constraint(constraint)),
        Err(error) if path.as_os_str() == STDIN => Err(Error::Usage(format!("standard input: {error}"))),
        Err(error) => Err(Error::Usage(format!("{}: {error}", path.display()))),
    }
}

#[cfg(not(feature = "grammar"))]
fn constrain(_: &Model, _: GenerateOptions, _: &Path, kind: Kind) -> Result<GenerateOptions, Error> {
    let option = match kind {
        Kind::Schema => "--json-schema",
        Kind::Lark => "--grammar",
    };
    Err(Error::Usage(format!(
        "{option}: this elapid was built without grammars: build it with `--features grammar`, or use the Debian package"
    )))
}
