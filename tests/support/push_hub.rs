//! A hub that is pushed to: it keeps what it is given, and refuses where a test says so.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub const TOKEN: &str = "hf_a_secret_token";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// Whether it came to the host of large files.
    pub is_storage: bool,
}

impl Asked {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Status, headers and body in place of the usual answer.
pub type Refusal = (&'static str, Vec<(&'static str, String)>, String);

#[derive(Default)]
pub struct Kept {
    /// Files of the repository.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Large files by their SHA-256.
    pub objects: BTreeMap<String, Vec<u8>>,
    pub is_there: bool,
    pub is_private: bool,
    pub asked: Vec<Asked>,
    /// Answers to requests whose path has such an end.
    pub refusals: BTreeMap<&'static str, Refusal>,
    pub commits: Vec<Vec<Value>>,
    /// A header that comes with each place of a large file.
    pub storage_header: Option<(String, String)>,
}

pub struct HubServer {
    pub address: String,
    pub storage: String,
    kept: Arc<Mutex<Kept>>,
}

impl HubServer {
    pub fn start() -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, storage] =
            [0, 1].map(|index: usize| format!("http://{}", listeners[index].local_addr().unwrap()));
        for (is_storage, listener) in [false, true].into_iter().zip(listeners) {
            let (kept, storage) = (kept.clone(), storage.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (kept, storage) = (kept.clone(), storage.clone());
                    std::thread::spawn(move || serve(stream, is_storage, &storage, &kept));
                }
            });
        }
        Self { address, storage, kept }
    }

    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests whose path ends so are answered with this from now on.
    pub fn refuse(&self, end: &'static str, status: &'static str, body: &str) {
        self.kept().refusals.insert(end, (status, Vec::new(), body.to_owned()));
    }
}

fn serve(mut stream: TcpStream, is_storage: bool, storage: &str, kept: &Mutex<Kept>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = || {
        let mut line = String::new();
        _ = reader.read_line(&mut line);
        line.trim_end().to_owned()
    };
    let first = line();
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = line().split_once(": ") {
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let asked = Asked { method, path, headers, body, is_storage };
    let (status, more, text) = {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.asked.push(asked.clone());
        let refusal =
            kept.refusals.iter().find(|(end, _)| asked.path.ends_with(*end)).map(|(_, answer)| answer.clone());
        refusal.unwrap_or_else(|| {
            let (status, value) = answer(&asked, storage, &mut kept);
            (status, Vec::new(), value.to_string())
        })
    };
    let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", text.len());
    more.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    _ = stream.write_all(format!("{head}\r\n{text}").as_bytes());
}

fn answer(asked: &Asked, storage: &str, kept: &mut Kept) -> (&'static str, Value) {
    if asked.is_storage {
        let oid = asked.path.trim_start_matches("/put/").to_owned();
        if asked.method != "PUT" || sha256(&asked.body) != oid {
            return ("400 Bad Request", json!({}));
        }
        kept.objects.insert(oid, asked.body.clone());
        return ("200 OK", json!({}));
    }
    if asked.headers.get("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return ("401 Unauthorized", json!({ "error": "Invalid username or password." }));
    }
    match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", "/api/whoami-v2") => ("200 OK", json!({ "name": "me", "type": "user" })),
        ("POST", "/api/repos/create") if kept.is_there => {
            ("409 Conflict", json!({ "error": "You already created this model repo" }))
        }
        ("POST", "/api/repos/create") => {
            kept.is_there = true;
            kept.is_private = asked.json()["visibility"] == "private";
            ("200 OK", json!({ "url": "https://elsewhere.example/me/dog" }))
        }
        ("GET", path) if path.starts_with("/api/models/me/") => {
            let siblings: Vec<Value> = kept.files.keys().map(|name| json!({ "rfilename": name })).collect();
            ("200 OK", json!({ "private": kept.is_private, "siblings": siblings }))
        }
        ("POST", path) if path.ends_with("/preupload/main") => {
            let body = asked.json();
            let mode = |file: &Value| {
                let is_large = file["path"].as_str().unwrap().ends_with(".safetensors");
                let mode = if is_large { "lfs" } else { "regular" };
                json!({ "path": file["path"], "uploadMode": mode, "shouldIgnore": false, "oid": null })
            };
            ("200 OK", json!({ "files": body["files"].as_array().unwrap().iter().map(mode).collect::<Vec<_>>() }))
        }
        ("POST", path) if path.ends_with(".git/info/lfs/objects/batch") => {
            let body = asked.json();
            let place = |object: &Value| {
                let oid = object["oid"].as_str().unwrap();
                if kept.objects.contains_key(oid) {
                    return json!({ "oid": oid, "size": object["size"] });
                }
                let mut upload =
                    json!({ "href": format!("{storage}/put/{oid}"), "header": { "x-amz-given": "as told" } });
                if let Some((name, value)) = &kept.storage_header {
                    upload["header"][name] = json!(value);
                }
                json!({ "oid": oid, "size": object["size"], "actions": { "upload": upload } })
            };
            ("200 OK", json!({ "objects": body["objects"].as_array().unwrap().iter().map(place).collect::<Vec<_>>() }))
        }
        ("POST", path) if path.ends_with("/commit/main") => {
            let lines: Vec<Value> = String::from_utf8(asked.body.clone())
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            for line in &lines {
                let value = &line["value"];
                let path = value["path"].as_str().unwrap_or_default().to_owned();
                match line["key"].as_str().unwrap() {
                    "file" => {
                        assert_eq!(value["encoding"], "base64");
                        kept.files.insert(path, STANDARD.decode(value["content"].as_str().unwrap()).unwrap());
                    }
                    "lfsFile" => {
                        assert_eq!(value["algo"], "sha256");
                        let Some(bytes) = kept.objects.get(value["oid"].as_str().unwrap()).cloned() else {
                            return ("400 Bad Request", json!({ "error": "an object is missing" }));
                        };
                        assert_eq!(value["size"], bytes.len());
                        kept.files.insert(path, bytes);
                    }
                    "deletedFile" => drop(kept.files.remove(&path)),
                    "header" => assert!(value["summary"].is_string()),
                    other => panic!("a line of the kind {other}"),
                }
            }
            kept.commits.push(lines);
            ("200 OK", json!({ "success": true, "commitOid": COMMIT, "commitUrl": "https://elsewhere.example" }))
        }
        _ => ("404 Not Found", json!({ "error": "Not found" })),
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
