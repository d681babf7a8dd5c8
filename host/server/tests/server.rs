//! The server as its clients see it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::thread::{JoinHandle, scope, spawn};
use std::time::Duration;

use elapid::core::sample::Settings;
use elapid::{Error, GenerateOptions, Model, ModelOptions, SessionOptions};
use elapid_server::{ServeOptions, serve_until};
use elapid_test_support::effort;
use serde_json::{Value, json};

/// A server of the bundled model, which ends with the test.
struct Server {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn model() -> Result<Model, Error> {
    Model::bundled(&ModelOptions::default().threads(1))
}

impl Server {
    fn start(change: impl FnOnce(&mut ServeOptions)) -> Self {
        let mut options = ServeOptions::default();
        options.port = 0;
        change(&mut options);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, address) = channel();
        let thread = spawn(move || {
            let load = || Ok::<_, Error>(vec![("small".to_owned(), model()?)]);
            let until = async {
                let _ = stopped.await;
            };
            serve_until(options, load, |address| ready.send(address).unwrap(), until).unwrap();
        });
        let address = address.recv_timeout(Duration::from_secs(30)).expect("the server starts");
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Stops it and waits for its end.
    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends without a panic");
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes and reads all that comes back: status, head and body.
    fn raw(&self, bytes: &[u8]) -> (u16, String, String) {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        response(&mut BufReader::new(stream))
    }

    fn post_with(&self, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n",
            self.address
        );
        self.raw(&[head.as_bytes(), body.as_bytes()].concat())
    }

    /// The JSON of a good answer.
    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, _, text) = self.post_with(path, "", &body.to_string());
        assert_eq!(status, 200, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        let (status, _, body) = self.raw(request.as_bytes());
        (status, body)
    }

    /// A number of `/metrics`.
    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find(|line| line.starts_with(&format!("elapid_{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("{name} in {text}"))
    }

    /// Waits until no request runs.
    fn wait_until_idle(&self) {
        for _ in 0..1000 {
            if self.metric("requests_running") == 0 && self.metric("requests_waiting") == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("requests run for ever");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// Reads a response to its end.
fn response(reader: &mut impl BufRead) -> (u16, String, String) {
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).unwrap() > 2 {
        head.push_str(&line);
        line.clear();
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let lower = head.to_lowercase();
    let mut body = Vec::new();
    if lower.contains("transfer-encoding: chunked") {
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            if size == 0 || reader.read_exact(&mut chunk).is_err() {
                break;
            }
            body.extend(&chunk[..size]);
        }
    } else {
        reader.read_to_end(&mut body).unwrap();
    }
    (status, head, String::from_utf8(body).unwrap())
}

/// The objects of server-sent events, and whether the stream ended as it should.
fn sent(body: &str) -> (Vec<Value>, bool) {
    let data: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let done = data.last() == Some(&"[DONE]");
    (data.iter().filter_map(|line| serde_json::from_str(line).ok()).collect(), done)
}

/// What a session by itself generates.
fn alone(model: &Model, prompt: &str, tokens: usize, settings: Settings, seed: u64) -> String {
    let mut session = model.session(&SessionOptions::default()).unwrap();
    let options = GenerateOptions::default().max_tokens(tokens).settings(settings).seed(seed);
    let prompt = model.encode(prompt).unwrap();
    session.generate(&prompt, &options).unwrap().map(|piece| piece.unwrap().text).collect()
}

const PROMPTS: [&str; 5] =
    ["My fellow citizens", "The whale", "In the year 1900 the", "I", "We have been at peace with"];

#[test]
fn texts_are_those_of_a_session_alone_however_many_there_are() {
    let server = Server::start(|options| options.slots = 3);
    let model = model().unwrap();
    let sampled = Settings { temperature: 0.7, top_p: 0.9, ..Settings::MODEL };
    scope(|threads| {
        for round in 0..4 {
            for (i, prompt) in PROMPTS.iter().enumerate() {
                let (server, model) = (&server, &model);
                threads.spawn(move || {
                    let (settings, seed) = if round % 2 == 0 {
                        (Settings::GREEDY, 0)
                    } else {
                        (sampled, (round * 10 + i) as u64)
                    };
                    let tokens = 20 + 7 * i;
                    let body = json!({
                        "prompt": prompt, "max_tokens": tokens, "seed": seed,
                        "temperature": settings.temperature, "top_p": settings.top_p,
                    });
                    let answer = server.post("/v1/completions", &body);
                    assert_eq!(answer["choices"][0]["text"], alone(model, prompt, tokens, settings, seed));
                    assert_eq!(answer["usage"]["completion_tokens"], tokens);
                });
            }
        }
    });
    assert_eq!(server.metric("requests_total"), 20);
}

#[test]
fn what_was_read_once_is_not_read_again() {
    let server = Server::start(|_| {});
    let long = "It is the duty of the Congress to provide for the common defence. ".repeat(40);
    let long = long.trim_end();
    let ask = |prompt: &str| {
        let answer =
            server.post("/v1/completions", &json!({ "prompt": prompt, "max_tokens": 3, "temperature": 0 }));
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (usage["prompt_tokens"].as_u64().unwrap(), cached, answer["choices"][0]["text"].clone())
    };
    let (all, none, text) = ask(long);
    assert_eq!(none, 0);
    assert_eq!(ask(long), (all, all, text.clone()));
    let more = format!("{long} And further");
    let (tokens, cached, _) = ask(&more);
    assert!(cached == all && tokens > all, "{cached} of {tokens}");
    // Others in between don't push it out.
    for i in 0..20 {
        ask(&format!("A foreign request {i}"));
    }
    assert_eq!(ask(long), (all, all, text));
}

#[test]
fn texts_of_one_prompt_differ_by_their_seeds_and_share_it() {
    let server = Server::start(|_| {});
    let model = model().unwrap();
    let body = json!({ "prompt": "My fellow citizens", "n": 3, "seed": 5, "temperature": 1, "top_p": 1, "max_tokens": 12 });
    let answer = server.post("/v1/completions", &body);
    for i in 0..3 {
        let text = alone(&model, "My fellow citizens", 12, Settings::MODEL, 5 + i as u64);
        assert_eq!(
            (&answer["choices"][i]["index"], &answer["choices"][i]["text"]),
            (&json!(i), &json!(text))
        );
    }
    assert_eq!(answer["usage"]["completion_tokens"], 36);
}

#[test]
fn there_may_be_more_texts_than_places() {
    let model = model().unwrap();
    let prompt = "My fellow citizens of the Senate and of the House of Representatives";
    let body = json!({ "prompt": prompt, "n": 6, "seed": 5, "temperature": 1, "top_p": 1, "max_tokens": 12 });
    let expected: Vec<_> = (5..11).map(|seed| alone(&model, prompt, 12, Settings::MODEL, seed)).collect();
    for slots in [1, 4] {
        // The others wait even where the queue has no room for all.
        let server = Server::start(|options| (options.slots, options.queue) = (slots, 1));
        let answer = server.post("/v1/completions", &body);
        let texts: Vec<_> = answer["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| choice["text"].as_str().unwrap())
            .collect();
        assert_eq!(texts, expected, "{slots}");
        let read = server.metric("prompt_tokens_total") - server.metric("cached_tokens_total");
        assert_eq!(read, answer["usage"]["prompt_tokens"].as_u64().unwrap(), "the prompt is read once");
        let mut stream = body.clone();
        stream["stream"] = json!(true);
        let (events, done) = sent(&server.post_with("/v1/completions", "", &stream.to_string()).2);
        let mut texts = vec![String::new(); 6];
        for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
            texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
        }
        assert!(done && texts == expected, "{texts:?}");
        // How likely the prompt is must be computed; once is enough.
        let read = || server.metric("prompt_tokens_total") - server.metric("cached_tokens_total");
        let before = read();
        let mut echo = body.clone();
        (echo["echo"], echo["logprobs"]) = (json!(true), json!(1));
        let answer = server.post("/v1/completions", &echo);
        assert_eq!(read() - before, answer["usage"]["prompt_tokens"].as_u64().unwrap());
        for (choice, text) in answer["choices"].as_array().unwrap().iter().zip(&expected) {
            assert_eq!(choice["text"], format!("{prompt}{text}"));
            let of_prompt = |choice: &Value| {
                choice["logprobs"]["token_logprobs"].as_array().unwrap()[..before as usize].to_vec()
            };
            assert!(of_prompt(choice).iter().skip(1).all(Value::is_f64));
            assert_eq!(of_prompt(choice), of_prompt(&answer["choices"][0]));
        }
        server.wait_until_idle();
    }
}

#[test]
fn streams_say_the_same_as_whole_answers() {
    let server = Server::start(|_| {});
    let body = json!({ "messages": [{ "role": "user", "content": "My fellow citizens" }], "seed": 2, "max_tokens": 30 });
    let whole = server.post("/v1/chat/completions", &body);
    let with = |extra: Value| {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body.to_string()
    };
    let body = with(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let (status, head, text) = server.post_with("/v1/chat/completions", "", &body);
    assert!(status == 200 && head.contains("text/event-stream"), "{head}");
    let (events, done) = sent(&text);
    let pieces: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert!(done && pieces == whole["choices"][0]["message"]["content"], "{text}");
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 30);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "length");
    // The same as lines, and as responses.
    let body = json!({
        "messages": [{ "role": "user", "content": "My fellow citizens" }], "options": { "seed": 2, "num_predict": 30 },
    });
    let (_, _, lines) = server.post_with("/api/chat", "", &body.to_string());
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let pieces: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!(pieces, whole["choices"][0]["message"]["content"]);
    assert_eq!(
        (&lines.last().unwrap()["done_reason"], &lines.last().unwrap()["eval_count"]),
        (&json!("length"), &json!(30))
    );
    let answer = server.post("/v1/responses", &json!({ "input": "Hello", "max_output_tokens": 5 }));
    assert_eq!((&answer["status"], &answer["usage"]["output_tokens"]), (&json!("incomplete"), &json!(5)));
}

#[test]
fn probabilities_are_those_of_the_logits() {
    let server = Server::start(|_| {});
    let model = model().unwrap();
    let text = "My fellow citizens of the Senate and of the House";
    let body = json!({ "prompt": text, "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 3 });
    let answer = server.post("/v1/completions", &body);
    let lists = &answer["choices"][0]["logprobs"];
    let tokens = model.encode(text).unwrap();
    assert_eq!(lists["tokens"].as_array().unwrap().len(), tokens.len() + 1);
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with(text));
    assert_eq!(lists["token_logprobs"][0], Value::Null);
    let mut session = model.session(&SessionOptions::default()).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    session
        .feed_each(&tokens, &mut |_| std::ops::ControlFlow::Continue(()), |place, logits| {
            let mut logits = logits.to_vec();
            tokenizer.mask(&mut logits);
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            if let Some(next) = tokens.get(place + 1) {
                let expected = f64::from(logits[*next as usize]) - sum.ln();
                let given = lists["token_logprobs"][place + 1].as_f64().unwrap();
                assert!((given - expected).abs() < 1e-4, "{place}: {given} {expected}");
                assert_eq!(lists["top_logprobs"][place + 1].as_object().unwrap().len(), 3);
            }
            Ok::<(), Error>(())
        })
        .unwrap();
}

/// The requests of `lm_eval --model local-completions` for a multiple-choice task: tokens as prompts, echoed with how likely they are.
#[test]
fn harnesses_get_the_likelihoods_of_the_library() {
    let server = Server::start(|_| {});
    let model = model().unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let info: Value = serde_json::from_str(&server.get("/tokenizer_info").1).unwrap();
    assert!(info.as_object().unwrap().contains_key("eos_token"), "{info}");
    let encode = |text: &str| {
        let answer = server.post("/tokenize", &json!({ "prompt": text, "add_special_tokens": false }));
        let tokens: Vec<u32> = serde_json::from_value(answer["tokens"].clone()).unwrap();
        let spelled = server.post("/detokenize", &json!({ "tokens": tokens }));
        assert_eq!(spelled["prompt"], text);
        tokens
    };
    for (context, choices) in [
        ("My fellow citizens of the Senate and of the House of", [" Representatives", " the sea", " x"]),
        ("The Constitution of the", [" United States", " whale", " 9"]),
    ] {
        let start = encode(context).len();
        let prompts: Vec<_> = choices.iter().map(|choice| encode(&format!("{context}{choice}"))).collect();
        let body = json!({
            "model": "small", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true,
        });
        let answer = server.post("/v1/completions", &body);
        for (at, prompt) in prompts.iter().enumerate() {
            let choice = &answer["choices"][at];
            assert_eq!(choice["index"], at);
            let (given, top) = (&choice["logprobs"]["token_logprobs"], &choice["logprobs"]["top_logprobs"]);
            assert_eq!(given.as_array().unwrap().len(), prompt.len() + 1);
            let mut session = model.session(&SessionOptions::default().rows(true)).unwrap();
            let (mut sum, mut expected) = (0.0, 0.0);
            let watch = &mut |_| std::ops::ControlFlow::Continue(());
            session
                .feed_each(prompt, watch, |place, logits| {
                    let mut logits = logits.to_vec();
                    tokenizer.mask(&mut logits);
                    let Some(next) = prompt.get(place + 1).filter(|_| place + 1 >= start) else {
                        return Ok(());
                    };
                    let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
                    expected += f64::from(logits[*next as usize]) - total.ln();
                    sum += given[place + 1].as_f64().unwrap();
                    let most = logits.iter().copied().fold(f32::MIN, f32::max);
                    let named =
                        top[place + 1].as_object().unwrap().values().map(|value| value.as_f64().unwrap());
                    let greedy = Some(given[place + 1].as_f64().unwrap()) == named.reduce(f64::max);
                    assert_eq!(greedy, logits[*next as usize] == most, "{context}: {place}");
                    Ok::<(), Error>(())
                })
                .unwrap();
            assert!((sum - expected).abs() < 1e-3, "{context}: {sum} {expected}");
        }
    }
}

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
fn answers_match_what_was_asked_for() {
    let server = Server::start(|_| {});
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "kind"],
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "kind": { "enum": ["cat", "dog"] },
        },
    });
    for seed in 0..20 {
        let body = json!({
            "messages": [{ "role": "user", "content": "A pet" }], "seed": seed, "temperature": 1.5, "max_tokens": 200,
            "response_format": { "type": "json_schema", "json_schema": { "name": "pet", "schema": schema } },
        });
        let answer = server.post("/v1/chat/completions", &body);
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let pet: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(pet["name"].as_str().unwrap().chars().count() <= 12, "{text}");
        assert!((0..=150).contains(&pet["age"].as_i64().unwrap()), "{text}");
        assert!(["cat", "dog"].contains(&pet["kind"].as_str().unwrap()), "{text}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let tools = json!([{ "type": "function", "function": { "name": "add", "parameters": {
        "type": "object", "properties": { "a": { "enum": [1, 2] } }, "required": ["a"], "additionalProperties": false,
    } } }]);
    let body = json!({
        "messages": [{ "role": "user", "content": "1 and 2" }], "tools": tools, "tool_choice": "required", "max_tokens": 100, "seed": 1,
    });
    let answer = server.post("/v1/chat/completions", &body);
    let call = &answer["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(
        (&call["function"]["name"], &answer["choices"][0]["finish_reason"]),
        (&json!("add"), &json!("tool_calls"))
    );
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["a"].is_i64(), "{arguments}");
    let body = json!({ "prompt": "x", "grammar": "start: \"yes\" | \"no\"", "max_tokens": 10 });
    let answer = server.post("/v1/completions", &body);
    assert!(["yes", "no"].contains(&answer["choices"][0]["text"].as_str().unwrap()), "{answer}");
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
fn tokens_and_text_are_told_apart() {
    let server = Server::start(|_| {});
    let text = "My fellow citizens, ünïcödé ☃";
    let tokens = server.post("/tokenize", &json!({ "content": text }))["tokens"].clone();
    assert_eq!(tokens, json!(model().unwrap().encode(text).unwrap()));
    assert_eq!(server.post("/detokenize", &json!({ "tokens": tokens }))["content"], text);
    let prompt = server.post("/apply-template", &json!({ "messages": [{ "role": "user", "content": "a" }] }));
    assert_eq!(prompt["prompt"], "a");
    let (status, page) = server.get("/");
    assert!(status == 200 && page.contains("<!doctype html>"));
    let tags: Value = serde_json::from_str(&server.get("/api/tags").1).unwrap();
    assert_eq!(tags["models"][0]["name"], "small:latest");
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
