//! OPT: a decoder with learned positions that are counted by the attention mask.
//! Paper: arXiv 2205.01068. Reference: transformers `modeling_opt.py`.
//!
//! Shapes: b batch, t length, p what is in the cache, d width, e width of the embeddings.

use super::architectures::Build;
use super::blocks::{self, Block};
use super::interface::{CausalLm, DecoderInputs, LanguageModel, TransformerShape};
use super::outline::{HeadOutline, Outline};
use crate::error::Result;
use crate::models::config_file::{self, check_heads, check_layers, check_sizes};
use crate::nn::{
    attend_heads, split_heads, Activation, Attending, AttentionMask, Bias, BlockCache, Dropout, Embedding, LayerNorm,
    Linear, Loader,
};
use serde::Deserialize;
use serde_json::Value;
use std::rc::Rc;
use tch::Tensor;

/// The first rows of the table of positions stand for padding.
const OFFSET: i64 = 2;
/// torch's default, which OPT keeps.
const EPS: f64 = 1e-5;

/// `config.json`; absent fields are transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: i64,
    hidden_size: i64,
    num_hidden_layers: i64,
    ffn_dim: i64,
    max_position_embeddings: i64,
    do_layer_norm_before: bool,
    #[serde(rename = "_remove_final_layer_norm")]
    remove_final_layer_norm: bool,
    word_embed_proj_dim: Option<i64>,
    num_attention_heads: i64,
    activation_function: Activation,
    enable_bias: bool,
    tie_word_embeddings: bool,
    dropout: f64,
    attention_dropout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 50272,
            hidden_size: 768,
            num_hidden_layers: 12,
            ffn_dim: 3072,
            max_position_embeddings: 2048,
            do_layer_norm_before: true,
            remove_final_layer_norm: false,
            word_embed_proj_dim: None,
            num_attention_heads: 12,
            activation_function: Activation::Relu,
            enable_bias: true,
            tie_word_embeddings: true,
            dropout: 0.1,
            attention_dropout: 0.0,
        }
    }
}

const FIXED: &[(&str, &[&str])] = &[("layer_norm_elementwise_affine", &["true"]), ("layerdrop", &["0", "0.0"])];

impl Config {
    /// The model's sizes.
    fn shape(&self) -> TransformerShape {
        let Config { hidden_size: width, num_attention_heads: heads, .. } = *self;
        TransformerShape {
            blocks: self.num_hidden_layers,
            heads,
            key_value_heads: heads,
            head_width: width / heads,
            width,
            vocabulary: self.vocab_size,
            longest: Some(self.max_position_embeddings),
        }
    }

    fn new(value: &Value) -> std::result::Result<Self, String> {
        let config: Self = config_file::parse(value, FIXED)?;
        config.check()?;
        Ok(config)
    }

    fn has_final_norm(&self) -> bool {
        self.do_layer_norm_before && !self.remove_final_layer_norm
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("ffn_dim", self.ffn_dim),
            ("max_position_embeddings", self.max_position_embeddings),
            ("word_embed_proj_dim", self.embedding_width()),
        ])?;
        check_heads("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)?;
        check_layers("num_hidden_layers", self.num_hidden_layers)
    }

    fn embedding_width(&self) -> i64 {
        self.word_embed_proj_dim.unwrap_or(self.hidden_size)
    }

    fn bias(&self) -> Bias {
        if self.enable_bias {
            Bias::Yes
        } else {
            Bias::No
        }
    }
}

/// Loads the model of the configuration in `build`.
pub(super) fn load(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    let config = Config::new(build.config).map_err(|e| build.refuse(e))?;
    Ok(build.decoder(Opt::load(loader, config, build)?))
}

/// What the model of a configuration is made of.
pub(super) fn outline(config: &Value) -> std::result::Result<Outline, String> {
    let config = Config::new(config)?;
    Ok(Outline {
        table: "model.decoder.embed_tokens".into(),
        readers: Vec::new(),
        embedding_width: config.embedding_width(),
        shape: config.shape(),
        encoder_blocks: None,
        head: HeadOutline::Tokens { path: "lm_head".into(), tied: config.tie_word_embeddings },
        made_for: None,
    })
}

struct Opt {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    project_in: Option<Linear>,
    layers: Vec<Rc<DecoderLayer>>,
    final_layer_norm: Option<LayerNorm>,
    project_out: Option<Linear>,
    lm_head: Linear,
    config: Config,
}

impl Opt {
    fn load(loader: &Loader, config: Config, build: &Build) -> Result<Self> {
        let decoder = loader / "model.decoder";
        let layers = &decoder / "layers";
        let (width, narrow) = (config.hidden_size, config.embedding_width());
        let project = |name: &str, inputs: i64, outputs: i64| match width == narrow {
            true => Ok(None),
            false => Linear::load(&(&decoder / name), inputs, outputs, Bias::No).map(Some),
        };
        let embed_tokens = Embedding::load(&(&decoder / "embed_tokens"), config.vocab_size, narrow)?;
        let tied = config.tie_word_embeddings.then_some(&embed_tokens);
        Ok(Self {
            embed_positions: Embedding::load(
                &(&decoder / "embed_positions"),
                config.max_position_embeddings + OFFSET,
                width,
            )?,
            project_in: project("project_in", narrow, width)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| DecoderLayer::load(&(&layers / i), &config).map(Rc::new))
                .collect::<Result<_>>()?,
            final_layer_norm: match config.has_final_norm() {
                true => Some(LayerNorm::load(&(&decoder / "final_layer_norm"), width, EPS)?),
                false => None,
            },
            project_out: project("project_out", width, narrow)?,
            lm_head: build.head(loader, narrow, config.vocab_size, tied)?,
            embed_tokens,
            config,
        })
    }

    /// Rows of the table of positions: `[b or 1, t]`
    fn rows(inputs: &DecoderInputs) -> Tensor {
        let counted = match inputs.position_ids {
            Some(_) => None,
            None => inputs.counted_positions(-1),
        };
        let length = inputs.tokens.length();
        counted.map_or_else(|| inputs.positions(), |all| all.narrow(1, inputs.past(), length)) + OFFSET
    }
}

impl CausalLm for Opt {
    fn shape(&self) -> TransformerShape {
        self.config.shape()
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        self.embed_tokens.forward(ids)
    }

    fn forward(&self, inputs: DecoderInputs) -> Tensor {
        let embedded = inputs.tokens.embedded(&self.embed_tokens); // [b, t, e]
        let xs = self.project_in.as_ref().map_or(embedded.shallow_clone(), |project| project.forward(&embedded));
        let xs = xs + self.embed_positions.forward(&Self::rows(&inputs));
        let mask = inputs.causal_mask(None);
        let mut xs = blocks::run(&self.layers, xs, &mask, inputs.cache, inputs.checkpointing);
        if let Some(norm) = &self.final_layer_norm {
            xs = norm.forward(&xs);
        }
        self.project_out.as_ref().map_or(xs.shallow_clone(), |project| project.forward(&xs))
    }

    fn logits(&self, hidden: &Tensor) -> Tensor {
        self.lm_head.forward(hidden)
    }
}

struct DecoderLayer {
    self_attn: Attention,
    self_attn_layer_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    final_layer_norm: LayerNorm,
    activation: Activation,
    dropout: Dropout,
    /// All models but one: the 350m norms after.
    norm_before: bool,
}

impl DecoderLayer {
    fn load(loader: &Loader, config: &Config) -> Result<Self> {
        let (width, inner, bias) = (config.hidden_size, config.ffn_dim, config.bias());
        Ok(Self {
            self_attn: Attention::load(&(loader / "self_attn"), config)?,
            self_attn_layer_norm: LayerNorm::load(&(loader / "self_attn_layer_norm"), width, EPS)?,
            fc1: Linear::load(&(loader / "fc1"), width, inner, bias)?,
            fc2: Linear::load(&(loader / "fc2"), inner, width, bias)?,
            final_layer_norm: LayerNorm::load(&(loader / "final_layer_norm"), width, EPS)?,
            activation: config.activation_function,
            dropout: Dropout::new(loader, config.dropout),
            norm_before: config.do_layer_norm_before,
        })
    }

    /// `xs` and what `inner` makes of it, normed before or after: `[b, t, d] -> [b, t, d]`
    fn residual(&self, norm: &LayerNorm, xs: &Tensor, inner: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        match self.norm_before {
            true => xs + self.dropout.forward(inner(&norm.forward(xs))),
            false => norm.forward(&(xs + self.dropout.forward(inner(xs)))),
        }
    }
}

impl Block for DecoderLayer {
    type Shared = AttentionMask;

    fn forward(&self, xs: &Tensor, mask: &AttentionMask, cache: Option<&mut BlockCache>) -> Tensor {
        let xs = self.residual(&self.self_attn_layer_norm, xs, |xs| self.self_attn.forward(xs, mask, cache));
        self.residual(&self.final_layer_norm, &xs, |xs| {
            self.fc2.forward(&self.activation.forward(&self.fc1.forward(xs)))
        })
    }
}

struct Attention {
    k_proj: Linear,
    v_proj: Linear,
    q_proj: Linear,
    out_proj: Linear,
    dropout: Dropout,
    heads: i64,
    scale: f64,
}

impl Attention {
    fn load(loader: &Loader, config: &Config) -> Result<Self> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let linear = |name: &str| Linear::load(&(loader / name), width, width, config.bias());
        Ok(Self {
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            q_proj: linear("q_proj")?,
            out_proj: linear("out_proj")?,
            dropout: Dropout::new(loader, config.attention_dropout),
            heads,
            scale: ((width / heads) as f64).powf(-0.5),
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor, mask: &AttentionMask, cache: Option<&mut BlockCache>) -> Tensor {
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], xs);
        // The queries are scaled before the product, which float16 rounds.
        let q = split_heads(&(q * self.scale), self.heads);
        let (mut k, mut v) = (split_heads(&k, self.heads), split_heads(&v, self.heads));
        if let Some(cache) = cache {
            (k, v) = cache.text.extend(k, v);
        }
        let attending = Attending { mask, scale: 1.0, dropout: self.dropout.rate() };
        self.out_proj.forward(&attend_heads(&q, &k, &v, attending))
    }
}
