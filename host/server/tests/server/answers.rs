//! Answers are those of the library.

use std::thread::scope;

use elapid::core::sample::Settings;
use elapid::{Error, SessionOptions};
use serde_json::{Value, json};

use crate::client::{Server, alone, model, sent};

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
