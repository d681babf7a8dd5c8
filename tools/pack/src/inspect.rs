//! What a checkpoint holds and what packing will make of it, from headers alone: no weight is read.

use std::path::{Path, PathBuf};

use elapid_core::format::{Layout, Quant};

#[cfg(feature = "hub")]
use crate::checkpoint::hub;
use crate::checkpoint::place::Place;
use crate::checkpoint::{Checkpoint, Faults, Format, Given, ModelConfig, given};
use crate::contents::Contents;
use crate::pack::FINEST_FIRST;
use crate::sections::{Sections, data_sections};
use crate::{Options, PackError};

/// What is known of a checkpoint without its weights.
#[derive(Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// How messages call it.
    pub path: PathBuf,
    /// How its weights are stored; `None` if that is not known.
    pub format: Option<&'static str>,
    /// Its configuration, with 1 or a default for each dimension that is at fault; `None` if the architecture is not supported, or
    /// not known.
    pub config: Option<ModelConfig>,
    /// The types of its tensors, with how many tensors and values are of each.
    pub tensors: Vec<(String, usize, u64)>,
    /// What lies beside the weights.
    pub contents: Contents,
    /// What the user should know, in sentences.
    pub notes: Vec<String>,
    /// Why it will be refused. The same fault of many tensors is listed a few times; the number beside the last of them says how many
    /// more there are.
    pub problems: Vec<(PackError, usize)>,
    /// What it is packed as with each type of weights; nothing where it will be refused.
    pub packed: Vec<Packed>,
}

/// A packed file that can be made.
#[derive(Debug)]
#[non_exhaustive]
pub struct Packed {
    /// The type of its large matrices.
    pub quant: Quant,
    /// Whether that is the type where none is asked for.
    pub is_default: bool,
    /// How it is laid out. Rows that need exponents, which only their values tell, take a little more.
    pub layout: Layout,
}

/// Inspects what a path leads to. `tokenizer` is that of another place; of `options` all but the type counts.
///
/// # Errors
/// If there is nothing at the path, or nothing that can be a checkpoint.
pub fn inspect(path: &Path, tokenizer: Option<&Path>, options: &Options) -> Result<Inspection, PackError> {
    #[cfg(feature = "hub")]
    if let Some(source) = hub::Source::named(path)? {
        let complete = |checkpoint: &mut Checkpoint| match tokenizer {
            Some(tokenizer) => checkpoint.use_tokenizer(tokenizer),
            None => hub::add_tokenizer(checkpoint, hub::Settings::from_env()?),
        };
        let file = source.file.as_deref().map(Format::with_name);
        return Ok(inspect_as(source.place, file, &complete, options));
    }
    let (folder, file) = given(path)?;
    Ok(inspect_as(Box::new(folder), file, &with_tokenizer(tokenizer), options))
}

/// Gives a checkpoint a tokenizer of another place, if there is one.
fn with_tokenizer(tokenizer: Option<&Path>) -> impl Fn(&mut Checkpoint) -> Result<(), PackError> {
    move |checkpoint| tokenizer.map_or(Ok(()), |tokenizer| checkpoint.use_tokenizer(tokenizer))
}

/// [`inspect`] in a place of any kind; `name` is the file of weights, where one is given.
#[must_use]
pub fn inspect_in(
    place: Box<dyn Place>,
    name: Option<&str>,
    tokenizer: Option<&Path>,
    options: &Options,
) -> Inspection {
    inspect_as(place, name.map(Format::with_name), &with_tokenizer(tokenizer), options)
}

/// Gives a checkpoint what does not lie in its place.
type Complete<'a> = &'a dyn Fn(&mut Checkpoint) -> Result<(), PackError>;

fn inspect_as(place: Box<dyn Place>, file: Given, complete: Complete<'_>, options: &Options) -> Inspection {
    let mut faults = Faults::all();
    let mut inspection = Inspection {
        path: place.path(file.as_ref().map_or("", |(name, _)| name)),
        format: None,
        config: None,
        tensors: Vec::new(),
        contents: Contents::default(),
        notes: Vec::new(),
        problems: Vec::new(),
        packed: Vec::new(),
    };
    let done = inspection.fill(place, file, complete, options, &mut faults);
    let mut listed = faults.listed();
    done.err().into_iter().for_each(|fault| listed.add(fault));
    let types = std::mem::take(&mut listed.tensors);
    inspection.tensors = types.into_iter().map(|(name, (count, values))| (name, count, values)).collect();
    inspection.problems = listed.faults();
    if !inspection.problems.is_empty() {
        inspection.packed.clear();
    }
    inspection
}

impl Inspection {
    /// Notes what is found, up to a fault that hides the rest.
    fn fill(
        &mut self,
        place: Box<dyn Place>,
        file: Given,
        complete: Complete<'_>,
        options: &Options,
        faults: &mut Faults,
    ) -> Result<(), PackError> {
        let mut checkpoint = Checkpoint::open_as(place, file, faults)?;
        self.format = Some(checkpoint.format());
        self.config = Some(checkpoint.config().clone());
        faults.or(complete(&mut checkpoint), ())?;
        let Sections { data, notes, without_tokenizer } = data_sections(&checkpoint, faults)?;
        self.contents = Contents::of(&data);
        self.notes.extend(notes);
        self.notes.extend(without_tokenizer);
        let kept = checkpoint.kept_as();
        let default = kept.map_or(Quant::Q8, |(quant, _)| quant);
        for quant in FINEST_FIRST {
            let is_default = quant == default;
            // As packing does: where no type is asked for, that of the head may be another.
            let head = options.head.or(kept.filter(|_| is_default).and_then(|(_, head)| head));
            let config = Options { quant, head, ..*options }.config(checkpoint.config(), &data)?;
            self.packed.push(Packed { quant, is_default, layout: Layout::new(config)? });
        }
        Ok(())
    }
}
