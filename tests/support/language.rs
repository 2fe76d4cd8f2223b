//! Small language models of random weights, made by transformers, and what it computes with them.

use super::{made, read, relative_error};
use lorabooth::models::language::{
    ClassifierInputs, DecoderInputs, Encoded, HeadOptions, LanguageModel, LanguageModelFiles, Tokens,
};
use lorabooth::models::Loaded;
use lorabooth::weights::Placement;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

pub const FLOAT32: Placement = Placement { device: Device::Cpu, kind: Kind::Float };
/// Where what is compared has been through two hundred operations on numbers near 1.
pub const CLOSE: f64 = 1e-5;

pub type Tensors = BTreeMap<String, Tensor>;

/// A class of transformers and its configuration.
pub type Model = (&'static str, Value);

pub fn with(mut value: Value, more: Value) -> Value {
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

pub fn gpt2(more: Value) -> Model {
    (
        "GPT2LMHeadModel",
        with(json!({ "vocab_size": 61, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 3 }), more),
    )
}

pub fn opt(more: Value) -> Model {
    let config = json!({ "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "ffn_dim": 40,
        "max_position_embeddings": 32, "num_attention_heads": 3 });
    ("OPTForCausalLM", with(config, more))
}

pub fn bloom(more: Value) -> Model {
    ("BloomForCausalLM", with(json!({ "vocab_size": 61, "hidden_size": 24, "n_layer": 3, "n_head": 6 }), more))
}

/// 6 heads share 2 heads of keys and values.
pub fn llama(class: &'static str, more: Value) -> Model {
    let config = json!({ "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 32 });
    (class, with(config, more))
}

pub fn rope(parameters: Value) -> Model {
    llama("LlamaForCausalLM", json!({ "head_dim": 8, "max_position_embeddings": 8, "rope_parameters": parameters }))
}

/// The widths of all heads together are not the model's.
pub fn t5(class: &'static str, more: Value) -> Model {
    let config = json!({ "vocab_size": 61, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3,
        "num_heads": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9,
        "decoder_start_token_id": 0 });
    (class, with(config, more))
}

pub fn bert(class: &'static str, more: Value) -> Model {
    let config = json!({ "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
        "intermediate_size": 40, "max_position_embeddings": 32, "num_labels": 3 });
    (class, with(config, more))
}

/// One of each architecture.
pub fn every_architecture() -> Vec<(&'static str, Model)> {
    vec![
        ("gpt2", gpt2(json!({}))),
        ("opt", opt(json!({ "do_layer_norm_before": false, "word_embed_proj_dim": 16 }))),
        ("bloom", bloom(json!({}))),
        ("llama", llama("LlamaForCausalLM", json!({}))),
        ("mistral", llama("MistralForCausalLM", json!({ "sliding_window": 3 }))),
        ("qwen2", llama("Qwen2ForCausalLM", json!({}))),
        ("t5", t5("T5ForConditionalGeneration", json!({}))),
        ("mt5", t5("MT5ForConditionalGeneration", json!({}))),
        ("bert", bert("BertForSequenceClassification", json!({}))),
        ("roberta", bert("RobertaForSequenceClassification", json!({}))),
    ]
}

/// The model's folder; `options` are those of `language_models.py` beside class and configuration.
pub fn saved((class, config): &Model, options: Value) -> PathBuf {
    made("language_models.py", "model", &with(json!({ "class": class, "config": config }), options))
}

pub fn computed(class: &str, folder: &Path, options: Value) -> Tensors {
    let options = with(json!({ "model": folder, "class": class }), options);
    read(made("language_forward.py", "forward.safetensors", &options))
}

pub fn load(folder: &Path, placement: Placement) -> Loaded<LanguageModel> {
    LanguageModelFiles::open(folder).unwrap().load(placement, HeadOptions::default()).unwrap()
}

/// What a forward is given.
pub struct Given<'a> {
    pub ids: &'a Tensor,
    pub mask: Option<&'a Tensor>,
    pub decoder_ids: Option<&'a Tensor>,
    pub types: Option<&'a Tensor>,
}

impl<'a> Given<'a> {
    pub fn of(tensors: &'a Tensors, prefix: &str) -> Self {
        let get = |name: &str| tensors.get(&format!("{prefix}{name}"));
        let mask = get("attention_mask").filter(|_| prefix != "plain.");
        Self {
            ids: get("input_ids").unwrap(),
            mask,
            decoder_ids: get("decoder_input_ids"),
            types: get("token_type_ids"),
        }
    }

    /// The logits that mean something: a decoder's at padding don't.
    pub fn seen(&self, model: &LanguageModel, logits: &Tensor) -> Tensor {
        match (model, self.mask) {
            (LanguageModel::Causal(_), Some(mask)) => at_tokens(logits, mask),
            _ => logits.shallow_clone(),
        }
    }

    pub fn logits(&self, model: &LanguageModel, checkpointing: bool) -> Tensor {
        let tokens = Tokens::Ids(self.ids);
        match model {
            LanguageModel::Causal(model) => {
                let inputs = DecoderInputs { attention_mask: self.mask, checkpointing, ..DecoderInputs::new(tokens) };
                model.logits(&model.forward(inputs))
            }
            LanguageModel::EncoderDecoder(model) => {
                let hidden = model.encode(tokens, self.mask, checkpointing);
                let encoded = Encoded { hidden: &hidden, attention_mask: self.mask };
                let inputs = DecoderInputs::new(Tokens::Ids(self.decoder_ids.unwrap()));
                model.logits(&model.decode(DecoderInputs { checkpointing, ..inputs }, encoded))
            }
            LanguageModel::Classifier(model) => model.classify(ClassifierInputs {
                attention_mask: self.mask,
                token_type_ids: self.types,
                checkpointing,
                ..ClassifierInputs::new(tokens)
            }),
        }
    }
}

/// The rows of `xs` `[b, t, ..]` that are tokens.
pub fn at_tokens(xs: &Tensor, mask: &Tensor) -> Tensor {
    xs.index(&[Some(mask.ne(0))])
}

pub fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, bound: f64) {
    let error = relative_error(actual, expected);
    println!("{what}: {error:.1e}");
    assert!(error < bound, "{what} differs by {error:e}");
}
