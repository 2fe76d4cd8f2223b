//! The configurations of T5 and mT5, and in what the two differ.

use super::interface::TransformerShape;
use crate::models::config_file::{self, check_layers, check_sizes};
use crate::nn::Activation;
use serde::Deserialize;
use serde_json::{json, Value};

/// `config.json`; absent fields are transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct T5Config {
    pub(super) vocab_size: i64,
    pub(super) d_model: i64,
    pub(super) d_kv: i64,
    pub(super) d_ff: i64,
    pub(super) num_layers: i64,
    num_decoder_layers: Option<i64>,
    pub(super) num_heads: i64,
    pub(super) relative_attention_num_buckets: i64,
    pub(super) relative_attention_max_distance: i64,
    pub(super) layer_norm_epsilon: f64,
    feed_forward_proj: String,
    tie_word_embeddings: Option<bool>,
    scale_decoder_outputs: Option<bool>,
    pub(super) dropout_rate: f64,
    decoder_start_token_id: Option<i64>,
    pad_token_id: Option<i64>,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            tie_word_embeddings: None,
            scale_decoder_outputs: None,
            dropout_rate: 0.1,
            decoder_start_token_id: None,
            pad_token_id: Some(0),
        }
    }
}

/// The feed-forward of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct FeedForward {
    pub(super) activation: Activation,
    /// A second projection multiplies the first.
    pub(super) gated: bool,
}

/// transformers takes them for the fields' names too.
const ALIASES: &[(&str, &str)] = &[
    ("head_dim", "d_kv"),
    ("hidden_size", "d_model"),
    ("num_attention_heads", "num_heads"),
    ("num_hidden_layers", "num_layers"),
];

impl T5Config {
    /// The model's sizes.
    pub(super) fn shape(&self) -> TransformerShape {
        TransformerShape {
            blocks: self.decoder_layers(),
            heads: self.num_heads,
            key_value_heads: self.num_heads,
            head_width: self.d_kv,
            width: self.d_model,
            vocabulary: self.vocab_size,
            longest: None,
        }
    }

    /// T5's own.
    pub(super) fn t5(value: &Value) -> Result<Self, String> {
        Self::checked(&config_file::with_defaults(value, json!({}), ALIASES))
    }

    /// mT5's, whose outputs are never scaled.
    pub(super) fn mt5(value: &Value) -> Result<Self, String> {
        let defaults = json!({ "vocab_size": 250_112, "d_ff": 1024, "num_layers": 8, "num_heads": 6,
            "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0 });
        let config = Self::checked(&config_file::with_defaults(value, defaults, ALIASES))?;
        Ok(Self { scale_decoder_outputs: Some(false), ..config })
    }

    fn checked(value: &Value) -> Result<Self, String> {
        let fixed: &[(&str, &[&str])] = &[("is_encoder_decoder", &["true"]), ("is_decoder", &["false"])];
        let config: Self = config_file::parse(value, fixed)?;
        check_sizes(&[
            ("vocab_size", config.vocab_size),
            ("d_model", config.d_model),
            ("d_kv", config.d_kv),
            ("d_ff", config.d_ff),
            ("num_heads", config.num_heads),
            ("relative_attention_max_distance", config.relative_attention_max_distance),
        ])?;
        // An encoder halves the buckets, and half of those are for a distance each.
        if !(4..=1024).contains(&config.relative_attention_num_buckets) {
            let message = "`relative_attention_num_buckets` is {}; it must be 4 to 1024";
            return Err(message.replace("{}", &config.relative_attention_num_buckets.to_string()));
        }
        check_layers("num_layers", config.num_layers)?;
        check_layers("num_decoder_layers", config.decoder_layers())?;
        config.feed_forward()?;
        Ok(config)
    }

    /// Blocks of the decoder.
    pub(super) fn decoder_layers(&self) -> i64 {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    /// `feed_forward_proj` taken apart.
    pub(super) fn feed_forward(&self) -> Result<FeedForward, String> {
        let name = self.feed_forward_proj.as_str();
        let (gated, activation) = name.strip_prefix("gated-").map_or((false, name), |activation| (true, activation));
        // T5 v1.1 was trained with the approximation, and its configuration has always said otherwise.
        let activation = if name == "gated-gelu" { "gelu_new" } else { activation };
        match Activation::deserialize(Value::String(activation.to_owned())) {
            Ok(activation) => Ok(FeedForward { activation, gated }),
            Err(_) => Err(format!("`feed_forward_proj` is {name}, which is not supported")),
        }
    }

    /// What the decoder's output is multiplied by: models that were trained with one table for both ends scale it.
    pub(super) fn output_scale(&self) -> Option<f64> {
        let scaled = self.scale_decoder_outputs.unwrap_or(self.ties_embeddings());
        scaled.then(|| (self.d_model as f64).powf(-0.5))
    }

    /// Whether the table of embeddings makes the logits too.
    pub(super) fn ties_embeddings(&self) -> bool {
        self.tie_word_embeddings != Some(false)
    }

    /// The token that a text which is written starts with.
    pub(super) fn start_token(&self) -> i64 {
        self.decoder_start_token_id.or(self.pad_token_id).unwrap_or(0)
    }
}
