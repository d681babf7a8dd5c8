//! What is said of a checkpoint without reading its weights is what packing makes of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use elapid_core::format::{Header, Quant};
use elapid_pack::checkpoint::Checkpoint;
use elapid_pack::checkpoint::place::{Folder, Place, Ranges};
use elapid_pack::{Inspection, Options, PackError, Plan, inspect, inspect_in};
use elapid_test_support::data;
use elapid_test_support::gguf::{kind, model, with_tokens};

#[track_caller]
fn of(path: &Path, options: &Options) -> Inspection {
    let inspection = inspect(path, None, options).unwrap();
    assert!(inspection.problems.is_empty(), "{:?}", inspection.problems);
    inspection
}

/// Checkpoints of every form.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let gguf = folder.join("m.gguf");
    fs::write(&gguf, with_tokens(model(true, kind::Q4_0), "gpt2").to_bytes()).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let mut all =
        vec![gguf, data::path("models/address-300k"), data::path("original/zip"), data::path("original/old")];
    all.extend(["falcon-odd", "mamba-bias", "mamba-conv1"].map(|name| fixtures.join(name)));
    all
}

#[test]
fn sizes_and_contents_are_those_of_the_packed_files() {
    let folder = tempfile::tempdir().unwrap();
    for source in sources(folder.path()) {
        let ways = [(None, 1 << 20, false), (Some(Quant::Q8), 16 << 10, true)];
        for (head, block_bytes, compact) in ways {
            let options = Options { head, block_bytes, compact, ..Options::default() };
            let inspection = of(&source, &options);
            assert_eq!(inspection.packed.len(), Quant::ALL.len());
            for packed in &inspection.packed {
                let head = packed.layout.config().quants.head;
                let options = Options { quant: packed.quant, head: Some(head), ..options };
                let plan = Plan::checkpoint(&source, &options).unwrap();
                assert_eq!(plan.contents(), inspection.contents);
                let file = folder.path().join("m.elp");
                plan.write(&file, &options, &()).unwrap();
                let bytes = fs::read(&file).unwrap();
                let config = *Header::parse(&bytes).unwrap().layout().config();
                let exponents = config.exponents.all().into_iter().any(|exponents| exponents);
                let what = format!("{} in {}", source.display(), packed.quant.name());
                assert!(!exponents && bytes.len() as u64 == packed.layout.file_bytes(), "{what}");
                assert_eq!(config.quants, packed.layout.config().quants, "{what}");
            }
            let default: Vec<Quant> = inspection
                .packed
                .iter()
                .filter(|packed| packed.is_default)
                .map(|packed| packed.quant)
                .collect();
            let kept = Checkpoint::open(&source).unwrap().kept_as();
            assert_eq!(default, [kept.map_or(Quant::Q8, |(quant, _)| quant)]);
        }
    }
}

#[test]
fn tensors_are_counted_and_what_lies_beside_them_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for source in sources(folder.path()) {
        let inspection = of(&source, &Options::default());
        let tensors: usize = inspection.tensors.iter().map(|(_, count, _)| count).sum();
        let layers = inspection.config.as_ref().unwrap().n_layer;
        assert!(tensors >= 10 * layers + 2, "{}: {tensors}", source.display());
    }
    let inspection = of(&data::path("models/address-300k"), &Options::default());
    assert_eq!(inspection.format, Some("safetensors"));
    assert_eq!(inspection.tensors, [("BF16".to_owned(), 42, 371_424)]);
    assert!(inspection.contents.tokenizer_text().ends_with(", 1024 tokens"), "{:?}", inspection.contents);
    assert_eq!(inspection.contents.ends_text(), "0 \"<|endoftext|>\"");
    assert_eq!(inspection.contents.template_text(), "none");
    let inspection = of(&folder.path().join("m.gguf"), &Options::default());
    assert_eq!(inspection.format, Some("gguf"));
    assert!(inspection.tensors.iter().any(|(name, ..)| name == "Q4_0"), "{:?}", inspection.tensors);
}

/// A folder that counts what is read of it.
#[derive(Debug)]
struct Counted(Folder, Arc<AtomicU64>);

#[derive(Debug)]
struct CountedFile(Box<dyn Ranges>, Arc<AtomicU64>);

impl Place for Counted {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }
    fn list(&self) -> Result<Vec<String>, PackError> {
        self.0.list()
    }
    fn has(&self, name: &str) -> Result<bool, PackError> {
        self.0.has(name)
    }
    fn open(&self, name: &str) -> Result<Option<Box<dyn Ranges>>, PackError> {
        let counted = |file| Box::new(CountedFile(file, self.1.clone())) as Box<dyn Ranges>;
        Ok(self.0.open(name)?.map(counted))
    }
}

impl Ranges for CountedFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.0.read_at(bytes, offset)
    }
}

/// The header of a model of 14 GB is read, and nothing else of a file that is not even on the disk.
#[test]
fn no_weight_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"model_type": "falcon_mamba", "hidden_size": 4096, "num_hidden_layers": 64,
        "intermediate_size": 8192, "time_step_rank": 256, "vocab_size": 65024, "tie_word_embeddings": true}"#;
    fs::write(folder.path().join("config.json"), config).unwrap();
    let mut header = String::from("{");
    let mut end = 0u64;
    let mut put = |name: &str, shape: &[u64]| {
        let start = end;
        end += 2 * shape.iter().product::<u64>();
        let comma = if header.len() > 1 { "," } else { "" };
        header += &format!(
            "{comma}\"{name}\":{{\"dtype\":\"BF16\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        );
    };
    put("backbone.embeddings.weight", &[65024, 4096]);
    for layer in 0..64 {
        for (name, shape) in [
            ("norm.weight", &[4096][..]),
            ("mixer.in_proj.weight", &[16384, 4096]),
            ("mixer.conv1d.weight", &[8192, 1, 4]),
            ("mixer.conv1d.bias", &[8192]),
            ("mixer.x_proj.weight", &[288, 8192]),
            ("mixer.dt_proj.weight", &[8192, 256]),
            ("mixer.dt_proj.bias", &[8192]),
            ("mixer.A_log", &[8192, 16]),
            ("mixer.D", &[8192]),
            ("mixer.out_proj.weight", &[4096, 8192]),
        ] {
            put(&format!("backbone.layers.{layer}.{name}"), shape);
        }
    }
    put("backbone.norm_f.weight", &[4096]);
    // Beside a tied embedding packing compares the two.
    put("lm_head.weight", &[65024, 4096]);
    header.push('}');
    let path = folder.path().join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + end).unwrap();

    let read = Arc::new(AtomicU64::new(0));
    let place = Counted(Folder(folder.path().into()), read.clone());
    let inspection = inspect_in(Box::new(place), None, None, &Options::default());
    assert!(inspection.problems.is_empty(), "{:?}", inspection.problems);
    assert_eq!(inspection.packed.len(), 6);
    assert!(inspection.notes[0].contains("taken for a copy"), "{:?}", inspection.notes);
    let files = (config.len() + 8 + header.len()) as u64;
    assert_eq!(read.load(Ordering::Relaxed), files);
}

/// Not only the first fault is listed.
#[test]
fn all_problems_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let source = data::path("models/address-300k");
    for name in ["model.safetensors", "tokenizer.json"] {
        fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config["architectures"] = "FalconMambaForCausalLM".into();
    config["hidden_act"] = "gelu".into();
    config["state_size"] = 7.into();
    config["num_hidden_layers"] = 3.into();
    config["layer_norm_epsilon"] = (-1).into();
    config["quantization_config"] = serde_json::json!({ "quant_method": "awq" });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
    fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let inspection = inspect(folder.path(), None, &Options::default()).unwrap();
    let problems: Vec<String> = inspection.problems.iter().map(|(problem, _)| problem.to_string()).collect();
    for words in [
        "`architectures: FalconMambaForCausalLM` contradicts",
        "`hidden_act`",
        "`layer_norm_epsilon` is -1",
        "awq",
        "[192, 7]",
        "there are 3 layers",
        "tokenizer_config.json: invalid JSON",
        "chat_template.jinja: chat template, line 1",
    ] {
        assert!(problems.iter().any(|problem| problem.contains(words)), "{words}: {problems:#?}");
    }
    // Of the same kind a few.
    assert!(problems.len() < 20 && inspection.problems.iter().any(|(_, more)| *more > 0), "{problems:#?}");
    assert!(inspection.packed.is_empty() && inspection.config.is_some());

    // Another architecture still has tensors.
    config["model_type"] = "mamba2".into();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let inspection = inspect(folder.path(), None, &Options::default()).unwrap();
    assert!(inspection.problems[0].0.to_string().contains("Mamba-2"), "{:?}", inspection.problems);
    assert!(inspection.config.is_none() && !inspection.tensors.is_empty());
}
