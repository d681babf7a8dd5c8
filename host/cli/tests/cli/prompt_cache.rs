//! `--prompt-cache`: prompts that are remembered from one process to the next.

use std::fs;
use std::process::Stdio;

use super::{bad, elapid, good, json, small, utf8};

/// Counts of a report: tokens of the prompt, those that were known, and those that were computed.
fn counts(report: &serde_json::Value) -> [u64; 3] {
    ["prompt_tokens", "cached_tokens", "computed_tokens"].map(|name| report[name].as_u64().unwrap())
}

#[test]
fn a_prompt_is_fed_once() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("prompts").to_str().unwrap().to_owned();
    let begin = "My fellow citizens of the Senate and of the House of Representatives:";
    for numbers in [&["--state", "f32"][..], &["--path", "fixed"]] {
        let run = |prompt: &str, more: &[&str]| {
            let args = ["run", &small(), prompt, "-n", "20", "--seed", "3", "--repeat-penalty", "1.3"];
            good(&[&args[..], numbers, more].concat())
        };
        let cached = |prompt: &str| json(&run(prompt, &["--prompt-cache", &cache, "--json"]));
        let first = cached(begin);
        let [prompt, known, computed] = counts(&first);
        assert_eq!((known, computed), (0, prompt + 19));
        let again = cached(begin);
        assert_eq!(counts(&again), [prompt, prompt, 19], "an equal prompt feeds nothing");
        let text = run(begin, &[]);
        assert_eq!((first["text"].as_str(), again["text"].as_str()), (Some(&*text), Some(&*text)));
        let longer = format!("{begin} the state of the Union is strong");
        let [more, known, computed] = counts(&cached(&longer));
        assert!(known == prompt && more > prompt, "{known} of {prompt}");
        assert_eq!(computed, more - known + 19);
        assert_eq!(cached(&longer)["text"].as_str(), Some(&*run(&longer, &[])));
    }
    // A session that is begun takes from it, one that is continued does not need it.
    let session = folder.path().join("session").to_str().unwrap().to_owned();
    let run = |prompt: &str| {
        let args = ["run", &small(), prompt, "-n", "5", "--json", "--session", &session];
        json(&good(&[&args[..], &["--prompt-cache", &cache]].concat()))
    };
    let [prompt, known, computed] = counts(&run(begin));
    assert_eq!((known, computed), (prompt, 4));
    let [_, known, computed] = counts(&run(" and"));
    assert_eq!(known, prompt + 4);
    assert!(computed < 10);
}

#[test]
fn a_chat_begins_where_another_was() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let talk = |lines: &str| {
        let mut child =
            elapid(&["chat", &small(), "-n", "6", "--seed", "1", "--json", "--prompt-cache", cache])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines.as_bytes()).unwrap();
        let out = utf8(child.wait_with_output().unwrap().stdout);
        out.lines().map(json).filter(|line| line["text"].is_string()).collect::<Vec<_>>()
    };
    let lines = "\"My fellow citizens\"\n\"And then?\"\n";
    let (first, again) = (talk(lines), talk(lines));
    assert_eq!((first.len(), again.len()), (2, 2));
    for (first, again) in first.iter().zip(&again) {
        assert_eq!(first["text"], again["text"]);
        let [prompt, known, _] = counts(again);
        assert_eq!(known, prompt, "{again}");
        assert!(counts(first)[1] < prompt);
    }
}

#[test]
fn what_is_wrong_with_a_cache_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("prompts").to_str().unwrap().to_owned();
    let run = |more: &[&str]| {
        let args = ["run", &small(), "My fellow citizens", "-n", "3", "--seed", "1"];
        elapid(&[&args[..], more].concat()).output().unwrap()
    };
    let text = utf8(run(&[]).stdout);
    let cached = ["--prompt-cache", &cache];
    assert_eq!(utf8(run(&cached).stdout), text);
    let mut files = fs::read_dir(&cache).unwrap().flatten().map(|entry| entry.path());
    let file = files.find(|path| path.extension().is_some()).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[9000] ^= 1;
    fs::write(&file, bytes).unwrap();
    let output = run(&cached);
    assert_eq!((output.status.code(), utf8(output.stdout)), (Some(0), text.clone()));
    let warning = utf8(output.stderr);
    assert!(
        warning.starts_with("warning: the prompt cache works without this file: ")
            && warning.contains("is damaged")
            && warning.lines().count() == 1,
        "{warning}"
    );
    assert_eq!(utf8(run(&cached).stderr), "");
    // A budget without room for anything, and a file in place of the folder.
    let output = run(&["--prompt-cache", &cache, "--prompt-cache-size", "10K"]);
    assert_eq!((utf8(output.stdout), utf8(output.stderr)), (text, String::new()));
    assert!(fs::read_dir(&cache).unwrap().flatten().all(|entry| entry.path().extension().is_none()));
    bad(run(&["--prompt-cache", &small()]), 1, "cannot make");
    bad(run(&["--prompt-cache-size", "1G"]), 2, "--prompt-cache <DIR>");
}

/// Programs that use a folder at the same time, some of them killed: what they say is what they say without it.
#[test]
fn programs_share_a_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let prompts: Vec<String> = (0..4).map(|i| format!("My fellow citizens, number {}", i * 7)).collect();
    let start = |prompt: &str, cached: bool| {
        let more: &[&str] = if cached { &["--prompt-cache", cache] } else { &[] };
        let args = ["run", &small(), prompt, "-n", "3", "--seed", "1", "-t", "1"];
        elapid(&[&args[..], more].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let text = |child: std::process::Child| {
        let output = child.wait_with_output().unwrap();
        assert_eq!(utf8(output.stderr), "");
        utf8(output.stdout)
    };
    let expected: Vec<String> = prompts.iter().map(|prompt| text(start(prompt, false))).collect();
    for round in 0..3 {
        let mut killed = start(&prompts[round], true);
        std::thread::sleep(std::time::Duration::from_millis(5 * round as u64));
        killed.kill().unwrap();
        let children: Vec<_> = prompts.iter().map(|prompt| start(prompt, true)).collect();
        let said: Vec<String> = children.into_iter().map(text).collect();
        assert_eq!(said, expected);
        killed.wait().unwrap();
    }
}
