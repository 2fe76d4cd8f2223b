//! The configurations of LLaMA, Mistral and Qwen2, and in what the three differ.

use super::interface::TransformerShape;
use super::rope::{Rope, RopeContext, RopeParameters};
use crate::models::config_file::{self, check_layers, check_sizes};
use crate::nn::{Activation, Bias};
use serde::Deserialize;
use serde_json::{json, Value};
use tch::Device;

/// Which of the three a model is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Family {
    #[default]
    Llama,
    Mistral,
    Qwen2,
}

impl Family {
    /// transformers' defaults where they are not LLaMA's.
    fn defaults(self) -> Value {
        match self {
            Self::Llama => json!({}),
            Self::Mistral => json!({ "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096,
                "max_position_embeddings": 131_072 }),
            Self::Qwen2 => json!({ "vocab_size": 151_936, "intermediate_size": 22016, "sliding_window": 4096,
                "max_position_embeddings": 32768 }),
        }
    }
}

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct LlamaConfig {
    #[serde(skip)]
    family: Family,
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) num_hidden_layers: i64,
    pub(super) num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    pub(super) hidden_act: Activation,
    pub(super) max_position_embeddings: i64,
    pub(super) rms_norm_eps: f64,
    pub(super) tie_word_embeddings: bool,
    attention_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) attention_dropout: f64,
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<RopeParameters>,
    rope_theta: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    sliding_window: Option<i64>,
    use_sliding_window: bool,
    max_window_layers: i64,
    layer_types: Option<Vec<String>>,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            attention_dropout: 0.0,
            rope_parameters: None,
            rope_scaling: None,
            rope_theta: None,
            original_max_position_embeddings: None,
            sliding_window: None,
            use_sliding_window: false,
            max_window_layers: 28,
            layer_types: None,
        }
    }
}

impl LlamaConfig {
    /// The model's sizes.
    pub(super) fn shape(&self) -> TransformerShape {
        TransformerShape {
            blocks: self.num_hidden_layers,
            heads: self.num_attention_heads,
            key_value_heads: self.key_value_heads(),
            head_width: self.head_width(),
            width: self.hidden_size,
            vocabulary: self.vocab_size,
            longest: None,
        }
    }

    /// Reads the fields of `value`; absent ones are transformers' defaults.
    pub(super) fn new(value: &Value, family: Family) -> Result<Self, String> {
        let fields = config_file::with_defaults(value, family.defaults(), &[]);
        let config = Self { family, ..config_file::parse(&fields, &[])? };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let (heads, groups) = (self.num_attention_heads, self.key_value_heads());
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", heads),
            ("num_key_value_heads", groups),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_width()),
            ("sliding_window", self.window().unwrap_or(1)),
        ])?;
        check_layers("num_hidden_layers", self.num_hidden_layers)?;
        if heads % groups != 0 {
            return Err(format!(
                "{heads} heads cannot share {groups} heads of keys and values (`num_key_value_heads`)"
            ));
        }
        let Some(types) = self.layer_types.as_ref().filter(|_| self.family == Family::Qwen2) else { return Ok(()) };
        if types.len() as i64 != self.num_hidden_layers {
            return Err("`layer_types` must have an entry for each layer".to_owned());
        }
        match types.iter().find(|kind| !["full_attention", "sliding_attention"].contains(&kind.as_str())) {
            Some(kind) => Err(format!("`layer_types` has {kind}, which is not supported")),
            None => Ok(()),
        }
    }

    /// Heads of keys and values.
    pub(super) fn key_value_heads(&self) -> i64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of a head.
    pub(super) fn head_width(&self) -> i64 {
        // Qwen2's configuration has no `head_dim`, and its model looks at none that is null.
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Biases of the projections to queries, keys and values, and of the one of their output.
    pub(super) fn attention_biases(&self) -> (Bias, Bias) {
        match self.family {
            Family::Llama if self.attention_bias => (Bias::Yes, Bias::Yes),
            Family::Llama | Family::Mistral => (Bias::No, Bias::No),
            Family::Qwen2 => (Bias::Yes, Bias::No),
        }
    }

    /// How many tokens a query sees in the layers that have a window.
    pub(super) fn window(&self) -> Option<i64> {
        match self.family {
            Family::Llama => None,
            Family::Mistral => self.sliding_window,
            Family::Qwen2 => self.sliding_window.filter(|_| self.use_sliding_window),
        }
    }

    /// Whether the layer number `index` has one.
    pub(super) fn has_window(&self, index: i64) -> bool {
        match (self.family, &self.layer_types) {
            (Family::Llama, _) => false,
            (Family::Mistral, _) => true,
            (Family::Qwen2, Some(types)) => types.get(index as usize).is_some_and(|kind| kind == "sliding_attention"),
            (Family::Qwen2, None) => index >= self.max_window_layers,
        }
    }

    /// Its rotary positions.
    pub(super) fn rope(&self, device: Device) -> Result<Rope, String> {
        let context = RopeContext {
            theta: self.rope_theta,
            original_length: self.original_max_position_embeddings,
            max_length: self.max_position_embeddings,
            head_width: self.head_width(),
        };
        let parameters = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref()).cloned().unwrap_or_default();
        Rope::new(&parameters, context, device)
    }
}
