//! Prompt tuning, prefix tuning and P-tuning learn, write and answer what PEFT's do, and read each other's files.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{bert, bloom, close, gpt2, job, lines, llama, opt, t5, Job};
use crate::support::{lorabooth, lorabooth_ok, python, read, read_json, relative_error, relative_norm_error};
use lorabooth::adapters::{peft_folder, prompt_folder, Prompt, PromptMethod};
use lorabooth::models::language::{
    ClassifierInputs, DecoderInputs, Encoded, HeadOptions, LanguageModel, LanguageModelFiles, Tokens,
};
use lorabooth::models::Loaded;
use lorabooth::recipes::language::adapter::fitted;
use lorabooth::recipes::language::prompted_text::PromptedText;
use lorabooth::weights::Placement;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const STEPS: usize = 10;
const LEARNING_RATE: &str = "0.02";
const TOKENS: &str = "5";

/// A method, by the fields that PEFT's configuration has and by the flags that say the same.
struct Method {
    name: &'static str,
    fields: Value,
    flags: &'static [&'static str],
}

fn method(name: &'static str, fields: Value, flags: &'static [&'static str]) -> Method {
    Method { name, fields, flags }
}

fn prompt_tuning() -> Method {
    method("prompt-tuning", json!({ "peft_type": "PROMPT_TUNING" }), &[])
}

fn prefix_tuning() -> Method {
    method("prefix-tuning", json!({ "peft_type": "PREFIX_TUNING" }), &[])
}

fn projected_prefix() -> Method {
    let fields = json!({ "peft_type": "PREFIX_TUNING", "prefix_projection": true, "encoder_hidden_size": 10 });
    method("prefix-tuning", fields, &["--prefix-projection", "--encoder-hidden-size", "10"])
}

fn p_tuning() -> Method {
    let fields = json!({ "peft_type": "P_TUNING", "encoder_hidden_size": 10 });
    method("p-tuning", fields, &["--encoder-hidden-size", "10"])
}

fn p_tuning_lstm() -> Method {
    let fields = json!({ "peft_type": "P_TUNING", "encoder_hidden_size": 7, "encoder_num_layers": 3,
        "encoder_reparameterization_type": "LSTM" });
    let flags =
        &["--encoder-hidden-size", "7", "--encoder-num-layers", "3", "--encoder-reparameterization-type", "lstm"];
    method("p-tuning", fields, flags)
}

/// Three blocks: PEFT gives those of an encoder-decoder keys and values in an order of its own.
fn t5_of_three_blocks() -> Job {
    let config = json!({ "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 3,
        "dropout_rate": 0.0, "decoder_start_token_id": 0 });
    job("t5", "T5ForConditionalGeneration", "seq2seq-lm", true, config)
}

/// Its padding has positions of its own.
fn roberta() -> Job {
    let config = json!({ "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
        "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3 });
    job("roberta", "RobertaForSequenceClassification", "seq-cls", true, config)
}

/// Each token sees 6 keys.
fn mistral() -> Job {
    let config = json!({ "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 32, "sliding_window": 6 });
    job("mistral", "MistralForCausalLM", "causal-lm", true, config)
}

fn jobs() -> Vec<Job> {
    let bloom = Job { label: true, ..bloom() };
    vec![gpt2(true), gpt2(false), llama(), mistral(), opt(), bloom, t5_of_three_blocks(), bert(), roberta()]
}

/// PEFT's loop with a prompt of its own making.
fn theirs(job: &Job, method: &Method, folder: &Path, more: Value) -> (PathBuf, Value) {
    let out = folder.join("theirs");
    let task_type = match job.task {
        "causal-lm" => "CAUSAL_LM",
        "seq2seq-lm" => "SEQ_2_SEQ_LM",
        _ => "SEQ_CLS",
    };
    let mut prompt = json!({ "task_type": task_type, "num_virtual_tokens": TOKENS.parse::<i64>().unwrap() });
    extend(&mut prompt, &method.fields);
    let mut options = json!({ "job": job.folder, "class": job.class, "task": job.task, "prompt": prompt, "steps": STEPS,
        "learning_rate": LEARNING_RATE.parse::<f64>().unwrap(), "batch": 4, "label": job.label });
    extend(&mut options, &more);
    python("language_loop.py", &[out.to_str().unwrap(), &options.to_string()]);
    let losses = read_json(out.join("losses.json"));
    (out, losses)
}

fn extend(value: &mut Value, more: &Value) {
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
}

/// The command line of a run with `method`; what comes behind it wins.
fn train(job: &Job, method: &Method, out: &Path, more: &[&str]) -> Vec<String> {
    job.train(out, &[&["--peft-method", method.name, "--learning-rate", LEARNING_RATE][..], more].concat())
}

/// The flags that make the prompt anew.
fn anew<'a>(method: &'a Method, more: &[&'a str]) -> Vec<&'a str> {
    [&["--num-virtual-tokens", TOKENS][..], method.flags, more].concat()
}

fn losses(folder: &Path) -> Vec<f64> {
    lines(&folder.join("metrics.jsonl")).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

fn strings(values: &Value) -> Vec<&str> {
    values.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

fn assert_as_learnt(job: &Job, method: &Method, ours: &Path, theirs: &Path, expected: &Value) {
    let what = format!("{} {} {}", job.name, method.name, method.flags.join(" "));
    let mut worst = 0f64;
    let steps = losses(ours);
    assert_eq!(steps.len(), STEPS);
    for (i, (actual, wanted)) in steps.iter().zip(expected["losses"].as_array().unwrap()).enumerate() {
        let wanted = wanted.as_f64().unwrap();
        close(*actual, wanted, 2e-4, &format!("{what} step {i}"));
        worst = worst.max((actual - wanted).abs() / wanted);
    }
    let evaluations = lines(&ours.join("evaluations.jsonl"));
    let last = evaluations.last().unwrap()["loss"].as_f64().unwrap();
    close(last, expected["validation_loss"].as_f64().unwrap(), 2e-4, &format!("{what} validation"));
    // The last evaluation is the best, so that both sides' prompts are of the same step.
    assert!(evaluations.iter().all(|line| line["loss"].as_f64().unwrap() >= last), "{what}: {evaluations:?}");

    let [actual, wanted, start] = [ours, &theirs.join("adapter"), &theirs.join("start")]
        .map(|folder| read(folder.join("adapter_model.safetensors")));
    let moved = relative_norm_error(&wanted["prompt_embeddings"], &start["prompt_embeddings"]);
    assert!(moved > 0.01, "{what}: nothing was learnt that could differ ({moved:.1e})");
    assert_eq!(actual.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}");
    let errors = wanted.iter().map(|(name, tensor)| (name, relative_norm_error(&actual[name], tensor)));
    let (name, error) = errors.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    println!("{what}: losses within {worst:.1e}, {name} within {error:.1e} after a change of {moved:.1e}");
    assert!(error < 1e-3, "{what} {name}: {error:.1e}");
    if job.label {
        let mut table = csv::Reader::from_path(ours.join("predictions.csv")).unwrap();
        let answers: Vec<String> = table.records().map(|row| row.unwrap()[2].to_owned()).collect();
        assert_eq!(answers, strings(&expected["answers"]), "{what}");
    }
}

/// Ours from their start, and the comparison; the folders of both.
fn learn_the_same(job: &Job, method: &Method) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (theirs, expected) = theirs(job, method, folder.path(), json!({}));
    let ours = folder.path().join("ours");
    let (start, validation) = (theirs.join("start"), job.folder.join("validation.jsonl"));
    let evaluating = ["--eval-steps", "10", "--eval-max-new-tokens", "6", "--validation-file"];
    let from = [validation.to_str().unwrap(), "--init-adapter", start.to_str().unwrap()];
    lorabooth_ok(&train(job, method, &ours, &[&evaluating[..], &from].concat()));
    assert_as_learnt(job, method, &ours, &theirs, &expected);
    (folder, ours, theirs)
}

#[test]
fn prompt_tuning_learns_what_pefts_does() {
    jobs().iter().for_each(|job| drop(learn_the_same(job, &prompt_tuning())));
}

#[test]
fn prefix_tuning_learns_what_pefts_does() {
    jobs().iter().for_each(|job| drop(learn_the_same(job, &prefix_tuning())));
}

#[test]
fn a_projected_prefix_learns_what_pefts_does() {
    jobs().iter().for_each(|job| drop(learn_the_same(job, &projected_prefix())));
}

#[test]
fn p_tuning_learns_what_pefts_does() {
    jobs().iter().for_each(|job| drop(learn_the_same(job, &p_tuning())));
}

#[test]
fn p_tuning_with_an_lstm_learns_what_pefts_does() {
    jobs().iter().for_each(|job| drop(learn_the_same(job, &p_tuning_lstm())));
}

#[test]
fn a_prompt_that_starts_as_a_text_is_pefts() {
    // Shorter than the prompt and longer.
    for (job, text) in
        [(gpt2(true), "red house"), (llama(), "red house"), (t5_of_three_blocks(), "red house stone bread old")]
    {
        let folder = tempfile::tempdir().unwrap();
        let method = method(
            "prompt-tuning",
            json!({ "peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text,
                "tokenizer_name_or_path": job.folder.join("model") }),
            &["--prompt-tuning-init", "text"],
        );
        let (theirs, expected) = theirs(&job, &method, folder.path(), json!({}));
        let [start, ours] = ["start", "ours"].map(|name| folder.path().join(name));
        let flags = anew(&method, &["--prompt-tuning-init-text", text]);
        lorabooth_ok(&train(&job, &method, &start, &[&flags[..], &["--max-train-steps", "0"]].concat()));
        let [actual, wanted] =
            [&start, &theirs.join("start")].map(|folder| read(folder.join("adapter_model.safetensors")));
        assert_eq!(actual, wanted, "{}", job.name);
        let configs = [&start, &theirs.join("start")]
            .map(|folder| std::fs::read_to_string(folder.join("adapter_config.json")).unwrap());
        assert_eq!(configs[0], configs[1]);

        let validation = job.folder.join("validation.jsonl");
        let evaluating = ["--eval-steps", "10", "--eval-max-new-tokens", "6", "--validation-file"];
        lorabooth_ok(&train(
            &job,
            &method,
            &ours,
            &[&flags[..], &evaluating, &[validation.to_str().unwrap()]].concat(),
        ));
        assert_as_learnt(&job, &method, &ours, &theirs, &expected);
    }
}

#[test]
fn configurations_are_pefts_to_the_byte() {
    for method in [prompt_tuning(), prefix_tuning(), projected_prefix(), p_tuning(), p_tuning_lstm()] {
        for job in [llama(), t5_of_three_blocks(), bert()] {
            let folder = tempfile::tempdir().unwrap();
            let (theirs, _) = theirs(&job, &method, folder.path(), json!({ "steps": 0 }));
            let ours = folder.path().join("ours");
            lorabooth_ok(&train(&job, &method, &ours, &anew(&method, &["--max-train-steps", "0"])));
            let [actual, wanted] = [&ours, &theirs.join("start")]
                .map(|folder| std::fs::read_to_string(folder.join("adapter_config.json")).unwrap());
            // PEFT writes a head's names once for the model and once more for its adapter.
            let wanted = wanted.replacen("    \"classifier\",\n    \"score\",\n", "", 1);
            assert_eq!(actual, wanted, "{}", job.name);
            let [actual, wanted] =
                [&ours, &theirs.join("start")].map(|folder| read(folder.join("adapter_model.safetensors")));
            let shapes = |tensors: &std::collections::BTreeMap<String, Tensor>| -> Vec<(String, Vec<i64>, Kind)> {
                tensors.iter().map(|(name, tensor)| (name.clone(), tensor.size(), tensor.kind())).collect()
            };
            assert_eq!(shapes(&actual), shapes(&wanted), "{}", job.name);
        }
    }
}

/// Our model with the prompt in `adapter`, its head included.
fn with_prompt(job: &Job, adapter: &Path) -> (Loaded<LanguageModel>, Prompt) {
    let files = LanguageModelFiles::open(&job.folder.join("model")).unwrap();
    let placement = Placement { device: Device::Cpu, kind: Kind::Float };
    let loaded = files.load(placement, HeadOptions::default()).unwrap();
    let read = prompt_folder::read(adapter).unwrap();
    let config = fitted(read.config, &loaded.model, Device::Cpu).unwrap();
    let prompt = Prompt::finished(&loaded.sites, Device::Cpu, config, &read.embeddings, &read.whole).unwrap();
    (loaded, prompt)
}

fn logits(model: &LanguageModel, prompt: &Prompt, inputs: &std::collections::BTreeMap<String, Tensor>) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let [ids, mask, labels] = ["input_ids", "attention_mask", "labels"].map(|name| inputs[name].shallow_clone());
    let mut text = PromptedText::new(model, Some(prompt), ids, Some(mask)).unwrap();
    let mut cache = text.cache.take();
    let (tokens, attention_mask, cache) = (text.tokens(), text.attention_mask.as_ref(), cache.as_mut());
    match model {
        LanguageModel::Causal(model) => {
            model.logits(&model.forward(DecoderInputs { attention_mask, cache, ..DecoderInputs::new(tokens) }))
        }
        LanguageModel::EncoderDecoder(model) => {
            let hidden = model.encode(tokens, attention_mask, false);
            let shifted = labels.constant_pad_nd([1, -1]).clamp_min(0);
            let inputs = DecoderInputs { cache, ..DecoderInputs::new(Tokens::Ids(&shifted)) };
            model.logits(&model.decode(inputs, Encoded { hidden: &hidden, attention_mask }))
        }
        LanguageModel::Classifier(model) => {
            model.classify(ClassifierInputs { attention_mask, cache, ..ClassifierInputs::new(tokens) })
        }
    }
}

#[test]
fn prompts_of_either_side_mean_the_same_to_the_other() {
    for method in [prompt_tuning(), projected_prefix(), p_tuning_lstm()] {
        for job in [gpt2(true), llama(), opt(), Job { label: true, ..bloom() }, t5_of_three_blocks(), bert(), roberta()]
        {
            let folder = tempfile::tempdir().unwrap();
            let (theirs, _) = theirs(&job, &method, folder.path(), json!({ "steps": 2 }));
            let ours = folder.path().join("ours");
            lorabooth_ok(&train(&job, &method, &ours, &anew(&method, &["--max-train-steps", "2"])));
            for adapter in [ours, theirs.join("adapter")] {
                let out = folder.path().join("logits.safetensors");
                let options = json!({ "job": job.folder, "class": job.class, "task": job.task, "label": job.label,
                    "adapter": adapter });
                python("language_logits.py", &[out.to_str().unwrap(), &options.to_string()]);
                let expected = read(&out);
                let (loaded, prompt) = with_prompt(&job, &adapter);
                let actual = logits(&loaded.model, &prompt, &expected);
                // What a decoder makes of padding is nothing.
                let seen = |logits: &Tensor| match job.task {
                    "causal-lm" => {
                        let text = logits.size()[1] - expected["input_ids"].size()[1];
                        let mask = expected["attention_mask"].constant_pad_nd([text, 0]).ne(0);
                        logits.index(&[Some(mask)])
                    }
                    _ => logits.shallow_clone(),
                };
                let error = relative_error(&seen(&actual), &seen(&expected["logits"]));
                println!("{} {}: {error:.1e}", job.name, method.name);
                assert!(error < 1e-5, "{} {}: {error:.1e}", job.name, method.name);
            }
        }
    }
}

fn complete(job: &Job, more: &[&str]) -> Value {
    let model = job.folder.join("model").display().to_string();
    let usual =
        ["complete", "--device", "cpu", "--dtype", "fp32", "--json", "--model", &model, "--max-new-tokens", "6"];
    let said = lorabooth_ok(&[&usual[..], more].concat());
    serde_json::from_str(said.lines().last().unwrap()).unwrap()
}

#[test]
fn complete_writes_behind_a_prompt_of_peft_what_peft_writes() {
    for method in [prompt_tuning(), prefix_tuning(), projected_prefix(), p_tuning()] {
        for job in [gpt2(true), llama(), opt(), Job { label: true, ..bloom() }, t5_of_three_blocks()] {
            let folder = tempfile::tempdir().unwrap();
            let (theirs, expected) = theirs(&job, &method, folder.path(), json!({ "steps": 3, "beams": 3 }));
            let adapter = theirs.join("adapter").display().to_string();
            let validation = std::fs::read_to_string(job.folder.join("validation.jsonl")).unwrap();
            for (beams, answers) in [("1", "answers"), ("3", "beam_answers")] {
                for (line, wanted) in validation.lines().zip(strings(&expected[answers])).take(2) {
                    let row: Value = serde_json::from_str(line).unwrap();
                    let prompt = row["text"].as_str().unwrap();
                    let said = complete(&job, &["--adapter", &adapter, "--prompt", prompt, "--num-beams", beams]);
                    assert_eq!(said["text"], wanted, "{} {} with {beams} beams", job.name, method.name);
                }
            }
        }
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let dropout = [p_tuning_lstm().flags, &["--encoder-dropout", "0.3"]].concat();
    for (job, method, flags) in
        [(gpt2(true), p_tuning_lstm(), dropout), (bert(), projected_prefix(), projected_prefix().flags.to_vec())]
    {
        let folder = tempfile::tempdir().unwrap();
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
        let flags = [&["--num-virtual-tokens", TOKENS][..], &flags].concat();
        lorabooth_ok(&train(&job, &method, &whole, &flags));
        lorabooth_ok(&train(&job, &method, &parts, &[&flags[..], &["--max-train-steps", "4"]].concat()));
        lorabooth_ok(&train(&job, &method, &parts, &[&flags[..], &["--resume"]].concat()));
        for name in ["adapter_model.safetensors", "prompt_encoder.safetensors"] {
            let [whole, parts] = [&whole, &parts].map(|folder| std::fs::read(folder.join(name)).unwrap());
            assert!(whole == parts, "{} {name}", job.name);
        }
    }
}

#[test]
fn a_prompt_learns_the_same_where_activations_are_computed_again() {
    for method in [prompt_tuning(), prefix_tuning(), projected_prefix(), p_tuning_lstm()] {
        for job in [gpt2(true), llama(), t5_of_three_blocks(), bert()] {
            let folder = tempfile::tempdir().unwrap();
            let [kept, again] = ["kept", "again"].map(|name| folder.path().join(name));
            lorabooth_ok(&train(&job, &method, &kept, &anew(&method, &[])));
            lorabooth_ok(&train(&job, &method, &again, &anew(&method, &["--gradient-checkpointing"])));
            for (again, kept) in losses(&again).iter().zip(losses(&kept)) {
                close(*again, kept, 1e-6, &format!("{} {}", job.name, method.name));
            }
        }
    }
}

#[test]
fn prompts_learn_nearly_the_same_on_eight_bit_weights() {
    for method in [prompt_tuning(), prefix_tuning()] {
        for job in [llama(), t5_of_three_blocks()] {
            let folder = tempfile::tempdir().unwrap();
            let [dense, int8] = ["dense", "int8"].map(|name| folder.path().join(name));
            lorabooth_ok(&train(&job, &method, &dense, &anew(&method, &[])));
            lorabooth_ok(&train(&job, &method, &int8, &anew(&method, &["--load-in-8bit"])));
            let (dense, int8) = (losses(&dense), losses(&int8));
            assert_ne!(dense, int8, "the codes change the numbers a little");
            for (dense, int8) in dense.iter().zip(&int8) {
                close(*int8, *dense, 0.05, "int8");
            }
        }
    }
}

#[test]
fn an_inspection_tells_what_a_prompt_is() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let job = bert();
    lorabooth_ok(&train(&job, &p_tuning(), &out, &anew(&p_tuning(), &["--max-train-steps", "1"])));
    let out = out.to_str().unwrap();
    let told: Value = serde_json::from_str(&lorabooth_ok(&["adapter", "inspect", out, "--json"])).unwrap();
    let parameters = 5 * 24 + 24 * 3 + 3;
    for (field, expected) in [
        ("peft_type", json!("P_TUNING")),
        ("task_type", json!("SEQ_CLS")),
        ("num_virtual_tokens", json!(5)),
        ("shape", json!([5, 24])),
        ("whole_tensors", json!(2)),
        ("has_encoder", json!(true)),
        ("parameters", json!(parameters)),
    ] {
        assert_eq!(told[field], expected, "{field}");
    }
    let prose = lorabooth_ok(&["adapter", "inspect", out]);
    assert!(prose.contains("P-tuning, 5 virtual tokens"), "{prose}");
}

/// The one line that a command ends with, and its exit code.
fn refused<S: AsRef<std::ffi::OsStr>>(args: &[S], code: i32, words: &[&str]) {
    let output = lorabooth(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{said} lacks {word}"));
}

#[test]
fn flags_of_another_method_are_refused_as_a_wrong_command_line() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let out = folder.path().join("out");
    let with = |method: &str, more: &[&str]| job.train(&out, &[&["--peft-method", method][..], more].concat());
    refused(&with("lora", &["--num-virtual-tokens", "3"]), 2, &["--num-virtual-tokens", "prompt-tuning and", "lora"]);
    refused(&with("prefix-tuning", &["--lora-r", "8"]), 2, &["--lora-r", "--peft-method lora"]);
    refused(&with("p-tuning", &["--prefix-projection"]), 2, &["--prefix-projection", "prefix-tuning"]);
    refused(&with("prompt-tuning", &["--encoder_dropout", "0.1"]), 2, &["--encoder-dropout", "p-tuning"]);
    let file = folder.path().join("flags.toml");
    std::fs::write(&file, "use_dora = true\n").unwrap();
    refused(&with("p-tuning", &["--config", file.to_str().unwrap()]), 2, &["--use-dora"]);
    refused(&with("p-tuning", &["--encoder-num-layers", "3"]), 1, &["--encoder-num-layers", "lstm"]);
    refused(
        &with("prefix-tuning", &["--encoder-hidden-size", "3"]),
        1,
        &["--encoder-hidden-size", "--prefix-projection"],
    );
    refused(&with("prompt-tuning", &["--prompt-tuning-init", "text"]), 1, &["--prompt-tuning-init-text"]);
    refused(&with("prompt-tuning", &["--prompt-tuning-init-text", "red"]), 1, &["--prompt-tuning-init text"]);
    refused(&with("prompt-tuning", &["--num-virtual-tokens", "0"]), 1, &["--num-virtual-tokens"]);
    assert!(!out.exists());
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let narrow = json!({ "hidden_size": 24, "num_hidden_layers": 2, "ffn_dim": 40, "max_position_embeddings": 32,
        "num_attention_heads": 3, "word_embed_proj_dim": 12 });
    let narrow = job("opt", "OPTForCausalLM", "causal-lm", true, narrow);
    refused(&train(&narrow, &prompt_tuning(), &out, &[]), 1, &["prompt tuning", "embeddings are 12 wide", "24"]);
    refused(&train(&t5(), &prefix_tuning(), &out, &[]), 1, &["prefix tuning", "18 wide", "24"]);
    let uneven = json!({ "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3,
        "dropout_rate": 0.0, "decoder_start_token_id": 0 });
    let uneven = job("t5", "T5ForConditionalGeneration", "seq2seq-lm", true, uneven);
    refused(&train(&uneven, &prefix_tuning(), &out, &[]), 1, &["prefix tuning", "2 blocks", "decoder 3"]);
    let long = ["--num-virtual-tokens", "25"];
    refused(&train(&gpt2(true), &prompt_tuning(), &out, &long), 1, &["25 virtual ones", "32", "--max-seq-length 7"]);
    let longer = ["--num-virtual-tokens", "40"];
    refused(&train(&gpt2(true), &prefix_tuning(), &out, &longer), 1, &["--num-virtual-tokens less than 32"]);
    assert!(!out.exists());

    let (job, method) = (gpt2(true), p_tuning());
    let (theirs, _) = theirs(&job, &method, folder.path(), json!({ "steps": 0 }));
    let finished = theirs.join("adapter");
    let finished = finished.to_str().unwrap();
    let from = ["--init-adapter", finished];
    refused(&train(&job, &method, &out, &from), 1, &["mlp_head.0.weight", "prompt_encoder.safetensors"]);
    refused(&train(&job, &prefix_tuning(), &out, &from), 1, &["P_TUNING", "--peft-method prefix-tuning"]);
    refused(&train(&job, &method, &out, &[&from[..], &["--num-virtual-tokens", "6"]].concat()), 2, &["--init-adapter"]);
    refused(&train(&llama(), &method, &out, &from), 1, &["does not fit", "num_attention_heads"]);

    let model = job.folder.join("model").display().to_string();
    let complete = |adapters: &[&str]| {
        let given = adapters.iter().flat_map(|adapter| ["--adapter", adapter]);
        ["complete", "--model", &model, "--prompt", "red"]
            .into_iter()
            .chain(given)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    refused(&complete(&[finished, finished]), 1, &["second prompt"]);
    refused(&complete(&[&format!("{finished}=0.5")]), 1, &["no strength"]);
    let converted = folder.path().join("converted").display().to_string();
    refused(
        &["adapter", "convert", finished, "--to", "kohya", "--output", &converted],
        1,
        &["P_TUNING", "only format"],
    );
    let merged = folder.path().join("merged").display().to_string();
    let merge = ["adapter", "merge", "--lora", finished, "--model", "x", "--output-dir", &merged];
    refused(&merge, 1, &["a prompt", "changes no weights"]);
    assert!(PromptMethod::of(&peft_folder::peft_type(Path::new(finished)).unwrap()).is_some());
}
