//! Models of the hub, which are looked at before they are chosen.

use super::client::{text, Server};
use crate::support::hub_mirror::{self, Server as Hub, ID};
use crate::support::jobs;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// The files below `folder` by their path in a repository.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        for path in std::fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => todo.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

/// A server whose hub is `hub`, with an empty cache.
fn server(folder: &TempDir, hub: &Hub, flags: &[&str]) -> Server {
    let cache = folder.path().join("cache");
    let environment =
        [("HF_ENDPOINT", hub.address.as_str()), ("HF_HUB_OFFLINE", "0"), ("HF_HOME", cache.to_str().unwrap())];
    Server::start_in(&folder.path().join("data"), flags, &environment)
}

#[test]
fn a_model_of_the_hub_is_looked_at_without_its_weights() {
    let folder = TempDir::new().unwrap();
    let demo = folder.path().join("demo");
    drop(Server::start(&demo));
    let images = files(&demo.join("models/demo"));
    let texts = files(&jobs::gpt2(true).folder.join("model"));
    for (files, kind, size, tasks) in [
        (images, "stable_diffusion", json!(64), json!(null)),
        (texts, "language", json!(null), json!(["CAUSAL_LM", "SEQ_CLS"])),
    ] {
        let (hub, folder) = (Hub::start(files, None), TempDir::new().unwrap());
        let server = server(&folder, &hub, &[]);
        let model = server.get(&format!("/api/models?hub={ID}"));
        assert_eq!(
            (text(&model, "/id"), text(&model, "/kind"), text(&model, "/source")),
            (ID, kind, "cache"),
            "{model}"
        );
        assert_eq!((&model["native_size"], &model["tasks"]), (&size, &tasks), "{model}");
        let asked = hub.asked();
        assert!(asked.iter().any(hub_mirror::Asked::is_for_the_list));
        let weights: Vec<_> = asked.iter().filter(|asked| asked.path.ends_with(".safetensors")).collect();
        assert!(weights.is_empty(), "{weights:?}");
    }
}

#[test]
fn what_is_no_model_of_the_hub_is_a_sentence_about_the_field() {
    let (hub, folder) =
        (Hub::start(BTreeMap::from([("README.md".to_owned(), b"hello".to_vec())]), None), TempDir::new().unwrap());
    let server = server(&folder, &hub, &[]);
    for (id, says) in [(ID, ID), ("no.such/..", "no model"), ("../../etc", "no model"), ("", "no model")] {
        let (status, refused) = server.ask("GET", &format!("/api/models?hub={id}"));
        assert!(status == 422 && text(&refused, "/error/sentence").contains(says), "{id}: {status} {refused}");
        assert!(["hub", "model"].contains(&text(&refused, "/error/field")), "{refused}");
    }
    assert_eq!(server.ask("GET", "/api/models").0, 400);
    // Visitors take what is there.
    let public = self::server(&TempDir::new().unwrap(), &hub, &["--public"]);
    hub.asked();
    assert_eq!(public.ask("GET", &format!("/api/models?hub={ID}")).0, 422);
    assert!(hub.asked().is_empty());
}
