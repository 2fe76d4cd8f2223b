//! What nobody means well: uploads that are bombs, texts without end, models that vanish under the server.

use super::client::{form, photo, subject, text, training, Server};
use super::uploads::{refused, zip_of};
use crate::support::copy;
use serde_json::{json, Value};
use std::io::{Cursor, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn names_steer_nothing_and_lead_nowhere() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    // As browsers write a line end in a name, and as nobody should.
    let set = server.set_of(&[
        ("a%0D%0Aset-cookie: x=1.png", photo(1)),
        ("\u{9b}31mred\u{85}.png", photo(2)),
        ("/etc/passwd", photo(3)),
        ("..\\..\\windows\\system.png", photo(4)),
        ("....//....//x.png", photo(5)),
        (&"x".repeat(4000), photo(6)),
    ]);
    let names: Vec<&str> = set["photos"].as_array().unwrap().iter().map(|photo| text(photo, "/name")).collect();
    assert_eq!(names.len(), 6, "{set}");
    assert!(names.iter().all(|name| !name.contains(['/', '\\']) && !name.chars().any(char::is_control)), "{names:?}");
    assert_eq!(names[1..5], ["31mred.png", "passwd", "system.png", "x.png"]);
    assert_eq!(names[5].len(), 120);
    let files = std::fs::read_dir(folder.path().join("sets").join(text(&set, "/id")).join("photos")).unwrap();
    for file in files {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(
            name.len() < 60 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b)),
            "{name}"
        );
    }
    assert_eq!(server.bytes(text(&set, "/photos/0/url")).0, photo(1));
    // What no header may hold breaks the form.
    let path = format!("/api/sets/{}/files", text(&set, "/id"));
    let (status, broken) = server.upload(&path, "files", &[("\u{1b}[31m\u{0}.png", photo(1))]);
    assert_eq!(status, 400, "{broken}");
    assert_eq!(server.get(&format!("/api/sets/{}", text(&set, "/id")))["photos"].as_array().unwrap().len(), 6);
}

#[test]
fn ten_thousand_files_are_told_apart_in_one_upload() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    let names: Vec<String> = (0..10_000).map(|number| format!("{number}.png")).collect();
    let mut files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), b"no photo".to_vec())).collect();
    files.push(("photo.png", photo(1)));
    let set = server.set_of(&files);
    assert_eq!((set["photos"].as_array().unwrap().len(), set["refused"].as_array().unwrap().len()), (1, 100));
    assert!(refused(&set, "0.png").contains("not an image"));
    assert!(is_empty(&folder.path().join("temporary")));
}

/// A zip of `count` files of `bytes` zeros each, which is made as quickly as one of a single file.
fn bomb(count: usize, bytes: usize) -> Vec<u8> {
    let one = zip_of(&[("one", &vec![0; bytes])]);
    let mut one = zip::ZipArchive::new(Cursor::new(one)).unwrap();
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for number in 0..count {
        archive.raw_copy_file_rename(one.by_index_raw(0).unwrap(), format!("{number}.png")).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn a_zip_of_a_hundred_gigabytes_is_refused_before_it_is_unpacked() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    let bomb = bomb(1000, 100 << 20);
    assert!(bomb.len() < 150 << 20, "{}", bomb.len());
    let began = Instant::now();
    let set = server.set_of(&[("bomb.zip", bomb), ("photo.png", photo(1))]);
    assert!(refused(&set, "bomb.zip").contains("unpacks to more than 4 GB"), "{set}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(set["photos"].as_array().unwrap().len(), 1);
    assert!(is_empty(&folder.path().join("temporary")));
}

#[test]
fn a_zip_that_lies_about_its_size_is_cut() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    // 200 MB, of which the file's two headers say that they are 1,000 bytes.
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    archive.start_file("bomb.png", SimpleFileOptions::default()).unwrap();
    archive.write_all(&vec![0; 200 << 20]).unwrap();
    let mut bytes = archive.finish().unwrap().into_inner();
    let (real, told) = ((200_u32 << 20).to_le_bytes(), 1000_u32.to_le_bytes());
    let places: Vec<usize> = (0..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == real).collect();
    assert_eq!(places.len(), 2);
    places.iter().for_each(|&at| bytes[at..at + 4].copy_from_slice(&told));
    let set = server.set_of(&[("lie.zip", bytes), ("photo.png", photo(1))]);
    let sentence = refused(&set, "bomb.png");
    assert!(
        sentence.contains("larger than 128 MB") || sentence.contains("damaged") || sentence.contains("not an image"),
        "{set}"
    );
    assert_eq!(set["photos"].as_array().unwrap().len(), 1);
    assert!(is_empty(&folder.path().join("temporary")));
}

#[test]
fn a_text_without_end_is_refused_with_its_field() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    let set = subject(&server, 1);
    let long = "word ".repeat(20_000);
    for field in ["instance_prompt", "validation_prompt", "class_prompt", "learning_rate"] {
        let (status, refused) = server.send("POST", "/api/jobs", &training(&set, 1, &json!({ field: long })));
        assert_eq!((status, text(&refused, "/error/field")), (422, field), "{refused}");
        assert!(text(&refused, "/error/sentence").len() < 300, "{refused}");
    }
    for (options, field) in [
        (json!({ "prompt": long }), "prompt"),
        (json!({ "prompt": "a bird", "negative_prompt": long }), "negative_prompt"),
        (json!({ "prompt": "a bird", "model": long }), "model"),
    ] {
        let (status, refused) = server.send("POST", "/api/jobs", &json!({ "kind": "generate", "options": options }));
        assert_eq!((status, text(&refused, "/error/field")), (422, field), "{refused}");
    }
    let photo = server.get(&format!("/api/sets/{set}"))["photos"][0]["id"].as_str().unwrap().to_owned();
    let (status, refused) =
        server.send("PATCH", &format!("/api/sets/{set}/photos/{photo}"), &json!({ "caption": long }));
    assert_eq!((status, text(&refused, "/error/field")), (422, "caption"));
    assert_eq!(server.get("/api/jobs"), json!([]));
}

#[test]
fn a_model_that_is_removed_while_it_is_loaded_is_a_sentence() {
    let folder = TempDir::new().unwrap();
    let (data, model) = (folder.path().join("data"), folder.path().join("my model"));
    drop(Server::start(&data));
    copy(&data.join("models/demo"), &model);
    let server = Server::start_with(&data, &["--model", model.to_str().unwrap()]);
    let id = text(&server.get("/api/state")["models"][0], "/id").to_owned();
    let draw = |model: &str| {
        let options = json!({ "model": model, "prompt": "a bird", "steps": 1, "seed": 1 });
        server.send("POST", "/api/jobs", &json!({ "kind": "generate", "options": options }))
    };
    let set = subject(&server, 1);
    let first = server.wait_until_over(text(&draw(&id).1, "/id"));
    assert_eq!(first["state"], "finished", "{first}");
    std::fs::remove_dir_all(&model).unwrap();

    // What is loaded may go on; whatever needs the files says what is missing.
    let says = |(status, answer): (u16, Value)| match status {
        201 => {
            let job = server.wait_until_over(text(&answer, "/id"));
            job["error"].as_str().map(str::to_owned)
        }
        422 => Some(text(&answer, "/error/sentence").to_owned()),
        _ => panic!("{status} {answer}"),
    };
    if let Some(sentence) = says(draw(&id)) {
        assert!(sentence.contains("my model"), "{sentence}");
    }
    let sentence = says(server.send("POST", "/api/jobs", &training(&set, 1, &json!({ "model": id })))).unwrap();
    assert!(sentence.contains("my model") && !sentence.contains("internal"), "{sentence}");
    let plan =
        json!({ "kind": "dreambooth", "set": set, "options": training(&set, 1, &json!({ "model": id }))["options"] });
    let (status, refused) = server.send("POST", "/api/plan", &plan);
    assert!(
        (400..500).contains(&status) && text(&refused, "/error/sentence").contains("my model"),
        "{status} {refused}"
    );
    // The others are as they were.
    assert_eq!(says(draw("demo")), None);
    assert_eq!(server.get("/api/state")["models"][0]["id"], json!(id));
}

#[test]
fn a_form_that_breaks_off_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    let id = text(&server.post("/api/sets", &json!({})), "/id").to_owned();
    let (body, kind) = form("files", &[("a.png", photo(1)), ("b.png", photo(2))]);
    let cut = &body[..body.len() * 3 / 4];
    let sent = server.request("POST", &format!("/api/sets/{id}/files")).set("content-type", &kind).send_bytes(cut);
    let answer = sent.unwrap_err().into_response().unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.into_string().unwrap().contains("broke off"));
    assert!(is_empty(&folder.path().join("temporary")));
}
