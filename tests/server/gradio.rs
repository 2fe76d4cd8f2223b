//! gradio's own clients, Python's and JavaScript's, and curl drive `lorabooth serve`; what they do is in `tests/gradio/`.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use super::client::{text, Server};
use crate::support::{self, jobs};
use serde_json::{json, Value};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const PHOTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/subject");
/// JavaScript's client as npm names it.
const JAVASCRIPT: &str = "@gradio/client@2.7.0";

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gradio")
}

/// Runs `command`, and panics with what it printed if it fails.
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs `tests/gradio/SCRIPT` with Python's client.
fn python(script: &str, server: &Server, args: &[&str]) {
    run(support::interpreter().current_dir(scripts()).arg(script).arg(&server.url).arg(PHOTOS).args(args));
}

/// Runs `tests/gradio/drive.mjs` with JavaScript's client, where there is node.
fn javascript(server: &Server, args: &[&str]) {
    if Command::new("node").arg("--version").output().is_err() {
        eprintln!("skipped: there is no node, which JavaScript's client needs; install Node.js 20 or later");
        return;
    }
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gradio-client");
    if !packages.join("node_modules/@gradio/client/package.json").exists() {
        std::fs::create_dir_all(&packages).unwrap();
        let install = ["install", "--no-audit", "--no-fund", "--silent", JAVASCRIPT, "--prefix"];
        let fetched = Command::new("npm").args(install).arg(&packages).status();
        if !fetched.is_ok_and(|status| status.success()) {
            eprintln!("skipped: npm cannot fetch {JAVASCRIPT}; see above why");
            return;
        }
    }
    run(Command::new("node").arg(scripts().join("drive.mjs")).arg(&packages).args([&server.url, PHOTOS]).args(args));
}

#[test]
fn pythons_client_uploads_trains_follows_cancels_draws_and_downloads() {
    let (job, folder) = (jobs::gpt2(true), TempDir::new().unwrap());
    let model = job.folder.join("model").canonicalize().unwrap();
    python("drive.py", &Server::start_with(folder.path(), &["--model", model.to_str().unwrap()]), &[]);
}

#[test]
fn javascripts_client_uploads_trains_follows_cancels_draws_and_downloads() {
    let folder = TempDir::new().unwrap();
    javascript(&Server::start(folder.path()), &[]);
}

#[test]
fn both_clients_sign_in_with_a_password() {
    let folder = TempDir::new().unwrap();
    let server = Server::start_with(folder.path(), &["--auth", "anna:secret"]);
    python("password.py", &server, &[]);
    javascript(&server, &["anna", "secret"]);
}

#[test]
fn clients_of_a_public_server_see_nothing_of_each_other() {
    let folder = TempDir::new().unwrap();
    python("visitors.py", &Server::start_with(folder.path(), &["--public", "--max-steps", "5"]), &[]);
}

#[test]
fn curl_calls_by_name_and_reads_named_events() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    let read = |name: &str, body: &Value| {
        let event = server.post(&format!("/gradio_api/call/{name}"), body);
        let path = format!("/gradio_api/call/{name}/{}", text(&event, "/event_id"));
        let answer = server.request("GET", &path).call().unwrap();
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        let mut lines = String::new();
        answer.into_reader().read_to_string(&mut lines).unwrap();
        // An answer is read once.
        assert_eq!(server.ask("GET", &path).0, 404);
        lines
    };
    assert_eq!(read("runs", &json!({ "data": [] })), "event: complete\ndata: [[]]\n\n");
    let drawn = read("generate", &json!({ "data": ["a bird", "", 1, "", 2, null, 5] }));
    assert!(drawn.starts_with("event: generating\ndata: [[],{\"run\":\""), "{drawn}");
    let last: Value = serde_json::from_str(drawn.trim_end().rsplit("event: complete\ndata: ").next().unwrap()).unwrap();
    let picture = &last[0][0]["image"];
    assert_eq!((text(&last[0][0], "/caption"), text(picture, "/mime_type")), ("seed 5", "image/png"));
    let (bytes, kind, _) = server.bytes(&format!("/gradio_api/file={}", text(picture, "/path")));
    assert_eq!((&bytes[1..4], kind.as_str()), (b"PNG".as_slice(), "image/png"));
    assert_eq!(text(picture, "/url"), format!("{}/gradio_api/file={}", server.url, text(picture, "/path")));
    let wrong = read("generate", &json!({ "data": ["p", "no-such-adapter"] }));
    assert!(wrong.starts_with("event: error\ndata: {\"error\":\"") && wrong.contains("adapter"), "{wrong}");
    assert!(read("generate", &json!({ "data": [] })).contains("prompt is missing"));
    for (method, path) in [("POST", "/gradio_api/call/no_such"), ("POST", "/gradio_api/queue/join")] {
        let (status, refused) = server.send(method, path, &json!({ "data": [], "fn_index": 17, "session_hash": "s" }));
        assert_eq!(status, 404, "{refused}");
    }
    assert_eq!(server.ask("GET", "/gradio_api/call/runs/0123456789abcdef").0, 404);
}

#[test]
fn a_file_is_what_the_table_names_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    let (status, keys) = server.upload("/gradio_api/upload", "files", &[("../../my <b>.html", b"<script>".to_vec())]);
    assert_eq!((status, keys.as_array().unwrap().len()), (200, 1), "{keys}");
    let key = text(&keys, "/0");
    assert!(key.starts_with("uploads/") && key.ends_with("/my-b.html"), "{key}");
    let (bytes, kind, disposition) = server.bytes(&format!("/gradio_api/file={key}"));
    assert_eq!(
        (bytes.as_slice(), kind.as_str(), disposition.as_str()),
        (b"<script>".as_slice(), "application/octet-stream", "attachment")
    );
    for path in [
        "/etc/passwd",
        "server.sqlite",
        "..%2fserver.sqlite",
        "http://127.0.0.1/",
        "uploads",
        &format!("{key}/.."),
        "pictures/x.png",
    ] {
        let (status, refused) = server.ask("GET", &format!("/gradio_api/file={path}"));
        assert_eq!(status, 404, "{path}: {refused}");
    }
    assert_eq!(server.ask("GET", "/gradio_api/no-such").0, 404);
    for body in [json!([]), json!({ "data": 1 }), json!({ "data": [], "fn_index": 3 })] {
        let (status, refused) = server.send("POST", "/gradio_api/queue/join", &body);
        assert!((400..500).contains(&status) && !text(&refused, "/error/sentence").is_empty(), "{refused}");
    }
    let stream = server.bytes("/gradio_api/queue/data?session_hash=nobody").0;
    assert_eq!(stream, b"data: {\"msg\":\"close_stream\",\"event_id\":null}\n\n");
}
