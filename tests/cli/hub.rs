//! Models by hub id, from a small mirror that runs in the test.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod attacks;
mod downloads;

use crate::support::{self, jobs};
use lorabooth::weights::hub::{Download, Hub, Listener, Request};
use serde_json::{json, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";
const ID: &str = "someone/a-model";
/// As the first models are called.
const BARE_ID: &str = "a-model";
const NETWORKS: [&str; 3] = ["unet", "vae", "text_encoder"];

/// What the mirror serves and what it was asked.
#[derive(Default)]
struct Site {
    files: BTreeMap<String, Vec<u8>>,
    /// Only this token may read.
    token: Option<String>,
    /// The next body of more than one byte is cut here.
    cut_at: Option<usize>,
    /// Method-less lines: path and range of each request.
    requests: Vec<String>,
}

struct Mirror {
    site: Arc<Mutex<Site>>,
    hub: Hub,
    _cache: tempfile::TempDir,
}

impl Mirror {
    fn of(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let site = Arc::new(Mutex::new(Site { files, ..Site::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = site.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The client may hang up at any time.
                drop(answer(stream, &shared));
            }
        });
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub {
            endpoint,
            cache: cache.path().join("hub"),
            token: None,
            offline: false,
            patience: Duration::from_secs(10),
        };
        Self { site, hub, _cache: cache }
    }

    fn fetch(&self, request: &Request) -> Result<std::path::PathBuf, String> {
        self.hub.fetch_pipeline(request, &mut ()).map_err(|error| error.to_string())
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.site.lock().unwrap().requests)
    }
}

/// The last that was heard of each file.
#[derive(Default)]
struct Heard(BTreeMap<String, (u64, u64)>);

impl Listener for Heard {
    fn on(&mut self, download: Download) {
        self.0.insert(download.file.to_owned(), (download.done, download.total));
    }
}

/// Answers one request and closes.
fn answer(mut stream: TcpStream, site: &Mutex<Site>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().unwrap_or(Ok(String::new()))?.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut site = site.lock().unwrap();
    let range = headers.get("range").map_or("", |range| range.strip_prefix("bytes=").unwrap());
    site.requests.push(format!("{path} {range}"));
    let authorized =
        site.token.as_ref().is_none_or(|token| headers.get("authorization") == Some(&format!("Bearer {token}")));
    let asked = |before: &str, behind: &str| {
        [ID, BARE_ID].iter().find_map(|id| path.strip_prefix(&format!("{before}{id}{behind}")))
    };
    let (status, extra, body) = match (asked("/api/models/", "/revision/"), authorized) {
        (_, false) => ("401 Unauthorized", "x-error-code: GatedRepo\r\n".to_owned(), Vec::new()),
        (Some("main" | SHA), _) => {
            let siblings: Vec<Value> = site.files.keys().map(|name| json!({ "rfilename": name })).collect();
            ("200 OK", String::new(), json!({ "sha": SHA, "siblings": siblings }).to_string().into_bytes())
        }
        (Some(_), _) => ("404 Not Found", "x-error-code: RevisionNotFound\r\n".to_owned(), Vec::new()),
        (None, _) => {
            match asked("/", &format!("/resolve/{SHA}/")).and_then(|name| site.files.get_key_value(name)) {
                None => ("404 Not Found", "x-error-code: RepoNotFound\r\n".to_owned(), Vec::new()),
                Some((name, bytes)) => {
                    let (first, last) = range.split_once('-').unwrap();
                    let first: usize = first.parse().unwrap();
                    let last = last.parse().unwrap_or(bytes.len() - 1);
                    let etag = name.replace('/', "_");
                    match first < bytes.len() {
                    true => (
                        "206 Partial Content",
                        format!("etag: \"{etag}\"\r\nx-repo-commit: {SHA}\r\ncontent-range: bytes {first}-{last}/{}\r\n", bytes.len()),
                        bytes[first..=last].to_vec(),
                    ),
                    false => ("416 Range Not Satisfiable", String::new(), Vec::new()),
                }
                }
            }
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\n{extra}content-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
    let cut = (path.contains("/resolve/") && body.len() > 1).then(|| site.cut_at.take()).flatten();
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
}

const INDEX: &[u8] = br#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}"#;
const SHARDS: &[u8] =
    br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;

fn pipeline() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("model_index.json", INDEX),
        ("README.md", b"words"),
        ("scheduler/scheduler_config.json", b"{}"),
        ("text_encoder/config.json", b"{}"),
        ("text_encoder/model-00001-of-00002.safetensors", b"first shard"),
        ("text_encoder/model-00002-of-00002.safetensors", b"second shard"),
        ("text_encoder/model.safetensors.index.json", SHARDS),
        ("text_encoder/pytorch_model.bin", b"pickle"),
        ("tokenizer/merges.txt", b"m"),
        ("tokenizer/vocab.json", b"{}"),
        ("unet/config.json", b"{}"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", b"half weights"),
        ("unet/diffusion_pytorch_model.safetensors", b"whole weights"),
        ("vae/config.json", b"{}"),
        ("vae/diffusion_pytorch_model.safetensors", b"vae"),
        ("v1-5-pruned.safetensors", b"much"),
    ]
}

fn request<'a>(variant: Option<&'a str>, weights_of: &'a [&'a str]) -> Request<'a> {
    Request { id: ID, revision: None, variant, weights_of }
}

fn files_in(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => names.extend(files_in(&entry.path()).iter().map(|inner| format!("{name}/{inner}"))),
            false => names.extend([name]),
        }
    }
    names
}

#[test]
fn a_pipeline_comes_once_and_only_the_files_that_are_used() {
    let mut mirror = Mirror::of(&pipeline());
    let mut heard = Heard::default();
    let folder = mirror.hub.fetch_pipeline(&request(None, &NETWORKS), &mut heard).unwrap();
    let unused = [
        "README.md",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "v1-5-pruned.safetensors",
    ];
    let expected: BTreeSet<String> =
        pipeline().iter().map(|(name, _)| (*name).to_owned()).filter(|name| !unused.contains(&name.as_str())).collect();
    assert_eq!(files_in(&folder), expected);
    assert_eq!(std::fs::read(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap(), b"whole weights");
    assert_eq!(heard.0["text_encoder/model-00002-of-00002.safetensors"], (12, 12));
    assert_eq!(folder.file_name().unwrap(), SHA);

    mirror.requests();
    assert_eq!(mirror.fetch(&request(None, &NETWORKS)).unwrap(), folder);
    assert_eq!(mirror.requests().len(), 1, "what is there is not fetched again");
    mirror.hub.offline = true;
    assert_eq!(mirror.fetch(&request(None, &NETWORKS)).unwrap(), folder);
    assert!(mirror.requests().is_empty());
}

#[test]
fn a_variant_is_preferred_and_configurations_come_alone() {
    let mirror = Mirror::of(&pipeline());
    let folder = mirror.fetch(&request(None, &[])).unwrap();
    assert!(files_in(&folder).iter().all(|name| !name.ends_with(".safetensors")));
    let folder = mirror.fetch(&request(Some("fp16"), &["unet", "vae"])).unwrap();
    let weights: Vec<String> = files_in(&folder).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert_eq!(weights, ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"]);
    let message = mirror.fetch(&request(Some("bf16"), &["unet"])).unwrap_err();
    assert!(message.contains("no weights of the variant `bf16`"), "{message}");
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_stopped() {
    let weights: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let mut files = pipeline();
    files.retain(|(name, _)| !name.starts_with("vae/diffusion"));
    files.push(("vae/diffusion_pytorch_model.safetensors", &weights));
    let mirror = Mirror::of(&files);
    mirror.fetch(&request(None, &[])).unwrap();
    mirror.requests();
    mirror.site.lock().unwrap().cut_at = Some(1000);
    let folder = mirror.fetch(&request(None, &["vae"])).unwrap();
    assert_eq!(std::fs::read(folder.join("vae/diffusion_pytorch_model.safetensors")).unwrap(), weights);
    assert!(mirror.requests().iter().any(|request| request.ends_with(" 1000-")));

    // Another process was stopped between the last byte and the new name.
    let incomplete = folder.join("../../blobs/unet_diffusion_pytorch_model.safetensors.incomplete");
    std::fs::write(incomplete, b"whole weights").unwrap();
    let folder = mirror.fetch(&request(None, &["unet"])).unwrap();
    assert_eq!(std::fs::read(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap(), b"whole weights");
}

#[test]
fn each_failure_is_one_plain_sentence() {
    let mut mirror = Mirror::of(&pipeline());
    let fails = |mirror: &Mirror, request: &Request, part: &str| {
        let message = mirror.fetch(request).unwrap_err();
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
    };
    let all = request(None, &NETWORKS);
    mirror.hub.offline = true;
    fails(&mirror, &all, "HF_HUB_OFFLINE is set");
    mirror.hub.offline = false;
    fails(&mirror, &Request { revision: Some("v9"), ..all.clone() }, "has no revision `v9`");
    fails(&mirror, &Request { id: "some/other", ..all.clone() }, "there is no model `some/other`");
    fails(&mirror, &Request { id: "../etc", ..all.clone() }, "is not a hub id");
    mirror.site.lock().unwrap().token = Some("hf_right".into());
    fails(&mirror, &all, "is gated: accept its terms");
    mirror.hub.token = Some("hf_right".into());
    mirror.fetch(&all).unwrap();
    mirror.hub.endpoint = "http://127.0.0.1:9".into();
    mirror.fetch(&all).expect("what was fetched before is found without the hub");
    fails(&mirror, &Request { id: "some/other", ..all.clone() }, "cannot reach http://127.0.0.1:9");
}

#[test]
fn repositories_that_cannot_be_used_are_refused_before_their_weights_come() {
    let refused = |files: &[(&str, &[u8])], part: &str| {
        let mirror = Mirror::of(files);
        let message = mirror.fetch(&request(None, &NETWORKS)).unwrap_err();
        assert!(message.contains(part) && message.contains(ID), "{message}");
        assert!(!mirror.requests().iter().any(|request| request.contains(".safetensors")));
    };
    let only = |keep: &dyn Fn(&str) -> bool| -> Vec<(&str, &[u8])> {
        pipeline().into_iter().filter(|(name, _)| keep(name)).collect()
    };
    refused(
        &only(&|name| !name.starts_with("text_encoder/model")),
        "as a Python pickle (text_encoder/pytorch_model.bin)",
    );
    refused(&only(&|name| !name.contains("model_index")), "it has the file v1-5-pruned.safetensors");
    refused(&[("config.json", b"{}")], "has no model_index.json");
    for (index, part) in [
        (&br#"{"_class_name": "StableDiffusion3Pipeline"}"#[..], "is Stable Diffusion 3; this version supports"),
        (
            br#"{"_class_name": "StableDiffusionXLImg2ImgPipeline", "unet": ["diffusers", "U"], "text_encoder": [null, null],
                "text_encoder_2": ["transformers", "C"]}"#,
            "is the refiner of Stable Diffusion XL",
        ),
    ] {
        let mut other = only(&|name| name != "model_index.json");
        other.push(("model_index.json", index));
        refused(&other, part);
    }
}

/// Those that a model of one text encoder lacks are not asked for.
#[test]
fn a_second_text_encoder_comes_with_its_tokenizer_and_a_vae_alone() {
    let four = ["unet", "vae", "text_encoder", "text_encoder_2"];
    let one = Mirror::of(&pipeline());
    assert!(!files_in(&one.fetch(&request(None, &four)).unwrap()).iter().any(|name| name.contains("_2/")));
    let mut files = pipeline();
    files.extend([
        ("text_encoder_2/config.json", &b"{}"[..]),
        ("text_encoder_2/model.safetensors", b"second"),
        ("tokenizer_2/merges.txt", b"m"),
        ("tokenizer_2/vocab.json", b"{}"),
    ]);
    let found = files_in(&Mirror::of(&files).fetch(&request(None, &four)).unwrap());
    for name in ["text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2/vocab.json"] {
        assert!(found.contains(name), "{name} of {found:?}");
    }
    let alone = Mirror::of(&[("config.json", b"{}"), ("diffusion_pytorch_model.safetensors", b"vae"), ("x.bin", b"")]);
    let folder = alone.hub.fetch_vae(&request(None, &[""]), &mut ()).unwrap();
    let expected = ["config.json", "diffusion_pytorch_model.safetensors"].map(str::to_owned);
    assert_eq!(files_in(&folder), BTreeSet::from(expected));
}

#[test]
fn a_language_model_and_a_tokenizer_come_from_flat_repositories() {
    let mirror = Mirror::of(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", b"weights"),
        ("pytorch_model.bin", b"pickle"),
    ]);
    let tokenizer = mirror.hub.fetch_tokenizer(&request(None, &[]), &mut ()).unwrap();
    assert_eq!(files_in(&tokenizer), BTreeSet::from(["tokenizer.json".to_owned()]));
    let model = mirror.hub.fetch_language_model(&request(None, &[""]), &mut ()).unwrap();
    assert_eq!(files_in(&model).len(), 3);
}

#[test]
fn commands_take_a_language_model_by_its_hub_id_and_revision() {
    let model = jobs::gpt2(true).folder.join("model");
    let names: Vec<String> = files_in(&model).into_iter().collect();
    let files: Vec<(&str, Vec<u8>)> =
        names.iter().map(|name| (name.as_str(), std::fs::read(model.join(name)).unwrap())).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let mirror = Mirror::of(&files);
    let run = |mirror: &Mirror, args: &[&str]| {
        let mut command = support::lorabooth_command(args);
        command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &mirror.hub.endpoint);
        let output = command.env("HF_HUB_CACHE", &mirror.hub.cache).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let complete = |model: &str, more: &[&str]| {
        run(&mirror, &support::complete(model, "red house", &[&["--max-new-tokens", "8"], more].concat()))
    };
    let text = |(code, said): (Option<i32>, String)| -> Value {
        assert_eq!(code, Some(0), "{said}");
        serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()["text"].clone()
    };
    let path = model.to_str().unwrap();
    let here = text(complete(path, &[]));
    for id in [ID, BARE_ID] {
        assert_eq!(text(complete(id, &["--revision", SHA])), here, "{id}");
    }
    let fails = |(code, said): (Option<i32>, String), words: &[&str]| {
        assert_eq!(code, Some(1), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{said} lacks {word}"));
    };
    fails(complete(BARE_ID, &["--revision", "v9"]), &["no revision `v9`"]);
    fails(complete("another-model", &[]), &["there is no model `another-model`"]);
    fails(complete(path, &["--revision", "main"]), &["--revision", "hub id"]);

    // A plan needs no weights.
    let fresh = Mirror::of(&files);
    let args = ["plan", "llm", "--json", "--device", "cpu", "--task", "causal-lm", "--model", BARE_ID];
    assert_eq!(run(&fresh, &args).0, Some(0));
    assert!(!fresh.requests().iter().any(|request| request.contains(".safetensors")));
}
