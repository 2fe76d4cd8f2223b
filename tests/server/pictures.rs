//! Pictures, grids and pauses; adapters that come from elsewhere.

use super::client::{subject, text, training, Server};
use serde_json::{json, Value};

fn add(server: &Server, kind: &str, options: Value) -> String {
    text(&server.post("/api/jobs", &json!({ "kind": kind, "options": options })), "/id").to_owned()
}

fn images(job: &Value) -> &Vec<Value> {
    job["results"]["images"].as_array().unwrap()
}

fn finished(server: &Server, id: &str) -> Value {
    let job = server.wait_until_over(id);
    assert_eq!(job["state"], "finished", "{job}");
    job
}

#[test]
fn pictures_carry_what_they_were_drawn_with_and_a_seed_draws_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let options = json!({ "model": "demo", "prompt": "a photo of a bird", "steps": 3, "seed": 5, "number": 2, "sampler": "ddim", "guidance": 3 });
    let first = finished(&server, &add(&server, "generate", options.clone()));
    let [one, two] = [0, 1].map(|index| images(&first)[index].clone());
    let expected = json!({
        "prompt": "a photo of a bird", "negative_prompt": "", "seed": 5, "steps": 3, "guidance": 3.0, "sampler": "ddim", "width": 64,
        "height": 64, "model": "demo", "adapters": "",
    });
    assert_eq!(one["parameters"], expected);
    assert_eq!((&two["parameters"]["seed"], &one["width"], &one["step"]), (&json!(6), &json!(64), &Value::Null));
    let again = finished(&server, &add(&server, "generate", options));
    let bytes = |image: &Value| server.bytes(text(image, "/url")).0;
    assert_eq!(bytes(&images(&again)[1]), bytes(&two));
    assert_ne!(bytes(&one), bytes(&two));
    // Without a seed each job has one of its own, which it tells.
    let seeds = [0, 1].map(|_| {
        let job = finished(
            &server,
            &add(&server, "generate", json!({ "model": "demo", "prompt": "a bird", "steps": 1, "seed": null })),
        );
        images(&job)[0]["parameters"]["seed"].as_i64().unwrap()
    });
    assert_ne!(seeds[0], seeds[1]);
    for (options, field) in [
        (json!({ "prompt": " " }), "prompt"),
        (json!({ "prompt": "p", "number": 1000 }), "number"),
        (json!({ "prompt": "p", "guidance": "much" }), "guidance"),
        (json!({ "prompt": "p", "adapters": [{ "id": "no-such" }] }), "adapters"),
        (json!({ "prompt": "p", "adapters": "all" }), "adapters"),
        (json!({ "prompt": "p", "output": "/tmp" }), "output"),
        (json!({ "prompt": "p", "checkpoints": [1] }), "checkpoints"),
    ] {
        let (status, refused) = server.send("POST", "/api/jobs", &json!({ "kind": "generate", "options": options }));
        assert_eq!((status, refused["error"]["field"].as_str()), (422, Some(field)), "{refused}");
    }
    // What only the model knows is found by the job.
    let job = server.wait_until_over(&add(&server, "generate", json!({ "model": "demo", "prompt": "p", "width": 65 })));
    assert_eq!((&job["state"], &job["field"]), (&json!("failed"), &json!("width")));
    assert!(text(&job, "/error").contains("the nearest is 64") && !text(&job, "/error").contains("--"));
}

#[test]
fn a_grid_shows_each_checkpoint_at_each_strength_and_an_adapter_that_was_taken_home_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let options = json!({ "checkpointing_steps": 1, "learning_rate": 0.05 });
    let trained = text(&server.post("/api/jobs", &training(&subject(&server, 2), 2, &options)), "/id").to_owned();
    finished(&server, &trained);
    let wanted = json!({
        "model": "demo", "prompt": "a photo of sks bird", "steps": 2, "seed": 1, "adapters": [{ "id": trained, "strength": 1 }],
        "checkpoints": [1, 2], "strengths": [0, 1],
    });
    let grid = finished(&server, &add(&server, "grid", wanted));
    let cells: Vec<(f64, i64)> = images(&grid)
        .iter()
        .map(|image| (image["strength"].as_f64().unwrap(), image["checkpoint"].as_i64().unwrap()))
        .collect();
    assert_eq!(cells, [(0.0, 1), (0.0, 2), (1.0, 1), (1.0, 2)]);
    let bytes: Vec<Vec<u8>> = images(&grid).iter().map(|image| pixels(&server.bytes(text(image, "/url")).0)).collect();
    assert_eq!(bytes[0], bytes[1], "at strength 0 no checkpoint is seen");
    assert!(bytes[1] != bytes[2] && bytes[2] != bytes[3], "at strength 1 each is");

    let (kohya, ..) = server.bytes(&format!("/api/adapters/{trained}/download?format=kohya&checkpoint=2"));
    let (peft, ..) = server.bytes(&format!("/api/adapters/{trained}/download?format=peft"));
    for (name, file) in [("../my bird.safetensors", kohya), ("bird.zip", peft)] {
        let (status, adapter) = server.upload("/api/adapters", "file", &[(name, file)]);
        assert_eq!(
            (status, adapter["kind"].as_str(), &adapter["rank"]),
            (201, Some("stable_diffusion"), &json!(2)),
            "{adapter}"
        );
        assert!(["my bird", "bird"].contains(&text(&adapter, "/name")));
        let drawn = json!({
            "model": "demo", "prompt": "a photo of sks bird", "steps": 2, "seed": 1, "adapters": [{ "id": adapter["id"], "strength": 1 }],
        });
        let job = finished(&server, &add(&server, "generate", drawn));
        assert!(text(&images(&job)[0], "/parameters/adapters").contains("bird"));
        assert_eq!(server.ask("DELETE", &format!("/api/adapters/{}", text(&adapter, "/id"))).0, 204);
    }
    assert!(std::fs::read_dir(server.data.join("adapters")).unwrap().next().is_none());
    for (name, bytes) in
        [("model.safetensors", b"not one".to_vec()), ("photos.zip", super::client::photo(1)), ("x", Vec::new())]
    {
        let (status, refused) = server.upload("/api/adapters", "file", &[(name, bytes)]);
        assert_eq!((status, text(&refused, "/error/field")), (422, "file"), "{refused}");
        assert!(!text(&refused, "/error/sentence").contains(folder.path().to_str().unwrap()), "{refused}");
    }
    assert!(std::fs::read_dir(server.data.join("adapters")).unwrap().next().is_none());
}

/// What a PNG shows, without what it says.
fn pixels(png: &[u8]) -> Vec<u8> {
    image::load_from_memory(png).unwrap().to_rgb8().into_raw()
}

#[test]
fn a_paused_training_draws_with_its_weights_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let id = text(&server.post("/api/jobs", &training(&subject(&server, 2), 100_000, &json!({}))), "/id").to_owned();
    let act = |action: &str, body: Value| server.send("POST", &format!("/api/jobs/{id}/{action}"), &body).0;
    server.wait_for(&id, |job| job["progress"]["phase"] == "training" && job["progress"]["done"].as_u64() > Some(1));
    assert_eq!(act("pause", json!({})), 200);
    let paused = server.wait_for(&id, |job| job["state"] == "paused");
    assert_eq!(paused["actions"], json!(["stop", "save", "sample", "continue"]));
    let steps = || server.get(&format!("/api/jobs/{id}/metrics")).as_array().unwrap().len();
    let before = steps();
    assert_eq!(
        act("sample", json!({ "prompt": "a photo of sks bird on a red background", "seed": 7, "number": 2 })),
        200
    );
    let sampled = server.wait_for(&id, |job| images(job).len() == 2);
    let [one, two] = [0, 1].map(|index| &images(&sampled)[index]);
    assert_eq!((&one["step"], &one["parameters"]["seed"]), (&json!(before), &json!(7)));
    assert_eq!(
        (&two["parameters"]["seed"], text(one, "/parameters/prompt")),
        (&json!(8), "a photo of sks bird on a red background")
    );
    assert_eq!(act("save", json!({})), 200);
    server
        .wait_for(&id, |_| server.data.join("runs").join(&id).join(format!("checkpoint-{before}/state.json")).exists());
    assert_eq!(steps(), before);
    // A checkpoint is an adapter while its training goes on.
    server.wait_for(&id, |_| server.get("/api/adapters")[0]["id"] == json!(id));
    assert_eq!(act("sample", json!({ "nonsense": 1 })), 400);
    assert_eq!(act("continue", json!({})), 200);
    server.wait_for(&id, |job| job["state"] == "running");
    server.wait_for(&id, |_| steps() > before);
    assert_eq!(act("pause", json!({})), 200);
    server.wait_for(&id, |job| job["state"] == "paused");
    assert_eq!(act("stop", json!({})), 200);
    assert_eq!(server.wait_until_over(&id)["state"], "stopped");
    assert_eq!(act("pause", json!({})), 409);
}

#[test]
fn a_plan_tells_memory_time_and_steps_before_there_is_a_photo() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let plan = |options: Value, set: Value| {
        server.send("POST", "/api/plan", &json!({ "kind": "dreambooth", "set": set, "options": options }))
    };
    let (status, none) = plan(json!({ "model": "demo", "max_train_steps": 40 }), Value::Null);
    assert_eq!((status, &none["steps"], &none["fits"]), (200, &json!(40), &json!(true)), "{none}");
    let sum: u64 = none["parts"].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, none["peak_bytes"].as_u64().unwrap());
    assert!(none["step_seconds"].as_f64().unwrap() > 0.0 && none["device_bytes"].as_u64().unwrap() > 1 << 30);
    let (_, larger) = plan(json!({ "model": "demo", "max_train_steps": 40, "train_batch_size": 8 }), Value::Null);
    assert!(larger["peak_bytes"].as_u64() > none["peak_bytes"].as_u64());
    let (_, three) =
        plan(json!({ "model": "demo", "num_train_epochs": 4, "instance_prompt": "p" }), json!(subject(&server, 3)));
    assert_eq!(three["steps"], 12);
    assert!(text(&three, "/command").contains("lorabooth train dreambooth"));
    for (options, field) in [
        (json!({ "lora_r": -1 }), "lora_r"),
        (json!({ "model": "no-such" }), "model"),
        (json!({ "lora_targets": "nothing" }), "lora_targets"),
    ] {
        let (status, refused) = plan(options, Value::Null);
        assert_eq!((status, text(&refused, "/error/field")), (422, field));
    }
}

#[test]
fn the_photos_inside_the_binary_are_a_set_for_those_who_have_none() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let example = &server.get("/api/state")["examples"][0];
    let set = server.post("/api/sets", &json!({ "example": example["name"] }));
    assert_eq!(set["photos"].as_array().unwrap().len(), 6);
    assert!(set["photos"].as_array().unwrap().iter().all(|photo| !text(photo, "/caption").is_empty()));
    let mut options = example["values"].clone();
    options["model"] = example["model"].clone();
    let (status, plan) =
        server.send("POST", "/api/plan", &json!({ "kind": "dreambooth", "set": set["id"], "options": options }));
    assert_eq!((status, &plan["steps"]), (200, &json!(400)), "{plan}");
    assert_eq!(server.send("POST", "/api/sets", &json!({ "example": "../x" })).0, 422);
}

/// An empty field for what must not be on a picture is none.
#[test]
fn the_page_trains_a_stable_diffusion_xl_and_draws_with_what_it_learned() {
    let folder = tempfile::tempdir().unwrap();
    let xl = crate::support::model("tiny-xl");
    let server = Server::start_with(folder.path(), &["--model", xl.to_str().unwrap()]);
    let model = &server.get("/api/state")["models"][0];
    assert_eq!((&model["kind"], &model["native_size"]), (&json!("stable_diffusion"), &json!(128)), "{model}");
    let more = json!({ "model": model["id"], "resolution": 64, "train_text_encoder": true });
    let trained = finished(&server, text(&server.post("/api/jobs", &training(&subject(&server, 2), 1, &more)), "/id"));
    let drawn = |more: Value| {
        let mut options =
            json!({ "model": model["id"], "prompt": "a bird", "steps": 2, "seed": 5, "width": 64, "height": 64 });
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let job = finished(&server, &add(&server, "generate", options));
        server.bytes(text(&images(&job)[0], "/url")).0
    };
    let plain = drawn(json!({}));
    assert_eq!(plain, drawn(json!({ "negative_prompt": "" })));
    assert_ne!(plain, drawn(json!({ "adapters": [{ "id": trained["id"], "strength": 40 }] })));
    let path = json!({ "kind": "generate", "options": { "prompt": "p", "vae": "/tmp" } });
    let (status, refused) = server.send("POST", "/api/jobs", &path);
    assert_eq!((status, refused["error"]["field"].as_str()), (422, Some("vae")), "{refused}");
}
