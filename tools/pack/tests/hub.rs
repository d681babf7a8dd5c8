//! A model of the Hub arrives whole or not at all, whatever the network does: packed, it has the bytes that the same folder has.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use elapid_pack::hub::{Name, Settings, Source};
use elapid_pack::write::Partial;
use elapid_pack::{Options, PackError, Plan};
use elapid_test_support::data;
use elapid_test_support::hub::{COMMIT, Content, Fault, Hub, Request};

/// A model with tokenizer, chat template and weights of several chunks.
fn folder() -> PathBuf {
    data::path("models/address-300k")
}

fn size(name: &str) -> u64 {
    fs::metadata(folder().join(name)).unwrap().len()
}

fn options() -> Options {
    Options { threads: 4, ..Options::default() }
}

fn settings(hub: &Hub) -> Settings {
    Settings {
        endpoint: hub.endpoint.clone(),
        token: None,
        cache: None,
        offline: false,
        certificates: None,
        timeout: Duration::from_millis(300),
        pause: Duration::from_millis(2),
        cancelled: || false,
    }
}

fn pack(settings: Settings, name: &str, file: &Path) -> Result<(), PackError> {
    let checkpoint = Source::find(&Name::parse(name)?, settings)?.open()?;
    Plan::open(checkpoint, &options())?.write(file, &options(), &())?;
    Ok(())
}

/// The file's bytes, or the error; then there is no file.
fn packed(settings: Settings, name: &str) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.elp");
    let result = pack(settings, name, &file).map_err(|error| error.to_string());
    if let Err(error) = &result {
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{error}");
    }
    result.map(|()| fs::read(file).unwrap())
}

/// The bytes of the packed folder.
fn local() -> Vec<u8> {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("m.elp");
    Plan::checkpoint(&folder(), &options()).unwrap().write(&file, &options(), &()).unwrap();
    fs::read(file).unwrap()
}

const MODEL: &str = "hf:org/model";

/// A request for weights that is not the first of a file.
fn is_later(request: &Request) -> bool {
    request.storage && request.range.as_ref().is_some_and(|range| range.start > 0)
}

/// A request to an address that was given a while ago.
fn has_expired(request: &Request) -> bool {
    let signed = request.path.split_once("signature=").and_then(|(_, number)| number.parse::<usize>().ok());
    signed.is_some_and(|signed| request.number > signed + 12)
}

#[test]
fn a_model_of_the_hub_packs_as_its_folder_does() {
    let hub = Hub::of_folder(&folder());
    assert!(packed(settings(&hub), MODEL).unwrap() == local());
    // No byte comes twice but those of the final norm, and large files are asked of the Hub once.
    let sent = hub.sent("model.safetensors");
    let twice = sent.iter().map(|range| range.end - range.start).sum::<u64>() - size("model.safetensors");
    assert!(twice <= 4 * 48, "{twice}: {sent:?}");
    let asked = hub.requests().into_iter().filter(|r| !r.storage && r.path.ends_with("model.safetensors"));
    assert_eq!(asked.count(), 1);

    for name in [
        "hf:org/model@main",
        &format!("hf:org/model@{COMMIT}"),
        "hf:old/name",
        "hf:org/model/model.safetensors",
    ] {
        assert!(packed(settings(&hub), name).unwrap() == local(), "{name}");
    }
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let hub = Hub::of_folder(&folder());
    hub.gate("hf_secret");
    let error = packed(settings(&hub), MODEL).unwrap_err();
    let page = format!("{}/org/model", hub.endpoint);
    let says = format!(
        "a gated model: accept its licence at {page} with an account, and put a token of it into HF_TOKEN"
    );
    assert!(error.starts_with("hf:org/model/") && error.ends_with(&says), "{error}");
    let wrong = Settings { token: Some("hf_other".into()), ..settings(&hub) };
    assert!(packed(wrong, MODEL).unwrap_err().ends_with("the account of your token (HF_TOKEN)"));
    let right = Settings { token: Some("hf_secret".into()), ..settings(&hub) };
    assert!(packed(right, MODEL).unwrap() == local());
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.storage));
    assert!(requests.iter().all(|request| !request.storage || request.token.is_none()));
}

#[test]
fn what_is_not_there_is_said() {
    let hub = Hub::of_folder(&folder());
    for (name, says) in [
        ("hf:org/other", "no such model, or it is private or gated (401 Unauthorized): check the name"),
        ("hf:org/model@nowhere", "the model has no revision `nowhere`: see "),
        (
            "hf:org/model/x.gguf",
            "hf:org/model/x.gguf: the model has no such file; its weights are in model.safetensors",
        ),
        ("hf:org", "hf:org: not a model of the Hub: give hf:ORG/NAME"),
    ] {
        let error = packed(settings(&hub), name).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    hub.misbehave(|request| {
        request.path.ends_with("/model.safetensors").then(|| Fault::Status(404, Vec::new()))
    });
    let error = packed(settings(&hub), MODEL).unwrap_err();
    assert!(error.starts_with("hf:org/model/model.safetensors: 127.0.0.1 answered 404"), "{error}");
}

/// Faults that pass, each at the first request for a range: the model arrives.
#[test]
fn faults_that_pass_are_overcome() {
    let right = local();
    type Rule = fn(&Request) -> bool;
    let retry = vec![("Retry-After", "0".to_owned())];
    let cases: [(&str, Fault, Rule); 9] = [
        ("429", Fault::Status(429, retry), |_| true),
        ("503", Fault::Status(503, Vec::new()), |_| true),
        ("502 of the storage", Fault::Status(502, Vec::new()), |r| r.storage),
        ("an address that has expired", Fault::Status(403, Vec::new()), has_expired),
        ("cut at once", Fault::Cut(0), |_| true),
        ("cut", Fault::Cut(70_000), |r| r.storage),
        ("stalls", Fault::Stall(1001), |r| is_later(r) && r.range.as_ref().is_some_and(|r| r.start % 5 == 0)),
        ("a shorter body", Fault::Short, is_later),
        ("another range", Fault::OtherRange, is_later),
    ];
    for (what, fault, rule) in cases {
        let hub = Hub::of_folder(&folder());
        let seen = Mutex::new(HashSet::new());
        let asked = |r: &Request| (r.path.split('?').next().map(str::to_owned), r.range.clone());
        hub.misbehave(move |r| (rule(r) && seen.lock().unwrap().insert(asked(r))).then(|| fault.clone()));
        let got = packed(settings(&hub), MODEL);
        assert!(got.as_ref().is_ok_and(|bytes| *bytes == right), "{what}: {:?}", got.err());
    }
}

/// Faults that stay: an error, and no file.
#[test]
fn faults_that_stay_are_errors() {
    type Rule = fn(&Request) -> bool;
    let cases: [(Fault, Rule, &str); 11] = [
        (
            Fault::Status(429, vec![("Retry-After", "3600".into())]),
            |_| true,
            "answered 429 Too Many Requests: try again in 3600 seconds",
        ),
        (
            Fault::Status(429, vec![("Retry-After", "0".into())]),
            |r| r.storage,
            "429 Too Many Requests (6 times): try again later",
        ),
        (Fault::Status(500, Vec::new()), is_later, "500 Internal Server Error (6 times): try again later"),
        (Fault::Status(416, Vec::new()), is_later, "answered 416"),
        (Fault::Cut(10), is_later, "the connection to 127.0.0.1 was cut"),
        (
            Fault::Stall(10),
            |r| r.storage,
            "127.0.0.1 said nothing for 0.3 seconds (6 times): try again later",
        ),
        (Fault::Short, is_later, "another part of the file than it was asked for (6 times)"),
        (Fault::OtherRange, is_later, "another part of the file than it was asked for (6 times)"),
        (Fault::OtherSize, is_later, "the file changed while it was read"),
        (
            Fault::OtherEtag,
            is_later,
            "its ETag is another one: the file changed while it was read; start again",
        ),
        (Fault::Whole, is_later, "does not give the part of the file that it was asked for"),
    ];
    for (fault, rule, says) in cases {
        let hub = Hub::of_folder(&folder());
        let shown = format!("{fault:?}");
        hub.misbehave(move |request| rule(request).then(|| fault.clone()));
        let error = packed(settings(&hub), MODEL).err().unwrap_or_else(|| format!("{shown}: packed"));
        assert!(error.contains(says), "{shown}: {error}");
        assert!(error.starts_with("hf:org/model"), "{error}");
    }
}

#[test]
fn nobody_there_is_said() {
    let nowhere = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = format!("http://{}", nowhere.local_addr().unwrap());
    drop(nowhere);
    let hub = Hub::of_folder(&folder());
    let error = packed(Settings { endpoint: address, ..settings(&hub) }, MODEL).unwrap_err();
    assert!(error.starts_with("hf:org/model: no connection to 127.0.0.1"), "{error}");
}

/// Names that lead out of the model are no files of it.
#[test]
fn names_that_lead_elsewhere_are_not_asked_for() {
    let hub = Hub::of_folder(&folder());
    hub.put("../../secret.gguf", Content::Bytes(b"x".to_vec()));
    let error = packed(settings(&hub), "hf:org/model/x.gguf").unwrap_err();
    assert!(error.ends_with("its weights are in model.safetensors"), "{error}");
    let index = br#"{ "weight_map": { "backbone.embeddings.weight": "../../secret.safetensors" } }"#;
    let config = fs::read(folder().join("config.json")).unwrap();
    let hub = Hub::start([
        ("config.json".to_owned(), Content::Bytes(config)),
        ("model.safetensors.index.json".to_owned(), Content::Bytes(index.to_vec())),
    ]);
    let error = packed(settings(&hub), MODEL).unwrap_err();
    assert!(error.contains("`../../secret.safetensors`, which is not in the folder"), "{error}");
}

/// Small files are bounded, too.
#[test]
fn large_small_files_are_refused() {
    let hub = Hub::of_folder(&folder());
    hub.put("generation_config.json", Content::Made(1 << 40, Box::new(|_, bytes| bytes.fill(b' '))));
    let error = packed(settings(&hub), MODEL).unwrap_err();
    assert!(
        error.contains("generation_config.json: 1099511627776 bytes, but this kind of file may have"),
        "{error}"
    );
    hub.put("generation_config.json", Content::Bytes(Vec::new()));
    let error = packed(settings(&hub), MODEL).unwrap_err();
    assert!(error.contains("generation_config.json: invalid JSON"), "{error}");
}

/// What the Hub's own programs have fetched is not fetched again; without a network it is all there is.
#[test]
fn files_in_the_cache_are_used() {
    let hub = Hub::of_folder(&folder());
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--org--model");
    let snapshot = model.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::copy(folder().join("model.safetensors"), snapshot.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("../../blobs/gone", snapshot.join("config.json")).unwrap();
    let with_cache = || Settings { cache: Some(cache.path().to_owned()), ..settings(&hub) };
    assert!(packed(with_cache(), MODEL).unwrap() == local());
    assert!(hub.sent("model.safetensors").is_empty() && !hub.sent("config.json").is_empty());

    let offline = || Settings { offline: true, ..with_cache() };
    let error = packed(offline(), MODEL).unwrap_err();
    assert!(error.contains("not in the cache (") && error.contains("HF_HUB_OFFLINE forbids"), "{error}");
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    fs::remove_file(snapshot.join("config.json")).unwrap();
    for entry in fs::read_dir(folder()).unwrap().flatten() {
        fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    let before = hub.requests().len();
    assert!(packed(offline(), MODEL).unwrap() == local());
    assert!(packed(offline(), "hf:org/model/model.safetensors").unwrap() == local());
    assert_eq!(hub.requests().len(), before);
}

/// Split models and other formats come by the same way.
#[test]
fn gguf_files_come_by_ranges() {
    let file = data::path("gguf/falcon-even-q8_0.gguf");
    let bytes = fs::read(&file).unwrap();
    let hub = Hub::start([("quantized/m.gguf".to_owned(), Content::Bytes(bytes))]);
    let out = tempfile::tempdir().unwrap();
    let here = out.path().join("m.elp");
    Plan::checkpoint(&file, &options()).unwrap().write(&here, &options(), &()).unwrap();
    for name in ["hf:org/model/quantized/m.gguf", "hf:org/model/quantized"] {
        assert!(packed(settings(&hub), name).unwrap() == fs::read(&here).unwrap(), "{name}");
    }
}

/// Blocks of 16 KiB on one thread: many, in order.
fn small() -> Options {
    Options { block_bytes: 16 << 10, threads: 1, ..options() }
}

/// Packs to `m.elp` in a folder, or goes on with what is there.
fn resumed(settings: Settings, folder: &Path, options: &Options) -> Result<Vec<u8>, String> {
    let checkpoint = Source::find(&Name::parse(MODEL).unwrap(), settings).and_then(Source::open);
    let checkpoint = checkpoint.map_err(|error| error.to_string())?;
    let source = checkpoint.version();
    let (file, part) = (folder.join("m.elp"), folder.join("m.part"));
    let partial = Partial { path: &part, source: &source };
    let plan = Plan::open(checkpoint, options).unwrap();
    plan.resume(&file, partial, options, &()).map_err(|error| error.to_string())?;
    let names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["m.elp"]);
    Ok(fs::read(file).unwrap())
}

/// Begins to pack, and fails after some requests for weights. Returns the ranges that were sent but for the first of the file.
fn interrupted(hub: &Hub, folder: &Path) -> Vec<Range<u64>> {
    let before = hub.sent("model.safetensors").len();
    let asked = AtomicUsize::new(0);
    hub.misbehave(move |request| {
        let fails = is_later(request) && asked.fetch_add(1, Ordering::Relaxed) >= 20;
        fails.then(|| Fault::Status(500, Vec::new()))
    });
    let error = resumed(settings(hub), folder, &small()).unwrap_err();
    assert!(error.contains("500 Internal Server Error"), "{error}");
    assert!(!folder.join("m.elp").exists() && folder.join("m.part").exists());
    hub.behave();
    later(hub, before)
}

fn later(hub: &Hub, before: usize) -> Vec<Range<u64>> {
    let sent = hub.sent("model.safetensors").into_iter().skip(before);
    sent.filter(|range| range.start > 0).collect()
}

#[test]
fn an_interrupted_model_is_resumed() {
    let out = tempfile::tempdir().unwrap();
    let right = out.path().join("right.elp");
    Plan::checkpoint(&folder(), &small()).unwrap().write(&right, &small(), &()).unwrap();
    let right = fs::read(right).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let again = |hub: &Hub| resumed(settings(hub), folder.path(), &small()).unwrap();
    let reset = || fs::remove_file(folder.path().join("m.elp")).unwrap();

    // Nothing of finished blocks comes again: at most what the last request was for.
    let hub = Hub::of_folder(&self::folder());
    let first = interrupted(&hub, folder.path());
    let before = hub.sent("model.safetensors").len();
    assert!(again(&hub) == right);
    let second = later(&hub, before);
    let twice =
        |range: &&Range<u64>| second.iter().any(|other| other.start < range.end && range.start < other.end);
    let twice: Vec<_> = first.iter().filter(twice).collect();
    assert!(first.len() >= 19 && twice.len() <= 2, "{twice:?} of {first:?}");

    // A block that is not as it was written is fetched again.
    reset();
    interrupted(&hub, folder.path());
    let part = folder.path().join("m.part");
    let mut bytes = fs::read(&part).unwrap();
    let damaged = bytes.iter().position(|byte| *byte != 0).unwrap();
    bytes[damaged] ^= 1;
    fs::write(&part, bytes).unwrap();
    assert!(again(&hub) == right);

    // A cut journal, or one of something else, is no harm.
    type Change = fn(&mut Vec<u8>);
    let changes: [Change; 4] = [
        |bytes| bytes.truncate(bytes.len() - 5),
        |bytes| bytes.truncate(3),
        |bytes| bytes[20] ^= 1,
        |bytes| bytes.fill(255),
    ];
    for change in changes {
        reset();
        interrupted(&hub, folder.path());
        let journal = folder.path().join("m.part.journal");
        let mut bytes = fs::read(&journal).unwrap();
        change(&mut bytes);
        fs::write(&journal, bytes).unwrap();
        assert!(again(&hub) == right);
    }

    // Another file under the same name: nothing is kept.
    reset();
    interrupted(&hub, folder.path());
    let mut weights = fs::read(self::folder().join("model.safetensors")).unwrap();
    let last = weights.len() - 4;
    weights[last] ^= 1;
    hub.put("model.safetensors", Content::Bytes(weights));
    let before = hub.sent("model.safetensors").len();
    again(&hub);
    let bytes: u64 =
        hub.sent("model.safetensors")[before..].iter().map(|range| range.end - range.start).sum();
    assert!(bytes >= size("model.safetensors"));
}

/// What can never be packed leaves nothing.
#[test]
fn a_damaged_model_leaves_nothing() {
    let hub = Hub::of_folder(&folder());
    let mut weights = fs::read(folder().join("model.safetensors")).unwrap();
    let end = weights.len() - 4;
    weights[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    hub.put("model.safetensors", Content::Bytes(weights));
    let folder = tempfile::tempdir().unwrap();
    let error = resumed(settings(&hub), folder.path(), &small()).unwrap_err();
    assert!(error.contains("holds NaN"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Two programs do not write the same file.
#[test]
fn an_unfinished_file_has_one_writer() {
    let hub = Hub::of_folder(&folder());
    let out = tempfile::tempdir().unwrap();
    let part = fs::File::create(out.path().join("m.part")).unwrap();
    part.lock().unwrap();
    let error = resumed(settings(&hub), out.path(), &small()).unwrap_err();
    assert!(
        error.ends_with("m.part: another program is writing this file: wait until it has ended"),
        "{error}"
    );
}

/// The original models have no tokenizer: theirs is fetched.
#[test]
fn an_original_model_gets_its_tokenizer() {
    let hub = Hub::of_folder(&data::path("original/zip"));
    let error = packed(settings(&hub), MODEL).unwrap_err();
    assert!(error.starts_with("hf:EleutherAI/gpt-neox-20b: no such model"), "{error}");
    // Its tokens are too many for this model, which shows that it was read, and from where.
    let tokenizer = fs::read(folder().join("tokenizer.json")).unwrap();
    hub.put("EleutherAI/gpt-neox-20b/tokenizer.json", Content::Bytes(tokenizer));
    let error = packed(settings(&hub), MODEL).unwrap_err();
    assert!(error.starts_with("hf:EleutherAI/gpt-neox-20b/tokenizer.json: "), "{error}");
    assert!(error.contains("it has ids up to 1023, but the model's embedding only 59 rows"), "{error}");
}
