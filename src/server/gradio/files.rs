//! Files of clients. What a client calls a path is a key of a table, and whoever knows one may use it: nobody can guess it, and
//! Python's client sends no visitor's cookie along.

use super::super::accounts::Owner;
use super::super::failure::{Answer, Failure};
use super::super::ids::{hex, new_id, random_hex};
use super::super::library::{self, Format};
use super::super::pictures::{self, Size};
use super::super::request::{Id, Query};
use super::super::uploaded_file::{label, receive, stem, Temporary, MAX_FILE};
use super::super::App;
use crate::error::Result;
use axum::body::Body;
use axum::extract::{Multipart, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use axum::Json;
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Uploads that no call used, and addresses of files, are kept for as long.
const KEPT: Duration = Duration::from_secs(6 * 3600);
/// Bytes of all uploads; the oldest go.
const MAX_BYTES: u64 = 16 << 30;
/// Keys that are kept; the oldest go.
const MAX_KEYS: usize = 50_000;
/// Files of one call.
const MAX_FILES: usize = 10_000;

/// What a key stands for.
#[derive(Clone)]
enum Content {
    /// What a client sent.
    Upload(Arc<Upload>),
    /// A picture by its id.
    Picture(String),
    /// An adapter by its id.
    Adapter(String, Format),
}

/// An uploaded file.
pub struct Upload {
    /// What it was called.
    pub name: String,
    /// Where it lies.
    pub file: Temporary,
    bytes: u64,
}

struct Entry {
    owner: String,
    content: Content,
    since: Instant,
}

impl Entry {
    fn bytes(&self) -> u64 {
        match &self.content {
            Content::Upload(upload) => upload.bytes,
            Content::Picture(_) | Content::Adapter(..) => 0,
        }
    }
}

/// The table.
pub struct Files {
    entries: Mutex<HashMap<String, Entry>>,
    /// Makes keys of results that stay the same, and that nobody else can make.
    secret: String,
}

impl Files {
    /// An empty one.
    pub fn new() -> Result<Self> {
        Ok(Self { entries: Mutex::default(), secret: random_hex(32)? })
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, key: &str, owner: &str, content: Content) {
        let mut entries = self.entries();
        let entry = Entry { owner: owner.to_owned(), content, since: Instant::now() };
        entries.insert(key.to_owned(), entry);
        loop {
            let bytes: u64 = entries.values().map(Entry::bytes).sum();
            let (is_large, is_long) = (bytes > MAX_BYTES, entries.len() > MAX_KEYS);
            let candidates = entries.iter().filter(|(_, entry)| is_long || entry.bytes() > 0);
            let oldest = candidates.min_by_key(|(_, entry)| entry.since).map(|(key, _)| key.clone());
            match oldest.filter(|_| is_large || is_long) {
                Some(oldest) => entries.remove(&oldest),
                None => return,
            };
        }
    }

    /// Forgets what is old.
    pub fn sweep(&self) {
        self.entries().retain(|_, entry| entry.since.elapsed() < KEPT);
    }

    /// Forgets what is of `owner`.
    pub fn forget(&self, owner: &str) {
        self.entries().retain(|_, entry| entry.owner != owner);
    }

    fn find(&self, key: &str) -> Option<(String, Content)> {
        self.entries().get(key).map(|entry| (entry.owner.clone(), entry.content.clone()))
    }

    /// A file of `owner` as a client is given it, with the name `name`; `base` is how the client reaches the server.
    fn of_result(&self, base: &str, owner: &str, content: Content, name: &str) -> Value {
        let (what, id, kind) = match &content {
            Content::Picture(id) => ("pictures", id.clone(), "image/png"),
            Content::Adapter(id, Format::Peft) => ("adapters", format!("{id}.zip"), "application/zip"),
            Content::Adapter(id, _) => ("adapters", id.clone(), "application/octet-stream"),
            Content::Upload(_) => ("uploads", String::new(), "application/octet-stream"),
        };
        let token = hex(&Sha256::digest(format!("{} {owner} {what} {id}", self.secret)));
        let key = format!("{what}/{}/{name}", &token[..32]);
        self.insert(&key, owner, content);
        json!({
            "path": key, "url": format!("{base}/gradio_api/file={key}"), "orig_name": name, "mime_type": kind, "size": null,
            "is_stream": false, "meta": { "_type": "gradio.FileData" },
        })
    }

    /// A picture.
    pub fn picture(&self, base: &str, owner: &str, id: &str) -> Value {
        self.of_result(base, owner, Content::Picture(id.to_owned()), &format!("{id}.png"))
    }

    /// An adapter called `name`, in the formats that there are of it.
    pub fn adapter(&self, base: &str, owner: &str, id: &str, name: &str, is_language: bool) -> Vec<Value> {
        let stem = library::file_stem(name);
        let of = |format, end| {
            self.of_result(base, owner, Content::Adapter(id.to_owned(), format), &format!("{stem}.{end}"))
        };
        match is_language {
            true => vec![of(Format::Peft, "zip")],
            false => vec![of(Format::Kohya, "safetensors"), of(Format::Peft, "zip")],
        }
    }

    /// The uploads that a call names, with what each was called where the call says so.
    pub fn named_by(&self, value: &Value) -> Answer<Vec<(String, Arc<Upload>)>> {
        let list = match value {
            Value::Array(list) => list.as_slice(),
            Value::Null => &[],
            one => std::slice::from_ref(one),
        };
        if list.len() > MAX_FILES {
            return Err(Failure::field("files", format!("a call can have {MAX_FILES} files")));
        }
        list.iter().map(|file| self.upload_of(file)).collect()
    }

    fn upload_of(&self, file: &Value) -> Answer<(String, Arc<Upload>)> {
        let key = file.as_str().or_else(|| file["path"].as_str());
        let Some(key) = key else {
            return Err(Failure::field("files", "files must be a list of uploaded files"));
        };
        let lower = key.trim_start().to_ascii_lowercase();
        if ["http:", "https:", "ftp:", "file:", "data:", "//"].iter().any(|begin| lower.starts_with(begin)) {
            return Err(Failure::field(
                "files",
                "nothing is fetched from an address; download the file and upload it here",
            ));
        }
        let Some((_, Content::Upload(upload))) = self.find(key) else {
            let sentence = "a file was not uploaded to this server, or hours ago; upload it and name it as the upload was answered";
            return Err(Failure::field("files", sentence));
        };
        // JavaScript's client uploads a file from disk as `blob`, and says here what it was called.
        let name = file["orig_name"].as_str().map(label).unwrap_or_else(|| upload.name.clone());
        Ok((name, upload))
    }
}

/// `POST /gradio_api/upload`: the keys of what was uploaded.
pub async fn upload(State(app): State<App>, owner: Owner, mut form: Multipart) -> Answer {
    app.gradio.sweep();
    let mut keys = Vec::new();
    let broken = |_| Failure::bad("the upload broke off, or is not a form with files");
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let name = label(field.file_name().unwrap_or("file"));
        let Some(file) = receive(&app, field, MAX_FILE).await? else {
            let sentence = format!("{name} is larger than {} GB", MAX_FILE >> 30);
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, sentence));
        };
        let end: String = Path::new(&name)
            .extension()
            .and_then(|end| end.to_str())
            .filter(|end| end.bytes().all(|byte| byte.is_ascii_alphanumeric()))
            .map_or(String::new(), |end| format!(".{end}"));
        let key = format!("uploads/{}{}/{}{end}", new_id()?, new_id()?, library::file_stem(stem(&name)));
        let bytes = std::fs::metadata(&file.0).map_or(0, |about| about.len());
        app.gradio.files.insert(&key, owner.name(), Content::Upload(Arc::new(Upload { name, file, bytes })));
        keys.push(key);
    }
    Ok(Json(keys).into_response())
}

/// `GET /gradio_api/file=KEY`.
pub async fn send(State(app): State<App>, Id(address): Id<String>) -> Answer {
    let nothing = || {
        Failure::new(
            StatusCode::NOT_FOUND,
            "there is nothing at this address; /gradio_api/info lists what can be called",
        )
    };
    let key = address.strip_prefix("file=").ok_or_else(nothing)?;
    let (owner, content) = app.gradio.files.find(key).ok_or_else(|| Failure::not_found("file"))?;
    let owner = Owner::named(owner);
    match content {
        Content::Picture(id) => pictures::image(State(app), owner, Id(id), Query(Size::default())).await,
        Content::Adapter(id, format) => {
            library::download(State(app), owner, Id(id), Query(library::Wanted::whole(format))).await
        }
        Content::Upload(upload) => {
            let file = tokio::task::spawn_blocking(move || std::fs::read(&upload.file.0)).await;
            let Ok(Ok(bytes)) = file else { return Err(Failure::not_found("file")) };
            let mut response = Body::from(bytes).into_response();
            let headers = response.headers_mut();
            // It was not looked at, so no browser is to show it.
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
            Ok(response)
        }
    }
}
