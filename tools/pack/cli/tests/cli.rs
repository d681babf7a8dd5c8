//! The program from outside: what it refuses, and what it tells.

use std::path::Path;
use std::process::{Command, Output};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

#[path = "../../src/checkpoint/fixture.rs"]
#[expect(dead_code, reason = "the unit tests use all of it")]
mod fixture;

fn pack(args: &[&str], folder: &Path) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_elapid-pack");
    let output = Command::new(program).args(args).current_dir(folder).env("COLUMNS", "120").output().unwrap();
    let Output { status, stderr, .. } = output;
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn an_option_that_would_do_nothing_is_refused() {
    let folder = fixture::Fixture::new("mamba").write();
    let refused = |args: &[&str], says: &str| {
        let (code, errors) = pack(args, folder.path());
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(says), "{errors}");
        assert!(!folder.path().join("m.elp").exists());
    };
    refused(&[".", "-o", "m.elp", "--seed", "7"], "--seed goes with --random");
    refused(&[".", "-o", "m.elp", "--seed", "0"], "--seed goes with --random");
    refused(&[".", "-o", "m.elp", "--calibrate-tokens", "7"], "--calibrate-tokens goes with --calibrate");
    let random = ["--random", "config.json", "-o", "m.elp", "--calibrate-tokens", "7"];
    refused(&random, "--calibrate-tokens goes with --calibrate");
    let (code, errors) = pack(&["--random", "config.json", "-o", "m.elp", "--seed", "7"], folder.path());
    assert_eq!(code, Some(0), "{errors}");
}

#[test]
fn notes_are_lines_of_their_own() {
    let rows = 261;
    let folder = fixture::Fixture::with_embedding(rows, 8, Dtype::F32, vec![0; rows * 8 * 4]).write();
    let (code, errors) = pack(&[".", "-o", "m.elp"], folder.path());
    assert_eq!(code, Some(0), "{errors}");
    let lines: Vec<&str> = errors.lines().collect();
    assert!(
        lines[0].starts_with("note: no tokenizer.json here: ") && lines[1].starts_with("wrote "),
        "{errors}"
    );
    // What one would otherwise find out on the device.
    assert_eq!(
        lines[2..],
        [
            "tokenizer: none; end tokens: 1; chat template: none",
            "matrices: q8 (x_proj and dt_proj q8, embedding and head q8)",
            "memory: runs with --ram 8M",
        ],
        "{errors}"
    );

    let data: Value = serde_json::from_str(include_str!("../../tests/data/autotokenizer.json")).unwrap();
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]" });
    for (name, value) in [("tokenizer.json", &data["base"]), ("tokenizer_config.json", &config)] {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    let (code, errors) = pack(&[".", "-o", "m.elp"], folder.path());
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.starts_with("note: the tokenizer has id 261 (\"[PAD]\") beyond the 261 rows"), "{errors}");
}

/// Without --quant a GGUF file's weights stay as they are, with it they don't.
#[test]
fn the_type_of_a_gguf_file_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = elapid_test_support::data::path("gguf/falcon-even-q8_0.gguf");
    std::fs::copy(&file, folder.path().join("m.gguf")).unwrap();
    let kept = "note: packed as q8, which keeps the file's weights as they are\n";
    let (code, said) = pack(&["m.gguf", "-o", "m.elp"], folder.path());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(kept) && said.contains("the packed file has no tokenizer"), "{said}");
    let (code, said) = pack(&["m.gguf", "-o", "m.elp", "--quant", "q4"], folder.path());
    assert!(code == Some(0) && !said.contains(kept), "{said}");
    for output in ["m.gguf", "./m.gguf"] {
        let (code, said) = pack(&["m.gguf", "-o", output], folder.path());
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("-o would replace the checkpoint"), "{said}");
    }
    assert!(std::fs::read(folder.path().join("m.gguf")).unwrap().starts_with(b"GGUF"));
}

/// A tokenizer from elsewhere: a file, or a folder with what belongs to it. Without one a line says so.
#[test]
fn a_tokenizer_can_be_given() {
    let folder = tempfile::tempdir().unwrap();
    let source = elapid_test_support::data::path("original/zip");
    let source = source.to_str().unwrap();
    let (code, said) = pack(&[source, "-o", "m.elp"], folder.path());
    assert_eq!(code, Some(0), "{said}");
    let note = "note: no tokenizer.json here: the packed file has no tokenizer, and takes and gives token ids only; the original Mamba \
                models have that of EleutherAI/gpt-neox-20b; give one with --tokenizer FILE\n";
    assert!(said.contains(note), "{said}");
    let plain = std::fs::read(folder.path().join("m.elp")).unwrap();

    let given = elapid_test_support::data::path("models/address-300k");
    let file = given.join("tokenizer.json");
    for tokenizer in [&given, &file] {
        // Its tokens are too many for this model, which shows that it was read, and from where.
        let (code, said) =
            pack(&[source, "-o", "n.elp", "--tokenizer", tokenizer.to_str().unwrap()], folder.path());
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains(file.to_str().unwrap()) && said.contains("it is of another model"), "{said}");
    }
    let model = given.to_str().unwrap();
    let of = |args: &[&str]| {
        let (code, said) = pack(&[&["-o", "n.elp"], args].concat(), folder.path());
        assert_eq!(code, Some(0), "{said}");
        std::fs::read(folder.path().join("n.elp")).unwrap()
    };
    let own = of(&[model]);
    assert!(
        own == of(&[model, "--tokenizer", model])
            && own == of(&[model, "--tokenizer", file.to_str().unwrap()])
    );
    assert!(plain.len() < own.len());

    let (code, said) = pack(&[source, "-o", "n.elp", "--tokenizer", "."], folder.path());
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("no tokenizer.json here: give a folder with one"), "{said}");
    let (code, said) = pack(&[source, "-o", "n.elp", "--tokenizer", "none"], folder.path());
    assert!(code == Some(1) && said.contains("none: No such file"), "{said}");
    std::fs::copy(&file, folder.path().join("t.json")).unwrap();
    let (code, said) = pack(&[source, "-o", "t.json", "--tokenizer", "t.json"], folder.path());
    assert!(code == Some(2) && said.contains("-o would replace the tokenizer"), "{said}");
}

fn inspect(args: &[&str], folder: &Path) -> (Option<i32>, String, String) {
    let program = env!("CARGO_BIN_EXE_elapid-pack");
    let output = Command::new(program).arg("inspect").args(args).current_dir(folder).output().unwrap();
    let Output { status, stdout, stderr } = output;
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_checkpoint_is_inspected() {
    let folder = tempfile::tempdir().unwrap();
    let source = elapid_test_support::data::path("models/address-300k");
    let source = source.to_str().unwrap();
    let (code, out, errors) = inspect(&[source], folder.path());
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    for line in [
        "architecture   mamba\n",
        "layers         4 of d_model 96, d_inner 192\n",
        "tensors        42 BF16",
        "\nq8 * ",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    let json = |args: &[&str]| {
        let (code, out, errors) = inspect(&[&["--json", source], args].concat(), folder.path());
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{args:?}");
        assert_eq!(out.lines().count(), 1);
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let found = json(&[]);
    assert_eq!((&found["architecture"], &found["config"]["n_layer"]), (&json!("mamba"), &json!(4)));
    assert_eq!((&found["tokenizer"]["tokens"], &found["eos"][0]["id"]), (&json!(1024), &json!(0)));
    assert_eq!((&found["chat_template"], &found["problems"]), (&json!(false), &json!([])));
    let default = found["packed"].as_array().unwrap().iter().find(|row| row["is_default"] == true).unwrap();
    assert_eq!((&default["quant"], &default["head"]), (&json!("q8"), &json!("q8")));
    let (code, said) = pack(&[source, "-o", "m.elp"], folder.path());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(default["file_bytes"], std::fs::metadata(folder.path().join("m.elp")).unwrap().len());
    let least = default["least_ram_bytes"].as_u64().unwrap() >> 20;
    assert!(said.contains(&format!("memory: runs with --ram {least}M")), "{said}");
    // As small as a packing with these options makes it.
    let small = json(&["--compact", "--head", "q4"]);
    let of = |found: &Value, quant: &str| {
        let rows = found["packed"].as_array().unwrap();
        rows.iter().find(|row| row["quant"] == quant).unwrap()["file_bytes"].as_u64().unwrap()
    };
    let (code, _) =
        pack(&[source, "-o", "m.elp", "--compact", "--head", "q4", "--quant", "q5"], folder.path());
    assert_eq!(
        (code, of(&small, "q5")),
        (Some(0), std::fs::metadata(folder.path().join("m.elp")).unwrap().len())
    );
}

#[test]
fn boards_are_estimated() {
    let folder = tempfile::tempdir().unwrap();
    let source = elapid_test_support::data::path("models/address-4m");
    let source = source.to_str().unwrap();
    let rows = |args: &[&str]| {
        let (code, out, errors) = inspect(&[&["--json", source], args].concat(), folder.path());
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{args:?}");
        let found: Value = serde_json::from_str(&out).unwrap();
        (found["board"].clone(), found["packed"].as_array().unwrap().clone())
    };
    for name in ["pi-zero2", "pi3", "pi4", "pi5"] {
        let (board, rows) = rows(&["--board", name]);
        assert_eq!(board, name);
        let speeds: Vec<f64> = rows.iter().map(|row| row["tokens_per_second"].as_f64().unwrap()).collect();
        // Finest first, and all fit in memory.
        assert!(speeds.is_sorted() && speeds[0] > 10.0, "{speeds:?}");
        assert!(rows.iter().all(|row| row["limited_by"] == "memory" && row["streamed_bytes_per_token"] == 0));
    }
    let (_, streamed) = rows(&["--board", "pi-zero2", "--ram", "13M"]);
    assert_eq!((&streamed[0]["quant"], &streamed[0]["limited_by"]), (&json!("f32"), &json!("card")));
    let (bytes, speed) = (&streamed[0]["streamed_bytes_per_token"], &streamed[0]["tokens_per_second"]);
    let expected = 23e6 / bytes.as_f64().unwrap();
    assert!((speed.as_f64().unwrap() / expected - 1.0).abs() < 1e-9, "{speed} {expected}");
    let (_, none) = rows(&["--board", "pi-zero2", "--ram", "2M"]);
    assert_eq!(
        (&none[0]["tokens_per_second"], &none[0]["limited_by"]),
        (&Value::Null, &json!("too little memory"))
    );
    let (board, small) = rows(&["--board", "mps2-an500"]);
    assert_eq!((board, &small[2]["fit"]["fits"]), (json!("mps2-an500"), &json!(true)));
    let (_, out, _) = inspect(&[source, "--board", "pi-zero2"], folder.path());
    assert!(out.contains("Raspberry Pi Zero 2 W with 384 MiB") && out.contains("not measured"), "{out}");
    let (code, _, errors) = inspect(&[source, "--board", "pdp-11"], folder.path());
    assert!(code == Some(2) && errors.contains("pi-zero2, pi3, pi4, pi5, mps2-an500"), "{errors}");
    let (code, _, errors) = inspect(&[source, "--ram", "1G"], folder.path());
    assert!(code == Some(2) && errors.contains("--board"), "{errors}");
}

#[test]
fn what_will_be_refused_is_inspected_too() {
    let mut fixture = fixture::Fixture::new("mamba");
    fixture.config["hidden_act"] = json!("gelu");
    fixture.config["state_size"] = json!(5);
    let folder = fixture.write();
    let (code, out, errors) = inspect(&["."], folder.path());
    assert_eq!((code, errors.as_str()), (Some(3), "error: this can't be packed, for the reasons above\n"));
    let refused: Vec<&str> = out.lines().filter(|line| line.starts_with("refused ")).collect();
    assert_eq!(refused.len(), 4, "{out}");
    assert!(refused[0].contains("hidden_act") && refused[3].contains("and 1 more of this kind"), "{out}");
    assert!(!out.contains("file, bytes"));
    let (code, out, _) = inspect(&[".", "--json"], folder.path());
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &found["packed"]), (Some(3), &json!([])));
    assert_eq!(found["problems"].as_array().unwrap().len(), 4);
    let (code, out, errors) = inspect(&["nowhere"], folder.path());
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.starts_with("error: nowhere: No such file"), "{errors}");
}

/// Whatever can't be read or written is named, with what to do.
#[test]
fn what_the_system_refuses_is_explained() {
    let folder = fixture::Fixture::new("mamba").write();
    let long = "x".repeat(300);
    let (long_source, long_output) = (format!("{long}/m"), format!("{long}.elp"));
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("circle", folder.path().join("circle")).unwrap();
    for (args, says) in [
        (&["nowhere", "-o", "m.elp"][..], "nowhere: No such file or directory (os error 2): check the path"),
        (&["config.json/x", "-o", "m.elp"], "config.json/x: Not a directory (os error 20): check the path"),
        (&[&long_source, "-o", "m.elp"], "File name too long (os error 36): give a shorter path"),
        (&["circle", "-o", "m.elp"], "(os error 40): its links lead in a circle"),
        (&[".", "-o", "nowhere/m.elp"], "nowhere/m.elp: No such file or directory (os error 2)"),
        (
            &[".", "-o", "config.json/m.elp"],
            "config.json/m.elp: Not a directory (os error 20): check the path",
        ),
        (&[".", "-o", elsewhere.path().to_str().unwrap()], ": is a directory: give a file, not a folder"),
        (&[".", "-o", &long_output], "File name too long (os error 36): give a shorter path"),
        (&[".", "-o", "/dev/full"], "/dev/full: No space left on device (os error 28): free some space"),
        (
            &[".", "-o", "m.elp", "--tokenizer", "nowhere"],
            "nowhere: No such file or directory (os error 2): check",
        ),
        (&["--random", "nowhere.json", "-o", "m.elp"], "nowhere.json: "),
    ] {
        let (code, said) = pack(args, folder.path());
        let error = said.lines().last().unwrap();
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(error.starts_with("error: ") && error.contains(says), "{args:?}: {said}");
        assert!(error.matches(": ").count() >= 3, "no advice: {said}");
    }
    let (program, out) = (env!("CARGO_BIN_EXE_elapid-pack"), std::fs::File::create("/dev/full").unwrap());
    let output = Command::new(program).arg("inspect").arg(folder.path()).stdout(out).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "error: standard output: No space left on device (os error 28): free some space\n");
}

/// A model of the Hub, from a server that plays it.
#[test]
fn a_model_of_the_hub_is_packed() {
    let model = elapid_test_support::data::path("models/address-300k");
    let hub = elapid_test_support::hub::Hub::of_folder(&model);
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = pack(&[model.to_str().unwrap(), "-o", "here.elp"], folder.path());
    assert_eq!(code, Some(0), "{said}");
    let from_hub = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elapid-pack"));
        command
            .args(args)
            .current_dir(folder.path())
            .env("HF_ENDPOINT", &hub.endpoint)
            .env("HF_HOME", folder.path());
        command.env("NO_PROXY", "127.0.0.1");
        let Output { status, stderr, .. } = command.output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    let (code, said) = from_hub(&["hf:org/model@main", "-o", "hub.elp"]);
    assert_eq!(code, Some(0), "{said}");
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(read("here.elp") == read("hub.elp"));
    for (name, says) in
        [("hf:org", "not a model of the Hub: give hf:ORG/NAME"), ("hf:org/none", "no such model")]
    {
        let (code, said) = from_hub(&[name, "-o", "none.elp"]);
        assert!(code == Some(1) && said.contains(says) && said.matches('\n').count() == 1, "{said}");
    }
    assert!(!folder.path().join("none.elp").exists());

    // The tokenizer that an original model gets is inspected, too: this one has too many tokens.
    let hub = elapid_test_support::hub::Hub::of_folder(&elapid_test_support::data::path("original/zip"));
    let tokenizer = std::fs::read(model.join("tokenizer.json")).unwrap();
    let tokenizer = elapid_test_support::hub::Content::Bytes(tokenizer);
    hub.put("EleutherAI/gpt-neox-20b/tokenizer.json", tokenizer);
    let mut command = Command::new(env!("CARGO_BIN_EXE_elapid-pack"));
    command.args(["inspect", "hf:org/model"]).env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", folder.path());
    let output = command.env("NO_PROXY", "127.0.0.1").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("refused        hf:EleutherAI/gpt-neox-20b/tokenizer.json: "), "{said}");
}
