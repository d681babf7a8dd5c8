//! Models of the Hub and the store, with a server that plays the Hub.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use elapid_test_support::data;
use elapid_test_support::hub::{COMMIT, Fault, Hub};
use elapid_test_support::process::send;
use tempfile::TempDir;

use super::{bad, elapid, json, utf8};

/// A Hub with a small model, and a home of its own for the program.
struct World {
    hub: Hub,
    home: TempDir,
}

impl World {
    fn new() -> Self {
        Self { hub: Hub::of_folder(&data::path("models/address-300k")), home: tempfile::tempdir().unwrap() }
    }

    fn elapid(&self, args: &[&str]) -> Command {
        let mut command = elapid(args);
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.home.path());
        command.env("ELAPID_HOME", self.home.path()).env("NO_PROXY", "127.0.0.1");
        command
    }

    /// What a command that succeeds writes to standard output and to standard error.
    #[track_caller]
    fn good(&self, args: &[&str]) -> (String, String) {
        let output = self.elapid(args).output().unwrap();
        let (out, errors) = (utf8(output.stdout), utf8(output.stderr));
        assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
        (out, errors)
    }

    fn listed(&self) -> Vec<serde_json::Value> {
        self.good(&["list", "--json"]).0.lines().map(json).collect()
    }
}

const MODEL: &str = "hf:org/model";

#[test]
fn a_model_is_pulled_listed_run_and_removed() {
    let world = World::new();
    assert_eq!(world.good(&["list"]), (String::new(), String::new()));
    bad(
        world.elapid(&["info", MODEL]).output().unwrap(),
        2,
        "hf:org/model is not in the store: `elapid pull hf:org/model` packs it",
    );

    let (out, said) = world.good(&["pull", MODEL, "--quant", "q4"]);
    assert!(out.is_empty() && said.starts_with("hf:org/model is in the store as q4 ("), "{said}");
    let listed = world.listed();
    let line = &listed[0];
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&line["name"], &line["quant"], &line["revision"]),
        (&json("\"hf:org/model\""), &json("\"q4\""), &json(&format!("\"{COMMIT}\"")))
    );
    let path = line["path"].as_str().unwrap();
    assert_eq!(line["bytes"].as_u64().unwrap(), fs::metadata(path).unwrap().len());
    let (table, _) = world.good(&["list"]);
    assert!(
        table.starts_with("name ") && table.contains("\nhf:org/model  q4 ") && table.contains(&COMMIT[..12]),
        "{table}"
    );

    // The store is enough: the Hub is not asked again.
    let asked = world.hub.requests().len();
    let run = ["run", MODEL, "My fellow", "-n", "8", "--seed", "1"];
    let (text, _) = world.good(&run);
    assert_eq!(text, world.good(&["run", path, "My fellow", "-n", "8", "--seed", "1"]).0);
    for command in ["info", "verify", "board"] {
        world.good(&[command, MODEL]);
    }
    assert!(world.good(&["tokenize", MODEL, "My fellow"]).0.starts_with('['));
    assert_eq!(world.hub.requests().len(), asked);
    let (_, said) = world.good(&["pull", MODEL, "--quant", "q4"]);
    assert_eq!(said, "hf:org/model is in the store as q4\n");

    // Another type beside it; then a newer commit beside both.
    let (_, said) = world.good(&["run", MODEL, "My", "-n", "1", "--quant", "q8"]);
    assert!(said.starts_with("hf:org/model is in the store as q8 ("), "{said}");
    assert_eq!(world.listed().len(), 2);
    let newer = "f".repeat(40);
    world.hub.move_to(&newer);
    world.good(&["pull", MODEL, "--quant", "q4"]);
    assert_eq!(world.listed().len(), 3);
    let (_, said) = world.good(&["rm", &format!("{MODEL}@{COMMIT}")]);
    assert!(
        said.starts_with(&format!("removed hf:org/model@{COMMIT} (q4, q8): "))
            && said.ends_with(" MB are free\n"),
        "{said}"
    );
    assert_eq!(world.listed()[0]["revision"].as_str().unwrap(), newer);
    world.good(&["rm", MODEL]);
    assert_eq!(world.listed().len(), 0);
    assert_eq!(fs::read_dir(world.home.path().join("models/hf")).unwrap().count(), 0);
    bad(world.elapid(&["rm", MODEL]).output().unwrap(), 2, "hf:org/model is not in the store");
}

#[test]
fn without_a_type_the_finest_that_fits_is_packed() {
    let world = World::new();
    let (_, said) = world.good(&["pull", MODEL, "--ram", "40M"]);
    assert!(
        said.starts_with("hf:org/model: packed as f32, the finest type with which it fits the memory ("),
        "{said}"
    );
    let (_, said) = world.good(&["pull", MODEL, "--ram", "1M"]);
    assert!(
        said.starts_with(
            "hf:org/model: packed as q4: it fits the memory (1 MiB) with no type and is streamed"
        ),
        "{said}"
    );
    assert_eq!(said.lines().count(), 2, "{said}");
    let quants: Vec<_> =
        world.listed().iter().map(|line| line["quant"].as_str().unwrap().to_owned()).collect();
    assert_eq!(quants, ["q4", "f32"]);
}

#[test]
fn what_is_no_model_is_said() {
    let world = World::new();
    bad(world.elapid(&["run", "hf:org/none", "x"]).output().unwrap(), 1, "hf:org/none: no such model");
    bad(world.elapid(&["run", "hf:org/../x", "x"]).output().unwrap(), 1, "not the name of a");
    bad(
        world.elapid(&["pull", "hf:../../etc"]).output().unwrap(),
        2,
        "`..` is not the organization of a model",
    );
    bad(world.elapid(&["rm", "hf:a/b/../../c"]).output().unwrap(), 2, "not the name of a file of a model");
    assert!(!world.home.path().join("models").exists());
}

#[test]
fn an_interrupted_pull_goes_on() {
    let world = World::new();
    world.hub.misbehave(|request| {
        let later = request.storage && request.range.as_ref().is_some_and(|range| range.start > 600_000);
        later.then_some(Fault::Stall(0))
    });
    let mut command = world.elapid(&["pull", MODEL, "--quant", "f32"]);
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let unfinished = || {
        world
            .listed()
            .first()
            .is_some_and(|line| line["complete"] == false && line["bytes"].as_u64() > Some(0))
    };
    for _ in 0..500 {
        let stalls = world
            .hub
            .requests()
            .iter()
            .any(|r| r.storage && r.range.as_ref().is_some_and(|range| range.start > 600_000));
        if stalls && unfinished() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    send("INT", &child);
    thread::sleep(Duration::from_millis(20));
    // The first signal waits for blocks that are being read, which stall here; the second does not.
    send("INT", &child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", utf8(output.stderr));
    assert!(unfinished());
    let (table, _) = world.good(&["list"]);
    assert!(table.contains("unfinished"), "{table}");
    // It is no model yet.
    bad(world.elapid(&["info", MODEL]).output().unwrap(), 2, "is not in the store");

    world.hub.behave();
    world.good(&["pull", MODEL, "--quant", "f32"]);
    let listed = world.listed();
    assert_eq!((listed.len(), &listed[0]["complete"]), (1, &json("true")));
    world.good(&["verify", MODEL]);
}
