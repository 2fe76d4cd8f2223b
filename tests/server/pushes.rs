//! Adapters that are pushed to a hub from a page.

use super::client::{subject, text, training, Server};
use crate::support::push_hub::{HubServer, TOKEN};
use serde_json::{json, Value};
use std::path::Path;

/// Whether a file under `folder` holds `text`.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).any(|path| match path.is_dir() {
        true => holds(&path, text),
        false => String::from_utf8_lossy(&std::fs::read(path).unwrap()).contains(text),
    })
}

#[test]
fn an_adapter_goes_to_the_hub_and_its_token_stays_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let hub = HubServer::start();
    let environment = [("HF_ENDPOINT", hub.address.as_str()), ("HF_HUB_OFFLINE", "0"), ("HF_HOME", "/none")];
    let server = Server::start_in(folder.path(), &[], &environment);
    let job = server.post("/api/jobs", &training(&subject(&server, 2), 1, &json!({})));
    let id = text(&job, "/id").to_owned();
    assert_eq!(server.wait_until_over(&id)["state"], "finished");
    let path = format!("/api/adapters/{id}/push");
    for (body, field) in [
        (json!({ "repo": "me/dog" }), "token"),
        (json!({ "repo": "a dog", "token": TOKEN }), "repo"),
        (json!({ "repo": "me/dog", "token": TOKEN, "license": "Mine!" }), "license"),
        (json!({ "repo": "me/dog", "token": TOKEN, "checkpoint": 77 }), "checkpoint"),
    ] {
        let (status, refused) = server.send("POST", &path, &body);
        assert_eq!((status, refused["error"]["field"].as_str()), (422, Some(field)), "{refused}");
        assert!(!refused.to_string().contains(TOKEN));
    }
    assert!(hub.kept().asked.is_empty());
    // A name alone is a repository of the token's user.
    let pushed = server.post(&path, &json!({ "repo": "dog", "token": TOKEN, "license": "mit" }));
    assert!(!pushed.to_string().contains(TOKEN) && pushed["kind"] == "push", "{pushed}");
    let job = server.wait_until_over(text(&pushed, "/id"));
    assert_eq!((&job["state"], &job["error"]), (&json!("finished"), &json!(null)), "{job}");
    assert_eq!(job["results"]["text"], format!("{}/me/dog", hub.address));
    assert_eq!(server.get("/api/adapters")[0]["license"], "mit");
    {
        let kept = hub.kept();
        assert!(kept.is_private && kept.files.contains_key("pytorch_lora_weights.safetensors"));
        let card = String::from_utf8(kept.files["README.md"].clone()).unwrap();
        assert!(
            card.contains("instance_prompt: \"a photo of sks bird\"") && card.contains("license: \"mit\""),
            "{card}"
        );
        let root = folder.path().display().to_string();
        assert!(kept.files.values().all(|bytes| !String::from_utf8_lossy(bytes).contains(&root)));
    }
    // A second attempt at one that failed has no token any more.
    hub.refuse("preupload/main", "403 Forbidden", "{}");
    let pushed = server.post(&path, &json!({ "repo": "me/dog", "token": TOKEN }));
    let job = server.wait_until_over(text(&pushed, "/id"));
    assert!(job["state"] == "failed" && text(&job, "/error").contains("may not write"), "{job}");
    server.post(&format!("/api/jobs/{}/resume", text(&pushed, "/id")), &json!({}));
    let job = server.wait_until_over(text(&pushed, "/id"));
    assert!(text(&job, "/error").contains("push the adapter again") && job["field"] == "token", "{job}");
    assert!(!holds(folder.path(), TOKEN));
}

#[test]
fn a_push_waits_for_no_training_and_pushes_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let hub = HubServer::start();
    let environment = [("HF_ENDPOINT", hub.address.as_str()), ("HF_HUB_OFFLINE", "0"), ("HF_HOME", "/none")];
    let server = Server::start_in(folder.path(), &[], &environment);
    let set = subject(&server, 2);
    let adapter = text(&server.post("/api/jobs", &training(&set, 1, &json!({}))), "/id").to_owned();
    assert_eq!(server.wait_until_over(&adapter)["state"], "finished");
    let add = |body: &Value| text(&server.post("/api/jobs", body), "/id").to_owned();
    let (long, behind) = (add(&training(&set, 100_000, &json!({}))), add(&training(&set, 1, &json!({}))));
    server.wait_for(&long, |job| job["progress"]["phase"] == "training");

    // While this is held the hub answers nobody.
    let held = hub.kept();
    let push = |repo: &str| {
        let body = json!({ "repo": format!("me/{repo}"), "token": TOKEN });
        text(&server.post(&format!("/api/adapters/{adapter}/push"), &body), "/id").to_owned()
    };
    let [first, second, third] = ["first", "second", "third"].map(push);
    server.wait_for(&first, |job| job["state"] == "running");
    let place = |id: &str| server.get(&format!("/api/jobs/{id}"))["position"].clone();
    assert_eq!([&first, &second, &third, &behind].map(|id| place(id)), [json!(null), json!(1), json!(2), json!(1)]);
    let (status, moved) = server.send("PATCH", &format!("/api/jobs/{third}"), &json!({ "position": 1 }));
    assert_eq!((status, &moved["position"]), (200, &json!(1)), "{moved}");
    assert_eq!([&second, &behind].map(|id| place(id)), [json!(2), json!(1)]);
    drop(held);
    for id in [&first, &third, &second] {
        let job = server.wait_until_over(id);
        assert_eq!((&job["state"], &job["memory_bytes"]), (&json!("finished"), &json!(null)), "{job}");
    }
    assert_eq!(server.get(&format!("/api/jobs/{long}"))["state"], "running");
    let made: Vec<Value> =
        hub.kept().asked.iter().filter(|asked| asked.path.ends_with("/create")).map(|asked| asked.json()).collect();
    let names: Vec<&str> = made.iter().map(|body| text(body, "/name")).collect();
    assert_eq!(names, ["first", "third", "second"]);

    // A server that is killed knows the token no more.
    let held = hub.kept();
    let [cut, waiting] = ["fourth", "fifth"].map(push);
    server.wait_for(&cut, |job| job["state"] == "running");
    server.end("-KILL");
    drop(held);
    let server = Server::start_in(folder.path(), &[], &environment);
    let cut = server.get(&format!("/api/jobs/{cut}"));
    assert_eq!((&cut["state"], &cut["actions"]), (&json!("interrupted"), &json!([])), "{cut}");
    let waiting = server.wait_until_over(&waiting);
    assert!(waiting["state"] == "failed" && waiting["field"] == "token", "{waiting}");
    assert_eq!(server.get(&format!("/api/jobs/{long}"))["state"], "interrupted");
    assert_eq!(server.wait_until_over(&behind)["state"], "finished");
    // A server's end waits for neither.
    let (code, took) = server.end("-TERM");
    assert!(code == Some(0) && took < std::time::Duration::from_secs(30), "{code:?} after {took:?}");
}
