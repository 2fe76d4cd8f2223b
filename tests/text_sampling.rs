//! Texts are drawn as transformers draws them: by the same probabilities, and from the same seed the same tokens.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

#[path = "support/jobs.rs"]
mod jobs;
mod support;

use jobs::{gpt2, llama, t5};
use lorabooth::sample::text_generation::TextSampling;
use serde_json::{json, Value};
use support::{complete, lorabooth_ok, made, read, read_json};

#[test]
fn probabilities_are_those_of_transformers_logits_processors() {
    let options = json!([
        { "temperature": 1.0 },
        { "temperature": 0.3 },
        { "temperature": 2.5, "top_k": 1 },
        { "temperature": 0.7, "top_k": 5 },
        { "temperature": 1.0, "top_k": 1000 },
        { "temperature": 1.3, "top_p": 0.9 },
        { "temperature": 1.0, "top_p": 0.01 },
        { "temperature": 1.0, "top_p": 1.0 },
        // Top-p counts from what top-k has left.
        { "temperature": 1.5, "top_k": 6, "top_p": 0.8 },
    ]);
    let file = made("language_sampling.py", "p.safetensors", &json!({ "options": options, "vocabulary": 50 }));
    let expected = read(file);
    for (row, how) in options.as_array().unwrap().iter().enumerate() {
        let sampling = TextSampling {
            temperature: how["temperature"].as_f64().unwrap(),
            top_k: how["top_k"].as_i64(),
            top_p: how["top_p"].as_f64(),
            ..TextSampling::greedy(1, Vec::new())
        };
        let ours = sampling.probabilities(&expected["logits"].get(row as i64));
        let worst = (ours - expected["probabilities"].get(row as i64)).abs().max().double_value(&[]);
        assert!(worst < 1e-6, "{how}: {worst:e}");
    }
}

#[test]
fn the_same_seed_draws_the_same_text_as_transformers_generate() {
    let prompts = ["red house", "music"];
    let draws = json!([
        { "temperature": 1.0, "seed": 0 },
        { "temperature": 1.7, "top_k": 6, "seed": 1 },
        { "temperature": 0.8, "top_p": 0.9, "seed": 2 },
        { "temperature": 2.0, "top_k": 12, "top_p": 0.7, "seed": 3 },
    ]);
    for job in [gpt2(true), llama(), t5()] {
        let options =
            json!({ "job": job.folder, "class": job.class, "prompts": prompts, "draws": draws, "max_new_tokens": 12 });
        let expected = read_json(made("language_generate.py", "texts.json", &options));
        let model = job.folder.join("model").display().to_string();
        for (how, texts) in draws.as_array().unwrap().iter().zip(expected.as_array().unwrap()) {
            let flags = ["temperature", "top_k", "top_p", "seed"].into_iter().filter(|name| !how[*name].is_null());
            let flags: Vec<String> = flags.map(|name| format!("--{}={}", name.replace('_', "-"), how[name])).collect();
            for (prompt, text) in prompts.iter().zip(texts.as_array().unwrap()) {
                let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
                let args = complete(&model, prompt, &[&["--max-new-tokens", "12"], &flags[..]].concat());
                let said = lorabooth_ok(&args);
                let ours: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
                assert_eq!(&ours["text"], text, "{} after {prompt:?} with {how}", job.name);
            }
        }
    }
}
