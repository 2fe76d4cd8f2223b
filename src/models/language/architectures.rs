//! The architectures that there are: from a `config.json` to what loads it.

use super::decoder_classifier::DecoderClassifier;
use super::interface::{CausalLm, LanguageModel};
use super::outline::Outline;
use super::{bert, bert_config, bloom, gpt2, llama, llama_config, opt, t5};
use crate::error::{Error, Result};
use crate::libtorch::random::Generator;
use crate::models::config_file::check_sizes;
use crate::nn::{Bias, Embedding, Linear, Loader};
use serde_json::Value;
use std::path::Path;

/// One architecture.
pub struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Names in `architectures` of `config.json` whose weights can be read.
    pub classes: &'static [&'static str],
    /// What it does, as PEFT's `task_type`s.
    pub tasks: &'static [&'static str],
    /// PEFT's default target modules for LoRA (`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`).
    pub lora_targets: &'static [&'static str],
    /// Last names of modules whose weights are kept transposed, as [in, out].
    pub transposed: &'static [&'static str],
    /// What the keys of files with a head start with; those of the base model alone lack it.
    pub(super) prefix: &'static str,
    /// What the keys of heads start with.
    pub(super) heads: &'static [&'static str],
    pub(super) load: fn(&Loader, &Build) -> Result<LanguageModel>,
    pub(super) outline: fn(&Value) -> std::result::Result<Outline, String>,
}

/// What a loader builds from, beside the weights.
pub(super) struct Build<'a> {
    /// `config.json`.
    pub(super) config: &'a Value,
    /// Where it is.
    pub(super) path: &'a Path,
    /// Number of classes that a classifier must have; none: as many as it has.
    pub(super) labels: Option<i64>,
    /// Seed of a classifier's head that no file has.
    pub(super) seed: i64,
}

impl Build<'_> {
    /// The error for a configuration that cannot be used.
    pub(super) fn refuse(&self, message: String) -> Error {
        Error::file(self.path, message)
    }

    /// Number of classes of a classifier.
    pub(super) fn labels(&self) -> i64 {
        self.labels.unwrap_or_else(|| labels(self.config))
    }

    /// Whether a decoder is to sort texts into classes.
    fn is_classifier(&self) -> bool {
        self.labels.is_some() || is_classifier(self.config)
    }

    /// The projection of a decoder's hidden states, `width` wide: to logits of `vocabulary` tokens, or as a classifier's head to
    /// those of its classes. `tied` is the table of embeddings, where it makes logits of tokens too.
    pub(super) fn head(
        &self,
        loader: &Loader,
        width: i64,
        vocabulary: i64,
        tied: Option<&Embedding>,
    ) -> Result<Linear> {
        if !self.is_classifier() {
            return Linear::load_output(&(loader / "lm_head"), width, vocabulary, tied);
        }
        check_sizes(&[("the number of labels", self.labels())]).map_err(|e| self.refuse(e))?;
        let at = loader / "score";
        self.class_projection(&at, width, self.labels(), Bias::No, &mut Generator::new(self.seed))
    }

    /// A projection of a classifier's head. Where a number of labels was asked for, one that the files lack, or have for another
    /// number, is drawn as transformers draws it.
    pub(super) fn class_projection(
        &self,
        at: &Loader,
        inputs: i64,
        outputs: i64,
        bias: Bias,
        generator: &mut Generator,
    ) -> Result<Linear> {
        let is_there = at.shape("weight").is_some_and(|shape| shape == [outputs, inputs]);
        if self.labels.is_none() || is_there {
            return Linear::load(at, inputs, outputs, bias);
        }
        let std = ["initializer_range", "init_std"].iter().find_map(|name| self.config.get(name)?.as_f64());
        Ok(Linear::draw(at, inputs, outputs, std.unwrap_or(INITIAL_DEVIATION), bias, generator))
    }

    /// A decoder as what it is to be.
    pub(super) fn decoder(&self, decoder: impl CausalLm + 'static) -> LanguageModel {
        match self.is_classifier() {
            true => LanguageModel::Classifier(Box::new(DecoderClassifier {
                decoder: Box::new(decoder),
                labels: self.labels(),
                padding: self.config.get("pad_token_id").and_then(Value::as_i64),
            })),
            false => LanguageModel::Causal(Box::new(decoder)),
        }
    }
}

/// Deviation of a new head's numbers where the configuration does not say.
const INITIAL_DEVIATION: f64 = 0.02;

/// Whether the files are a classifier's.
pub(super) fn is_classifier(config: &Value) -> bool {
    let class = config.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str);
    class.is_some_and(|class| class.ends_with("ForSequenceClassification"))
}

/// Number of classes in a configuration; transformers writes nothing for two without names.
pub(super) fn labels(config: &Value) -> i64 {
    config.get("id2label").and_then(Value::as_object).map_or(2, |names| names.len() as i64)
}

const DECODER_HEADS: &[&str] = &["lm_head.", "score."];
const DECODER_TASKS: &[&str] = &["CAUSAL_LM", "SEQ_CLS"];
const QUERY_AND_VALUE: &[&str] = &["q_proj", "v_proj"];

/// All architectures.
pub static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "gpt2",
        tasks: DECODER_TASKS,
        classes: &["GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2Model"],
        lora_targets: &["c_attn"],
        transposed: &["c_attn", "c_proj", "c_fc"],
        prefix: "transformer.",
        heads: DECODER_HEADS,
        load: gpt2::load,
        outline: gpt2::outline,
    },
    Architecture {
        model_type: "opt",
        tasks: DECODER_TASKS,
        classes: &["OPTForCausalLM", "OPTForSequenceClassification", "OPTModel"],
        lora_targets: QUERY_AND_VALUE,
        transposed: &[],
        prefix: "model.",
        heads: DECODER_HEADS,
        load: opt::load,
        outline: opt::outline,
    },
    Architecture {
        model_type: "bloom",
        tasks: DECODER_TASKS,
        classes: &["BloomForCausalLM", "BloomForSequenceClassification", "BloomModel"],
        lora_targets: &["query_key_value"],
        transposed: &[],
        prefix: "transformer.",
        heads: DECODER_HEADS,
        load: bloom::load,
        outline: bloom::outline,
    },
    Architecture {
        model_type: "llama",
        tasks: DECODER_TASKS,
        classes: &["LlamaForCausalLM", "LLaMAForCausalLM", "LlamaForSequenceClassification", "LlamaModel"],
        lora_targets: QUERY_AND_VALUE,
        transposed: &[],
        prefix: "model.",
        heads: DECODER_HEADS,
        load: llama::load_llama,
        outline: |config| llama::outline(config, llama_config::Family::Llama),
    },
    Architecture {
        model_type: "mistral",
        tasks: DECODER_TASKS,
        classes: &["MistralForCausalLM", "MistralForSequenceClassification", "MistralModel"],
        lora_targets: QUERY_AND_VALUE,
        transposed: &[],
        prefix: "model.",
        heads: DECODER_HEADS,
        load: llama::load_mistral,
        outline: |config| llama::outline(config, llama_config::Family::Mistral),
    },
    Architecture {
        model_type: "qwen2",
        tasks: DECODER_TASKS,
        classes: &["Qwen2ForCausalLM", "Qwen2ForSequenceClassification", "Qwen2Model"],
        lora_targets: QUERY_AND_VALUE,
        transposed: &[],
        prefix: "model.",
        heads: DECODER_HEADS,
        load: llama::load_qwen2,
        outline: |config| llama::outline(config, llama_config::Family::Qwen2),
    },
    Architecture {
        model_type: "t5",
        tasks: &["SEQ_2_SEQ_LM"],
        classes: &["T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model"],
        lora_targets: &["q", "v"],
        transposed: &[],
        prefix: "",
        heads: &[],
        load: t5::load_t5,
        outline: t5::outline_t5,
    },
    Architecture {
        model_type: "mt5",
        tasks: &["SEQ_2_SEQ_LM"],
        classes: &["MT5ForConditionalGeneration", "MT5Model"],
        lora_targets: &["q", "v"],
        transposed: &[],
        prefix: "",
        heads: &[],
        load: t5::load_mt5,
        outline: t5::outline_mt5,
    },
    Architecture {
        model_type: "bert",
        tasks: &["SEQ_CLS"],
        classes: &["BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining", "BertModel"],
        lora_targets: &["query", "value"],
        transposed: &[],
        prefix: "bert.",
        heads: &["classifier.", "cls."],
        load: bert::load_bert,
        outline: |config| bert::outline(config, bert_config::Family::Bert),
    },
    Architecture {
        model_type: "roberta",
        tasks: &["SEQ_CLS"],
        classes: &["RobertaForSequenceClassification", "RobertaForMaskedLM", "RobertaModel"],
        lora_targets: &["query", "value"],
        transposed: &[],
        prefix: "roberta.",
        heads: &["classifier.", "lm_head."],
        load: bert::load_roberta,
        outline: |config| bert::outline(config, bert_config::Family::Roberta),
    },
];

impl Architecture {
    /// The architecture of the `config.json` at `path`.
    pub fn of(config: &Value, path: &Path) -> Result<&'static Self> {
        let class = config.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str);
        let model_type = config.get("model_type").and_then(Value::as_str);
        let found = ARCHITECTURES.iter().find(|row| match model_type {
            Some(model_type) => row.model_type == model_type,
            None => class.is_some_and(|class| row.classes.contains(&class)),
        });
        match (found, class) {
            (Some(row), Some(class)) if !row.classes.contains(&class) => Err(Error::file(
                path,
                format!(
                    "a {class} is not supported; of {} models these are: {}",
                    row.model_type,
                    row.classes.join(", ")
                ),
            )),
            (Some(row), _) => Ok(row),
            (None, _) => {
                let known: Vec<&str> = ARCHITECTURES.iter().map(|row| row.model_type).collect();
                let name = model_type.or(class).unwrap_or("of no name (`model_type`)");
                Err(Error::file(
                    path,
                    format!(
                        "language models of the architecture {name} are not supported; these are: {}",
                        known.join(", ")
                    ),
                ))
            }
        }
    }

    /// Path of the head that it has as a classifier.
    pub fn classifier_head(&self) -> &'static str {
        match self.heads.contains(&"score.") {
            true => "score",
            false => "classifier",
        }
    }

    /// Whether `key`, as the model with its head has it, is of a head.
    pub fn is_of_head(&self, key: &str) -> bool {
        self.heads.iter().any(|head| key.starts_with(head))
    }

    /// A key as the model with its head has it.
    pub(super) fn spell(&self, key: &str) -> String {
        // BERT's first files name norms as TensorFlow did.
        let key = match key.rsplit_once('.') {
            Some((module, "gamma")) => format!("{module}.weight"),
            Some((module, "beta")) => format!("{module}.bias"),
            _ => key.to_owned(),
        };
        let is_whole = key.starts_with(self.prefix) || self.is_of_head(&key);
        match key.as_str() {
            // T5 has one table under three names.
            "encoder.embed_tokens.weight" | "decoder.embed_tokens.weight" if self.prefix.is_empty() => {
                "shared.weight".into()
            }
            _ if is_whole => key,
            _ => format!("{}{key}", self.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(config: Value) -> std::result::Result<&'static str, String> {
        Architecture::of(&config, Path::new("config.json")).map(|row| row.model_type).map_err(|error| error.to_string())
    }

    #[test]
    fn an_architecture_is_found_by_its_type_or_its_class() {
        assert_eq!(of(json!({ "model_type": "opt", "architectures": ["OPTForCausalLM"] })), Ok("opt"));
        assert_eq!(of(json!({ "architectures": ["BloomModel"] })), Ok("bloom"));
    }

    #[test]
    fn what_is_not_supported_is_told_with_what_is() {
        let unknown = of(json!({ "model_type": "mamba" })).unwrap_err();
        assert!(unknown.contains("mamba") && unknown.contains("gpt2, opt, bloom"), "{unknown}");
        let head = of(json!({ "model_type": "gpt2", "architectures": ["GPT2ForTokenClassification"] })).unwrap_err();
        assert!(head.contains("GPT2ForTokenClassification") && head.contains("GPT2LMHeadModel"), "{head}");
    }

    #[test]
    fn keys_of_base_models_become_those_of_whole_ones() {
        let spell = |model_type: &str, key: &str| {
            ARCHITECTURES.iter().find(|row| row.model_type == model_type).unwrap().spell(key)
        };
        assert_eq!(spell("gpt2", "h.0.ln_1.weight"), "transformer.h.0.ln_1.weight");
        assert_eq!(spell("opt", "decoder.layers.0.fc1.bias"), "model.decoder.layers.0.fc1.bias");
        assert_eq!(spell("opt", "lm_head.weight"), "lm_head.weight");
        assert_eq!(spell("bert", "bert.embeddings.LayerNorm.gamma"), "bert.embeddings.LayerNorm.weight");
        assert_eq!(spell("t5", "decoder.embed_tokens.weight"), "shared.weight");
    }
}
