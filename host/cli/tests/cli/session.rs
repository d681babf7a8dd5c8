//! Session files from outside: `--session`, `--load`, `--save` and `--json`.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use elapid_test_support::effort;
use elapid_test_support::process::{exit_code, send};

use super::{bad, elapid, good, json, model, small, utf8};

/// The path of a file in a folder.
fn file(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().into()
}

#[test]
fn a_text_goes_on_in_another_process() {
    let folder = tempfile::tempdir().unwrap();
    for numbers in [
        &["--state", "f32"][..],
        &["--state", "f16"],
        &["--path", "fixed"],
        &["--path", "fixed", "--state", "i32"],
    ] {
        let session = file(&folder, &format!("session{}", numbers.concat()));
        let run = |args: &[&str]| good(&[&["run", &small()], args, numbers].concat());
        let options = ["--seed", "5", "--repeat-penalty", "1.1"];
        let whole = run(&[&["My fellow", "-n", "30"], &options[..]].concat());
        let mut parts = run(&[&["My fellow", "-n", "9", "--session", &session], &options[..]].concat());
        parts += &run(&["-n", "1", "--session", &session]);
        // It may be read without being written to.
        let before = fs::read(&session).unwrap();
        let one = json(&run(&["-n", "1", "--load", &session, "--json"]));
        assert_eq!(fs::read(&session).unwrap(), before);
        assert_eq!((one["computed_tokens"].as_u64(), one["tokens"].as_u64()), (Some(1), Some(1)), "{one}");
        let rest = json(&run(&["-n", "20", "--session", &session, "--json", "-t", "1"]));
        parts += rest["text"].as_str().unwrap();
        assert_eq!(parts, whole);
        assert_eq!((rest["seed"].as_u64(), rest["end"].as_str()), (Some(5), Some("length")));
        let counts =
            ["prompt_tokens", "cached_tokens", "computed_tokens"].map(|name| rest[name].as_u64().unwrap());
        assert_eq!(counts[0], counts[1] + 1);
        assert_eq!(counts[2], 20);
        assert!(!run(&[" of the", "-n", "5", "--load", &session]).is_empty());
    }
}

#[test]
fn a_report_is_one_line() {
    let text = good(&["run", &small(), "My fellow", "-n", "12", "--seed", "1"]);
    let line = good(&["run", &small(), "My fellow", "-n", "12", "--seed", "1", "--json"]);
    assert_eq!(line.matches('\n').count(), 1);
    let report = json(&line);
    assert_eq!(report["text"].as_str(), Some(&*text));
    let library =
        elapid::Model::open(Path::new(&small()), &elapid::ModelOptions::default().threads(1)).unwrap();
    let prompt = library.encode("My fellow").unwrap().len() as u64;
    assert_eq!(report["prompt_tokens"].as_u64(), Some(prompt));
    let n = report["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        (report["cached_tokens"].as_u64(), report["computed_tokens"].as_u64()),
        (Some(0), Some(n + 11))
    );
    assert_eq!((report["tokens"].as_u64(), report["seed"].as_u64()), (Some(12), Some(1)));
}

#[test]
fn a_bad_session_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let session = file(&folder, "session");
    good(&["run", &small(), "My fellow", "-n", "3", "--session", &session]);
    let whole = fs::read(&session).unwrap();
    let run = |args: &[&str]| elapid(&[&["run"], args, &["--session", &session]].concat()).output().unwrap();
    bad(run(&[&model("address-4m.elp"), "My"]), 2, "another model file");
    bad(run(&[&small(), "My", "--path", "fixed"]), 2, "its state is kept in f32, this session's in i16");
    let mut damaged = whole.clone();
    damaged[5000] ^= 1;
    for (bytes, says) in [
        (damaged.as_slice(), "block 0 of the session file is damaged"),
        (&whole[..5000], "5000 bytes, but its header says"),
        (b"something else".as_slice(), "not a session file"),
    ] {
        fs::write(&session, bytes).unwrap();
        bad(run(&[&small(), "My"]), 1, says);
        assert_eq!(fs::read(&session).unwrap(), bytes);
    }
    fs::write(&session, &whole).unwrap();
    // Another program goes on from it.
    let held = fs::File::open(&session).unwrap();
    held.lock().unwrap();
    bad(run(&[&small(), "My"]), 2, "another program goes on from this session");
    drop(held);
    bad(
        elapid(&["run", &small(), "My", "--load", &file(&folder, "none")]).output().unwrap(),
        1,
        "none: cannot",
    );
    // A disk that is full while it is saved, and a folder that is not there.
    let limited = Command::new("sh")
        .args(["-c", "ulimit -f 20 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_elapid")])
        .args(["run", &small(), "-n", "2", "--session", &session])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(limited.status.code(), Some(1));
    let error = utf8(limited.stderr);
    assert!(
        error.starts_with("error: ") && error.contains("cannot write") && error.lines().count() == 1,
        "{error}"
    );
    assert_eq!(fs::read(&session).unwrap(), whole, "the old one stays");
    let none = elapid(&["run", &small(), "My", "-n", "2", "--save", &file(&folder, "none/session")]).output();
    assert!(utf8(none.unwrap().stderr).contains("cannot write"));
    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["session"], "nothing else is left");
}

/// A file system without room, where this machine lets a test make one.
#[test]
fn a_full_disk_leaves_the_old_session() {
    let folder = tempfile::tempdir().unwrap();
    let session = file(&folder, "session");
    good(&["run", &small(), "My fellow", "-n", "3", "--session", &session]);
    let script = r#"mount -t tmpfs -o size=96k none "$1" && cp "$2" "$1/s" && cmp "$1/s" "$2" || { echo no tmpfs; exit 0; }
"$3" run "$4" -n 2 --session "$1/s" >"$1/out" 2>&1; echo "code $?"; cat "$1/out"; cmp "$1/s" "$2" && echo same; ls -A "$1" | tr '\n' ' '"#;
    let mount = folder.path().join("full");
    fs::create_dir(&mount).unwrap();
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .arg(&mount)
        .args([&session, env!("CARGO_BIN_EXE_elapid"), &small()])
        .stdin(Stdio::null())
        .output();
    let said = output.map(|output| utf8(output.stdout)).unwrap_or_default();
    if said.is_empty() || said.contains("no tmpfs") {
        println!("skipped: this machine mounts no tmpfs for a test");
        return;
    }
    assert!(said.starts_with("code 1\n") && said.contains("No space left on device"), "{said}");
    assert!(said.contains("same\nout s "), "{said}");
}

/// Killed at any moment, there is the old session or the new one.
#[test]
fn a_kill_leaves_a_whole_session() {
    let folder = tempfile::tempdir().unwrap();
    kills(&folder, 0);
}

/// The same on a file system in memory that is full now and then: a text that can't be saved is an error.
#[test]
fn a_kill_on_a_full_disk_leaves_a_whole_session() {
    // As small as two sessions, in a namespace of its own: there, this program is run again.
    const INSIDE: &str = "ELAPID_FULL_DISK";
    if let Some(folder) = std::env::var_os(INSIDE) {
        return kills(&tempfile::tempdir_in(folder).unwrap(), 700 << 10);
    }
    let mount = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$1\" || { echo no tmpfs; exit 0; }; ELAPID_FULL_DISK=\"$1\" exec \"$2\" \
        --exact session::a_kill_on_a_full_disk_leaves_a_whole_session --nocapture";
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .args([mount.path(), &std::env::current_exe().unwrap()])
        .stdin(Stdio::null())
        .output();
    let said = output.as_ref().map(|output| utf8([&output.stdout[..], &output.stderr].concat()));
    let said = said.unwrap_or_default();
    if said.is_empty() || said.contains("no tmpfs") || said.contains("unshare") {
        println!("skipped: this machine mounts no tmpfs for a test");
        return;
    }
    print!("{said}");
    assert!(output.unwrap().status.success() && said.contains("1 passed"), "{said}");
}

/// Kills programs that save; every second one has a disk on which `filled` bytes are taken.
fn kills(folder: &tempfile::TempDir, filled: usize) {
    let kills = if effort::full() { 1000_u64 } else { 30 };
    let session = file(folder, "session");
    let model = model("address-4m.elp");
    good(&["run", &model, "My fellow", "-n", "2", "--seed", "1", "--session", &session]);
    let size = fs::metadata(&session).unwrap().len();
    assert!(
        filled == 0 || (200_000..330_000).contains(&size),
        "{size} bytes: another file fits beside the filler"
    );
    let library =
        elapid::Model::open(Path::new(&model), &elapid::ModelOptions::default().threads(1)).unwrap();
    let mut reader = library.session(&elapid::SessionOptions::default()).unwrap();
    reader.load(Path::new(&session)).unwrap();
    let (mut tokens, mut grown) = (reader.tokens().to_vec(), 0);
    let filler = folder.path().join("filler");
    for i in 0..kills {
        if filled > 0 {
            // Where it does not fit, the disk is as full.
            let _ = fs::write(&filler, vec![0; if i % 2 == 0 { filled } else { 0 }]);
        }
        let mut child = elapid(&["run", &model, "-n", "1", "-t", "1", "--session", &session])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(i * 7919 % 12_000));
        send("KILL", &child);
        child.wait().unwrap();
        reader.load(Path::new(&session)).expect("the file is whole");
        let now = reader.tokens();
        assert!(now == tokens || now.len() == tokens.len() + 1 && now.starts_with(&tokens), "old or new");
        grown += usize::from(now != tokens);
        tokens = now.to_vec();
    }
    println!("{kills} kills: {grown} after the new file was there");
    // What was left behind goes with the next save.
    let _ = fs::remove_file(&filler);
    good(&["run", &model, "-n", "1", "--session", &session]);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
}

#[test]
fn an_interrupted_text_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let session = file(&folder, "session");
    let args = ["run", &small(), "My fellow", "--seed", "2", "--temp", "0.7"];
    let mut child = elapid(&[&args[..], &["-n", "100000000", "--session", &session]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = vec![0; 200];
    out.read_exact(&mut text).unwrap();
    send("INT", &child);
    out.read_to_end(&mut text).unwrap();
    assert_eq!(exit_code(child.wait().unwrap()), 130);
    let text = utf8(text) + &good(&["run", &small(), "-n", "40", "--session", &session]);
    // As many tokens as the session has, but those of the prompt.
    let report = json(&good(&["run", &small(), "-n", "1", "--load", &session, "--json"]));
    let all = report["prompt_tokens"].as_u64().unwrap();
    let prompt =
        json(&good(&[&args[..], &["-n", "1", "--json"]].concat()))["prompt_tokens"].as_u64().unwrap();
    assert_eq!(text, good(&[&args[..], &["-n", &(all - prompt).to_string()]].concat()));
}
