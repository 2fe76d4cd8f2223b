//! Language models: records, trainings, texts.

use super::client::{text, Server};
use crate::support::jobs::{bert, gpt2};
use serde_json::{json, Value};

fn records(server: &Server, job: &crate::support::jobs::Job) -> Value {
    server.set_of(&[("my records.jsonl", std::fs::read(job.folder.join("train.jsonl")).unwrap())])
}

#[test]
fn a_language_model_is_trained_on_records_and_writes_as_it_goes() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let server = Server::start_with(folder.path(), &["--model", job.folder.join("model").to_str().unwrap()]);
    let state = server.get("/api/state");
    let model = &state["models"][0];
    assert_eq!((text(model, "/kind"), text(model, "/source")), ("language", "folder"));
    let set = records(&server, &job);
    assert_eq!((text(&set, "/kind"), &set["records"]["count"]), ("records", &json!(24)), "{set}");
    assert!(set["records"]["columns"].as_array().unwrap().contains(&json!("label")));
    assert!(set["records"]["sample"][0]["text"].is_string());
    let options = json!({ "model": model["id"], "task": "causal-lm", "label_column": "label", "max_train_steps": 3, "mixed_precision": "no" });
    let (status, plan) =
        server.send("POST", "/api/plan", &json!({ "kind": "llm", "set": set["id"], "options": options }));
    assert_eq!((status, &plan["steps"]), (200, &json!(3)), "{plan}");
    let trained = server.post("/api/jobs", &json!({ "kind": "train_llm", "set": set["id"], "options": options }));
    let trained = server.wait_until_over(text(&trained, "/id"));
    assert_eq!(trained["state"], "finished", "{trained}");
    let adapter = &server.get("/api/adapters")[0];
    assert_eq!((text(adapter, "/kind"), &adapter["id"]), ("language", &trained["id"]));

    let last = server.get("/api/state")["last_event"].as_u64().unwrap();
    let options = json!({
        "model": model["id"], "prompt": "red house", "max_new_tokens": 5, "adapters": [{ "id": adapter["id"], "strength": 0.5 }],
    });
    let written = server.post("/api/jobs", &json!({ "kind": "complete", "options": options }));
    let id = text(&written, "/id").to_owned();
    let mut pieces = String::new();
    for (_, event) in server.events(last) {
        if event["kind"] == "text" {
            assert_eq!(event["at"], pieces.encode_utf16().count());
            pieces.push_str(text(&event, "/piece"));
        }
        if event["job"]["id"] == id.as_str() && event["job"]["state"] == "finished" {
            break;
        }
    }
    let written = server.get(&format!("/api/jobs/{id}"));
    assert_eq!((text(&written, "/results/text"), written["state"].as_str()), (pieces.as_str(), Some("finished")));
    let (zip, kind, _) = server.bytes(&format!("/api/adapters/{}/download", text(adapter, "/id")));
    assert_eq!(kind, "application/zip");
    let (status, uploaded) = server.upload("/api/adapters", "file", &[("records.zip", zip)]);
    assert_eq!((status, text(&uploaded, "/kind")), (201, "language"), "{uploaded}");
    let (status, refused) = server.ask("GET", &format!("/api/adapters/{}/download?format=kohya", text(adapter, "/id")));
    assert!(status == 422 && text(&refused, "/error/sentence").contains("PEFT"), "{refused}");
    for (options, field) in [
        (json!({ "model": "demo", "prompt": "p" }), "model"),
        (json!({ "model": model["id"], "prompt": "" }), "prompt"),
        (json!({ "model": model["id"], "prompt": "p", "temperature": "hot" }), "temperature"),
    ] {
        let (status, refused) = server.send("POST", "/api/jobs", &json!({ "kind": "complete", "options": options }));
        assert_eq!((status, refused["error"]["field"].as_str()), (422, Some(field)), "{refused}");
    }
}

#[test]
fn a_classifier_answers_with_its_labels() {
    let (job, folder) = (bert(), tempfile::tempdir().unwrap());
    let server = Server::start_with(folder.path(), &["--model", job.folder.join("model").to_str().unwrap()]);
    let model = server.get("/api/state")["models"][0]["id"].clone();
    let set = records(&server, &job);
    let options = json!({ "model": model, "task": "seq-cls", "label_column": "label", "max_train_steps": 2, "mixed_precision": "no" });
    let trained = server.post("/api/jobs", &json!({ "kind": "train_llm", "set": set["id"], "options": options }));
    let trained = server.wait_until_over(text(&trained, "/id"));
    assert_eq!(trained["state"], "finished", "{trained}");
    let options = json!({ "model": model, "prompt": "red house", "adapters": [{ "id": trained["id"] }] });
    let answered = server.post("/api/jobs", &json!({ "kind": "complete", "options": options }));
    let answered = server.wait_until_over(text(&answered, "/id"));
    let labels = answered["results"]["labels"].as_array().unwrap_or_else(|| panic!("{answered}"));
    let sum: f64 = labels.iter().map(|label| label["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-4 && labels.len() == 3 && labels[0]["label"].is_string(), "{labels:?}");
}

#[test]
fn records_that_are_none_are_refused_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for (name, content, words) in [
        ("list.json", "[{\"text\": \"a\"}]", "one JSON list"),
        ("cut.jsonl", "{\"text\": \"a\"}\n{\"text\": ", "line 2"),
        ("quotes.csv", "text,label\n\"a,b\n", "quotes"),
        ("empty.csv", "", ""),
    ] {
        let set = server.set_of(&[(name, content.as_bytes().to_vec())]);
        assert_eq!(set["records"], Value::Null);
        let sentence = text(&set["refused"][0], "/sentence");
        assert!(sentence.contains(words) && !sentence.contains("temporary"), "{set}");
    }
    let set = server.set_of(&[("good.csv", b"text,label\nred house,warm\nblue door,cold\n".to_vec())]);
    assert_eq!((&set["records"]["count"], &set["records"]["columns"]), (&json!(2), &json!(["text", "label"])));
}
