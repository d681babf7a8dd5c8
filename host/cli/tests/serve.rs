//! `elapid serve` as a program: arguments, messages, signals.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;

use elapid_test_support::data;
use elapid_test_support::process::{command, exit_code};
use serde_json::{Value, json};

mod support;
use support::Serving;

fn refused(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } =
        command(env!("CARGO_BIN_EXE_elapid")).arg("serve").args(arguments).output().unwrap();
    (exit_code(status), String::from_utf8(stderr).unwrap())
}

fn get(address: &str, path: &str, headers: &str) -> String {
    let host = address.split("://").nth(1).unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn wrong_arguments_are_told_in_a_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.pem");
    std::fs::write(&text, "not a certificate").unwrap();
    let text = text.to_str().unwrap();
    for (arguments, code, says) in [
        (&["--port", &port][..], 1, "another program uses the port"),
        (&["--host", "192.0.2.1", "--port", "0"], 1, "does not have that address"),
        (&["--port", "70000"], 2, "0 to 65535"),
        (&["--slots", "0"], 2, "1 to 64"),
        (&["--slots", "65"], 2, "1 to 64"),
        (&["--cache", "much"], 2, "such as 64M"),
        (&["--api-key", ""], 2, "not empty"),
        (&["--tls-cert", "a.pem"], 2, "--tls-key"),
        (&["--tls-cert", text, "--tls-key", text, "--port", "0"], 2, "text.pem"),
        (&["missing.elp", "--port", "0"], 1, "missing.elp"),
        (&["--prompt-cache", text, "--port", "0"], 1, "text.pem"),
        (&["--prompt-cache-size", "1G"], 2, "--prompt-cache"),
        (&["--prompt-cache", "x", "--cache", "0"], 2, "give --cache more than 0"),
        (&["a/m.elp", "b/m.elp", "--port", "0"], 2, "two models are called"),
        (&["--ram", "1M", "--port", "0"], 4, "--ram"),
        (&["a.elp", "b.elp", "--ram", "1G", "--port", "0"], 2, "--ram caps one model"),
    ] {
        let (got, stderr) = refused(arguments);
        let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(got == code && errors.len() == 1 && stderr.contains(says), "{arguments:?}: {got}: {stderr}");
    }
}

#[test]
fn a_signal_ends_it_well() {
    for signal in ["TERM", "INT"] {
        let mut server = Serving::start(&[]);
        assert!(get(&server.address, "/health", "").contains("{\"status\":\"ok\"}"));
        server.signal(signal);
        let status = server.child.wait().unwrap();
        assert_eq!(exit_code(status), 0, "{signal}");
        let mut rest = String::new();
        server.says.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

/// Text, tokens of the prompt and those of them that were cached.
fn chat(server: &Serving, key: &str, messages: &Value) -> (String, u64, u64) {
    let host = server.address.split("://").nth(1).unwrap();
    let body = json!({ "messages": messages, "max_tokens": 20, "seed": 3, "temperature": 0.5 }).to_string();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let answer: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    let usage = &answer["usage"];
    (
        answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{text}")).to_owned(),
        usage["prompt_tokens"].as_u64().unwrap(),
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
    )
}

/// Ends a server by SIGTERM. Returns what it said after its address.
fn end(mut server: Serving) -> String {
    server.signal("TERM");
    let status = server.child.wait().unwrap();
    assert_eq!(exit_code(status), 0);
    let mut rest = String::new();
    server.says.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn conversations_go_on_after_a_restart() {
    let question = "My fellow citizens of the Senate and of the House of Representatives, I am here";
    for numbers in [&["--state", "f32"][..], &["--path", "fixed"]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts");
        let with = |keys: &[&str]| {
            let keys = keys.iter().flat_map(|key| ["--api-key", key]);
            let arguments: Vec<_> = numbers.iter().copied().chain(keys).collect();
            Serving::start(&[&arguments[..], &["--prompt-cache", path.to_str().unwrap()]].concat())
        };
        let mut messages = json!([{ "role": "user", "content": question }]);
        let server = with(&["one", "two"]);
        let (answer, first, cached) = chat(&server, "one", &messages);
        assert_eq!(cached, 0);
        messages.as_array_mut().unwrap().push(json!({ "role": "assistant", "content": answer }));
        messages.as_array_mut().unwrap().push(json!({ "role": "user", "content": "And then?" }));
        assert_eq!(end(server), "");

        // Keys in another order are still those that they were.
        let server = with(&["two", "one"]);
        let (answer, tokens, cached) = chat(&server, "one", &messages);
        // The last token of the first answer was chosen and not computed.
        assert!(cached == first + 19 && tokens > cached, "{first} {tokens} {cached}");
        let (other, _, cached) = chat(&server, "two", &messages);
        assert_eq!((other.as_str(), cached), (&*answer, 0), "another key learns nothing");
        assert_eq!(end(server), "");

        // A damaged file is told, and does no harm.
        for entry in std::fs::read_dir(&path).unwrap().flatten() {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            if let Some(byte) = bytes.get_mut(9000) {
                *byte ^= 1;
                std::fs::write(entry.path(), bytes).unwrap();
            }
        }
        let server = with(&["one"]);
        let (again, _, cached) = chat(&server, "one", &messages);
        assert_eq!((again, cached), (answer, 0));
        let said = end(server);
        assert!(said.contains("warning: the prompt cache works without this file: "), "{said}");
    }
}

/// Packing ends with signals that end a program at once: a server that packs its model listens again.
#[test]
fn a_server_that_packs_its_model_ends_well() {
    let home = tempfile::tempdir().unwrap();
    let prompts = home.path().join("prompts");
    let mut command = command(env!("CARGO_BIN_EXE_elapid"));
    command.args(["serve", "--port", "0"]).arg(data::path("models/address-300k"));
    command.arg("--prompt-cache").arg(&prompts).env("ELAPID_HOME", home.path());
    let server = Serving::of(command);
    chat(&server, "", &json!([{ "role": "user", "content": "My fellow citizens" }]));
    assert_eq!(end(server), "");
    let saved = std::fs::read_dir(prompts).unwrap().flatten();
    assert!(saved.filter(|entry| entry.path().extension().is_some_and(|end| end == "prefix")).count() > 0);
}

#[test]
fn keys_may_lie_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "first\n\n second \n").unwrap();
    let mut command = command(env!("CARGO_BIN_EXE_elapid"));
    command.args(["serve", "--port", "0"]).env("ELAPID_API_KEYS", &keys);
    let server = Serving::of(command);
    let status = |key: &str| {
        let answer = get(&server.address, "/v1/models", &format!("Authorization: Bearer {key}\r\n"));
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(
        (status("first"), status("second"), status("third")),
        ("200".into(), "200".into(), "401".into())
    );
}
