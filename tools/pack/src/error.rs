//! What can go wrong while packing.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use elapid_core::format::FormatError;
use elapid_core::format::data::DataError;
use elapid_core::model::StepError;
use elapid_core::tokenizer::TokenizerError;

use crate::tokenizer::CompileError;

/// An error while packing: says what, where and what to do, on one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A file could not be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file is a link to a file that is not there, as in a cache whose blobs were removed.
    DanglingLink {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A file is only a Git LFS pointer to the real file.
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A file is a page of a web site in place of the real file.
    WebPage {
        /// The file.
        path: PathBuf,
    },
    /// The weights are quantized, in a format that is not read.
    Quantized {
        /// The file that tells.
        path: PathBuf,
        /// What it tells, and by whom the weights were quantized.
        how: String,
    },
    /// What is given is an adapter, not a model.
    Adapter {
        /// The file that tells.
        path: PathBuf,
        /// The model that it is for, if that is known.
        base: Option<String>,
    },
    /// The source is not a folder.
    NotAFolder {
        /// The source.
        path: PathBuf,
        /// What it is and what to give instead.
        reason: String,
    },
    /// The folder lacks a file that every checkpoint has.
    NotACheckpoint {
        /// The folder.
        path: PathBuf,
        /// The missing file.
        missing: &'static str,
        /// What to do.
        advice: String,
    },
    /// A JSON file does not parse or lacks the expected structure.
    InvalidJson {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A file that is read whole is larger than the limit.
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The largest size accepted.
        limit: u64,
    },
    /// The checkpoint is of another architecture.
    UnsupportedArch {
        /// config.json.
        path: PathBuf,
        /// Its `model_type`.
        found: String,
    },
    /// config.json asks for something that would change the arithmetic.
    UnsupportedFeature {
        /// config.json.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it asks for.
        reason: String,
    },
    /// Two keys of config.json name different architectures.
    ArchConflict {
        /// config.json.
        path: PathBuf,
        /// The key and its value.
        key: String,
        /// What it contradicts.
        against: &'static str,
    },
    /// A value in a configuration file is missing, of the wrong type or out of range.
    InvalidConfig {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A shard that the index names is not in the folder.
    MissingShard {
        /// The shard.
        path: PathBuf,
        /// The file that names it.
        index: &'static str,
        /// One of the tensors that it should hold.
        tensor: String,
    },
    /// A file is not as torch.save writes them, or asks for what is not carried out.
    InvalidPickle {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        at: u64,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A zip file has no end.
    CutZip {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A file of a model that is split into several is not there.
    MissingSplit {
        /// The file.
        path: PathBuf,
        /// How many files the model has.
        count: u64,
    },
    /// A file is not well-formed GGUF.
    InvalidGguf {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        at: u64,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A tensor of a GGUF file is stored in a type that is not read.
    UnsupportedBlock {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type, as GGML spells it.
        dtype: String,
    },
    /// The caller asked for the groups of a tensor that is not stored in groups.
    NoGroups {
        /// The tensor.
        name: String,
    },
    /// A folder holds several models.
    SeveralModels {
        /// The folder.
        path: PathBuf,
        /// Their files.
        found: Vec<String>,
    },
    /// A file is not well-formed safetensors.
    InvalidSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file ends before the tensors that its header lists.
    Truncated {
        /// The file.
        path: PathBuf,
        /// The size that the header implies, in bytes.
        needed: u64,
        /// The size that the file has, in bytes.
        found: u64,
    },
    /// The checkpoint lacks a tensor that the configuration requires.
    MissingTensor {
        /// The folder, or the shard that should hold the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What requires it.
        reason: String,
    },
    /// A tensor that has no place in the model that config.json describes.
    UnexpectedTensor {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why it does not belong.
        reason: String,
    },
    /// A tensor's shape is not the one that follows from config.json.
    WrongShape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that config.json implies.
        expected: Box<[usize]>,
        /// The same shape in the configuration's terms.
        meaning: &'static str,
        /// Where the configuration is.
        by: &'static str,
        /// The shape in the file.
        found: Box<[usize]>,
    },
    /// A tensor is stored in a type that is not supported.
    UnsupportedDtype {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type, as safetensors spells it.
        dtype: String,
    },
    /// A weight is NaN or infinite.
    NonFinite {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// `NaN`, `inf` or `-inf`.
        value: f32,
        /// The element's row.
        row: usize,
        /// The element's column.
        column: usize,
    },
    /// The tokenizer that was compiled does not read back.
    Table(#[source] TokenizerError),
    /// The caller asked for rows that a tensor does not have, or gave a buffer of another size.
    InvalidRows {
        /// The tensor.
        name: String,
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Values that the caller's buffer holds.
        len: usize,
    },
    /// The chat template is not valid Jinja.
    InvalidTemplate {
        /// The file that holds the template.
        path: PathBuf,
        /// The line within the template, from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// The tokenizer is of a kind that is not supported, or damaged.
    Tokenizer {
        /// tokenizer.json.
        path: PathBuf,
        /// What is wrong with it.
        source: CompileError,
    },
    /// Generation defaults or role table exceed the packed format's limits.
    Data(#[source] DataError),
    /// The model exceeds the packed format's limits.
    Format(#[source] FormatError),
    /// The data sections have other sizes than the configuration states.
    DataSizes {
        /// Their sizes.
        sizes: [u64; 4],
        /// The sizes in the configuration.
        stated: [u64; 4],
    },
    /// A weight is too large for its type in the packed file.
    TooLarge {
        /// The tensor's name.
        tensor: String,
        /// The value's row.
        row: usize,
        /// Its column, or its group's first.
        col: usize,
        /// The value.
        value: f32,
        /// The type.
        quant: &'static str,
    },
    /// The model could not compute the calibration text.
    Step(#[source] StepError),
    /// The calibration text can't be used.
    Calibration {
        /// The text.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The user interrupted it.
    Cancelled,
}

/// Prints one line, whatever names and texts of files it quotes.
impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = OneLine(f);
        match self {
            Self::Io { path, source } => {
                write!(out, "{}: {source}{}", path.display(), elapid_files::advice(source))
            }
            Self::DanglingLink { path, target } => write!(
                out,
                "{}: a link to {}, which is not there: download the file again",
                path.display(),
                target.display()
            ),
            Self::LfsPointer { path } => write!(
                out,
                "{}: a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
                path.display()
            ),
            Self::WebPage { path } => write!(
                out,
                "{}: an HTML page, not the file itself: download it again, with a login if the model asks for one",
                path.display()
            ),
            Self::Quantized { path, how } => write!(
                out,
                "{}: the weights are quantized already ({how}), in a format that is not read: give the original checkpoint in F32, F16 or BF16, or a GGUF file of it; elapid-pack quantizes them itself",
                path.display()
            ),
            Self::Adapter { path, base } => write!(
                out,
                "{}: an adapter, which is a change to a model and no model: merge it into {} (merge_and_unload of peft) and pack the result",
                path.display(),
                base.as_ref()
                    .map_or_else(|| "its base model".to_owned(), |base| format!("its base model `{base}`"))
            ),
            Self::NotAFolder { path, reason } => write!(out, "{}: {reason}", path.display()),
            Self::NotACheckpoint { path, missing, advice } => {
                write!(out, "{}: no {missing} here: {advice}", path.display())
            }
            Self::InvalidJson { path, reason } => write!(
                out,
                "{}: invalid JSON: {reason}; download the file again or correct it",
                path.display()
            ),
            Self::FileTooLarge { path, size, limit } => write!(
                out,
                "{}: {size} bytes, but this kind of file may have {limit} at most: check that it is the right file",
                path.display()
            ),
            Self::UnsupportedArch { path, found } => write!(
                out,
                "{}: architecture `{found}`{} is not supported; supported are `mamba` and `falcon_mamba`: give such a model, as state-spaces/mamba-130m-hf or tiiuae/falcon-mamba-7b, or run this one with transformers or llama.cpp",
                path.display(),
                about_arch(found).map_or_else(String::new, |about| format!(" ({about})"))
            ),
            Self::UnsupportedFeature { path, key, reason } => {
                write!(out, "{}: `{key}`: {reason}; no packed file can express this model", path.display())
            }
            Self::ArchConflict { path, key, against } => write!(
                out,
                "{}: `{key}` contradicts {against}: Mamba and Falcon Mamba have the same tensors but compute differently (Falcon Mamba normalises dt, B and C); correct the wrong key",
                path.display()
            ),
            Self::InvalidConfig { path, key, reason } => write!(out, "{}: `{key}` {reason}", path.display()),
            Self::MissingShard { path, index, tensor } => write!(
                out,
                "{}: missing shard, named by {index} (it holds `{tensor}`): download it",
                path.display()
            ),
            Self::InvalidPickle { path, at, reason } => {
                write!(out, "{}: not a readable file of torch.save: at byte {at}: {reason}", path.display())
            }
            Self::CutZip { path, size } => write!(
                out,
                "{}: a zip file of {size} bytes without an end record: it is cut, download it again",
                path.display()
            ),
            Self::MissingSplit { path, count } => write!(
                out,
                "{}: not here, and it is one of the {count} files of this model: download it to the same folder",
                path.display()
            ),
            Self::InvalidGguf { path, at, reason } => {
                write!(out, "{}: not a valid GGUF file: at byte {at}: {reason}", path.display())
            }
            Self::UnsupportedBlock { path, name, dtype } => write!(
                out,
                "{}: tensor `{name}` has type {dtype}; read are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL and IQ4_XS: convert the model to one of them",
                path.display()
            ),
            Self::NoGroups { name } => {
                write!(out, "tensor `{name}` is not stored in groups that share a scale")
            }
            Self::SeveralModels { path, found } => write!(
                out,
                "{}: no config.json here, and several GGUF models: give one of them: {}",
                path.display(),
                found.join(", ")
            ),
            Self::InvalidSafetensors { path, reason } => {
                write!(out, "{}: not a valid safetensors file: {reason}", path.display())
            }
            Self::Truncated { path, needed, found } => write!(
                out,
                "{}: truncated: {found} bytes, but its tensors need {needed}; download it again",
                path.display()
            ),
            Self::MissingTensor { path, name, reason } => {
                write!(out, "{}: tensor `{name}` is missing ({reason})", path.display())
            }
            Self::UnexpectedTensor { path, name, reason } => {
                write!(out, "{}: tensor `{name}` does not belong to this model: {reason}", path.display())
            }
            Self::WrongShape { path, name, expected, meaning, by, found } => write!(
                out,
                "{}: tensor `{name}` has shape {found:?}, expected {expected:?} = {meaning} from {by}: correct {by} or download the weights again",
                path.display()
            ),
            Self::UnsupportedDtype { path, name, dtype } => write!(
                out,
                "{}: tensor `{name}` has type {dtype}; supported are F32, F16, BF16 and F64: convert the checkpoint to one of them",
                path.display()
            ),
            Self::NonFinite { path, name, value, row, column } => write!(
                out,
                "{}: tensor `{name}` holds {value} at [{row}, {column}]: the checkpoint is damaged, download it again",
                path.display()
            ),
            Self::Table(cause) => write!(out, "the compiled tokenizer does not read back: {cause}"),
            Self::InvalidRows { name, rows, columns, start, end, len } => write!(
                out,
                "tensor `{name}` has {rows} rows of {columns} values: rows {start}..{end} can't be read into {len} values"
            ),
            Self::InvalidTemplate { path, line, reason } => {
                write!(out, "{}: chat template, line {line}: {reason}", path.display())
            }
            Self::Tokenizer { path, source } => write!(out, "{}: {source}", path.display()),
            Self::Data(cause) => write!(out, "the model can't be packed: {cause}"),
            Self::Format(cause) => write!(out, "the model can't be packed: {cause}"),
            Self::DataSizes { sizes, stated } => {
                write!(out, "the data sections have {sizes:?} bytes, but the configuration states {stated:?}")
            }
            Self::TooLarge { tensor, row, col, value, quant } => write!(
                out,
                "{tensor}: the value {value} at [{row}, {col}] is too large for {quant}: pack it as f32"
            ),
            Self::Step(cause) => write!(out, "calibration: {cause}"),
            Self::Calibration { path, reason } => write!(out, "{}: {reason}", path.display()),
            Self::Cancelled => out.write_str("interrupted; the file was not written"),
        }
    }
}

/// What an architecture is that people may take for Mamba.
fn about_arch(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace(['-', '.', ' '], "_");
    let is =
        |names: &[&str]| names.iter().any(|known| name == *known || name.ends_with(&format!("_{known}")));
    if is(&["mamba2", "codestral_mamba"]) {
        Some("Mamba-2, which computes other things than Mamba")
    } else if is(&[
        "jamba",
        "zamba",
        "zamba2",
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "granitehybrid",
        "granite_hybrid",
        "nemotron_h",
        "nemotron_h_moe",
        "plamo2",
        "hymba",
        "samba",
        "phi4flash",
    ]) {
        Some("a hybrid of Mamba and attention layers")
    } else if name.starts_with("rwkv") || is(&["recurrent_gemma", "xlstm", "retnet", "hyena", "lfm2"]) {
        Some("another architecture with a recurrent state")
    } else {
        None
    }
}

/// What a quotation begins and ends with at most, in bytes.
const QUOTED: [usize; 2] = [600, 300];

/// Escapes control characters, so that what is written stays on one line, and leaves out the middle of what files say at length.
struct OneLine<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let [first, last] = QUOTED;
        if text.len() > first + last {
            let whole =
                |from: usize| (0..=from).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
            self.write_str(&text[..whole(first)])?;
            self.write_str(" … ")?;
            // A character more at most.
            return self.write_str(&text[whole(text.len() - last)..]);
        }
        let Self(out) = self;
        for part in text.split_inclusive(char::is_control) {
            match part.chars().next_back().filter(|last| last.is_control()) {
                Some(last) => {
                    write!(out, "{}{}", &part[..part.len() - last.len_utf8()], last.escape_debug())?
                }
                None => out.write_str(part)?,
            }
        }
        Ok(())
    }
}

impl PackError {
    /// The exit code of a program that ends with this error: 1 if the machine or
    /// the request failed, 3 if the checkpoint is at fault.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { .. } | Self::NotAFolder { .. } | Self::InvalidRows { .. } | Self::Cancelled => 1,
            _ => 3,
        }
    }

    /// Attaches a path to an operating system's error.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_it_quotes() {
        let path = PathBuf::from("a \"b\"\n/\té");
        let error = PackError::MissingTensor { path, name: "x\ry".into(), reason: "\u{1b}[0m\n".into() };
        assert_eq!(error.to_string(), "a \"b\"\\n/\\té: tensor `x\\ry` is missing (\\u{1b}[0m\\n)");
        let name = "é".repeat(1 << 20);
        let error = PackError::NoGroups { name }.to_string();
        assert!(
            error.len() < 1000 && error.ends_with("éé` is not stored in groups that share a scale"),
            "{error}"
        );
    }
}
