//! Texts are drawn as transformers draws them: by the same probabilities, and from the same seed the same tokens.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{gpt2, llama, t5};
use crate::support::language::{bloom, load, opt, saved, FLOAT32};
use crate::support::{complete, language, lorabooth_ok, made, python, read, read_json};
use lorabooth::adapters::{Init, Prompt, PromptConfig};
use lorabooth::libtorch::random::Generator;
use lorabooth::models::language::LanguageModel;
use lorabooth::recipes::language::adapter::fitted;
use lorabooth::recipes::language::prompted_text::PromptedText;
use lorabooth::sample::text_generation::{Prompts, TextSampling, TextWriter};
use serde_json::{json, Value};
use std::fs;
use tch::{Device, Kind, Tensor};

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

/// What follows each of the texts, written one by one: at most as many tokens as `most` says of it.
fn one_by_one(
    model: &LanguageModel,
    prompt: Option<&Prompt>,
    texts: &[Tensor],
    most: &[usize],
    ends: &[i64],
) -> Vec<Vec<i64>> {
    let write = |(text, &most): (&Tensor, &usize)| {
        let mut read = PromptedText::new(model, prompt, text.unsqueeze(0), None).unwrap();
        let cache = read.cache.take().unwrap_or_default();
        let greedy = TextSampling::greedy(most, ends.to_vec());
        let writer = TextWriter::of(model).unwrap();
        writer.write(read.tokens(), cache, Device::Cpu, &greedy, &mut |_| Ok(())).unwrap()
    };
    texts.iter().zip(most).map(write).collect()
}

#[test]
fn texts_that_are_written_together_are_those_that_are_written_one_by_one() {
    let decoders = [
        ("gpt2", language::gpt2(json!({}))),
        ("opt", opt(json!({}))),
        ("bloom", bloom(json!({}))),
        ("llama", language::llama("LlamaForCausalLM", json!({}))),
        ("qwen2", language::llama("Qwen2ForCausalLM", json!({}))),
        ("t5", language::t5("T5ForConditionalGeneration", json!({}))),
    ];
    let _no_grad = tch::no_grad_guard();
    for (name, model) in decoders {
        let loaded = load(&saved(&model, json!({})), FLOAT32);
        let model = &loaded.model;
        let mut generator = Generator::new(7);
        let texts = [5, 2, 9, 9, 3, 1].map(|length| generator.randint(3, 61, &[length]));
        let most = [8, 1, 6, 8, 7, 8];
        let filled = |gap: i64| if name == "t5" { [0, gap] } else { [gap, 0] };
        let padded: Vec<Tensor> = texts.iter().map(|ids| ids.constant_pad_nd(filled(9 - ids.size()[0]))).collect();
        let (ids, mask) = (Tensor::stack(&padded, 0), Tensor::stack(&padded, 0).ne(0).to_kind(Kind::Int64));
        for method in [None, Some("PROMPT_TUNING"), Some("PREFIX_TUNING")] {
            if name == "t5" && method == Some("PREFIX_TUNING") {
                // Its encoder and decoder are of different depths.
                continue;
            }
            let prompt = method.map(|method| {
                let config = json!({ "peft_type": method, "num_virtual_tokens": 3, "task_type": "CAUSAL_LM" });
                let config = fitted(PromptConfig::from_json(&config).unwrap(), model, Device::Cpu).unwrap();
                Prompt::attach(&loaded.sites, Device::Cpu, config, Init::Draw(&mut generator)).unwrap()
            });
            let prompt = prompt.as_ref();
            let endless = one_by_one(model, prompt, &texts, &most, &[]);
            let ends = [endless[0][2], endless[3][4]];
            let expected = one_by_one(model, prompt, &texts, &most, &ends);
            assert!(expected.iter().zip(&endless).any(|(ended, endless)| ended.len() < endless.len()), "{name}");
            let mut read = PromptedText::new(model, prompt, ids.shallow_clone(), Some(mask.shallow_clone())).unwrap();
            let cache = read.cache.take().unwrap_or_default();
            let prompts = Prompts { tokens: read.tokens(), attention_mask: read.attention_mask.as_ref(), cache };
            let writer = TextWriter::of(model).unwrap();
            let made = writer.write_all(prompts, Device::Cpu, &most, &ends, &mut || Ok(())).unwrap();
            assert_eq!(made, expected, "{name} behind {method:?}");
        }
    }
}

/// The tokens that end a text are those of `generation_config.json`, as for transformers' `generate`.
#[test]
fn a_text_ends_where_the_generation_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    for job in [gpt2(true), t5()] {
        let copy = folder.path().join(job.name);
        let model = copy.join("model");
        fs::create_dir_all(&model).unwrap();
        for file in fs::read_dir(job.folder.join("model")).unwrap().map(|entry| entry.unwrap().path()) {
            fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
        }
        let model = model.to_str().unwrap();
        let written = || {
            let said = lorabooth_ok(&complete(model, "red house", &["--max-new-tokens", "12"]));
            let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
            said["text"].as_str().unwrap().to_owned()
        };
        let endless = written();
        let third = endless.split(' ').nth(2).unwrap();
        let ids: Vec<i64> = serde_json::from_str(lorabooth_ok(&["tokenize", "--model", model, third]).trim()).unwrap();
        let path = copy.join("model/generation_config.json");
        let mut config = read_json(&path);
        config["eos_token_id"] = json!([1, ids[0]]);
        fs::write(&path, config.to_string()).unwrap();
        let out = copy.join("texts.json");
        let options =
            json!({ "job": copy, "class": job.class, "prompts": ["red house"], "beams": [1], "max_new_tokens": 12 });
        python("language_generate.py", &[out.to_str().unwrap(), &options.to_string()]);
        // transformers gives the end too, where it is no special token.
        let theirs = read_json(&out)["1"][0].as_str().unwrap().to_owned();
        let ours = written();
        assert_eq!(theirs.trim_end_matches(third).trim_end(), ours.trim_end(), "{}", job.name);
        assert!(ours.len() < endless.len(), "{}: {ours}", job.name);
        let records = copy.join("records.jsonl");
        fs::write(&records, "{\"text\": \"red house\"}\n").unwrap();
        let answers = copy.join("answers.csv");
        let words =
            ["evaluate", "--json", "--mixed-precision", "no", "--eval-max-new-tokens", "12", "--task", job.task];
        let files = ["--validation-file", records.to_str().unwrap(), "--output", answers.to_str().unwrap()];
        lorabooth_ok(&[&words[..], &["--model", model], &files].concat());
        let table = fs::read_to_string(&answers).unwrap();
        assert_eq!(table.lines().last().unwrap().trim_end(), format!("red house,{}", ours.trim_end()), "{}", job.name);
    }
}
