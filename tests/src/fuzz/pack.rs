//! Target `pack`: a checkpoint's folder, damaged in structure and in bytes, given to the packer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use elapid_core::format::data::{Generation, RoleTable};
use elapid_core::format::{Header, Quant, Section};
use elapid_core::kernels::{self, Solo};
use elapid_core::model::{StateKind, StepError};
use elapid_core::source::{LayerSource, SliceSource, slice};
use elapid_core::tokenizer::Tokenizer;
use elapid_pack::{Options, PackError, Plan};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::edit::{ByteEdit, JsonEdit};
use super::{assert_one_line, planted, up_to};
use crate::fixture::fixtures_folder;
use crate::runner::Runner;
use crate::tokenizer_json::{falcon, sample};

/// A folder and how it is packed.
#[derive(Arbitrary, Debug)]
pub struct Input {
    source: u8,
    falcon_tokenizer: bool,
    #[arbitrary(with = |u: &mut Unstructured<'_>| up_to(u, 5))]
    edits: Vec<Edit>,
    quant: u8,
    head: Option<u8>,
    compact: bool,
    blocks: u8,
    threads: bool,
}

/// Damage to one file.
#[derive(Debug)]
enum Edit {
    /// To its JSON, in a safetensors file to the header.
    Json(Which, JsonEdit),
    /// To the dimensions of a tensor.
    Shape(Which, u8, Vec<u32>),
    /// To its bytes, in a safetensors file behind the header.
    Bytes(Which, ByteEdit),
    /// To the first bytes of a file, in a safetensors file the header's length and text.
    Head(Which, ByteEdit),
    /// The chat template, from pieces.
    Template(Vec<u8>),
    Delete(Which),
    /// A folder is where the file was.
    Folder(Which),
}

/// Damage to the structure is more frequent than such as any parser would find.
impl<'a> Arbitrary<'a> for Edit {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let which = u.arbitrary()?;
        Ok(match u.int_in_range(0..=19)? {
            0..12 => Self::Json(which, u.arbitrary()?),
            12..14 => Self::Shape(which, u.arbitrary()?, up_to(u, 3)?),
            14 => Self::Bytes(which, u.arbitrary()?),
            15 => Self::Head(which, u.arbitrary()?),
            16..18 => Self::Template(up_to(u, 8)?),
            18 => Self::Delete(which),
            _ => Self::Folder(which),
        })
    }
}

/// One of the folder's files, by the order of their names.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Which(u8);

/// Names and texts that mean something in one of the files.
const WORDS: [&str; 78] = [
    "model_type",
    "mamba",
    "falcon_mamba",
    "mamba2",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "state_size",
    "conv_kernel",
    "time_step_rank",
    "auto",
    "vocab_size",
    "layer_norm_epsilon",
    "mixer_rms_eps",
    "use_bias",
    "use_conv_bias",
    "tie_word_embeddings",
    "hidden_act",
    "gelu",
    "rms_norm",
    "quantization_config",
    "d_model",
    "n_layer",
    "ssm_cfg",
    "d_inner",
    "d_state",
    "d_conv",
    "dt_rank",
    "pad_vocab_size_multiple",
    "layer",
    "Mamba1",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "weight_map",
    "metadata",
    "total_size",
    "__metadata__",
    "dtype",
    "shape",
    "data_offsets",
    "F32",
    "F16",
    "BF16",
    "F64",
    "I8",
    "U8",
    "backbone.embeddings.weight",
    "backbone.embedding.weight",
    "backbone.norm_f.weight",
    "lm_head.weight",
    "backbone.layers.0.norm.weight",
    "backbone.layers.0.mixer.in_proj.weight",
    "backbone.layers.0.mixer.in_proj.bias",
    "backbone.layers.1.mixer.A_log",
    "backbone.layers.4095.mixer.D",
    "backbone.layers.18446744073709551616.mixer.D",
    "model.safetensors",
    "model-00001-of-00005.safetensors",
    "../model.safetensors",
    "config.json",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
    "vocab",
    "merges",
    "ignore_merges",
    "type",
    "Sequence",
    "NFC",
    "content",
    "special",
    "normalized",
    "chat_template",
    "\n",
];

const TEMPLATE: [&str; 8] = [
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}",
    "{% for m in messages %}{{ m.content }}",
    "{% endfor %}",
    "{% if x %}",
    "é\n",
    "{{ messages[0].content }}",
];

type Files = BTreeMap<String, Vec<u8>>;

/// The committed fixtures that are smallest, with a tokenizer each: one file of weights, and shards with an index. Then without a
/// tokenizer: both formats of torch.save, and a GGUF file.
static FOLDERS: LazyLock<[Files; 5]> = LazyLock::new(|| {
    let read = |name: &str| std::fs::read(elapid_test_support::data::path(name)).expect("a committed file");
    let original = |format: &str| {
        let names = ["config.json", "pytorch_model.bin"];
        names.map(|name| (name.to_owned(), read(&format!("original/{format}/{name}")))).into()
    };
    let gguf = [("model.gguf".to_owned(), read("gguf/mamba-conv1-f32.gguf"))].into();
    let [single, sharded] = ["mamba-state1", "falcon-bias"].map(|name| {
        let folder = fixtures_folder().join(name);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let read = |path: PathBuf| (file_name(&path), std::fs::read(&path).expect("a committed file"));
        let mut files: Files = paths.map(read).filter(|(name, _)| name != "expected.safetensors").collect();
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "eos_token": { "content": "<|end|>", "__type": "AddedToken" }, "chat_template": TEMPLATE[..2].concat(),
        });
        files.insert("tokenizer_config.json".into(), config.to_string().into_bytes());
        for (name, file) in &mut files {
            if name.ends_with(".safetensors") {
                *file = with_rows(file);
            } else if name == "config.json" {
                change_json(name, file, |config| config["vocab_size"] = json!(VOCAB));
            }
        }
        files
    });
    [single, sharded, original("zip"), original("old"), gguf]
});

/// How many of them have a tokenizer.
const WITH_TOKENIZER: usize = 2;

/// Rows of the embedding: a few more than the tokenizers have ids.
const VOCAB: usize = 275;

/// The same weights, with that many rows of embedding and head.
fn with_rows(file: &[u8]) -> Vec<u8> {
    let file = SafeTensors::deserialize(file).expect("a committed file");
    let tensors = file.tensors().into_iter().map(|(name, tensor)| {
        let (mut shape, mut data) = (tensor.shape().to_vec(), tensor.data().to_vec());
        if name.ends_with("embeddings.weight") || name == "lm_head.weight" {
            let row = data.len() / shape[0];
            data = data.iter().copied().cycle().take(row * VOCAB).collect();
            shape[0] = VOCAB;
        }
        (name, tensor.dtype(), shape, data)
    });
    let tensors: Vec<_> = tensors.collect();
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).expect("a tensor");
    let views = tensors.iter().map(|(name, dtype, shape, data)| (name, view(*dtype, shape, data)));
    safetensors::serialize(views, None).expect("a file of tensors")
}

/// Tokenizers of both kinds.
static TOKENIZERS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let mut other = sample();
    other["pre_tokenizer"] = falcon();
    [sample(), other].map(|json| json.to_string().into_bytes())
});

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The header's JSON and the data of a safetensors file.
fn parts(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// Puts a safetensors file together.
fn joined(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// Changes the JSON of a file.
fn change_json(name: &str, file: &mut Vec<u8>, change: impl FnOnce(&mut Value)) {
    let weights = name.ends_with(".safetensors");
    let Some((header, data)) = (if weights { parts(file) } else { Some((&file[..], &[][..])) }) else {
        return;
    };
    let Ok(mut document) = serde_json::from_slice(header) else { return };
    change(&mut document);
    let json = document.to_string().into_bytes();
    *file = if weights { joined(&json, data) } else { json };
}

impl Edit {
    fn apply(&self, files: &mut Files, folders: &mut Vec<String>) {
        let find = |files: &Files, which: Which| {
            files.keys().nth(usize::from(which.0) % files.len().max(1)).cloned().unwrap_or_default()
        };
        match self {
            Self::Json(which, edit) => {
                let name = find(files, *which);
                if let Some(file) = files.get_mut(&name) {
                    change_json(&name, file, |document| edit.apply(document, &WORDS));
                }
            }
            Self::Bytes(which, edit) => {
                let name = find(files, *which);
                let Some(file) = files.get_mut(&name) else { return };
                match parts(file).filter(|_| name.ends_with(".safetensors")) {
                    Some((header, data)) => {
                        let mut data = data.to_vec();
                        edit.apply(&mut data);
                        *file = joined(header, &data);
                    }
                    None => edit.apply(file),
                }
            }
            Self::Head(which, edit) => {
                let name = find(files, *which);
                let Some(file) = files.get_mut(&name) else { return };
                let data = file.split_off(file.len().min(512));
                edit.apply(file);
                file.extend(data);
            }
            Self::Delete(which) => {
                files.remove(&find(files, *which));
            }
            Self::Folder(which) => {
                let name = find(files, *which);
                if files.remove(&name).is_some() {
                    folders.push(name);
                }
            }
            Self::Template(pieces) => {
                let text: String =
                    pieces.iter().map(|i| TEMPLATE[usize::from(*i) % TEMPLATE.len()]).collect();
                files.insert("chat_template.jinja".into(), text.into_bytes());
            }
            Self::Shape(which, tensor, shape) => {
                let name = find(files, *which);
                let Some(file) = files.get_mut(&name).filter(|_| name.ends_with(".safetensors")) else {
                    return;
                };
                change_json(&name, file, |header| {
                    let Some(tensors) = header.as_object_mut().filter(|tensors| !tensors.is_empty()) else {
                        return;
                    };
                    let count = tensors.len();
                    let wanted = tensors.iter_mut().nth(usize::from(*tensor) % count);
                    if let Some(Value::Object(tensor)) = wanted.map(|(_, tensor)| tensor) {
                        tensor.insert("shape".into(), json!(shape));
                    }
                });
            }
        }
    }
}

/// A new folder, in memory where the system has a place for that: thousands of them are made.
fn new_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a temporary folder")
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let mut names: Vec<_> = entries.map(|entry| file_name(&entry.expect("an entry").path())).collect();
    names.sort();
    names
}

impl Input {
    /// Writes the folder.
    fn write(&self, folder: &Path) {
        let source = usize::from(self.source) % FOLDERS.len();
        let mut files = FOLDERS[source].clone();
        if source < WITH_TOKENIZER {
            let tokenizer = &TOKENIZERS[usize::from(self.falcon_tokenizer)];
            files.insert("tokenizer.json".into(), tokenizer.clone());
        }
        let mut folders = Vec::new();
        for edit in &self.edits {
            edit.apply(&mut files, &mut folders);
        }
        for (name, bytes) in &files {
            std::fs::write(folder.join(name), bytes).expect("a file is written");
        }
        for name in folders.iter().filter(|name| !files.contains_key(*name)) {
            std::fs::create_dir_all(folder.join(name)).expect("a folder is made");
        }
    }

    fn options(&self) -> Options {
        let quant = |i: u8| Quant::ALL[usize::from(i) % Quant::ALL.len()];
        Options {
            quant: quant(self.quant),
            head: self.head.map(quant),
            block_bytes: (1 + u32::from(self.blocks % 8)) << 14,
            compact: self.compact,
            threads: 1 + usize::from(self.threads),
        }
    }
}

/// At what the packer stopped.
fn kind(error: &PackError) -> &'static str {
    match error {
        PackError::InvalidJson { .. }
        | PackError::InvalidSafetensors { .. }
        | PackError::InvalidGguf { .. }
        | PackError::InvalidPickle { .. }
        | PackError::Truncated { .. } => "refused as a file",
        PackError::InvalidConfig { .. } | PackError::UnsupportedArch { .. } => "refused for config.json",
        PackError::MissingTensor { .. }
        | PackError::UnexpectedTensor { .. }
        | PackError::WrongShape { .. } => "refused for a tensor",
        PackError::Tokenizer { .. } => "refused for the tokenizer",
        _ => "refused",
    }
}

/// Packs the folder as `target`.
fn pack(folder: &Path, target: &Path, options: &Options) -> Result<(), PackError> {
    Plan::checkpoint(folder, options)?.write(target, options, &()).map(drop)
}

/// Whatever was packed can be used.
fn check_packed(path: &Path) {
    let file = std::fs::read(path).expect("the packed file");
    let header = Header::parse(&file).expect("a header");
    let layout = header.layout();
    let mut checked = vec![0; SliceSource::checked_words(layout)];
    let mut source = SliceSource::new(&file, &header, &mut checked).expect("a whole file");
    for section in layout.sections() {
        for block in 0..layout.section(section).blocks {
            source.borrow(section, block..block + 1).expect("a block with its checksum");
        }
    }
    let data = |section| {
        let place = layout.section(section);
        slice(&file, place.offset..place.offset + place.length).filter(|bytes| !bytes.is_empty())
    };
    let vocab = layout.config().vocab;
    data(Section::Tokenizer).map(Tokenizer::parse).transpose().expect("a tokenizer");
    data(Section::RoleTable).map(RoleTable::parse).transpose().expect("a role table");
    let generation = data(Section::Generation).map(|bytes| Generation::parse(bytes, vocab));
    generation.transpose().expect("generation defaults");
    data(Section::ChatTemplate).map(str::from_utf8).transpose().expect("a chat template in UTF-8");
    let mut runner = Runner::new(file, header, StateKind::F32, 3, 1);
    match runner.all_logits(kernels::detect(), &Solo, &[0, vocab - 1, vocab / 2]) {
        // Weights of any size were asked for.
        Ok(_) | Err(StepError::NonFinite { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Runs the target, and says how far the input came.
pub fn run(input: &Input) -> &'static str {
    let (folder, out) = (new_folder(), new_folder());
    input.write(folder.path());
    let before = names(folder.path());
    let target = out.path().join("model.elp");
    let outcome = match pack(folder.path(), &target, &input.options()) {
        Ok(()) => {
            assert_eq!(names(out.path()), ["model.elp"]);
            check_packed(&target);
            "packed"
        }
        Err(error) => {
            assert_one_line(&error);
            assert!(!matches!(error, PackError::InvalidRows { .. } | PackError::DataSizes { .. }), "{error}");
            assert!(!input.edits.is_empty(), "{error}");
            if planted("pack") && matches!(error, PackError::WrongShape { .. }) {
                std::fs::write(out.path().join("model.elp.part"), "").expect("a file is written");
            }
            assert_eq!(names(out.path()), [""; 0], "left behind after: {error}");
            kind(&error)
        }
    };
    assert_eq!(names(folder.path()), before, "the checkpoint's folder");
    outcome
}
