use super::*;
use crate::adapters::{LoraConfig, TargetModules};
use crate::models::language::{Architecture, LanguageModelFiles, Outline, ARCHITECTURES};
use crate::weights::{Quantize, Storage};
use serde_json::{json, Value};

/// A small model of `architecture`.
fn config(architecture: &Architecture, class: &str) -> Value {
    let mut config = match architecture.model_type {
        "gpt2" => json!({ "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 128 }),
        "bloom" => json!({ "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128 }),
        "opt" => json!({ "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64, "vocab_size": 128, "word_embed_proj_dim": 32 }),
        "t5" | "mt5" => {
            json!({ "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 128,
            "decoder_start_token_id": 0 })
        }
        _ => json!({ "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64, "vocab_size": 128 }),
    };
    if ["llama", "mistral", "qwen2"].contains(&architecture.model_type) {
        config["num_key_value_heads"] = json!(2);
    }
    config["model_type"] = json!(architecture.model_type);
    config["architectures"] = json!([class]);
    config
}

fn input<'a>(files: &'a LanguageModelFiles, outline: &'a Outline, labels: Option<i64>) -> LanguagePlanInput<'a> {
    let texts = Texts { length: 32, learnt: if labels.is_some() { 1 } else { 16 } };
    let targets = files.architecture().lora_targets.join(",");
    LanguagePlanInput {
        files,
        outline,
        labels,
        stored: Kind::Float,
        kind: Kind::BFloat16,
        storage: Storage::default(),
        lora: Some(LoraConfig {
            r: 4,
            target_modules: Some(TargetModules::from_flag(&targets)),
            ..LoraConfig::default()
        }),
        prompt: None,
        half: Kind::BFloat16,
        gradient_checkpointing: false,
        optimizer_8bit: false,
        batch: 2,
        texts: Lengths { most: texts, usual: texts },
        evaluations: None,
        accumulation: 1,
        steps: 1,
        device: Device::Cpu,
    }
}

fn part(plan: &MemoryPlan, name: &str) -> u64 {
    let parts = &plan.phase("training").unwrap().parts;
    parts.iter().find(|(part, _)| part.starts_with(name)).unwrap().1
}

/// The bytes of weights and of activations that are kept, and the trained numbers.
fn planned(input: &LanguagePlanInput) -> [u64; 3] {
    let plan = input.plan().unwrap();
    [part(&plan, "weights"), part(&plan, "activations kept"), plan.trained_parameters]
}

#[test]
fn every_architecture_is_planned_however_it_is_kept_and_wherever_it_runs() {
    for architecture in ARCHITECTURES {
        for class in architecture.classes.iter().filter(|class| class.contains("For")) {
            let labels = class.ends_with("ForSequenceClassification").then_some(3);
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("config.json"), config(architecture, class).to_string()).unwrap();
            let files = LanguageModelFiles::open(folder.path()).unwrap();
            let outline = files.outline().unwrap();
            for device in [Device::Cpu, Device::Cuda(0)] {
                let usual = LanguagePlanInput { device, ..input(&files, &outline, labels) };
                let [weights, kept, trained] = planned(&usual);
                let of = format!("{class} on {device:?}");
                assert!(weights > 0 && kept > 0 && trained > 0, "{of}");
                let recomputed = planned(&LanguagePlanInput { gradient_checkpointing: true, ..usual.clone() });
                assert!(
                    recomputed[0] == weights && recomputed[1] < kept && recomputed[2] == trained,
                    "{of}: {recomputed:?}"
                );
                let storages = [Quantize::Int8, Quantize::Nf4, Quantize::Fp8].map(Storage::from);
                for storage in storages.into_iter().chain([Storage { streamed: true, ..Storage::default() }]) {
                    let [fewer, _, same] = planned(&LanguagePlanInput { storage, ..usual.clone() });
                    assert!(fewer < weights && same == trained, "{of}, {storage:?}: {fewer} of {weights}");
                }
            }
        }
    }
}

/// A prompt of so many tokens is read before each text.
#[test]
fn a_trained_prompt_is_planned_with_what_it_is_read_with() {
    let architecture = &ARCHITECTURES[0];
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config(architecture, architecture.classes[0]).to_string())
        .unwrap();
    let files = LanguageModelFiles::open(folder.path()).unwrap();
    let outline = files.outline().unwrap();
    let of = |tokens: i64| {
        let prompt = Some(PlannedPrompt { tokens, trained: 64 * tokens as u64 });
        planned(&LanguagePlanInput { lora: None, prompt, ..input(&files, &outline, None) })
    };
    let ([_, less, few], [_, more, many]) = (of(4), of(16));
    assert!(less < more && (few, many) == (4 * 64, 16 * 64), "{less} {more}");
}
