//! Clients that leave, wait, or ask for what can't be.

use std::io::{BufReader, Read, Write};
use std::thread::{scope, spawn};

use elapid::core::sample::Settings;
use elapid_test_support::effort;
use serde_json::{Value, json};

use crate::client::{Server, alone, model};

#[test]
fn a_client_that_leaves_gives_its_place_back() {
    let server = Server::start(|options| options.slots = 2);
    let model = model().unwrap();
    let expected = alone(&model, "The whale", 8, Settings::GREEDY, 0);
    let rounds = if effort::full() { 1000 } else { 40 };
    for round in 0..rounds {
        let mut stream = server.connect();
        let body = json!({ "prompt": format!("Leave {round}"), "max_tokens": 1_000_000, "stream": true })
            .to_string();
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        let mut some = [0; 512];
        assert!(stream.read(&mut some).unwrap() > 0);
        drop(stream);
        let answer = server
            .post("/v1/completions", &json!({ "prompt": "The whale", "max_tokens": 8, "temperature": 0 }));
        assert_eq!(answer["choices"][0]["text"], expected);
    }
    server.wait_until_idle();
    assert_eq!(server.metric("requests_cancelled_total"), rounds);
}

#[test]
fn too_many_requests_are_refused_and_those_that_wait_are_served() {
    let server = Server::start(|options| (options.slots, options.queue) = (1, 1));
    let statuses = scope(|threads| {
        let ask = || {
            let body = json!({ "prompt": "I", "max_tokens": 400 }).to_string();
            let (status, head, text) = server.post_with("/v1/completions", "", &body);
            if status == 429 {
                assert!(
                    head.to_lowercase().contains("retry-after: 1") && text.contains("queue_full"),
                    "{head}{text}"
                );
            }
            status
        };
        let asked: Vec<_> = (0..12).map(|_| threads.spawn(ask)).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
}

#[test]
fn keys_are_needed_and_their_owners_share_nothing() {
    let server = Server::start(|options| options.api_keys = vec!["one".into(), "two".into()]);
    let body = json!({ "prompt": "My fellow citizens of the United States", "max_tokens": 1 }).to_string();
    let ask = |headers: &str| server.post_with("/v1/completions", headers, &body);
    for wrong in
        ["", "Authorization: Bearer on\r\n", "Authorization: Bearer onee\r\n", "Authorization: Bearer \r\n"]
    {
        let (status, head, text) = ask(wrong);
        assert!(status == 401 && text.contains("invalid_api_key"), "{wrong}: {status} {text}");
        assert!(head.to_lowercase().contains("www-authenticate"), "{head}");
    }
    let cached = |key: &str| {
        let (status, _, text) = ask(&format!("Authorization: Bearer {key}\r\n"));
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0
    };
    assert_eq!((cached("one"), cached("one"), cached("two"), cached("two")), (false, true, false, true));
    // Who only looks whether it is alive needs none.
    assert_eq!(server.get("/health").0, 200);
    assert_eq!(server.get("/v1/models").0, 401);
}

#[test]
fn bad_requests_are_refused_in_words_and_the_server_lives_on() {
    let server = Server::start(|options| (options.max_prompt, options.max_body) = (100, 100_000));
    let many = json!({ "prompt": vec!["I"; 300] }).to_string();
    let deep = format!("{{\"prompt\": {}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let long = json!({ "prompt": "word ".repeat(2000) }).to_string();
    let huge = json!({ "prompt": "word ".repeat(200_000) }).to_string();
    let schema = |schema: Value| {
        json!({ "prompt": "x", "response_format": { "type": "json_schema", "json_schema": { "schema": schema } } }).to_string()
    };
    let impossible = schema(json!({ "type": "integer", "minimum": 2, "maximum": 1 }));
    let endless = schema(json!({ "allOf": [{ "$ref": "#" }] }));
    let outside = schema(json!({ "$ref": "http://127.0.0.1/schema.json" }));
    for (path, body, status, says) in [
        ("/v1/completions", "", 400, "not the JSON"),
        ("/v1/completions", "{", 400, "not the JSON"),
        ("/v1/completions", "{\"prompt\": \"x\"} x", 400, "after its JSON"),
        ("/v1/completions", "[]", 400, "not the JSON"),
        ("/v1/completions", "{\"prompt\": 5}", 400, "expected a text"),
        ("/v1/completions", "{\"prompt\": []}", 400, "empty"),
        ("/v1/completions", many.as_str(), 400, "300 prompts are too many: send "),
        ("/v1/completions", "{\"prompt\": \"\"}", 400, "empty"),
        ("/v1/completions", "{\"prompt\": [99999999]}", 400, "99999999"),
        ("/v1/completions", "{\"prompt\": \"x\", \"max_tokens\": -1}", 400, "max_tokens"),
        ("/v1/completions", "{\"prompt\": \"x\", \"temperature\": -1}", 400, "temperature"),
        ("/v1/completions", "{\"prompt\": \"x\", \"temperature\": 1e99}", 400, "temperature"),
        ("/v1/completions", "{\"prompt\": \"x\", \"top_p\": 2}", 400, "top_p"),
        ("/v1/completions", "{\"prompt\": \"x\", \"n\": 0}", 400, "n: "),
        ("/v1/completions", "{\"prompt\": \"x\", \"n\": 1000000}", 400, "n: "),
        ("/v1/completions", "{\"prompt\": \"x\", \"logprobs\": 1000}", 400, "logprobs"),
        ("/v1/completions", "{\"prompt\": \"x\", \"logit_bias\": {\"x\": 1}}", 400, "logit_bias"),
        ("/v1/completions", "{\"prompt\": \"x\", \"suffix\": \"y\"}", 400, "suffix"),
        ("/v1/completions", "{\"prompt\": \"x\", \"model\": \"other\"}", 404, "small"),
        ("/v1/completions", "{\"prompt\": \"x\", \"grammar\": \"start: (\"}", 400, "can't be used"),
        ("/v1/completions", &deep, 400, "recursion"),
        ("/v1/completions", &long, 400, "tokens"),
        ("/v1/completions", &huge, 413, "longer"),
        ("/v1/completions", &impossible, 400, "can't be used"),
        ("/v1/completions", &endless, 400, "can't be used"),
        ("/v1/completions", &outside, 400, "can't be used"),
        ("/v1/chat/completions", "{}", 400, "messages"),
        ("/v1/chat/completions", "{\"messages\": []}", 400, "messages"),
        ("/v1/chat/completions", "{\"messages\": [5]}", 400, "messages[0]"),
        ("/v1/chat/completions", "{\"messages\": [{\"content\": \"x\"}]}", 400, "role"),
        (
            "/v1/chat/completions",
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
            400,
            "text only",
        ),
        ("/v1/embeddings", "{}", 400, "no embeddings"),
        ("/detokenize", "{\"tokens\": [4294967295]}", 400, "tokens"),
        ("/api/chat", "{\"model\": \"other\", \"messages\": []}", 404, "other"),
        ("/v1/responses", "{\"input\": 5}", 400, "input"),
        ("/../../etc/passwd", "{}", 404, "nothing"),
    ] {
        let (got, _, text) = server.post_with(path, "", body);
        let shown: String = body.chars().take(80).collect();
        assert_eq!(got, status, "{path} {shown}: {text}");
        let object: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path} {shown}: {text}"));
        let message = object.pointer("/error/message").or(object.get("error")).and_then(Value::as_str);
        assert!(message.is_some_and(|message| message.contains(says)), "{path} {shown}: {text}");
    }
    for (bytes, status) in [
        (&b"GET / HTTP/9.9\r\n\r\n"[..], 400),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: https://example.org\r\nConnection: close\r\n\r\n", 403),
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.org\r\nOrigin: http://evil.org\r\nConnection: close\r\n\r\n", 403),
        (b"DELETE /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
    ] {
        assert_eq!(server.raw(bytes).0, status, "{}", String::from_utf8_lossy(bytes));
    }
    let mut head = b"GET /health HTTP/1.1\r\nX: ".to_vec();
    head.extend([b'x'].repeat(1 << 20));
    let mut stream = server.connect();
    // It may be cut off before all is sent.
    let _ = stream.write_all(&head);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(server.get("/health").0, 200);
    server.wait_until_idle();
}

#[test]
fn a_stop_ends_streams_where_they_are() {
    let mut server = Server::start(|_| {});
    let mut stream = server.connect();
    let body = json!({ "prompt": "We", "max_tokens": 10_000_000, "stream": true }).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    let mut begun = Vec::new();
    while !begun.ends_with(b"data: ") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        begun.push(byte[0]);
    }
    let rest = spawn(move || {
        let mut rest = String::new();
        BufReader::new(stream).read_to_string(&mut rest).map(|_| rest)
    });
    server.stop();
    let rest = rest.join().unwrap().expect("the stream ends");
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"),
        "{:?}",
        &rest[rest.len() - 300..]
    );
}
