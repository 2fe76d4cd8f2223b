//! The configurations of BERT and RoBERTa, and in what the two differ.

use super::interface::TransformerShape;
use crate::models::config_file::{self, check_heads, check_layers, check_sizes};
use crate::nn::Activation;
use serde::Deserialize;
use serde_json::{json, Value};

/// Which of the two a model is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Family {
    #[default]
    Bert,
    Roberta,
}

/// `config.json`; absent fields are transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct BertConfig {
    #[serde(skip)]
    pub(super) family: Family,
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    pub(super) num_hidden_layers: i64,
    pub(super) num_attention_heads: i64,
    pub(super) intermediate_size: i64,
    pub(super) hidden_act: Activation,
    pub(super) hidden_dropout_prob: f64,
    pub(super) attention_probs_dropout_prob: f64,
    classifier_dropout: Option<f64>,
    pub(super) max_position_embeddings: i64,
    pub(super) type_vocab_size: i64,
    pub(super) layer_norm_eps: f64,
    pad_token_id: Option<i64>,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            family: Family::Bert,
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
            pad_token_id: None,
        }
    }
}

const FIXED: &[(&str, &[&str])] =
    &[("position_embedding_type", &["absolute"]), ("is_decoder", &["false"]), ("add_cross_attention", &["false"])];

impl BertConfig {
    /// Reads the fields of `value`.
    pub(super) fn new(value: &Value, family: Family) -> Result<Self, String> {
        let defaults = match family {
            Family::Bert => json!({}),
            Family::Roberta => json!({ "vocab_size": 50265 }),
        };
        let fields = config_file::with_defaults(value, defaults, &[]);
        let config = Self { family, ..config_file::parse(&fields, FIXED)? };
        check_sizes(&[
            ("vocab_size", config.vocab_size),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.max_position_embeddings),
            ("type_vocab_size", config.type_vocab_size),
        ])?;
        check_heads("hidden_size", config.hidden_size, "num_attention_heads", config.num_attention_heads)?;
        check_layers("num_hidden_layers", config.num_hidden_layers)?;
        match config.longest() {
            1.. => Ok(config),
            _ => Err("`max_position_embeddings` leaves no position besides padding's (`pad_token_id`)".to_owned()),
        }
    }

    /// RoBERTa's position of padding; those of tokens are the ones after it.
    pub(super) fn padding(&self) -> Option<i64> {
        match self.family {
            Family::Bert => None,
            Family::Roberta => Some(self.pad_token_id.unwrap_or(1)),
        }
    }

    /// Most tokens that there are positions for.
    pub(super) fn longest(&self) -> i64 {
        self.max_position_embeddings - self.padding().map_or(0, |padding| padding.saturating_add(1))
    }

    /// The sizes of the encoder.
    pub(super) fn shape(&self) -> TransformerShape {
        TransformerShape {
            blocks: self.num_hidden_layers,
            heads: self.num_attention_heads,
            key_value_heads: self.num_attention_heads,
            head_width: self.hidden_size / self.num_attention_heads,
            width: self.hidden_size,
            vocabulary: self.vocab_size,
            longest: Some(self.longest()),
        }
    }

    /// Dropout in the head.
    pub(super) fn head_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }
}
