//! BERT and RoBERTa as classifiers of texts: an encoder that sees both sides, and a head on its first token.
//! Papers: arXiv 1810.04805, 1907.11692. Reference: transformers `modeling_bert.py`, `modeling_roberta.py`
//! (`…ForSequenceClassification`).
//!
//! Shapes: b batch, t length, d width.

use super::architectures::Build;
use super::bert_layer::BertLayer;
use super::blocks;
use super::interface::{ClassifierInputs, LanguageModel, SequenceClassifier, Tokens};
use crate::error::Result;
use crate::libtorch::random::Generator;
use crate::models::config_file::{self, check_heads, check_layers, check_sizes};
use crate::nn::{Activation, AttentionMask, Bias, Dropout, Embedding, LayerNorm, Linear, Loader};
use serde::Deserialize;
use serde_json::{json, Map, Value};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// `config.json`; absent fields are transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct BertConfig {
    vocab_size: i64,
    pub(super) hidden_size: i64,
    num_hidden_layers: i64,
    pub(super) num_attention_heads: i64,
    pub(super) intermediate_size: i64,
    pub(super) hidden_act: Activation,
    pub(super) hidden_dropout_prob: f64,
    pub(super) attention_probs_dropout_prob: f64,
    classifier_dropout: Option<f64>,
    max_position_embeddings: i64,
    type_vocab_size: i64,
    pub(super) layer_norm_eps: f64,
    initializer_range: f64,
    pad_token_id: i64,
    id2label: Map<String, Value>,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            initializer_range: 0.02,
            pad_token_id: 0,
            id2label: Map::from_iter([("0".to_owned(), json!("LABEL_0")), ("1".to_owned(), json!("LABEL_1"))]),
        }
    }
}

const FIXED: &[(&str, &[&str])] =
    &[("position_embedding_type", &["absolute"]), ("is_decoder", &["false"]), ("add_cross_attention", &["false"])];

impl BertConfig {
    fn new(build: &Build, family: Family) -> Result<Self> {
        let mut fields = match family {
            Family::Bert => json!({}),
            Family::Roberta => json!({ "vocab_size": 50265, "pad_token_id": 1 }),
        };
        if let (Some(all), Some(given)) = (fields.as_object_mut(), build.config.as_object()) {
            let given = given.iter().filter(|(_, field)| !field.is_null());
            all.extend(given.map(|(name, field)| (name.clone(), field.clone())));
        }
        let config: Self = config_file::parse(&fields, FIXED).map_err(|e| build.refuse(e))?;
        config.check().map_err(|e| build.refuse(e))?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ])?;
        check_heads("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)?;
        check_layers("num_hidden_layers", self.num_hidden_layers)
    }
}

/// Which of the two a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Bert,
    Roberta,
}

impl Family {
    /// What the keys of the encoder start with.
    fn root(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
        }
    }
}

/// Loads a BERT.
pub(super) fn load_bert(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, build, Family::Bert)
}

/// Loads a RoBERTa.
pub(super) fn load_roberta(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, build, Family::Roberta)
}

fn load(loader: &Loader, build: &Build, family: Family) -> Result<LanguageModel> {
    let config = BertConfig::new(build, family)?;
    Ok(LanguageModel::Classifier(Box::new(Classifier::load(loader, &config, build, family)?)))
}

struct Classifier {
    embeddings: Embeddings,
    layer: Vec<Rc<BertLayer>>,
    head: Head,
    labels: i64,
}

impl Classifier {
    fn load(loader: &Loader, config: &BertConfig, build: &Build, family: Family) -> Result<Self> {
        let encoder = loader / family.root();
        let layers = &encoder / "encoder.layer";
        let labels = build.labels.unwrap_or(config.id2label.len() as i64);
        check_sizes(&[("the number of labels", labels)]).map_err(|e| build.refuse(e))?;
        Ok(Self {
            embeddings: Embeddings::load(&(&encoder / "embeddings"), config, family)?,
            layer: (0..config.num_hidden_layers)
                .map(|i| BertLayer::load(&(&layers / i), config).map(Rc::new))
                .collect::<Result<_>>()?,
            head: Head::load(loader, config, build, family, labels)?,
            labels,
        })
    }
}

impl SequenceClassifier for Classifier {
    fn labels(&self) -> i64 {
        self.labels
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        self.embeddings.word_embeddings.forward(ids)
    }

    fn classify(&self, inputs: ClassifierInputs) -> Tensor {
        let xs = self.embeddings.forward(inputs);
        let mask = AttentionMask::of_tokens(inputs.attention_mask);
        let xs = blocks::run(&self.layer, xs, &mask, None, inputs.checkpointing);
        self.head.forward(&xs.select(1, 0))
    }
}

struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
    dropout: Dropout,
    /// RoBERTa counts tokens that are not padding, from the number after this on.
    padding: Option<i64>,
}

impl Embeddings {
    fn load(loader: &Loader, config: &BertConfig, family: Family) -> Result<Self> {
        let width = config.hidden_size;
        let table = |name: &str, rows: i64| Embedding::load(&(loader / name), rows, width);
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size)?,
            layer_norm: LayerNorm::load(&(loader / "LayerNorm"), width, config.layer_norm_eps)?,
            dropout: Dropout::new(loader, config.hidden_dropout_prob),
            padding: (family == Family::Roberta).then_some(config.pad_token_id),
        })
    }

    /// `[b, t, d]`
    fn forward(&self, inputs: ClassifierInputs) -> Tensor {
        let types = match inputs.token_type_ids {
            Some(ids) => self.token_type_embeddings.forward(ids),
            None => self.token_type_embeddings.first(1),
        };
        let xs = inputs.tokens.embedded(&self.word_embeddings) + types;
        let xs = xs + self.position_embeddings.forward(&self.positions(inputs.tokens));
        self.dropout.forward(self.layer_norm.forward(&xs))
    }

    /// `[b or 1, t]`
    fn positions(&self, tokens: Tokens) -> Tensor {
        let counted = Tensor::arange(tokens.length(), (Kind::Int64, tokens.device())).unsqueeze(0);
        match (self.padding, tokens) {
            (None, _) => counted,
            (Some(padding), Tokens::Embeddings(_)) => counted + (padding + 1),
            (Some(padding), Tokens::Ids(ids)) => {
                let mask = ids.ne(padding).to_kind(Kind::Int64);
                mask.cumsum(1, Kind::Int64) * mask + padding
            }
        }
    }
}

/// Two projections with a tanh between them. BERT calls the first its pooler and trains it with the encoder.
struct Head {
    dense: Linear,
    out_proj: Linear,
    dropout: Dropout,
    /// RoBERTa drops out before the first projection too.
    drops_input: bool,
}

impl Head {
    /// Loads the head. Where a number of labels was asked for, what the files lack of it is drawn as transformers draws it.
    fn load(loader: &Loader, config: &BertConfig, build: &Build, family: Family, labels: i64) -> Result<Self> {
        let (dense, out_proj) = match family {
            Family::Bert => (loader / "bert.pooler.dense", loader / "classifier"),
            Family::Roberta => (loader / "classifier.dense", loader / "classifier.out_proj"),
        };
        let width = config.hidden_size;
        let mut generator = Generator::new(build.seed);
        let mut project = |at: &Loader, outputs: i64| {
            let is_there = at.shape("weight").is_some_and(|shape| shape == [outputs, width]);
            match build.labels.is_some() && !is_there {
                true => Ok(Linear::draw(at, width, outputs, config.initializer_range, &mut generator)),
                false => Linear::load(at, width, outputs, Bias::Yes),
            }
        };
        Ok(Self {
            dense: project(&dense, width)?,
            out_proj: project(&out_proj, labels)?,
            dropout: Dropout::new(loader, config.classifier_dropout.unwrap_or(config.hidden_dropout_prob)),
            drops_input: family == Family::Roberta,
        })
    }

    /// `[b, d] -> [b, labels]`
    fn forward(&self, first: &Tensor) -> Tensor {
        let mut xs = first.shallow_clone();
        if self.drops_input {
            xs = self.dropout.forward(xs);
        }
        self.out_proj.forward(&self.dropout.forward(self.dense.forward(&xs).tanh()))
    }
}
