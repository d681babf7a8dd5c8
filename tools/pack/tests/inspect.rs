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
use elapid_test_support::gguf::{Gguf, Random, Value, kind, model, with_tokens};

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

/// The problems of a GGUF file, which packing refuses with the first of them.
#[track_caller]
fn problems(gguf: &Gguf) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, gguf.to_bytes()).unwrap();
    let inspection = inspect(&path, None, &Options::default()).unwrap();
    let problems: Vec<String> = inspection.problems.iter().map(|(problem, _)| problem.to_string()).collect();
    let refusal = Checkpoint::open(&path).err().map(|refusal| refusal.to_string());
    assert!(refusal.is_none_or(|refusal| problems.contains(&refusal)), "{problems:#?}");
    assert!(inspection.packed.is_empty() && !inspection.tensors.is_empty(), "{problems:#?}");
    let says_none = inspection.notes.iter().any(|note| note.contains("the GGUF file has no tokenizer"));
    let has_one = gguf.metadata.iter().any(|(key, _)| key == "tokenizer.ggml.model");
    assert!(says_none != has_one, "{:?}", inspection.notes);
    problems
}

/// Asserts that each fault is listed, and nothing else.
#[track_caller]
fn lists(gguf: &Gguf, faults: &[&str]) {
    let problems = problems(gguf);
    for fault in faults {
        assert!(problems.iter().any(|problem| problem.contains(fault)), "{fault:?}: {problems:#?}");
    }
    assert_eq!(problems.len(), faults.len(), "{problems:#?}");
}

#[test]
fn all_problems_of_a_gguf_header_are_listed() {
    let mut gguf = with_tokens(model(true, kind::F16), "gpt2");
    for (key, value) in [
        ("general.alignment", Value::U32(48)),
        ("mamba.block_count", Value::U32(5000)),
        ("mamba.embedding_length", Value::Text("x".into())),
        ("mamba.ssm.state_size", Value::U32(0)),
        ("mamba.ssm.conv_kernel", Value::U32(9)),
        ("mamba.ssm.time_step_rank", Value::I32(-1)),
        ("mamba.ssm.dt_b_c_rms", Value::U32(1)),
        ("mamba.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        ("tokenizer.ggml.pre", Value::Text("klingon".into())),
        ("tokenizer.ggml.token_type", Value::I32s(vec![1])),
        ("tokenizer.ggml.merges", Value::U32(1)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Value::Text("yes".into())),
        ("tokenizer.ggml.eos_token_id", Value::F32(1.0)),
        ("tokenizer.chat_template", Value::Text("{% if %}".into())),
    ] {
        gguf.set(key, value);
    }
    let problems = problems(&gguf);
    for words in [
        "`general.alignment` is 48",
        "`mamba.block_count` is 5000",
        "`mamba.embedding_length` must be a whole number",
        "`mamba.ssm.state_size` is 0",
        "`mamba.ssm.conv_kernel` is 9",
        "`mamba.ssm.time_step_rank` must be a whole number",
        "`mamba.ssm.dt_b_c_rms` must be true or false",
        "`mamba.attention.layer_norm_rms_epsilon` is NaN",
        "`tokenizer.ggml.pre` is klingon",
        "`tokenizer.ggml.token_type` has 1 elements",
        "`tokenizer.ggml.merges` must be an array of texts",
        "`tokenizer.ggml.add_bos_token` is true, but there is no bos token",
        "`tokenizer.ggml.add_eos_token` must be true or false",
        "`tokenizer.ggml.eos_token_id` must be a whole number",
        "chat template, line 1",
    ] {
        assert!(problems.iter().any(|problem| problem.contains(words)), "{words}: {problems:#?}");
    }
    // A dimension that is at fault is taken from the tensors, which are not blamed.
    assert!(problems.iter().all(|problem| !problem.contains("has shape")), "{problems:#?}");
    assert!(problems.len() < 20, "{problems:#?}");
}

#[test]
fn all_problems_of_gguf_tensors_are_listed() {
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut gguf = model(false, kind::F16);
        change(&mut gguf);
        gguf
    };
    let name = |gguf: &Gguf, index: usize| format!("`{}`", gguf.tensors[index].name);
    let gguf = with(&|gguf| {
        gguf.tensors[2].kind = 39;
        gguf.tensors[5].kind = 16;
        gguf.tensors[3].kind = kind::Q8_0;
        gguf.metadata.push(gguf.metadata[0].clone());
    });
    let all = problems(&gguf);
    for words in [
        &format!("{} has type MXFP4", name(&gguf, 2)),
        &format!("{} has type IQ2_XXS", name(&gguf, 5)),
        "rows of 4, not of whole blocks of 32",
        "key `general.architecture` is there twice",
    ] {
        assert!(all.iter().any(|problem| problem.contains(words)), "{words}: {all:#?}");
    }
    let gguf = with(&|gguf| gguf.tensors.push(gguf.tensors[4].clone()));
    lists(&gguf, &[&format!("tensor {} is there twice", name(&gguf, 4))]);
    let gguf = with(&|gguf| gguf.tensors[1].kind = kind::Q8_0);
    lists(&gguf, &["Q8_0, which only matrices may have"]);
    lists(&with(&|gguf| gguf.set("mamba.block_count", Value::U32(1))), &["there are 1 layers"; 3]);

    // What is said behind a text that is too long, a truth value that is none or a text in another encoding.
    let gguf = with_tokens(model(false, kind::F16), "gpt2");
    let bytes = |edit: &dyn Fn(&mut Vec<u8>)| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut bytes = gguf.to_bytes();
        edit(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let inspection = inspect(&path, None, &Options::default()).unwrap();
        inspection.problems.into_iter().map(|(problem, _)| problem.to_string()).collect::<Vec<_>>()
    };
    let find = |bytes: &[u8], text: &str| {
        bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
    };
    let all = bytes(&|bytes| {
        let name = find(bytes, "made by a test");
        bytes[name] = 0xff;
        let length = bytes.len() - 64;
        bytes.truncate(length);
    });
    assert!(all.len() == 2 && all[0].contains("`general.name` is not UTF-8"), "{all:#?}");
    assert!(all[1].contains("truncated: "), "{all:#?}");
}

/// Of a split model all files are looked at.
#[test]
fn all_problems_of_a_split_model_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = model(false, kind::F16);
    let mut second = Gguf { tensors: first.tensors.split_off(5), ..Gguf::default() };
    second.tensors.push(first.tensors[0].clone());
    for (number, gguf) in [(0, &mut first), (1, &mut second)] {
        gguf.set("split.no", Value::U32(7));
        gguf.set("split.count", Value::U32(3));
        let name = format!("m-{:05}-of-00003.gguf", number + 1);
        fs::write(folder.path().join(name), gguf.to_bytes()).unwrap();
    }
    for given in ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", ""] {
        let inspection = inspect(&folder.path().join(given), None, &Options::default()).unwrap();
        let problems: Vec<String> =
            inspection.problems.iter().map(|(problem, _)| problem.to_string()).collect();
        for words in [
            "`split.no` is 7 where the file's name says 0",
            "`split.no` is 7 where the file's name says 1",
            "m-00003-of-00003.gguf: not here",
            "another file of the model has it too",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(words)), "{words}: {problems:#?}");
        }
        assert_eq!(problems.len(), 4, "{problems:#?}");
    }
}

/// Whatever is wrong with a header: what is packed has no problems, and what is refused has some.
#[test]
fn problems_are_listed_where_packing_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let gguf = with_tokens(model(true, kind::Q8_0), "llama");
    let good = {
        let mut gguf = gguf;
        gguf.set("tokenizer.ggml.bos_token_id", Value::U32(1));
        let count = gguf.metadata.iter().find_map(|(key, value)| match value {
            Value::Texts(texts) if key == "tokenizer.ggml.tokens" => Some(texts.len()),
            _ => None,
        });
        gguf.set("tokenizer.ggml.scores", Value::F32s(vec![0.0; count.unwrap()]));
        gguf.to_bytes()
    };
    let first = good.windows(17).position(|bytes| bytes == b"token_embd.weight").unwrap();
    let options = Options::default();
    let mut refused = 0;
    let mut random = Random(7);
    for round in 0..600 {
        let mut bytes = good.clone();
        let end = if round % 2 == 0 { first } else { first + 2000 };
        for _ in 0..1 + random.next() % 3 {
            let at = random.next() as usize % end;
            bytes[at] = match random.next() % 4 {
                0 => 0,
                1 => 0xff,
                2 => bytes[at] ^ 1,
                _ => random.next() as u8,
            };
        }
        if random.next().is_multiple_of(16) {
            bytes.truncate(random.next() as usize % good.len());
        }
        fs::write(&path, bytes).unwrap();
        let packed = Plan::checkpoint(&path, &options);
        let inspection = inspect(&path, None, &options).unwrap();
        refused += usize::from(packed.is_err());
        assert_eq!(inspection.problems.is_empty(), packed.is_ok(), "{:?}: {packed:?}", inspection.problems);
    }
    assert!((100..600).contains(&refused), "{refused}");
}
