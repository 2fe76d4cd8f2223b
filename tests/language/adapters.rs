//! LoRA on language models is peft's: which modules, outputs, gradients, dropout and files.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::language::{assert_close, bert, bloom, gpt2, llama, load, opt, saved, t5, with};
use crate::support::language::{every_architecture, Given, Model, Tensors, CLOSE, FLOAT32};
use crate::support::{in_a_process_of_its_own, made, python, read, read_json, relative_error};
use lorabooth::adapters::{attach, peft_folder, Attached, Init, InitWeights, LoraConfig, PartAdapter, Sites};
use lorabooth::adapters::{TargetModules, TextEncoderSpelling};
use lorabooth::libtorch::random::Generator;
use lorabooth::models::language::{DecoderInputs, LanguageModel, LanguageModelFiles, Tokens};
use lorabooth::models::Loaded;
use lorabooth::nn::KeyValueCache;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// What peft did with LoRA on a model.
struct Theirs {
    folder: PathBuf,
    made: PathBuf,
    outputs: Tensors,
    /// Dropout is on.
    trains: bool,
}

impl Theirs {
    /// `options` are those of `language_lora.py` beside the model and `lora`.
    fn new(model: &Model, lora: Value, options: Value) -> Self {
        let folder = saved(model, json!({}));
        let options = with(json!({ "model": folder, "class": model.0, "lora": lora }), options);
        let made = made("language_lora.py", "lora", &options);
        Self { outputs: read(made.join("outputs.safetensors")), trains: options.get("dropout").is_some(), folder, made }
    }

    fn of(model: &Model, lora: Value) -> Self {
        Self::new(model, lora, json!({}))
    }

    fn adapter(&self) -> PartAdapter {
        peft_folder::read(&self.made.join("adapter")).unwrap()
    }

    /// Our model with their adapter.
    fn load(&self) -> (Loaded<LanguageModel>, Attached) {
        let (loaded, adapter) = (load(&self.folder, FLOAT32), self.adapter());
        let attached = attach(&loaded.sites, "a", adapter.config, Init::Tensors(&adapter.tensors)).unwrap();
        (loaded, attached)
    }

    fn loss(&self, model: &LanguageModel, logits: &Tensor) -> Tensor {
        let labels = &self.outputs["labels"];
        let (logits, labels) = match model {
            LanguageModel::Causal(_) => {
                let last = labels.size()[1] - 1;
                (logits.narrow(1, 0, last), labels.narrow(1, 1, last))
            }
            _ => (logits.shallow_clone(), labels.shallow_clone()),
        };
        let flat = logits.reshape([-1, *logits.size().last().unwrap()]);
        flat.cross_entropy_loss(&labels.reshape([-1]), None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)
    }
}

fn check_gradients(name: &str, theirs: &Theirs) {
    let (loaded, attached) = theirs.load();
    let given = Given::of(&theirs.outputs, "");
    let expected = |param: &str| &theirs.outputs[&format!("gradient.{param}")];
    let size = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
    // The keys' bias moves all scores of a query alike: its gradient is 0 but for rounding, and has no scale of its own.
    let floor = 1e-3 * attached.params.keys().map(|param| size(expected(param))).fold(0.0, f64::max);
    loaded.sites.set_training(theirs.trains);
    let mut kept = Vec::new();
    for checkpointing in [false, true] {
        tch::manual_seed(7);
        let logits = given.logits(&loaded.model, checkpointing);
        let at = |xs: &Tensor| given.seen(&loaded.model, xs);
        assert_close(&format!("{name} logits"), &at(&logits), &at(&theirs.outputs["logits"]), CLOSE);
        let loss = theirs.loss(&loaded.model, &logits);
        assert_close(&format!("{name} loss"), &loss, &theirs.outputs["loss"], CLOSE);
        loss.backward();
        let mut worst = 0.0f64;
        for (param_name, param) in &attached.params {
            let mut gradient = param.grad();
            let wanted = expected(param_name);
            let error = size(&(&gradient - wanted)) / size(wanted).max(floor);
            assert!(error < 1e-4, "{name}: the gradient of {param_name} differs by {error:e}");
            worst = worst.max(error);
            kept.push(gradient.copy());
            let _ = gradient.zero_();
        }
        println!("{name} gradients: {worst:.1e}");
    }
    let recomputed = kept.split_off(attached.params.len());
    let (kept, recomputed) = (Tensor::cat(&flat(&kept), 0), Tensor::cat(&flat(&recomputed), 0));
    match loaded.model {
        // What all of a decoder's blocks say of the encoder's output is added up in another order.
        LanguageModel::EncoderDecoder(_) => assert_close(&format!("{name} recomputed"), &recomputed, &kept, CLOSE),
        _ => assert!(kept == recomputed, "{name}: gradient checkpointing changes gradients"),
    }
}

fn flat(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|tensor| tensor.reshape([-1])).collect()
}

#[test]
fn lora_has_pefts_outputs_and_gradients_with_and_without_checkpointing() {
    for (name, model) in every_architecture() {
        check_gradients(name, &Theirs::of(&model, json!({ "r": 3, "lora_alpha": 5 })));
    }
}

/// Models, and a name of the tables that they read tokens through.
fn models_with_tables() -> Vec<(&'static str, Model, &'static str)> {
    vec![
        // The head is the table too, and stays as it is.
        ("gpt2", gpt2(json!({})), "wte"),
        ("opt", opt(json!({ "do_layer_norm_before": false, "word_embed_proj_dim": 16 })), "embed_tokens"),
        ("bloom", bloom(json!({})), "word_embeddings"),
        ("llama", llama("LlamaForCausalLM", json!({})), "embed_tokens"),
        ("qwen2, tied", llama("Qwen2ForCausalLM", json!({ "tie_word_embeddings": true })), "embed_tokens"),
        ("t5", t5("T5ForConditionalGeneration", json!({})), "embed_tokens"),
        ("bert", bert("BertForSequenceClassification", json!({})), "word_embeddings"),
        ("gpt2's positions", gpt2(json!({})), "wpe"),
    ]
}

#[test]
fn lora_on_embeddings_has_pefts_outputs_and_gradients() {
    if !in_a_process_of_its_own("language::adapters::lora_on_embeddings_has_pefts_outputs_and_gradients") {
        return;
    }
    for (name, model, table) in models_with_tables() {
        check_gradients(name, &Theirs::of(&model, json!({ "r": 3, "lora_alpha": 5, "target_modules": [table] })));
    }
    let beside = json!({ "r": 2, "target_modules": ["wte", "c_attn"], "use_rslora": true, "lora_dropout": 0.3 });
    let with_dropout = Theirs::new(&gpt2(json!({})), beside, json!({ "dropout": true }));
    check_gradients("gpt2's embeddings beside projections", &with_dropout);
}

#[test]
fn lora_on_decoders_that_classify_has_pefts_outputs_and_gradients() {
    let decoders = [
        ("GPT2ForSequenceClassification", gpt2(json!({}))),
        ("OPTForSequenceClassification", opt(json!({}))),
        ("BloomForSequenceClassification", bloom(json!({}))),
        ("LlamaForSequenceClassification", llama("LlamaForSequenceClassification", json!({}))),
    ];
    for (class, (_, config)) in decoders {
        let model = (class, with(config, json!({ "num_labels": 3, "pad_token_id": 0 })));
        // The head is trained and saved whole.
        let theirs = Theirs::of(&model, json!({ "r": 3, "lora_alpha": 5, "task_type": "SEQ_CLS" }));
        assert!(theirs.adapter().tensors.contains_key("score.weight"), "{class}");
        check_gradients(class, &theirs);
    }
}

#[test]
fn padding_on_the_left_hides_nothing_else() {
    for (name, model) in every_architecture() {
        check_gradients(name, &Theirs::new(&model, json!({ "r": 3 }), json!({ "side": "left" })));
    }
}

#[test]
fn lora_on_every_projection_and_biases_equals_pefts() {
    let lora = json!({ "r": 2, "lora_alpha": 3, "target_modules": "all-linear", "bias": "all" });
    for (name, model) in every_architecture() {
        check_gradients(name, &Theirs::of(&model, lora.clone()));
    }
    check_gradients("gpt2 with DoRA", &Theirs::of(&gpt2(json!({})), json!({ "r": 2, "use_dora": true })));
}

#[test]
fn modules_that_are_trained_whole_have_pefts_gradients() {
    let classifiers = ["BertForSequenceClassification", "RobertaForSequenceClassification"];
    let heads = classifiers.map(|class| (bert(class, json!({})), "classifier"));
    let others = [
        // Kept transposed; the embeddings that the head shares, and the head that shares them.
        (gpt2(json!({})), "mlp.c_fc"),
        (gpt2(json!({})), "wte"),
        (gpt2(json!({})), "lm_head"),
        // What is added to the scores of attention.
        (t5("T5ForConditionalGeneration", json!({})), "relative_attention_bias"),
        (llama("LlamaForCausalLM", json!({})), "input_layernorm"),
    ];
    for (model, module) in heads.into_iter().chain(others) {
        let theirs = Theirs::of(&model, json!({ "r": 2, "modules_to_save": [module] }));
        check_gradients(&format!("{} with {module}", model.0), &theirs);
    }
}

/// The models that have dropout in their configuration draw it where and as transformers does.
#[test]
fn dropout_of_a_model_that_trains_is_drawn_as_transformers_draws_it() {
    if !in_a_process_of_its_own("language::adapters::dropout_of_a_model_that_trains_is_drawn_as_transformers_draws_it")
    {
        return;
    }
    for (name, model) in every_architecture() {
        let lora = json!({ "r": 3, "lora_dropout": 0.2 });
        check_gradients(&format!("{name} in training"), &Theirs::new(&model, lora, json!({ "dropout": true })));
    }
}

fn fresh_config(folder: &Path) -> LoraConfig {
    let targets = LanguageModelFiles::open(folder).unwrap().architecture().lora_targets;
    let names = targets.iter().map(|&name| name.to_owned()).collect();
    let init_lora_weights = InitWeights::Drawn;
    LoraConfig {
        r: 3,
        lora_alpha: 5.0,
        target_modules: Some(TargetModules::Names(names)),
        init_lora_weights,
        ..Default::default()
    }
}

fn attach_fresh(sites: &Sites, folder: &Path, targets: Option<&str>) -> Attached {
    let mut config = fresh_config(folder);
    config.target_modules = targets.map(TargetModules::from_flag).or(config.target_modules);
    attach(sites, "a", config, Init::Draw(&mut Generator::new(1))).unwrap()
}

#[test]
fn default_targets_and_numbers_of_parameters_are_pefts() {
    for (name, model) in every_architecture() {
        let theirs = Theirs::of(&model, json!({ "r": 3, "lora_alpha": 5 }));
        let attached = attach_fresh(&load(&theirs.folder, FLOAT32).sites, &theirs.folder, None);
        let shapes = |tensors: &Tensors| -> Vec<(String, Vec<i64>)> {
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect()
        };
        assert_eq!(shapes(&attached.params), shapes(&theirs.adapter().tensors), "{name}");
        let summary = read_json(theirs.made.join("summary.json"));
        assert_eq!(json!(attached.trainable()), summary["trainable"], "{name}");
        assert_eq!(json!(attached.base_elements + attached.trainable()), summary["all"], "{name}");
        assert_eq!(attached.config.fan_in_fan_out, theirs.adapter().config.fan_in_fan_out, "{name}");
    }
}

#[test]
fn adapters_that_are_made_here_compute_the_same_in_peft() {
    let by_default = every_architecture().into_iter().map(|(name, model)| (name, model, None));
    // PEFT warns of a table that the head shares, where it is called `embed_tokens`.
    let warned_of = ["opt", "qwen2, tied", "t5"];
    let on_tables = models_with_tables().into_iter().filter(|(name, ..)| !warned_of.contains(name));
    let on_tables = on_tables.map(|(name, model, table)| (name, model, Some(table)));
    for (name, model, targets) in by_default.chain(on_tables) {
        let dir = tempfile::tempdir().unwrap();
        let folder = saved(&model, json!({}));
        let loaded = load(&folder, FLOAT32);
        let adapter = PartAdapter::of(&attach_fresh(&loaded.sites, &folder, targets));
        peft_folder::write(&dir.path().join("adapter"), None, &adapter, TextEncoderSpelling::Today).unwrap();
        let out = dir.path().join("out");
        let options = json!({ "model": folder, "class": model.0, "adapter": dir.path().join("adapter") });
        python("language_lora.py", &[out.to_str().unwrap(), &options.to_string()]);
        let theirs = read(out.join("outputs.safetensors"));
        let _no_grad = tch::no_grad_guard();
        let given = Given::of(&theirs, "");
        let at = |xs: &Tensor| given.seen(&loaded.model, xs);
        let logits = at(&given.logits(&loaded.model, false));
        assert_close(&format!("{name} in peft"), &logits, &at(&theirs["logits"]), CLOSE);
        loaded.sites.merge();
        assert_close(&format!("{name} merged"), &at(&given.logits(&loaded.model, false)), &logits, CLOSE);
        loaded.sites.unmerge();
        loaded.sites.set_enabled(false);
        let base = at(&given.logits(&loaded.model, false));
        assert!(relative_error(&base, &logits) > 1e-2, "{name}: the adapter hardly changes anything");
    }
}

#[test]
fn a_trained_prefix_gets_the_same_gradients_with_and_without_checkpointing() {
    for (name, model) in [("llama", llama("LlamaForCausalLM", json!({}))), ("bloom", bloom(json!({})))] {
        let loaded = load(&saved(&model, json!({})), FLOAT32);
        let LanguageModel::Causal(model) = &loaded.model else { panic!("{name} is no decoder") };
        let shape = model.shape();
        let mut generator = Generator::new(1);
        let ids = generator.randint(3, shape.vocabulary, &[2, 5]);
        let size = [2, shape.key_value_heads, 3, shape.head_width];
        let prefix = generator.randn(&size).set_requires_grad(true);
        let gradient = |checkpointing: bool| {
            let pairs = (0..shape.blocks).map(|_| (prefix.shallow_clone(), &prefix * 0.5)).collect();
            let mut cache = KeyValueCache::of(pairs);
            let inputs =
                DecoderInputs { checkpointing, cache: Some(&mut cache), ..DecoderInputs::new(Tokens::Ids(&ids)) };
            let logits = model.logits(&model.forward(inputs));
            logits.square().mean(Kind::Float).backward();
            let gradient = prefix.grad().copy();
            let _ = prefix.grad().zero_();
            gradient
        };
        let plain = gradient(false);
        assert_eq!(plain, gradient(true), "{name}");
        assert!(plain.abs().max().double_value(&[]) > 0.0);
    }
}
