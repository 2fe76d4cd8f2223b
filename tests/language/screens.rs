//! What `lorabooth train llm` says: how weights are kept, and a command that tries the adapter.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::documented::{keys, Documented};
use crate::support::jobs::{bert, gpt2, lines, t5, Job};
use crate::support::{self, complete, lorabooth, lorabooth_ok, read_json};
use serde_json::{json, Value};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// What a run of no steps says.
fn said(job: &Job, out: &Path, more: &[&str]) -> String {
    let mut args = job.train(out, &[&["--max-train-steps", "0"], more].concat());
    args.retain(|arg| arg != "--quiet");
    lorabooth_ok(&args)
}

#[test]
fn the_first_screen_says_how_weights_are_kept() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let line = |name: &str, more: &[&str]| {
        let said = said(&job, &folder.path().join(name), more);
        said.lines().find_map(|line| line.trim_start().strip_prefix("weights  ")).map(str::to_owned)
    };
    assert_eq!(line("plain", &[]), None);
    let int8 = line("int8", &["--load-in-8bit", "--int8-threshold", "4.5"]).unwrap();
    assert_eq!(int8, "linear layers in 8 bits; inputs of 4.5 or more are computed in 16");
    assert_eq!(line("offload", &["--offload", "cpu"]).unwrap(), "in their files, each block loaded when it is used");
}

#[test]
fn what_a_language_run_writes_and_says_is_what_is_documented() {
    let (folder, documented) = (tempfile::tempdir().unwrap(), Documented::read());
    let mut measured = BTreeSet::new();
    for job in [gpt2(true), bert()] {
        let (out, validation) = (folder.path().join(job.name), job.folder.join("validation.jsonl"));
        let more = ["--max-train-steps", "1", "--validation-file", validation.to_str().unwrap(), "--json"];
        let mut args = job.train(&out, &more);
        args.retain(|arg| arg != "--quiet");
        let said = lorabooth_ok(&args);
        let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(documented.undocumented(&events), BTreeSet::new(), "{}", job.name);
        let evaluations = lines(&out.join("evaluations.jsonl"));
        assert_eq!(evaluations.len(), 2, "{}", job.name);
        measured.extend(evaluations.iter().flat_map(keys));
        // TensorBoard's tags stand in the events as they are.
        let logs: Vec<u8> = std::fs::read_dir(out.join("logs"))
            .unwrap()
            .flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect();
        for name in keys(&evaluations[0]).iter().filter(|name| *name != "step") {
            let tag = format!("evaluation/{name}");
            let found = logs.windows(tag.len()).filter(|bytes| *bytes == tag.as_bytes()).count();
            assert_eq!(found, 2, "{}: {tag}", job.name);
        }
        let mut table = csv::Reader::from_path(out.join("predictions.csv")).unwrap();
        let columns: Vec<String> = table.headers().unwrap().iter().map(str::to_owned).collect();
        let (plain, shares) = columns.split_at(3);
        assert_eq!(plain, ["text", "label", "prediction"]);
        let classes: Vec<String> = match job.name {
            "bert" => serde_json::from_value(support::read_json(out.join("classes.json"))).unwrap(),
            _ => Vec::new(),
        };
        assert_eq!(shares, classes.iter().map(|class| format!("probability_{class}")).collect::<Vec<_>>());
        for row in table.records().map(Result::unwrap).filter(|_| !classes.is_empty()) {
            let shares: Vec<f64> = row.iter().skip(3).map(|share| share.parse().unwrap()).collect();
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{row:?}");
            let most = (0..shares.len()).max_by(|a, b| shares[*a].total_cmp(&shares[*b])).unwrap();
            assert_eq!(row[2], classes[most], "{row:?}");
        }
    }
    assert_eq!(measured, documented.fields("evaluations.jsonl"));
}

/// The command that a run of `job` closes with.
fn command(job: &Job, more: &[&str]) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let said = said(job, &folder.path().join("an adapter"), more);
    let command = said.lines().last().unwrap().strip_prefix("try it:  lorabooth ").unwrap_or_else(|| panic!("{said}"));
    (folder, command.to_owned())
}

/// What the command says in bash: the text, and what is beside it.
fn tried(command: &str) -> [String; 2] {
    let script = format!("{} {command} --device cpu --dtype fp32", env!("CARGO_BIN_EXE_lorabooth"));
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let [text, beside] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && !beside.contains("warning"), "{script}: {beside}");
    [text, beside]
}

#[test]
fn a_run_closes_with_a_command_that_tries_the_adapter() {
    let (job, summary, classifier) = (gpt2(true), t5(), bert());
    let validation = job.folder.join("validation.jsonl");
    let first = |file: &str| lines(&job.folder.join(file))[0]["text"].as_str().unwrap().to_owned();
    let template = ["--prompt-template", "<user>\nit's {text}\n<robot>\n"];
    for (job, more, words) in [
        (&job, &[][..], vec![format!("--prompt '{}'", first("train.jsonl"))]),
        (&job, &["--validation-file", validation.to_str().unwrap()], vec![first("validation.jsonl")]),
        (&job, &template, vec![format!(r"--prompt $'<user>\nit\'s {}\n<robot>\n'", first("train.jsonl"))]),
        (&job, &["--prompt-template=-{text}"], vec![format!("--prompt='-{}'", first("train.jsonl"))]),
        (&summary, &[], vec![format!("--prompt '{}'", first("train.jsonl"))]),
        (&classifier, &[], vec![format!("--prompt '{}'", first("train.jsonl"))]),
        (&job, &["--load-in-8bit"], vec!["--quantize int8 --max-new-tokens".to_owned()]),
        (&job, &["--load-in-8bit", "--int8-threshold", "3"], vec!["--int8-threshold 3".to_owned()]),
        (&job, &["--offload", "cpu"], vec!["--offload cpu".to_owned()]),
        (&job, &["--peft-method", "prefix-tuning"], vec!["--max-new-tokens".to_owned()]),
    ] {
        let (_folder, command) = command(job, more);
        words.iter().for_each(|word| assert!(command.contains(word), "{command} lacks {word}"));
        let [text, beside] = tried(&command);
        // What has learned nothing may end at once.
        assert!(beside.contains("adapter  ") && text.ends_with('\n'), "{command}: {text}");
    }
}

/// A copy of a job's model whose tokenizer puts `</s>` before every text.
fn with_a_start(job: &Job, folder: &Path) -> std::path::PathBuf {
    let model = folder.join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(job.folder.join("model")).unwrap().map(|entry| entry.unwrap()) {
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let mut tokenizer = read_json(model.join("tokenizer.json"));
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let start = json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    tokenizer["post_processor"] = json!({ "type": "TemplateProcessing", "single": [start, text], "pair": [start, text],
        "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } } });
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    model
}

#[test]
fn a_start_token_that_is_in_the_text_already_is_said_and_stays() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let model = with_a_start(&job, folder.path());
    let (model, records) = (model.to_str().unwrap(), job.folder.join("validation.jsonl"));
    let beside = |args: &[String]| {
        let output = lorabooth(args);
        let beside = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {beside}");
        beside
    };
    let owned = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
    let written = |prompt: &str| beside(&owned(&complete(model, prompt, &["--max-new-tokens", "1"])[..]));
    let doubled = "begins with `</s>`, which the tokenizer puts there too";
    assert_eq!(written("red green"), "");
    // With --json a warning is a line of standard output.
    let out = |prompt: &str| lorabooth_ok(&complete(model, prompt, &["--max-new-tokens", "1"]));
    assert!(out(" </s>red green").contains(doubled) && !out("red </s>green").contains(doubled));
    let ids = |prompt: &str| lorabooth_ok(&["tokenize", "--model", model, prompt]);
    assert_eq!(ids("</s>red").split(',').take(2).collect::<Vec<_>>(), ["[1", "1"]);

    let rows = lines(&job.folder.join("train.jsonl")).len();
    let train = |name: &str, template: &str| {
        let template = ["--model", model, "--max-train-steps", "0", "--prompt-template", template];
        beside(&job.train(&folder.path().join(name), &template))
    };
    assert_eq!(train("plain", "{text}"), "");
    let said = train("doubled", "</s>{text}");
    let expected = format!("{rows} of {rows} rows begin with `</s>`, which the tokenizer puts there too");
    assert!(said.contains(&expected) && said.contains("--prompt-template") && said.lines().count() == 1, "{said}");

    let evaluate = |template: &str| {
        let records = records.to_str().unwrap();
        beside(&owned(&[
            "evaluate",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--model",
            model,
            "--task",
            "causal-lm",
            "--label-column",
            "label",
            "--validation-file",
            records,
            "--prompt-template",
            template,
        ]))
    };
    assert_eq!(evaluate("{text}"), "");
    assert!(evaluate("</s>{text}").contains("rows begin with `</s>`"));

    // The end of a label is put there too.
    let ended = folder.path().join("ended.jsonl");
    std::fs::write(&ended, "{\"text\": \"red\", \"label\": \"tiny </s>\"}\n{\"text\": \"red\", \"label\": \"tiny\"}\n")
        .unwrap();
    let ended = beside(
        &job.train(&folder.path().join("ended"), &["--train-file", ended.to_str().unwrap(), "--max-train-steps", "0"]),
    );
    assert!(ended.contains("1 of 2 rows have the token that ends a text, which is put there too"), "{ended}");
}
