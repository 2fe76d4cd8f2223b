//! `lorabooth evaluate` measures what a run of `train llm` that learns nothing measures.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

#[path = "support/complaints.rs"]
mod complaints;
#[path = "support/jobs.rs"]
mod jobs;
mod support;

use complaints::Complaints;
use jobs::{bert, gpt2, lines, t5, Job};
use serde_json::Value;
use std::fs;
use std::path::Path;
use support::{lorabooth, lorabooth_ok, read_json};

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
    for (what, job, records, more, words) in [
        ("no such file", &writer, Path::new("/nowhere.jsonl"), &[][..], &["/nowhere.jsonl"][..]),
        ("no such adapter", &writer, &records, &["--adapter", "/nowhere"], &["/nowhere"]),
        ("a classifier of other classes", &classifier, &records, &[], &["line 1", "LABEL_0, LABEL_1, LABEL_2"]),
        ("an adapter without classes", &classifier, &records, &["--adapter", &bare], &["LABEL_0, LABEL_1, LABEL_2"]),
        ("another model's task", &writer, &records, &["--task", "seq2seq-lm"], &["--task seq2seq-lm", "causal-lm"]),
        ("another adapter's task", &writer, &records, &with_adapter, &["--task is causal-lm", "for seq-cls"]),
        ("an unknown label", &classifier, &unknown, &with_adapter, &["line 1", "`endless`", "long, short, tiny"]),
        ("no column", &writer, &records, &["--text-column", "tweet"], &["tweet"]),
        ("nothing to write", &gpt2(false), &records, &["--output", "/x.csv"], &["--output", "--label-column"]),
        ("no place to write", &writer, &records, &["--output", "/dev/null/x.csv"], &["/dev/null"]),
        ("no tokens", &writer, &records, &["--eval-max-new-tokens", "0"], &["--eval-max-new-tokens"]),
    ] {
        let mut args = evaluate(job, records, more);
        args.retain(|arg| arg != "--json");
        complaints.refused(what, &args, 1, words);
    }
    let classes = read_json(path("adapter").join("classes.json"));
    assert_eq!(classes.as_array().unwrap().len(), 3);
}
