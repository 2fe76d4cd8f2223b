//! Adapters that go to a hub, which runs in the test.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::push_hub::{self as hub, HubServer, TOKEN};
use crate::support::tiny_run::train;
use crate::support::{self, jobs, lorabooth_command, lorabooth_ok};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::{tempdir, TempDir};

/// A short run with samples.
fn run(more: &str) -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let out = folder.path().join("dog");
    let samples = "--validation-prompt sks --validation-steps 1 --num-validation-images 1 --train-text-encoder";
    lorabooth_ok(&train(&out, &format!("{samples} {more}")));
    (folder, out)
}

fn command<S: AsRef<std::ffi::OsStr>>(server: &HubServer, args: &[S]) -> Command {
    let mut command = lorabooth_command(args);
    command
        .env("HF_HUB_OFFLINE", "0")
        .env("HF_ENDPOINT", &server.address)
        .env("HF_TOKEN", TOKEN)
        .env("HF_HOME", "/none");
    command
}

fn push(server: &HubServer, adapter: &Path, more: &[&str]) -> Output {
    let adapter = adapter.display().to_string();
    let args = [&["adapter", "push", adapter.as_str(), "--repo", "me/dog", "--json"], more].concat();
    command(server, &args).output().unwrap()
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// The token went in one header to the hub alone, and was told nowhere.
fn check_token(server: &HubServer, said: &str) {
    assert!(!said.contains(TOKEN), "{said}");
    for asked in &server.kept().asked {
        let holds = |text: &str| text.contains(TOKEN);
        let in_headers: Vec<&String> =
            asked.headers.iter().filter(|(_, value)| holds(value)).map(|(name, _)| name).collect();
        let expected: &[&str] = if asked.is_storage { &[] } else { &["authorization"] };
        assert_eq!(in_headers, expected, "{}", asked.path);
        assert!(!holds(&asked.path) && !holds(&String::from_utf8_lossy(&asked.body)), "{}", asked.path);
    }
}

#[test]
fn an_adapter_arrives_whole_and_private_with_a_card() {
    let (_folder, out) = run("");
    let server = HubServer::start();
    let output = push(&server, &out, &["--license", "creativeml-openrail-m"]);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let address = format!("{}/me/dog", server.address);
    assert_eq!(last, json!({ "event": "pushed", "address": address, "commit": hub::COMMIT }));
    check_token(&server, &said);
    let kept = server.kept();
    let create = kept.asked.iter().find(|asked| asked.path == "/api/repos/create").unwrap().json();
    assert_eq!(create, json!({ "name": "dog", "organization": "me", "type": "model", "visibility": "private" }));
    let names: Vec<&str> = kept.files.keys().map(String::as_str).collect();
    let sample = "samples/step-000002-0.png";
    let expected = [
        "README.md",
        "pytorch_lora_weights.safetensors",
        sample,
        "text_encoder/adapter_config.json",
        "text_encoder/adapter_model.safetensors",
        "unet/adapter_config.json",
        "unet/adapter_model.safetensors",
    ];
    assert_eq!(names, expected);
    for name in
        ["pytorch_lora_weights.safetensors", "unet/adapter_model.safetensors", "text_encoder/adapter_model.safetensors"]
    {
        let [own, theirs] = [out.join(name), out.join(format!("theirs-{}", name.replace('/', "-")))];
        std::fs::write(&theirs, &kept.files[name]).unwrap();
        let (own, theirs) = (support::read(own), support::read(theirs));
        assert!(!own.is_empty() && own.keys().eq(theirs.keys()), "{name}");
        assert!(own.iter().all(|(key, tensor)| tensor.equal(&theirs[key])), "{name}");
    }
    let samples = std::fs::read_dir(out.join("samples")).unwrap().map(|entry| entry.unwrap().path());
    let own: Vec<PathBuf> = samples.filter(|path| path.ends_with("step-000002-0.png")).collect();
    assert_eq!(kept.files[sample], std::fs::read(&own[0]).unwrap());
    let card = String::from_utf8(kept.files["README.md"].clone()).unwrap();
    for part in [
        "---\nlicense: \"creativeml-openrail-m\"\nlibrary_name: \"diffusers\"\n",
        "instance_prompt: \"sks\"",
        "\"stable-diffusion\"",
        "- text: \"sks\"\n  output:\n    url: \"samples/step-000002-0.png\"\n---\n",
        "![sks](samples/step-000002-0.png)",
        "pipeline.load_lora_weights(\"me/dog\")",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    // Where the model lies on this machine is nobody's business.
    let model = support::model("tiny").display().to_string();
    assert!(kept.files.values().all(|bytes| !String::from_utf8_lossy(bytes).contains(&model)));
    let storage = kept.asked.iter().filter(|asked| asked.is_storage).collect::<Vec<_>>();
    assert!(storage.len() == 3 && storage.iter().all(|asked| asked.headers["x-amz-given"] == "as told"));
    assert_eq!(kept.commits.len(), 1);
}

#[test]
fn a_second_push_sends_only_what_is_new_and_takes_away_what_is_left_of_another_adapter() {
    let (_folder, out) = run("");
    let server = HubServer::start();
    assert!(push(&server, &out, &[]).status.success());
    let files = server.kept().files.clone();
    server.kept().asked.clear();
    server.kept().files.insert("notes.md".into(), b"mine".to_vec());
    let unet = out.join("unet");
    let output = push(&server, &unet, &["--token", TOKEN]);
    assert!(output.status.success(), "{}", text(&output));
    let kept = server.kept();
    assert!(!kept.files.contains_key("text_encoder/adapter_model.safetensors"));
    assert_eq!(kept.files["notes.md"], b"mine");
    assert_eq!(kept.files["unet/adapter_model.safetensors"], files["unet/adapter_model.safetensors"]);
    let put: Vec<&str> = kept.asked.iter().filter(|asked| asked.is_storage).map(|asked| asked.path.as_str()).collect();
    let diffusers = hub::sha256(&kept.files["pytorch_lora_weights.safetensors"]);
    assert_eq!(put, [format!("/put/{diffusers}")]);
    drop(kept);
    check_token(&server, &text(&output));
}

#[test]
fn nothing_private_goes_to_a_public_repository() {
    let (_folder, out) = run("--max-train-steps 0");
    let server = HubServer::start();
    server.kept().is_there = true;
    let output = push(&server, &out, &[]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("`me/dog`") && said.contains("is a public repository"), "{said}");
    assert!(server.kept().files.is_empty() && server.kept().objects.is_empty());
    let output = push(&server, &out, &["--public"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(server.kept().files.contains_key("README.md"));
}

#[test]
fn each_refusal_is_one_sentence_that_says_what_to_do() {
    let (_folder, out) = run("--max-train-steps 0");
    let leak = format!("no, {TOKEN} may not");
    let leak = json!({ "error": leak }).to_string();
    for (end, status, body, parts) in [
        ("create", "401 Unauthorized", "{}", &["does not take this token", "give it in place of this one"][..]),
        ("me/dog", "403 Forbidden", "{}", &["may not write to `me/dog`"]),
        (
            "preupload/main",
            "403 Forbidden",
            &leak,
            &["may not write to `me/dog`", "role must be write", "it says: no, … may not"],
        ),
        ("preupload/main", "404 Not Found", "{}", &["has no `me/dog` that this token may write to"]),
        ("batch", "413 Payload Too Large", "{}", &["the large files", "too large"]),
        ("commit/main", "409 Conflict", "{}", &["changed by somebody else", "push again"]),
        ("commit/main", "412 Precondition Failed", "{}", &["changed by somebody else"]),
        (
            "commit/main",
            "400 Bad Request",
            r#"{"error":"\"license\" is not allowed"}"#,
            &["refused the commit with status 400", "license"],
        ),
        ("commit/main", "500 Internal Server Error", "", &["failed (status 500)"]),
        ("preupload/main", "200 OK", "<html>", &["web page"]),
        ("preupload/main", "200 OK", r#"{"files":[]}"#, &["does not say how it keeps it"]),
        ("batch", "200 OK", r#"{"objects":[]}"#, &["does not say where it goes"]),
        ("preupload/main", "307 Temporary Redirect", "", &["redirects"]),
    ] {
        let server = HubServer::start();
        server.refuse(end, status, body);
        if status.starts_with("307") {
            let to = format!("{}/elsewhere", server.storage);
            server.kept().refusals.insert(end, (status, vec![("location", to)], String::new()));
        }
        let output = push(&server, &out, &[]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{end} {status}: {said}");
        let error: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let sentence = error["text"].as_str().unwrap();
        assert!(error["event"] == "error" && sentence.len() < 700 && !sentence.contains('\n'), "{said}");
        assert!(parts.iter().all(|part| sentence.contains(part)), "{end} {status}: {sentence}");
        assert!(server.kept().commits.is_empty() && server.kept().files.is_empty());
        check_token(&server, &said);
    }
}

#[test]
fn a_token_that_a_hub_hands_on_goes_to_no_other_host() {
    let (_folder, out) = run("--max-train-steps 0");
    let server = HubServer::start();
    server.kept().storage_header = Some(("authorization".into(), format!("Bearer {TOKEN}")));
    let output = push(&server, &out, &[]);
    assert!(!output.status.success() && text(&output).contains("would give the token to another host"));
    assert!(server.kept().asked.iter().all(|asked| !asked.is_storage));
}

#[test]
fn what_is_in_vain_is_refused_before_anybody_is_asked() {
    let (_folder, out) = run("--max-train-steps 0");
    let server = HubServer::start();
    let adapter = out.display().to_string();
    let args = ["adapter", "push", adapter.as_str(), "--repo", "me/dog"];
    let said = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        text(&output)
    };
    assert!(said(command(&server, &args).env_remove("HF_TOKEN")).contains("needs a token that may write"));
    assert!(said(command(&server, &args).env("HF_HUB_OFFLINE", "1")).contains("HF_HUB_OFFLINE is set"));
    assert!(said(&mut command(&server, &[&args[..4], &["dog"]].concat())).contains("`owner/name`"));
    assert!(said(&mut command(&server, &[&args[..], &["--license", "My: own"]].concat())).contains("--license"));
    assert!(server.kept().asked.is_empty());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = said(command(&server, &args).env("HF_ENDPOINT", format!("http://{closed}")));
    assert!(unreachable.contains("cannot reach") && unreachable.contains("check the connection"), "{unreachable}");
}

#[test]
fn ctrl_c_ends_an_upload_at_once() {
    let (_folder, out) = run("--max-train-steps 0");
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = HubServer::start();
    let adapter = out.display().to_string();
    let mut command = command(&server, &["adapter", "push", adapter.as_str(), "--repo", "me/dog"]);
    command.env("HF_ENDPOINT", format!("http://{}", silent.local_addr().unwrap()));
    let process = command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    drop(silent.accept().unwrap());
    std::thread::sleep(Duration::from_millis(300));
    let (stream, began) = (silent, std::time::Instant::now());
    assert!(Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap().success());
    let output = process.wait_with_output().unwrap();
    drop(stream);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("nothing was committed"), "{}", text(&output));
}

#[test]
fn a_training_pushes_its_adapter_at_its_end_and_keeps_no_token() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("dog");
    let server = HubServer::start();
    let more = format!("--push_to_hub --hub_token {TOKEN} --overwrite");
    let output = command(&server, &train(&out, &more)).env_remove("HF_TOKEN").output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("/me/dog"), "{said}");
    check_token(&server, &said);
    assert!(server.kept().is_private && server.kept().files.contains_key("unet/adapter_model.safetensors"));
    let record = std::fs::read_to_string(out.join("run.json")).unwrap();
    assert!(!record.contains(TOKEN) && record.contains("push_to_hub"), "{record}");
    // A wrong token is found before the training, and a push that fails afterwards says how to make up for it.
    let other = folder.path().join("other");
    let wrong = "--push-to-hub --hub-token hf_wrong --hub-model-id me/cat";
    let output = command(&server, &train(&other, wrong)).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("does not take this token"), "{}", text(&output));
    assert!(!other.exists());
    server.refuse("commit/main", "409 Conflict", "{}");
    let output = command(&server, &train(&other, "--push-to-hub --hub-model-id cat")).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.contains("adapter push") && said.contains("--repo me/cat"), "{said}");
    assert!(other.join("unet/adapter_model.safetensors").exists());
}

#[test]
fn a_language_models_adapter_has_pefts_files_and_card() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("gpt");
    lorabooth_ok(&jobs::gpt2(false).train(&out, &[]));
    let server = HubServer::start();
    let output = push(&server, &out, &[]);
    assert!(output.status.success(), "{}", text(&output));
    let kept = server.kept();
    let names: Vec<&str> = kept.files.keys().map(String::as_str).collect();
    assert_eq!(names, ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    assert_eq!(kept.files["adapter_model.safetensors"], std::fs::read(out.join("adapter_model.safetensors")).unwrap());
    let config: Value = serde_json::from_slice(&kept.files["adapter_config.json"]).unwrap();
    assert_eq!((&config["base_model_name_or_path"], &config["task_type"]), (&Value::Null, &json!("CAUSAL_LM")));
    let card = String::from_utf8(kept.files["README.md"].clone()).unwrap();
    assert!(
        card.contains("library_name: \"peft\"") && card.contains("PeftModel.from_pretrained(model, \"me/dog\")"),
        "{card}"
    );
}
