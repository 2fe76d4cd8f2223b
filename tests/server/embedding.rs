//! The page in a frame of another site, and behind a proxy that has TLS.

use super::client::{refused, text, Server};
use serde_json::{json, Value};
use std::path::Path;
use std::process::Command;

/// Headers of the answer to `GET path` that came through a proxy with TLS, or without.
fn headers(server: &Server, path: &str, protocol: Option<&str>) -> impl Fn(&str) -> String {
    let request = server.request("GET", path);
    let answer = match protocol {
        Some(protocol) => request.set("x-forwarded-proto", protocol).call(),
        None => request.call(),
    };
    let answer = answer.unwrap();
    move |name| answer.header(name).unwrap_or_default().to_owned()
}

const SPACE: [&str; 5] = ["--public", "--host-name", "me-my-space.hf.space", "--embed-in", "https://huggingface.co"];

#[test]
fn a_site_that_was_named_may_show_the_page_and_its_cookie_goes_along_there() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &SPACE);
    for path in ["/", "/api/state"] {
        let of = headers(&server, path, Some("https"));
        assert!(of("content-security-policy").ends_with("; frame-ancestors https://huggingface.co"), "{path}");
        assert_eq!((of("x-frame-options"), of("access-control-allow-origin")), (String::new(), String::new()));
        let cookie = of("set-cookie");
        for part in ["lorabooth_visitor=", "; HttpOnly", "; Path=/", "; Secure", "; SameSite=None", "; Partitioned"] {
            assert!(cookie.contains(part), "{path}: {part} is not in {cookie}");
        }
    }
    // A browser takes no such cookie without TLS.
    let cookie = headers(&server, "/", None)("set-cookie");
    assert!(cookie.contains("; SameSite=Lax") && !cookie.contains("Secure"), "{cookie}");
}

#[test]
fn without_that_nobody_may() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &["--public"]);
    let of = headers(&server, "/", Some("https"));
    assert!(of("content-security-policy").ends_with("; frame-ancestors 'none'"));
    assert_eq!(of("x-frame-options"), "DENY");
    let cookie = of("set-cookie");
    assert!(cookie.contains("; Secure; SameSite=Lax") && !cookie.contains("None"), "{cookie}");
    drop(server);
    let output = refused(folder.path(), &["--embed-in", "https://a.example; script-src *"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(text(&told, "/text").contains("--embed-in https://a.example; script-src * is no site"), "{told}");
}

#[test]
fn the_page_in_the_frame_is_the_same_visitor_and_may_post_and_the_site_around_it_may_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &SPACE);
    let cookie = headers(&server, "/", Some("https"))("set-cookie");
    let cookie = cookie.split(';').next().unwrap();
    let post = |origin: &str, site: &str| {
        let request = server.request("POST", "/api/sets").set("host", "me-my-space.hf.space").set("cookie", cookie);
        let sent = request
            .set("x-forwarded-proto", "https")
            .set("origin", origin)
            .set("sec-fetch-site", site)
            .set("sec-fetch-dest", "empty")
            .send_string("{\"example\": \"penguin\"}");
        match sent {
            Ok(answer) | Err(ureq::Error::Status(_, answer)) => (answer.status(), answer.into_string().unwrap()),
            Err(error) => panic!("{error}"),
        }
    };
    // As Chromium sends it from inside the frame, and as a browser does that knows no Sec-Fetch-Site.
    let (status, set) = post("https://me-my-space.hf.space", "same-origin");
    assert_eq!(status, 201, "{set}");
    assert_eq!(post("https://me-my-space.hf.space", "").0, 201);
    assert_eq!(post("https://huggingface.co", "cross-site").0, 403);
    assert_eq!(post("https://other.hf.space", "same-site").0, 403);
    let id = text(&serde_json::from_str(&set).unwrap(), "/id").to_owned();
    let seen = |cookie: &str| {
        let request = server.request("GET", &format!("/api/sets/{id}")).set("cookie", cookie);
        request.call().map_or_else(|error| error.into_response().unwrap().status(), |answer| answer.status())
    };
    assert_eq!((seen(cookie), seen("lorabooth_visitor=")), (200, 404));
    let photos: Value = serde_json::from_str(&set).unwrap();
    assert_eq!(photos["photos"].as_array().unwrap().len(), 6, "{}", json!(photos));
}

/// The flags with which `examples/space` starts the server, in a Space called so.
fn flags_of_the_space(name: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/space");
    let text = std::fs::read_to_string(folder.join("Dockerfile")).unwrap();
    let command = text.lines().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    let words: Vec<String> = serde_json::from_str(command).unwrap();
    assert_eq!(words[..2], ["sh", "-c"]);
    let shown = words[2].replace("exec lorabooth serve", "printf '%s\\n'");
    let mut shell = Command::new("sh");
    shell.args(["-c", &shown]).env_remove("LORABOOTH_MODEL").env("SPACE_HOST", name);
    let flags = String::from_utf8(shell.output().unwrap().stdout).unwrap();
    let flags: Vec<String> = flags.lines().map(str::to_owned).collect();
    let about = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let front = about.split("---\n").nth(1).unwrap();
    let port = front.lines().find_map(|line| line.strip_prefix("app_port: ")).unwrap();
    assert!(flags.windows(2).any(|pair| pair == ["--port", port]), "{flags:?}");
    assert!(front.contains("sdk: docker") && front.contains("suggested_hardware: t4-small"));
    flags
}

#[test]
fn the_spaces_command_serves_visitors_under_the_spaces_name() {
    let mut flags = flags_of_the_space("me-my-space.hf.space");
    // Port and folder are this test's own.
    for own in ["--port", "--data-dir"] {
        let at = flags.iter().position(|flag| flag == own).unwrap();
        flags.drain(at..at + 2);
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
    let status = |host: &str| match server.request("GET", "/api/state").set("host", host).call() {
        Ok(answer) | Err(ureq::Error::Status(_, answer)) => (answer.status(), answer.into_string().unwrap()),
        Err(error) => panic!("{error}"),
    };
    let (found, state) = status("me-my-space.hf.space");
    assert!(found == 200 && state.contains("\"public\":true"), "{found} {state}");
    assert_eq!(status("evil.example").0, 421);
    let policy = headers(&server, "/", Some("https"))("content-security-policy");
    assert!(policy.ends_with("frame-ancestors https://huggingface.co"), "{policy}");
    // Outside of a Space there is no such name.
    assert!(!flags_of_the_space("").contains(&"--host-name".to_owned()));
}
