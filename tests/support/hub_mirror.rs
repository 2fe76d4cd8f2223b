//! A hub that keeps to the rules, and breaks them where a test says how.

use lorabooth::weights::hub::{Hub, Request};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const ID: &str = "someone/a-model";
pub const TOKEN: &str = "hf_a_secret_token";
pub const WEIGHTS: &str = "model.safetensors";

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Asked {
    /// The first byte that is asked for.
    pub fn from(&self) -> usize {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0)
    }

    pub fn is_for(&self, file: &str) -> bool {
        self.path == format!("/{ID}/resolve/{COMMIT}/{file}")
    }

    pub fn is_for_the_list(&self) -> bool {
        self.path.starts_with("/api/models/")
    }
}

/// Answers a request in its own way, or leaves it (false) to the rules.
pub type Mischief = Arc<dyn Fn(&Asked, &mut TcpStream) -> bool + Send + Sync>;

struct State {
    files: BTreeMap<String, Vec<u8>>,
    mischief: Option<Mischief>,
    asked: Vec<Asked>,
}

pub struct Server {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>, mischief: Option<Mischief>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { files, mischief, asked: Vec::new() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, state }
    }

    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).asked)
    }

    pub fn misbehave(&self, mischief: Option<Mischief>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).mischief = mischief;
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())));
    let asked = Asked { path, headers: headers.collect() };
    let (mischief, files) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(asked.clone());
        (state.mischief.clone(), state.files.clone())
    };
    // Without the lock: an answer can last.
    if !mischief.is_some_and(|mischief| mischief(&asked, &mut stream)) {
        by_the_rules(&asked, &files, &mut stream);
    }
}

fn by_the_rules(asked: &Asked, files: &BTreeMap<String, Vec<u8>>, stream: &mut TcpStream) {
    let name = asked.path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/"));
    match name.and_then(|name| files.get(name)) {
        _ if asked.is_for_the_list() => answer(stream, "200 OK", &[], list(files.keys()).to_string().as_bytes()),
        None => answer(stream, "404 Not Found", &[("x-error-code", "EntryNotFound")], b""),
        Some(bytes) if asked.from() > 0 && asked.from() >= bytes.len() => {
            answer(stream, "416 Range Not Satisfiable", &[("content-range", &format!("bytes */{}", bytes.len()))], b"");
        }
        Some(bytes) => file(stream, asked.from(), bytes, &[]),
    }
}

/// A repository's list of files.
pub fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> Value {
    let siblings: Vec<Value> = names.into_iter().map(|name| json!({ "rfilename": name })).collect();
    json!({ "sha": COMMIT, "siblings": siblings })
}

/// Answers with a file from the byte `from` on, as the hub does, but for `headers`.
pub fn file(stream: &mut TcpStream, from: usize, bytes: &[u8], headers: &[(&str, &str)]) {
    let range = format!("bytes {from}-{}/{}", bytes.len().max(1) - 1, bytes.len());
    let etag = format!("\"{}\"", sha256(bytes));
    let usual = [("etag", etag.as_str()), ("x-repo-commit", COMMIT), ("content-range", range.as_str())];
    let kept = usual.iter().filter(|(name, _)| headers.iter().all(|(other, _)| other != name));
    // An empty value is a header that is not sent.
    let all: Vec<(&str, &str)> = kept.chain(headers).copied().filter(|(_, value)| !value.is_empty()).collect();
    answer(stream, "206 Partial Content", &all, &bytes[from..]);
}

/// Answers, and closes.
pub fn answer(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
    if headers.iter().all(|(name, _)| !matches!(*name, "content-length" | "transfer-encoding")) {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    // The client may hang up at any time.
    _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A safetensors file of so many numbers.
pub fn weights(count: usize) -> Vec<u8> {
    let header = format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{count}],\"data_offsets\":[0,{}]}}}}", count * 4);
    let data = (0..count as u32).flat_map(u32::to_le_bytes);
    (header.len() as u64).to_le_bytes().into_iter().chain(header.into_bytes()).chain(data).collect()
}

/// A small language model's files.
pub fn model() -> BTreeMap<String, Vec<u8>> {
    let files = [("config.json", b"{}".to_vec()), ("tokenizer.json", b"{ }".to_vec()), (WEIGHTS, weights(50_000))];
    files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// A hub, a cache before it, and a file of the user's beside that.
pub struct Place {
    pub server: Server,
    pub hub: Hub,
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new(files: BTreeMap<String, Vec<u8>>, mischief: Option<Mischief>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("victim"), "mine").unwrap();
        let server = Server::start(files, mischief);
        let hub = Hub {
            endpoint: server.address.clone(),
            cache: folder.path().join("hub"),
            token: Some(TOKEN.into()),
            offline: false,
            patience: Duration::from_millis(300),
        };
        Self { server, hub, folder }
    }

    pub fn victim(&self) -> PathBuf {
        self.folder.path().join("victim")
    }

    /// Fetches the model.
    pub fn fetch(&self) -> Result<PathBuf, String> {
        let request = Request { id: ID, weights_of: &[""], ..Request::default() };
        self.hub.fetch_language_model(&request, &mut ()).map_err(|error| error.to_string())
    }

    /// What fetching fails with: one sentence without the token, and nothing outside the cache, nor any bad blob in it.
    pub fn fails(&self, case: &str) -> String {
        let message = self.fetch().err().unwrap_or_else(|| panic!("{case}: it did not fail"));
        assert!(!message.contains('\n') && !message.contains(TOKEN) && message.len() < 700, "{case}: {message}");
        assert!(!message.chars().any(char::is_control), "{case}: {message:?}");
        self.check_that_all_is_in_order(case);
        message
    }

    pub fn check_that_all_is_in_order(&self, case: &str) {
        assert_eq!(std::fs::read_to_string(self.victim()).unwrap(), "mine", "{case}");
        let mut beside: Vec<_> =
            std::fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        beside.retain(|name| name != "hub" && name != "victim");
        assert!(beside.is_empty(), "{case}: {beside:?} was written outside the cache");
        for blob in self.blobs() {
            let name = blob.file_name().unwrap().to_str().unwrap().to_owned();
            if !name.ends_with(".incomplete") {
                assert_eq!(name, sha256(&std::fs::read(&blob).unwrap()), "{case}: a bad blob was kept");
            }
        }
    }

    pub fn blobs(&self) -> Vec<PathBuf> {
        let folder = self.hub.cache.join("models--someone--a-model/blobs");
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    /// The blob of these bytes while it comes.
    pub fn incomplete(&self, bytes: &[u8]) -> PathBuf {
        self.hub.cache.join("models--someone--a-model/blobs").join(format!("{}.incomplete", sha256(bytes)))
    }
}

/// A mischief in the answers about `file`.
pub fn about(
    file: &'static str,
    mischief: impl Fn(&Asked, &mut TcpStream) + Send + Sync + 'static,
) -> Option<Mischief> {
    Some(Arc::new(move |asked, stream| {
        let is_meant = asked.is_for(file);
        if is_meant {
            mischief(asked, stream);
        }
        is_meant
    }))
}

/// A mischief in the list of files.
pub fn in_the_list(mischief: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Option<Mischief> {
    Some(Arc::new(move |asked, stream| {
        let is_meant = asked.is_for_the_list();
        if is_meant {
            mischief(stream);
        }
        is_meant
    }))
}

/// Sends `bytes` again and again, until the client has had enough.
pub fn endlessly(stream: &mut TcpStream, bytes: &[u8]) {
    while stream.write_all(bytes).is_ok() {}
}

/// Waits until the client hangs up.
pub fn silence(stream: &mut TcpStream) {
    _ = std::io::copy(stream, &mut std::io::sink());
}

/// The files in a folder, whatever they are.
pub fn content(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap()
}
