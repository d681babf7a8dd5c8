//! `elapid serve` as a program: arguments, messages, signals.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;

use elapid_test_support::process::{command, exit_code};

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
