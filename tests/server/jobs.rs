//! Trainings in the queue: watched, stopped, resumed, survived.

use super::client::{subject, text, training, Server};
use crate::support::read;
use serde_json::{json, Value};
use std::path::Path;
use std::time::Duration;

fn job(server: &Server, body: &Value) -> String {
    text(&server.post("/api/jobs", body), "/id").to_owned()
}

fn checkpoint(server: &Server, id: &str, step: u64) -> bool {
    server.data.join("runs").join(id).join(format!("checkpoint-{step}/state.json")).exists()
}

/// The bits of the adapter that a run trained.
fn weights(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let tensors = read(folder.join("unet/adapter_model.safetensors"));
    tensors.into_iter().map(|(name, tensor)| (name, Vec::try_from(tensor.flatten(0, -1)).unwrap())).collect()
}

#[test]
fn a_training_is_watched_to_its_end_and_its_adapter_taken_home() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let state = server.get("/api/state");
    assert_eq!((&state["models"][0]["id"], &state["models"][0]["native_size"]), (&json!("demo"), &json!(64)));
    let began = state["last_event"].as_u64().unwrap();
    let set = subject(&server, 2);
    let id = job(
        &server,
        &training(&set, 3, &json!({ "validation_prompt": "a photo of sks bird", "num_validation_images": 1 })),
    );
    let events: Vec<(u64, Value)> =
        server.events(began).take_while(|(_, event)| event["job"]["state"] != "finished").collect();
    let steps: Vec<u64> = events
        .iter()
        .filter(|(_, event)| event["kind"] == "step")
        .map(|(_, event)| event["metrics"]["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3]);
    let kinds = ["job", "progress", "log", "fact", "image"];
    assert!(kinds.iter().all(|kind| events.iter().any(|(_, event)| event["kind"] == *kind)), "{events:?}");

    // A page that lost its connection in the middle gets the rest, once.
    let middle = events.len() / 2;
    let again: Vec<(u64, Value)> =
        server.events(events[middle].0).take_while(|(_, event)| event["job"]["state"] != "finished").collect();
    assert_eq!(again, events[middle + 1..]);
    // One of an earlier server loads everything.
    assert_eq!(server.events(17).next().unwrap().1, json!({ "kind": "reset" }));

    let job = server.wait_until_over(&id);
    assert_eq!((&job["state"], &job["error"]), (&json!("finished"), &Value::Null), "{job}");
    assert!(job["facts"].as_array().unwrap().iter().any(|fact| fact["name"] == "photos"));
    assert!(
        text(&job, "/command").starts_with("lorabooth train dreambooth") && job["memory_bytes"].as_u64().unwrap() > 0
    );
    assert_eq!(server.get(&format!("/api/jobs/{id}/metrics?after=1")).as_array().unwrap().len(), 2);
    let images = job["results"]["images"].as_array().unwrap();
    assert_eq!(images.iter().map(|image| image["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 3]);
    assert!(images[1]["likeness"]["colour_distance"].as_f64().unwrap() > 0.0);
    assert_eq!(server.bytes(text(&images[1], "/url")).1, "image/png");
    assert_eq!(server.bytes(text(&images[1], "/thumbnail")).1, "image/jpeg");

    let adapters = server.get("/api/adapters");
    let adapter = &adapters[0];
    assert_eq!(
        (text(adapter, "/id"), text(adapter, "/trigger"), &adapter["steps"]),
        (id.as_str(), "a photo of sks bird", &json!(3))
    );
    assert_eq!(
        (adapter["checkpoints"].clone(), adapter["samples"].as_array().unwrap().len()),
        (json!([{ "step": 3, "chosen": false }]), 1)
    );
    let download = |query: &str| server.bytes(&format!("/api/adapters/{id}/download?{query}"));
    let (kohya, _, disposition) = download("format=kohya");
    assert_eq!(disposition, "attachment; filename=\"a-photo-of-sks-bird.safetensors\"");
    let path = folder.path().join("kohya.safetensors");
    std::fs::write(&path, kohya).unwrap();
    assert!(read(&path).keys().any(|key| key.starts_with("lora_unet_") && key.ends_with("lora_down.weight")));
    let (diffusers, ..) = download("format=diffusers&checkpoint=3");
    std::fs::write(&path, diffusers).unwrap();
    assert!(read(&path).keys().all(|key| key.starts_with("unet.")));
    let (peft, kind, _) = download("format=peft");
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(peft)).unwrap();
    assert_eq!(kind, "application/zip");
    let mut config = String::new();
    std::io::Read::read_to_string(&mut archive.by_name("unet/adapter_config.json").unwrap(), &mut config).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&config).unwrap()["r"], 2);
    let (status, refused) = server.ask("GET", &format!("/api/adapters/{id}/download?checkpoint=7"));
    assert_eq!((status, text(&refused, "/error/field")), (422, "checkpoint"));

    let (status, renamed) =
        server.send("PATCH", &format!("/api/adapters/{id}"), &json!({ "name": "My bird", "checkpoint": 3 }));
    assert_eq!((status, text(&renamed, "/name"), &renamed["checkpoints"][0]["chosen"]), (200, "My bird", &json!(true)));
    assert_eq!(server.ask("DELETE", &format!("/api/jobs/{id}")).0, 204);
    assert!(!server.data.join("runs").join(&id).exists() && server.data.join("sets").join(&set).exists());
    assert_eq!((server.get("/api/adapters"), server.get("/api/jobs")), (json!([]), json!([])));
}

#[test]
fn a_stopped_training_goes_on_from_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let set = subject(&server, 2);
    let id = job(&server, &training(&set, 400, &json!({})));
    server.wait_for(&id, |job| job["progress"]["phase"] == "training" && job["progress"]["done"].as_u64() > Some(2));
    let waiting = job(&server, &training(&set, 2, &json!({})));
    assert_eq!(server.get(&format!("/api/jobs/{waiting}"))["position"], 1);
    server.post(&format!("/api/jobs/{id}/stop"), &json!({}));
    let stopped = server.wait_until_over(&id);
    assert_eq!((&stopped["state"], &stopped["error"]), (&json!("stopped"), &Value::Null));
    let steps = |id: &str| server.get(&format!("/api/jobs/{id}/metrics")).as_array().unwrap().len() as u64;
    let done = steps(&id);
    assert!(checkpoint(&server, &id, done), "{done}");
    // What it has learned so far is an adapter.
    assert!(server.get("/api/adapters").as_array().unwrap().iter().any(|adapter| adapter["id"] == id.as_str()));
    server.wait_until_over(&waiting);
    server.post(&format!("/api/jobs/{id}/resume"), &json!({}));
    server.wait_for(&id, |job| {
        job["progress"]["phase"] == "training" && job["progress"]["done"].as_u64() > Some(done + 1)
    });
    server.post(&format!("/api/jobs/{id}/stop"), &json!({}));
    server.wait_until_over(&id);
    let metrics = server.get(&format!("/api/jobs/{id}/metrics"));
    let seen: Vec<u64> = metrics.as_array().unwrap().iter().map(|step| step["step"].as_u64().unwrap()).collect();
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>());
    let (status, refused) = server.ask("POST", &format!("/api/jobs/{id}/stop"));
    assert!(status == 409 && text(&refused, "/error/sentence").contains("stopped"));
}

#[test]
fn a_killed_server_shows_its_job_as_interrupted_and_ends_in_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let options = json!({ "checkpointing_steps": 2, "lr_scheduler": "cosine" });
    let server = Server::start(&folder.path().join("whole"));
    let whole = job(&server, &training(&subject(&server, 3), 8, &options));
    assert_eq!(server.wait_until_over(&whole)["state"], "finished");
    let expected = weights(&server.data.join("runs").join(&whole));
    drop(server);

    let data = folder.path().join("killed");
    let server = Server::start(&data);
    let set = subject(&server, 3);
    let id = job(&server, &training(&set, 8, &options));
    server.wait_for(&id, |_| checkpoint(&server, &id, 4));
    assert_eq!(server.end("-KILL").0, None);

    let server = Server::start(&data);
    let cut = server.get(&format!("/api/jobs/{id}"));
    assert_eq!((&cut["state"], &cut["progress"]), (&json!("interrupted"), &Value::Null));
    // What the job learns from is its own: the set may change meanwhile.
    let photo = server.get(&format!("/api/sets/{set}"))["photos"][0]["id"].as_str().unwrap().to_owned();
    server.ask("DELETE", &format!("/api/sets/{set}/photos/{photo}"));
    server.post(&format!("/api/jobs/{id}/resume"), &json!({}));
    assert_eq!(server.wait_until_over(&id)["state"], "finished");
    assert_eq!(weights(&server.data.join("runs").join(&id)), expected);
}

#[test]
fn a_signal_saves_the_running_job_which_then_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let id = job(&server, &training(&subject(&server, 2), 300, &json!({})));
    server.wait_for(&id, |job| job["progress"]["phase"] == "training" && job["progress"]["done"].as_u64() > Some(3));
    let last = server.get("/api/state")["last_event"].as_u64().unwrap();
    let mut events = server.events(last);
    let (code, took) = server.end("-TERM");
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(20), "{took:?}");
    // The stream tells of it, and ends.
    assert!(events.any(|(_, event)| event["job"]["state"] == "interrupted"));
    let server = Server::start_with(folder.path(), &["--resume-jobs"]);
    let job = server.wait_for(&id, |job| job["progress"]["phase"] == "training");
    assert!(job["progress"]["done"].as_u64().unwrap() > 3 && job["state"] == "running", "{job}");
}

#[test]
fn the_queue_is_put_in_another_order_edited_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let set = subject(&server, 2);
    let running = job(&server, &training(&set, 100_000, &json!({})));
    server.wait_for(&running, |job| job["state"] == "running");
    let [a, b, c] = [1, 2, 3].map(|steps| job(&server, &training(&set, steps, &json!({}))));
    let places = || [&a, &b, &c].map(|id| server.get(&format!("/api/jobs/{id}"))["position"].clone());
    assert_eq!(places(), [1, 2, 3]);
    let path = |id: &str| format!("/api/jobs/{id}");
    assert_eq!(server.send("PATCH", &path(&c), &json!({ "position": 1 })).0, 200);
    assert_eq!(places(), [2, 3, 1]);
    let mut options = training(&set, 1, &json!({ "lora_r": 5 }))["options"].clone();
    let (status, edited) = server.send("PATCH", &path(&a), &json!({ "options": options, "name": "Five" }));
    assert!(status == 200 && text(&edited, "/command").contains("--lora-r 5") && edited["name"] == "Five");
    options["lora_r"] = json!(0);
    let (status, refused) = server.send("PATCH", &path(&a), &json!({ "options": options }));
    assert_eq!((status, text(&refused, "/error/field")), (422, "lora_r"));
    assert_eq!(server.ask("DELETE", &path(&b)).0, 204);
    assert_eq!(server.ask("GET", &path(&b)).0, 404);
    for (method, body) in [("DELETE", json!({})), ("PATCH", json!({ "position": 1 }))] {
        assert_eq!(server.send(method, &path(&running), &body).0, 409, "{method}");
    }
    server.post(&format!("/api/jobs/{running}/stop"), &json!({}));
    server.wait_until_over(&a);
    let order: Vec<Value> =
        server.get("/api/jobs").as_array().unwrap().iter().map(|job| job["started"].clone()).collect();
    assert!(order[0].as_str() <= order[1].as_str(), "c before a: {order:?}");
}

#[test]
fn wrong_settings_are_refused_with_their_field_before_they_wait() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let set = subject(&server, 1);
    for (more, field) in [
        (json!({ "lora_r": 0 }), "lora_r"),
        (json!({ "lora_r": "many" }), "lora_r"),
        (json!({ "learning_rate": -1 }), "learning_rate"),
        (json!({ "mixed_precision": "fp17" }), "mixed_precision"),
        (json!({ "model": "../../etc" }), "model"),
        (json!({ "model": "/etc/passwd" }), "model"),
        (json!({ "output_dir": "/tmp/elsewhere" }), "output_dir"),
        (json!({ "init_adapter": "/etc" }), "adapters"),
        (json!({ "instance_prompt": "" }), "instance_prompt"),
        (json!({ "nonsense": true }), "nonsense"),
    ] {
        let (status, refused) = server.send("POST", "/api/jobs", &training(&set, 1, &more));
        assert_eq!((status, refused["error"]["field"].as_str()), (422, Some(field)), "{more}: {refused}");
        assert!(!text(&refused, "/error/sentence").contains("--"), "{refused}");
    }
    let empty = text(&server.post("/api/sets", &json!({})), "/id").to_owned();
    for (set, status) in [(json!(null), 422), (json!(empty), 422), (json!("no-such-set"), 404)] {
        let mut body = training("", 1, &json!({}));
        body["set"] = set;
        assert_eq!(server.send("POST", "/api/jobs", &body).0, status);
    }
    assert_eq!(server.get("/api/jobs"), json!([]));
    assert!(std::fs::read_dir(server.data.join("inputs")).unwrap().next().is_none());
}
