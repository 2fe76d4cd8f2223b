//! BERT and RoBERTa as classifiers of texts: an encoder that sees both sides, and a head on its first token.
//! Papers: arXiv 1810.04805, 1907.11692. Reference: transformers `modeling_bert.py`, `modeling_roberta.py`
//! (`…ForSequenceClassification`).
//!
//! Shapes: b batch, t length, d width.

use super::architectures::Build;
use super::bert_config::{BertConfig, Family};
use super::bert_layer::BertLayer;
use super::blocks;
use super::interface::{ClassifierInputs, LanguageModel, SequenceClassifier, Tokens, TransformerShape};
use super::outline::{HeadOutline, Outline};
use crate::error::Result;
use crate::libtorch::random::Generator;
use crate::models::config_file::check_sizes;
use crate::nn::{AttentionMask, Bias, Dropout, Embedding, LayerNorm, Linear, Loader};
use serde_json::Value;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Loads a BERT.
pub(super) fn load_bert(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, build, Family::Bert)
}

/// Loads a RoBERTa.
pub(super) fn load_roberta(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, build, Family::Roberta)
}

fn load(loader: &Loader, build: &Build, family: Family) -> Result<LanguageModel> {
    let config = BertConfig::new(build.config, family).map_err(|e| build.refuse(e))?;
    Ok(LanguageModel::Classifier(Box::new(Classifier::load(loader, &config, build)?)))
}

/// What the model of a configuration is made of.
pub(super) fn outline(config: &Value, family: Family) -> std::result::Result<Outline, String> {
    let config = BertConfig::new(config, family)?;
    Ok(Outline {
        table: format!("{}.embeddings.word_embeddings", root(family)),
        readers: Vec::new(),
        embedding_width: config.hidden_size,
        shape: config.shape(),
        encoder_blocks: None,
        head: HeadOutline::Classes(<[&str; 2]>::from(head_paths(family)).map(str::to_owned).into()),
        made_for: None,
    })
}

/// Paths of the head's two projections.
fn head_paths(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::Bert => ("bert.pooler.dense", "classifier"),
        Family::Roberta => ("classifier.dense", "classifier.out_proj"),
    }
}

/// What the keys of the encoder start with.
fn root(family: Family) -> &'static str {
    match family {
        Family::Bert => "bert",
        Family::Roberta => "roberta",
    }
}

struct Classifier {
    embeddings: Embeddings,
    layer: Vec<Rc<BertLayer>>,
    head: Head,
    labels: i64,
    shape: TransformerShape,
}

impl Classifier {
    fn load(loader: &Loader, config: &BertConfig, build: &Build) -> Result<Self> {
        let encoder = loader / root(config.family);
        let layers = &encoder / "encoder.layer";
        let labels = build.labels();
        check_sizes(&[("the number of labels", labels)]).map_err(|e| build.refuse(e))?;
        Ok(Self {
            embeddings: Embeddings::load(&(&encoder / "embeddings"), config)?,
            layer: (0..config.num_hidden_layers)
                .map(|i| BertLayer::load(&(&layers / i), config).map(Rc::new))
                .collect::<Result<_>>()?,
            head: Head::load(loader, config, build, labels)?,
            labels,
            shape: config.shape(),
        })
    }
}

impl SequenceClassifier for Classifier {
    fn shape(&self) -> TransformerShape {
        self.shape
    }

    fn labels(&self) -> i64 {
        self.labels
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        self.embeddings.word_embeddings.forward(ids)
    }

    fn classify(&self, inputs: ClassifierInputs) -> Tensor {
        let xs = self.embeddings.forward(&inputs);
        let mask = AttentionMask::of_tokens(inputs.attention_mask);
        let xs = blocks::run(&self.layer, xs, &mask, inputs.cache, inputs.checkpointing);
        self.head.forward(&xs.select(1, 0))
    }
}

struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
    dropout: Dropout,
    /// The position that RoBERTa counts tokens from that are not padding.
    padding: Option<i64>,
}

impl Embeddings {
    fn load(loader: &Loader, config: &BertConfig) -> Result<Self> {
        let width = config.hidden_size;
        let table = |name: &str, rows: i64| Embedding::load(&(loader / name), rows, width);
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size)?,
            layer_norm: LayerNorm::load(&(loader / "LayerNorm"), width, config.layer_norm_eps)?,
            dropout: Dropout::new(loader, config.hidden_dropout_prob),
            padding: config.padding(),
        })
    }

    /// `[b, t, d]`
    fn forward(&self, inputs: &ClassifierInputs) -> Tensor {
        let types = match inputs.token_type_ids {
            Some(ids) => self.token_type_embeddings.forward(ids),
            None => self.token_type_embeddings.first(1),
        };
        let xs = inputs.tokens.embedded(&self.word_embeddings) + types;
        let xs = xs + self.position_embeddings.forward(&self.positions(inputs.tokens, inputs.past()));
        self.dropout.forward(self.layer_norm.forward(&xs))
    }

    /// `[b or 1, t]`, behind `past` others
    fn positions(&self, tokens: Tokens, past: i64) -> Tensor {
        let options = (Kind::Int64, tokens.device());
        let counted = Tensor::arange_start(past, past + tokens.length(), options).unsqueeze(0);
        match (self.padding, tokens) {
            (None, _) => counted,
            (Some(padding), Tokens::Embeddings(_)) => counted + (padding + 1),
            (Some(padding), Tokens::Ids(ids)) => {
                let mask = ids.ne(padding).to_kind(Kind::Int64);
                (mask.cumsum(1, Kind::Int64) + past) * mask + padding
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
    /// Loads the head.
    fn load(loader: &Loader, config: &BertConfig, build: &Build, labels: i64) -> Result<Self> {
        let (dense, out_proj) = head_paths(config.family);
        let width = config.hidden_size;
        let mut generator = Generator::new(build.seed);
        let mut project =
            |at: &Loader, outputs: i64| build.class_projection(at, width, outputs, Bias::Yes, &mut generator);
        Ok(Self {
            dense: project(&(loader / dense), width)?,
            out_proj: project(&(loader / out_proj), labels)?,
            dropout: Dropout::new(loader, config.head_dropout()),
            drops_input: config.family == Family::Roberta,
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
