//! A running server and what a client asks of it.

use crate::support::{interpreter, lorabooth_command};
use serde_json::{json, Value};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A server of its own process; it is killed when it is dropped.
pub struct Server {
    process: Child,
    pub url: String,
    pub data: PathBuf,
    agent: ureq::Agent,
    /// What was answered in JSON, for [`Server::check_answers`].
    answers: Mutex<Vec<Value>>,
    _out: BufReader<ChildStdout>,
}

impl Server {
    /// One on the folder `data`, without a password.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    /// The same with more flags.
    pub fn start_with(data: &Path, more: &[&str]) -> Self {
        Self::start_in(data, more, &[])
    }

    /// The same with more in its environment.
    pub fn start_in(data: &Path, more: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(data, more);
        let mut process = command.envs(environment.iter().copied()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the server printed {line:?}"));
        let url = told["url"].as_str().unwrap().to_owned();
        let agent = ureq::AgentBuilder::new()
            .redirects(0)
            .max_idle_connections(0)
            .timeout_connect(PATIENCE)
            .timeout_read(PATIENCE)
            .build();
        Self { process, url, data: data.to_owned(), agent, answers: Mutex::default(), _out: out }
    }

    /// Sends `signal` and waits for the end: the exit code, and how long it took.
    pub fn end(mut self, signal: &str) -> (Option<i32>, Duration) {
        let began = Instant::now();
        assert!(Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success());
        (self.process.wait().unwrap().code(), began.elapsed())
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// A request to be changed before it is sent.
    pub fn request(&self, method: &str, path: &str) -> ureq::Request {
        self.agent.request(method, &format!("{}{path}", self.url))
    }

    /// Status and JSON of a request without a body.
    pub fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        self.noted(method, path, answer(self.request(method, path).call()))
    }

    fn noted(&self, method: &str, path: &str, (status, value): (u16, Value)) -> (u16, Value) {
        let noted = json!({ "method": method, "path": path, "status": status, "answer": value });
        self.answers.lock().unwrap().push(noted);
        (status, value)
    }

    /// Checks all that was answered so far, and the `events`, against the server's own description; with `all` each address that
    /// answers in JSON must have been asked.
    pub fn check_answers(&self, events: &[Value], all: bool) {
        let document = self.get("/openapi.json");
        let checked = json!({
            "document": document, "answers": *self.answers.lock().unwrap(), "events": events, "all": all,
        });
        let file = self.data.join("answers.json");
        std::fs::write(&file, checked.to_string()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/answers_fit.py");
        let output = interpreter().arg(script).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The JSON at `path`.
    pub fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask("GET", path);
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    /// The bytes at `path`, with their content type and disposition.
    pub fn bytes(&self, path: &str) -> (Vec<u8>, String, String) {
        let response = self.request("GET", path).call().unwrap();
        let header = |name: &str| response.header(name).unwrap_or_default().to_owned();
        let (kind, disposition) = (header("content-type"), header("content-disposition"));
        let mut bytes = Vec::new();
        response.into_reader().read_to_end(&mut bytes).unwrap();
        (bytes, kind, disposition)
    }

    /// Status and JSON of a request with a body.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.request(method, path).set("content-type", "application/json");
        self.noted(method, path, answer(request.send_string(&body.to_string())))
    }

    /// What comes of a request that must succeed.
    pub fn post(&self, path: &str, body: &Value) -> Value {
        let (status, value) = self.send("POST", path, body);
        assert!(status < 300, "{path}: {status} {value}");
        value
    }

    /// A new set with the files.
    pub fn set_of(&self, files: &[(&str, Vec<u8>)]) -> Value {
        let set = self.post("/api/sets", &json!({}));
        let (status, set) = self.upload(&format!("/api/sets/{}/files", set["id"].as_str().unwrap()), "files", files);
        assert_eq!(status, 200, "{set}");
        set
    }

    /// Sends files as a form.
    pub fn upload(&self, path: &str, field: &str, files: &[(&str, Vec<u8>)]) -> (u16, Value) {
        let (body, kind) = form(field, files);
        self.noted("POST", path, answer(self.request("POST", path).set("content-type", &kind).send_bytes(&body)))
    }

    /// The job once `is_it` holds of it.
    pub fn wait_for(&self, id: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let job = self.get(&format!("/api/jobs/{id}"));
            if is_it(&job) {
                return job;
            }
            assert!(began.elapsed() < PATIENCE, "{job}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The job once it is over.
    pub fn wait_until_over(&self, id: &str) -> Value {
        self.wait_for(id, |job| !["queued", "running", "paused", "stopping"].contains(&job["state"].as_str().unwrap()))
    }

    /// Events after the row `after`, one by one.
    pub fn events(&self, after: u64) -> impl Iterator<Item = (u64, Value)> {
        let response = self.request("GET", "/api/events").set("last-event-id", &after.to_string()).call().unwrap();
        assert_eq!(response.header("content-type"), Some("text/event-stream"));
        let mut number = 0;
        BufReader::new(response.into_reader()).lines().map_while(Result::ok).filter_map(move |line| {
            if let Some(id) = line.strip_prefix("id:") {
                number = id.trim().parse().unwrap();
            }
            Some((number, serde_json::from_str(line.strip_prefix("data:")?).unwrap()))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn command(data: &Path, more: &[&str]) -> Command {
    let mut command =
        lorabooth_command(&["serve", "--port", "0", "--device", "cpu", "--threads", "1", "--json", "--data-dir"]);
    command.arg(data).args(more);
    command
}

/// A server that must not start.
pub fn refused(data: &Path, more: &[&str]) -> Output {
    let output = command(data, more).output().unwrap();
    assert!(!output.status.success());
    output
}

fn answer(result: Result<ureq::Response, ureq::Error>) -> (u16, Value) {
    let response = match result {
        Ok(response) | Err(ureq::Error::Status(_, response)) => response,
        Err(error) => panic!("{error}"),
    };
    let status = response.status();
    let text = response.into_string().unwrap_or_default();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// A multipart body and its content type.
pub fn form(field: &str, files: &[(&str, Vec<u8>)]) -> (Vec<u8>, String) {
    const BOUNDARY: &str = "a-line-that-no-file-has-5f2c";
    let mut body = Vec::new();
    for (name, bytes) in files {
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
             content-type: application/octet-stream\r\n\r\n"
        );
        body.extend(head.as_bytes());
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").as_bytes());
    (body, format!("multipart/form-data; boundary={BOUNDARY}"))
}

/// A photo of the demo's subject.
pub fn photo(number: usize) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("assets/subject/{number}.png"))).unwrap()
}

/// Photos of the demo's subject.
pub fn photos(count: usize) -> Vec<(String, Vec<u8>)> {
    (1..=count).map(|number| (format!("penguin {number}.png"), photo(number))).collect()
}

/// A set of them.
pub fn subject(server: &Server, count: usize) -> String {
    let photos = photos(count);
    let files: Vec<(&str, Vec<u8>)> = photos.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    server.set_of(&files)["id"].as_str().unwrap().to_owned()
}

/// A short training of the demo's model; `more` wins.
pub fn training(set: &str, steps: u64, more: &Value) -> Value {
    let mut options = json!({
        "model": "demo", "instance_prompt": "a photo of sks bird", "max_train_steps": steps, "train_batch_size": 1, "lora_r": 2,
        "mixed_precision": "no", "validation_prompt": "", "seed": 3,
    });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "kind": "train_dreambooth", "set": set, "options": options })
}

/// The text at `path` of a JSON value, which must be there.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {path} of {value}"))
}
