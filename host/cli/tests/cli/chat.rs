//! `elapid chat`: what a conversation costs, its commands, and its terminal.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use elapid_test_support::data;

use super::{bad, elapid, json, small, utf8};

const TEMPLATE: &str = "{% if messages[0].role == 'user' and messages[0].content == 'refuse' %}\
     {{ raise_exception('This model does not\ntake that.') }}{% endif %}\
     {% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}\
     {% if add_generation_prompt %}[assistant]\n{% endif %}";

/// The small model with a chat template.
fn model() -> &'static str {
    static MODEL: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            let from = data::path(&format!("models/address-300k/{name}"));
            fs::copy(from, folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
        let options = elapid_pack::Options::default();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chat.elp");
        elapid_pack::Plan::checkpoint(folder.path(), &options).unwrap().write(&path, &options, &()).unwrap();
        path
    });
    MODEL.to_str().unwrap()
}

/// What a chat says to some lines of input.
fn talk(args: &[&str], lines: &[&str]) -> (Option<i32>, String, String) {
    let mut child = elapid(&[&["chat"], args].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), utf8(output.stdout), utf8(output.stderr))
}

/// The lines of JSON that a chat says.
fn answers(args: &[&str], lines: &[&str]) -> Vec<serde_json::Value> {
    let (code, out, errors) = talk(&[args, &["--json", "--seed", "4"]].concat(), lines);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{out}");
    out.lines().map(json).collect()
}

fn counts(answer: &serde_json::Value) -> [u64; 4] {
    ["prompt_tokens", "cached_tokens", "computed_tokens", "tokens"]
        .map(|name| answer[name].as_u64().unwrap_or_else(|| panic!("{answer}")))
}

#[test]
fn a_turn_reads_only_what_is_new() {
    let said = answers(
        &[model(), "-n", "30"],
        &["\"My fellow citizens\"", "{\"content\":\"And then?\"}", "\"More\""],
    );
    let [first, second, third] = [0, 1, 2].map(|i| counts(&said[i]));
    assert_eq!((first[1], first[2]), (0, first[0] + 29));
    for (before, turn) in [(first, second), (second, third)] {
        // All that was read and generated is known, but the last token that was chosen.
        assert_eq!(turn[1], before[0] + before[3] - 1);
        assert_eq!(turn[2], turn[0] - turn[1] + 29);
        assert!(turn[0] - turn[1] < 40, "{turn:?}");
    }
    // A template that is in the file, and one that is not.
    let (code, out, errors) = talk(&[&small(), "-n", "5", "--seed", "1"], &["My fellow"]);
    assert_eq!((code, out.lines().count()), (Some(0), 1));
    assert!(errors.contains("no chat template") && errors.lines().count() == 1, "{errors}");
}

#[test]
fn what_was_said_is_changed() {
    let lines = [
        "\"My fellow citizens\"",
        "\"And then?\"",
        "{\"command\":\"/retry\"}",
        "{\"command\":\"/edit What else?\"}",
        "{\"command\":\"/undo\"}",
        "{\"command\":\"/fork\"}",
        "\"Yes\"",
        "{\"command\":\"/fork 1\"}",
        "\"Yes\"",
        "{\"command\":\"/system Be short.\"}",
        "\"Go on\"",
        "{\"command\":\"/set temp 0\"}",
        "{\"command\":\"/set temp x\"}",
        "{\"command\":\"/stats\"}",
    ];
    let said = answers(&[model(), "-n", "12"], &lines);
    assert_eq!(said.len(), lines.len(), "{said:#?}");
    let (asked, again) = (counts(&said[1]), counts(&said[2]));
    assert_eq!(
        (again[0], again[1], again[2]),
        (asked[0], asked[0], 11),
        "a prompt that is known costs nothing"
    );
    assert_ne!(said[1]["text"], said[2]["text"], "another seed");
    let edited = counts(&said[3]);
    assert!(edited[0] - edited[1] < 30 && edited[1] > counts(&said[0])[0], "{edited:?}");
    assert_eq!(said[4]["note"], "2 messages left");
    assert_eq!(
        (counts(&said[6]), &said[6]["text"]),
        (counts(&said[8]), &said[8]["text"]),
        "the copy is as it was"
    );
    let system = counts(&said[10]);
    assert!(system[1] <= 2, "another beginning is read anew: {system:?}");
    assert!(said[11]["note"].as_str().unwrap().starts_with("temp 0, "));
    assert_eq!(said[12]["error"], "temp: give a number: 0 or more, and finite");
    assert!(said[13]["note"].as_str().unwrap().starts_with("7 messages, "), "{}", said[13]);
}

#[test]
fn stats_are_those_of_the_conversation() {
    let stats = "{\"command\":\"/stats\"}";
    let undo = "{\"command\":\"/undo\"}";
    let lines =
        [stats, "\"My fellow\"", stats, "\"And then?\"", stats, undo, stats, undo, stats, "\"Yes\"", stats];
    let said = answers(&[model(), "-n", "6"], &lines);
    let told: Vec<_> =
        said.iter().filter_map(|line| line["note"].as_str()).filter(|note| note.contains("MB")).collect();
    let [none, one, two, undone, nothing, again] = told[..] else { panic!("{said:#?}") };
    assert!(none.starts_with("0 messages, 0 tokens in a state of "), "{none}");
    assert!(two.starts_with("4 messages, ") && two.contains("; last answer: "), "{two}");
    // As it was before the second question, but that there was no answer since.
    assert_eq!(Some(undone), one.split_once("; last answer: ").map(|(before, _)| before));
    assert_eq!(nothing, none);
    assert!(again.starts_with("2 messages, ") && again.contains("; last answer: "), "{again}");
}

#[test]
fn a_conversation_goes_on_in_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk").to_str().unwrap().to_owned();
    let args = [model(), "-n", "20", "--session", &file];
    let first = counts(&answers(&args, &["\"My fellow citizens\""])[0]);
    let second = counts(&answers(&args, &["\"And then?\""])[0]);
    assert_eq!(second[1], first[0] + first[3] - 1, "nothing is read twice");
    let whole = answers(&[model(), "-n", "20"], &["\"My fellow citizens\"", "\"And then?\""]);
    assert_eq!(counts(&whole[1]), second);
    let save = format!("{{\"command\":\"/save {file}2\"}}");
    let load = format!("{{\"command\":\"/load {file}2\"}}");
    let said = answers(
        &[model(), "-n", "20"],
        &["\"My fellow citizens\"", &save, "\"And then?\"", &load, "\"And then?\""],
    );
    assert_eq!(counts(&said[2]), counts(&said[4]));
    assert_eq!(said[2]["text"], said[4]["text"], "the sampler goes on where it stood");
    let said =
        answers(&[model(), "-n", "20"], &["\"a\"", "{\"command\":\"/load /nowhere/at/all\"}", "\"b\""]);
    assert!(said[1]["error"].as_str().unwrap().contains("/nowhere/at/all: cannot"));
    assert_eq!(counts(&said[2])[1], counts(&said[0])[0] + 19, "what there was stays");
}

#[test]
fn a_template_that_refuses_says_why() {
    let said = answers(&[model(), "-n", "5"], &["\"refuse\"", "\"Hello\"", "{\"x\":1}"]);
    let error = said[0]["error"].as_str().unwrap();
    assert!(error.ends_with("chat.elp: This model does not take that."), "{error}");
    assert_eq!(counts(&said[1])[1], 0);
    assert!(said[2]["error"].as_str().unwrap().starts_with("give a JSON string"));
    let (code, out, error) = talk(&[model()], &["refuse"]);
    assert_eq!((code, out.as_str(), error.lines().count()), (Some(1), "", 1), "{error}");
    bad(elapid(&["chat", "/nowhere.elp"]).output().unwrap(), 1, "/nowhere.elp");
}

/// A terminal of tmux's.
struct Terminal(String);

impl Terminal {
    fn tmux(&self, args: &[&str]) -> String {
        let output =
            Command::new("tmux").args(["-L", &self.0, "-f", "/dev/null"]).args(args).output().unwrap();
        utf8(output.stdout)
    }

    fn type_keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "chat"], keys].concat());
    }

    /// Waits until the screen is as it should be.
    #[track_caller]
    fn wait(&self, what: &str, good: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.tmux(&["capture-pane", "-p", "-S", "-500", "-t", "chat"]);
            if good(&screen) {
                return screen;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{what}:\n{screen}");
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn a_terminal_edits_stops_and_leaves() {
    if Command::new("tmux").arg("-V").output().is_err() {
        println!("skipped: no tmux here");
        return;
    }
    let terminal = Terminal(format!("elapid-{}", std::process::id()));
    let command = format!(
        "trap : INT; NO_COLOR=1 {} chat {} -n 20 --seed 1; echo left $?; sleep 60",
        env!("CARGO_BIN_EXE_elapid"),
        model()
    );
    terminal.tmux(&["new-session", "-d", "-s", "chat", "-x", "80", "-y", "24", "sh", "-c", &command]);
    terminal.wait("a prompt", |screen| screen.contains("\n>"));
    // Editing: typed, changed within the line, and sent.
    terminal.type_keys(&["-l", "/set n 3x"]);
    terminal.type_keys(&["BSpace", "Enter"]);
    terminal.wait("an edited line", |screen| screen.contains("n 3\n"));
    // Lines that come all at once, as when they are typed ahead.
    terminal.type_keys(&["-l", "/set n 4\r/set n 5\r/set n 6\r"]);
    terminal.wait("typed ahead", |screen| ["n 4\n", "n 5\n", "n 6\n"].iter().all(|n| screen.contains(n)));
    // A line that goes on.
    terminal.type_keys(&["-l", "/system one\\"]);
    terminal.type_keys(&["Enter"]);
    terminal.type_keys(&["-l", "two"]);
    terminal.type_keys(&["Enter"]);
    terminal.wait("a line that goes on", |screen| screen.contains("system prompt set"));
    // Ctrl-C at the prompt leaves the line alone.
    terminal.type_keys(&["-l", "not this"]);
    terminal.type_keys(&["C-c"]);
    terminal.type_keys(&["-l", "/set n 100000000"]);
    terminal.type_keys(&["Enter"]);
    terminal.wait("a new line", |screen| screen.contains("n 100000000\n"));
    // Ctrl-C stops an answer, also the second one, and keeps it. The window changes its size meanwhile.
    for answers in [1, 2] {
        terminal.type_keys(&["-l", "My fellow citizens"]);
        terminal.type_keys(&["Enter"]);
        sleep(Duration::from_millis(300));
        terminal.tmux(&["resize-window", "-t", "chat", "-x", &(60 + 10 * answers).to_string(), "-y", "30"]);
        terminal.type_keys(&["C-c"]);
        terminal.wait("an answer that stops", |screen| {
            screen.matches("[stopped]").count() >= 1 && screen.trim_end().ends_with('>')
        });
        terminal.type_keys(&["-l", "/stats"]);
        terminal.type_keys(&["Enter"]);
        let messages = format!("{} messages, ", 1 + 2 * answers);
        terminal.wait("it is kept", |screen| screen.contains(&messages));
    }
    terminal.type_keys(&["Up"]);
    terminal.wait("history", |screen| screen.trim_end().ends_with("> /stats"));
    terminal.type_keys(&["C-u", "C-d"]);
    terminal.wait("the end", |screen| screen.contains("left 0"));
}

#[test]
fn a_file_that_a_chat_saves_to_is_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk").to_str().unwrap().to_owned();
    let mut child = elapid(&["chat", &small(), "-n", "4", "--json", "--session", &file])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut input = child.stdin.take().unwrap();
    // The first answer makes the file, the second replaces it.
    for _ in 0..2 {
        input.write_all(b"\"My fellow citizens\"\n").unwrap();
        while !lines.next().unwrap().unwrap().contains("\"end\"") {}
        // An answer is told once it is saved.
        let other = elapid(&["run", &small(), "My", "-n", "1", "--session", &file]).output().unwrap();
        bad(other, 2, "another program goes on from this session");
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    super::good(&["run", &small(), "My", "-n", "1", "--session", &file]);
}
