//! `lorabooth evaluate` measures what a run of `train llm` that learns nothing measures.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::complaints::Complaints;
use crate::support::jobs::{bert, gpt2, lines, t5, Job};
use crate::support::{complete, lorabooth, lorabooth_command, lorabooth_ok, read_json};
use serde_json::{json, Value};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

fn evaluate(job: &Job, records: &Path, more: &[&str]) -> Vec<String> {
    let words = "evaluate --device cpu --threads 1 --mixed-precision no --eval-max-new-tokens 6 --json --task";
    let mut args: Vec<String> = words.split(' ').map(str::to_owned).collect();
    args.extend([job.task, "--model"].map(str::to_owned));
    args.extend([&job.folder.join("model"), Path::new("--validation-file"), records].map(|p| p.display().to_string()));
    if job.label {
        args.extend(["--label-column", "label"].map(str::to_owned));
    }
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

/// What `evaluate` says must be what a run of no steps writes.
fn check(job: &Job, trained: &Path, given: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (validation, answers) = (job.folder.join("validation.jsonl"), folder.path().join("answers/answers.csv"));
    let mut more: Vec<&str> = given.to_vec();
    if job.label {
        more.extend(["--output", answers.to_str().unwrap()]);
    }
    let said = lorabooth_ok(&evaluate(job, &validation, &more));
    let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let evaluations = lines(&trained.join("evaluations.jsonl"));
    let written = evaluations.last().unwrap();
    for name in ["loss", "perplexity", "accuracy", "f1"] {
        assert_eq!(said[name], written[name], "{} {name} {given:?}", job.name);
    }
    assert_eq!(said["records"], 10);
    if job.label {
        let [ours, theirs] = [&answers, &trained.join("predictions.csv")].map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(ours, theirs, "{}", job.name);
    }
}

#[test]
fn numbers_and_answers_are_those_of_a_run_of_no_steps() {
    for (job, method) in [
        (gpt2(true), &[][..]),
        (gpt2(false), &[]),
        (gpt2(true), &["--peft-method", "p-tuning", "--num-virtual-tokens", "3"]),
        (t5(), &[]),
        (bert(), &[]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [adapter, after, before] = ["adapter", "after", "before"].map(|name| folder.path().join(name));
        let validation = job.folder.join("validation.jsonl");
        let no_steps = ["--max-train-steps", "0", "--eval-max-new-tokens", "6"];
        let no_steps = [&no_steps[..], &["--validation-file", validation.to_str().unwrap()]].concat();
        lorabooth_ok(&job.train(&adapter, method));
        let from = ["--init-adapter", adapter.to_str().unwrap()];
        let method_alone = &method[..method.len().min(2)];
        lorabooth_ok(&job.train(&after, &[&no_steps[..], &from, method_alone].concat()));
        check(&job, &after, &["--adapter", adapter.to_str().unwrap()]);
        if job.task != "seq-cls" && method.is_empty() {
            lorabooth_ok(&job.train(&before, &no_steps));
            check(&job, &before, &[]);
            assert_ne!(lines(&before.join("evaluations.jsonl")), lines(&after.join("evaluations.jsonl")));
        }
    }
}

/// Texts without labels get the answers that they get with labels, and `complete` finds the same class.
#[test]
fn texts_without_labels_are_answered() {
    for job in [bert(), t5(), gpt2(true)] {
        let folder = tempfile::tempdir().unwrap();
        let [adapter, bare, known, found] =
            ["adapter", "bare.jsonl", "known.csv", "found.csv"].map(|name| folder.path().join(name));
        lorabooth_ok(&job.train(&adapter, &["--learning-rate", "0.02"]));
        let records = job.folder.join("validation.jsonl");
        let texts: Vec<Value> = lines(&records).iter().map(|row| json!({ "text": row["text"] })).collect();
        fs::write(&bare, texts.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        let adapter = ["--adapter", adapter.to_str().unwrap()];
        let to = |path: &Path| ["--output".to_owned(), path.display().to_string()];
        lorabooth_ok(&[evaluate(&job, &records, &adapter), to(&known).to_vec()].concat());
        let mut args = [evaluate(&job, &bare, &adapter), to(&found).to_vec()].concat();
        let label = args.iter().position(|arg| arg == "--label-column").unwrap();
        args.drain(label..label + 2);
        let said: Value = serde_json::from_str(lorabooth_ok(&args).lines().last().unwrap()).unwrap();
        assert_eq!((&said["records"], &said["loss"]), (&json!(10), &Value::Null), "{}", job.name);
        let column = |path: &Path, name: &str| -> Vec<String> {
            let mut reader = csv::Reader::from_path(path).unwrap();
            let at = reader.headers().unwrap().iter().position(|header| header == name).unwrap();
            reader.records().map(|row| row.unwrap()[at].to_owned()).collect()
        };
        for name in ["text", "prediction"] {
            assert_eq!(column(&found, name), column(&known, name), "{}", job.name);
        }
        let model = job.folder.join("model").display().to_string();
        let text = texts[0]["text"].as_str().unwrap();
        let said = lorabooth_ok(&complete(&model, text, &[&adapter[..], &["--max-new-tokens", "6"]].concat()));
        let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let name = if job.task == "seq-cls" { "class" } else { "text" };
        assert_eq!(said[name], json!(column(&found, "prediction")[0]), "{}", job.name);
        if job.task == "seq-cls" {
            let shares = said["probabilities"].as_object().unwrap();
            let sum: f64 = shares.values().map(|share| share.as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-6 && shares.len() == 3, "{said}");
            assert_eq!(shares[said["class"].as_str().unwrap()], said["probability"]);
            let without_output = lorabooth(&args[..args.len() - 2]);
            let said = String::from_utf8_lossy(&without_output.stdout).into_owned();
            assert_eq!(without_output.status.code(), Some(2), "{said}");
            assert!(said.contains("--label-column") && said.contains("--output"), "{said}");
        }
    }
}

/// The text is for programs, and everything else is beside it.
#[test]
fn a_completion_is_alone_on_standard_output() {
    let job = gpt2(true);
    let model = job.folder.join("model").display().to_string();
    let args = ["complete", "--device", "cpu", "--model", &model, "--max-new-tokens", "6", "--prompt"];
    let given = lorabooth(&[&args[..], &["red green"]].concat());
    let told = String::from_utf8_lossy(&given.stderr).into_owned();
    assert!(given.status.success() && told.contains("gpt2") && told.contains("CPU"), "{told}");
    let said = String::from_utf8_lossy(&given.stdout).into_owned();
    assert!(!said.contains("gpt2") && said.ends_with('\n') && said.trim().len() > 1, "{said}");
    let mut piped = lorabooth_command(&[&args[..], &["-"]].concat());
    let mut child = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"red green").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, given.stdout);
}

#[test]
fn other_texts_than_an_adapter_learned_from_are_told() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let (adapter, records) = (folder.path().join("adapter"), job.folder.join("validation.jsonl"));
    let template = ["--prompt-template", "{text} is "];
    lorabooth_ok(&job.train(&adapter, &[&template[..], &["--max-train-steps", "1"]].concat()));
    let given = ["--adapter", adapter.to_str().unwrap()];
    for (more, expected) in [(&[][..], true), (&template[..], false), (&["--prompt-template", "{text}"], true)] {
        let mut args = evaluate(&job, &records, &[&given[..], more].concat());
        args.retain(|arg| arg != "--json");
        let output = lorabooth(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("learned with --prompt-template \"{text} is \""), expected, "{more:?}: {said}");
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (writer, classifier) = (gpt2(true), bert());
    let adapter = path("adapter").display().to_string();
    lorabooth_ok(&classifier.train(&path("adapter"), &["--max-train-steps", "0"]));
    let unknown = path("unknown.jsonl");
    fs::write(&unknown, "{\"text\": \"red\", \"label\": \"endless\"}\n").unwrap();
    let records = writer.folder.join("validation.jsonl");
    let with_adapter = ["--adapter", adapter.as_str()];
    let bare = path("bare").display().to_string();
    fs::create_dir(path("bare")).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(path("adapter").join(name), path("bare").join(name)).unwrap();
    }
    let taken = path("taken.csv").display().to_string();
    fs::write(&taken, "mine").unwrap();
    for (what, job, records, more, words) in [
        (
            "answers that are there",
            &writer,
            records.as_path(),
            &["--output", taken.as_str()][..],
            &["taken.csv", "--overwrite"][..],
        ),
        ("no such file", &writer, Path::new("/nowhere.jsonl"), &[], &["--validation-file", "/nowhere.jsonl"]),
        ("no such adapter", &writer, &records, &["--adapter", "/nowhere"], &["/nowhere"]),
        ("a classifier of other classes", &classifier, &records, &[], &["line 1", "LABEL_0, LABEL_1, LABEL_2"]),
        ("an adapter without classes", &classifier, &records, &["--adapter", &bare], &["LABEL_0, LABEL_1, LABEL_2"]),
        ("another model's task", &writer, &records, &["--task", "seq2seq-lm"], &["--task seq2seq-lm", "causal-lm"]),
        ("another adapter's task", &writer, &records, &with_adapter, &["--task is causal-lm", "is for seq-cls"]),
        ("an unknown label", &classifier, &unknown, &with_adapter, &["line 1", "`endless`", "long, short, tiny"]),
        ("no column", &writer, &records, &["--text-column", "tweet"], &["tweet"]),
        ("no place to write", &writer, &records, &["--output", "/dev/null/x.csv"], &["/dev/null"]),
        ("no tokens", &writer, &records, &["--eval-max-new-tokens", "0"], &["--eval-max-new-tokens"]),
    ] {
        let mut args = evaluate(job, records, more);
        args.retain(|arg| arg != "--json");
        complaints.refused(what, &args, 1, words);
    }
    complaints.check("answers were replaced", fs::read(&taken).unwrap() == b"mine");
    lorabooth_ok(&evaluate(&writer, &records, &["--output", &taken, "--overwrite"]));
    complaints.check("answers were not replaced", fs::read(&taken).unwrap() != b"mine");
    let classes = read_json(path("adapter").join("classes.json"));
    assert_eq!(classes.as_array().unwrap().len(), 3);
}
