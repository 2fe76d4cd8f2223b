//! BLOOM: a decoder without positions, whose attention favours near keys (ALiBi), and whose embeddings are normed.
//! Paper: arXiv 2211.05100. Reference: transformers `modeling_bloom.py`.
//!
//! Shapes: b batch, t length, p what is in the cache, d width, h heads, w width of a head.

use super::architectures::Build;
use super::blocks::{self, Block};
use super::interface::{CausalLm, DecoderInputs, LanguageModel, TransformerShape};
use super::outline::{HeadOutline, Outline};
use crate::error::Result;
use crate::models::config_file::{self, check_heads, check_layers, check_sizes};
use crate::nn::{
    attend_heads, Activation, Alibi, Attending, AttentionMask, Bias, BlockCache, Dropout, Embedding, LayerNorm, Linear,
    Loader,
};
use serde::Deserialize;
use serde_json::{json, Value};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// `config.json`; absent fields are transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: i64,
    hidden_size: i64,
    n_layer: i64,
    n_head: i64,
    layer_norm_epsilon: f64,
    apply_residual_connection_post_layernorm: bool,
    tie_word_embeddings: bool,
    hidden_dropout: f64,
    attention_dropout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 250_880,
            hidden_size: 64,
            n_layer: 2,
            n_head: 8,
            layer_norm_epsilon: 1e-5,
            apply_residual_connection_post_layernorm: false,
            tie_word_embeddings: true,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
        }
    }
}

impl Config {
    /// The model's sizes.
    fn shape(&self) -> TransformerShape {
        let (width, heads) = (self.hidden_size, self.n_head);
        TransformerShape {
            blocks: self.n_layer,
            heads,
            key_value_heads: heads,
            head_width: width / heads,
            width,
            vocabulary: self.vocab_size,
            longest: None,
        }
    }

    fn new(value: &Value) -> std::result::Result<Self, String> {
        let config: Self = config_file::parse(&config_file::with_defaults(value, json!({}), ALIASES), &[])?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_sizes(&[("vocab_size", self.vocab_size)])?;
        check_heads("hidden_size", self.hidden_size, "n_head", self.n_head)?;
        check_layers("n_layer", self.n_layer)
    }
}

/// Names of the fields that the published models have.
const ALIASES: &[(&str, &str)] =
    &[("n_embed", "hidden_size"), ("num_attention_heads", "n_head"), ("num_hidden_layers", "n_layer")];

/// Loads the model of the configuration in `build`.
pub(super) fn load(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    let config = Config::new(build.config).map_err(|e| build.refuse(e))?;
    Ok(build.decoder(Bloom::load(loader, config, build)?))
}

/// What the model of a configuration is made of.
pub(super) fn outline(config: &Value) -> std::result::Result<Outline, String> {
    let config = Config::new(config)?;
    Ok(Outline {
        table: "transformer.word_embeddings".into(),
        readers: Vec::new(),
        embedding_width: config.hidden_size,
        shape: config.shape(),
        encoder_blocks: None,
        head: HeadOutline::Tokens { path: "lm_head".into(), tied: config.tie_word_embeddings },
        made_for: None,
    })
}

struct Bloom {
    word_embeddings: Embedding,
    word_embeddings_layernorm: LayerNorm,
    h: Vec<Rc<BloomBlock>>,
    ln_f: LayerNorm,
    lm_head: Linear,
    alibi: Alibi,
    config: Config,
}

impl Bloom {
    fn load(loader: &Loader, config: Config, build: &Build) -> Result<Self> {
        let transformer = loader / "transformer";
        let blocks = &transformer / "h";
        let (width, eps) = (config.hidden_size, config.layer_norm_epsilon);
        let word_embeddings = Embedding::load(&(&transformer / "word_embeddings"), config.vocab_size, width)?;
        let tied = config.tie_word_embeddings.then_some(&word_embeddings);
        Ok(Self {
            word_embeddings_layernorm: LayerNorm::load(&(&transformer / "word_embeddings_layernorm"), width, eps)?,
            h: (0..config.n_layer)
                .map(|i| BloomBlock::load(&(&blocks / i), &config).map(Rc::new))
                .collect::<Result<_>>()?,
            ln_f: LayerNorm::load(&(&transformer / "ln_f"), width, eps)?,
            lm_head: build.head(loader, width, config.vocab_size, tied)?,
            alibi: Alibi::new(config.n_head, loader.placement().device),
            word_embeddings,
            config,
        })
    }

    /// The positions of all keys: `[b or 1, p + t]`
    fn key_positions(inputs: &DecoderInputs) -> Tensor {
        let all = inputs.past() + inputs.tokens.length();
        let device = inputs.tokens.device();
        inputs.counted_positions(0).unwrap_or_else(|| Tensor::arange(all, (Kind::Int64, device)).unsqueeze(0))
    }
}

impl CausalLm for Bloom {
    fn shape(&self) -> TransformerShape {
        self.config.shape()
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        self.word_embeddings.forward(ids)
    }

    fn forward(&self, inputs: DecoderInputs) -> Tensor {
        let xs = self.word_embeddings_layernorm.forward(&inputs.tokens.embedded(&self.word_embeddings));
        let bias = self.alibi.bias(&Self::key_positions(&inputs), xs.kind()); // [b or 1, h, 1, p + t]
        let mask = match inputs.causal_mask(None).with_bias(&bias, inputs.tokens.length()) {
            // With padding on the left the first token is predicted from a query that sees nothing.
            AttentionMask::Tensor(mask) if inputs.attention_mask.is_some() => AttentionMask::Whole(mask),
            mask => mask,
        };
        let xs = blocks::run(&self.h, xs, &mask, inputs.cache, inputs.checkpointing);
        self.ln_f.forward(&xs)
    }

    fn logits(&self, hidden: &Tensor) -> Tensor {
        self.lm_head.forward(hidden)
    }
}

struct BloomBlock {
    input_layernorm: LayerNorm,
    self_attention: Attention,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
    dropout: Dropout,
    /// What is added to a part's output is its normed input, not the input itself.
    residual_is_normed: bool,
}

impl BloomBlock {
    fn load(loader: &Loader, config: &Config) -> Result<Self> {
        let (width, eps) = (config.hidden_size, config.layer_norm_epsilon);
        Ok(Self {
            input_layernorm: LayerNorm::load(&(loader / "input_layernorm"), width, eps)?,
            self_attention: Attention::load(&(loader / "self_attention"), config)?,
            post_attention_layernorm: LayerNorm::load(&(loader / "post_attention_layernorm"), width, eps)?,
            mlp: Mlp::load(&(loader / "mlp"), width)?,
            dropout: Dropout::new(loader, config.hidden_dropout),
            residual_is_normed: config.apply_residual_connection_post_layernorm,
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn residual(&self, norm: &LayerNorm, xs: &Tensor, inner: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        let normed = norm.forward(xs);
        let residual = if self.residual_is_normed { &normed } else { xs };
        residual + self.dropout.forward(inner(&normed))
    }
}

impl Block for BloomBlock {
    type Shared = AttentionMask;

    fn forward(&self, xs: &Tensor, mask: &AttentionMask, cache: Option<&mut BlockCache>) -> Tensor {
        let xs = self.residual(&self.input_layernorm, xs, |xs| self.self_attention.forward(xs, mask, cache));
        self.residual(&self.post_attention_layernorm, &xs, |xs| self.mlp.forward(xs))
    }
}

struct Attention {
    query_key_value: Linear,
    dense: Linear,
    dropout: Dropout,
    heads: i64,
    head_width: i64,
}

impl Attention {
    fn load(loader: &Loader, config: &Config) -> Result<Self> {
        let (width, heads) = (config.hidden_size, config.n_head);
        Ok(Self {
            query_key_value: Linear::load(&(loader / "query_key_value"), width, 3 * width, Bias::Yes)?,
            dense: Linear::load(&(loader / "dense"), width, width, Bias::Yes)?,
            dropout: Dropout::new(loader, config.attention_dropout),
            heads,
            head_width: width / heads,
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor, mask: &AttentionMask, cache: Option<&mut BlockCache>) -> Tensor {
        let (batch, length) = (xs.size()[0], xs.size()[1]);
        let fused = self.query_key_value.forward(xs).view([batch, length, self.heads, 3, self.head_width]);
        let part = |index: i64| fused.select(3, index).transpose(1, 2); // [b, h, t, w]
        let (q, mut k, mut v) = (part(0), part(1), part(2));
        if let Some(cache) = cache {
            (k, v) = cache.text.extend(k, v);
        }
        let scale = (self.head_width as f64).sqrt().recip();
        self.dense.forward(&attend_heads(&q, &k, &v, Attending { mask, scale, dropout: self.dropout.rate() }))
    }
}

struct Mlp {
    dense_h_to_4h: Linear,
    dense_4h_to_h: Linear,
}

impl Mlp {
    fn load(loader: &Loader, width: i64) -> Result<Self> {
        Ok(Self {
            dense_h_to_4h: Linear::load(&(loader / "dense_h_to_4h"), width, 4 * width, Bias::Yes)?,
            dense_4h_to_h: Linear::load(&(loader / "dense_4h_to_h"), 4 * width, width, Bias::Yes)?,
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor) -> Tensor {
        self.dense_4h_to_h.forward(&Activation::GeluNew.forward(&self.dense_h_to_4h.forward(xs)))
    }
}
