//! Adapters that are pushed to a hub from a page.

use super::client::{subject, text, training, Server};
use super::hub::{HubServer, TOKEN};
use serde_json::json;
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
        (json!({ "repo": "dog", "token": TOKEN }), "repo"),
        (json!({ "repo": "me/dog", "token": TOKEN, "license": "Mine!" }), "license"),
        (json!({ "repo": "me/dog", "token": TOKEN, "checkpoint": 77 }), "checkpoint"),
    ] {
        let (status, refused) = server.send("POST", &path, &body);
        assert_eq!((status, refused["error"]["field"].as_str()), (422, Some(field)), "{refused}");
        assert!(!refused.to_string().contains(TOKEN));
    }
    assert!(hub.kept().asked.is_empty());
    let pushed = server.post(&path, &json!({ "repo": "me/dog", "token": TOKEN, "license": "mit" }));
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
