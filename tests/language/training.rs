//! `lorabooth train llm` learns what PEFT's loop learns from the same start, and answers what it answers.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{
    bert, bloom, close, gpt2, gpt2_classifier, lines, llama, llama_classifier, opt, t5, Job, LEARNING_RATE,
};
use crate::support::{self, complete, lorabooth, lorabooth_ok, made, python, read, read_json, relative_norm_error};
use serde_json::{json, Value};
use std::path::Path;

const STEPS: usize = 10;

/// Trains from one start here and in PEFT; with `targets` in place of the defaults without validation.
fn check_losses(job: &Job, targets: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let start = folder.path().join("start");
    // B is not zero, so that A learns from the first step on.
    let validates = targets.is_none();
    let targets: Vec<&str> = targets.into_iter().flat_map(|targets| ["--lora-targets", targets]).collect();
    lorabooth_ok(&job.train(&start, &[&["--max-train-steps", "3", "--seed", "5"], targets.as_slice()].concat()));
    let theirs = folder.path().join("theirs");
    let options = json!({ "job": job.folder, "class": job.class, "task": job.task, "adapter": start, "steps": STEPS,
        "learning_rate": LEARNING_RATE.parse::<f64>().unwrap(), "batch": 4, "label": job.label });
    python("language_loop.py", &[theirs.to_str().unwrap(), &options.to_string()]);
    let expected = read_json(theirs.join("losses.json"));

    let ours = folder.path().join("ours");
    let validation = job.folder.join("validation.jsonl");
    let start_flag = start.to_str().unwrap();
    let mut more = vec!["--init-adapter", start_flag];
    if validates {
        more.extend(["--validation-file", validation.to_str().unwrap()]);
        more.extend(["--eval-steps", "10", "--eval-max-new-tokens", "6"]);
    }
    lorabooth_ok(&job.train(&ours, &more));

    let steps = lines(&ours.join("metrics.jsonl"));
    assert_eq!(steps.len(), STEPS);
    let mut worst = 0f64;
    for (i, step) in steps.iter().enumerate() {
        let (actual, wanted) = (step["loss"].as_f64().unwrap(), expected["losses"][i].as_f64().unwrap());
        close(actual, wanted, 2e-4, &format!("{} step {i}", job.name));
        worst = worst.max((actual - wanted).abs() / wanted);
    }
    println!("{}: losses within {worst:.1e}", job.name);
    if validates {
        let evaluations = lines(&ours.join("evaluations.jsonl"));
        let last = evaluations.last().unwrap();
        close(last["loss"].as_f64().unwrap(), expected["validation_loss"].as_f64().unwrap(), 2e-4, "validation");
        // The last evaluation is the best here, so that both sides' adapters are of the same step.
        assert_eq!(
            evaluations.iter().map(|line| line["loss"].as_f64().unwrap()).fold(f64::MAX, f64::min),
            last["loss"]
        );
    }
    let (actual, mut wanted) =
        (read(ours.join("adapter_model.safetensors")), read(theirs.join("adapter/adapter_model.safetensors")));
    // PEFT keeps a copy of some models' tables beside.
    wanted.retain(|name, _| !name.ends_with("base_layer.weight") && !name.ends_with("shared.weight"));
    assert_eq!(actual.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{}", job.name);
    for (name, tensor) in &wanted {
        let error = relative_norm_error(&actual[name], tensor);
        assert!(error < 1e-3, "{} {name}: {error:.1e}", job.name);
    }
    if job.label && validates {
        let mut table = csv::Reader::from_path(ours.join("predictions.csv")).unwrap();
        let answers: Vec<String> = table.records().map(|row| row.unwrap()[2].to_owned()).collect();
        let wanted: Vec<&str> = expected["answers"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        assert_eq!(answers, wanted, "{}", job.name);
    }
}

#[test]
fn losses_adapters_and_answers_are_those_of_pefts_loop() {
    for job in [gpt2(true), gpt2(false), llama(), opt(), bloom(), t5(), bert(), gpt2_classifier()] {
        check_losses(&job, None);
    }
}

/// They learn these few words by heart, so that the last adapter is not the best.
#[test]
fn losses_and_adapters_on_embeddings_are_those_of_pefts_loop() {
    for (job, targets) in [
        (llama_classifier(), "embed_tokens,q_proj"),
        (gpt2(true), "wte,c_attn"),
        (opt(), "embed_tokens"),
        (bloom(), "word_embeddings"),
        (t5(), "embed_tokens,q"),
        (bert(), "word_embeddings,query"),
    ] {
        check_losses(&job, Some(targets));
    }
}

/// An epoch of 24 records is six batches, and so one group where more are asked for: averaged over what is there it is that of a
/// run that asks for six, and divided by all that are asked for its gradients are smaller in that measure. The loss is the same.
#[test]
fn a_short_group_is_averaged_over_what_is_there_where_that_is_asked_for() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let train = |name: &str, steps: &str, average: &str| {
        let out = folder.path().join(name);
        let more = ["--gradient-accumulation-steps", steps, "--gradient-accumulation-average", average];
        let more = [&more[..], &["--max-train-steps", "3", "--max-grad-norm", "1e9"]].concat();
        lorabooth_ok(&job.train(&out, &more));
        assert_eq!(read_json(out.join("run.json"))["options"]["gradient_accumulation_average"], average);
        (lines(&out.join("metrics.jsonl")), std::fs::read(out.join("adapter_model.safetensors")).unwrap())
    };
    let [(six, wanted), (present, averaged), (full, divided)] =
        [("six", "6", "full"), ("present", "100", "present"), ("full", "100", "full")]
            .map(|(name, steps, average)| train(name, steps, average));
    assert!(averaged == wanted && divided != wanted);
    for name in ["loss", "grad_norm"] {
        assert!(six.iter().zip(&present).all(|(six, present)| six[name] == present[name]), "{name}");
    }
    assert_eq!(full[0]["loss"], six[0]["loss"]);
    let norm = |steps: &[Value]| steps[0]["grad_norm"].as_f64().unwrap();
    close(norm(&full), norm(&six) * 6.0 / 100.0, 1e-4, "the norm of a full division");
}

#[test]
fn an_output_folder_is_named_after_records_and_model_and_run_json_starts_the_run_again() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let mut args = job.train(Path::new("x"), &["--max-train-steps", "2", "--lora-r", "4", "--seed", "3"]);
    let output = args.iter().position(|arg| arg == "--output-dir").unwrap();
    args.drain(output..output + 2);
    let run = |args: &[String]| {
        let output = support::lorabooth_command(args).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&args);
    let named: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let name = named[0].file_name().unwrap().to_str().unwrap();
    let date = name.strip_prefix("train-model-").unwrap_or_else(|| panic!("{name}"));
    assert!(named.len() == 1 && date.len() == 10 && date.starts_with("20"), "{named:?}");

    let record = read_json(named[0].join("run.json"));
    let data = &record["data"][0];
    assert_eq!((&data["kind"], &data["records"]), (&json!("train"), &json!(24)));
    let bytes = std::fs::read(job.folder.join("train.jsonl")).unwrap();
    let hash: String = sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(&bytes))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!((&data["bytes"], &data["sha256"]), (&json!(bytes.len()), &json!(hash)));
    let again = ["train", "llm", "--config", named[0].join("run.json").to_str().unwrap(), "--output-dir", "again"]
        .map(str::to_owned)
        .to_vec();
    run(&[again, ["--device", "cpu", "--threads", "1"].map(str::to_owned).to_vec()].concat());
    let [first, second] = [named[0].clone(), folder.path().join("again")]
        .map(|folder| std::fs::read(folder.join("adapter_model.safetensors")).unwrap());
    assert!(first == second);
    let plan = ["plan", "--json", "--config", named[0].join("run.json").to_str().unwrap()].map(str::to_owned);
    let plan: Value = serde_json::from_str(&lorabooth_ok(&plan)).unwrap();
    assert_eq!(plan["steps"], 2);
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let (job, folder) = (bert(), tempfile::tempdir().unwrap());
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let dropout = ["--lora-dropout", "0.1"];
    lorabooth_ok(&job.train(&whole, &dropout));
    lorabooth_ok(&job.train(&parts, &[dropout.as_slice(), &["--max-train-steps", "4"]].concat()));
    for (change, words) in [
        (&["--max-seq-length", "4"][..], "--max-seq-length was 512 and is 4 now"),
        (&["--prompt-template", "{text} is"], "--prompt-template was not given and is {text} is now"),
        (&["--lora-r", "4", "--use-dora"], "--lora-r was 8 and is 4 now, --use-dora was not given and is given now"),
        (&["--train-file", job.folder.join("validation.jsonl").to_str().unwrap()], "learned from other records"),
    ] {
        let output = lorabooth(&job.train(&parts, &[dropout.as_slice(), &["--resume"], change].concat()));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(words), "{said}");
    }
    lorabooth_ok(&job.train(&parts, &[dropout.as_slice(), &["--resume"]].concat()));
    let file = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(file(&whole) == file(&parts));
}

#[test]
fn eight_bit_weights_learn_nearly_the_same() {
    let (job, folder) = (llama(), tempfile::tempdir().unwrap());
    let [dense, int8] = ["dense", "int8"].map(|name| folder.path().join(name));
    lorabooth_ok(&job.train(&dense, &[]));
    lorabooth_ok(&job.train(&int8, &["--load-in-8bit"]));
    let losses = |folder: &Path| -> Vec<f64> {
        lines(&folder.join("metrics.jsonl")).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let (dense, int8) = (losses(&dense), losses(&int8));
    assert_ne!(dense, int8, "the codes change the numbers a little");
    for (dense, int8) in dense.iter().zip(&int8) {
        close(*int8, *dense, 0.03, "int8");
    }
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let out = folder.path().join("out");
    let refused = |job: &Job, more: &[&str], words: &[&str]| {
        let output = lorabooth(&job.train(&out, more));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{more:?}: {said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{more:?}: {said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{more:?}: {said} lacks {word}"));
        assert!(!out.exists(), "{more:?} left something");
    };
    refused(&job, &["--task", "seq2seq-lm"], &["--task seq2seq-lm", "gpt2", "causal-lm and seq-cls"]);
    refused(&job, &["--text-column", "prompt"], &["prompt", "text", "label"]);
    refused(&job, &["--lora-targets", "q_proj"], &["q_proj", "c_attn"]);
    refused(&job, &["--max-seq-length", "1"], &["--max-seq-length", "1"]);
    refused(&job, &["--model", folder.path().to_str().unwrap()], &["config.json"]);
    let long = folder.path().join("long.jsonl");
    std::fs::write(&long, format!("{{\"text\": \"{}\", \"label\": \"long\"}}\n", "red ".repeat(60))).unwrap();
    refused(&job, &["--train-file", long.to_str().unwrap()], &["positions end at 32", "--max-seq-length 32"]);
    let broken = folder.path().join("broken.jsonl");
    std::fs::write(&broken, "{\"text\": \"red\", \"label\": \"x\"}\n{\"text\": \n").unwrap();
    refused(&job, &["--train-file", broken.to_str().unwrap()], &["broken.jsonl", "line 2"]);
}

/// A step too large makes the loss and the answers of the evaluations disagree.
#[test]
fn the_adapter_that_is_kept_is_the_best_by_the_measure_asked_for() {
    let (job, folder) = (bert(), tempfile::tempdir().unwrap());
    let validation = job.folder.join("validation.jsonl");
    let evaluated = ["--validation-file", validation.to_str().unwrap(), "--eval-steps", "1", "--learning-rate", "0.05"];
    for (name, flags) in [("loss", &[][..]), ("accuracy", &["--best-by", "accuracy"])] {
        let [out, again] = [name.to_owned(), format!("{name} again")].map(|name| folder.path().join(name));
        lorabooth_ok(&job.train(&out, &[&evaluated[..], flags].concat()));
        let number = |line: &Value, name: &str| line[name].as_f64().unwrap();
        let rank = |line: &Value| match name {
            "loss" => (number(line, "loss"), 0.0),
            _ => (-number(line, "accuracy"), number(line, "loss")),
        };
        let mut evaluations = lines(&out.join("evaluations.jsonl"));
        evaluations.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap());
        let from = ["--init-adapter", out.to_str().unwrap(), "--max-train-steps", "0"];
        lorabooth_ok(&job.train(&again, &[&evaluated[..], &from].concat()));
        let kept = lines(&again.join("evaluations.jsonl")).remove(0);
        assert_eq!(
            (&kept["loss"], &kept["accuracy"]),
            (&evaluations[0]["loss"], &evaluations[0]["accuracy"]),
            "{name}"
        );
        println!("by {name}: {kept}, of {evaluations:?}");
    }
}

/// What a stopped run found behind its last checkpoint is in the folder of the best adapter, and is no adapter of a step before.
#[test]
fn a_run_that_goes_on_keeps_no_adapter_of_a_step_that_it_has_not_reached() {
    let (job, folder) = (bert(), tempfile::tempdir().unwrap());
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let validation = job.folder.join("validation.jsonl");
    let evaluated = ["--validation-file", validation.to_str().unwrap(), "--checkpointing-steps", "4", "--eval-steps"];
    lorabooth_ok(&job.train(&whole, &[&evaluated[..], &["10"]].concat()));
    lorabooth_ok(&job.train(&parts, &[&evaluated[..], &["3", "--max-train-steps", "6"]].concat()));
    assert_eq!(lines(&parts.join("best/evaluation.json"))[0]["step"], 6);
    // Nothing later is as good as the evaluation of step 3, whose adapter is gone.
    let changed: String = lines(&parts.join("evaluations.jsonl")).into_iter().fold(String::new(), |text, mut line| {
        if line["step"] == 3 {
            line["loss"] = json!(0.0);
        }
        text + &line.to_string() + "\n"
    });
    std::fs::write(parts.join("evaluations.jsonl"), changed).unwrap();
    lorabooth_ok(&job.train(&parts, &[&evaluated[..], &["10", "--resume", "checkpoint-4", "--overwrite"]].concat()));
    let file = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(file(&whole) == file(&parts));
    assert_eq!(
        lines(&parts.join("evaluations.jsonl")).iter().map(|line| &line["step"]).collect::<Vec<_>>(),
        [0, 3, 10]
    );
}

#[test]
fn greedy_and_beam_texts_are_those_of_transformers() {
    let prompts = ["red house", "river stone cloud bread", "music"];
    for job in [gpt2(true), llama(), opt(), bloom(), t5()] {
        let options = json!({ "job": job.folder, "class": job.class, "prompts": prompts, "beams": [1, 3, 4], "max_new_tokens": 20 });
        let expected = read_json(made("language_generate.py", "texts.json", &options));
        let model = job.folder.join("model").display().to_string();
        for (beams, texts) in expected.as_object().unwrap() {
            for (prompt, text) in prompts.iter().zip(texts.as_array().unwrap()) {
                let args = complete(&model, prompt, &["--max-new-tokens", "20", "--num-beams", beams]);
                let said = lorabooth_ok(&args);
                let ours: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
                assert_eq!(&ours["text"], text, "{} after {prompt:?} with {beams} beams", job.name);
            }
        }
    }
}

#[test]
fn complete_warns_of_a_text_beyond_what_the_model_was_made_for() {
    let model = llama().folder.join("model").display().to_string();
    let said = |prompt: &str, most: &str| {
        let output = lorabooth(&complete(&model, prompt, &["--max-new-tokens", most]));
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stdout).lines().find(|line| line.contains("was made for")).map(str::to_owned)
    };
    assert_eq!(said("red house", "5"), None);
    let beyond = said(&"red house ".repeat(40), "1").unwrap();
    assert!(
        beyond.contains("\"warning\"") && beyond.contains("was made for 32") && beyond.contains("shorten it"),
        "{beyond}"
    );
    let written = said("red house", "60").unwrap();
    assert!(written.contains("--max-new-tokens 60"), "{written}");
}

#[test]
fn complete_goes_on_with_a_text_and_answers_one() {
    for job in [llama(), t5()] {
        let model = job.folder.join("model").display().to_string();
        let complete = |more: &[&str]| {
            let said = lorabooth_ok(&complete(&model, "red house", more));
            serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()
        };
        let greedy = complete(&["--max-new-tokens", "5"]);
        assert!(greedy["tokens"].as_u64().unwrap() <= 5 && greedy["tokens_per_s"].as_f64().unwrap() > 0.0);
        assert_eq!(
            greedy["text"],
            complete(&["--max-new-tokens", "5", "--top-k", "1", "--temperature", "0.7"])["text"]
        );
        let drawn = |seed: &str| complete(&["--temperature", "2", "--top-p", "0.9", "--seed", seed])["text"].clone();
        assert_eq!(drawn("1"), drawn("1"));
        assert_ne!(drawn("1"), drawn("2"));
    }
}
