//! What all interfaces have in common: from messages or a prompt to requests, and their events.

use elapid::core::sample::{SampleError, Sampler, Settings};
use elapid::core::tokenizer::EncodeOptions;
use elapid::{Message, encode, plain_chat};
use minijinja::Value as Context;
use minijinja::value::Serde;
use serde_json::{Map, Value};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::app::{App, Served};
use crate::engine::{Event, Request};
use crate::error::ApiError;
use crate::grammar::{LIMIT, Shape};

/// The most texts that one request may ask for.
const MOST_CHOICES: usize = 16;
/// The most tokens that can be named beside each that was chosen.
const MOST_LOGPROBS: usize = 20;
/// The most stop texts, and bytes of each.
const MOST_STOPS: usize = 16;
const STOP_BYTES: usize = 1024;

/// How a text is generated, whatever interface asks for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub max_tokens: Option<usize>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub logit_bias: Map<String, Value>,
    pub choices: usize,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: bool,
    pub shape: Option<Shape>,
    pub ignore_eos: bool,
}

/// One of the texts that a request asked for.
#[derive(Debug)]
pub(crate) struct Told {
    /// Which of them, from 0.
    pub index: usize,
    pub event: Event,
}

/// Requests that were accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// What happens to them. Dropping it cancels them.
    pub events: UnboundedReceiver<Told>,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// How many texts there will be.
    pub texts: usize,
}

/// Takes JSON messages as clients write them, and gives what templates expect: content as text, arguments of calls as objects.
pub(crate) fn normalize(messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "give one message at least"));
    }
    let one = |(i, mut message): (usize, Value)| {
        let wrong = |what: &str| ApiError::field(&format!("messages[{i}]"), what);
        let Some(object) = message.as_object_mut() else { return Err(wrong("must be an object")) };
        if !object.get("role").is_some_and(Value::is_string) {
            return Err(wrong("role must be a text, such as \"user\""));
        }
        let content = match object.get("content") {
            None | Some(Value::Null) => Value::String(String::new()),
            Some(Value::String(text)) => Value::String(text.clone()),
            Some(Value::Array(parts)) => {
                let text = |part: &Value| match part.get("type").and_then(Value::as_str) {
                    Some("text" | "input_text" | "output_text") => {
                        part.get("text")?.as_str().map(str::to_owned)
                    }
                    None if part.is_string() => part.as_str().map(str::to_owned),
                    _ => None,
                };
                let texts: Option<Vec<String>> = parts.iter().map(text).collect();
                Value::String(
                    texts
                        .ok_or_else(|| wrong("this model reads text only: give parts of type text"))?
                        .concat(),
                )
            }
            Some(_) => return Err(wrong("content must be a text, or a list of parts")),
        };
        if object.get("images").and_then(Value::as_array).is_some_and(|images| !images.is_empty()) {
            return Err(wrong("this model reads text only: leave images out"));
        }
        object.insert("content".into(), content);
        if object.get("tool_calls").is_some_and(Value::is_null) {
            object.remove("tool_calls");
        }
        for call in object.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(arguments) = call.pointer_mut("/function/arguments")
                && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
            {
                *arguments = parsed;
            }
        }
        Ok(message)
    };
    messages.into_iter().enumerate().map(one).collect()
}

/// The text of a conversation, by the model's template.
pub(crate) fn render(served: &Served, messages: &[Value], tools: Option<&Value>) -> Result<String, ApiError> {
    let Some(template) = &served.template else {
        let text = |message: &Value, key: &str| message[key].as_str().unwrap_or_default().to_owned();
        let plain: Vec<_> = messages
            .iter()
            .map(|message| Message::new(text(message, "role"), text(message, "content")))
            .collect();
        return Ok(plain_chat(&plain));
    };
    let none = || Context::from(());
    let mut context = vec![
        ("messages".to_owned(), Context::from(Serde(messages))),
        ("tools".to_owned(), tools.map_or_else(none, |tools| Context::from(Serde(tools)))),
        ("documents".to_owned(), none()),
        ("add_generation_prompt".to_owned(), Context::from(true)),
    ];
    context.extend(served.names.iter().map(|(name, text)| (name.clone(), Context::from(text.as_str()))));
    template.render(Context::from_iter(context)).map_err(|error| {
        ApiError::field("messages", format!("the model's chat template refuses them: {error}"))
    })
}

/// The tokens of a text.
pub(crate) fn tokens_of(served: &Served, text: &str, add_special: bool) -> Result<Vec<u32>, ApiError> {
    let tokenizer = served.model.tokenizer().map_err(|error| ApiError::failed(error.to_string()))?;
    let options = EncodeOptions { add_special, ..EncodeOptions::default() };
    encode(&tokenizer, text, options).map_err(|error| ApiError::failed(error.to_string()))
}

impl Wish {
    /// Checks everything, and hands the requests to the model: `choices` texts after each of the prompts.
    pub(crate) fn submit(
        self,
        app: &App,
        served: &Served,
        owner: u64,
        prompts: Vec<Vec<u32>>,
    ) -> Result<Accepted, ApiError> {
        let vocab = served.model.config().vocab;
        let choices = self.choices.max(1);
        if choices.saturating_mul(prompts.len()) > MOST_CHOICES.max(prompts.len()) {
            return Err(ApiError::field("n", format!("{MOST_CHOICES} texts can be asked for at once")));
        }
        for tokens in &prompts {
            if tokens.is_empty() {
                return Err(ApiError::bad("the prompt is empty: give a word at least"));
            }
            if tokens.len() > app.options.max_prompt {
                let message = format!(
                    "the prompt has {} tokens, and this server takes {}",
                    tokens.len(),
                    app.options.max_prompt
                );
                return Err(ApiError::bad(message).code("context_length_exceeded"));
            }
            if let Some(token) = tokens.iter().find(|token| **token >= vocab) {
                return Err(ApiError::bad(format!(
                    "the prompt has token {token}, and the model knows 0 to {}",
                    vocab - 1
                )));
            }
        }
        let settings = Settings {
            temperature: self.temperature.unwrap_or(0.8),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(0.95),
            min_p: self.min_p.unwrap_or(0.0),
            repeat_penalty: self.repeat_penalty.unwrap_or(1.0),
        };
        if let Err(SampleError::Setting { name, value, range }) = Sampler::new(settings, 0) {
            return Err(ApiError::field(
                &name.replace('-', "_"),
                format!("{value} is out of range: it must be {range}"),
            ));
        }
        let penalty = |name: &str, value: Option<f32>| match value.unwrap_or(0.0) {
            value if (-2.0..=2.0).contains(&value) => Ok(value),
            value => Err(ApiError::field(name, format!("{value} is out of range: it must be -2 to 2"))),
        };
        let (frequency_penalty, presence_penalty) = (
            penalty("frequency_penalty", self.frequency_penalty)?,
            penalty("presence_penalty", self.presence_penalty)?,
        );
        if self.stop.len() > MOST_STOPS || self.stop.iter().any(|stop| stop.len() > STOP_BYTES) {
            return Err(ApiError::field(
                "stop",
                format!("give at most {MOST_STOPS} texts of {STOP_BYTES} bytes"),
            ));
        }
        if self.logprobs.is_some_and(|top| top > MOST_LOGPROBS) {
            return Err(ApiError::field("logprobs", format!("at most {MOST_LOGPROBS} tokens are named")));
        }
        let bias = self.logit_bias.iter().map(|(token, bias)| {
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            match (token.parse().ok().filter(|token| *token < vocab), bias) {
                // As OpenAI has it: never.
                (Some(token), Some(-100.0)) => Ok((token, f32::NEG_INFINITY)),
                (Some(token), Some(bias)) => Ok((token, bias as f32)),
                _ => Err(ApiError::field(
                    "logit_bias",
                    format!("{token}: give token ids with numbers from -100 to 100"),
                )),
            }
        });
        let bias = bias.collect::<Result<Vec<_>, _>>()?;
        let max_tokens = self.max_tokens.unwrap_or(app.options.max_tokens);
        let seed = self.seed.unwrap_or_else(seed_from_clock);
        let constraint = || self.shape.as_ref().map(|shape| served.constraint(shape)).transpose();
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let texts = choices * prompts.len();
        let mut receivers = Vec::new();
        for tokens in prompts {
            let mut of_prompt = Vec::new();
            for choice in 0..choices {
                let (events, receiver) = unbounded_channel();
                let request = Request {
                    tokens: tokens.clone(),
                    owner,
                    max_tokens,
                    settings,
                    seed: seed.wrapping_add(choice as u64),
                    eos: self.ignore_eos.then(Vec::new),
                    stop: self.stop.clone(),
                    bias: bias.clone(),
                    frequency_penalty,
                    presence_penalty,
                    logprobs: self.logprobs,
                    prompt_logprobs: self.prompt_logprobs,
                    constraint: constraint()?,
                    events,
                };
                of_prompt.push((request, receiver));
            }
            receivers.push(of_prompt);
        }
        let (sender, events) = unbounded_channel();
        for (prompt, requests) in receivers.into_iter().enumerate() {
            let mut requests = requests.into_iter().enumerate().map(|(i, it)| (prompt * choices + i, it));
            let Some((index, (request, receiver))) = requests.next() else { continue };
            served.engine.submit(request)?;
            let (sender, engine) = (sender.clone(), served.engine.clone());
            let others: Vec<_> = requests.collect();
            tokio::spawn(async move {
                let first = forward(index, receiver, &sender, true).await;
                // The others go on from the prompt that the first one has read.
                let mut tasks = Vec::new();
                for (index, (request, receiver)) in others {
                    let sender = sender.clone();
                    if let Err(refused) = engine.submit(request) {
                        let event = Event::Failed(ApiError::from(refused).message);
                        let _ = sender.send(Told { index, event });
                        continue;
                    }
                    tasks.push(tokio::spawn(async move { forward(index, receiver, &sender, false).await }));
                }
                if let Some(rest) = first {
                    forward(index, rest, &sender, false).await;
                }
                for task in tasks {
                    // A task ends as its request does.
                    let _ = task.await;
                }
            });
        }
        Ok(Accepted { events, prompt_tokens, texts })
    }
}

/// Forwards the events of one request; with `once`, until its prompt was read, and gives back what is to be forwarded later.
async fn forward(
    index: usize,
    mut receiver: UnboundedReceiver<Event>,
    sender: &tokio::sync::mpsc::UnboundedSender<Told>,
    once: bool,
) -> Option<UnboundedReceiver<Event>> {
    loop {
        let event = tokio::select! {
            () = sender.closed() => return None,
            event = receiver.recv() => event,
        };
        let Some(event) = event else {
            let event = Event::Failed("the model's thread has ended: restart the server".into());
            let _ = sender.send(Told { index, event });
            return None;
        };
        let (read, last) =
            (matches!(event, Event::Read { .. }), matches!(event, Event::End(_) | Event::Failed(_)));
        if sender.send(Told { index, event }).is_err() || last {
            return None;
        }
        if once && read {
            return Some(receiver);
        }
    }
}

/// The shape that a `response_format` asks for.
pub(crate) fn shape_of(format: Option<&Value>) -> Result<Option<Shape>, ApiError> {
    let wrong = |what: &str| Err(ApiError::field("response_format", what));
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    if format.to_string().len() > LIMIT {
        return wrong("the schema is longer than 256 KiB");
    }
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => {
            Ok(Some(format.get("schema").map_or(Shape::Object, |schema| Shape::Schema(schema.clone()))))
        }
        Some("json_schema") => {
            let schema = format.pointer("/json_schema/schema").or_else(|| format.get("schema"));
            match schema {
                Some(schema) if schema.is_object() || schema.is_boolean() => {
                    Ok(Some(Shape::Schema(schema.clone())))
                }
                _ => wrong("json_schema.schema must be a JSON schema"),
            }
        }
        _ => wrong("type must be text, json_object or json_schema"),
    }
}

/// A seed that differs from request to request.
fn seed_from_clock() -> u64 {
    // Short enough for every JSON reader.
    crate::clock::now().as_nanos() as u64 & ((1 << 53) - 1)
}
