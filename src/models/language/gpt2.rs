//! GPT-2: a decoder with learned positions.
//! Paper: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019). Reference: transformers
//! `modeling_gpt2.py`.
//!
//! Shapes: b batch, t length, d width, h heads.

use super::architectures::Build;
use super::blocks::{self, Block};
use super::interface::{CausalLm, DecoderInputs, LanguageModel, TransformerShape};
use super::outline::{HeadOutline, Outline};
use crate::error::Result;
use crate::models::config_file::{self, check_heads, check_layers, check_sizes};
use crate::nn::{
    attend_heads, split_heads, Activation, Attending, AttentionMask, BlockCache, Dropout, Embedding, LayerNorm, Linear,
    Loader,
};
use serde::Deserialize;
use serde_json::{json, Value};
use std::rc::Rc;
use tch::Tensor;

/// `config.json`; absent fields are transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: i64,
    n_positions: i64,
    n_embd: i64,
    n_layer: i64,
    n_head: i64,
    n_inner: Option<i64>,
    activation_function: Activation,
    layer_norm_epsilon: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    tie_word_embeddings: bool,
    resid_pdrop: f64,
    embd_pdrop: f64,
    attn_pdrop: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluNew,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
        }
    }
}

impl Config {
    /// The model's sizes.
    fn shape(&self) -> TransformerShape {
        let Config { n_embd: width, n_head: heads, .. } = *self;
        TransformerShape {
            blocks: self.n_layer,
            heads,
            key_value_heads: heads,
            head_width: width / heads,
            width,
            vocabulary: self.vocab_size,
            longest: Some(self.n_positions),
        }
    }

    fn new(value: &Value) -> std::result::Result<Self, String> {
        let fixed: &[(&str, &[&str])] = &[("add_cross_attention", &["false"])];
        let config: Self = config_file::parse(&config_file::with_defaults(value, json!({}), ALIASES), fixed)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_inner", self.inner()),
        ])?;
        check_heads("n_embd", self.n_embd, "n_head", self.n_head)?;
        check_layers("n_layer", self.n_layer)
    }

    fn inner(&self) -> i64 {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }
}

/// transformers takes them for the fields' names too.
const ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
];

/// Loads the model of the configuration in `build`.
pub(super) fn load(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    let config = Config::new(build.config).map_err(|e| build.refuse(e))?;
    Ok(build.decoder(Gpt2::load(loader, config, build)?))
}

/// What the model of a configuration is made of.
pub(super) fn outline(config: &Value) -> std::result::Result<Outline, String> {
    let config = Config::new(config)?;
    Ok(Outline {
        table: "transformer.wte".into(),
        readers: Vec::new(),
        embedding_width: config.n_embd,
        shape: config.shape(),
        encoder_blocks: None,
        head: HeadOutline::Tokens { path: "lm_head".into(), tied: config.tie_word_embeddings },
        made_for: None,
    })
}

struct Gpt2 {
    wte: Embedding,
    wpe: Embedding,
    drop: Dropout,
    h: Vec<Rc<Gpt2Block>>,
    ln_f: LayerNorm,
    lm_head: Linear,
    config: Config,
}

impl Gpt2 {
    fn load(loader: &Loader, config: Config, build: &Build) -> Result<Self> {
        let transformer = loader / "transformer";
        let blocks = &transformer / "h";
        let width = config.n_embd;
        let wte = Embedding::load(&(&transformer / "wte"), config.vocab_size, width)?;
        let tied = config.tie_word_embeddings.then_some(&wte);
        Ok(Self {
            wpe: Embedding::load(&(&transformer / "wpe"), config.n_positions, width)?,
            drop: Dropout::new(loader, config.embd_pdrop),
            h: (0..config.n_layer)
                .map(|i| Gpt2Block::load(&(&blocks / i), &config, i).map(Rc::new))
                .collect::<Result<_>>()?,
            ln_f: LayerNorm::load(&(&transformer / "ln_f"), width, config.layer_norm_epsilon)?,
            lm_head: build.head(loader, width, config.vocab_size, tied)?,
            wte,
            config,
        })
    }
}

impl CausalLm for Gpt2 {
    fn shape(&self) -> TransformerShape {
        self.config.shape()
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        self.wte.forward(ids)
    }

    fn forward(&self, inputs: DecoderInputs) -> Tensor {
        let xs = inputs.tokens.embedded(&self.wte) + self.wpe.forward(&inputs.positions());
        let mask = inputs.causal_mask(None);
        let xs = blocks::run(&self.h, self.drop.forward(xs), &mask, inputs.cache, inputs.checkpointing);
        self.ln_f.forward(&xs)
    }

    fn logits(&self, hidden: &Tensor) -> Tensor {
        self.lm_head.forward(hidden)
    }
}

struct Gpt2Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

impl Gpt2Block {
    fn load(loader: &Loader, config: &Config, index: i64) -> Result<Self> {
        let (width, eps) = (config.n_embd, config.layer_norm_epsilon);
        Ok(Self {
            ln_1: LayerNorm::load(&(loader / "ln_1"), width, eps)?,
            attn: Attention::load(&(loader / "attn"), config, index)?,
            ln_2: LayerNorm::load(&(loader / "ln_2"), width, eps)?,
            mlp: Mlp::load(&(loader / "mlp"), config)?,
        })
    }
}

impl Block for Gpt2Block {
    type Shared = AttentionMask;

    fn forward(&self, xs: &Tensor, mask: &AttentionMask, cache: Option<&mut BlockCache>) -> Tensor {
        let xs = self.attn.forward(&self.ln_1.forward(xs), mask, cache) + xs;
        &xs + self.mlp.forward(&self.ln_2.forward(&xs))
    }
}

struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    attn_dropout: Dropout,
    resid_dropout: Dropout,
    heads: i64,
    scale: f64,
}

impl Attention {
    fn load(loader: &Loader, config: &Config, index: i64) -> Result<Self> {
        let (width, heads) = (config.n_embd, config.n_head);
        let by_width = if config.scale_attn_weights { ((width / heads) as f64).powf(-0.5) } else { 1.0 };
        let by_depth = if config.scale_attn_by_inverse_layer_idx { (index + 1) as f64 } else { 1.0 };
        Ok(Self {
            c_attn: Linear::load_transposed(&(loader / "c_attn"), width, 3 * width)?,
            c_proj: Linear::load_transposed(&(loader / "c_proj"), width, width)?,
            attn_dropout: Dropout::new(loader, config.attn_pdrop),
            resid_dropout: Dropout::new(loader, config.resid_pdrop),
            heads,
            scale: by_width / by_depth,
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor, mask: &AttentionMask, cache: Option<&mut BlockCache>) -> Tensor {
        let fused = self.c_attn.forward(xs).chunk(3, -1); // 3 × [b, t, d]
        let (q, mut k, mut v) = (
            split_heads(&fused[0], self.heads),
            split_heads(&fused[1], self.heads),
            split_heads(&fused[2], self.heads),
        );
        if let Some(cache) = cache {
            (k, v) = cache.text.extend(k, v);
        }
        let attending = Attending { mask, scale: self.scale, dropout: self.attn_dropout.rate() };
        self.resid_dropout.forward(self.c_proj.forward(&attend_heads(&q, &k, &v, attending)))
    }
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    dropout: Dropout,
    activation: Activation,
}

impl Mlp {
    fn load(loader: &Loader, config: &Config) -> Result<Self> {
        let (width, inner) = (config.n_embd, config.inner());
        Ok(Self {
            c_fc: Linear::load_transposed(&(loader / "c_fc"), width, inner)?,
            c_proj: Linear::load_transposed(&(loader / "c_proj"), inner, width)?,
            dropout: Dropout::new(loader, config.resid_pdrop),
            activation: config.activation_function,
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor) -> Tensor {
        self.dropout.forward(self.c_proj.forward(&self.activation.forward(&self.c_fc.forward(xs))))
    }
}
