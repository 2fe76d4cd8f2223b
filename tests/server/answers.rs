//! Whether answers are what `/openapi.json` says, each with the schema of its address.

use super::client::{photo, subject, text, training, Server};
use crate::support::jobs::gpt2;
use crate::support::push_hub::{HubServer, TOKEN};
use serde_json::{json, Value};

#[test]
fn every_answer_and_every_event_is_what_the_document_says() {
    let (job, folder, hub) = (gpt2(true), tempfile::tempdir().unwrap(), HubServer::start());
    let environment = [("HF_ENDPOINT", hub.address.as_str()), ("HF_HUB_OFFLINE", "0"), ("HF_HOME", "/none")];
    let model = job.folder.join("model").display().to_string();
    let server = Server::start_in(folder.path(), &["--model", &model], &environment);
    let state = server.get("/api/state");
    let began = state["last_event"].as_u64().unwrap();
    let language = text(&state["models"][0], "/id");
    for kind in ["dreambooth", "llm", "generate", "complete", "no-such"] {
        server.ask("GET", &format!("/api/options/{kind}"));
    }
    server.get("/api/models?hub=demo");
    server.post("/login", &json!({ "username": "a", "password": "b" }));

    // Sets: of photos with what is wrong with them, of records, of the photos inside the binary.
    let set = subject(&server, 2);
    let path = format!("/api/sets/{set}");
    let files =
        [("notes.txt", b"a caption of none".to_vec()), ("again.png", photo(1)), ("x.png", b"no picture".to_vec())];
    server.upload(&format!("{path}/files"), "files", &files);
    let shown = server.get(&path);
    assert!(!shown["refused"].as_array().unwrap().is_empty(), "{shown}");
    let one = format!("{path}/photos/{}", text(&shown, "/photos/2/id"));
    server.send("PATCH", &one, &json!({ "caption": "a bird" }));
    server.ask("DELETE", &one);
    let records = server.set_of(&[("records.jsonl", std::fs::read(job.folder.join("train.jsonl")).unwrap())]);
    server.post("/api/sets", &json!({ "example": "penguin" }));

    // Plans, one of them with something to turn on, and jobs of each kind.
    let options = json!({ "model": "demo", "instance_prompt": "a photo of sks bird", "train_batch_size": 2000 });
    server.post("/api/plan", &json!({ "kind": "dreambooth", "set": set, "options": options }));
    server.post("/api/plan", &json!({ "kind": "dreambooth" }));
    let llm = json!({ "model": language, "task": "causal-lm", "label_column": "label", "max_train_steps": 1, "mixed_precision": "no" });
    server.post("/api/plan", &json!({ "kind": "llm", "set": records["id"], "options": llm }));
    let samples =
        json!({ "validation_prompt": "a photo of sks bird", "num_validation_images": 1, "checkpointing_steps": 1 });
    let adapter = text(&server.post("/api/jobs", &training(&set, 2, &samples)), "/id").to_owned();
    let drawn = json!({ "prompt": "a bird", "steps": 2, "adapters": [{ "id": adapter }] });
    let compared = json!({ "prompt": "a bird", "steps": 2, "adapters": [{ "id": adapter }], "checkpoints": [1, 2] });
    let written = json!({ "model": language, "prompt": "red house", "max_new_tokens": 4 });
    assert_eq!(server.wait_until_over(&adapter)["state"], "finished");
    let jobs = [
        json!({ "kind": "train_llm", "set": records["id"], "options": llm }),
        json!({ "kind": "generate", "options": drawn }),
        json!({ "kind": "grid", "options": compared }),
        json!({ "kind": "complete", "options": written }),
    ]
    .map(|job| text(&server.post("/api/jobs", &job), "/id").to_owned());
    for id in &jobs {
        let job = server.wait_until_over(id);
        assert_eq!(job["state"], "finished", "{job}");
    }
    server.get("/api/jobs");
    server.get(&format!("/api/jobs/{adapter}/metrics"));
    server.send("PATCH", &format!("/api/jobs/{adapter}"), &json!({ "name": "bird" }));
    server.send("POST", &format!("/api/jobs/{adapter}/pause"), &json!({}));
    server.send("POST", "/api/jobs", &training(&set, 2, &json!({ "lora_r": "many" })));
    let long = text(&server.post("/api/jobs", &training(&set, 100_000, &json!({}))), "/id").to_owned();
    server.wait_for(&long, |job| job["progress"]["phase"] == "training");
    server.post(&format!("/api/jobs/{long}/stop"), &json!({}));
    server.wait_until_over(&long);

    // Adapters: listed, changed, taken home, brought back, pushed, deleted.
    server.get("/api/adapters");
    server.send("PATCH", &format!("/api/adapters/{adapter}"), &json!({ "name": "my bird", "checkpoint": 1 }));
    let (file, _, _) = server.bytes(&format!("/api/adapters/{adapter}/download?format=kohya"));
    let (status, imported) = server.upload("/api/adapters", "file", &[("bird.safetensors", file)]);
    assert_eq!(status, 201, "{imported}");
    server.upload("/api/adapters", "file", &[("bird.safetensors", b"no adapter".to_vec())]);
    let pushed = server.post(&format!("/api/adapters/{adapter}/push"), &json!({ "repo": "me/bird", "token": TOKEN }));
    assert_eq!(server.wait_until_over(text(&pushed, "/id"))["state"], "finished");
    server.ask("DELETE", &format!("/api/adapters/{}", text(&imported, "/id")));
    server.ask("DELETE", &format!("/api/jobs/{}", jobs[1]));
    server.ask("GET", "/api/no-such");
    server.ask("PUT", "/api/jobs");
    server.post("/logout", &json!({}));

    let is_deleted = |event: &Value| event["kind"] == "deleted";
    let mut is_over = false;
    let events: Vec<Value> = server
        .events(began)
        .map(|(_, event)| event)
        .take_while(|event| !std::mem::replace(&mut is_over, is_deleted(event)))
        .collect();
    for kind in ["job", "progress", "step", "image", "text", "log", "fact", "adapters", "deleted"] {
        assert!(events.iter().any(|event| event["kind"] == kind), "no event of the kind {kind}");
    }
    server.check_answers(&events, true);
}
