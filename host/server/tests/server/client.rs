//! A server, and what a client sends and reads.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use elapid::core::sample::Settings;
use elapid::{Error, GenerateOptions, Model, ModelOptions, SessionOptions};
use elapid_server::{ServeOptions, serve_until};
use serde_json::Value;

/// A server of the bundled model, which ends with the test.
pub struct Server {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

pub fn model() -> Result<Model, Error> {
    Model::bundled(&ModelOptions::default().threads(1))
}

impl Server {
    pub fn start(change: impl FnOnce(&mut ServeOptions)) -> Self {
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
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends without a panic");
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes and reads all that comes back: status, head and body.
    pub fn raw(&self, bytes: &[u8]) -> (u16, String, String) {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        response(&mut BufReader::new(stream))
    }

    pub fn post_with(&self, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n",
            self.address
        );
        self.raw(&[head.as_bytes(), body.as_bytes()].concat())
    }

    /// The JSON of a good answer.
    pub fn post(&self, path: &str, body: &Value) -> Value {
        let (status, _, text) = self.post_with(path, "", &body.to_string());
        assert_eq!(status, 200, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        let (status, _, body) = self.raw(request.as_bytes());
        (status, body)
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find(|line| line.starts_with(&format!("elapid_{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("{name} in {text}"))
    }

    /// Waits until no request runs.
    pub fn wait_until_idle(&self) {
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
pub fn response(reader: &mut impl BufRead) -> (u16, String, String) {
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
pub fn sent(body: &str) -> (Vec<Value>, bool) {
    let data: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let done = data.last() == Some(&"[DONE]");
    (data.iter().filter_map(|line| serde_json::from_str(line).ok()).collect(), done)
}

/// What a session by itself generates.
pub fn alone(model: &Model, prompt: &str, tokens: usize, settings: Settings, seed: u64) -> String {
    let mut session = model.session(&SessionOptions::default()).unwrap();
    let options = GenerateOptions::default().max_tokens(tokens).settings(settings).seed(seed);
    let prompt = model.encode(prompt).unwrap();
    session.generate(&prompt, &options).unwrap().map(|piece| piece.unwrap().text).collect()
}
