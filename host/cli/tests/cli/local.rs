//! Folders and files of this machine that are packed into the store.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use elapid_pack::pack::parse_quant;
use elapid_pack::{Options, Plan};
use elapid_test_support::data;
use elapid_test_support::gguf::{kind, model, with_tokens};
use tempfile::TempDir;

use super::{bad, elapid, json, utf8};

/// A home and a folder of checkpoints of their own.
struct World {
    home: TempDir,
    sources: TempDir,
    /// The path of `sources` without links.
    root: PathBuf,
}

impl World {
    fn new() -> Self {
        let sources = tempfile::tempdir().unwrap();
        let root = sources.path().canonicalize().unwrap();
        Self { home: tempfile::tempdir().unwrap(), sources, root }
    }

    /// Copies a checkpoint to a folder here.
    fn copy(&self, from: &str, to: &str) -> PathBuf {
        let to = self.root.join(to);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(data::path(from)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    }

    /// A command beside the checkpoints. It can't reach a Hub.
    fn elapid(&self, args: &[&str]) -> Command {
        let mut command = elapid(args);
        command.env("ELAPID_HOME", self.home.path()).env("HF_ENDPOINT", "http://127.0.0.1:9");
        command.current_dir(&self.sources);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.elapid(args).output().unwrap()
    }

    /// What a command that succeeds writes to standard output and to standard error.
    #[track_caller]
    fn good(&self, args: &[&str]) -> (String, String) {
        let output = self.run(args);
        let (out, errors) = (utf8(output.stdout), utf8(output.stderr));
        assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
        (out, errors)
    }

    /// Names, types and paths of what is in the store.
    fn listed(&self) -> Vec<(String, String, PathBuf)> {
        let text = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
        let lines = self.good(&["list", "--json"]).0;
        let lines = lines.lines().map(json);
        lines.map(|line| (text(&line, "name"), text(&line, "quant"), text(&line, "path").into())).collect()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn sources_of_every_form_are_pulled_listed_run_and_removed() {
    let world = World::new();
    let folder = world.copy("models/address-300k", "a folder");
    let original = world.copy("original/zip", "original");
    let gguf = world.root.join("m.gguf");
    fs::write(&gguf, with_tokens(model(true, kind::Q4_0), "gpt2").to_bytes()).unwrap();
    for (given, source, quant) in [
        ("a folder/", folder.clone(), "q8"),
        ("a folder/model.safetensors", folder.join("model.safetensors"), "q4"),
        ("./m.gguf", gguf, "q4"),
        ("a folder/../original", original, "f16"),
    ] {
        let name = text(&source);
        let (out, said) = world.good(&["pull", given, "--quant", quant]);
        assert!(out.is_empty() && said.contains(&format!("{name} is in the store as {quant} (")), "{said}");
        let listed = world.listed();
        let [(known, of, packed)] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((known.as_str(), of.as_str()), (name, quant));
        assert!(packed.starts_with(world.home.path()), "{packed:?}");
        assert!(world.good(&["list"]).0.contains(&format!("\n{name}  {quant} ")));

        // It is what elapid-pack makes.
        let options = Options { quant: parse_quant(quant).unwrap(), ..Options::default() };
        let file = world.root.join("expected.elp");
        Plan::checkpoint(&source, &options).unwrap().write(&file, &options, &()).unwrap();
        assert!(fs::read(packed).unwrap() == fs::read(&file).unwrap(), "{name}");

        // Whoever gives the path in another way has the same model.
        let logits = |model: &str| world.good(&["logits", model, "--tokens", "1,2", "--json"]);
        let expected = logits("expected.elp").0;
        for other in [given, name] {
            assert_eq!(logits(other), (expected.clone(), String::new()), "{other}");
            world.good(&["verify", other]);
            let (_, said) = world.good(&["pull", other, "--quant", quant]);
            assert_eq!(said, format!("{name} is in the store as {quant}\n"));
        }
        let (_, said) = world.good(&["rm", given]);
        assert!(said.starts_with(&format!("removed {name} ({quant}): ")), "{said}");
        assert_eq!(world.listed(), []);
        bad(world.run(&["info", name]), 2, "is not in the store: `elapid pull ");
    }
    assert_eq!(fs::read_dir(world.home.path().join("models/local")).unwrap().count(), 0);
}

#[test]
fn run_packs_at_first_use_and_again_when_the_source_changes() {
    let world = World::new();
    let folder = world.copy("models/address-300k", "m");
    let run = |options: &[&str]| {
        world.good(&[&["run", "m", "My fellow", "-n", "8", "--seed", "1"], options].concat())
    };
    let (first, said) = run(&["--quant", "q4"]);
    assert!(said.contains("/m is in the store as q4 ("), "{said}");
    assert_eq!(run(&[]), (first.clone(), String::new()));
    let (known, said) = run(&["--quant", "q8"]);
    assert!(said.contains("/m is in the store as q8 ("), "{said}");
    assert_eq!(world.listed().len(), 2);
    // What does not belong to the model may change.
    fs::write(folder.join("README.md"), "x").unwrap();
    fs::write(folder.join("m.elp"), "x").unwrap();
    assert_eq!(run(&["--quant", "q8"]), (known, String::new()));

    // Every other file counts: by its size, its time or its name.
    let changes: [&dyn Fn(); 4] = [
        &|| fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": 5}"#).unwrap(),
        &|| fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": 6}"#).unwrap(),
        &|| fs::rename(folder.join("generation_config.json"), folder.join("other.json")).unwrap(),
        &|| {
            let file = fs::File::options().write(true).open(folder.join("model.safetensors")).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        },
    ];
    for change in changes {
        change();
        bad(world.run(&["info", "m"]), 2, "/m is not in the store");
        let (_, said) = run(&["--quant", "q4"]);
        assert!(said.contains("/m has changed since it was packed: it is packed again\n"), "{said}");
        // What was packed before is gone.
        assert_eq!(world.listed().len(), 1);
    }

    // What is in the store can be used without its source.
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(run(&[]), (first, String::new()));
    world.good(&["info", text(&folder)]);
    world.good(&["rm", "./m"]);
    bad(world.run(&["run", "m", "x"]), 1, "m: cannot open");
    bad(world.run(&["pull", "m"]), 1, "/m: No such file or directory");
}

/// Of a split model all files count, and no other of the folder.
#[test]
fn other_files_beside_a_gguf_file_are_not_its_own() {
    let world = World::new();
    let bytes = model(false, kind::F16).to_bytes();
    let name = |part: usize| world.root.join(format!("m-0000{part}-of-00002.gguf"));
    let mut first = model(false, kind::F16);
    let mut second =
        elapid_test_support::gguf::Gguf { tensors: first.tensors.split_off(5), ..Default::default() };
    for (part, gguf) in [(1, &mut first), (2, &mut second)] {
        gguf.set("split.no", elapid_test_support::gguf::Value::U32(part - 1));
        gguf.set("split.count", elapid_test_support::gguf::Value::U32(2));
        fs::write(name(part as usize), gguf.to_bytes()).unwrap();
    }
    world.good(&["pull", "m-00001-of-00002.gguf", "--quant", "f16"]);
    fs::write(world.root.join("n.gguf"), &bytes).unwrap();
    fs::write(world.root.join("n.json"), &bytes).unwrap();
    world.good(&["info", text(&name(1))]);
    fs::File::options()
        .write(true)
        .open(name(2))
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    bad(world.run(&["info", text(&name(1))]), 2, "is not in the store");
}

#[test]
fn no_name_leads_out_of_the_store() {
    let world = World::new();
    let odd = ["..%2F..%2Fx", "-", "hf:a", "é%00 x", "...", "%"];
    for name in odd {
        let folder = world.copy("models/address-300k", name);
        let given = format!("./{name}");
        world.good(&["pull", &given, "--quant", "q4"]);
        let listed = world.listed();
        assert_eq!(listed[0].0, text(&folder));
        assert!(listed[0].2.canonicalize().unwrap().starts_with(world.home.path().canonicalize().unwrap()));
        world.good(&["info", &given]);
        world.good(&["rm", text(&folder)]);
        fs::remove_dir_all(folder).unwrap();
    }
    // A link keeps its name, and is another model when it leads elsewhere.
    let folder = world.copy("models/address-300k", "target");
    symlink(&folder, world.root.join("link")).unwrap();
    world.good(&["pull", "link", "--quant", "q4"]);
    assert_eq!(world.listed()[0].0, text(&world.root.join("link")));
    for name in [OsStr::from_bytes(b"a\xff"), OsStr::new("a\nb")] {
        let folder = world.root.join(name);
        fs::rename(world.root.join("target"), &folder).unwrap();
        let output = world.elapid(&["run"]).arg(&folder).arg("x").output().unwrap();
        bad(output, 2, "the store takes only paths that are UTF-8 without control characters");
        fs::rename(&folder, world.root.join("target")).unwrap();
    }
    let long = world.copy("models/address-300k", &"ä".repeat(60));
    bad(world.run(&["pull", text(&long), "--quant", "q4"]), 2, "the name or path is too long for the store");
    bad(world.run(&["pull", "/"]), 2, "give it another name");
    assert_eq!(world.listed().len(), 1);
}

#[test]
fn what_is_no_checkpoint_is_said_and_nothing_is_stored() {
    let world = World::new();
    let empty = world.root.join("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(world.root.join("x.safetensors"), "x").unwrap();
    fs::write(world.root.join("x.gguf"), "GGUF").unwrap();
    fs::write(world.root.join("notes.txt"), "x").unwrap();
    for (source, code, says) in [
        ("empty", 3, "empty: no config.json here"),
        ("x.safetensors", 1, "no config.json beside this file"),
        ("x.gguf", 3, "truncated"),
    ] {
        bad(world.run(&["run", source, "x"]), code, says);
        bad(world.run(&["pull", source]), code, says);
    }
    bad(world.run(&["pull", "notes.txt"]), 1, "a file, not a folder");
    bad(world.run(&["rm", "empty"]), 2, "is not in the store");
    assert!(!world.home.path().join("models").exists());
    // A packed file is none, whatever it is called.
    let file = world.root.join("m.bin");
    fs::copy(super::small(), &file).unwrap();
    world.good(&["run", "m.bin", "My fellow", "-n", "1"]);
    bad(world.run(&["pull", "none/such"]), 1, "hf:none/such");
}

/// Here because files may not be larger than a limit.
#[test]
fn an_unfinished_model_goes_on_unless_its_source_changed() {
    let world = World::new();
    let folder = world.copy("models/address-300k", "m");
    let stop = || {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -f 8 && exec \"$0\" pull m --quant q4", env!("CARGO_BIN_EXE_elapid")]);
        let output = command.env("ELAPID_HOME", world.home.path()).current_dir(&world.root).output().unwrap();
        let said = utf8(output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let lines: Vec<&str> = said.lines().collect();
        let [note, error] = lines[..] else { panic!("{said}") };
        assert_eq!(note, "note: what is finished is kept: the same command goes on there");
        assert!(error.contains("File too large (os error 27): give a place that takes larger"), "{said}");
        assert!(world.good(&["list"]).0.trim_end().ends_with("unfinished"));
        bad(world.run(&["info", "m"]), 2, "/m is not in the store");
    };
    stop();
    world.good(&["pull", "m", "--quant", "q4"]);
    assert_eq!(world.listed().len(), 1);
    world.good(&["verify", "m"]);

    world.good(&["rm", "m"]);
    stop();
    fs::write(folder.join("generation_config.json"), "{}").unwrap();
    world.good(&["pull", "m", "--quant", "q4"]);
    assert_eq!(world.listed().len(), 1);
    assert!(!world.good(&["list"]).0.contains("unfinished"));
    world.good(&["rm", "m"]);

    // It is removed like any other, also if it is gone and its path looks like a name of the Hub.
    stop();
    fs::create_dir(world.root.join("org")).unwrap();
    world.good(&["rm", "m"]);
    let folder = world.copy("models/address-300k", "org/m");
    world.good(&["pull", "org/m", "--quant", "q4"]);
    fs::remove_dir_all(folder).unwrap();
    world.good(&["rm", "org/m"]);
    assert_eq!(fs::read_dir(world.home.path().join("models/local")).unwrap().count(), 0);
}
