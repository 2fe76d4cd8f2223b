//! What a server refuses: strangers, other names, what is not there, a second server.

use super::client::{form, photo, refused, subject, text, training, Server};
use serde_json::{json, Value};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn without_the_password_nothing_but_the_page_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &["--auth", "anna:se:cret"]);
    assert_eq!(
        server.get("/api/state"),
        json!({ "version": env!("CARGO_PKG_VERSION"), "public": false, "signed_in": false })
    );
    for path in ["/api/jobs", "/api/events", "/api/images/0", "/api/adapters", "/api/options/dreambooth", "/config"] {
        assert_eq!(server.ask("GET", path).0, 401, "{path}");
    }
    let (body, kind) = form("files", &[("a.png", photo(1))]);
    let upload = server.request("POST", "/api/sets/x/files").set("content-type", &kind).send_bytes(&body);
    assert_eq!(upload.unwrap_err().into_response().unwrap().status(), 401);
    let (status, wrong) = server.send("POST", "/login", &json!({ "username": "anna", "password": "secret" }));
    assert!(status == 401 && text(&wrong, "/error/sentence").contains("wrong user or password"));
    let (multipart, multipart_kind) = credentials_form();
    for (kind, body) in [
        ("application/x-www-form-urlencoded", b"username=anna&password=se%3Acret".to_vec()),
        ("application/json", json!({ "username": "anna", "password": "se:cret" }).to_string().into_bytes()),
        (multipart_kind.as_str(), multipart),
    ] {
        let signed_in = server.request("POST", "/login").set("content-type", kind).send_bytes(&body).unwrap();
        let cookie = signed_in.header("set-cookie").unwrap().to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"));
        let cookie = cookie.split(';').next().unwrap();
        assert_eq!(server.request("GET", "/api/jobs").set("cookie", cookie).call().unwrap().status(), 200);
        server.request("POST", "/logout").set("cookie", cookie).call().unwrap();
        let over = server.request("GET", "/api/jobs").set("cookie", cookie).call();
        assert_eq!(over.unwrap_err().into_response().unwrap().status(), 401);
    }
}

fn credentials_form() -> (Vec<u8>, String) {
    let part = |name: &str, value: &str| {
        format!("--line\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let body = format!("{}{}--line--\r\n", part("username", "anna"), part("password", "se:cret"));
    (body.into_bytes(), "multipart/form-data; boundary=line".to_owned())
}

#[test]
fn an_open_address_needs_a_password_or_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let output = refused(folder.path(), &["--host", "0.0.0.0"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(text(&told, "/text").contains("--no-auth"), "{told}");
    let server = Server::start_with(folder.path(), &["--host", "0.0.0.0", "--no-auth"]);
    assert_eq!(server.get("/api/state")["signed_in"], true);
}

#[test]
fn other_names_and_other_sites_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &["--host-name", "my-demo.example"]);
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let status = |host: &str| {
        let head = raw(&server, &format!("GET /api/state HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"));
        head.split(' ').nth(1).unwrap().to_owned()
    };
    for host in ["127.0.0.1", "localhost", "my-demo.example", &format!("localhost:{port}"), "[::1]:1"] {
        assert_eq!(status(host), "200", "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "my-demo.example.evil.example", "a b", ""] {
        assert!(["421", "400"].contains(&status(host).as_str()), "{host}");
    }
    for origin in ["https://evil.example", "null"] {
        let sent = server
            .request("POST", "/api/sets")
            .set("origin", origin)
            .set("content-type", "application/json")
            .send_string("{}");
        assert_eq!(sent.unwrap_err().into_response().unwrap().status(), 403, "{origin}");
    }
    let own = server.url.clone();
    assert_eq!(server.request("POST", "/api/sets").set("origin", &own).send_string("{}").unwrap().status(), 201);
}

fn raw(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn what_is_not_there_is_404_and_what_is_wrong_4xx_each_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for (method, path, status) in [
        ("GET", "/api/nonsense", 404),
        ("GET", "/nonsense.js", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/api/jobs/0123456789abcdef", 404),
        ("GET", "/api/jobs/..%2f..%2fetc/metrics", 404),
        ("GET", "/api/images/..%2fserver.sqlite", 404),
        ("GET", "/api/photos/%00", 404),
        ("GET", "/api/adapters/x/download?format=peft", 404),
        ("GET", "/api/options/nonsense", 404),
        ("POST", "/api/jobs/x/stop", 404),
        ("DELETE", "/api/adapters/..", 404),
        ("PUT", "/api/jobs", 405),
        ("GET", "/api/jobs?limit=many", 400),
        ("POST", "/api/jobs", 415),
    ] {
        let (found, answer) = server.ask(method, path);
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert!(text(&answer, "/error/sentence").len() > 10);
    }
    for (body, status) in
        [("{", 400), ("[]", 400), ("{\"kind\":\"nonsense\"}", 422), ("{\"kind\":\"train_dreambooth\",\"x\":1}", 400)]
    {
        let sent = server.request("POST", "/api/jobs").set("content-type", "application/json").send_string(body);
        let response = sent.unwrap_err().into_response().unwrap();
        assert_eq!(response.status(), status, "{body}");
        assert!(response.into_string().unwrap().contains("sentence"));
    }
    let large = format!("{{\"kind\":\"{}\"}}", "x".repeat(1 << 20));
    let sent = server.request("POST", "/api/jobs").set("content-type", "application/json").send_string(&large);
    assert_eq!(sent.unwrap_err().into_response().unwrap().status(), 413);
}

/// Sends `body` in pieces, each a moment after the other, and only then reads the answer, as browsers do.
fn slowly(server: &Server, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    stream.write_all(format!("{head}host: localhost\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes()).unwrap();
    for piece in body.chunks(64 << 10) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn who_sends_too_much_reads_why_once_all_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &["--host-name", "localhost"]);
    let large = vec![b' '; 8 << 20];
    let json = "content-type: application/json\r\n";
    for (head, status) in [
        (format!("POST /api/jobs HTTP/1.1\r\n{json}"), "413"),
        (format!("POST /api/nonsense HTTP/1.1\r\n{json}"), "404"),
        (format!("POST /api/jobs HTTP/1.1\r\norigin: https://evil.example\r\n{json}"), "403"),
        (
            "POST /api/sets/nothing/files HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=x\r\n".to_owned(),
            "404",
        ),
    ] {
        let answer = slowly(&server, &head, &large);
        assert_eq!(answer.split(' ').nth(1), Some(status), "{head}: {answer}");
    }
}

#[test]
fn an_upload_of_more_than_is_taken_is_refused_before_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    let began = Instant::now();
    stream
        .write_all(
            b"POST /api/sets/any/files HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 9663676416\r\n\
              content-type: multipart/form-data; boundary=x\r\n\r\n",
        )
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 413") && text.contains("9.0 GB") && text.contains("at most 8 GB"), "{text}");
    // And who sends nothing more does not keep the connection.
    drop(stream.write_all(b"x"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn who_sends_on_slowly_for_ever_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    let head = "POST /api/nonsense HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let began = Instant::now();
    while stream.write_all(b"x").is_ok() {
        assert!(began.elapsed() < Duration::from_secs(90), "it still listens");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn every_answer_keeps_browsers_from_doing_more_than_the_page_needs() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for path in ["/", "/api/state", "/api/nonsense"] {
        let response = match server.request("GET", path).call() {
            Ok(response) | Err(ureq::Error::Status(_, response)) => response,
            Err(error) => panic!("{error}"),
        };
        assert!(response.header("content-security-policy").unwrap().starts_with("default-src 'none'"), "{path}");
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert!(response.header("access-control-allow-origin").is_none());
    }
    let page = server.request("GET", "/").set("accept-encoding", "gzip").call().unwrap();
    assert_eq!(
        (page.header("content-type"), page.header("content-encoding")),
        (Some("text/html; charset=utf-8"), Some("gzip"))
    );
    let tag = page.header("etag").unwrap().to_owned();
    let again = server.request("GET", "/").set("accept-encoding", "gzip").set("if-none-match", &tag).call().unwrap();
    assert_eq!(again.status(), 304);
}

#[test]
fn every_address_is_described_and_answers_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let document = server.get("/openapi.json");
    let paths = document["paths"].as_object().unwrap();
    assert!(["/api/jobs", "/api/events", "/login"].iter().all(|path| paths.contains_key(*path)));
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            if path == "/api/events" {
                continue;
            }
            let path = path
                .split('/')
                .map(|part| if part.starts_with('{') { "nothing" } else { part })
                .collect::<Vec<_>>()
                .join("/");
            let (status, answer) = server.ask(&method.to_uppercase(), &path);
            assert!(status != 405 && status < 500, "{method} {path}: {status} {answer}");
        }
    }
}

#[test]
fn a_second_server_is_told_of_the_first_and_a_taken_port_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let told = String::from_utf8(refused(folder.path(), &[]).stdout).unwrap();
    assert!(told.contains(&format!("process {}", server.process())) && told.contains(&server.url), "{told}");
    let port = server.url.rsplit(':').next().unwrap();
    let other = tempfile::tempdir().unwrap();
    let told = String::from_utf8(refused(other.path(), &["--port", port]).stdout).unwrap();
    assert!(told.contains("in use") && told.contains("ss -ltnp") && told.contains("--port 0"), "{told}");
}

#[test]
fn half_a_request_and_a_silent_one_are_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for begin in ["", "GET /api/state HTTP/1.1\r\nhost: local"] {
        let began = Instant::now();
        let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
        stream.write_all(begin.as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest));
        assert!(began.elapsed() < Duration::from_secs(30), "{begin:?}: {:?}", began.elapsed());
    }
    assert_eq!(server.get("/api/state")["signed_in"], true);
}

#[test]
fn hundreds_of_queued_jobs_take_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let set = subject(&server, 1);
    let running = text(&server.post("/api/jobs", &training(&set, 100_000, &json!({}))), "/id").to_owned();
    server.wait_for(&running, |job| job["progress"]["phase"] == "training");
    let add = |count: usize| (0..count).for_each(|_| drop(server.post("/api/jobs", &training(&set, 1, &json!({})))));
    add(50);
    let before = resident(server.process());
    add(500);
    let grown = resident(server.process()).saturating_sub(before);
    assert!(grown < 30 << 20, "{} MB", grown >> 20);
    assert_eq!(server.get("/api/jobs?limit=500").as_array().unwrap().len(), 500);
}

/// Bytes that a process holds, apart from mapped files.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}
