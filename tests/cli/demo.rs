//! `lorabooth demo`, whole: the subject is learned, the class is kept, and what it says of it is there.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::documented::{keys, Documented};
use crate::support::{lorabooth, lorabooth_ok, read_json};
use serde_json::Value;
use std::path::Path;

fn number(report: &Value, path: &[&str]) -> f64 {
    path.iter().fold(report, |value, key| &value[*key]).as_f64().unwrap()
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn the_demo_teaches_the_subject_and_keeps_the_class() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let said = lorabooth_ok(&["demo", "--device", "cpu", "--output-dir", out.to_str().unwrap()]);
    let report = read_json(out.join("report.json"));
    assert_eq!(keys(&report), Documented::read().fields("report.json"));

    // What it measured by colour and shape.
    let after = |key: &str| number(&report, &["subject_after", key]);
    let before = |key: &str| number(&report, &["subject_before", key]);
    assert!(after("nearer_to_subject") >= 0.9, "{report:#}");
    assert!(after("margin") > before("margin") + 25.0, "{report:#}");
    assert!(after("colour_distance_to_subject") < 0.4 * before("colour_distance_to_subject"), "{report:#}");
    assert!(after("shape_overlap_with_subject") > before("shape_overlap_with_subject") + 0.1, "{report:#}");
    assert!(number(&report, &["background_right_after"]) >= 0.8, "{report:#}");
    assert!(number(&report, &["class_after", "nearer_to_subject"]) <= 0.25, "the class was lost: {report:#}");

    // What it leaves, and says.
    let sheet = image::open(out.join("contact-sheet.png")).unwrap();
    assert!(sheet.width() > 1000 && sheet.height() > 800);
    assert_eq!(files(&out.join("class-images")), 32);
    assert_eq!(files(&out.join("images")), 24 + 24 + 16 + 6);
    assert!(said.contains("contact-sheet.png") && said.contains("--instance-data-dir YOUR_PHOTOS"), "{said}");

    // The command that it tells to try, and the training as a command of its own.
    let [model, adapter, image] = ["model", "adapter", "try.png"].map(|name| out.join(name));
    lorabooth_ok(&[
        "generate",
        "--device",
        "cpu",
        "--quiet",
        "--guidance-scale",
        "3",
        "--prompt",
        "a photo of sks bird",
        "--model",
        model.to_str().unwrap(),
        "--lora",
        adapter.to_str().unwrap(),
        "--output",
        image.to_str().unwrap(),
    ]);
    assert_eq!(image::open(&image).unwrap().width(), 64);
    assert!(report["command"].as_str().unwrap().contains("--with-prior-preservation"));
}

#[test]
fn a_folder_with_other_files_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.txt"), "mine").unwrap();
    let output = lorabooth(&["demo", "--device", "cpu", "--output-dir", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("holds other files"));
    assert_eq!(files(folder.path()), 1);
}

#[test]
fn an_earlier_demo_is_replaced_only_when_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    for name in [".lorabooth-demo", "report.json"] {
        std::fs::write(folder.path().join(name), "earlier").unwrap();
    }
    let output = lorabooth(&["demo", "--device", "cpu", "--output-dir", folder.path().to_str().unwrap()]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("already exists; replace it with --overwrite, or choose another --output-dir"), "{error}");
    assert_eq!(std::fs::read_to_string(folder.path().join("report.json")).unwrap(), "earlier");
    assert_eq!(files(folder.path()), 2);
}
